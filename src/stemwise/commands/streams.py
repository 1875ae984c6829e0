"""Songs and stems through pipes: standard input as a file, standard output as a folder; and lines that are printed."""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stemwise import naming
from stemwise.errors import UserError


@contextmanager
def seekable(path: Path) -> Iterator[Path]:
    """The song as a file that can be read twice and from anywhere: standard input is put on the disk first."""
    if path != naming.STDIN:
        yield path
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("-: nothing comes from standard input. Pipe a song into the command.")
    with tempfile.TemporaryDirectory(prefix="stemwise-") as folder:
        song = Path(folder, "stdin")
        try:
            with song.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        except OSError as error:
            raise UserError(f"-: {folder} cannot hold the song ({error.strerror}). Set TMPDIR elsewhere.") from None
        try:
            yield song
        except UserError as error:
            raise UserError(str(error).replace(str(song), "standard input")) from None


@contextmanager
def folder_of(output: str, songs: Sequence[Path], names: Sequence[str]) -> Iterator[Path]:
    """The folder to write to: the user's, or for standard output one that passes."""
    if output != naming.STREAM:
        yield Path(output)
        return
    if len(songs) > 1 or len(names) > 1:
        raise UserError(
            f"-o -: standard output takes one stem of one song, not {len(names)} of {len(songs)} "
            f"({', '.join(names)}). Choose one with --stems."
        )
    with tempfile.TemporaryDirectory(prefix="stemwise-") as folder:
        yield Path(folder)


def send(path: Path) -> None:
    """Copies a finished file to standard output. Whoever reads the other end may have enough before the end."""
    try:
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()


def list_files(targets: Sequence[Path]) -> None:
    """Names the stems on standard output, for the next program. That nobody reads them is no reason to stop."""
    try:
        print("\n".join(plain(str(target)) for target in targets), flush=True)
    except BrokenPipeError:
        _close_stdout()


def say(line: str) -> None:
    """Prints a line on standard error."""
    print(plain(line), file=sys.stderr)


def _close_stdout() -> None:
    # Python would complain once more about a closed pipe while it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def plain(line: str) -> str:
    """The line with control characters, which a song's name may hold, made visible."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], line)
