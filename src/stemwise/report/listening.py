"""Songs to listen to on a page: sound in files beside it, in variants that play at the same position.

A `Recording` takes the waveforms of a song block by block, and memory does not grow with the song:

    recording = listening.Recording(page, "song-1", "A song", variants, sample_rate, frames)
    for blocks in song:                                     # (V, C, n): a waveform (C, n) of each variant
        recording.write(blocks)
    section = listening.section([recording.finish()])       # for page.write

Axes: V variant, C channel, N sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from torch import Tensor

from stemwise.report.page import Section

KINDS = ("mixture", "estimate", "truth")


@dataclass(frozen=True)
class Variant:
    """One of the waveforms of a song: the mixture, an estimate of a stem, or the true stem.

    `stem` is empty for the mixture. `system` says who made an estimate, where there are several.
    """

    kind: str
    stem: str = ""
    system: str = ""


@dataclass(frozen=True)
class Player:
    """A song on the page: what its player has to know."""

    key: str
    title: str


class Recording:
    """The files of one song, beside the page that is to be written at `page`.

    They go to the folder `<page's name>_files/<key>`, which is made. `frames` is N.
    """

    def __init__(
        self, page: Path, key: str, title: str, variants: Sequence[Variant], sample_rate: int, frames: int
    ) -> None:
        self.page, self.key, self.title = page, key, title

    def write(self, blocks: Tensor) -> None:
        """Appends (V, C, n), n of any length."""

    def finish(self) -> Player:
        return Player(self.key, self.title)


def section(players: Sequence[Player], key: str = "listening", title: str = "Listening") -> Section:
    """The part of a page where these songs are heard."""
    return Section(key, title, Markup(""))
