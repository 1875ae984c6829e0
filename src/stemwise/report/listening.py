"""Songs to listen to on a page: sound and pictures in files beside it, variants that play at the same position.

A `Recording` takes the waveforms of a song block by block, and memory does not grow with the song:

    with listening.Recording(path, "A song", variants, sample_rate, frames) as recording:
        for blocks in song:                                 # (V, C, n): a waveform (C, n) of each variant
            recording.write(blocks)
        player = recording.finish()
    page.write(path, "My page", [listening.section([player])])
    listening.tidy(path, [player])                          # or all of it in `listening.publishing`

The page at `path` is written when all its songs are there, in one step. Until then the page that stood there before
finds its own files; `tidy` removes them.
Axes: V variant, C channel, N sample.
"""

import base64
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from torch import Tensor

from stemwise.errors import UserError
from stemwise.report import page
from stemwise.report.page import Section
from stemwise.report.sound import SECONDS, Chunks
from stemwise.report.views import Peaks, Spectrograms

LETTERS = "abcdefghijkl"  # of versions, on the keyboard; m mutes


@dataclass(frozen=True)
class Version:
    """What is chosen between in the player: the mixture, the estimates of one system, or the truths."""

    kind: str
    system: str

    @property
    def name(self) -> str:
        return {"mixture": "Mixture", "truth": "Truth"}.get(self.kind) or self.system or "Estimates"


@dataclass(frozen=True)
class Variant:
    """One of the waveforms of a song: the mixture, an estimate of a stem, or the true stem.

    `kind` is `mixture`, `estimate` or `truth`. `stem` is empty for the mixture. `system` says who made an estimate,
    where there are several.
    """

    kind: str
    stem: str = ""
    system: str = ""

    @property
    def version(self) -> "Version":
        """All variants of this kind and system belong together."""
        return Version(self.kind, self.system)

    @property
    def name(self) -> str:
        """In the middle of a sentence."""
        return " ".join(filter(None, ({"truth": "true"}.get(self.kind, self.kind), self.stem, self.system)))


@dataclass(frozen=True)
class Player:
    """A song on the page: what its player has to know, and where its files lie beside the page."""

    title: str
    folder: Path
    versions: Sequence[str]
    stems: Sequence[str]
    data: dict[str, Any]


