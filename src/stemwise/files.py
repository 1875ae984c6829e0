"""Where a file is, on this machine or behind a URL, and how it is read from there.

A place is a `Path` or a `Url`. What is behind a URL is read in parts as a stream, through fsspec: credentials and
endpoints come from the environment (AWS_*, GOOGLE_APPLICATION_CREDENTIALS, FSSPEC_*, ~/.netrc). They are never shown:
the text of a `Url` has no password in it and nothing of its query.

A process has one file system, that is one pool of connections, per protocol. A forked one neither uses nor frees its
parent's: whatever it does to them goes through an epoll that both share, and leaves the parent waiting for answers.
"""

import errno
import hashlib
import io
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from stemwise.errors import UserError

# What a URL may begin with, and what to install for it.
PROTOCOLS = {"s3": "stemwise[s3]", "gs": "stemwise[gcs]", "https": "fsspec[http]", "http": "fsspec[http]"}
HTTP = ("https", "http")
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS; FSSPEC_GS_TOKEN=anon for a public bucket",
    "https": "in ~/.netrc or the URL",
    "http": "in ~/.netrc or the URL",
}
TOKENS = ("ETag", "etag", "generation", "Content-MD5", "Digest", "Last-Modified", "LastModified")  # fsspec's names

FIRST, LARGEST = 1 << 18, 1 << 23  # bytes of a request: a header is in the first, a song takes few of the last
THREADS = 16  # that wait for answers at the same time
CONNECT_SECONDS, READ_SECONDS, REQUEST_SECONDS = 10.0, 30.0, 300.0
PAUSES = (0.5, 2.0)  # seconds before the second and the third try over HTTP; the others retry by themselves

_URL = re.compile(r"([A-Za-z][\w+.:-]*)://(.*)", re.DOTALL)
_HIDDEN = re.compile("hidden-[0-9a-f]{8}")
# What signs a URL for a while: of S3, Google, CloudFront and Azure.
_SIGNATURE = re.compile(
    r"(X-(Amz|Goog)-[\w-]+|AWSAccessKeyId|GoogleAccessId|Signature|Expires|Policy|Key-Pair-Id"
    r"|sig|s[eprstv]|srt|spr|sip|sdd|skoid|sktid|sk[etsv])=.*",
    re.IGNORECASE,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Url:
    """A file or folder behind a URL, with what this package uses of `Path`.

    `path` begins with a slash, or is empty; of HTTP it is percent-encoded. Paths joined to it are plain names.
    """

    protocol: str
    authority: str  # bucket, or host
    path: str
    query: str = ""

    @property
    def address(self) -> str:
        """The URL as it is opened, credentials and all."""
        return f"{self.protocol}://{self.authority}{self.path}" + (f"?{self.query}" if self.query else "")

    def __str__(self) -> str:
        """The URL without password and signature; another query is told apart by a digest. Reads back as itself."""
        kept = "&".join(part for part in self.query.split("&") if part and not _SIGNATURE.fullmatch(part))
        if kept and not _HIDDEN.fullmatch(kept):
            kept = f"hidden-{hashlib.blake2b(kept.encode(), digest_size=4).hexdigest()}"
        host = self.authority.rpartition("@")[2]
        return f"{self.protocol}://{host}{self.path}" + (f"?{kept}" if kept else "")

    __repr__ = __str__

    @property
    def is_public(self) -> bool:
        """Whether the URL may be shown as it is."""
        return str(self) == self.address

    @property
    def _names(self) -> PurePosixPath:
        return PurePosixPath(unquote(self.path) if self.protocol in HTTP else self.path)

    @property
    def name(self) -> str:
        return self._names.name

    @property
    def stem(self) -> str:
        return self._names.stem

    @property
    def suffix(self) -> str:
        return self._names.suffix

    @property
    def parent(self) -> "Url":
        return Url(self.protocol, self.authority, str(PurePosixPath(self.path or "/").parent))

    def __truediv__(self, names: str) -> "Url":
        # From the root of the bucket on, so that no number of `..` leads out of it.
        below = quote(names) if self.protocol in HTTP else names
        path = posixpath.normpath(f"/{self.path.strip('/')}/{below}")
        return Url(self.protocol, self.authority, f"/{path.lstrip('/')}")

    def as_posix(self) -> str:
        return str(self)

    def absolute(self) -> "Url":
        return self


Place = Path | Url


def configured(key: str, text: str) -> Place:
    """`place` of a config's value. Raises `UserError` for credentials too: configs are written down and sent about."""
    found = place(text)
    if isinstance(found, Url) and not found.is_public:
        raise UserError(
            f"{key}={found}: a URL with a password or a query, which would be in the run's records. "
            "Put credentials into the environment or ~/.netrc, or copy the CSV here; its cells may have them."
        )
    return found


def place(text: str) -> Place:
    """A path, or a URL with one of `PROTOCOLS`. Raises `UserError` for other URLs."""
    found = _URL.fullmatch(text)
    if not found:
        return Path(text)
    protocol, rest = found[1].lower(), found[2]
    if protocol not in PROTOCOLS:
        known = ", ".join(f"{name}://" for name in PROTOCOLS)
        raise UserError(f"{found[1]}://…: not a URL that is read here. Use {known}, or a path without ://.")
    query = ""
    if protocol in HTTP:
        rest, _, query = quote(rest, safe="%/:=&?~+!$,;'@()*[]").partition("?")
    authority, slash, path = rest.partition("/")
    if not authority.rpartition("@")[2]:
        raise UserError(f"{protocol}:///{path}: names no host or bucket. Write it after the //.")
    return Url(protocol, authority, slash + path, query)


def join(root: Place, text: str) -> Place:
    """The file that `text` names: relative to `root`, an absolute path of this machine, or a URL."""
    if _URL.fullmatch(text) or text.startswith("/"):
        return place(text)
    return root / text


def below(place: Place, root: Place) -> str | None:
    """What `join` makes `place` of again, given `root`; None if it does not lie there."""
    if isinstance(place, Path):
        inside = isinstance(root, Path) and place.is_relative_to(root)
        return place.relative_to(root).as_posix() if inside and isinstance(root, Path) else None
    if isinstance(root, Path) or not place._names.is_relative_to(root._names):
        return None
    names = str(place._names.relative_to(root._names))
    return names if root / names == place else None


class State(NamedTuple):
    """What tells a file behind a URL from the one that was there before: bytes, and the store's mark of the content."""

    size: int
    token: str


_known: dict[Url, State] = {}


def look(url: Url) -> State:
    """The file as it is now; nothing of it is read. Raises `UserError` if there is none, or the store does not tell."""
    _known.pop(url, None)
    found: dict[str, Any] = _ask(url, lambda system: system.info(url.address))
    if found.get("type") == "directory":
        raise UserError(f"{url}: is a folder, a file is needed. Name a file in it.")
    if not isinstance(size := found.get("size"), int):
        raise UserError(f"{url}: the server does not say how long it is. Put it on another one.")
    token = next((str(found[name]).strip('"') for name in TOKENS if found.get(name)), "")
    return _known.setdefault(url, State(size, token))


def known(url: Url) -> State:
    """The file as it was when this process, or the one that it was forked from, looked last."""
    return _known.get(url) or look(url)


def known_all(urls: Sequence[Url]) -> dict[Url, State]:
    """`known` of many at once."""
    _prepare(urls)
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(urls, pool.map(known, urls), strict=True))


