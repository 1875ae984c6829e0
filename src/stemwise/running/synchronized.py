"""Batch normalisation by the statistics of all ranks' batches: `trainer.sync_batchnorm=true`, on processors too.

torch has it for GPUs only. With it, W ranks of batch B train as one rank of batch W B does. Axes: (B, C, T, F).
"""

from typing import Any

import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, distributed, nn

_DIMS = (0, 2, 3)


class SynchronizedNorms(TorchSyncBatchNorm):
    """Lightning's plugin: torch's layers on a GPU, ours on a processor."""

    def apply(self, model: nn.Module) -> nn.Module:
        if next(model.parameters()).device.type == "cuda":
            return super().apply(model)
        for module in [*model.modules()]:
            for name, child in module.named_children():
                if type(child) is nn.BatchNorm2d:
                    setattr(module, name, _converted(child))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        return super().revert(model) if next(model.parameters()).device.type == "cuda" else model


class _AcrossRanks(nn.BatchNorm2d):
    """Takes the statistics of all ranks in training, and is an ordinary batch normalisation else."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        variance, mean = torch.var_mean(x.detach().float(), dim=_DIMS, correction=0)
        mean, variance, count = _of_all(mean, variance, x.numel() // x.shape[1])
        self._follow(mean, variance * (count / (count - 1)))
        out: Tensor = _Normalized.apply(x, self.weight, self.bias, mean, (variance + self.eps).rsqrt(), count)
        return out

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


class _Normalized(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias, where mean and deviation follow from the x of all ranks.

    Gradients of weight and bias are this rank's; whoever averages gradients averages these too (Ioffe and Szegedy,
    "Batch normalization", ICML 2015, section 3, with the sums over all ranks).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, count: int) -> Tensor:
        normal = (x.float() - _wide(mean)) * _wide(scale)
        ctx.save_for_backward(normal, weight, scale)
        ctx.count = count
        return (normal * _wide(weight) + _wide(bias)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, scale = ctx.saved_tensors
        gradient = gradients[0].float()
        # In double: float32 sums along strides of channels-last tensors are off by up to 1e-4.
        own = torch.stack([gradient.double().sum(_DIMS), (gradient * normal).double().sum(_DIMS)])
        every = own.clone()
        distributed.all_reduce(every)
        plain, projected = (every / ctx.count).float()
        inner = gradient - _wide(plain) - normal * _wide(projected)
        bias, slope = own.to(weight.dtype)
        return (inner * _wide(weight * scale)).to(gradients[0].dtype), slope, bias, None, None, None


def _of_all(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
    """Mean and variance (C,) over all ranks, whose parts may differ in size, and how many values that are."""
    here = torch.cat([mean.double(), variance.double(), mean.new_tensor([count], dtype=torch.float64)])
    parts = [torch.empty_like(here) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, here)
    together = torch.stack(parts)
    means, variances, counts = together[:, : len(mean)], together[:, len(mean) : -1], together[:, -1:]
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    variance = ((variances + (means - mean).square()) * counts).sum(0) / total
    return mean.float(), variance.float(), int(total)


def _converted(norm: nn.BatchNorm2d) -> _AcrossRanks:
    """The same layer with the same tensors."""
    made = _AcrossRanks(norm.num_features, norm.eps, norm.momentum)
    made.weight, made.bias = norm.weight, norm.bias
    made.running_mean, made.running_var = norm.running_mean, norm.running_var
    made.num_batches_tracked = norm.num_batches_tracked
    return made.train(norm.training)


def _wide(values: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1)"""
    return values[:, None, None]
