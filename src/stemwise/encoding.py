"""Samples into audio files: FFmpeg (through PyAV) encodes, libsndfile where FFmpeg has no good encoder (Vorbis).

A `Writer` takes a file block by block, in memory that does not grow. What it writes stays hidden until
`publish`, so that several files (the stems of a song) appear together, complete, or not at all:

    with ExitStack() as stack:
        writers = [stack.enter_context(encoding.Writer(path, 44100, 2, format)) for path in paths]
        for stems in blocks:
            for writer, stem in zip(writers, stems, strict=True):
                writer.write(stem)
        for writer in writers:
            writer.end()
        for writer in writers:
            writer.finish()
        for writer in writers:
            writer.publish()

Each writer works in a thread of its own: `write` and `end` return at once, so the files above are coded side by side.
What goes wrong there is raised by the next call, at the latest by `finish`.

Blocks are float32 tensors (C, n), full scale at ±1. The file has as many samples as were written, and does not
depend on how they were cut into blocks (Ogg Vorbis: but for its random serial number). An M4A says how many these
are, in its edit list; `audio.read` gives AAC's last packet whole, and so up to 1023 samples more. Whatever is wrong
with the target or the settings raises `UserError`.
"""

import errno
import io
import math
import os
import re
import secrets
import struct
import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, ClassVar, Protocol, cast

import av
import numpy as np
import soundfile
import torch
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.packet import Packet
from torch import Tensor

from stemwise.errors import UserError


@dataclass(frozen=True)
class _Codec:
    """What a codec can do."""

    muxer: str
    encoders: Mapping[str | None, tuple[str, str]]  # bit depth -> FFmpeg's encoder, its sample format
    rates: Sequence[int]  # ascending
    channels: int  # at most
    bitrate: int = 0  # bit/s per channel, if none is given; 0: lossless
    options: Mapping[str, str] = field(default_factory=dict)  # of the muxer

    @property
    def depths(self) -> list[str]:
        return [depth for depth in self.encoders if depth]


def _lossy(encoder: str, samples: str) -> Mapping[str | None, tuple[str, str]]:
    return {None: (encoder, samples)}


# MPEG-1, MPEG-2 and MPEG-2.5, layer III: bit rates in kbit/s (ISO 11172-3, 2.4.2.3; ISO 13818-3, 2.4.2.3).
_MP3_BITRATES = {
    32000: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    16000: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    8000: (8, 16, 24, 32, 40, 48, 56, 64),
}
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_LAME_DELAY = 576 + 529  # samples, of LAME's encoder and of any decoder
_AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)

# The bit rates are higher than those for whole songs: nothing masks the coding noise of a stem heard alone.
_CODECS = {
    "wav": _Codec(
        "wav",
        {"16": ("pcm_s16le", "s16"), "24": ("pcm_s24le", "s32"), "float": ("pcm_f32le", "flt")},
        range(1, 1 << 27),  # FFmpeg's header has the bytes per second in 32 bits, of 8 channels of 4 bytes
        8,
        options={"rf64": "auto"},  # past 4 GiB
    ),
    "flac": _Codec("flac", {"16": ("flac", "s16"), "24": ("flac", "s32")}, range(1, 1 << 20), 8),
    "mp3": _Codec("mp3", _lossy("libmp3lame", "fltp"), _MP3_RATES, 2, 128_000),
    # Above 50 kHz Vorbis does not know what bit rate a quality has.
    "ogg": _Codec("ogg", _lossy("libvorbis", "flt"), range(8000, 48001), 2, 128_000),
    "m4a": _Codec("ipod", _lossy("aac", "fltp"), _AAC_RATES, 2, 128_000),
    "opus": _Codec("ogg", _lossy("libopus", "flt"), (8000, 12000, 16000, 24000, 48000), 2, 96_000),
}

CODECS = tuple(_CODECS)
OVERS = ("clamp", "keep")

