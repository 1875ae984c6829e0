"""Spectrograms on disk."""
