"""Data sets, preprocessing, metrics and gates: what a model is worth on the user's data."""