_PIECE = 1 << 16  # samples that are converted at a time: what a processor's cache holds

# The tags that are written, by FFmpeg's names. Others describe the song's file, its coding or its loudness
# (major_brand, encoder, replaygain_track_gain), and would be wrong on a stem.
TAGS = (
    "title",
    "artist",
    "album",
    "album_artist",
    "composer",
    "genre",
    "date",
    "track",
    "disc",
    "comment",
    "copyright",
)


def bitrate(text: str) -> int:
    """Bit/s of `128k`, `128000` and the like; raises `UserError` for anything else."""
    found = re.fullmatch(r"([0-9]{1,7})([kK]?)", text.strip())
    if not found:
        raise UserError(f"bitrate {text!r} is no bit rate. Write it like 128k.")
    return int(found[1]) * (1000 if found[2] else 1)


def sample_rate(codec: str, wanted: int) -> int:
    """The rate that a file of `codec` gets for audio at `wanted` Hz: the next one up that it has, else its highest."""
    rates = _known(codec).rates
    return rates[min(bisect_left(rates, wanted), len(rates) - 1)]


@dataclass(frozen=True)
class Format:
    """How a file is coded: one of `CODECS`, for wav and flac a bit depth, for the others a bit rate.

    `bit_depth` is `16` (as is None) or `24`, or in wav `float` (32 bits). `bitrate` is in bit/s; None is 256k for
    mp3, ogg and m4a in stereo, 192k for opus, half of that in mono, and less where the sample rate does not allow
    it. In ogg it is what Vorbis calls nominal: a quality at which music has about that rate.

    Raises `UserError` for what no file of that codec can have.
    """

    codec: str = "wav"
    bit_depth: str | None = None
    bitrate: int | None = None

    def __post_init__(self) -> None:
        codec = _known(self.codec)
        if self.bit_depth not in (None, *codec.depths):
            choice = f"Choose from {', '.join(codec.depths)}" if codec.depths else "Leave it out"
            raise UserError(f"{self.codec} has no bit depth {self.bit_depth}. {choice}.")
        if self.bitrate is not None and not codec.bitrate:
            lossy = ", ".join(name for name in CODECS if _CODECS[name].bitrate)
            raise UserError(f"{self.codec} is lossless and has no bitrate. Leave it out, or choose one of {lossy}.")
        if self.bitrate is not None and self.bitrate not in (bitrates := _all_bitrates(self.codec)):
            raise UserError(f"{self.codec} has no bitrate of {self.bitrate / 1000:g}k. {_choices(bitrates, 1000, 'k')}")

    def check(self, sample_rate: int, channels: int) -> None:
        """Raises `UserError` if no file of this format can have that rate, those channels, and the bit rate then."""
        codec = _CODECS[self.codec]
        if not 1 <= channels <= codec.channels:
            raise UserError(
                f"{self.codec} takes 1 to {codec.channels} channels here, not {channels}. Choose another codec."
            )
        if sample_rate not in codec.rates:
            raise UserError(f"{self.codec} has no sample rate of {sample_rate} Hz. {_choices(codec.rates, 1)}")
        if self.bitrate is None:
            return
        bitrates = _bitrates(self.codec, sample_rate, channels)
        if self.bitrate not in bitrates:
            kind = "mono" if channels == 1 else "stereo"
            raise UserError(
                f"{self.codec} at {sample_rate} Hz in {kind} has no bitrate of {self.bitrate / 1000:g}k. "
                f"{_choices(bitrates, 1000, 'k')}"
            )


