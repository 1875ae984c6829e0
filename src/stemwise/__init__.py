"""Music source separation that people train themselves: Spleeter's design on PyTorch Lightning and Hydra."""

__version__ = "0.1.0"
