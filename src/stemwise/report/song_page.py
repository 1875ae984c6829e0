"""The page on which one song and its stems are heard: what `stemwise separate --report` puts beside the stems."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stemwise.errors import UserError
from stemwise.report import listening, page
from stemwise.report.listening import Player, Recording, Variant


class SongPage:
    """A page at `path` that is filled while a song is separated, and appears when all of it is there.

        with SongPage(path, "A song", ["vocals", "drums"], {"Model": "mine"}).begin(44100, frames) as heard:
            for stems, mixture in song:
                heard.write(stems, mixture)
            heard.publish()

    Left without `publish` it leaves nothing, and the page that stood there before as it was, unless it was withdrawn.
    `key` stands for what the page shows (`page.write`).
    """

    def __init__(self, path: Path, title: str, stems: Sequence[str], facts: Mapping[str, str], key: str = "") -> None:
        self.path, self._title, self._facts, self._key = path, title, facts, key
        self._variants = [Variant("mixture"), *(Variant("estimate", stem) for stem in stems)]
        self._recording: Recording | None = None
        self._player: Player | None = None
        self._published = False

    def begin(self, sample_rate: int, frames: int) -> "SongPage":
        """Makes the folder of the page's files. Raises `UserError` where that cannot be; so do all that follow."""
        seconds = frames / sample_rate
        self._facts = {**self._facts, "Length": f"{int(seconds // 60)}:{int(seconds % 60):02} min"}
        self._recording = Recording(self.path, self._title, self._variants, sample_rate, frames)
        return self

    def __enter__(self) -> "SongPage":
        return self

    def __exit__(self, *_: object) -> None:
        if self._recording and not self._published:
            self._recording.discard()

    def write(self, stems: Tensor, mixture: Tensor) -> None:
        """Appends (S, C, n) and (C, n)."""
        assert self._recording
        self._recording.write(torch.cat([mixture[None], stems]))

    def finish(self) -> None:
        """Ends the files; only the page itself is still missing."""
        assert self._recording
        self._player = self._recording.finish()

    def withdraw(self) -> None:
        """Removes the page that stands there, before the stems that it shows are replaced.

        Whoever is killed in between finds stems without a page, which the next run makes, and none of other stems.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be replaced ({error.strerror}). Choose another folder.") from None

    def publish(self) -> None:
        """Writes the page, and removes the files of the one before."""
        assert self._player
        page.write(self.path, self._title, [listening.section([self._player])], facts=self._facts, key=self._key)
        self._published = True
        listening.tidy(self.path, [self._player])