def forget() -> None:
    """Looks at all files and at the environment anew."""
    _known.clear()
    _file_system.cache_clear()


def _prepare(urls: Sequence[Url]) -> None:
    """Connects before many threads ask, or each would begin to."""
    for url in {url.protocol: url for url in urls}.values():
        _ask(url, lambda _: None)


def exists(url: Url) -> bool:
    """Whether there is such a file. Raises `UserError` if that cannot be found out."""
    try:
        look(url)
    except Missing:
        return False
    return True


def existing(urls: Sequence[Url]) -> Iterator[Url]:
    """Those that are there, many looked at at once."""
    _prepare(urls)
    with ThreadPoolExecutor(THREADS) as pool:
        for url, there in zip(urls, pool.map(exists, urls), strict=True):
            if there:
                yield url


class Remote:
    """A file behind a URL as it is now, to be read more than once; its first bytes are fetched once.

    Raises `UserError` if there is none.
    """

    def __init__(self, url: Url) -> None:
        self.url, self.size = url, look(url).size

    def __str__(self) -> str:
        return str(self.url)

    @cached_property
    def head(self) -> bytes:
        return self.read(0, FIRST)

    def read(self, start: int, count: int) -> bytes:
        """`count` bytes, or all there are, from `start` on in one request. Raises `UserError`."""
        end = min(start + count, self.size)

        def part(system: Any) -> bytes:
            found: bytes = system.cat_file(self.url.address, start=start, end=end)
            if len(found) < end - start:
                raise OSError(errno.EIO, "it breaks off")
            if len(found) > end - start:
                raise UserError(f"{self}: the server sends no part of a file (Range). Put it on another one.")
            return found

        return _ask(self.url, part) if start < end else b""

    def open(self, mode: str = "rb") -> BinaryIO:
        """A stream of its bytes."""
        assert mode == "rb"
        return io.BufferedReader(Stream(self))


