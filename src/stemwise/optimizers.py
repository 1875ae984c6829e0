"""Optimisers and schedules as torch does not have them.

One pass over the weights at a step, TensorFlow's Adam, and a cosine that begins with a warm-up.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR


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


def warmup_cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> LambdaLR:
    """Up to the learning rate in equal parts over `warmup` steps, then down to zero along half a cosine at `steps`.

    torch's `SequentialLR` would chain two schedules; it needs both made before it, which a config cannot say.
    """
    if isinstance(warmup, bool) or not isinstance(warmup, int) or not 0 <= warmup < steps:
        raise ValueError(f"warmup={warmup!r} is not a whole number of steps from 0 to below steps={steps}")

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)  # a first step of rate zero would be lost
        return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / (steps - warmup), 1.0)))

    return LambdaLR(optimizer, share)
