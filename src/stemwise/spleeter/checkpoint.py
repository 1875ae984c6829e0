"""TensorFlow's V2 checkpoints: variables by name, read and written with numpy alone.

    folder/checkpoint                    text that names the prefix of the newest checkpoint, here `model`
    folder/model.index                   a table: variable -> type, shape, place and checksum
    folder/model.data-00000-of-00001     the values, one after another, little-endian; several files if sharded

Source: tensor_bundle.proto and tensor_bundle.h in tensorflow/core. Nothing is executed. Sizes are held against the
files before memory is taken, and values against their checksums, so a damaged or hostile folder ends in `UserError`.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn

import numpy as np

from stemwise.errors import UserError
from stemwise.spleeter import table, wire
from stemwise.spleeter.wire import Damaged

STATE = "checkpoint"
DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i4"), 9: np.dtype("<i8")}

_AGAIN = "Copy or download the folder again."
_LARGEST_STATE = 2**16  # bytes; TensorFlow keeps the names of at most a few checkpoints
_MOST_DIMENSIONS = 8
_PREFIX = re.compile(rb'^\s*model_checkpoint_path\s*:\s*"((?:[^"\\\n]|\\.)*)"', re.MULTILINE)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)", re.DOTALL)
_LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}


@dataclass(frozen=True)
class Variable:
    """What a checkpoint's index says of a variable: `size` bytes from `offset` on in the data file `shard`."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool


@dataclass(frozen=True)
class Checkpoint:
    """The index of a checkpoint; the values are still on disk."""

    prefix: Path
    shards: int
    variables: Mapping[str, Variable]

    def shard(self, number: int) -> Path:
        """The data file of this number."""
        return self.prefix.with_name(f"{self.prefix.name}.data-{number:05d}-of-{self.shards:05d}")


