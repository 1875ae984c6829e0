"""Trains a separator: `python -m train`."""
