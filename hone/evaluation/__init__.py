"""What a model's answers are worth: measures, and the answers themselves, from a saved result."""
