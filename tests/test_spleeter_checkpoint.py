"""TensorFlow's checkpoints: what was written is read again, and no bytes whatever do harm."""

import contextlib
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemwise.errors import UserError
from stemwise.spleeter import checkpoint, snappy, table, wire
from stemwise.spleeter.wire import Damaged

Change = Callable[[bytes], bytes]

VALUES = {
    "conv2d/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "conv2d/bias": np.array([1.5, -2.0], np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "global_step": np.array(2**40, np.int64),
}


@pytest.fixture
def folder(tmp_path):
    checkpoint.write(tmp_path, VALUES)
    return tmp_path


def all_of(folder: Path) -> dict[str, np.ndarray]:
    found = checkpoint.find(folder)
    return checkpoint.read(found, found.variables)


def same(values: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    """Bit by bit: type, shape and bytes."""
    described = [{n: (v.dtype.str, v.shape, v.tobytes()) for n, v in some.items()} for some in (values, others)]
    return described[0] == described[1]


@given(st.integers(0, 2**64 - 1))
def test_numbers_come_back(value):
    encoded = wire.encode_varint(value)
    assert wire.varint(encoded, 0) == (value, len(encoded))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80" * 10 + b"\x01", b"\xff" * 9 + b"\x02"])
def test_a_number_that_has_no_end_or_is_too_large_is_refused(data):
    with pytest.raises(Damaged):
        wire.varint(data, 0)


@given(st.dictionaries(st.binary(max_size=40), st.binary(max_size=300), max_size=120))
def test_a_table_comes_back_in_order(entries):
    assert list(table.read(table.write(entries)).items()) == sorted(entries.items())


def test_a_table_of_many_blocks_shares_the_beginnings_of_names():
    entries = {f"batch_normalization_{number}/moving_variance".encode(): bytes(30) for number in range(2000)}
    data = table.write(entries)
    assert table.read(data) == entries
    assert len(data) < 0.8 * sum(len(key) + 30 for key in entries)


def test_the_checksum_is_the_one_of_the_format():
    # CRC32C of "123456789" is 0xe3069283; then LevelDB's rotation and constant.
    crc = 0xE3069283
    assert table.checksum(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def test_what_was_written_is_read_again(folder):
    assert same(all_of(folder), VALUES)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
        st.tuples(st.lists(st.integers(0, 4), max_size=4), st.sampled_from(["<f4", "<f8", "<i4", "<i8"])),
        max_size=5,
    )
)
@settings(max_examples=30, deadline=None)
def test_any_shapes_and_types_come_back(tmp_path_factory, described):
    folder = tmp_path_factory.mktemp("any")
    values = {
        name: np.random.default_rng(0).integers(-99, 99, shape).astype(dtype)
        for name, (shape, dtype) in described.items()
    }
    checkpoint.write(folder, values)
    assert same(all_of(folder), values)


# Forms that we do not write ourselves, and TensorFlow may


def blocks(data: bytes) -> list[bytes]:
    """The data blocks of a table that we wrote."""
    numbers, at = [], 0
    for _ in range(4):
        number, at = wire.varint(data[-48:], at)
        numbers.append(number)
    found = []
    for _, handle in table._entries(data[numbers[2] : numbers[2] + numbers[3]]):
        offset, at = wire.varint(handle, 0)
        found.append(data[offset : offset + wire.varint(handle, at)[0]])
    return found


def build(parts: list[bytes], kind: int = 0, change: Change = bytes, times: int = 1) -> bytes:
    """A table of these data blocks; the index names each of them several times. Every checksum is right.

    `change` is applied to all blocks, the index included; `kind` is what they then claim to be compressed with.
    """
    out, index = bytearray(), table._Block()

    def put(block: bytes) -> bytes:
        handle = wire.encode_varint(len(out)) + wire.encode_varint(len(block := change(block)))
        out.extend(block + bytes([kind]) + struct.pack("<I", table.checksum(block + bytes([kind]))))
        return handle

    for number, handle in enumerate(handle for part in parts for handle in [put(part)] * times):
        index.add(b"%06d" % number, handle)
    meta, content = put(b"\0\0\0\0"), bytearray()
    index.finish(content)
    footer = meta + put(bytes(content[:-5]))
    return bytes(out) + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


def snappily(data: bytes) -> bytes:
    """The table with every block compressed."""
    return build(blocks(data), 1, compressed)


