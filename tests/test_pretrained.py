"""Models by name, against a real HTTP server on loopback."""

import errno
import gzip
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests
import torch

from release import FOLDER, Answer, Server, begin, packed, tar
from stemwise import download, model_file, pretrained
from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.spleeter import archive as spleeter_archive
from stemwise.spleeter import model as spleeter_model
from stemwise.unet import UNetSettings


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    server = Server()
    redirect(monkeypatch, server.host, tmp_path / "cache")
    yield server
    server.http.shutdown()
    server.http.server_close()


def redirect(monkeypatch: pytest.MonkeyPatch, host: str, cache: Path) -> None:
    for name in ("GITHUB_REPOSITORY", "GITHUB_RELEASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GITHUB_HOST", host)
    monkeypatch.setenv("STEMWISE_CACHE", str(cache))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(download, "READ_SECONDS", 0.25)


@pytest.fixture(scope="module")
def model() -> Separator:
    torch.manual_seed(0)
    settings = UNetSettings(filters=(2, 2, 2, 2, 2, 2))
    return Separator(["vocals", "accompaniment"], Spectrogram(), settings, MaskRule()).eval()


@pytest.fixture(scope="module")
def folder(model: Separator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spleeter") / "2stems"
    spleeter_model.write(model, folder)
    return folder


@pytest.fixture(scope="module")
def archive(folder: Path) -> bytes:
    return packed(folder)


def same(one: Separator, other: Separator) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def left(folder: Path) -> list[str]:
    """What lies in a cache, without the locks."""
    files = [file for file in folder.rglob("*") if not file.is_dir()]
    assert not [file for file in folder.rglob(".*") if file.is_dir()], "a temporary folder was left"
    return sorted(file.name for file in files if file.suffix != ".lock")


def refused(name: str = "spleeter:2stems") -> str:
    with pytest.raises(UserError) as error:
        pretrained.path(name)
    return str(error.value)


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


def test_progress_counts_megabytes(server, monkeypatch):
    counts = []

    def track(items, *, what, total):
        seen = 0
        for item in items:
            seen += 1
            yield item
        counts.append((what, seen, total))

    monkeypatch.setattr(download.progress, "track", track)
    server.publish(b"x" * 3_500_000)
    assert "not the published" not in refused()
    assert ("downloading 2stems.tar.gz, MB", 4, 4) in counts


# --- bad connections --------------------------------------------------------------------------------------------


def cut_after(count: int, content: bytes) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        begin(request, content)
        request.wfile.write(content[:count])
        request.wfile.flush()
        request.connection.shutdown(socket.SHUT_RDWR)

    return answer


def test_a_cut_connection_goes_on_where_it_was(server, archive, caplog):
    server.publish(archive)

    def rest(request: BaseHTTPRequestHandler) -> None:
        if not (asked := request.headers.get("Range")):
            return cut_after(1000, archive)(request)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        begin(request, archive[start:], 206, Content_Range=f"bytes {start}-{len(archive) - 1}/{len(archive)}")
        request.wfile.write(archive[start:])

    server.files["2stems.tar.gz"] = rest
    assert pretrained.path("spleeter:2stems").is_file()
    assert ("2stems.tar.gz", "bytes=1000-") in server.asked
    assert "again in 0 s" in caplog.text


def test_a_server_without_ranges_starts_again(server, archive):
    server.publish(archive)
    answers = [cut_after(1000, archive), archive]

    def answer(request: BaseHTTPRequestHandler) -> None:
        now = answers.pop(0)
        if callable(now):
            return now(request)
        begin(request, now)
        request.wfile.write(now)

    server.files["2stems.tar.gz"] = answer
    assert pretrained.path("spleeter:2stems").is_file()


def test_a_connection_that_is_always_cut(server, archive):
    server.publish(archive)
    server.files["2stems.tar.gz"] = cut_after(1000, archive)
    message = refused()
    assert "2stems.tar.gz: IncompleteRead" in message
    assert "Check the connection, or download http://" in message
    assert server.names.count("2stems.tar.gz") == 3
    assert left(pretrained.cache()) == []


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (500, 3), (503, 3), (429, 3)])
def test_an_error_of_the_server(server, archive, status, tries):
    server.publish(archive)
    server.files["2stems.tar.gz"] = lambda request: request.send_error(status)
    assert f"the server answers {status}" in refused()
    assert server.names.count("2stems.tar.gz") == tries
    assert left(pretrained.cache()) == []


