"""Spleeter's models and settings, read and written without TensorFlow."""
