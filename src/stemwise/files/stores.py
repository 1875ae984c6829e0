"""What is behind a URL, asked through fsspec: whether there is such a file, how long it is, and a part of it.

Credentials and endpoints come from the environment (AWS_*, GOOGLE_APPLICATION_CREDENTIALS, FSSPEC_*, ~/.netrc), and no
message shows them.

A process has one file system, that is one pool of connections, per protocol. A forked one neither uses nor frees its
parent's: whatever it does to them goes through an epoll that both share, and leaves the parent waiting for answers.
"""

import asyncio
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

from stemwise.errors import UserError
from stemwise.files.places import HTTP, PROTOCOLS, Url

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS; FSSPEC_GS_TOKEN=anon for a public bucket",
    "https": "in ~/.netrc or the URL",
    "http": "in ~/.netrc or the URL",
}
TOKENS = ("ETag", "etag", "generation", "Content-MD5", "Digest", "Last-Modified", "LastModified")  # fsspec's names

THREADS = 16  # that wait for answers at the same time
CONNECT_SECONDS, READ_SECONDS, REQUEST_SECONDS = 10.0, 30.0, 300.0
PAUSES = (0.5, 2.0)  # seconds before the second and the third try over HTTP; the others retry by themselves

T = TypeVar("T")


class State(NamedTuple):
    """What tells a file behind a URL from the one that was there before: bytes, and the store's mark of the content."""

    size: int
    token: str


_known: dict[Url, State] = {}
_interrupts = 0  # nobody waits for threads that began before the last one
_begun = threading.local()  # in a thread of ours: the interrupts before it
_connecting = threading.Lock()


def _after_fork() -> None:
    global _connecting
    _connecting = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)


def look(url: Url) -> State:
    """The file as it is now; nothing of it is read. Raises `UserError` if there is none, or the store does not tell."""
    _known.pop(url, None)
    found: dict[str, Any] = ask(url, lambda system: system.info(url.address))
    if found.get("type") == "directory":
        raise UserError(f"{url}: is a folder, a file is needed. Name a file in it.")
    if not isinstance(size := found.get("size"), int):
        raise UserError(f"{url}: the server does not say how long it is. Put it on another one.")
    token = next((str(found[name]).strip('"') for name in TOKENS if found.get(name)), "")
    return _known.setdefault(url, State(size, token))


def known(url: Url) -> State:
    """The file as it was when this process, or the one that it was forked from, looked last."""
    return _known.get(url) or look(url)


def take(url: Url, state: State) -> None:
    """Has `known` answer what another process saw."""
    _known[url] = state


def known_all(urls: Sequence[Url]) -> dict[Url, State]:
    """`known` of many at once."""
    with threads() as pool:
        return dict(zip(urls, pool.map(known, urls), strict=True))


@contextmanager
def threads(count: int = THREADS) -> Iterator[ThreadPoolExecutor]:
    """Threads that ask. Ctrl-C waits for no answer; Python itself would, for each thread, at the program's end."""
    pool = ThreadPoolExecutor(count, initializer=_begin, initargs=(_interrupts_before(),))
    try:
        yield pool
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        _abandon()
        raise
    finally:
        pool.shutdown(wait=False)


def _begin(interrupts: int) -> None:
    _begun.interrupts = interrupts


def _interrupts_before() -> int:
    """Before this thread, or the one that began it."""
    return getattr(_begun, "interrupts", _interrupts)


def _abandon() -> None:
    global _interrupts
    _interrupts += 1
    if "fsspec.asyn" in sys.modules and (loop := sys.modules["fsspec.asyn"].loop[0]) is not None:
        loop.call_soon_threadsafe(_cancel, loop)


def _cancel(loop: asyncio.AbstractEventLoop, again: int = 10) -> None:
    """All that is asked, and for a second what threads ask that were about to."""
    for task in asyncio.all_tasks(loop):
        coroutine = task.get_coro()
        # One that has not begun would never tell the thread that waits for it.
        if inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) == inspect.CORO_SUSPENDED:
            task.cancel()
    if again:
        loop.call_later(0.1, _cancel, loop, again - 1)


def forget() -> None:
    """Looks at all files and at the environment anew."""
    _known.clear()
    _file_system.cache_clear()


def exists(url: Url) -> bool:
    """Whether there is such a file. Raises `UserError` if that cannot be found out."""
    try:
        look(url)
    except Missing:
        return False
    return True


def existing(urls: Sequence[Url]) -> Iterator[Url]:
    """Those that are there, many looked at at once."""
    with threads() as pool:
        for url, there in zip(urls, pool.map(exists, urls), strict=True):
            if there:
                yield url


class Missing(UserError):
    """There is no file behind this URL."""


def ask(url: Url, question: Callable[[Any], T]) -> T:
    """What the store's file system answers. Raises `UserError`, in words of our own: those of others show URLs."""
    for pause in (*(PAUSES if url.protocol in HTTP else ()), None):
        try:
            with _connecting:  # many threads ask
                system = _file_system(url.protocol, os.getpid())
            if _interrupts_before() < _interrupts:
                raise UserError(f"{url}: interrupted. Run again.")
            return question(system)
        except (UserError, AttributeError, AssertionError):  # the latter two are faults of ours
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
