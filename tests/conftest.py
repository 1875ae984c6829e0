"""Fixtures that more than one test file needs."""

import errno
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import settings

from servers import BUCKET, KEYS, S3, WebServer
from stemwise.cache import store
from stemwise.files import stores
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings
from tiny import TINY

# The networks here are so small that threads cost more than they give; commands under test inherit it.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# Nor do the few kernels of such a network keep a pool of compilers busy, which each import torch first.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

# A long session of test_fuzz.py, see there.
settings.register_profile("fuzz", max_examples=int(os.environ.get("STEMWISE_FUZZ", "2000")), print_blob=True)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

WriteSong = Callable[..., Path]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Beside another process (`-n 2`), files with slow tests come first, so that none is left alone with one."""
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What stemwise keeps for its user between commands is not to be touched by tests."""
    os.environ["STEMWISE_CACHE"] = str(tmp_path_factory.mktemp("stemwise-cache"))


@pytest.fixture(autouse=True)
def nothing_stays_behind():
    """No process, and no handler of a signal, that a test made in this process, outlives it."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    left = multiprocessing.active_children()
    assert not left, f"these processes were left: {left}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings beside the checkout; they are not part of the project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder}")
    return folder


@pytest.fixture(scope="session")
def write_song() -> WriteSong:
    """Writes `stems` as WAVs into a folder: each a waveform (C, N), or None for seeded stereo noise."""

    def write(
        folder: Path,
        stems: Mapping[str, np.ndarray | None],
        *,
        sample_rate: int = 44100,
        seconds: float = 0.5,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for seed, (stem, waveform) in enumerate(stems.items()):
            if waveform is None:
                noise = np.random.default_rng(seed).standard_normal((2, round(seconds * sample_rate)))
                waveform = 0.1 * noise
            soundfile.write(folder / f"{stem}.wav", waveform.T, sample_rate)
        return folder

    return write


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch):
    """No credentials, endpoints and proxies but those that a test sets, and no file system that knows others."""

    for name in [
        name for name in os.environ if name.startswith(("AWS_", "FSSPEC_")) or name.lower().endswith("_proxy")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setattr(stores, "PAUSES", (0.01, 0.02))
    store.forget_files()
    yield monkeypatch
    store.forget_files()


@pytest.fixture
def web(network):
    """A web server on loopback."""
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def s3_web(web: WebServer, network) -> WebServer:
    """The same as an endpoint of S3, whose bucket `songs` is the folder of that name."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": web.url, "AWS_MAX_ATTEMPTS": "2"}.items():
        network.setenv(name, value)
    return web


@pytest.fixture(scope="session")
def s3_server():
    server = S3()
    yield server
    server.server.stop()


@pytest.fixture
def s3(s3_server: S3, network) -> S3:
    """An empty bucket of an S3-compatible server on loopback, to which the environment leads."""
    for item in s3_server.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        s3_server.client.delete_object(Bucket=BUCKET, Key=item["Key"])
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://{s3_server.host}"}.items():
        network.setenv(name, value)
    return s3_server


@pytest.fixture
def small_separator() -> Separator:
    """Two stems at 8 kHz mono in windows of 16 frames, with weights that are not those of a fresh network."""
    torch.manual_seed(0)
    settings = Spectrogram(sample_rate=8000, channels=1, n_fft=256, hop=64, bins=64, frames=16)
    unet = UNetSettings(filters=(4, 6, 8))
    model = Separator(["vocals", "accompaniment"], settings, unet, MaskRule())
    for norm in [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return model.eval()


@pytest.fixture(scope="session")
def songs(tmp_path_factory: pytest.TempPathFactory, write_song: WriteSong) -> Path:
    """A folder of six short songs with four stems at 8 kHz, and index CSVs that split them 4, 1, 1."""
    root = tmp_path_factory.mktemp("songs")
    stems = ("vocals", "drums", "bass", "other")
    for number in range(6):
        time = np.arange(8000 + 500 * number) / 8000
        pitches = (200 * 2**i * (1 + 0.03 * number) for i in range(4))
        tones = {stem: 0.2 * np.sin(2 * np.pi * f * time) for stem, f in zip(stems, pitches, strict=True)}
        write_song(root / f"Song {number}", {s: np.stack([w, 0.5 * w]) for s, w in tones.items()}, sample_rate=8000)
    header = ",".join(f"{stem}_path" for stem in stems)
    rows = [",".join(f"Song {number}/{stem}.wav" for stem in stems) for number in range(6)]
    for split, part in (("train", rows[:4]), ("valid", rows[4:5]), ("test", rows[5:])):
        (root / f"{split}.csv").write_text("\n".join([header, *part, ""]), encoding="utf-8")
    return root


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder one that cannot be written: permissions do not stop root, in whose name tests may run."""

    def make(folder: Path) -> None:
        def guarded(name: str, original: Callable[..., object]) -> Callable[..., object]:
            def call(path: object, *arguments: object, **options: object) -> object:
                writes = name != "open" or bool(int(arguments[0]) & (os.O_WRONLY | os.O_RDWR))  # type: ignore[call-overload]
                inside = isinstance(path, int) or Path(os.fspath(path)).is_relative_to(folder)  # type: ignore[arg-type]
                if writes and inside and not (name == "mkdir" and Path(path).exists()):  # type: ignore[arg-type]
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
                return original(path, *arguments, **options)

            return call

        for name in ("open", "unlink", "mkdir", "utime", "replace"):
            monkeypatch.setattr(os, name, guarded(name, getattr(os, name)))

    return make


@dataclass
class Finished:
    """How a command ended: its exit code and all that it printed."""

    code: int
    output: str


@pytest.fixture
def stemwise(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs `stemwise ARGUMENTS` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Finished:
        from stemwise import cli

        capfd.readouterr()
        monkeypatch.setattr("sys.argv", ["stemwise", *map(str, arguments)])
        try:
            code = cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            torch.set_flush_denormal(False)  # as a command sets it for its own process; hypothesis refuses to draw so
        printed = capfd.readouterr()
        return Finished(code, printed.out + printed.err)

    return run


@pytest.fixture
def train(stemwise, songs: Path):
    """Runs `stemwise train` with the tiny model on the six songs, into the folder `run`."""

    def run(*overrides: str) -> Finished:
        given = {override.split("=")[0] for override in overrides}
        where = ["data=csv", f"data.root={songs}", "hydra.run.dir=run", "trainer.max_steps=4"]
        where += [f"data.{split}={songs}/{split}.csv" for split in ("train", "valid", "test")]
        defaults = [override for override in (*where, *TINY) if override.split("=")[0] not in given]
        return stemwise("train", *defaults, *overrides)

    return run
