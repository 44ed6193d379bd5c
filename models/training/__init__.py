"""Training: on a stream's own windows, and the recipe of the shipped weights."""
