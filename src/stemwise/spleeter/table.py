"""The sorted table of a checkpoint's `.index`: names to short messages, in LevelDB's file format.

A table is data blocks, an (empty) meta-index block, an index block and a footer of 48 bytes. The footer says where
the two index blocks lie, and the index block where the data blocks lie: offset and size. A block holds keys in
ascending order, each as the number of bytes that it shares with the one before and the rest of it, then the
positions of keys that share nothing, and is followed by its kind of compression and a checksum. Source:
table_format.md of google/leveldb, from which TensorFlow took it (tensorflow/core/lib/io/table).

A table may come from anywhere. Blocks must follow one another, so the work is bounded by the file's size, what they
unfold to by `LIMIT`, and the entries by their number and the length of their keys.
"""

import struct
from collections.abc import Iterator, Mapping

import google_crc32c

from stemwise.spleeter import snappy, wire
from stemwise.spleeter.wire import Damaged

LIMIT = 4 * 2**20  # bytes; the index of a 5-stem model with Adam's moments has 1 % of that, and 900 entries
MOST_ENTRIES = 2**16
LONGEST_KEY = 512

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5  # kind of compression, checksum
_PLAIN, _SNAPPY = 0, 1
_BLOCK_SIZE = 4096
_RESTART_INTERVAL = 16


def checksum(data: bytes) -> int:
    """CRC32C as LevelDB and TensorFlow store it: rotated and shifted, because a CRC of a CRC is a weak one."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read(data: bytes) -> dict[bytes, bytes]:
    """The entries of a table in their order. Raises `Damaged`."""
    if len(data) < _FOOTER or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise Damaged("this is no table, or its end is missing")
    footer = data[-_FOOTER:]
    at = 0
    for _ in range(2):  # where the meta-index block lies
        _, at = wire.varint(footer, at)
    offset, at = wire.varint(footer, at)
    size, at = wire.varint(footer, at)
    entries: dict[bytes, bytes] = {}
    last, end, room = None, 0, LIMIT
    for _, handle in _entries(_block(data, offset, size, LIMIT)):
        offset, at = wire.varint(handle, 0)
        size, _ = wire.varint(handle, at)
        if offset < end:
            raise Damaged("blocks overlap")
        block = _block(data, offset, size, room)
        end, room = offset + size + _TRAILER, room - len(block)
        for key, value in _entries(block):
            if last is not None and key <= last:
                raise Damaged("names are not in order")
            if len(entries) == MOST_ENTRIES:
                raise Damaged(f"the table has more than {MOST_ENTRIES} entries")
            entries[key] = value
            last = key
    return entries


def _block(data: bytes, offset: int, size: int, limit: int) -> bytes:
    if offset + size + _TRAILER > len(data) - _FOOTER:
        raise Damaged(f"a block of {size} bytes at {offset} goes past the end")
    block, kind = data[offset : offset + size], data[offset + size]
    (stored,) = struct.unpack_from("<I", data, offset + size + 1)
    if checksum(data[offset : offset + size + 1]) != stored:
        raise Damaged(f"the block at {offset} does not match its checksum")
    if kind == _SNAPPY:
        block = snappy.decompress(block, limit)
    elif kind != _PLAIN:
        raise Damaged(f"a block is compressed in the unknown way {kind}")
    if len(block) > limit:
        raise Damaged(f"the table unfolds to more than {LIMIT} bytes")
    return block


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise Damaged("a block is too short")
    restarts = int.from_bytes(block[-4:], "little")
    if 4 * (restarts + 1) > len(block):
        raise Damaged("a block is shorter than its list of positions")
    body = block[: len(block) - 4 * (restarts + 1)]
    at, key = 0, b""
    while at < len(body):
        shared, at = wire.varint(body, at)
        rest, at = wire.varint(body, at)
        length, at = wire.varint(body, at)
        if shared > len(key):
            raise Damaged("a name shares more with the one before than that has")
        if shared + rest > LONGEST_KEY:
            raise Damaged(f"a name has more than {LONGEST_KEY} bytes")
        key = key[:shared] + wire.take(body, at, rest)
        value = wire.take(body, at + rest, length)
        at += rest + length
        yield key, value


def write(entries: Mapping[bytes, bytes]) -> bytes:
    """The table of these entries, without compression. Keys are sorted here."""
    out, handles, block = bytearray(), {}, _Block()
    for key in sorted(entries):
        block.add(key, entries[key])
        if len(block.data) >= _BLOCK_SIZE:
            handles[key] = block.finish(out)
            block = _Block()
    if block.count:
        handles[block.key] = block.finish(out)
    meta = _Block().finish(out)
    index = _Block()
    for key, handle in handles.items():
        index.add(key, handle)
    footer = meta + index.finish(out)
    return bytes(out) + footer.ljust(_FOOTER - 8, b"\0") + struct.pack("<Q", _MAGIC)


class _Block:
    """A block in the making."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.restarts = [0]
        self.key = b""
        self.count = 0

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self.count and self.count % _RESTART_INTERVAL == 0:
            self.restarts.append(len(self.data))
        else:
            pairs = zip(self.key, key, strict=False)
            shared = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(self.key), len(key)))
        for number in (shared, len(key) - shared, len(value)):
            self.data += wire.encode_varint(number)
        self.data += key[shared:] + value
        self.key, self.count = key, self.count + 1

    def finish(self, out: bytearray) -> bytes:
        """Appends the block to `out`, and returns where it lies, encoded."""
        block = bytes(self.data) + struct.pack(f"<{len(self.restarts) + 1}I", *self.restarts, len(self.restarts))
        handle = wire.encode_varint(len(out)) + wire.encode_varint(len(block))
        kind = bytes([_PLAIN])
        out += block + kind + struct.pack("<I", checksum(block + kind))
        return handle
