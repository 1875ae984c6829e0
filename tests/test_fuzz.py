"""Every parser that reads a stranger's bytes, fed with damaged and made-up files.

A file is read, or refused with a `UserError`: no other exception, no hang, no memory that the file does not justify,
nothing written outside of the folder that was given. By default each test takes about a hundred files. For a session of
so many files a test as are wanted, with numbers at its end:

    STEMWISE_FUZZ=20000 python -m pytest tests/test_fuzz.py --hypothesis-profile=fuzz --hypothesis-show-statistics \
        --timeout=0

A file that does harm goes, once that is mended, as an example into the parser's own tests.
"""

import gzip
import io
import json
import os
import resource
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damage import anything_like, damaged, damaged_json
from stemwise import index, model_file
from stemwise.cache import storage, store
from stemwise.cache.store import Cache
from stemwise.errors import UserError
from stemwise.index import Cell
from stemwise.masks import MaskRule
from stemwise.running import provenance
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.spleeter import archive, checkpoint, recipe, snappy, table, wire
from stemwise.spleeter import config as configuration
from stemwise.spleeter import model as spleeter_model
from stemwise.spleeter.wire import Damaged
from stemwise.unet import UNetSettings

ROOM = 1 << 31  # bytes of address space beyond what the process has; sixteen threads take half of it
ORDINARY = settings(
    deadline=timedelta(seconds=5),  # of one file; a true hang ends at the timeout of the whole test
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)

# Beside opening for writing: whatever leaves a trace on the disk or runs a program.
_TRACES = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}
_seen: list[str] | None = None


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
    if writes or event in _TRACES:
        _seen.append(_name(arguments[0]))
    elif event in _PROGRAMS:
        _seen.append(f"program: {event}")


def _name(path: Any) -> str:
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""  # else it is open already


sys.addaudithook(_look)


@contextmanager
def traces() -> Iterator[list[str]]:
    """What is written, by whom ever, while this lasts."""
    global _seen
    before, _seen = _seen, []
    try:
        yield _seen
    finally:
        if before is not None:
            before += _seen
        _seen = before


def survives(parse: Callable[[], Any], folder: Path) -> Any:
    """What `parse` returns; None if it refuses in the way that it should. It may write into `folder`."""
    refused: UserError | None = None
    with traces() as written:
        try:
            result = parse()
        except UserError as error:
            refused, result = error, None
    # Not by having tried.
    assert refused is None or not isinstance(refused.__context__, MemoryError)
    outside = [path for path in written if path and not Path(path).absolute().is_relative_to(folder)]
    assert not [path for path in outside if path != os.devnull]
    return result


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_the_watch_sees(tmp_path):
    """What all others rely on."""
    inside = tmp_path / "inside"
    inside.mkdir()

    def writes() -> None:
        (tmp_path / "file").write_text("")

    with pytest.raises(AssertionError, match="file"):
        survives(writes, inside)
    with pytest.raises(AssertionError, match="program"):
        survives(lambda: os.system("true"), inside)
    with pytest.raises(MemoryError):
        survives(lambda: bytearray(2 * ROOM), inside)
    survives(writes, tmp_path)


# The index CSV


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory, write_song: Callable[..., Path]) -> tuple[Path, bytes]:
    root = tmp_path_factory.mktemp("catalogue")
    for name in ("One", "Two"):
        write_song(root / name, {"mixture": None, "vocals": None, "drums": None}, seconds=0.01)
    rows = ["name,mix_path,vocals_path,drums_path,duration"]
    rows += [f'"{n}",{n}/mixture.wav,{n}/vocals.wav#stream=0,{n}/drums.wav#channel=1,0.01' for n in ("One", "Two")]
    return root, "\n".join([*rows, ""]).encode()


@ORDINARY
@given(st.data())
def test_an_index_csv(catalogue, tmp_path, data):
    root, valid = catalogue
    path, again = tmp_path / "index.csv", tmp_path / "again.csv"
    path.write_bytes(data.draw(anything_like(valid)))
    found = survives(lambda: index.read(path, root), tmp_path)
    if found is None:
        return
    checked = survives(lambda: index.check(found, found.columns, {}), tmp_path)
    if checked is not None:
        index.write(checked, again)
        other = index.read(again, root)
        assert [(t.mixture, t.stems, t.duration) for t in other.tracks] == [
            (t.mixture, t.stems, t.duration) for t in checked.tracks
        ]


# Model files


def tiny(layers: int = 3, channels: int = 1) -> Separator:
    torch.manual_seed(0)
    size = 2**layers
    frames = Spectrogram(sample_rate=8000, channels=channels, n_fft=256, hop=64, bins=max(size, 16), frames=size)
    return Separator(["vocals", "rest"], frames, UNetSettings(filters=(1,) * layers), MaskRule()).eval()


def usable(model: Separator | None) -> None:
    """A model that was taken separates."""
    if model is None:
        return
    frames = model.spectrogram
    if frames.frames * frames.n_fft < 2**18 and frames.sample_rate < 2**20:
        assert model.separate(torch.zeros(frames.channels, 100)).shape[1:] == (frames.channels, 100)


