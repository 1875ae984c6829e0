"""Places of files: what a URL says and does not say, and streams from servers that behave, or do not."""

import base64
import gc
import io
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from servers import BUCKET
from stemwise.errors import UserError
from stemwise.files import places, stores, streams
from stemwise.files.places import Url, join, place
from stemwise.files.streams import Remote, Stream

CONTENT = random.Random(0).randbytes(3_000_000)


def some(web, path: str = "/songs/a.wav", content: bytes = CONTENT) -> Url:
    web.files[path] = content
    found = place(web.url + path)
    assert isinstance(found, Url)
    return found


# What a URL says


@pytest.mark.parametrize(
    ("root", "cell", "expected"),
    [
        ("s3://b/songs", "One/mix #1?.wav", "s3://b/songs/One/mix #1?.wav"),
        ("s3://b", "x.wav", "s3://b/x.wav"),
        ("s3://b/songs/", "../other/x.wav", "s3://b/other/x.wav"),
        ("s3://b/songs", "../../../x.wav", "s3://b/x.wav"),
        ("s3://b/songs", "GS://c/x.wav", "gs://c/x.wav"),
        ("s3://b/songs", "/here/x.wav", "/here/x.wav"),
        ("/here", "s3://b/x.wav", "s3://b/x.wav"),
        ("/here", "x.wav", "/here/x.wav"),
        ("https://h/songs", "One/mix #1?.wav", "https://h/songs/One/mix%20%231%3F.wav"),
        ("https://h/My%20songs", "100%25.wav", "https://h/My%20songs/100%2525.wav"),
        ("/here", "https://h/One%20/mix #1.wav", "https://h/One%20/mix%20%231.wav"),
    ],
)
def test_a_cell_names_a_file_below_the_root_or_anywhere(root, cell, expected):
    assert str(join(place(root), cell)) == expected
    assert place(expected) == join(place(root), cell)


@pytest.mark.parametrize("root", ["s3://b/songs", "https://h/My%20songs", "/songs"])
@pytest.mark.parametrize("name", ["a.wav", "One/mix #1?.wav", "100%25/é.wav"])
def test_what_lies_below_a_root_is_found_again(root, name):
    there = join(place(root), name)
    assert places.below(there, place(root)) == name
    assert (there.name, there.suffix, there.stem) == (Path(name).name, ".wav", Path(name).stem)
    assert there.parent / Path(name).name == there
    for other in ("s3://c/songs", "https://other/x", "/other"):
        assert places.below(there, place(other)) is None


@pytest.mark.parametrize(
    "text",
    [
        *("simplecache::s3://b/x", "local::x://y", "file:///etc/passwd", "local://x", "ftp://h/x", "data://x", "C://x"),
        *("s3://", "s3:///x", "https:///x", "https://user:word@/x"),
    ],
)
def test_other_urls_are_refused(text):
    with pytest.raises(UserError, match=r"Use s3://, gs://, https://, http://|no host or bucket") as caught:
        join(Path("/root"), text)
    assert "passwd" not in str(caught.value)
    assert "word" not in str(caught.value)


def test_paths_stay_paths():
    for text in ("a.wav", "/a/b.wav", "s3/b.wav", "a:b", "song #1?.wav", ""):
        assert place(text) == Path(text)


# What it does not say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@h:81/a.wav", "https://h:81/a.wav"),
        ("https://h/a.wav?X-Amz-Signature=secret&X-Amz-Date=5", "https://h/a.wav"),
        ("https://h/a.wav?sv=2&sig=secret", "https://h/a.wav"),
        ("https://h/a.wav?GoogleAccessId=x&Expires=1&Signature=secret", "https://h/a.wav"),
    ],
)
def test_credentials_are_not_shown(text, shown):
    found = place(text)
    assert str(found) == repr(found) == f"{found}" == shown
    assert found.address == text
    assert not found.is_public
    assert found.name == "a.wav"


