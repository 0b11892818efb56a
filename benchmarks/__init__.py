"""Measurements against the second implementation; `python -m benchmarks.sft` is `make bench`."""
