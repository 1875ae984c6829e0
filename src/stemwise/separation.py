"""Song files to stem files: decode, separate, bring back to the file's rate, write."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stemwise import audio, progress, resampling
from stemwise.errors import UserError
from stemwise.separator import Separator

PATTERN = "{filename}/{instrument}.{codec}"


def separate_file(
    model: Separator, path: Path, folder: Path, *, pattern: str = PATTERN, codec: str = "wav"
) -> list[Path]:
    """Separates one song and returns the files that it wrote, one per stem.

    The stems have the song's length and sample rate, and the model's channel count.
    """
    targets = targets_of(path, folder, model.stems, pattern, codec)
    info = audio.probe(path)
    rate = model.spectrogram.sample_rate
    song = audio.read(path, sample_rate=rate, channels=model.spectrogram.channels)
    stems = torch.cat(list(_shown(model, song, path.name)), dim=-1)
    for target, stem in zip(targets, stems, strict=True):
        audio.write(target, _at_rate(stem, rate, info), info.sample_rate, codec=codec)
    return targets


def targets_of(path: Path, folder: Path, stems: Sequence[str], pattern: str, codec: str) -> list[Path]:
    """Where the stems of the song `path` go: `pattern` below `folder`.

    Raises `UserError` for an unknown field, a pattern that leaves `folder`, and stems that would overwrite
    each other.
    """
    fields = {"filename": path.stem, "foldername": path.absolute().parent.name, "codec": codec}
    targets = [folder / _filled(pattern, {"instrument": stem, **fields}) for stem in stems]
    inside = folder.resolve()
    for target in targets:
        if not target.resolve().is_relative_to(inside):
            raise UserError(f"--filename-format {pattern!r}: {target} is outside of {folder}. Remove the '..'.")
    if len({*targets}) < len(stems):
        raise UserError(f"--filename-format {pattern!r}: all stems get the same name. Use {{instrument}} in it.")
    return targets


def _filled(pattern: str, fields: Mapping[str, str]) -> str:
    # Not str.format: a pattern is names in braces, without attributes and conversions.
    if wrong := [name for name in re.findall(r"{([^{}]*)}|[{}]", pattern) if name not in fields]:
        raise UserError(
            f"--filename-format {pattern!r}: {{{wrong[0]}}} is no field. "
            "Use {filename}, {instrument}, {foldername} and {codec}."
        )
    return re.sub(r"{([^{}]*)}", lambda found: fields[found[1]], pattern)


def _at_rate(stem: Tensor, rate: int, info: audio.Info) -> Tensor:
    """The stem (C, N) at the song's own rate and length."""
    if rate != info.sample_rate:
        stem = torch.cat(list(resampling.resample(iter([stem]), rate, info.sample_rate)), dim=-1)
    return stem[:, : info.frames]


def _shown(model: Separator, song: Tensor, name: str) -> Iterator[Tensor]:
    settings = model.spectrogram
    windows = -(-settings.frame_count(song.shape[-1]) // settings.frames)
    return progress.track(model.stream([song]), what=name, total=windows, silent_for=2.0)