def compressed(block: bytes) -> bytes:
    """A literal for every byte, and a copy that overlaps itself where bytes repeat."""
    out, at = bytearray(wire.encode_varint(len(block))), 0
    while at < len(block):
        run = 1
        while run < 64 and at + run < len(block) and block[at + run] == block[at]:
            run += 1
        out += bytes([0, block[at]])
        if run > 1:
            out += bytes([(run - 2) << 2 | 2, 1, 0])  # copy of run - 1 bytes from 1 byte before
        at += run
    return bytes(out)


def test_compressed_tables_are_read(folder):
    path = folder / "model.index"
    path.write_bytes(snappily(path.read_bytes()))
    assert same(all_of(folder), VALUES)


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (b"\x00", b""),
        (b"\x03\x08abc", b"abc"),
        (b"\x06\x04ab\x0e\x02\x00", b"ababab"),  # copy of 4 from 2 before, two bytes of distance
        (b"\x06\x04ab\x01\x02", b"ababab"),  # the same, one byte of distance
        (b"\x05\x04ab\x0b\x02\x00\x00\x00", b"ababa"),  # copy of 3, four bytes of distance
        (b"\x46\xf0\x45" + b"x" * 70, b"x" * 70),  # a size of its own byte
        (b"\x46\xf4\x45\x00" + b"x" * 70, b"x" * 70),  # and of two
    ],
)
def test_snappy_has_literals_and_three_kinds_of_copies(data, result):
    assert snappy.decompress(data, 100) == result


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x05\x08abc",  # fewer than announced
        b"\x02\x08abc",  # more than announced
        b"\x04\x04ab\x06\x03\x00",  # from before the beginning
        b"\x04\x04ab\x06\x00\x00",  # from nowhere
        b"\x04\x04ab\x06\x02",  # cut off
        b"\x05\xfc\xff\xff\xff\xffabc",  # a literal of 4 GiB
        b"\xff\xff\xff\xff\x0f\x08abc",  # a result of 4 GiB
    ],
)
def test_damaged_snappy_is_refused(data):
    with pytest.raises(Damaged):
        snappy.decompress(data, 1000)


@given(st.binary(max_size=200))
def test_snappy_survives_anything(data):
    with contextlib.suppress(Damaged):
        assert len(snappy.decompress(data, 1000)) <= 1000


def test_several_data_files_are_one_checkpoint(folder):
    split(folder)
    assert sorted(path.name for path in folder.glob("*.data-*")) == [
        "model.data-00000-of-00002",
        "model.data-00001-of-00002",
    ]
    assert same(all_of(folder), VALUES)


def split(folder: Path) -> None:
    """Moves the second half of the variables into a second data file."""
    found = checkpoint.find(folder)
    data = found.shard(0).read_bytes()
    found.shard(0).unlink()
    names = sorted(found.variables)
    late, cut = set(names[2:]), found.variables[names[2]].offset
    for number, part in enumerate((data[:cut], data[cut:])):
        (folder / f"model.data-{number:05d}-of-00002").write_bytes(part)
    entries = {b"": wire.encode_number(1, 2)}
    for name, variable in found.variables.items():
        shard, start = (1, cut) if name in late else (0, 0)
        entries[name.encode()] = entry(variable, shard=shard, offset=variable.offset - start)
    (folder / "model.index").write_bytes(table.write(entries))


def entry(variable: checkpoint.Variable, **changed: int) -> bytes:
    """A variable's message in the index, with some numbers changed."""
    numbers = {name: getattr(variable, name) for name in ("dtype", "shard", "offset", "size", "checksum")} | changed
    dimensions = b"".join(wire.encode_message(2, wire.encode_number(1, size)) for size in variable.shape)
    fields = [wire.encode_number(1, numbers["dtype"]), wire.encode_message(2, dimensions)]
    fields += [wire.encode_number(n, numbers[name]) for n, name in ((3, "shard"), (4, "offset"), (5, "size"))]
    return b"".join(fields) + wire.encode_fixed32(6, numbers["checksum"])


# Which checkpoint of a folder


@pytest.mark.parametrize(
    "named", ["model", "/home/someone/runs/model", "C:\\\\runs\\\\model", "./model", "../../model", "\\155odel"]
)
def test_the_newest_checkpoint_is_in_this_folder_whatever_path_is_named(folder, named):
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "model.ckpt-1"\n', encoding="utf-8"
    )
    assert checkpoint.find(folder).prefix == folder / "model"


def test_of_two_checkpoints_the_named_one_is_read(folder):
    checkpoint.write(folder, {"newer": np.zeros(1, np.float32)}, "model.ckpt-200")
    assert list(all_of(folder)) == ["newer"]
    (folder / "checkpoint").unlink()
    with pytest.raises(UserError, match="2 checkpoints"):
        checkpoint.find(folder)
    (folder / "model.ckpt-200.index").unlink()
    assert same(all_of(folder), VALUES)