class Writer:
    """A file that is being written: `path` in `format`, at `sample_rate` Hz with `channels` channels.

    The samples go to a hidden file beside `path`, whose folders are made. `publish` gives it its name; what stood
    there before is replaced in one step. A writer that is left, as a context, without `publish` leaves nothing.

    `overs` is one of `OVERS` and says what becomes of samples past full scale. With `clamp` they are clamped to it,
    and `clipped` counts them. With `keep` the lossy codecs get them as they are; 16 and 24 bits, where a sample is
    rounded to the nearest step of 2**(1 - bits), have no room for them, and still clamp and count. Float WAV keeps
    them with either. `frames` counts what was written, per channel.

    `tags` are those of the song, by FFmpeg's names, as `audio.tags` gives them. Of `TAGS`, the format's own are
    written: WAV has no album_artist, composer and disc, and neither has Ogg Vorbis as libsndfile writes it.

    Every method raises `UserError` where the target cannot be written, the disk is full, or samples are NaN or
    infinite: at once or, `finish` at the latest, for a block that was written before.
    """

    def __init__(
        self,
        path: Path,
        sample_rate: int,
        channels: int,
        format: Format,
        tags: Mapping[str, str] | None = None,
        *,
        overs: str = "clamp",
    ) -> None:
        if overs not in OVERS:
            raise ValueError(f"expected overs to be one of {', '.join(OVERS)}, got {overs!r}")
        format.check(sample_rate, channels)
        self.path = path
        self.sample_rate = sample_rate
        self.channels = channels
        self.frames = 0
        self.clipped = 0  # final after `finish`
        self._ending = False
        self._bits = _bits(format)
        self._clamps = self._bits is not None or (overs == "clamp" and format.bit_depth != "float")
        with self._reported():
            _check_target(path)
        self._part = _Part(path.with_name(f".{secrets.token_hex(6)}.part"))
        self._worker = _Worker()
        try:
            with self._reported():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._part.open()
                settings = (self._part.path, sample_rate, channels, format, _clean(tags or {}))
                self._encoder = self._worker.do(_encoder, *settings)
        except BaseException:
            self._worker.end()
            self._part.discard()
            raise

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write(self, block: Tensor) -> None:
        """Appends a block (C, n), of any length, which must not be changed before `finish`.

        Waits until no more than one block before it is still being written.
        """
        if block.dim() != 2 or len(block) != self.channels:
            raise ValueError(f"expected a block ({self.channels}, n), got {tuple(block.shape)}")
        if not block.shape[1]:
            return
        samples = block.detach().to("cpu", torch.float32).numpy()
        with self._reported():
            self._worker.later(self._append, samples, self.frames)
        self.frames += block.shape[1]

    def wait(self) -> None:
        """Waits until all blocks are written."""
        with self._reported():
            self._worker.settle()

    def end(self) -> None:
        """Begins to end the file; `finish` waits for it."""
        if not self.frames:
            raise UserError(
                f"{self.path}: not written, there are 0 samples to write. Check the offset and the duration."
            )
        if not self._ending:
            self._ending = True
            with self._reported():
                self._worker.later(self._close)

    def finish(self) -> None:
        """Ends the file and waits until it is on the disk, still under its hidden name."""
        self.end()
        self.wait()
        self._worker.end()

    def publish(self) -> None:
        """Gives the file its name; finishes it first, unless that was done."""
        self.finish()  # which says again what went wrong, if anything did
        with self._reported():
            os.replace(self._part.path, self.path)

    def discard(self) -> None:
        """Removes what was written; does nothing after `publish`."""
        ended = self._part.closed
        self._part.discard()
        self._worker.end(None if ended else self._encoder.discard)

    def _append(self, samples: np.ndarray, position: int) -> None:
        # With NumPy: torch would start threads for it, for which those of the networks and of other stems wait.
        for start in range(0, samples.shape[1], _PIECE):
            part = samples[:, start : start + _PIECE]
            self._encoder.write(self._coded(part, position + start), position + start)

    def _coded(self, samples: np.ndarray, position: int) -> np.ndarray:
        """The samples (C, n) as the encoder takes them."""
        low, high = float(samples.min()), float(samples.max())  # NaN if there is one anywhere
        if not math.isfinite(high - low):
            raise UserError(
                f"{self.path}: not written, NaN or infinite samples after {position / self.sample_rate:.2f} s. "
                "Check the model, or compute in single precision."
            )
        if self._clamps and (low < -1 or high > 1):
            self.clipped += int(np.count_nonzero(np.abs(samples) > 1))
            samples = samples.clip(-1, 1)
        return _steps(samples, self._bits) if self._bits else samples

    def _close(self) -> None:
        self._encoder.close()
        self._part.close()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}). Choose another folder, or make room."
            ) from None


