"""Spleeter's networks in the plainest PyTorch: what stemwise's own are compared with, in speed and in output.

One loop over the stems, contiguous tensors, float32, `pad`, `conv2d`, `conv_transpose2d`, a crop and `cat`. The weights
have the names that `stemwise.unet` and `stemwise.separator` give theirs, so a `state_dict` fits both.
Axes: (B, C, T, F), and (B, S, C, T, F) over the stems. Needs nothing but torch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

FULL = (16, 32, 64, 128, 256, 512)


class PlainUNet(nn.Module):
    """Magnitudes (B, C, T, F) -> values (B, C, T, F); ELU throughout, as in Spleeter's 4 stems."""

    def __init__(self, channels: int = 2, filters: Sequence[int] = FULL, dropout: float = 0.5) -> None:
        super().__init__()
        sizes = (channels, *filters)
        self.encoder = nn.ModuleList(nn.Conv2d(sizes[i], sizes[i + 1], 5, stride=2) for i in range(len(filters)))
        self.encoder_norms = nn.ModuleList(nn.BatchNorm2d(n, eps=1e-3, momentum=0.01) for n in filters[:-1])
        outputs = (*reversed(filters[:-1]), 1)
        inputs = (filters[-1], *(2 * n for n in outputs[:-1]))
        self.decoder = nn.ModuleList(
            nn.ModuleDict(
                {
                    "convolution": nn.ConvTranspose2d(inputs[i], outputs[i], 5, stride=2),
                    "norm": nn.BatchNorm2d(outputs[i], eps=1e-3, momentum=0.01),
                }
            )
            for i in range(len(filters))
        )
        self.last = nn.Conv2d(1, channels, 4, dilation=2, padding=3)
        self.dropout = dropout

    def forward(self, magnitudes: Tensor) -> Tensor:
        x = magnitudes
        skips = []
        for layer, convolution in enumerate(self.encoder):
            if layer:
                x = functional.elu(self.encoder_norms[layer - 1](x))
            x = convolution(functional.pad(x, (1, 2, 1, 2)))
            skips.append(x)
        skips.pop()
        for layer, up in enumerate(self.decoder):
            height, width = 2 * x.shape[-2], 2 * x.shape[-1]
            x = up["convolution"](x)[..., 1 : 1 + height, 1 : 1 + width]
            x = up["norm"](functional.elu(x))
            if layer < 3:
                x = functional.dropout(x, self.dropout, self.training)
            if skips:
                x = torch.cat([skips.pop(), x], dim=1)
        return self.last(x)


class PlainSeparator(nn.Module):
    """Magnitudes of a mixture (B, C, T, F) -> estimates of the stems (B, S, C, T, F), stem after stem."""

    def __init__(self, stems: int = 4, channels: int = 2, filters: Sequence[int] = FULL, dropout: float = 0.5) -> None:
        super().__init__()
        self.unets = nn.ModuleList(PlainUNet(channels, filters, dropout) for _ in range(stems))

    def forward(self, magnitudes: Tensor) -> Tensor:
        values = torch.stack([unet(magnitudes) for unet in self.unets], dim=1)
        return values.sigmoid() * magnitudes.unsqueeze(1)


def loss(estimates: Tensor, stems: Tensor) -> Tensor:
    """Spleeter's: the mean of |estimate - stem| of each stem, summed over the stems."""
    return (estimates - stems).abs().mean(dim=(0, 2, 3, 4)).sum()


def loss_of(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a model's estimates for a mixture, as one function that can be compiled."""
    return lambda mixture, stems: loss(model(mixture), stems)
