"""Bad connections: what a download survives, and what it says of what it does not."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests

from release import FOLDER, Answer, Server, begin, left, redirect, refused, serving, small_archive
from stemwise import download, pretrained


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with serving(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small_archive(tmp_path_factory.mktemp("spleeter") / "2stems")


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
