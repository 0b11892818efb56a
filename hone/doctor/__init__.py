"""The mathematics of training, tested on a person's own model, data and machine."""
