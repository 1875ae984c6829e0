"""Where a file is: a path of this machine, or a URL whose text never shows a password or a signature."""

import hashlib
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from stemwise.errors import UserError

# What a URL may begin with, and what to install for it.
PROTOCOLS = {"s3": "stemwise[s3]", "gs": "stemwise[gcs]", "https": "fsspec[http]", "http": "fsspec[http]"}
HTTP = ("https", "http")

_URL = re.compile(r"([A-Za-z][\w+.:-]*)://(.*)", re.DOTALL)
_HIDDEN = re.compile("hidden-[0-9a-f]{8}")
# What signs a URL for a while: the signature's own name, and the names of all that goes with it. Alone, without the
# signature, these may be what tells one file from another.
_SIGNED = {
    "x-amz-signature": r"X-Amz-[\w-]+",
    "x-goog-signature": r"X-Goog-[\w-]+",
    "signature": "AWSAccessKeyId|GoogleAccessId|Signature|Expires|Policy|Key-Pair-Id",  # S3, Google, CloudFront
    "sig": "sig|s[eprstv]|srt|spr|sip|sdd|skoid|sktid|sk[etsv]",  # Azure
}


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
        kept = "&".join(_unsigned(self.query.split("&")))
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


def _unsigned(parts: Sequence[str]) -> list[str]:
    """The parts of a query that are no signature, nor belong to one that is there."""
    names = {part.partition("=")[0].lower() for part in parts}
    signed = "|".join(pattern for name, pattern in _SIGNED.items() if name in names) or "(?!)"
    return [part for part in parts if part and not re.fullmatch(signed, part.partition("=")[0], re.IGNORECASE)]


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
    if protocol in HTTP and not re.fullmatch(r"(.*@)?([^:@]*|\[.*\])(:\d*)?", authority):
        raise UserError(f"{protocol}://…: neither a host with a port nor a password of plain characters (%2F for /).")
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