def test_other_queries_are_told_apart_and_not_shown():
    one, two = (place(f"https://h/get?file={name}&token=secret") for name in "ab")
    assert str(one) != str(two)
    assert "secret" not in str(one) + str(two)
    assert str(place(str(one))) == str(one)
    assert place("https://h/get").is_public
    # Parts of a signature, where there is none.
    for query in ("st={}", "Expires={}", "sp={}&Policy=1"):
        assert len({str(place(f"https://h/get?{query.format(name)}")) for name in "ab"}) == 2


@pytest.mark.parametrize("text", ["https://me:pa/ss@h/a.wav", "http://me:p?ss@h/a.wav", "https://h:port/a.wav"])
def test_what_may_be_half_a_password_is_refused_and_not_shown(text):
    with pytest.raises(UserError, match=r"https?://…: .*%2F") as caught:
        place(text)
    assert "me" not in str(caught.value)
    assert place("s3://b/a?b").is_public  # a key like others


# Streams


@pytest.mark.parametrize("size", [0, 1, streams.FIRST, streams.FIRST + 1, 3_000_000])
def test_a_stream_is_the_file(size, web):
    url = some(web, content=CONTENT[:size])
    with streams.open_read(url) as file:
        assert file.read() == CONTENT[:size]
    drawn, file = random.Random(size), io.BufferedReader(Stream(Remote(url)))
    for _ in range(50):
        where, count = drawn.randrange(size + 10), drawn.choice([0, 1, 100, 70_000, 500_000])
        assert file.seek(where - size, io.SEEK_END) == where if where < size else file.seek(where) == where
        assert file.read(count) == CONTENT[:size][where : where + count]
        assert file.tell() == max(where, min(where + count, size))


def test_requests_are_few_and_large(web):
    url = some(web, content=bytes(40_000_000))
    stream = Stream(Remote(url))
    while stream.read(8192):
        pass
    assert [method for method, *_ in web.requests] == ["HEAD", *["GET"] * 9]
    web.requests.clear()
    file = Remote(url)
    for _ in range(3):
        Stream(file).read(100)
    assert [where for *_, where in web.requests] == [None, f"bytes=0-{streams.FIRST - 1}"]


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_a_look_reads_nothing_and_sees_what_is_new(protocol, s3_web):
    url = some(s3_web) if protocol == "http" else place("s3://songs/a.wav")
    some(s3_web)
    first = stores.look(url)
    assert stores.known(url) == stores.look(url) == first
    assert first.token
    some(s3_web, content=bytes(len(CONTENT)))
    assert stores.known(url) == first
    assert stores.look(url).size == first.size
    assert stores.known(url).token != first.token
    assert {method for method, *_ in s3_web.requests} == {"HEAD"}


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_a_forked_process_leaves_its_parents_connections_alone(protocol, s3_web):
    """fsspec closes them there, in a loop that has the parent's epoll; the parent then waits for ever."""
    url = some(s3_web) if protocol == "http" else place("s3://songs/a.wav")
    first = stores.look(some(s3_web)) and Remote(url).head
    child = os.fork()
    if not child:
        signal.alarm(10)  # a child that hangs does not stay
        try:
            code = int(Remote(url).head != first)
            gc.collect()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    begun = time.monotonic()
    assert Remote(url).head == Remote(url).head == first
    assert time.monotonic() - begun < 5


# Servers that do not behave


