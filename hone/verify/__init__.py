"""What a run says about its model, measured on the saved results, by checks that can fail."""
