"""Samples out of audio files: libsndfile where it can be trusted, FFmpeg (through PyAV) for the rest.

`source(path, stream)` says who decodes a file. A source knows `sample_rate` and `channels`, finds its
`length()` without decoding it all where the format allows that, and yields `blocks(start)`: tensors (C, n) in
float32 at the file's own rate. What a sample decodes to does not depend on where reading started. What is cut
off, damaged or not finite raises `UserError`.
"""

import stat

from stemwise.codecs import damage
from stemwise.codecs.ffmpeg import Ffmpeg
from stemwise.codecs.libsndfile import Libsndfile
from stemwise.codecs.remote import Aside, File
from stemwise.errors import UserError
from stemwise.files.places import Place, Url
from stemwise.files.streams import Remote


def source(place: Place, stream: int | None = None) -> Libsndfile | Ffmpeg | Aside:
    """Who decodes audio stream `stream` (from 0; None: the first) of a file.

    Raises `UserError` if the file is missing, cannot be opened, is a folder, a pipe or a device, holds no audio
    that can be read or no such stream, or if its header shows that it was cut off.
    """
    if isinstance(place, Url):
        return Aside.open(lambda: _source(Remote(place), stream))
    return _source(place, stream)


def _source(path: File, stream: int | None) -> Libsndfile | Ffmpeg:
    _check_file(path)
    found = Libsndfile.open(path)
    if found is None:
        return Ffmpeg.open(path, stream or 0)
    if stream:
        raise damage.no_stream(path, stream, 1)
    return found


def _check_file(path: File) -> None:
    if isinstance(path, Remote):
        return _check_size(path, path.size)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise UserError(f"{path}: no such file. Check the path, or remove it from the list.") from None
    except OSError as error:
        raise damage.unopened(path, error) from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: is a folder, an audio file is needed. Name a file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is a pipe or a device, a file is needed. Pipe the song in, and name it `-`.")
    _check_size(path, status.st_size)


def _check_size(path: File, size: int) -> None:
    if not size:
        raise UserError(f"{path}: empty, 0 bytes. Export it again, or remove it.")
