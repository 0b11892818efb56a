"""Stages: short stories that compose data, model, loss and `fit`; `run` tells them in order."""
