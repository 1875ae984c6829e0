"""Fetches files over HTTP, with bounds on their size and on how long a server may be silent or slow."""

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import requests
import urllib3

from stemwise import progress
from stemwise.errors import UserError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0  # for each piece, not for the whole
SLOWEST = 500  # bytes per second, on average over READ_SECONDS
PAUSES = (1.0, 4.0)  # seconds before the second and the third try

_PIECE = 2**16
_MEGABYTE = 10**6


def download(url: str, target: Path, limit: int, way_out: str) -> None:
    """Writes what `url` sends, at most `limit` bytes, in three tries that continue each other where the server can.

    Raises `UserError` where that fails; `way_out` is the end of its message, after "Check the connection, or".
    """
    for pause in (*PAUSES, None):
        try:
            return _receive(url, target, limit)
        except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError) as error:
            if pause is None or not _may_pass(error):
                raise UserError(f"{url}: {_reason(error)}.\n  Check the connection, or {way_out}") from None
            log.warning("%s: %s; again in %g s.", url, _reason(error), pause)
            time.sleep(pause)


def _receive(url: str, target: Path, limit: int) -> None:
    done = target.stat().st_size if target.exists() else 0
    # identity: some servers call every .tar.gz gzip-encoded, and a client that believes it unpacks the archive.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    timeout = (CONNECT_SECONDS, READ_SECONDS)
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        response.raise_for_status()
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        done = done if resumed else 0
        length = response.headers.get("Content-Length", "")
        size = int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else None
        if done + (size or 0) > limit:
            raise UserError(f"{url}: {done + (size or 0)} bytes, more than the {limit} that are allowed.")
        with open(target, "ab" if resumed else "wb") as file:
            megabytes = _written(response, file, url, limit)
            if size is not None:
                total = (done + size) // _MEGABYTE + 1 - done // _MEGABYTE
                megabytes = progress.track(megabytes, what=f"downloading {target.name}, MB", total=total)
            for _ in megabytes:
                pass


def _written(response: requests.Response, file: IO[bytes], url: str, limit: int) -> Iterator[None]:
    """Writes the body as it comes and yields for every megabyte that is begun, so that progress can be shown.

    A read that waits for whole megabytes would never end with a server that sends a byte now and then.
    """
    begun = -1
    start, got = time.monotonic(), 0
    while piece := response.raw.read1(_PIECE, decode_content=False):
        if file.write(piece) and file.tell() > limit:
            raise UserError(f"{url}: more than the {limit} bytes that are allowed.")
        got += len(piece)
        if (now := time.monotonic()) - start > READ_SECONDS:
            if got < SLOWEST * READ_SECONDS:
                raise requests.Timeout(f"{got} bytes in {now - start:.0f} s")
            start, got = now, 0
        if file.tell() // _MEGABYTE > begun:
            begun = file.tell() // _MEGABYTE
            yield


def _may_pass(error: Exception) -> bool:
    """Whether trying again can help: not with an address that is wrong, or an answer that is meant."""
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return not isinstance(error, ValueError | requests.TooManyRedirects)


def _reason(error: BaseException) -> str:
    """What lies behind an error of the network, in a few words."""
    if isinstance(error, requests.HTTPError):
        return f"the server answers {error.response.status_code} {error.response.reason or ''}".rstrip()
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return f"no answer within {READ_SECONDS:g} s"
    while cause := error.__cause__ or error.__context__:
        error = cause
    return str(getattr(error, "strerror", None) or error or type(error).__name__).rstrip(".")
