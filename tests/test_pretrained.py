"""Models by name, against a real HTTP server on loopback."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests
import torch

from release import (
    FOLDER,
    Server,
    begin,
    left,
    packed,
    redirect,
    refused,
    serving,
    small_archive,
    small_model,
    tar,
)
from stemwise import download, model_file, pretrained
from stemwise.errors import UserError
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.spleeter import model as spleeter_model


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with serving(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture(scope="module")
def model() -> Separator:
    return small_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spleeter") / "2stems"
    small_archive(folder)
    return folder


@pytest.fixture(scope="module")
def archive(folder: Path) -> bytes:
    return packed(folder)


def same(one: Separator, other: Separator) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- names and places -------------------------------------------------------------------------------------------


def test_a_path_stays_as_it_is():
    for given in ("model.safetensors", "runs/a:b/x.ckpt", "C:\\models\\m.safetensors", "./spleeter:2stems", "4stems"):
        assert pretrained.path(given) == Path(given)
    assert pretrained.path(Path("spleeter:2stems")) == Path("spleeter:2stems")


@pytest.mark.parametrize(
    "name", ["spleeter:3stems", "spleeter:4stem", "spleeter:4stems-16khz", "Spleeter:4stems", "spleeter:"]
)
def test_an_unknown_name_says_which_there_are(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"a file of that name is not taken for the model")
    with pytest.raises(UserError, match=r"spleeter:2stems, spleeter:2stems-16kHz, .*spleeter:5stems-16kHz"):
        pretrained.path(name)


def test_the_original_release(monkeypatch):
    for name in ("GITHUB_HOST", "GITHUB_REPOSITORY", "GITHUB_RELEASE"):
        monkeypatch.setenv(name, "")
    original = pretrained.release()
    assert original == pretrained.ORIGINAL
    assert original.url("4stems.tar.gz") == "https://github.com" + FOLDER + "4stems.tar.gz"
    assert original.folder == Path("github.com/deezer/spleeter/v1.4.0")
    assert pretrained.CHECKSUMS.keys() == {*pretrained.ARCHIVES}


def test_releases_do_not_share_a_folder(monkeypatch):
    releases = [pretrained.ORIGINAL]
    changes = {
        "GITHUB_HOST": ["http://github.com", "https://github.com:444", "https://x/github.com", "github.example"],
        "GITHUB_REPOSITORY": ["me/spleeter", "me", "me%2Fspleeter", "../../..", "a/../b"],
        "GITHUB_RELEASE": ["v1.4.1", "..", "."],
    }
    for name, values in changes.items():
        for value in values:
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                releases.append(pretrained.release())
    folders = {release.folder for release in releases}
    assert len(folders) == len(releases)
    assert not any({".", ".."} & {*folder.parts} or folder.is_absolute() for folder in folders)
    assert releases[4].url("x").startswith("https://github.example/deezer/")


def test_a_password_in_the_address_is_refused_and_not_shown(monkeypatch, tmp_path):
    redirect(monkeypatch, "https://me:secret@mirror.example", tmp_path)
    with pytest.raises(UserError, match="netrc") as error:
        pretrained.path("spleeter:2stems")
    assert "secret" not in str(error.value)


def test_without_a_choice_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("STEMWISE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pretrained.cache().name == "models"
    assert "stemwise" in pretrained.cache().parts
    if sys.platform == "linux":
        assert pretrained.cache() == tmp_path / "stemwise" / "models"


# --- fetching ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("under", ["", "./", "2stems/"])
def test_a_model_is_fetched_once(server, folder, model, under):
    server.publish(packed(folder, under))
    path = pretrained.path("spleeter:2stems")
    loaded, facts = model_file.read(path)
    assert same(loaded, spleeter_model.read(folder))
    assert same(loaded, model)
    assert loaded.settings == spleeter_model.read(folder).settings
    assert facts["archive"] == server.host + FOLDER + "2stems.tar.gz"
    assert sorted(server.names) == ["2stems.tar.gz", "checksum.json"]
    assert left(pretrained.cache()) == ["2stems.safetensors"]
    server.asked.clear()
    assert pretrained.path("spleeter:2stems") == path
    assert not server.asked


def test_a_fetched_model_needs_no_lock(server, archive, monkeypatch):
    server.publish(archive)
    path = pretrained.path("spleeter:2stems")
    monkeypatch.setattr(pretrained.filelock, "FileLock", lambda *_: pytest.fail("a cache may be readable only"))
    assert pretrained.path("spleeter:2stems") == path


def test_the_16khz_variant_is_the_same_archive(server, archive, model):
    server.publish(archive)
    wide = pretrained.path("spleeter:2stems-16kHz")
    plain = pretrained.path("spleeter:2stems")
    assert server.names.count("2stems.tar.gz") == 1
    loaded = model_file.load(wide)
    assert same(loaded, model)
    assert loaded.spectrogram == Spectrogram(bins=1536)
    assert model_file.load(plain).spectrogram == Spectrogram(bins=1024)
    wide.unlink()
    server.asked.clear()
    assert pretrained.path("spleeter:2stems-16kHz") == wide
    assert not server.asked


@pytest.mark.parametrize("name", ["2stems", "5stems"])
def test_spleeters_own_models(server, shared_data, name):
    folder = shared_data / "golden" / name
    server.publish(packed(folder), name)
    loaded = model_file.load(pretrained.path(f"spleeter:{name}"))
    reference = spleeter_model.read(folder)
    assert same(loaded, reference)
    assert loaded.settings == reference.settings
    wide = model_file.load(pretrained.path(f"spleeter:{name}-16kHz"))
    assert same(wide, reference)
    assert (wide.spectrogram.bins, wide.output) == (1536, reference.output)


def test_what_spleeter_released_has_no_config(server, folder, model):
    with_config = {file.name for file in folder.iterdir()}
    assert "config.json" in with_config
    files = [(tarfile.TarInfo(name), (folder / name).read_bytes()) for name in with_config - {"config.json"}]
    server.publish(tar(files), "4stems")
    # The small model is not 4stems, and this is how the built-in configuration of that name answers.
    assert "has 2 U-Nets, but 4stems names 4 stems" in refused("spleeter:4stems")


def test_a_redirect_is_followed(server, archive):
    server.publish(archive)
    server.files["elsewhere"] = archive
    server.files["2stems.tar.gz"] = lambda request: begin(
        request, b"", 302, Location=server.host + FOLDER + "elsewhere"
    )
    assert pretrained.path("spleeter:2stems").is_file()


def test_an_archive_that_is_called_gzip_encoded_is_not_unpacked_on_the_way(server, archive):
    server.publish(archive)
    accepted = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        accepted.append(request.headers["Accept-Encoding"])
        begin(request, archive, Content_Encoding="x-gzip", Content_Type="application/x-tar")
        request.wfile.write(archive)

    server.files["2stems.tar.gz"] = answer
    assert pretrained.path("spleeter:2stems").is_file()
    assert accepted == ["identity"]


# --- checksums --------------------------------------------------------------------------------------------------


def test_a_wrong_archive_is_not_kept(server, archive):
    server.publish(archive)
    server.files["2stems.tar.gz"] = archive[:-1] + b"x"
    message = refused()
    assert "damaged file in place of the archive" in message
    assert hashlib.sha256(archive).hexdigest() in message
    server.files["2stems.tar.gz"] = b"\n<!DOCTYPE html><title>Sign in</title>"
    assert "a web page" in refused()
    assert left(pretrained.cache()) == []
    server.files["2stems.tar.gz"] = archive
    assert pretrained.path("spleeter:2stems").is_file()


@pytest.mark.parametrize(
    "index",
    [b"{}", b'{"4stems": "00"}', b"[]", b'{"2stems": 7}', b'{"2stems": "00"}', b"<html>", b"[" * 100_000, b"\xff"],
)
def test_an_index_without_the_archives_checksum(server, archive, index):
    server.publish(archive)
    server.files["checksum.json"] = index
    message = refused()
    assert "checksum.json: " in message
    assert "no SHA-256 of '2stems'" in message or "not JSON" in message
    assert server.names == ["checksum.json"]


def test_the_original_is_checked_without_its_index(monkeypatch, tmp_path, archive):
    redirect(monkeypatch, "", tmp_path)
    place = tmp_path / pretrained.ORIGINAL.folder
    place.mkdir(parents=True)
    (place / "2stems.tar.gz").write_bytes(archive)
    monkeypatch.setattr(requests, "get", lambda *_, **__: pytest.fail("asked the network"))
    assert pretrained.CHECKSUMS["2stems"] in refused()
    monkeypatch.setitem(pretrained.CHECKSUMS, "2stems", hashlib.sha256(archive).hexdigest())
    assert pretrained.path("spleeter:2stems").is_file()


def test_an_archive_that_was_put_there_is_used(server, archive):
    server.publish(archive)
    index = server.files.pop("checksum.json")
    place = pretrained.cache() / pretrained.release().folder
    place.mkdir(parents=True)
    (place / "2stems.tar.gz").write_bytes(archive[:-5])
    assert "checksum.json: the server answers 404" in refused()
    (place / "checksum.json").write_bytes(index)
    message = refused()
    assert f"{place / '2stems.tar.gz'}: another or a damaged file" in message
    assert "Remove it" in message
    (place / "2stems.tar.gz").write_bytes(archive)
    server.asked.clear()
    assert pretrained.path("spleeter:2stems-16kHz").is_file()
    assert not server.asked
    assert "2stems.tar.gz" in left(place)


# --- two at once, killed, full ----------------------------------------------------------------------------------

CHILD = "import sys; from stemwise import pretrained; print(pretrained.path(sys.argv[1]))"


class Held:
    """An answer that stops half way until `go` is set."""

    def __init__(self, content: bytes) -> None:
        self.content, self.half, self.go = content, threading.Event(), threading.Event()

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        begin(request, self.content)
        try:
            request.wfile.write(self.content[: len(self.content) // 2])
            request.wfile.flush()
            self.half.set()
            self.go.wait(20)
            request.wfile.write(self.content[len(self.content) // 2 :])
        except ConnectionError:
            pass


def start(server: Server, archive: bytes) -> tuple[subprocess.Popen[str], Held]:
    """Another process that is in the middle of a download."""
    server.publish(archive)
    server.files["2stems.tar.gz"] = held = Held(archive)
    child = subprocess.Popen([sys.executable, "-c", CHILD, "spleeter:2stems"], stdout=subprocess.PIPE, text=True)
    assert held.half.wait(30)
    return child, held


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fetching(found: list[Path], name: str) -> threading.Thread:
    thread = threading.Thread(target=lambda: found.append(pretrained.path(name)), daemon=True)
    thread.start()
    return thread


def test_two_processes_download_once(server, archive, caplog):
    child, held = start(server, archive)
    found: list[Path] = []
    threads = [fetching(found, "spleeter:2stems"), fetching(found, "spleeter:2stems-16kHz")]
    wait_for(lambda: caplog.text.count("another process is fetching it") == 2)
    assert left(pretrained.cache() / "none") == []
    assert not list(pretrained.cache().rglob("*.safetensors"))
    held.go.set()
    printed = child.communicate(timeout=30)[0]
    for thread in threads:
        thread.join(10)
    assert {str(path) for path in found} == {printed.strip(), printed.strip().replace("2stems.", "2stems-16kHz.")}
    assert server.names.count("2stems.tar.gz") == 1
    assert left(pretrained.cache()) == ["2stems-16kHz.safetensors", "2stems.safetensors"]


def test_after_a_kill_the_next_starts_clean(server, archive, caplog):
    child, held = start(server, archive)
    place = pretrained.cache() / pretrained.release().folder
    found: list[Path] = []
    waiting = fetching(found, "spleeter:2stems")
    wait_for(lambda: "another process" in caplog.text)
    (place / ".2stems-16kHz.safetensors.abc").write_bytes(b"what a killed conversion leaves")
    assert len(list(place.glob(".2stems.*/2stems.tar.gz"))) == 1
    server.files["2stems.tar.gz"] = archive
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    held.go.set()
    waiting.join(10)
    assert found == [place / "2stems.safetensors"]
    assert left(pretrained.cache()) == ["2stems.safetensors"]


def test_a_failed_conversion_leaves_nothing(server, archive, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server.publish(archive)
    for module, name in ((model_file, "save_file"), (download.progress, "track")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            message = refused()
        assert "No space left" in message
        assert str(pretrained.cache()) in message
        assert left(pretrained.cache()) == []
    assert pretrained.path("spleeter:2stems").is_file()


def test_a_cache_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for cache in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none"), tmp_path / ("x" * 300)):
        monkeypatch.setenv("STEMWISE_CACHE", str(cache))
        message = refused()
        assert message.startswith(str(cache))
        assert "STEMWISE_CACHE" in message
    assert not server.asked
