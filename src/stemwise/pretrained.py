"""Models by name: `spleeter:4stems` becomes a model file in the user's cache, fetched once.

A string that begins with `spleeter:` is a name, also where a file is called so (give that as `./spleeter:4stems`):
a command means the same in every folder. Any other string, and every `Path`, is a path.

The cache is `STEMWISE_CACHE`, or else the platform's place for caches. Below it, every release has a folder:

    github.com/deezer/spleeter/v1.4.0/4stems.safetensors         the converted model; complete if it is there
    github.com/deezer/spleeter/v1.4.0/4stems-16kHz.safetensors   the same weights with other settings
    github.com/deezer/spleeter/v1.4.0/4stems.tar.gz              put there by hand where there is no network
    github.com/deezer/spleeter/v1.4.0/.4stems.lock               who fetches; everything else with a dot is temporary

What a stranger's server sends is checked before it is unpacked, and unpacked with bounds.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import filelock
import platformdirs
import torch

from stemwise import model_file
from stemwise.errors import UserError
from stemwise.separator import Separator
from stemwise.spleeter import config
from stemwise.spleeter import model as spleeter_model
from stemwise.spleeter.archive import unpack

log = logging.getLogger(__name__)

PREFIX = "spleeter:"
ARCHIVES = ("2stems", "4stems", "5stems")
WIDE = "-16kHz"
NAMES = tuple(f"{PREFIX}{archive}{variant}" for archive in ARCHIVES for variant in ("", WIDE))
INDEX = "checksum.json"

LARGEST_ARCHIVE = 2**30  # bytes; 5stems has 0.18e9
LARGEST_INDEX = 2**20


@dataclass(frozen=True)
class Release:
    """Where archives are published: `host`/`repository`/releases/download/`tag`/4stems.tar.gz."""

    host: str = "https://github.com"
    repository: str = "deezer/spleeter"
    tag: str = "v1.4.0"

    def url(self, file: str) -> str:
        return f"{self.host}/{self.repository}/releases/download/{self.tag}/{file}"

    @property
    def folder(self) -> Path:
        """Its own place below the cache, one to one."""
        host = self.host.removeprefix("https://")
        return Path(*(_folder_name(part) for part in (host, *self.repository.split("/"), self.tag)))


def _folder_name(part: str) -> str:
    quoted = quote(part, safe="", errors="surrogateescape")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


ORIGINAL = Release()

# The values in the checksum.json of the original release, which Spleeter's own tests repeat. Built in, they
# also hold where that file cannot be fetched, or was changed together with an archive.
CHECKSUMS = {
    "2stems": "f3a90b39dd2874269e8b05a48a86745df897b848c61f3958efc80a39152bd692",
    "4stems": "3adb4a50ad4eb18c7c4d65fcf4cf2367a07d48408a5eb7d03cd20067429dfaa8",
    "5stems": "25a1e87eb5f75cc72a4d2d5467a0a50ac75f05611f877c278793742513cc7218",
}


def path(model: str | Path) -> Path:
    """The model file that `model` names: a path as it is, or one of `NAMES` in the cache, fetched if it is not there.

    Raises `UserError` for an unknown name, and where the model cannot be fetched; then nothing is left behind.
    """
    if isinstance(model, Path) or not model.lower().startswith(PREFIX):
        return Path(model)
    if model not in NAMES:
        raise UserError(f"{model!r}: no such model. There are {', '.join(NAMES)}. (A file of that name is ./{model}.)")
    name = model.removeprefix(PREFIX)
    place = cache() / release().folder
    try:
        return _cached(name, place)
    except OSError as error:
        raise UserError(
            f"{place}: {model} cannot be read or written there ({error.strerror or error}). "
            "Make room or allow it, or set STEMWISE_CACHE to another folder."
        ) from None


def cache() -> Path:
    """The folder of the converted models."""
    chosen = os.environ.get("STEMWISE_CACHE")
    folder = (
        Path(os.path.expanduser(chosen)) if chosen else Path(platformdirs.user_cache_dir("stemwise", False)) / "models"
    )
    return folder.absolute()


def release() -> Release:
    """The release to fetch from: the original, or where Spleeter's environment variables redirect it."""
    host = (os.environ.get("GITHUB_HOST") or ORIGINAL.host).rstrip("/")
    if "@" in host:
        # It would end up in messages, in names of folders and in model files that are passed on.
        raise UserError(
            "GITHUB_HOST: holds a user name or a password. Put these into ~/.netrc, and the bare host here."
        )
    return Release(
        host if "://" in host else f"https://{host}",
        (os.environ.get("GITHUB_REPOSITORY") or ORIGINAL.repository).strip("/"),
        os.environ.get("GITHUB_RELEASE") or ORIGINAL.tag,
    )


def _cached(name: str, place: Path) -> Path:
    target = place / f"{name}.safetensors"
    if target.is_file():
        return target
    archive = name.removesuffix(WIDE)
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place / f".{archive}.lock", name):
        _remove_stale(place, archive)
        base = place / f"{archive}.safetensors"
        if not base.is_file():
            _fetch(archive, base)
        if not target.is_file():
            _widen(base, target)
    return target


@contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Lets one process in at a time; the system frees the lock of a process that is killed."""
    held = filelock.FileLock(lock)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        log.warning("%s%s: another process is fetching it; waiting for that.", PREFIX, name)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _remove_stale(place: Path, archive: str) -> None:
    """Removes what a killed process left; only who holds the lock may."""
    for left in place.glob(f".{archive}[.-]*"):
        if left.is_dir():
            shutil.rmtree(left)
        elif left.suffix != ".lock":
            left.unlink()


def _fetch(archive: str, target: Path) -> None:
    """Writes the model of a released archive, which lies beside `target` or is downloaded."""
    place, where = target.parent, release()
    with tempfile.TemporaryDirectory(dir=place, prefix=f".{archive}.") as work:
        file, label, checksum = _checked(archive, where, place, Path(work))
        # Its name says what it is, unless the archive holds a config.json, as somebody else's release may.
        folder = Path(work) / archive
        folder.mkdir()
        unpack(file, folder, label)
        log.info("%s%s: converting it to %s", PREFIX, archive, target)
        try:
            model = spleeter_model.read(folder)
        except UserError as error:
            raise UserError(f"{label}: {str(error).replace(str(folder), archive)}") from None
    # Only now, so that whoever is killed after this leaves nothing behind.
    facts = {"name": PREFIX + archive, "archive": where.url(f"{archive}.tar.gz"), **checksum}
    model_file.save(model, target, {**facts, **spleeter_model.TRAINED})


def _widen(base: Path, target: Path) -> None:
    """Writes the -16kHz variant of a model: the same weights over more bins, and nothing else differs."""
    model, facts = model_file.read(base)
    spectrogram = replace(model.spectrogram, bins=config.load(target.stem).spectrogram.bins)
    with torch.device("meta"):
        wide = Separator(model.stems, spectrogram, model.unet, model.mask, model.output)
    wide.load_state_dict(model.state_dict(), assign=True)
    model_file.save(wide, target, {**facts, "name": f"{PREFIX}{target.stem}"})


def _checked(archive: str, where: Release, place: Path, work: Path) -> tuple[Path, str, dict[str, str]]:
    """The archive with the published checksum, what messages call it, and that checksum."""
    name = f"{archive}.tar.gz"
    way_out = _way_out(archive, where, place)
    expected = _published(archive, where, place, work, way_out)
    file, label = place / name, str(place / name)
    advice = "Remove it, or put the published one there."
    if not file.is_file():
        file, label = work / name, where.url(name)
        advice = f"Try again; if it stays so, {way_out}"
        log.info("%s%s: downloading %s to %s", PREFIX, archive, label, place)
        _download(label, file, LARGEST_ARCHIVE, way_out)
    with open(file, "rb") as content:
        page = content.read(512).lstrip().startswith(b"<")
        content.seek(0)
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        what = "a web page, perhaps of a proxy or a login," if page else "another or a damaged file"
        raise UserError(
            f"{label}: {what} in place of the archive: SHA-256 {found} of {file.stat().st_size} bytes, "
            f"published is {expected}.\n  {advice}"
        )
    return file, label, {"sha256": expected}


def _published(archive: str, where: Release, place: Path, work: Path, way_out: str) -> str:
    """The published SHA-256 of an archive: built in for the original release, else from the index beside it."""
    if where == ORIGINAL:
        return CHECKSUMS[archive]
    file, label = place / INDEX, str(place / INDEX)
    if not file.is_file():
        file, label = work / INDEX, where.url(INDEX)
        _download(label, file, LARGEST_INDEX, way_out)
    try:
        index = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise UserError(f"{label}: not JSON, perhaps a page of a proxy or a login.\n  {_capital(way_out)}") from None
    value = index.get(archive) if isinstance(index, dict) else None
    if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise UserError(f"{label}: no SHA-256 of {archive!r}, so its archive cannot be checked. {_redirected()}")
    return value.lower()


def _download(url: str, target: Path, limit: int, way_out: str) -> None:
    from stemwise import download  # here, because its library takes 0.1 s to import and is rarely needed

    download.download(url, target, limit, way_out)


def _way_out(archive: str, where: Release, place: Path) -> str:
    """What to download by hand and where to put it, as the end of a sentence, and what redirects us."""
    files = [f"{archive}.tar.gz"] + [INDEX] * (where != ORIGINAL)
    what = " and ".join(where.url(file) for file in files)
    return f"download {what} by other means into {place} and run this again. {_redirected()}".rstrip()


def _redirected() -> str:
    names = ("GITHUB_HOST", "GITHUB_REPOSITORY", "GITHUB_RELEASE")
    chosen = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
    # GitHub's own CI sets GITHUB_REPOSITORY, to a repository that has no such release.
    return f"The environment redirects it: {', '.join(chosen)}." if chosen else ""


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
