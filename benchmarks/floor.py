"""The least time that a machine can take for the networks: counted operations and bytes over measured rates.

Counted on the plain networks (`plain_unet`), and of them the convolutions: everything else (normalisation, activation,
dropout, concatenation, loss) could in principle happen while their values are at hand. Operations are those that
PyTorch's own counter finds. Bytes: each convolution reads its input and weights and writes its output; backward it
reads the output's gradient, the input and the weights, and writes the gradients of input and weights. The optimiser
reads weight, gradient and Adam's two moments and writes three of them.

`seconds` goes layer by layer: none is faster than its operations or than its bytes, and none waits for less than the
one before it. It is therefore at least max(all operations / rate, all bytes / bandwidth).
Needs nothing but torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plain_unet
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

STATE = 4  # bytes of a value of the weights, their gradients and the moments


@dataclass(frozen=True)
class Layer:
    """What one layer does, or all of one name: floating-point operations, and bytes read and written."""

    name: str
    operations: float
    bytes: float


@dataclass(frozen=True)
class Floor:
    """Seconds that `operations` alone, `bytes` alone, and layer by layer the larger of both demand."""

    operations: float
    bytes: float
    seconds: float


def training_step(model: nn.Module, shape: Sequence[int], value: int) -> list[Layer]:
    """The layers of one step on a batch (B, C, T, F): forward, backward and Adam.

    `value` is the bytes of an activation. `model` lies on the device "meta", so that nothing is computed.
    """
    return [*(_trained(count, value) for count in _forward(model, shape)), _adam(model)]


def separation(model: nn.Module, shape: Sequence[int], value: int) -> list[Layer]:
    """The same for the networks alone, without gradients."""
    return [
        Layer(count.name, count.operations, value * (count.before + count.after) + STATE * count.weights)
        for count in _forward(model, shape)
    ]


def floor(layers: Sequence[Layer], rate: float, bandwidth: float) -> Floor:
    """The floor on a machine of `rate` operations and `bandwidth` bytes a second."""
    return Floor(
        operations=sum(layer.operations for layer in layers) / rate,
        bytes=sum(layer.bytes for layer in layers) / bandwidth,
        seconds=sum(max(layer.operations / rate, layer.bytes / bandwidth) for layer in layers),
    )


def full_size(stems: int = 4, filters: Sequence[int] = plain_unet.FULL) -> plain_unet.PlainSeparator:
    """The networks to count on, without memory."""
    with torch.device("meta"):
        return plain_unet.PlainSeparator(stems, filters=filters)


@dataclass(frozen=True)
class _Count:
    """Operations of a convolution forward, and how many values its input, its output and its weights have."""

    name: str
    operations: float
    before: int
    after: int
    weights: int


def _trained(count: _Count, value: int) -> Layer:
    # Backward is a convolution for the input's gradient, which the first layer does not need, and one for the weights'.
    needed = not count.name.endswith("encoder.0")
    moved = value * (2 * count.before + 2 * count.after + needed * count.before) + 3 * STATE * count.weights
    return Layer(count.name, count.operations * (2 + needed), moved)


def _forward(model: nn.Module, shape: Sequence[int]) -> list[_Count]:
    found: list[_Count] = []

    def hook_of(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            weights = sum(weight.numel() for weight in module.parameters())
            total = counter.get_total_flops() - sum(count.operations for count in found)
            found.append(_Count(name, total, *_values(module, inputs[0], output), weights))

        return hook

    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in convolutions.items()]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(*shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return found


def _values(module: nn.Module, before: Tensor, after: Tensor) -> tuple[int, int]:
    """Values of a convolution's input and output without what was padded in front of it, or is cropped behind it."""
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    small, channels = (after, module.in_channels) if isinstance(module, nn.Conv2d) else (before, module.out_channels)
    large = len(small) * channels * math.prod(module.stride) * math.prod(small.shape[2:])
    return (large, small.numel()) if isinstance(module, nn.Conv2d) else (small.numel(), large)


def _adam(model: nn.Module) -> Layer:
    return Layer("adam", 0.0, 7.0 * STATE * sum(weight.numel() for weight in model.parameters()))
