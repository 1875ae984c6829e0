"""A release of Spleeter's models on loopback, and what tests of what fetches them have in common."""

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from stemwise import download, pretrained
from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.spleeter import model as spleeter_model
from stemwise.unet import UNetSettings

FOLDER = "/deezer/spleeter/releases/download/v1.4.0/"
Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A release on loopback: `files` by name, as bytes or as a function that answers; `asked` counts requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Answer] = {}
        self.asked: list[tuple[str, str | None]] = []
        release = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                release.asked.append((name, self.headers.get("Range")))
                found = release.files.get(name) if self.path.startswith(FOLDER) else None
                if callable(found):
                    found(self)
                elif found is None:
                    self.send_error(404)
                else:
                    begin(self, found)
                    self.wfile.write(found)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.host = f"http://127.0.0.1:{self.http.server_port}"
        # shutdown() waits for the next look at its flag.
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def publish(self, archive: bytes, name: str = "2stems") -> None:
        self.files[f"{name}.tar.gz"] = archive
        self.files["checksum.json"] = json.dumps({name: hashlib.sha256(archive).hexdigest()}).encode()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


def begin(request: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()


def packed(folder: Path, under: str = "") -> bytes:
    files = [file for file in sorted(folder.iterdir()) if file.suffix != ".flac"]
    return tar([(tarfile.TarInfo(under + file.name), file.read_bytes()) for file in files])


def tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as file:
        for info, data in members:
            info.size = info.size or len(data)
            file.addfile(info, io.BytesIO(data))
    return content.getvalue()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Server]:
    """A server to which the environment leads; what is fetched goes to `cache`."""
    server = Server()
    redirect(monkeypatch, server.host, cache)
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


def small_model() -> Separator:
    torch.manual_seed(0)
    settings = UNetSettings(filters=(2, 2, 2, 2, 2, 2))
    return Separator(["vocals", "accompaniment"], Spectrogram(), settings, MaskRule()).eval()


def small_archive(folder: Path) -> bytes:
    """Its archive; `folder` gets what is in it."""
    spleeter_model.write(small_model(), folder)
    return packed(folder)


def left(folder: Path) -> list[str]:
    """What lies in a cache, without the locks."""
    files = [file for file in folder.rglob("*") if not file.is_dir()]
    assert not [file for file in folder.rglob(".*") if file.is_dir()], "a temporary folder was left"
    return sorted(file.name for file in files if file.suffix != ".lock")


def refused(name: str = "spleeter:2stems") -> str:
    with pytest.raises(UserError) as error:
        pretrained.path(name)
    return str(error.value)