def find(folder: Path) -> Checkpoint:
    """The newest checkpoint in a folder, as its file `checkpoint` says, or the only one where that is missing."""
    try:
        prefix = _prefix(folder)
    except OSError as error:
        _unreadable(folder, error)
    path = prefix.with_name(f"{prefix.name}.index")
    data = _small_file(path, table.LIMIT)
    try:
        entries = table.read(data)
        shards = _header(entries.pop(b"", b""))
        variables = {key.decode(): _variable(entry, shards) for key, entry in entries.items()}
    except (Damaged, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged: {error}. {_AGAIN}") from None
    return Checkpoint(prefix, shards, variables)


def _prefix(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder. Give the one with `{STATE}` and `*.index`; unpack an archive first."
        )
    there = sorted(path.stem for path in folder.glob("*.index"))
    state = folder / STATE
    if not state.exists():
        if len(there) == 1:
            return folder / there[0]
        raise UserError(
            f"{folder}: no file `{STATE}`, and {len(there)} checkpoints (*.index) to choose from. Give a folder that "
            "Spleeter wrote or downloaded."
        )
    found = _PREFIX.search(_small_file(state, _LARGEST_STATE))
    name = _last_part(found[1]) if found else ""
    if name not in there:
        raise UserError(
            f"{state}: names the checkpoint {name!r}, but {folder} has {', '.join(there) or 'none'}. Copy "
            f"{name or 'it'}.index and its data files there, or mend the name."
        )
    return folder / name


def _last_part(text: bytes) -> str:
    """A path's last part: training writes the absolute path of the machine that it ran on."""
    plain = _ESCAPE.sub(lambda match: _unescape(match[1]), text)
    return PureWindowsPath(plain.decode(errors="replace")).name


def _unescape(code: bytes) -> bytes:
    if code[0] in b"01234567":
        return bytes([int(code, 8) & 0xFF])
    if len(code) > 1:
        return bytes([int(code[1:], 16)])
    return _LETTERS.get(code, code)


def _small_file(path: Path, limit: int) -> bytes:
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file. {_AGAIN}")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        _unreadable(path, error)
    if len(data) > limit:
        raise UserError(f"{path}: more than {limit} bytes. This is no file of a Spleeter model.")
    return data


def _unreadable(path: Path, error: OSError) -> NoReturn:
    raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def _header(entry: bytes) -> int:
    """The number of data files."""
    header = wire.fields(entry)
    shards, big_endian = wire.number(header, 1), wire.number(header, 2)
    if not 0 < shards < 100_000:
        raise Damaged(f"it has {shards} data files")
    if big_endian:
        raise Damaged("its numbers are big-endian, which no machine that runs Spleeter writes")
    for version in wire.messages(header, 3):
        if (least := wire.number(wire.fields(version), 2)) > 1:
            raise Damaged(f"its format is of version {least}, later than 1")
    return shards


def _variable(entry: bytes, shards: int) -> Variable:
    found = wire.fields(entry)
    shape: list[int] = []
    for message in wire.messages(found, 2):
        dimensions = wire.messages(wire.fields(message), 2)
        shape += [wire.number(wire.fields(dimension), 1) for dimension in dimensions[: _MOST_DIMENSIONS + 1]]
    if len(shape) > _MOST_DIMENSIONS:
        raise Damaged(f"a variable has more than {_MOST_DIMENSIONS} dimensions")
    shard, offset, size = (wire.number(found, field) for field in (3, 4, 5))
    if shard >= shards:
        raise Damaged(f"a variable is in data file {shard} of {shards}")
    checksum = wire.number(found, 6)
    return Variable(wire.number(found, 1), tuple(shape), shard, offset, size, checksum, sliced=7 in found)


def read(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The values of these variables, which must be in the checkpoint; the arrays are read-only.

    Takes no more memory than the data files are long.
    """
    places = {name: checkpoint.variables[name] for name in names}
    index = checkpoint.prefix.with_name(f"{checkpoint.prefix.name}.index")
    for name, variable in places.items():
        _check(f"{index}: {name}", variable)
    values: dict[str, np.ndarray] = {}
    for shard in sorted({variable.shard for variable in places.values()}):
        here = {name: variable for name, variable in places.items() if variable.shard == shard}
        values |= _read_shard(checkpoint.shard(shard), here)
    return values


def _check(where: str, variable: Variable) -> None:
    if variable.sliced:
        raise UserError(f"{where} is stored in slices, which Spleeter never does. Save the model with Spleeter.")
    if variable.dtype not in DTYPES:
        raise UserError(f"{where} is of TensorFlow's type {variable.dtype}, not a number that Spleeter uses.")
    # Python's integers do not overflow.
    itemsize = DTYPES[variable.dtype].itemsize
    # NumPy multiplies all dimensions but those of 0, also where there is nothing to hold.
    beyond = math.prod(size or 1 for size in variable.shape) * itemsize >= 2**63
    if beyond or variable.size != math.prod(variable.shape) * itemsize:
        raise UserError(f"{where}: damaged: {variable.size} bytes for the shape {list(variable.shape)}. {_AGAIN}")


def _read_shard(path: Path, places: Mapping[str, Variable]) -> dict[str, np.ndarray]:
    values = {}
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file. {_AGAIN}")
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            _check_room(path, places, length)
            for name, variable in sorted(places.items(), key=lambda place: place[1].offset):
                file.seek(variable.offset)
                data = file.read(variable.size)
                if len(data) != variable.size or table.checksum(data) != variable.checksum:
                    raise UserError(f"{path}: damaged: {name} does not match its checksum. {_AGAIN}")
                values[name] = np.frombuffer(data, DTYPES[variable.dtype]).reshape(variable.shape)
    except OSError as error:
        _unreadable(path, error)
    return values


def _check_room(path: Path, places: Mapping[str, Variable], length: int) -> None:
    for name, variable in places.items():
        if variable.offset + variable.size > length:
            raise UserError(
                f"{path}: {length} bytes, but {name} ends at {variable.offset + variable.size}: cut off, or of another "
                f"index. {_AGAIN}"
            )
    # Many variables over the same bytes would take more memory than the file is long.
    if (needed := sum(variable.size for variable in places.values())) > length:
        raise UserError(f"{path}: damaged: {needed} bytes of variables in {length} bytes. {_AGAIN}")


def write(folder: Path, variables: Mapping[str, np.ndarray], prefix: str = "model") -> None:
    """Writes a checkpoint of one data file into an existing folder; float32, float64, int32 and int64."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    entries = {b"": wire.encode_number(1, 1) + wire.encode_message(3, wire.encode_number(1, 1))}
    offset = 0
    with (folder / f"{prefix}.data-00000-of-00001").open("wb") as file:
        for name in sorted(variables):
            value = variables[name]
            data = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
            file.write(data)
            dimensions = (wire.encode_message(2, wire.encode_number(1, size)) for size in value.shape)
            entries[name.encode()] = b"".join(
                (
                    wire.encode_number(1, codes[value.dtype.newbyteorder("<")]),
                    wire.encode_message(2, b"".join(dimensions)),
                    wire.encode_number(4, offset),
                    wire.encode_number(5, len(data)),
                    wire.encode_fixed32(6, table.checksum(data)),
                )
            )
            offset += len(data)
    (folder / f"{prefix}.index").write_bytes(table.write(entries))
    (folder / STATE).write_text(
        f'model_checkpoint_path: "{prefix}"\nall_model_checkpoint_paths: "{prefix}"\n', encoding="utf-8"
    )
