"""The model as it is trained and as it is shipped: S U-Nets, STFT settings and the mask rule, in one object.

    model = model_file.load("model.safetensors")
    stems = model.separate(waveform)            # (C, N) -> (S, C, N), at model.spectrogram.sample_rate

Axes: B batch, S stem, C channel, T frame, F bin, N sample.
"""

import functools
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stemwise import crossfade, masks, spectrogram, wiener
from stemwise.crossfade import Estimated
from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNet, UNetSettings

OUTPUTS = ("sigmoid", "softmax")
MOST_STEMS = 64
# Windows that pass the networks together: a GPU wants work, and on the CPU two share what rearranging kernels costs.
TOGETHER = {"cpu": 2, "cuda": 16}

# Piece after piece: estimates to complex spectra (C, t, ≤ n_fft/2 + 1) of one stem after the other; missing bins
# are 0.
Divide = Callable[[Iterator[Estimated]], Iterator[Iterable[Tensor]]]

_STEM = re.compile(r"[^./\\\0][^/\\\0]{0,63}")
_TAKEN = ("loss", "mean")  # curves are called train/loss and sdr/mean beside train/<stem> and sdr/<stem>


class Separator(nn.Module):
    """One U-Net per stem over the same mixture, and the way from their estimates to waveforms.

    `output` is what bounds a U-Net's values: `sigmoid` (Spleeter's `unet.unet`) or `softmax` across the
    stems (`unet.softmax_unet`); the result times the mixture's magnitudes is the estimate. `overlap` is the share of
    a window of T frames that it has in common with the next one, 0 to 0.9: see `crossfade`.
    """

    def __init__(
        self,
        stems: Sequence[str],
        spectrogram: Spectrogram,
        unet: UNetSettings,
        mask: MaskRule,
        output: str = "sigmoid",
        overlap: float = 0.0,
    ) -> None:
        super().__init__()
        crossfade.check(overlap, "model.overlap=")
        if len(stems) > MOST_STEMS:
            raise UserError(f"stem_names: {len(stems)} stems, each with a network. Name at most {MOST_STEMS}.")
        if not stems or len(set(stems)) != len(stems):
            raise UserError(f"stem_names={list(stems)}: name at least one stem, each once.")
        for stem in stems:
            if not isinstance(stem, str) or not _STEM.fullmatch(stem) or not stem.isprintable() or stem in _TAKEN:
                raise UserError(
                    f"stem_names: {stem!r:.80} is no name for a stem. It becomes a file's and a curve's name: no "
                    f"slashes, no dot in front, at most 64 characters, all printable, and not {' or '.join(_TAKEN)}."
                )
        if output not in OUTPUTS:
            raise UserError(f"model.output={output!r} is not one of {', '.join(OUTPUTS)}.")
        for name in ("frames", "bins"):
            if (value := getattr(spectrogram, name)) % unet.stride:
                raise UserError(
                    f"spectrogram.{name}={value} is not a multiple of {unet.stride}, which "
                    f"{len(unet.filters)} layers of stride 2 need. Take {max(value // unet.stride, 1) * unet.stride}."
                )
        self.stems = tuple(stems)
        self.spectrogram = spectrogram
        self.unet = unet
        self.mask = mask
        self.output = output
        self.overlap = overlap
        self.unets = nn.ModuleList(UNet(spectrogram.channels, unet) for _ in self.stems)
        self.arrange()

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as plain values, as a model file stores them."""
        return {
            "stems": list(self.stems),
            "spectrogram": asdict(self.spectrogram),
            "unet": {**asdict(self.unet), "filters": list(self.unet.filters)},
            "mask": asdict(self.mask),
            "output": self.output,
            "overlap": self.overlap,
        }

    def forward(self, magnitudes: Tensor) -> Tensor:
        """Estimated magnitudes (B, S, C, T, F) of the stems of a mixture (B, C, T, F)."""
        shared = magnitudes.contiguous(memory_format=torch.channels_last)
        values = torch.stack([unet(shared) for unet in self.unets], dim=1)
        bounded = values.softmax(dim=1) if self.output == "softmax" else values.sigmoid_()
        # Training still needs what is bounded; otherwise one block of memory serves all.
        return bounded * magnitudes.unsqueeze(1) if bounded.requires_grad else bounded.mul_(magnitudes.unsqueeze(1))

    @torch.inference_mode()
    def separate(self, waveform: Tensor, divide: Divide | None = None) -> Tensor:
        """Stems (S, C, N) of a mixture (C, N) at the model's sample rate and channel count."""
        return torch.cat(list(self.stream([waveform], divide)), dim=-1)

    @torch.inference_mode()
    def stream(self, blocks: Iterable[Tensor], divide: Divide | None = None) -> Iterator[Tensor]:
        """Stems (S, C, n) piece by piece from a mixture (C, n) piece by piece; memory stays bounded.

        The pieces that come out are at most one window (T frames) long whatever the pieces that go in, and
        together they are as long as the input. Windows begin every `step` frames and do not know of each other, so
        the result does not depend on how the input was cut.

        `divide` turns the estimates of piece after piece into the stems' spectra; the ratio masks of the
        model's own rule if it is None.
        """
        taken = 0

        def counted() -> Iterator[Tensor]:
            nonlocal taken
            for block in blocks:
                taken += block.shape[-1]
                yield block

        spectra = (divide or self.by_ratio)(self.estimates(counted()))
        done = 0
        for piece in spectrogram.joined(spectra, self.spectrogram):
            piece = piece[..., : taken - done]
            done += piece.shape[-1]
            if piece.shape[-1]:
                yield piece

    @torch.inference_mode()
    def estimates(self, blocks: Iterable[Tensor]) -> Iterator[Estimated]:
        """Estimated magnitudes (S, C, t, F) of a mixture (C, n) and its spectrum (C, t, n_fft/2 + 1), in pieces of
        t <= T frames: windows side by side, as in Spleeter, or what remains of those that overlap."""
        device = next(self.parameters()).device
        windows = spectrogram.windows(blocks, self.spectrogram)
        spectra = (spectrogram.spectra(_brought(window, device), self.spectrogram) for window in windows)
        if self.overlap:
            yield from crossfade.crossfaded(spectra, self._estimated, self.spectrogram.frames, self.step)
        else:
            yield from self._estimated(spectra)

    @property
    def step(self) -> int:
        """Frames from the beginning of one window to that of the next."""
        return crossfade.step(self.spectrogram.frames, self.overlap)

    def pieces(self, samples: int) -> int:
        """In how many pieces the estimates of a mixture (C, N) come, N = `samples`."""
        return 1 + -(-max(self.spectrogram.frame_count(samples) - self.spectrogram.frames, 0) // self.step)

    def _estimated(self, spectra: Iterator[Tensor]) -> Iterator[Estimated]:
        """The estimates of each of these windows (C, t, n_fft/2 + 1), t <= T, and the window."""
        together = TOGETHER.get(next(self.parameters()).device.type, 1)
        while group := list(itertools.islice(spectra, together)):
            yield from zip(self._estimates(group), group, strict=True)

    def _estimates(self, group: Sequence[Tensor]) -> Iterator[Tensor]:
        """The estimates (S, C, t, F) of each of these spectra (C, t, n_fft/2 + 1), t <= T."""
        frames, bins = self.spectrogram.frames, self.spectrogram.bins
        magnitudes = (spectrum[..., :bins].abs() for spectrum in group)
        whole = torch.stack([functional.pad(m, (0, 0, 0, frames - m.shape[-2])) for m in magnitudes])
        with _exact_convolutions():
            found = self(whole).contiguous()  # the networks leave channels side by side, all else works along the bins
        return (estimates[..., : spectrum.shape[-2], :] for estimates, spectrum in zip(found, group, strict=True))

    def lower(self, dtype: torch.dtype) -> None:
        """Makes the networks compute in `dtype` from now on, to separate faster; everything else stays float32."""
        for unet in self.unets:
            assert isinstance(unet, UNet)
            unet.lower(dtype)

    def arrange(self) -> "Separator":
        """Lays the kernels out channels last: a third faster on the CPU, and what tensor cores want. Returns itself."""
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def by_ratio(self, windows: Iterable[Estimated]) -> Iterator[Iterable[Tensor]]:
        """Spectra of the stems by the model's mask rule; see `masks.divided`."""
        return (masks.divided(estimates, spectrum, self.mask) for estimates, spectrum in windows)

    @torch.inference_mode()
    def oracle(self, mixture: Tensor, stems: Tensor) -> Tensor:
        """Stems (S, C, N) of a mixture (C, N) by the model's mask rule from the magnitudes of the true stems (S, C, N).

        It is the ceiling of this rule, whatever the networks learn. Memory is that of a window.
        """
        cut = [spectrogram.windows([waveform], self.spectrogram) for waveform in (mixture, *stems)]
        windows = (spectrogram.spectra(torch.stack(parts), self.spectrogram) for parts in zip(*cut, strict=True))
        exact = ((true[1:, ..., : self.spectrogram.bins].abs(), true[0]) for true in windows)
        pieces = spectrogram.joined(self.by_ratio(exact), self.spectrogram)
        return torch.cat(list(pieces), dim=-1)[..., : mixture.shape[-1]]

    @torch.inference_mode()
    def statistics(self, blocks: Iterable[Tensor]) -> Iterator[wiener.Statistics]:
        """What each piece of a mixture adds to the statistics of the song; their sum is what `by_wiener` needs."""
        for estimates, spectrum in self.estimates(blocks):
            yield wiener.statistics(self._all_of(estimates, spectrum), spectrum)

    def by_wiener(self, total: wiener.Statistics) -> Divide:
        """Multichannel Wiener filtering with the statistics of the whole song, as Spleeter's `--mwf`.

        Above the model's band the stems are silent.
        """

        def divide(windows: Iterator[Estimated]) -> Iterator[Iterable[Tensor]]:
            return (self._filtered(estimates, spectrum, total) for estimates, spectrum in windows)

        return divide

    def by_wiener_of(self, count: int) -> Divide:
        """The same in one pass, with the statistics of `count` pieces at a time, which are held in memory."""

        def divide(windows: Iterator[Estimated]) -> Iterator[Iterable[Tensor]]:
            while held := list(itertools.islice(windows, count)):
                parts = (wiener.statistics(self._all_of(*window), window[1]) for window in held)
                yield from self.by_wiener(functools.reduce(operator.add, parts))(iter(held))

        return divide

    def _filtered(self, estimates: Tensor, spectrum: Tensor, total: wiener.Statistics) -> Tensor:
        return wiener.filtered(self._all_of(estimates, spectrum), spectrum, total)[: len(self.stems)]

    def _all_of(self, estimates: Tensor, spectrum: Tensor) -> Tensor:
        """The estimates and, if the model's rule has one, the rest that no stem claims."""
        if not self.mask.rest:
            return estimates
        rest = (spectrum[..., : estimates.shape[-1]].abs() - estimates.sum(0)).clamp(min=0)
        return torch.cat([estimates, rest.unsqueeze(0)])


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Float32 that is float32: on a GPU, torch lets cuDNN round to TF32's 10 bits unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _brought(window: Tensor, device: torch.device) -> Tensor:
    """`window` on the device. A GPU fetches it while it computes what came before, which wants pinned memory."""
    fetched = device.type == "cuda" and window.device.type == "cpu"
    return window.pin_memory().to(device, non_blocking=True) if fetched else window.to(device)


def start_from(model: Separator, other: Separator) -> list[str]:
    """Copies into `model` the weights of `other`'s stems of the same name, and returns those names.

    Raises `UserError` if the networks differ or no stem is in both.
    """
    if changes := _changes(model, other):
        raise UserError(f"init_from: that model has another network than this run. Add {' '.join(changes)}.")
    shared = [stem for stem in model.stems if stem in other.stems]
    if not shared:
        raise UserError(f"init_from: the model's stems are {', '.join(other.stems)}, none of {', '.join(model.stems)}.")
    for stem in shared:
        model.unets[model.stems.index(stem)].load_state_dict(other.unets[other.stems.index(stem)].state_dict())
    return shared


def _changes(model: Separator, other: Separator) -> list[str]:
    """The overrides by which `model` would fit the weights of `other`."""
    ours, theirs = _network(model), _network(other)
    # Without the spaces and with the brackets that Hydra wants.
    return [f"{key}={theirs[key]}".replace(" ", "") for key in theirs if theirs[key] != ours[key]]


def _network(model: Separator) -> dict[str, Any]:
    """What the shapes and the meaning of a model's weights depend on, by Hydra's keys."""
    unet = model.settings["unet"]
    names = ("filters", "encoder_activation", "decoder_activation")
    return {
        "model.output": model.output,
        **{f"model.unet.{name}": unet[name] for name in names},
        "spectrogram.channels": model.spectrogram.channels,
    }