def test_the_environment_is_named_where_it_redirects(server, monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "me/project")
    assert "GITHUB_REPOSITORY=me/project" in refused()


def silent(request: BaseHTTPRequestHandler) -> None:
    time.sleep(0.6)


def stops_half_way(request: BaseHTTPRequestHandler) -> None:
    begin(request, b"x" * 1000)
    request.wfile.write(b"x" * 10)
    time.sleep(0.6)


def drips(request: BaseHTTPRequestHandler) -> None:
    begin(request, b"x" * 10_000)
    with suppress(ConnectionError):  # who asked does not wait for the end
        for _ in range(20):
            request.wfile.write(b"x")
            time.sleep(0.05)


@pytest.mark.parametrize("answer", [silent, stops_half_way, drips])
def test_a_server_that_does_not_answer_ends_in_a_message(server, archive, monkeypatch, answer):
    monkeypatch.setattr(download, "PAUSES", ())
    server.publish(archive)
    server.files["2stems.tar.gz"] = answer
    start = time.monotonic()
    message = refused()
    assert "no answer within 0.25 s" in message or "bytes in 0 s" in message
    assert time.monotonic() - start < 0.55


def test_endless_answers_end(server, archive, monkeypatch):
    server.publish(archive)
    monkeypatch.setattr(pretrained, "LARGEST_ARCHIVE", 100_000)

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(100):
            request.wfile.write(b"x" * 10_000)

    server.files["2stems.tar.gz"] = endless
    assert "more than the 100000 bytes" in refused()
    server.files["2stems.tar.gz"] = b"x" * 100_001
    assert "100001 bytes, more than the 100000" in refused()
    server.files["checksum.json"] = b" " * (2**20 + 1)
    assert "more than the 1048576" in refused()


def test_no_network_says_what_to_do(monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{free.getsockname()[1]}"
    redirect(monkeypatch, host, tmp_path / "cache")
    message = refused("spleeter:4stems-16kHz")
    place = tmp_path / "cache" / pretrained.release().folder
    assert "Connection refused" in message
    assert f"{host}{FOLDER}4stems.tar.gz and {host}{FOLDER}checksum.json" in message
    assert f"by other means into {place} " in message
    assert place.is_dir()
    assert left(tmp_path) == []


def test_of_the_original_only_the_archive_is_wanted(monkeypatch, tmp_path):
    def down(*_, **__):
        raise requests.ConnectionError("no network")

    redirect(monkeypatch, "", tmp_path)
    monkeypatch.setattr(requests, "get", down)
    message = refused()
    assert "2stems.tar.gz: no network.\n  Check" in message
    assert "checksum.json" not in message
    assert "redirect" not in message


@pytest.mark.parametrize("host", ["ftp://127.0.0.1", "http://127.0.0.1:99999", "::", "\udcff"])
def test_an_address_that_is_none_is_tried_once(monkeypatch, tmp_path, caplog, host):
    redirect(monkeypatch, host, tmp_path)
    assert f"GITHUB_HOST={host}" in refused()
    assert "again in" not in caplog.text


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


# --- hostile archives -------------------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info, b"x" * (10 if kind == tarfile.REGTYPE and not size else size)


def long_header(size: int) -> bytes:
    """A tar whose first header says that a name of `size` bytes follows."""
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT) + b"x" * min(size, 10**7)


def negative_size() -> bytes:
    """A tar whose second member leads back to itself (CVE-2025-8194)."""
    first, second = tarfile.TarInfo("a").tobuf(), bytearray(tarfile.TarInfo("b").tobuf())
    second[124:136] = b"\xff" * 10 + (2**16 - 512).to_bytes(2, "big")
    second[148:156] = b" " * 8
    second[148:156] = b"%06o\0 " % sum(second)
    return first + bytes(second) + bytes(4096)


