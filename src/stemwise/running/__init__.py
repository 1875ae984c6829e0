"""What a training has around it: its folder, checkpoints, signals, faults, ranks, loggers, and its provenance."""