@pytest.mark.parametrize(
    ("protocol", "fault"),
    [
        *(("http", fault) for fault in (500, 503, 429, "dies", "short")),
        *(("s3", fault) for fault in (500, "dies", "short")),
    ],
)
def test_what_fails_now_and_then_is_tried_again(protocol, fault, s3_web):
    url = some(s3_web)
    s3_web.faults = [None, fault, None, fault if protocol == "http" else None]
    with streams.open_read(url if protocol == "http" else place("s3://songs/a.wav")) as file:
        assert file.read() == CONTENT
    assert s3_web.faults == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (500, "cannot be read .the server answers 500 Internal Server Error"),
        (404, "no such file"),
        (403, "access is denied. Check the credentials"),
        (401, "access is denied. Check the credentials"),
        ("dies", "cannot be read .*Check the connection"),
        ("short", "cannot be read .*Check the connection"),
    ],
)
@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_what_fails_for_good_is_one_message(fault, message, protocol, s3_web, network):
    network.setattr(sys.modules.get("s3fs.core") or pytest.importorskip("s3fs.core"), "S3_RETRYABLE_ERRORS", ())
    url = some(s3_web) if protocol == "http" else place("s3://songs/a.wav")
    some(s3_web)
    file = Remote(url)
    s3_web.broken = fault
    asked = [lambda: file.head] if isinstance(fault, str) else [lambda: file.head, lambda: stores.look(url)]
    for ask in asked:
        with pytest.raises(UserError, match=f"^{url}: {message}") as caught:
            ask()
        assert "\n" not in str(caught.value)
        assert caught.value.__context__ is None  # whose traceback would show more


def test_a_server_without_ranges_is_named(web):
    url = some(web)
    web.broken = "whole"
    with pytest.raises(UserError, match=r"sends no part of a file \(Range\)"), streams.open_read(url) as file:
        file.read()


def test_a_server_that_is_silent_does_not_hang_us(web, network):
    network.setattr(stores, "READ_SECONDS", 0.2)
    file = Remote(some(web))
    web.broken = "hangs"
    begun = time.monotonic()
    with pytest.raises(UserError, match="no answer in time"):
        _ = file.head
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_nobody_listens(protocol, network):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
    network.setenv("AWS_ENDPOINT_URL", f"http://{host}")
    network.setenv("AWS_MAX_ATTEMPTS", "1")
    network.setenv("AWS_ACCESS_KEY_ID", "x")
    network.setenv("AWS_SECRET_ACCESS_KEY", "y")
    with pytest.raises(UserError, match=r"cannot be read .*onnect.*Check the connection"):
        stores.look(place(f"http://{host}/a.wav" if protocol == "http" else "s3://songs/a.wav"))


def test_buckets_keys_and_folders(s3):
    there = place(s3.put("folder/a.wav", b"x"))
    assert stores.exists(there)
    assert list(stores.existing([there.parent / "b.wav", there])) == [there]
    for text in ("s3://songs/none.wav", "s3://no-such-bucket/a.wav"):
        assert not stores.exists(place(text))
    for text in ("s3://songs/folder", f"s3://{BUCKET}"):
        with pytest.raises(UserError, match="is a folder"):
            stores.look(place(text))


def test_without_credentials_the_message_names_them(s3, network):
    url = place(s3.put("a.wav", b"x"))
    network.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UserError, match=r"access is denied.*AWS_ACCESS_KEY_ID"):
        stores.look(url)


def test_a_password_in_a_url_is_used_and_not_shown(web):
    some(web)
    web.password = base64.b64encode(b"me:secret").decode()
    right, wrong = (place(web.url.replace("//", f"//me:{word}@") + "/songs/a.wav") for word in ("secret", "wr0ng"))
    assert stores.look(right).size == len(CONTENT)
    with pytest.raises(UserError, match=f"^{web.url}/songs/a.wav: access is denied") as caught:
        stores.look(wrong)
    assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize(("protocol", "module", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_a_package_that_is_missing_is_named(protocol, module, extra, network):
    network.setitem(sys.modules, module, None)
    network.setattr(sys.modules["fsspec.registry"], "_registry", {})
    network.setattr(sys.modules["fsspec.registry"], "registry", {})
    with pytest.raises(UserError, match=rf'pip install "stemwise\[{extra}\]"'):
        stores.look(place(f"{protocol}://b/a.wav"))