def large_claim() -> bytes:
    info = tarfile.TarInfo("unwanted")
    info.size = 2**33 - 1
    return info.tobuf()


HOSTILE = {
    "leads out: absolute": (lambda: tar([member("/tmp/model.index")]), "leads out of its folder"),
    "leads out: up": (lambda: tar([member("../model.index")]), "leads out of its folder"),
    "leads out: up inside": (lambda: tar([member("a/../../model.index")]), "leads out of its folder"),
    "leads out: unwanted": (lambda: tar([member("../../.profile")]), "leads out of its folder"),
    "leads out: Windows": (lambda: tar([member("..\\model.index")]), "leads out of its folder"),
    "symbolic link": (lambda: tar([member("model.index", tarfile.SYMTYPE, "/etc/passwd")]), "no plain file"),
    "hard link": (lambda: tar([member("checkpoint", tarfile.LNKTYPE, "/etc/passwd")]), "no plain file"),
    "device": (lambda: tar([member("checkpoint", tarfile.CHRTYPE)]), "no plain file"),
    "pipe": (lambda: tar([member("checkpoint", tarfile.FIFOTYPE)]), "no plain file"),
    "link, then through it": (
        lambda: tar([member("out", tarfile.SYMTYPE, "/tmp"), member("out/model.index"), member("checkpoint")]),
        "more than one checkpoint",
    ),
    "twice": (lambda: tar([member("checkpoint"), member("checkpoint")]), "more than one checkpoint"),
    "twice, but for case": (lambda: tar([member("m.index"), member("M.index")]), "more than one checkpoint"),
    "two folders": (lambda: tar([member("a/checkpoint"), member("b/model.index")]), "more than one checkpoint"),
    "too deep": (lambda: tar([member("a/b/checkpoint")]), "holds no checkpoint"),
    "nothing wanted": (
        lambda: tar([member("evil.py"), member("._model.index"), member("x.sh")]),
        "holds no checkpoint",
    ),
    "many files": (lambda: tar([member(f"{i}.txt") for i in range(1100)]), "more than 1000 files"),
    "bomb": (lambda: tar([member("model.index", size=512 * 10**4)]), "unpacks to more than the 1000000 bytes"),
    "bomb in what is not wanted": (lambda: gzip.compress(large_claim()), "unpacks to more than the 1000000 bytes"),
    "long header": (lambda: gzip.compress(long_header(10**7)), "a header of 10"),
    "endless header": (lambda: gzip.compress(long_header(2**33 - 1)), "a header of 8"),
    "negative size": (lambda: gzip.compress(negative_size()), "a size below zero|a damaged one"),
    "headers without end": (lambda: gzip.compress(long_header(1)[:512].ljust(1024, b"x") * 900), "damaged"),
    "no gzip": (lambda: b"hello", "not a tar.gz"),
    "damaged gzip": (lambda: gzip.compress(b"x" * 1000)[:10] + b"\xff" * 50, "not a tar.gz"),
    "no tar": (lambda: gzip.compress(b"hello" * 1000), "not a tar.gz"),
    "empty": (lambda: b"", "not a tar.gz|holds no checkpoint"),
    "no checkpoint in it": (lambda: tar([member("checkpoint")]), "checkpoint"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused(server, monkeypatch, tmp_path, case):
    monkeypatch.setattr(spleeter_archive, "LARGEST_UNPACKED", 10**6)
    make, message = HOSTILE[case]
    server.publish(make())
    with pytest.raises(UserError, match=message) as error:
        pretrained.path("spleeter:2stems")
    assert str(error.value).startswith(f"{server.host}{FOLDER}2stems.tar.gz: ")
    assert str(tmp_path) not in str(error.value), "names a folder that is gone"
    assert left(tmp_path) == []


def test_cut_and_damaged_archives_are_refused(server, archive):
    plain = gzip.decompress(archive)
    damaged = [archive[: len(archive) // 2], archive[:100] + b"\xff" * 50 + archive[150:]]
    damaged += [gzip.compress(plain[:count]) for count in (100, 600, 1500)]
    for content in damaged:
        server.publish(content)
        assert "2stems.tar.gz: " in refused()
    assert left(pretrained.cache()) == []


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
