"""Which songs go in and which files come out: what a user names on the command line, as paths.

A pattern places a stem below the output folder; its fields are Spleeter's: {filename}, {instrument},
{foldername} and {codec}.
"""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stemwise.errors import UserError, raise_all

PATTERN = "{filename}/{instrument}.{codec}"
REPORT = "report"  # instead of a stem's name
STREAM = "-"  # standard input or output, on the command line
STDIN = Path("/dev/stdin")  # standard input among songs: `./-` is a file

# What is taken from a folder. A file that is named is tried whatever its name.
_AUDIO = (
    "aac ac3 aif aifc aiff alac amr ape au caf flac m4a m4b mka mp2 mp3 oga ogg opus rf64 snd spx tta w64 wav wave "
    "wma wv"
)
_VIDEO = "avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv vob webm wmv"
SUFFIXES = frozenset(f".{suffix}" for suffix in f"{_AUDIO} {_VIDEO}".split())


@dataclass(frozen=True)
class Found:
    """Songs, each once, and what is wrong with inputs that gave none."""

    songs: list[Path]
    problems: list[str]


def songs(inputs: Sequence[str], output: Path) -> Found:
    """The files that `inputs` name: a file, a folder (all audio and video below it) or a glob pattern.

    A name that exists is never taken for a pattern, so `Song [live].wav` is just a song. What lies in the folder
    `output` below a named folder or a pattern is left out: stems of last time are no songs. `-` is standard input,
    and becomes `STDIN`.
    """
    found: dict[str, Path] = {}
    problems: list[str] = []
    for text in inputs:
        for path in _songs(text, os.path.realpath(output), problems):
            found.setdefault(os.path.abspath(path), path)
    return Found(list(found.values()), problems)


def _songs(text: str, output: str, problems: list[str]) -> list[Path]:
    if text == STREAM:
        return [STDIN]
    if os.path.isdir(text):
        return _below(text, output, problems)
    if not glob.has_magic(text) or os.path.lexists(text):
        return [Path(text)]
    found = []
    # With `-o .` all songs lie in the output folder.
    around = _inside(os.path.dirname(re.split(r"[*?[]", text)[0]), output)
    for match in sorted(glob.glob(text, recursive=True)):
        if not around and _inside(match, output):
            continue
        found += _below(match, output, problems) if os.path.isdir(match) else [Path(match)]
    # A pattern such as album/* also matches the cover.
    found = [path for path in found if path.suffix.lower() in SUFFIXES] or found
    if not found:
        problems.append(f"{text}: no such file, and no song matches it as a pattern. Check the path.")
    return found


def _below(folder: str, output: str, problems: list[str]) -> list[Path]:
    """Songs in `folder` and its subfolders; hidden ones are left out, as half-written files are."""
    found = []

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read ({error.strerror}). Name the songs in it one by one.")

    before = len(problems)
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        here = os.path.realpath(parent)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and os.path.join(here, name) != output)
        songs = sorted(name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES)
        found += [Path(parent, name) for name in songs]
    if not found and len(problems) == before:
        problems.append(f"{folder}: no songs in this folder (looked for .wav, .flac, .mp3, .mp4 and so on).")
    return found


def _inside(path: str, folder: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)


def plan(files: Sequence[Path], folder: Path, stems: Sequence[str], pattern: str, codec: str) -> list[list[Path]]:
    """Where the stems of each song go; see `targets`.

    Raises `UserError` also where stems would overwrite a song, or the stems of another song; all of them at once.
    """
    places = [targets(path, folder, stems, pattern, codec) for path in files]
    songs = {os.path.realpath(path): path for path in files}
    owners: dict[str, Path] = {}
    problems: dict[str, None] = {}  # in order, each once
    for path, its_targets in zip(files, places, strict=True):
        for target in its_targets:
            real = os.path.realpath(target)
            if song := songs.get(real):
                problems[f"{song}: a stem of {path} would overwrite this song. Choose another folder with -o."] = None
            other = owners.setdefault(real, path)
            if other is not path:
                where = target.parent if len(stems) > 1 else target
                problems[f"{other} and {path}: both would be written to {where}. {_way_out(other, path)}"] = None
    raise_all(list(problems), heading="stems would overwrite what they must not")
    return places


def _way_out(one: Path, other: Path) -> str:
    if _absolute(one).parent.name != _absolute(other).parent.name:
        return "Put {foldername} into --filename-format: '{foldername}/{filename}/{instrument}.{codec}'."
    return "Separate them one at a time, each with a folder of its own (-o)."


def targets(path: Path, folder: Path, stems: Sequence[str], pattern: str, codec: str) -> list[Path]:
    """Where the stems of the song `path` go: `pattern` below `folder`.

    Raises `UserError` for an unknown field, a pattern that leaves `folder`, and stems that would overwrite
    each other.
    """
    song = _absolute(path)
    # A song may be called `...wav`, whose stem is a folder's name.
    names = {"filename": song.stem, "foldername": song.parent.name}
    fields = {name: {".": "_", "..": "__"}.get(value, value) for name, value in names.items()} | {"codec": codec}
    found = [folder / _filled(pattern, {"instrument": stem, **fields}) for stem in stems]
    if Path(pattern).is_absolute():
        raise UserError(f"--filename-format {pattern!r}: an absolute path. Give the folder with -o, and the rest here.")
    inside = os.path.realpath(folder)
    for target in found:
        if not _inside(str(target), inside):
            raise UserError(f"--filename-format {pattern!r}: {target} is outside of {folder}. Remove the '..'.")
    if len({*found}) < len(stems):
        raise UserError(f"--filename-format {pattern!r}: all stems get the same name. Use {{instrument}} in it.")
    return found


def page(path: Path, folder: Path, pattern: str) -> Path:
    """Where the report of the song `path` goes: beside its stems, as `report.html` by their pattern."""
    target = targets(path, folder, [REPORT], pattern, "html")[0]
    return target if target.suffix == ".html" else target.with_name(f"{target.name}.html")


def _absolute(path: Path) -> Path:
    # Unlike Path.resolve, keeps the name of a link; unlike Path.absolute, ends in a name after '..'.
    return Path(os.path.abspath(path))


def _filled(pattern: str, fields: Mapping[str, str]) -> str:
    # Not str.format: a pattern is names in braces, without attributes and conversions.
    rest = re.sub(r"{([^{}]*)}", "", pattern)
    wrong = [name for name in re.findall(r"{([^{}]*)}", pattern) if name not in fields]
    if wrong or "{" in rest or "}" in rest:
        what = f"{{{wrong[0]}}} is no field" if wrong else "a brace has no partner"
        raise UserError(
            f"--filename-format {pattern!r}: {what}. Use {{filename}}, {{instrument}}, {{foldername}} and {{codec}}."
        )
    return re.sub(r"{([^{}]*)}", lambda found: fields[found[1]], pattern)