@pytest.fixture(scope="module")
def safetensors(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model_file.save(tiny(), path, {"step": 3, "sdr": {"mean": 1.5}})
    return path.read_bytes()


def with_header(header: Any, weights: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + weights


@st.composite
def model_files(draw: Any, valid: bytes) -> bytes:
    """Damage anywhere, in the list of weights, or in the description of the model."""
    how = draw(st.sampled_from(["bytes", "header", "description", "text"]))
    if how == "bytes":
        return draw(anything_like(valid))
    length = struct.unpack("<Q", valid[:8])[0]
    header, weights = json.loads(valid[8 : 8 + length]), valid[8 + length :]
    if how == "header":
        return with_header(draw(damaged_json(header)), weights)
    metadata = header["__metadata__"]
    if how == "description":
        metadata["stemwise"] = json.dumps(draw(damaged_json(json.loads(metadata["stemwise"]))))
    else:
        metadata["stemwise"] = draw(damaged(metadata["stemwise"].encode())).decode(errors="replace")
    return with_header(header, weights)


@ORDINARY
@given(st.data())
def test_a_model_file(safetensors, tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data.draw(model_files(safetensors)))
    usable(survives(lambda: model_file.load(path), tmp_path))


@pytest.fixture(scope="module")
def training_checkpoint() -> bytes:
    return packed(contents_of_a_checkpoint())


def contents_of_a_checkpoint() -> dict[str, Any]:
    model = tiny()
    weights = {f"separator.{name}": value for name, value in model.state_dict().items()}
    return {"state_dict": weights, "separator": json.loads(json.dumps(model.settings)), "global_step": 3}


def packed(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def with_pickle(valid: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The checkpoint with another pickle in it, and right checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(valid)) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return out.getvalue()


def odd_tensors(value: torch.Tensor) -> list[Any]:
    """What may stand in the place of a weight."""
    shape = value.shape or (1,)
    return [
        *(None, "text", 3, [1.0], {}),
        *(value.to(dtype) for dtype in (torch.int64, torch.float16, torch.float64, torch.bool, torch.complex64)),
        torch.zeros(1, dtype=value.dtype).expand(shape),
        torch.zeros(1).expand(10**9, 10**3),
        torch.zeros(shape).to_sparse(),
        torch.zeros(shape, device="meta"),
        torch.zeros(0),
        torch.full(shape, float("nan")),
    ]


@st.composite
def checkpoints(draw: Any, valid: bytes) -> bytes:
    how = draw(st.sampled_from(["bytes", "pickle", "description", "weights"]))
    if how == "bytes":
        return draw(anything_like(valid))
    if how == "pickle":
        return with_pickle(valid, lambda content: draw(damaged(content)))
    content = contents_of_a_checkpoint()
    if how == "description":
        content["separator"] = draw(damaged_json(content["separator"]))
    else:
        name = draw(st.sampled_from(sorted(content["state_dict"])))
        content["state_dict"][name] = draw(st.sampled_from(odd_tensors(content["state_dict"][name])))
    return packed(content)


@ORDINARY
@given(st.data())
def test_a_training_checkpoint_as_a_model(training_checkpoint, tmp_path, data):
    path = tmp_path / "last.ckpt"
    path.write_bytes(data.draw(checkpoints(training_checkpoint)))
    usable(survives(lambda: model_file.load(path), tmp_path))


# Spleeter's models


@pytest.fixture(scope="module")
def spleeters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a model of Spleeter's, with checksums that are all 0."""
    folder = tmp_path_factory.mktemp("spleeter") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "checksum", lambda data: 0)
        spleeter_model.write(tiny(6, 2), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@ORDINARY
@given(st.data())
def test_a_checkpoint_folder_of_spleeter(spleeters, tmp_path, data):
    """Checksums are not looked at: whoever makes a hostile file writes right ones."""
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    changed = data.draw(st.sampled_from([*spleeters, "model.index", "model.index"]))
    for name, content in spleeters.items():
        (folder / name).write_bytes(data.draw(anything_like(content)) if name == changed else content)

    def read() -> Separator:
        found = checkpoint.find(folder)
        readable = [name for name in found.variables if data.draw(st.booleans(), name[:20])][:3]
        survives(lambda: checkpoint.read(found, readable), folder)
        survives(lambda: spleeter_model.facts(folder), folder)
        return spleeter_model.read(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "checksum", lambda data: 0)
        survives(read, folder)


@ORDINARY
@given(st.data())
def test_the_formats_inside(spleeters, data):
    content = data.draw(anything_like(spleeters["model.index"]))
    limit = data.draw(st.sampled_from([10, 1000, table.LIMIT]))
    parsers = (table.read, wire.fields, lambda some: snappy.decompress(some, limit), lambda some: wire.varint(some, 0))
    for parse in parsers:
        try:
            parse(content)
        except Damaged:
            continue


@st.composite
def configurations(draw: Any) -> bytes:
    valid = {**configuration.RELEASED["4stems"], "chunk_duration": 20.0, "n_chunks_per_song": 1, "optimizer": "Adam"}
    text = json.dumps(valid).encode()
    if draw(st.booleans()):
        return draw(anything_like(text))
    return json.dumps(draw(damaged_json(valid))).encode()


@ORDINARY
@given(configurations())
def test_a_configuration_of_spleeter(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    survives(lambda: configuration.find(tmp_path), tmp_path)
    found = survives(lambda: recipe.translate(path), tmp_path)
    if found is not None:
        recipe.command(found).encode()
        recipe.experiment(found, "mine").encode()


@pytest.fixture(scope="module")
def tarball(spleeters: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in {**spleeters, "left out": b"x" * 600}.items():
            info = tarfile.TarInfo(f"model/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


class Everything:
    """A set that has whatever is asked for."""

    def __contains__(self, _: object) -> bool:
        return True


@st.composite
def archives(draw: Any, valid: bytes) -> bytes:
    if draw(st.sampled_from([True, False, False, False])):
        return draw(anything_like(gzip.compress(valid)))
    headers = [place for place in range(0, len(valid), 512) if valid[place + 257 : place + 262] == b"ustar"]
    at = draw(st.sampled_from(headers))
    kinds = b"0123456789LKSVxgX\0A"
    data = bytearray(valid)
    how = draw(st.sampled_from(["anywhere", "header", "kind", "name", "size"]))
    if how == "anywhere":
        return gzip.compress(draw(anything_like(valid)), 1)
    if how == "header":
        data[at : at + 512] = draw(damaged(bytes(data[at : at + 512])))
    elif how == "kind":
        data[at + 156] = draw(st.sampled_from(list(kinds)))
        data[at + 512 : at + 1024] = draw(damaged(b"30 path=../../outside\n20 size=99999999999\n".ljust(512, b"\0")))
    elif how == "name":
        names = [
            b"../outside",
            b"/tmp/outside",
            b"a/../../checkpoint",
            b"..\\checkpoint",
            b"./checkpoint",
            b"checkpoint",
        ]
        data[at : at + 100] = draw(st.sampled_from(names)).ljust(100, b"\0")
    else:
        sizes = [b"\x80" + bytes(3) + b"\xff" * 8, b"\xff" * 12, b"77777777777\0", b"-0000000001\0", b"00000000000\0"]
        data[at + 124 : at + 136] = draw(st.sampled_from(sizes))
    return gzip.compress(bytes(data), 1)


@ORDINARY
@given(st.data())
def test_an_archive_of_spleeter(tarball, tmp_path, data):
    path, folder = tmp_path / "model.tar.gz", tmp_path / "unpacked"
    path.write_bytes(data.draw(archives(tarball)))
    folder.mkdir(exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarfile, "calc_chksums", lambda _: Everything())
        survives(lambda: archive.unpack(path, folder, "model"), folder)
    assert all(left.is_file() and not left.is_symlink() for left in folder.iterdir())
    assert sorted(left.name for left in tmp_path.iterdir()) == ["model.tar.gz", "unpacked"]


# What lies between commands


@pytest.fixture(scope="module", params=["half", "complex", "decibel"])
def entry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_song: Callable[..., Path]
) -> tuple[Cache, tuple[Cell, ...], bytes]:
    """A cache with one signal, and the bytes of its entry."""
    folder = tmp_path_factory.mktemp("cache")
    song = write_song(folder / "song", {"vocals": None}, sample_rate=8000, seconds=0.1)
    made = Cache(folder / "cache", Spectrogram(8000, 1, 64, 16, bins=16, frames=8), storage.by_name(request.param))
    signal = (Cell(song / "vocals.wav"),)
    assert made.build({signal: 0.1}, workers=0) == {}
    return made, signal, made.path(signal).read_bytes()


@ORDINARY
@given(st.data())
def test_an_entry_of_the_cache(entry, data):
    made, signal, valid = entry
    made.path(signal).write_bytes(data.draw(anything_like(valid)))
    store.forget_files()
    count = survives(lambda: made.frame_count(signal), made.folder)
    if count is not None:
        assert 0 <= count <= len(valid)
        crop = survives(lambda: made.crop(signal, -2, 8), made.folder)
        assert crop is None or crop.shape == (1, 8, 16)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, catalogue: tuple[Path, bytes]) -> Any:
    root, text = catalogue
    folder = tmp_path_factory.mktemp("run")
    (folder / "train.csv").write_bytes(text)
    config = {"seed": 0, "hash_songs": True}
    provenance.record(folder, config, ["seed=0"], {"train": index.read(folder / "train.csv", root)})
    return json.loads((folder / provenance.FILE).read_bytes())


@ORDINARY
@given(st.data())
def test_a_record_of_where_a_run_comes_from(recorded, tmp_path, data):
    if data.draw(st.booleans()):
        content = data.draw(anything_like(json.dumps(recorded).encode()))
    else:
        content = json.dumps(data.draw(damaged_json(recorded))).encode()
    (tmp_path / provenance.FILE).write_bytes(content)
    found = survives(lambda: provenance.read(tmp_path), tmp_path)
    if found is not None:
        provenance.song_differences(found.index, found.index)
        provenance.environment_differences(found.starts[0].environment, found.starts[-1].environment)
