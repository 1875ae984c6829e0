"""The pages of `stemwise separate --report`: which are made, which are kept, and what is said of those."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stemwise.commands.streams import say

if TYPE_CHECKING:
    from stemwise.report.song_page import SongPage
    from stemwise.separation import Wish
    from stemwise.separator import Separator


def key(name: str, model: "Separator", wish: "Wish") -> str:
    """Stands for what a page shows of a song: the model called `name`, and what is wanted of it."""
    from stemwise import pretrained
    from stemwise.evaluation import results

    parts = [results.digest(pretrained.path(name)), repr(model.mask), repr(wish)]
    parts += [f"overlap {model.overlap}"] if model.overlap else []  # pages from before there was any are still good
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def keep(path: Path, key: str, song: str) -> None:
    """Says so if the page that is there does not show what would be made now."""
    from stemwise.report import page

    if page.key_of(path) != key:
        say(f"{song}: keeps {path}, which is of another model, other stems or another part; --overwrite replaces it")


def outdated(path: Path, song: str) -> None:
    """Says so if a page is left beside stems that were replaced without it."""
    if not os.path.exists(path):  # unlike Path.exists, of a name that is too long, too
        return
    from stemwise.report import page

    if page.key_of(path) is not None:
        say(f"{song}: {path} still plays the stems from before; --report replaces it, too")


def prepared(path: Path, title: str, stems: Sequence[str], model: str, key: str, kept: Sequence[str]) -> "SongPage":
    """A page to be filled. `kept` are the stems whose files were there before: who made those, nobody knows."""
    from stemwise.report.song_page import SongPage

    facts = {"Model": model}
    if kept:
        facts["Files from before"] = f"{', '.join(kept)}; what is heard here is what this model makes of them now"
    return SongPage(path, title, stems, facts, key)