@pytest.mark.parametrize(
    "text",
    ["", "model_checkpoint_path: 3", 'model_checkpoint_path: "other"', '\0" \xff', 'model_checkpoint_path: "\\8"'],
)
def test_a_state_that_names_nothing_that_is_there_is_refused(folder, text):
    (folder / "checkpoint").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="has model"):
        checkpoint.find(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.find(tmp_path / "none")
    (folder / "model.data-00000-of-00001").unlink()
    with pytest.raises(UserError, match="data-00000-of-00001: no such file"):
        all_of(folder)
    (folder / "model.index").unlink()
    (folder / "model.index").mkdir()
    with pytest.raises(UserError, match=r"model\.index: no such file"):
        checkpoint.find(folder)


# Damage


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_no_change_of_any_byte_does_harm(tmp_path_factory, data):
    """Every damage ends in one message, or does not matter: values are never wrong."""
    folder = tmp_path_factory.mktemp("damaged")
    checkpoint.write(folder, VALUES)
    if data.draw(st.booleans(), "compressed"):
        (folder / "model.index").write_bytes(snappily((folder / "model.index").read_bytes()))
    path = folder / data.draw(st.sampled_from(["checkpoint", "model.index", "model.data-00000-of-00001"]))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        assert same(all_of(folder), VALUES)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_content_of_an_index_does_harm(tmp_path_factory, data):
    """As above, with right checksums, as an attacker would write them; values may then be others."""
    folder = tmp_path_factory.mktemp("hostile")
    checkpoint.write(folder, VALUES)

    def change(block: bytes) -> bytes:
        changed = bytearray(block)
        for _ in range(data.draw(st.integers(0, 3))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        return bytes(changed)

    path = folder / "model.index"
    path.write_bytes(build(blocks(path.read_bytes()), data.draw(st.sampled_from([0, 1])), change))
    tracemalloc.start()
    try:
        all_of(folder)
    except UserError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2 * table.LIMIT


def index_with(folder: Path, name: str, **changed: int) -> None:
    found = checkpoint.find(folder).variables
    entries = {n.encode(): entry(v, **(changed if n == name else {})) for n, v in found.items()}
    header = wire.encode_number(1, 1)
    (folder / "model.index").write_bytes(table.write({b"": header, **entries}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offset": 10**6}, "cut off"),
        ({"offset": 2**64 - 1}, "cut off"),
        ({"size": 2**63}, "damaged: 9223372036854775808 bytes for the shape"),
        ({"size": 4}, "damaged: 4 bytes for the shape"),
        ({"offset": 1}, "does not match its checksum"),
        ({"checksum": 1}, "does not match its checksum"),
        ({"dtype": 7}, "TensorFlow's type 7"),
        ({"shard": 1}, "data file 1 of 1"),
    ],
)
def test_places_that_cannot_be_are_refused(folder, changed, message):
    index_with(folder, "conv2d/kernel", **changed)
    with pytest.raises(UserError, match=message):
        all_of(folder)


def refused(folder: Path, index: bytes, message: str) -> None:
    (folder / "model.index").write_bytes(index)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            all_of(folder)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_a_huge_shape_is_refused(folder):
    dimensions = wire.encode_message(2, wire.encode_number(1, 2**62)) * 4
    huge = wire.encode_number(1, 1) + wire.encode_message(2, dimensions) + wire.encode_number(5, 64)
    refused(folder, table.write({b"": wire.encode_number(1, 1), b"huge": huge}), "64 bytes for the shape")


@pytest.mark.parametrize("sizes", [(0, 2**62), (0, 2**64 - 1), (2**31, 2**31, 2**31, 0)])
def test_a_huge_shape_of_nothing_is_refused(folder, sizes):
    """NumPy multiplies the dimensions that are not 0, whether there is anything to hold or not."""
    dimensions = b"".join(wire.encode_message(2, wire.encode_number(1, size)) for size in sizes)
    huge = wire.encode_number(1, 1) + wire.encode_message(2, dimensions)
    refused(folder, table.write({b"": wire.encode_number(1, 1), b"huge": huge}), "0 bytes for the shape")


def test_many_variables_in_the_same_bytes_are_refused(folder):
    (folder / "model.data-00000-of-00001").write_bytes(data := bytes(2**20))
    fields = wire.encode_message(2, wire.encode_message(2, wire.encode_number(1, 2**18)))
    same_place = wire.encode_number(1, 1) + fields + wire.encode_number(5, 2**20)
    same_place += wire.encode_fixed32(6, table.checksum(data))
    entries = {f"v{number}".encode(): same_place for number in range(1000)}
    refused(folder, table.write({b"": wire.encode_number(1, 1), **entries}), "1048576000 bytes of variables in 1048576")


def test_many_dimensions_are_refused(folder):
    many = wire.encode_number(1, 1) + wire.encode_message(2, wire.encode_message(2, b"") * 20_000)
    refused(folder, table.write({b"": wire.encode_number(1, 1), b"v": many}), "more than 8 dimensions")


def test_slices_are_refused(folder):
    sliced = entry(checkpoint.find(folder).variables["conv2d/bias"]) + wire.encode_message(7, b"")
    refused(folder, table.write({b"": wire.encode_number(1, 1), b"v": sliced}), "slices")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "0 data files"),
        (wire.encode_number(1, 2**40), "data files"),
        (wire.encode_number(1, 1) + wire.encode_number(2, 1), "big-endian"),
        (wire.encode_number(1, 1) + wire.encode_message(3, wire.encode_number(2, 2)), "version 2"),
        (wire.encode_message(1, b"x"), "not a number"),
        (wire.encode_number(1, 1) + wire.encode_number(3, 1), "not a message"),
        (b"\x0b", "unknown kind 3"),
    ],
)
def test_headers_of_other_formats_are_refused(folder, header, message):
    refused(folder, table.write({b"": header}), message)