class _Part:
    """The hidden file, which the libraries open and write by themselves: of a Python file they lose the errors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closed = False
        self._file: BinaryIO | None = None

    def open(self) -> None:
        self._file = self.path.open("xb")

    def close(self) -> None:
        """Waits until the file is on the disk."""
        if self._file:
            os.fsync(self._file.fileno())
            self._file.close()
        self.closed = True

    def discard(self) -> None:
        if self._file:
            self._file.close()
            self.path.unlink(missing_ok=True)


_Call = tuple[Callable[[], Any], "SimpleQueue[tuple[Any, BaseException | None]]"]


class _Worker:
    """A thread that calls the libraries, one call after the other.

    Handlers of signals run in the main thread only. There PyAV and soundfile would now and then drop what they raise
    (a KeyboardInterrupt): both run a little Python inside of C. `SimpleQueue` is all C, and lets a handler raise
    while it waits; `concurrent.futures` is not, and can then be left locked.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._answers: deque[SimpleQueue[tuple[Any, BaseException | None]]] = deque()
        self._error: BaseException | None = None  # the first; what comes after it would be written with a gap
        self._thread = threading.Thread(target=_serve, args=(self._calls,), daemon=True)
        self._thread.start()

    def do(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """What `operation` returns, after all that was to be done `later`."""
        self.settle()
        self._put(operation, *arguments)
        return self._answer()

    def later(self, operation: Callable[..., Any], *arguments: Any) -> None:
        """Has `operation` called when the one before, for which this may wait, is done; raises what any before did."""
        while len(self._answers) > 1:
            self._answer()
        if self._error:
            raise self._error
        self._put(operation, *arguments)

    def settle(self) -> None:
        while self._answers:
            self._answer()
        if self._error:
            raise self._error

    def _put(self, operation: Callable[..., Any], *arguments: Any) -> None:
        # A queue for each call: an answer that nobody waited for is not taken for the next one's.
        answer: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._calls.put((partial(operation, *arguments), answer))
        self._answers.append(answer)

    def _answer(self) -> Any:
        result, error = self._answers.popleft().get()
        if error:
            self._error = self._error or error
            raise error
        return result

    def end(self, last: Callable[[], Any] | None = None) -> None:
        """Lets the thread finish what it does, then `last`; does nothing once it has ended."""
        if last:
            self._calls.put((last, SimpleQueue()))
        self._calls.put(None)
        self._thread.join()


def _serve(calls: "SimpleQueue[_Call | None]") -> None:
    while call := calls.get():
        operation, answer = call
        try:
            answer.put((operation(), None))
        except BaseException as error:
            answer.put((None, error))
        del call, operation  # with the block that they hold


class _Encoder(Protocol):
    def write(self, block: np.ndarray, position: int) -> None: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


class _Ffmpeg:
    def __init__(self, path: Path, rate: int, channels: int, format: Format, tags: Mapping[str, str]) -> None:
        codec = _CODECS[format.codec]
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
            context.bit_rate = _bitrate(format, rate, channels)
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
        level = 1 - _vorbis_quality(_bitrate(format, rate, channels), rate, channels)
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


def _encoder(path: Path, rate: int, channels: int, format: Format, tags: Mapping[str, str]) -> _Encoder:
    encoder = _Vorbis if format.codec == "ogg" else _Ffmpeg
    return encoder(path, rate, channels, format, tags)


def _known(codec: str) -> _Codec:
    if codec not in _CODECS:
        raise UserError(f"codec {codec!r} cannot be written. Choose one of {', '.join(CODECS)}.")
    return _CODECS[codec]


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():  # /dev/null would be replaced
        raise OSError("it is a device or a pipe")


def _clean(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that are written, in a fixed order; FFmpeg's strings end at a NUL, and are UTF-8."""
    cleaned = {name: tags.get(name, "").replace("\0", "").encode("utf-8", "ignore").decode() for name in TAGS}
    return {name: value for name, value in cleaned.items() if value}


def _bits(format: Format) -> int | None:
    """None where the encoder takes floats."""
    if _CODECS[format.codec].bitrate or format.bit_depth == "float":
        return None
    return int(format.bit_depth or 16)


def _steps(samples: np.ndarray, bits: int) -> np.ndarray:
    """Full scale at ±1 to integers, where the sample format has them: 24 bits are the upper ones of 32."""
    scale = 1 << (bits - 1)
    steps = samples * np.float32(scale)
    np.rint(steps, out=steps)
    np.minimum(steps, np.float32(scale - 1), out=steps)
    return steps.astype(np.int16) if bits == 16 else steps.astype(np.int32) << 8


def _bitrates(codec: str, rate: int, channels: int) -> Sequence[int]:
    """What a codec can do at a rate in Hz, in bit/s, ascending."""
    if codec == "mp3":
        kilobits = next(listed for lowest, listed in _MP3_BITRATES.items() if rate >= lowest)
        return [1000 * value for value in kilobits]
    if codec == "ogg":
        return range(_vorbis_bitrate(0, rate, channels), _vorbis_bitrate(1, rate, channels) + 1)
    if codec == "m4a":
        return range(8000, 6 * rate * channels + 1)  # 6144 bits per channel in 1024 samples (ISO 14496-3, 4.5.3.3)
    return range(6000, 256_000 * channels + 1)  # as libopus has it


def _all_bitrates(codec: str) -> Sequence[int]:
    """What a codec can do at some rate and with some channels, in bit/s, ascending."""
    rates, channels = _CODECS[codec].rates, _CODECS[codec].channels
    if codec == "mp3":
        return sorted({1000 * value for listed in _MP3_BITRATES.values() for value in listed})
    return range(_bitrates(codec, rates[0], 1)[0], _bitrates(codec, rates[-1], channels)[-1] + 1)


def _bitrate(format: Format, rate: int, channels: int) -> int:
    if format.bitrate:
        return format.bitrate
    allowed = _bitrates(format.codec, rate, channels)
    fits = bisect_right(allowed, _CODECS[format.codec].bitrate * channels)
    return allowed[max(0, fits - 1)]


@lru_cache
def _vorbis_quality(bitrate: int, rate: int, channels: int) -> float:
    """The quality, from 0 to 1, that has this nominal bit rate: libsndfile takes nothing else."""
    lowest, step = 0.0, 0.5
    while step > 1e-3:
        if _vorbis_bitrate(lowest + step, rate, channels) <= bitrate:
            lowest += step
        step /= 2
    return lowest


@lru_cache
def _vorbis_bitrate(quality: float, rate: int, channels: int) -> int:
    """The nominal bit rate that libvorbis notes in a file's header (Vorbis I, 4.2.2)."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, channels, "VORBIS", format="OGG", compression_level=1 - quality) as empty:
        empty.write(torch.zeros(1, channels).numpy())
    header = file.getvalue().partition(b"\1vorbis")[2]
    return int(struct.unpack_from("<IBIiii", header)[4])


def _choices(values: Sequence[int], unit: int, suffix: str = "") -> str:
    if isinstance(values, range):
        return f"Choose from {values[0] / unit:.10g}{suffix} to {values[-1] / unit:.10g}{suffix}."
    return f"Choose one of {', '.join(f'{value / unit:.10g}{suffix}' for value in values)}."
