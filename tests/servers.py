"""Stores of files on loopback: a small web server that can fail in many ways, and a real S3-compatible one."""

import hashlib
import logging
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

BUCKET = "songs"
KEYS = {"AWS_ACCESS_KEY_ID": "loopback-id", "AWS_SECRET_ACCESS_KEY": "loopback-secret"}


class WebServer:
    """Serves `files` (path -> bytes) with Range and ETag; `faults` are taken by the next GETs, one each.

    A fault is a status, or "dies" (the connection is reset in mid-body), "short" (fewer bytes than announced), "hangs",
    or "whole" (Range is not heard).
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.faults: list[int | str] = []
        self.broken: int | str | None = None  # for good
        self.password: str | None = None  # as Basic authentication sends it
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.http.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def _handler(server) -> type:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._serve(body=False)

            def do_GET(self) -> None:
                self._serve(body=True)

            def _serve(self, body: bool) -> None:
                path = unquote(self.path.partition("?")[0])
                server.requests.append((self.command, self.path, self.headers["Range"]))
                fault = (server.faults.pop(0) if server.faults and body else None) or server.broken
                if server.password and self.headers["Authorization"] != f"Basic {server.password}":
                    fault = 401
                if not isinstance(fault, int) and path not in server.files:
                    fault = 404
                if isinstance(fault, int):
                    self.send_response(fault)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self._send(server.files[path], body, fault)

            def _send(self, content: bytes, body: bool, fault: str | None) -> None:
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
                part = content
                if asked and fault != "whole":
                    part = content[int(asked[1]) : int(asked[2]) + 1]
                    self.send_response(206)
                    last = int(asked[1]) + len(part) - 1
                    self.send_header("Content-Range", f"bytes {asked[1]}-{last}/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(part)))
                self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
                self.end_headers()
                if not body:
                    return
                if fault == "hangs":
                    time.sleep(5)
                self.wfile.write(part[: len(part) // 2] if fault in ("dies", "short", "hangs") else part)
                if fault == "dies":  # a reset instead of an orderly end
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = self.close_connection or fault in ("dies", "short", "hangs")

        return Handler


class S3:
    """moto's S3 server, with one bucket."""

    def __init__(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        self.host = ":".join(map(str, self.server.get_host_and_port()))
        names = {name.lower(): value for name, value in KEYS.items()}
        self.client = boto3.client("s3", endpoint_url=f"http://{self.host}", region_name="us-east-1", **names)
        self.client.create_bucket(Bucket=BUCKET)

    def put(self, key: str, content: bytes) -> str:
        """The URL of the new object."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    def put_folder(self, folder: Path, below: str) -> str:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{below}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://{BUCKET}/{below}"
