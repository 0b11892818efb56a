"""Stages: each a short story that composes data, model, loss and `fit`; `run` tells them one after another."""
