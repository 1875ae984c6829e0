"""What the values of a config's `data` must be, each by itself and together. Every check raises `UserError`."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stemwise.augment import ON_MAGNITUDES, Augmentation
from stemwise.cache import storage, upkeep
from stemwise.errors import UserError
from stemwise.files import places
from stemwise.files.places import Place
from stemwise.spectrogram import Spectrogram

ON_ERROR = ("raise", "skip")


def place(key: str, value: str | Path) -> Place:
    """Where `data.KEY` is: a path or a URL."""
    return places.configured(f"data.{key}", str(value))


def size(key: str, limit: str | float | None) -> int | None:
    """Bytes of a limit such as "50G"; None if there is none."""
    try:
        return None if limit is None else upkeep.parse_size(limit)
    except (TypeError, ValueError):
        raise UserError(f"data.{key}={limit!r} is not a size. Write 50G, 800M or a number of bytes.") from None


def with_frames(settings: Spectrogram, frames: int | None) -> Spectrogram:
    """The settings for examples of so many frames; None: as many as a window of the model's."""
    try:
        return settings if frames is None else replace(settings, frames=frames)
    except UserError as error:
        raise UserError(f"data.frames: {error}") from None


def check_speeds(speeds: Sequence[int]) -> None:
    """Checks percents, such as 90 and 110."""
    for speed in speeds:
        if type(speed) is not int or not 25 <= speed <= 400 or speed == 100 or speeds.count(speed) > 1:
            raise UserError(
                f"data.speeds={list(speeds)}: {speed} is not a whole number of percent from 25 to 400, other than 100 "
                "and given once. Write data.speeds=[90,110]."
            )


def check_number(key: str, value: object, least: int) -> None:
    """Checks a whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"data.{key}={value!r} is not a whole number from {least} on.")


def check_verify(verify: object) -> None:
    """Checks true or false."""
    if not isinstance(verify, bool):
        raise UserError(f"data.verify={verify!r} is not true or false.")


def check_on_error(on_error: str, cache: str | Path | None) -> None:
    """Checks that the choice is one, and can be made without the cache."""
    if on_error not in ON_ERROR:
        raise UserError(f"data.on_error={on_error!r} is not one of {', '.join(ON_ERROR)}.")
    if on_error == "skip" and cache is None:
        raise UserError(
            "data.on_error=skip needs the cache, whose build finds the songs that cannot be decoded. "
            "Set data.cache to a folder, or data.on_error=raise."
        )


def check_caches(cache: str | Path | None, local_cache: str | Path | None) -> None:
    """Checks that both are folders of this machine, and two."""
    for key, folder in (("cache", cache), ("local_cache", local_cache)):
        if "://" in str(folder):
            raise UserError(f"data.{key}={folder} is not a folder of this machine. Set it to one, or to null.")
    if local_cache is None:
        return
    if cache is None:
        raise UserError(
            f"data.local_cache={local_cache}: there is no cache to copy. Set data.cache to the shared folder."
        )
    if _is_same_folder(Path(local_cache), Path(cache)):
        raise UserError(
            f"data.local_cache={local_cache} is data.cache itself. Set it to a folder on a disk of the node, "
            "or to null."
        )


def check_phase(kind: str, augmentations: Sequence[Augmentation], by_loss: bool) -> None:
    """Checks that `data.storage=KIND` has the phases that augmentations and the loss need."""
    needing = [type(a).__name__ for a in augmentations if a.needs_phase]
    has_phase = storage.by_name(kind).has_phase
    if by_loss and not has_phase:
        raise UserError(
            f"loss: this one compares spectra, which needs phases; data.storage={kind} has none. "
            "Set data.storage=complex."
        )
    if by_loss and (without := [type(a).__name__ for a in augmentations if isinstance(a, ON_MAGNITUDES)]):
        raise UserError(
            f"augment: {', '.join(without)} changes magnitudes alone, and this loss compares spectra. "
            "Leave it out, or choose another loss."
        )
    if needing and not has_phase:
        raise UserError(
            f"augment: {', '.join(needing)} changes stems one by one, which needs their phases; "
            f"data.storage={kind} has none. Set data.storage=complex."
        )


def _is_same_folder(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)  # which sees through mounts, too
    except OSError:
        return one.resolve() == other.resolve()
