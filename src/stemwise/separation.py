"""Song files to stem files: decode, separate, bring back to the file's rate, write.

Axes: S stem, C channel, N sample.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stemwise import audio, progress, resampling
from stemwise.errors import UserError
from stemwise.separator import Separator


def separate_file(model: Separator, path: Path, targets: Sequence[Path], *, codec: str = "wav") -> int:
    """Separates one song into `targets`, a file per stem; returns how many samples past full scale were clipped.

    The stems have the song's length and sample rate, and the model's channel count.
    """
    info = audio.probe(path)
    rate = model.spectrogram.sample_rate
    clipped = 0
    stems = _separated(model, path, audio.length(info, rate))
    for target in targets:
        # Taken out of the list, so that a stem is freed when it is written.
        clipped += audio.write(target, _at_rate(stems.pop(0), rate, info), info.sample_rate, codec=codec)
    return clipped


def plan(files: Sequence[Path], folder: Path, stems: Sequence[str], pattern: str, codec: str) -> list[list[Path]]:
    """Where the stems of each song go; see `targets_of`.

    Raises `UserError` also where stems would overwrite a song, or the stems of another song.
    """
    places = [targets_of(path, folder, stems, pattern, codec) for path in files]
    songs = {path.resolve(): path for path in files}
    owners: dict[Path, Path] = {}
    for path, targets in zip(files, places, strict=True):
        for target in targets:
            if song := songs.get(target.resolve()):
                raise UserError(f"{song}: a stem of {path} would overwrite this song. Choose another folder with -o.")
            other = owners.setdefault(target.resolve(), path)
            if other is not path:
                raise UserError(f"{other} and {path}: both would be written to {target}. {_way_out(other, path)}")
    return places


def _way_out(one: Path, other: Path) -> str:
    if one.resolve() == other.resolve():
        return "Name the song once."
    if _absolute(one).parent.name != _absolute(other).parent.name:
        return "Put {foldername} into --filename-format: '{foldername}/{filename}/{instrument}.{codec}'."
    return "Separate them one at a time, each with a folder of its own (-o)."


def targets_of(path: Path, folder: Path, stems: Sequence[str], pattern: str, codec: str) -> list[Path]:
    """Where the stems of the song `path` go: `pattern` below `folder`.

    Raises `UserError` for an unknown field, a pattern that leaves `folder`, and stems that would overwrite
    each other.
    """
    song = _absolute(path)
    fields = {"filename": song.stem, "foldername": song.parent.name, "codec": codec}
    targets = [folder / _filled(pattern, {"instrument": stem, **fields}) for stem in stems]
    if Path(pattern).is_absolute():
        raise UserError(f"--filename-format {pattern!r}: an absolute path. Give the folder with -o, and the rest here.")
    inside = folder.resolve()
    for target in targets:
        if not target.resolve().is_relative_to(inside):
            raise UserError(f"--filename-format {pattern!r}: {target} is outside of {folder}. Remove the '..'.")
    if len({*targets}) < len(stems):
        raise UserError(f"--filename-format {pattern!r}: all stems get the same name. Use {{instrument}} in it.")
    return targets


def device(name: str) -> torch.device:
    """The device called `name`; raises `UserError` if this machine has none."""
    try:
        # Computing is the proof: torch.device("cuda") is valid on any machine.
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, ImportError, AttributeError, ValueError):
        there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        raise UserError(f"--device {name}: this machine has no such device. Choose one of {there}.") from None


def _absolute(path: Path) -> Path:
    # Unlike Path.resolve, keeps the name of a link; unlike Path.absolute, ends in a name after '..'.
    return Path(os.path.abspath(path))


def _filled(pattern: str, fields: Mapping[str, str]) -> str:
    # Not str.format: a pattern is names in braces, without attributes and conversions.
    if wrong := [name for name in re.findall(r"{([^{}]*)}|[{}]", pattern) if name not in fields]:
        raise UserError(
            f"--filename-format {pattern!r}: {{{wrong[0]}}} is no field. "
            "Use {filename}, {instrument}, {foldername} and {codec}."
        )
    return re.sub(r"{([^{}]*)}", lambda found: fields[found[1]], pattern)


def _separated(model: Separator, path: Path, samples: int) -> list[Tensor]:
    """S stems (C, N) at the model's rate, N = `samples`; the song itself is never whole in memory."""
    settings = model.spectrogram
    blocks = audio.stream(path, sample_rate=settings.sample_rate, channels=settings.channels)
    stems = [torch.empty(settings.channels, samples) for _ in model.stems]
    done = 0
    for piece in _shown(model, blocks, samples, path.name):
        for stem, part in zip(stems, piece, strict=True):
            stem[:, done : done + part.shape[-1]] = part
        done += piece.shape[-1]
    return stems


def _at_rate(stem: Tensor, rate: int, info: audio.Info) -> Tensor:
    """The stem (C, N) at the song's own rate and length."""
    if rate != info.sample_rate:
        stem = torch.cat(list(resampling.resample(iter([stem]), rate, info.sample_rate)), dim=-1)
    return stem[:, : info.frames]


def _shown(model: Separator, blocks: Iterator[Tensor], samples: int, name: str) -> Iterator[Tensor]:
    settings = model.spectrogram
    windows = -(-settings.frame_count(samples) // settings.frames)
    return progress.track(model.stream(blocks), what=name, total=windows)
