"""Which songs go in and which files come out: what a user names on the command line, as paths.

A pattern places a stem below the output folder; its fields are Spleeter's: {filename}, {instrument},
{foldername} and {codec}.
"""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from stemwise.errors import UserError

PATTERN = "{filename}/{instrument}.{codec}"
STREAM = "-"  # standard input or output

# What is taken from a folder. A file that is named is tried whatever its name.
_AUDIO = (
    "aac ac3 aif aifc aiff alac amr ape au caf flac m4a m4b mka mp2 mp3 oga ogg opus rf64 snd spx tta w64 wav wave "
    "wma wv"
)
_VIDEO = "avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv vob webm wmv"
SUFFIXES = frozenset(f".{suffix}" for suffix in f"{_AUDIO} {_VIDEO}".split())


def songs(inputs: Sequence[str], output: Path) -> list[Path]:
    """The files that `inputs` name: a file, a folder (all audio and video below it) or a glob pattern.

    A name that exists is never taken for a pattern, so `Song [live].wav` is just a song. What lies in the folder
    `output` below a named folder is left out: stems of last time are no songs. `-` is standard input and stays as
    it is. Raises `UserError` for a folder or a pattern without songs.
    """
    found = [path for text in inputs for path in _songs(text, output.resolve())]
    if [str(path) for path in found].count(STREAM) > 1:
        raise UserError("-: standard input can be read once. Name it once.")
    return found


def _songs(text: str, output: Path) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        return _below(path, output)
    if glob.has_magic(text) and not os.path.lexists(path):
        matches = [Path(match) for match in sorted(glob.glob(text, recursive=True)) if Path(match).is_file()]
        if not matches:
            raise UserError(f"{text}: no such file, and no file matches it as a pattern. Check the path.")
        return matches
    return [path]


def _below(folder: Path, output: Path) -> list[Path]:
    """Songs in `folder` and its subfolders; hidden ones are left out, as half-written files are."""
    found = []
    for parent, folders, names in os.walk(folder, onerror=_unreadable):
        here = Path(parent).resolve()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and here / name != output)
        songs = sorted(name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES)
        found += [Path(parent, name) for name in songs]
    if not found:
        raise UserError(f"{folder}: no songs in this folder (looked for .wav, .flac, .mp3, .mp4 and so on).")
    return found


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror}). Name the songs in it one by one.")


def plan(files: Sequence[Path], folder: Path, stems: Sequence[str], pattern: str, codec: str) -> list[list[Path]]:
    """Where the stems of each song go; see `targets`.

    Raises `UserError` also where stems would overwrite a song, or the stems of another song.
    """
    places = [targets(path, folder, stems, pattern, codec) for path in files]
    songs = {path.resolve(): path for path in files}
    owners: dict[Path, Path] = {}
    for path, files_of_path in zip(files, places, strict=True):
        for target in files_of_path:
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


def targets(path: Path, folder: Path, stems: Sequence[str], pattern: str, codec: str) -> list[Path]:
    """Where the stems of the song `path` go: `pattern` below `folder`.

    Raises `UserError` for an unknown field, a pattern that leaves `folder`, and stems that would overwrite
    each other.
    """
    song = _absolute(path)
    name = "stdin" if str(path) == STREAM else song.stem
    fields = {"filename": name, "foldername": song.parent.name, "codec": codec}
    found = [folder / _filled(pattern, {"instrument": stem, **fields}) for stem in stems]
    if Path(pattern).is_absolute():
        raise UserError(f"--filename-format {pattern!r}: an absolute path. Give the folder with -o, and the rest here.")
    inside = folder.resolve()
    for target in found:
        if not target.resolve().is_relative_to(inside):
            raise UserError(f"--filename-format {pattern!r}: {target} is outside of {folder}. Remove the '..'.")
    if len({*found}) < len(stems):
        raise UserError(f"--filename-format {pattern!r}: all stems get the same name. Use {{instrument}} in it.")
    return found


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
