"""Optimisers as torch does not have them: one pass over the weights at a step, and TensorFlow's Adam."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def adam(params: Iterable[Tensor], lr: float = 1e-4, **options: Any) -> torch.optim.Adam:
    """torch's Adam in its fused form; `options` are its other arguments."""
    return _clippable(torch.optim.Adam(params, **{"lr": lr, "fused": True, **options}))


def adamw(params: Iterable[Tensor], lr: float = 1e-4, **options: Any) -> torch.optim.AdamW:
    """torch's AdamW in its fused form; `options` are its other arguments."""
    return _clippable(torch.optim.AdamW(params, **{"lr": lr, "fused": True, **options}))


def _clippable(optimizer: Any) -> Any:
    """Lets the scaler of `16-mixed` divide the gradients before the step, not in it.

    A fused step offers to do so, and Lightning then refuses to clip gradients at any precision.
    """
    optimizer._step_supports_amp_scaling = False
    return optimizer


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
