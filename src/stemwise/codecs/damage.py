"""What may be wrong with an audio file: how it is found, and how it is said.

Samples are tensors (C, n).
"""

import io

import torch
from torch import Tensor

from stemwise.codecs.remote import File
from stemwise.errors import UserError

_OGG_PAGE = 1 << 16  # bytes at most


def check_last_page(path: File) -> None:
    """Raises where the last page of an Ogg file (RFC 3533, 6) is cut in two.

    A last page that is whole, but not marked as the last, is how recorded web radio ends, and fine.
    """
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 2 * _OGG_PAGE))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS\0")) :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if not segments or len(segments) < page[26] or len(page) < 27 + len(segments) + sum(segments):
        raise UserError(f"{path}: cut off in the middle of an Ogg page. Copy or export it again.")


def finite(block: Tensor, path: File, position: int, sample_rate: int) -> Tensor:
    """The block (C, n), which begins at `position` of the file. Raises `UserError` for NaN and infinite samples."""
    # In one pass: a sum is finite only if all samples are. One that overflows is looked at again.
    if block.sum().isfinite() or not (bad := ~block.isfinite().all(0)).any():
        return block
    seconds = (position + int(bad.to(torch.uint8).argmax())) / sample_rate
    raise UserError(f"{path}: NaN or infinite samples at {seconds:.2f} s. Export the file again.")


def unopened(path: File, error: OSError) -> UserError:
    """It is not there, or may not be read."""
    return UserError(f"{path}: cannot be opened ({error.strerror}). Check the path, and who may read it.")


def no_stream(path: File, stream: int, count: int) -> UserError:
    """It has `count` audio streams, and not number `stream`."""
    streams = "1 audio stream" if count == 1 else f"{count} audio streams"
    return UserError(f"{path}: has {streams}, number {stream} was asked for. Count from 0.")


def damaged(path: File, seconds: float) -> UserError:
    """What follows `seconds` is no audio."""
    return UserError(f"{path}: cannot be decoded after {seconds:.2f} s; it is damaged or cut off. Export it again.")


def cut_off(path: File, claimed: float, found: float | None) -> UserError:
    """Its header says `claimed` seconds, and `found` are there; None: fewer."""
    there = "the end of which is missing" if found is None else f"{found:.2f} s are there"
    return UserError(f"{path}: cut off, its header says {claimed:.2f} s, {there}. Copy or export it again.")
