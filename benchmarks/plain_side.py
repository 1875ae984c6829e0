"""Plain PyTorch's part of the comparison of training: `plain_side.py JOB.json`, steered as `steered.py` says.

JOB.json: `stems`, `filters` and `shape` (B, C, T, F) of a random batch, which stays in memory.
"""

import json
import sys
from pathlib import Path

import plain_unet
import steered
import torch


def main() -> None:
    """Trains on one batch, step after step as it is asked for."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = plain_unet.PlainSeparator(job["stems"], filters=job["filters"])
    adam = torch.optim.Adam(model.parameters(), lr=1e-4)
    mixture = torch.rand(*job["shape"])
    stems = torch.rand(job["shape"][0], job["stems"], *job["shape"][1:])

    def step() -> None:
        adam.zero_grad()
        plain_unet.loss(model(mixture), stems).backward()
        adam.step()

    steered.serve(step)


if __name__ == "__main__":
    main()
