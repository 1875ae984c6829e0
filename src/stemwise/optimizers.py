"""Optimisers that torch does not have."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def tensorflow_adam(
    params: Iterable[Tensor], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.Adam:
    """Adam as TensorFlow computes it, and so as Spleeter was trained (tf.compat.v1.train.AdamOptimizer).

    Both follow Kingma and Ba (2015), torch their algorithm 1 and TensorFlow the "more efficient" form of section 2,
    whose epsilon is divided by √(1 - β₂^t) in terms of the first: 3e-7 at the first step, 1e-8 after some thousand.
    An L1 loss that is a mean over millions of bins has gradients that small, so the first steps differ.
    """
    optimizer = torch.optim.Adam(params, lr=lr, betas=betas, eps=eps)

    def scale(adam: torch.optim.Optimizer, *_: Any) -> None:
        for group in adam.param_groups:
            steps = [int(adam.state[weight]["step"]) for weight in group["params"][:1] if adam.state[weight]]
            group["eps"] = eps / math.sqrt(1 - group["betas"][1] ** (1 + (steps[0] if steps else 0)))

    optimizer.register_step_pre_hook(scale)
    return optimizer