@pytest.mark.parametrize(
    ("block", "kind", "times", "message"),
    [
        (b"\0\0\0\0", 0, 2, "overlap"),
        (b"\xff\xff\xff\xff", 0, 1, "list of positions"),
        (b"\0", 0, 1, "too short"),
        (b"\x05\x01\0a" + b"\0" * 4, 0, 1, "shares more"),
        (b"\0\xff\x7f\0" + b"a" * 9 + b"\0" * 4, 0, 1, "more than 512 bytes"),
        (b"\0\x01\0b\0\x01\0a" + b"\0" * 4, 0, 1, "not in order"),
        (b"\0\x01\0b\0\x01\0b" + b"\0" * 4, 0, 1, "not in order"),
    ],
)
def test_blocks_that_lie_are_refused(folder, block, kind, times, message):
    refused(folder, build([block], kind, times=times), message)


@pytest.mark.parametrize(("kind", "message"), [(1, "unfolds to 268435455 bytes"), (2, "unknown way 2")])
def test_bombs_and_unknown_compression_are_refused(folder, kind, message):
    refused(folder, build([], kind, lambda _: b"\xff\xff\xff\x7f\0\0\0\0"), message)


def test_many_blocks_that_unfold_are_refused(folder):
    """Each is small, and unfolds to half of what the whole table may."""
    copies = table.LIMIT // 128  # of 64 zeros each

    def bomb(key: bytes) -> bytes:
        entry = b"\0\x01" + wire.encode_varint(64 * copies - 3) + key
        unfolded = wire.encode_varint(len(entry) + 64 * copies + 1)
        return unfolded + bytes([(len(entry) - 1) << 2]) + entry + b"\0\0" + b"\xfe\x01\0" * copies

    parts = {b"1": bomb(b"a"), b"2": bomb(b"b"), b"3": bomb(b"c")}
    assert len(table.read(build([b"1"], 1, lambda part: parts.get(part) or compressed(part)))) == 1
    refused(folder, build([*parts], 1, lambda part: parts.get(part) or compressed(part)), "damaged: .* unfolds")


def test_a_bomb_of_names_is_refused(folder, monkeypatch):
    """Each entry of seven bytes makes a name of 500."""
    monkeypatch.setattr(table, "MOST_ENTRIES", 1000)
    names = b"\0\xf4\x03\0" + b"a" * 500
    names += b"".join(b"\xf1\x03\x03\0" + number.to_bytes(3, "big") for number in range(0x616162, 0x616162 + 2000))
    refused(folder, build([names + b"\0" * 4]), "more than 1000 entries")


def test_files_that_are_too_large_are_not_read(folder):
    for name, size in (("checkpoint", 10**6), ("model.index", 5 * 10**6)):
        with (folder / name).open("r+b") as file:
            file.truncate(size)
        with pytest.raises(UserError, match=f"{name}: more than"):
            checkpoint.find(folder)
        (folder / "checkpoint").unlink(missing_ok=True)
