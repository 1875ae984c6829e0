"""Numbers and messages as protocol buffers encode them, read from bytes that nobody vouches for.

A message is read without its schema: the number of a field leads to the values that it has. Source: the encoding
guide of protobuf.dev. Nothing here allocates more than the bytes that it is given.
"""

import struct

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

Fields = dict[int, list[int | bytes]]


class Damaged(ValueError):
    """What is wrong with some bytes. Whoever knows which file they are from tells the user."""


def take(data: bytes, at: int, length: int) -> bytes:
    """`length` bytes from `at` on."""
    if length > len(data) - at:
        raise Damaged(f"{length} bytes are announced where {len(data) - at} are left")
    return data[at : at + length]


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that starts at `at`, 0 to 2^64 - 1, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = take(data, at, 1)[0]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            break
    else:
        raise Damaged("a number has no end")
    if value >= 2**64:
        raise Damaged("a number has more than 64 bits")
    return value, at


def fields(message: bytes) -> Fields:
    """Field number -> its values in their order: integers, or bytes for texts and messages."""
    found: Fields = {}
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        value: int | bytes
        if kind == VARINT:
            value, at = varint(message, at)
        elif kind == LENGTH:
            length, at = varint(message, at)
            value = take(message, at, length)
            at += length
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
            value = int.from_bytes(take(message, at, length), "little")
            at += length
        else:
            raise Damaged(f"a field is of the unknown kind {kind}")
        found.setdefault(tag >> 3, []).append(value)
    return found


def number(found: Fields, field: int) -> int:
    """The integer in a field, 0 where it is left out; the last one counts."""
    value = found.get(field, [0])[-1]
    if not isinstance(value, int):
        raise Damaged(f"field {field} is not a number")
    return value


def messages(found: Fields, field: int) -> list[bytes]:
    """The messages in a field."""
    values = found.get(field, [])
    if any(isinstance(value, int) for value in values):
        raise Damaged(f"field {field} is not a message")
    return [value for value in values if isinstance(value, bytes)]


def encode_varint(value: int) -> bytes:
    """The shortest encoding of a number, 0 to 2^64 - 1."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def encode_number(field: int, value: int) -> bytes:
    """A field with an integer, or nothing for 0, which is what an absent field means."""
    return encode_varint(field << 3 | VARINT) + encode_varint(value) if value else b""


def encode_fixed32(field: int, value: int) -> bytes:
    """A field with an integer of 32 bits in four bytes."""
    return encode_varint(field << 3 | FIXED32) + struct.pack("<I", value)


def encode_message(field: int, message: bytes) -> bytes:
    """A field with a message or text."""
    return encode_varint(field << 3 | LENGTH) + encode_varint(len(message)) + message
