"""One U-Net: magnitudes of a mixture -> one value per bin for one stem, before the output activation.

Spleeter's network (spleeter.model.functions.unet), so that its weights fit: Jansson et al., "Singing voice
separation with deep U-Net convolutional networks", ISMIR 2017, widened and with TensorFlow's padding.
Axes: (B, C, T, F).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stemwise.errors import UserError

ACTIVATIONS = ("leaky_relu", "relu", "elu")
# Up to so many inputs, a transposed convolution is faster written as a convolution: measured on the CPU, forwards and
# backwards, in both precisions. Beyond, rearranging the kernel costs more than is gained on the small images there.
REARRANGED_UP_TO = 128


@dataclass(frozen=True)
class UNetSettings:
    """Shape of a U-Net. The defaults are Spleeter's for 2 stems; its 4 and 5 stems have `elu` twice."""

    filters: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    encoder_activation: str = "leaky_relu"
    decoder_activation: str = "relu"
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.filters, list | tuple):
            raise UserError(f"unet.filters={self.filters!r} is not a list.")
        # A config and a model file hold lists; equality and hashing want a tuple.
        object.__setattr__(self, "filters", tuple(self.filters))
        if len(self.filters) < 2 or any(not isinstance(n, int) or n < 1 for n in self.filters):
            raise UserError(f"unet.filters={list(self.filters)} is not a list of two or more whole numbers above zero.")
        for name in ("encoder_activation", "decoder_activation"):
            if (value := getattr(self, name)) not in ACTIVATIONS:
                raise UserError(f"unet.{name}={value!r} is not one of {', '.join(ACTIVATIONS)}.")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise UserError(f"unet.dropout={self.dropout} is not in [0, 1).")

    @property
    def stride(self) -> int:
        """T and F must be multiples of this: every layer halves them."""
        return 2 ** len(self.filters)


class UNet(nn.Module):
    """Encoder of strided 5x5 convolutions, decoder of transposed ones, raw encoder outputs as skips.

    Dropout acts on the first three decoder layers. Spleeter also normalises and activates the output of the
    last encoder layer, but hands the raw output on; what has no effect is left out here.
    """

    def __init__(self, channels: int, settings: UNetSettings) -> None:
        super().__init__()
        filters = settings.filters
        self.encoder = nn.ModuleList(
            _Down(before, after) for before, after in zip((channels, *filters), filters, strict=False)
        )
        self.encoder_norms = nn.ModuleList(_norm(after) for after in filters[:-1])
        # In place: what it is given is needed nowhere else. In the decoder it may be given a slice, which should not
        # stay one: batch normalisation is ten times as slow on slices.
        self.encoder_activation = _activation(settings.encoder_activation, inplace=True)
        # A decoder layer ends with as many channels as the encoder's output that is put in front of it.
        outputs = (*reversed(filters[:-1]), 1)
        inputs = (filters[-1], *(2 * n for n in outputs[:-1]))
        self.decoder = nn.ModuleList(
            _Up(before, after, settings.decoder_activation, settings.dropout if layer < 3 else 0.0)
            for layer, (before, after) in enumerate(zip(inputs, outputs, strict=True))
        )
        self.last = nn.Conv2d(1, channels, kernel_size=4, dilation=2, padding=3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He-uniform kernels and zero biases, as Keras draws them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # torch's fan_in of a transposed kernel (in, out, 5, 5) is out * 25: Keras's choice as well.
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, magnitudes: Tensor) -> Tensor:
        """(B, C, T, F) -> (B, C, T, F); T and F are multiples of `UNetSettings.stride`."""
        skips = [self.encoder[0](magnitudes.to(next(self.encoder.parameters()).dtype))]
        for norm, down in zip(self.encoder_norms, self.encoder[1:], strict=True):
            skips.append(down(self.encoder_activation(norm(skips[-1]))))
        x = skips.pop()
        for up in self.decoder[:-1]:
            x = torch.cat([skips.pop(), _with_dense_gradient(up(x))], dim=1)
        return self._last(self.decoder[-1](x))

    def lower(self, dtype: torch.dtype) -> None:
        """Makes inference compute in `dtype`: the kernels, and with them what passes between the layers.

        Normalisation computes in float32 whatever it is given, and so does the last layer.
        """
        for layer in self.modules():
            if isinstance(layer, _Down | _Transposed):
                layer.to(dtype)

    def _last(self, x: Tensor) -> Tensor:
        """In float32 under autocast too: exact where it decides, and with one input three times as fast on the CPU."""
        if not torch.is_autocast_enabled(x.device.type):
            return self.last(x.to(self.last.weight.dtype))
        with torch.autocast(x.device.type, enabled=False):
            return self.last(x.float())