class Recording:
    """The files of one song for the page at `path`, in a folder of their own below `folder(path)`.

    `variants` are each another, and in the order in which the player shows versions and stems. `frames` is N. Left, as
    a context, without `finish` it leaves nothing. Methods raise `UserError` where the files cannot be written.
    """

    def __init__(self, path: Path, title: str, variants: Sequence[Variant], sample_rate: int, frames: int) -> None:
        self._title, self._variants = title, list(variants)
        self._rate, self._frames, self._done = sample_rate, frames, 0
        self._key = secrets.token_hex(6)
        self._folder = folder(path) / self._key
        self._peaks = Peaks(len(variants), frames)
        self._spectrograms = Spectrograms(len(variants), frames, sample_rate)
        self._chunks: Chunks | None = None
        self._finished = False
        with self._reported():
            self._folder.mkdir(parents=True)

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._finished:
            self.discard()

    def discard(self) -> None:
        """Removes the files, whether finished or not."""
        _discard(self._folder)

    def write(self, blocks: Tensor) -> None:
        """Appends (V, C, n), n of any length, on the CPU, full scale at ±1."""
        if blocks.dim() != 3 or len(blocks) != len(self._variants):
            raise ValueError(f"expected blocks ({len(self._variants)}, C, n), got {tuple(blocks.shape)}")
        self._check(blocks)
        if self._chunks is None:
            self._chunks = Chunks(self._folder, self._key, len(blocks), blocks.shape[1], self._rate)
        self._done += blocks.shape[-1]
        self._peaks.write(blocks)
        self._spectrograms.write(blocks)
        with self._reported():
            self._chunks.write(blocks)

    def _check(self, blocks: Tensor) -> None:
        """Raises `UserError` for what cannot be heard, and would blank the pictures of all variants."""
        for variant, block in zip(self._variants, blocks, strict=True):
            if not block.isfinite().all():
                raise UserError(
                    f"{self._title}: NaN or infinite samples in the {variant.name} after "
                    f"{self._done / self._rate:.2f} s, so no page shows it. Check the file "
                    "or the model, or compute in single precision."
                )

    def finish(self) -> Player:
        """Ends the files; the folder stays from now on."""
        if self._chunks is None or self._done != self._frames:
            raise ValueError(f"expected {self._frames} samples, got {self._done}")
        with self._reported():
            self._chunks.end()
            for number, picture in enumerate(self._spectrograms.shown()):
                (self._folder / f"{number}.png").write_bytes(picture)
        self._finished = True
        versions = list(dict.fromkeys(variant.version for variant in self._variants))
        stems = list(dict.fromkeys(variant.stem for variant in self._variants if variant.stem))
        names = [version.name for version in versions]
        return Player(self._title, self._folder, names, stems, self._data(versions, stems))

    def _data(self, versions: Sequence[Version], stems: Sequence[str]) -> dict[str, Any]:
        assert self._chunks is not None
        beside = os.fsencode(self._folder.parent.name)
        places = {(v.version, v.stem): number for number, v in enumerate(self._variants)}
        return {
            "key": self._key,
            "folder": f"{quote(beside)}/{self._key}/",  # quoted, a name with a colon is no address either
            "beside": beside.decode("utf-8", "replace"),
            "seconds": self._frames / self._rate,
            "chunk": SECONDS,
            "chunks": self._chunks.count,
            "guard": self._chunks.guard,
            "versions": [
                {
                    "name": version.name,
                    "mixture": places.get((version, "")),
                    "stems": [places.get((version, stem)) for stem in stems],
                }
                for version in versions
            ],
            "stems": stems,
            "peaks": base64.b64encode(self._peaks.shown().tobytes()).decode(),
            "columns": self._peaks.columns,
            "ticks": self._spectrograms.ticks(),
            "highest": self._spectrograms.highest / 1000,
        }

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder}: the page's sound cannot be written ({error.strerror or error}). "
                "Choose another folder, or make room."
            ) from None


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # of another page's, if it is not empty
        folder.parent.rmdir()


def folder(path: Path) -> Path:
    """Where the files of the page at `path` lie."""
    return path.with_name(f"{path.stem}_files")


def section(players: Sequence[Player], key: str = "listening", title: str = "Listening") -> Section:
    """The part of a page where these songs are heard."""
    body = page.rendered("player.html", players=players, letters=LETTERS)
    return Section(key, title, body, styles=["player.css"], scripts=["sound.js", "player.js"])


def sections(players: Sequence[Player], unheard: str) -> list[Section]:
    """The same where there are songs to hear; `unheard` says why there are none, or fewer, if that is so."""
    found = section(players) if players else Section("listening", "Listening", Markup(""))
    note = Markup("<p>{}</p>").format(unheard) if unheard else Markup("")
    return [replace(found, body=note + found.body)] if players or unheard else []


@contextmanager
def publishing(path: Path) -> Iterator[list[Player]]:
    """A list for the players of the page at `path`, which is written inside.

    After that the files of the page before go; if it does not come to it, those of these players.
    """
    players: list[Player] = []
    try:
        yield players
    except BaseException:
        for player in players:
            _discard(player.folder)
        raise
    tidy(path, players)


def tidy(path: Path, players: Sequence[Player]) -> None:
    """Removes what earlier pages at `path` had as files, once the page of these players stands there."""
    kept = {player.folder.name for player in players}
    for old in folder(path).glob("*"):  # none, if no page here ever had sound
        if old.name not in kept and re.fullmatch("[0-9a-f]{12}", old.name):  # ours by its name
            shutil.rmtree(old, ignore_errors=True)
