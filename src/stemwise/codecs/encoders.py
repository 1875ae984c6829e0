"""Those who put samples into files: FFmpeg (through PyAV), libsndfile where FFmpeg has no good encoder (Vorbis)."""

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Protocol, cast

import av
import numpy as np
import soundfile
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.packet import Packet

from stemwise.codecs import formats
from stemwise.codecs.formats import Format

_LAME_DELAY = 576 + 529  # samples, of LAME's encoder and of any decoder


class Encoder(Protocol):
    """Takes blocks (C, n) that follow each other, the first sample of each at `position`; raises `OSError`."""

    def write(self, block: np.ndarray, position: int) -> None: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


def opened(path: Path, rate: int, channels: int, format: Format, tags: Mapping[str, str]) -> Encoder:
    """The encoder of a file that is there and empty. `tags` are those of `formats.written`."""
    encoder = _Vorbis if format.codec == "ogg" else _Ffmpeg
    return encoder(path, rate, channels, format, tags)


class _Ffmpeg:
    """All codecs but Vorbis."""

    def __init__(self, path: Path, rate: int, channels: int, format: Format, tags: Mapping[str, str]) -> None:
        codec = formats.known(format.codec)
        name, self._samples = codec.encoders[format.bit_depth or next(iter(codec.encoders))]
        # Bit-exact: no versions of FFmpeg in the file, no random serial number.
        options = {"fflags": "+bitexact", **codec.options}
        if codec.muxer == "ipod":
            options["movie_timescale"] = str(rate)  # the edit list, which ends the file, is else in milliseconds
        self._rate = rate
        self._layout = f"{channels}c"
        self._packets = self._end = 0
        self._container = av.open(f"file:{path}", "w", format=codec.muxer, container_options=options)
        self._container.metadata.update(tags)
        self._stream = cast(
            AudioStream,
            self._container.add_stream(name, rate=rate, layout=self._layout, format=self._samples),
        )
        context = self._stream.codec_context
        context.flags |= Flags.bitexact
        if codec.bitrate:
            context.bit_rate = format.bitrate_at(rate, channels)
        self._container.start_encoding()

    def write(self, block: np.ndarray, position: int) -> None:
        planar = self._samples.endswith("p")
        samples = np.ascontiguousarray(block) if planar else block.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format=self._samples, layout=self._layout)
        frame.sample_rate = self._rate
        frame.pts = position
        frame.time_base = Fraction(1, self._rate)
        self._mux(self._stream.encode(frame))
        self._end = position + frame.samples

    def close(self) -> None:
        packets = self._stream.encode(None)
        if self._container.format.name == "mp3":
            self._note_padding(packets)
        self._mux(packets)
        self._container.close()

    def _mux(self, packets: list[Packet]) -> None:
        self._packets += len(packets)
        self._container.mux(packets)

    def _note_padding(self, packets: list[Packet]) -> None:
        """Makes the MP3's header say where the sound ends.

        It takes the padding from the last packet, where FFmpeg has at most one packet's length. Of song lengths
        4 % need up to 46 samples more, by which they would be too long.
        """
        frame = self._stream.codec_context.frame_size
        padding = (self._packets + len(packets)) * frame - _LAME_DELAY - self._end
        skip = packets[-1].get_sidedata("skip_samples")
        skip.update(struct.pack("<IIBB", 0, padding, 0, 0))
        packets[-1].set_sidedata(skip)

    def discard(self) -> None:
        with suppress(av.FFmpegError):  # a trailer for half a file
            self._container.close()


class _Vorbis:
    """Ogg Vorbis by libsndfile: PyAV's FFmpeg is built without libvorbis, and its own encoder is a poor one."""

    # By libsndfile's names. It has no others.
    _TAGS: ClassVar = {"track": "tracknumber"} | {
        name: name for name in ("title", "artist", "album", "genre", "date", "comment", "copyright")
    }
    # libsndfile puts a block on the stack, and crashes with large ones. Always the same size: Vorbis decides where
    # sounds begin by what it has got so far.
    _BLOCK = 4096

    def __init__(self, path: Path, rate: int, channels: int, format: Format, tags: Mapping[str, str]) -> None:
        level = 1 - formats.vorbis_quality(format.bitrate_at(rate, channels), rate, channels)
        self._path = path
        # As bytes: soundfile refuses names that are not UTF-8.
        with self._reasoned():
            self._file = soundfile.SoundFile(
                os.fsencode(path), "w", rate, channels, "VORBIS", format="OGG", compression_level=level
            )
        for name in self._TAGS.keys() & tags.keys():
            setattr(self._file, self._TAGS[name], tags[name])
        self._rest = np.empty((channels, 0), np.float32)
        self._end = 0

    def write(self, block: np.ndarray, position: int) -> None:
        held = np.concatenate([self._rest, block], 1)
        *whole, self._rest = (held[:, start : start + self._BLOCK] for start in range(0, held.shape[1], self._BLOCK))
        with self._reasoned():
            for part in whole:
                self._file.write(np.ascontiguousarray(part.T))
        self._end = position + block.shape[1]

    def close(self) -> None:
        with self._reasoned():
            self._file.write(np.ascontiguousarray(self._rest.T))
            self._file.close()
        if _ogg_end(self._path) != self._end:  # libsndfile says nothing of what it cannot write as it closes
            raise self._reason()

    def discard(self) -> None:
        with suppress(soundfile.LibsndfileError):  # the end of what did not fit; the file goes anyway
            self._file.close()

    @contextmanager
    def _reasoned(self) -> Iterator[None]:
        try:
            yield
        except (soundfile.LibsndfileError, AssertionError):  # soundfile asserts that all samples were taken
            raise self._reason() from None

    def _reason(self) -> OSError:
        """Why the file does not grow: libsndfile loses the reason, so another byte is tried."""
        try:
            # Not anew: the file may have been given up meanwhile.
            with self._path.open("r+b", buffering=0) as file:
                file.seek(0, os.SEEK_END)
                file.write(b"\0")
        except OSError as error:
            return error
        return OSError("not all of it was written")


def _ogg_end(path: Path) -> int | None:
    """The samples that an Ogg file's last page counts (RFC 3533, 6); None if that is not whole, or not the last."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        page = file.read()
    page = page[page.rfind(b"OggS\0") :]
    if len(page) < 27 or not page[5] & 4 or len(page) != 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return None
    return int(struct.unpack_from("<q", page, 6)[0])
