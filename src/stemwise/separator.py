"""The model as it is trained and as it is shipped: S U-Nets, STFT settings and the mask rule, in one object.

    model = model_file.load("model.safetensors")
    stems = model.separate(waveform)            # (C, N) -> (S, C, N), at model.spectrogram.sample_rate

Axes: B batch, S stem, C channel, T frame, F bin, N sample.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stemwise import masks, spectrogram
from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNet, UNetSettings

OUTPUTS = ("sigmoid", "softmax")

_STEM = re.compile(r"[^./\\\0][^/\\\0]{0,63}")
_TAKEN = ("loss", "mean")  # curves are called train/loss and sdr/mean beside train/<stem> and sdr/<stem>


class Separator(nn.Module):
    """One U-Net per stem over the same mixture, and the way from their estimates to waveforms.

    `output` is what bounds a U-Net's values: `sigmoid` (Spleeter's `unet.unet`) or `softmax` across the
    stems (`unet.softmax_unet`); the result times the mixture's magnitudes is the estimate.
    """

    def __init__(
        self,
        stems: Sequence[str],
        spectrogram: Spectrogram,
        unet: UNetSettings,
        mask: MaskRule,
        output: str = "sigmoid",
    ) -> None:
        super().__init__()
        if not stems or len(set(stems)) != len(stems):
            raise UserError(f"stem_names={list(stems)}: name at least one stem, each once.")
        for stem in stems:
            if not isinstance(stem, str) or not _STEM.fullmatch(stem) or stem in _TAKEN:
                raise UserError(
                    f"stem_names: {stem!r} is no name for a stem. It becomes a file's and a curve's name: no slashes, "
                    f"no dot in front, at most 64 characters, and not {' or '.join(_TAKEN)}."
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
        self.unets = nn.ModuleList(UNet(spectrogram.channels, unet) for _ in self.stems)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as plain values, as a model file stores them."""
        return {
            "stems": list(self.stems),
            "spectrogram": asdict(self.spectrogram),
            "unet": {**asdict(self.unet), "filters": list(self.unet.filters)},
            "mask": asdict(self.mask),
            "output": self.output,
        }

    def forward(self, magnitudes: Tensor) -> Tensor:
        """Estimated magnitudes (B, S, C, T, F) of the stems of a mixture (B, C, T, F)."""
        shared = magnitudes.contiguous(memory_format=torch.channels_last)
        values = torch.stack([unet(shared) for unet in self.unets], dim=1)
        bounded = values.softmax(dim=1) if self.output == "softmax" else values.sigmoid()
        return bounded * magnitudes.unsqueeze(1)

    def masks(self, magnitudes: Tensor) -> Tensor:
        """Masks (B, S, C, T, F) of a mixture's magnitudes (B, C, T, F)."""
        return masks.ratio(self(magnitudes).float(), magnitudes, self.mask)

    @torch.inference_mode()
    def separate(self, waveform: Tensor) -> Tensor:
        """Stems (S, C, N) of a mixture (C, N) at the model's sample rate and channel count."""
        return torch.cat(list(self.stream([waveform])), dim=-1)

    @torch.inference_mode()
    def stream(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Stems (S, C, n) piece by piece from a mixture (C, n) piece by piece; memory stays bounded.

        The pieces that come out are about one window (T frames) long whatever the pieces that go in, and
        together they are as long as the input. Windows do not overlap and do not know of each other, as in
        Spleeter, so the result does not depend on how the input was cut.
        """
        settings = self.spectrogram
        device = next(self.parameters()).device
        step = settings.frames * settings.hop
        tail = torch.zeros(len(self.stems), settings.channels, settings.overlap, device=device)
        skip, remaining = settings.n_fft, 0
        for window, samples in spectrogram.windows(blocks, settings):
            remaining += samples
            pieces = self._separate_window(window.to(device))
            pieces[..., : settings.overlap] += tail
            # A last window of few frames can be shorter than the overlap: then its end is dropped below.
            tail = pieces[..., -settings.overlap :]
            out = pieces[..., min(skip, step) : step]
            skip = max(skip - step, 0)
            if remaining > 0 and out.shape[-1]:
                out = out[..., : min(remaining, out.shape[-1])]
                remaining -= out.shape[-1]
                yield out

    def _separate_window(self, padded: Tensor) -> Tensor:
        """(C, overlap + t * hop samples), t <= T -> stems (S, C, overlap + t * hop) before overlap-add."""
        settings = self.spectrogram
        spectrum = spectrogram.spectra(padded, settings)
        magnitudes = spectrum[..., : settings.bins].abs()
        missing = settings.frames - magnitudes.shape[-2]
        found = self.masks(functional.pad(magnitudes, (0, 0, 0, missing)).unsqueeze(0))[0]
        full = masks.extend(found[..., : spectrum.shape[-2], :], settings.full_bins, self.mask.extension)
        return spectrogram.overlap_add(full * spectrum, settings)


def start_from(model: Separator, other: Separator) -> list[str]:
    """Copies into `model` the weights of `other`'s stems of the same name, and returns those names.

    Raises `UserError` if the networks differ or no stem is in both.
    """
    for name in ("unet", "output"):
        ours, theirs = getattr(model, name), getattr(other, name)
        if ours != theirs:
            raise UserError(f"init_from: the model has {name}={theirs}, this run {ours}. Choose the same model.")
    if model.spectrogram.channels != other.spectrogram.channels:
        raise UserError(
            f"init_from: the model has {other.spectrogram.channels} channels, this run {model.spectrogram.channels}."
        )
    shared = [stem for stem in model.stems if stem in other.stems]
    if not shared:
        raise UserError(f"init_from: the model's stems are {', '.join(other.stems)}, none of {', '.join(model.stems)}.")
    for stem in shared:
        model.unets[model.stems.index(stem)].load_state_dict(other.unets[other.stems.index(stem)].state_dict())
    return shared
