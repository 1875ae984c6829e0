"""Snappy decompression, which TensorFlow's table format allows, in memory that the input justifies.

Source: format_description.txt of google/snappy. The data is the length of the result, then literals and copies of
what came before. A tag's lowest two bits say which it is.
"""

from stemwise.spleeter import wire
from stemwise.spleeter.wire import Damaged


def decompress(data: bytes, limit: int) -> bytes:
    """What `data` stands for, at most `limit` bytes; `Damaged` otherwise."""
    length, at = wire.varint(data, 0)
    if length > limit:
        raise Damaged(f"a compressed block unfolds to {length} bytes, more than {limit}")
    out = bytearray()
    while at < len(data):
        tag, at = data[at], at + 1
        if tag & 3 == 0:
            size, at = _literal_size(data, at, tag >> 2)
            out += wire.take(data, at, size)
            at += size
        else:
            size, distance, at = _copy(data, at, tag)
            if not 0 < distance <= len(out):
                raise Damaged("a compressed block refers to what is not there")
            # A copy may be longer than its distance: then it repeats itself.
            start = len(out) - distance
            piece = out[start : start + size]
            out += (piece * -(-size // len(piece)))[:size]
        if len(out) > length:
            break
    if len(out) != length:
        raise Damaged(f"a compressed block announces {length} bytes and unfolds to others")
    return bytes(out)


def _literal_size(data: bytes, at: int, size: int) -> tuple[int, int]:
    # Sizes from 61 on stand in the one to four bytes that follow.
    more = max(size - 59, 0)
    if more:
        size = int.from_bytes(wire.take(data, at, more), "little")
    return size + 1, at + more


def _copy(data: bytes, at: int, tag: int) -> tuple[int, int, int]:
    """Size, distance and where the next tag is."""
    if tag & 3 == 1:
        return 4 + (tag >> 2 & 7), (tag >> 5) << 8 | wire.take(data, at, 1)[0], at + 1
    width = 2 if tag & 3 == 2 else 4
    return 1 + (tag >> 2), int.from_bytes(wire.take(data, at, width), "little"), at + width