class Stream(io.RawIOBase):
    """A remote file as a stream. Requests double in size for as long as they follow each other."""

    def __init__(self, file: Remote) -> None:
        self._file = file
        self._place = self._start = 0
        self._block, self._amount = b"", FIRST

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence])
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` unless the file ends: libsndfile takes less than it asked for as the end."""
        done = 0
        while done < len(buffer) and (part := self._part(len(buffer) - done)):
            buffer[done : done + len(part)] = part
            done += len(part)
        return done

    def _part(self, count: int) -> bytes:
        """Up to so many bytes, from one block; none at the end."""
        if self._place < len(self._file.head):
            start, block = 0, self._file.head
        else:
            start, block = self._fetched()
        first = self._place - start
        part = block[first : first + count]
        self._place += len(part)
        return part

    def _fetched(self) -> tuple[int, bytes]:
        """The block that holds the next byte, and where that begins; empty at the end."""
        end = self._start + len(self._block) if self._block else len(self._file.head)
        if not self._start <= self._place < end or not self._block:
            follows = end <= self._place <= end + self._amount
            self._amount = min(2 * self._amount, LARGEST) if follows else FIRST
            self._start, self._block = self._place, self._file.read(self._place, self._amount)
        return self._start, self._block


def open_read(place: Place) -> BinaryIO:
    """Opens a file for reading. Raises `OSError` for one of this machine, else `UserError`."""
    return place.open("rb") if isinstance(place, Path) else Remote(place).open()


class Missing(UserError):
    """There is no file behind this URL."""


def _ask(url: Url, question: Callable[[Any], T]) -> T:
    """What the store's file system answers. Raises `UserError`, in words of our own: those of others show URLs."""
    for pause in (*(PAUSES if url.protocol in HTTP else ()), None):
        try:
            return question(_file_system(url.protocol, os.getpid()))
        except UserError:
            raise
        except Exception as error:  # of fsspec, botocore, aiohttp, google.auth: they share no base
            problem = error
        if pause is None or not _may_pass(problem):
            break
        time.sleep(pause)
    raise _explained(url, problem)


@cache
def _file_system(protocol: str, process: int) -> Any:
    import fsspec

    # fsspec itself keeps one per thread, and drops those of the parent in a forked process, which closes them.
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        if protocol in HTTP:
            options |= _http_options()
        system = fsspec.filesystem(protocol, **options)
        if protocol == "s3":
            system.connect()  # before other threads see it, each of which would begin a session
        return system
    except ImportError:
        raise UserError(
            f'{protocol}://: a package for it is not installed. Run pip install "{PROTOCOLS[protocol]}".'
        ) from None


def _http_options() -> dict[str, Any]:
    """With bounds on how long a server may be silent, proxies and ~/.netrc; the user's own FSSPEC_HTTP_* come first."""
    import aiohttp
    import fsspec

    limits = aiohttp.ClientTimeout(REQUEST_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    # identity: a server that packs what it sends would count other bytes.
    client = {"timeout": limits, "trust_env": True, "headers": {"Accept-Encoding": "identity"}}
    given = {name: value for protocol in HTTP for name, value in fsspec.config.conf.get(protocol, {}).items()}
    return {"encoded": True, "client_kwargs": client | given.get("client_kwargs", {})}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error of botocore, aiohttp or gcsfs."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        # Not any `code`: aiohttp gives 400 to an answer of the server that breaks off.
        code = getattr(one, "code" if type(one).__name__ == "HttpError" else "status", None)
        if isinstance(response, dict):
            code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(code, int):
            return code
    return None


def _is_missing(error: BaseException) -> bool:
    # Of HTTP every error of fsspec's is a FileNotFoundError, and says why by its cause.
    found = _status(error)
    return found in (404, 410) if found else isinstance(error, FileNotFoundError) and error.__cause__ is None


def _is_denied(error: BaseException) -> bool:
    named = any(isinstance(one, PermissionError) or "Credential" in type(one).__name__ for one in _chain(error))
    return named or _status(error) in (401, 403)


def _may_pass(error: BaseException) -> bool:
    """Whether to try again can help."""
    status = _status(error)
    if _is_missing(error) or _is_denied(error) or isinstance(error, ValueError):
        return False
    return status is None or status in (408, 429) or status >= 500


def _explained(url: Url, error: BaseException) -> UserError:
    if _is_missing(error):
        return Missing(f"{url}: no such file. Check the path, or remove it from the list.")
    if _is_denied(error):
        return UserError(f"{url}: access is denied. Check the credentials ({CREDENTIALS[url.protocol]}) and the path.")
    return UserError(f"{url}: cannot be read ({_reason(error)}). Check the connection, and run again.")


def _reason(error: BaseException) -> str:
    if status := _status(error):
        phrase = HTTPStatus(status).phrase if status in {*HTTPStatus} else ""
        return f"the server answers {status} {phrase}".rstrip()
    known = [one for one in _chain(error) if isinstance(one, OSError) and one.strerror]
    if any(isinstance(one, TimeoutError) or "Timeout" in type(one).__name__ for one in _chain(error)):
        return "no answer in time"
    return str(known[-1].strerror) if known else type([*_chain(error)][-1]).__name__