class _Down(nn.Conv2d):
    """Stride 2 with TensorFlow's `same` padding for even sizes: 1 before and 2 after."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, kernel_size=5, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (1, 2, 1, 2)))


class _Up(nn.Module):
    """The transpose of `_Down`, then activation, normalisation and dropout, in Spleeter's order."""

    def __init__(self, before: int, after: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.convolution = _Transposed(before, after)
        self.activation = _activation(activation)
        self.norm = _norm(after)
        self.dropout = _Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.activation(self.convolution(x))))


class _Transposed(nn.ConvTranspose2d):
    """The transpose of `_Down`: (B, in, T, F) -> (B, out, 2T, 2F)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, kernel_size=5, stride=2, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        # What torch.compile makes of the other way is slower than this, and an exported graph is simpler.
        if self.in_channels > REARRANGED_UP_TO or torch.compiler.is_compiling():
            # padding=1 crops one row at both ends; `same` crops one before and two after.
            return super().forward(x, output_size)[..., :-1, :-1]
        assert self.bias is not None
        phases = functional.conv2d(x, self._rearranged(), self.bias.repeat_interleave(4), padding=1)
        return functional.pixel_shuffle(phases, 2)

    def _rearranged(self) -> Tensor:
        """The kernel (in, out, 5, 5) as one of (4 out, in, 3, 3) for an output of four channels per pixel block.

        Along one axis, output 2m + a takes input m + d, d in (-1, 0, 1), with tap a + 1 - 2d of the five; the sixth,
        tap -1, which only a = 0 and d = 1 would use, is zero.
        """
        taps = functional.pad(self.weight, (1, 0, 1, 0)).unflatten(3, (3, 2)).unflatten(2, (3, 2))
        kernel = taps.flip(2, 4).permute(1, 3, 5, 0, 2, 4).reshape(-1, self.in_channels, 3, 3)
        return kernel.contiguous(memory_format=torch.channels_last)


class _Dropout(nn.Dropout):
    """Dropout whose chances are 16 bits of a random number each: torch draws one a value, in one thread."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        lost = min(round(self.p * 2**16), 2**16 - 1)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        drawn = words.view(torch.int16)[: x.numel()].as_strided(x.shape, torch.empty_like(x).stride())
        return x * (drawn >= lost - 2**15).to(x.dtype).mul_(2**16 / (2**16 - lost))


def _with_dense_gradient(x: Tensor) -> Tensor:
    """`x`, whose gradient will lie as `x` does.

    That of a concatenated tensor is a slice, over which batch normalisation goes backwards ten times as slowly.
    """
    if x.requires_grad and not torch.compiler.is_compiling():
        x.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return x


def _norm(channels: int) -> nn.BatchNorm2d:
    # Keras calls 1 - 0.01 the momentum.
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _activation(name: str, inplace: bool = False) -> nn.Module:
    made = {"leaky_relu": nn.LeakyReLU(0.2, inplace), "relu": nn.ReLU(inplace), "elu": nn.ELU(inplace=inplace)}
    return made[name]
