"""Samples out of audio files: libsndfile where it can be trusted, FFmpeg (through PyAV) for the rest.

`source(path, stream)` says who decodes a file. A source knows `sample_rate` and `channels`, finds its
`length()` without decoding it all where the format allows that, and yields `blocks(start)`: tensors (C, n) in
float32 at the file's own rate. What a sample decodes to does not depend on where reading started. What is cut
off, damaged or not finite raises `UserError`.
"""

import io
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import soundfile
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from torch import Tensor

from stemwise.codecs.remote import Aside, File, handle
from stemwise.errors import UserError
from stemwise.files.places import Place, Url
from stemwise.files.streams import Remote

log = logging.getLogger(__name__)

BLOCK = 1 << 16
SEGMENT = 20  # seconds
WARM_UP = 1  # seconds. AAC is exact after 1 frame, MP3 at low rates after about 20

# MP3 is not among them: libsndfile believes the length in an MP3's Xing header, or guesses one from the bit
# rate, and ends the file there. A file of 8.0 s whose header said 1.3 s was read as 1.3 s.
_LIBSNDFILE_HEADS = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"caff", b"fLaC", b"OggS")
_UNKNOWN_SIZE = 0x7FFFF000  # sizes from here on mean "written to a pipe": sox writes this one, ffmpeg 0xFFFFFFFF
_UNKNOWN_FRAMES = 1 << 60

# What libsndfile notes about sizes while it parses: "data : 1411692 (should be 705824)".
_SIZE_NOTE = re.compile(r"^\s*(?:data|SSND|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_RF64_NOTE = re.compile(r"frame count (\d+) does not match value from 'ds64' chunk of (\d+)")

_OGG_PAGE = 1 << 16  # bytes at most
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_FULL_SCALE = {torch.uint8: 1 << 7, torch.int16: 1 << 15, torch.int32: 1 << 31}


def source(place: Place, stream: int | None = None) -> "Libsndfile | Ffmpeg | Aside":
    """Who decodes audio stream `stream` (from 0; None: the first) of a file.

    Raises `UserError` if the file is missing, cannot be opened, is a folder, a pipe or a device, holds no audio
    that can be read or no such stream, or if its header shows that it was cut off.
    """
    if isinstance(place, Url):
        return Aside.open(lambda: _source(Remote(place), stream))
    return _source(place, stream)


def _source(path: File, stream: int | None) -> "Libsndfile | Ffmpeg":
    _check_file(path)
    found = Libsndfile.open(path)
    if found is None:
        return Ffmpeg.open(path, stream or 0)
    if stream:
        raise _no_stream(path, stream, 1)
    return found


def _check_file(path: File) -> None:
    if isinstance(path, Remote):
        return _check_size(path, path.size)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise UserError(f"{path}: no such file. Check the path, or remove it from the list.") from None
    except OSError as error:
        raise _unopened(path, error) from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: is a folder, an audio file is needed. Name a file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is a pipe or a device, a file is needed. Pipe the song in, and name it `-`.")
    _check_size(path, status.st_size)


def _check_size(path: File, size: int) -> None:
    if not size:
        raise UserError(f"{path}: empty, 0 bytes. Export it again, or remove it.")


@contextmanager
def _sound(path: File) -> Iterator[soundfile.SoundFile]:
    # As bytes: soundfile refuses names that are not UTF-8.
    with handle(path, os.fsencode) as opened, soundfile.SoundFile(opened) as file:
        yield file


@contextmanager
def _container(path: File) -> Iterator[InputContainer]:
    with handle(path, "file:{}".format) as opened, av.open(opened, metadata_errors="ignore") as container:
        yield container


@dataclass(frozen=True)
class Libsndfile:
    """WAV, AIFF, CAF, FLAC and Ogg Vorbis."""

    path: File
    sample_rate: int
    channels: int
    frames: int
    subtype: str

    @classmethod
    def open(cls, path: File) -> "Libsndfile | None":
        """None if libsndfile cannot read the file, or does not know how long it is."""
        try:
            with path.open("rb") as head:
                if not head.read(4).startswith(_LIBSNDFILE_HEADS):
                    return None
            with _sound(path) as file:
                # libsndfile 1.2.2 ends in the middle of Opus files whose pages are a little early or late, as they
                # are where FFmpeg coded a Vorbis file.
                if file.subtype == "OPUS" or file.subtype.startswith("MPEG"):
                    return None
                if not 0 < file.frames < _UNKNOWN_FRAMES:
                    return None
                _check_sizes(path, file.extra_info, file.samplerate)
                if file.format == "OGG":
                    _check_last_page(path)
                return cls(path, file.samplerate, file.channels, file.frames, file.subtype)
        except OSError as error:
            raise _unopened(path, error) from None
        except soundfile.LibsndfileError:
            return None

    def length(self) -> int:
        """Samples in the file. The last one is decoded, since a FLAC header knows nothing of a cut."""
        found = 0
        try:
            with _sound(self.path) as file:
                file.seek(self.frames - 1)
                found = len(file.read(1))
        except soundfile.LibsndfileError:
            pass
        if not found:
            raise _cut_off(self.path, self.frames / self.sample_rate, None)
        return self.frames

    def blocks(self, start: int) -> Iterator[Tensor]:
        position = start
        try:
            with _sound(self.path) as file:
                landing = self._landing(min(start, self.frames))
                skip = min(start, self.frames) - landing
                file.seek(landing)
                while len(samples := file.read(min(BLOCK, skip) or BLOCK, dtype="float32", always_2d=True)):
                    if skip:
                        skip -= len(samples)
                        continue
                    yield _finite(torch.from_numpy(samples.T), self.path, position, self.sample_rate)
                    position += len(samples)
        except soundfile.LibsndfileError:
            raise _damaged(self.path, position / self.sample_rate) from None
        if position < self.frames:
            raise _cut_off(self.path, self.frames / self.sample_rate, position / self.sample_rate)

    def _landing(self, start: int) -> int:
        """The sample to jump to, from which decoding on to `start` is exact."""
        if self.subtype == "VORBIS":
            # libsndfile 1.2.2 lands beside the mark in the last page, of at most 255 packets of 4096 samples.
            return min(start, max(0, self.frames - 255 * 4096))
        return start


@dataclass(frozen=True)
class Ffmpeg:
    """One audio stream of an MP3, an MP4 (also `.stem.mp4`, M4A), or of any other container FFmpeg reads.

    Positions come from time stamps in MP4 and MP3, whose clocks are finer than a sample and can be sought in.
    Other containers (Matroska counts milliseconds) are decoded from their beginning. So is Ogg Opus, whose decoder
    never quite settles: a second after a jump it is 6e-4 off, at 8 kbit/s. Opus is always at 48 kHz (RFC 7845, 5.1).

    An AAC decoder makes up noise (perceptual noise substitution) from a random state that seeking does not
    reset, so what a sample is would depend on where decoding began. Therefore MP4 is decoded in segments, cut
    every 20 s of the file whatever the read, each by a fresh decoder. Without such noise, as in MUSDB18, the
    result equals one uninterrupted decode bit by bit.
    """

    path: File
    stream: int
    sample_rate: int
    channels: int
    origin: int  # the time stamp of the first sample
    scale: Fraction  # samples per unit of the time stamps
    header_frames: int  # 0 where the header cannot be trusted
    sought: bool  # positions can be sought
    segmented: bool

    @classmethod
    def open(cls, path: File, stream: int) -> "Ffmpeg":
        try:
            with _container(path) as container:
                streams = container.streams.audio
                if not streams:
                    raise UserError(f"{path}: has no audio. Name a file with sound.")
                if stream >= len(streams):
                    raise _no_stream(path, stream, len(streams))
                if container.format.name == "ogg":
                    _check_last_page(path)
                return cls._describe(path, stream, container.format.name, streams[stream])
        except (av.FFmpegError, OSError) as error:
            raise UserError(
                f"{path}: cannot be read as audio ({error.strerror}). "
                "It is cut off, damaged, or no audio file: export it again."
            ) from None

    @classmethod
    def _describe(cls, path: File, number: int, container: str, stream: AudioStream) -> "Ffmpeg":
        codec = stream.codec_context
        if not codec.sample_rate or not codec.layout.nb_channels:
            raise UserError(f"{path}: no sound in it can be decoded; it is empty or damaged. Export it again.")
        scale = Fraction(stream.time_base or 1) * codec.sample_rate
        fine = scale.numerator == 1
        mp4 = fine and container == _MP4 and stream.frames > 0  # 0 in fragmented files, which have no full table
        frames = int((stream.duration or 0) * scale) if mp4 else 0
        sought = mp4 or (fine and container == "mp3")
        origin = stream.start_time or 0
        if container == "ogg" and codec.name == "opus":  # where its last page ends; with the encoder's delay, 7 ms
            frames = max(0, (stream.duration or 0) - origin)
        return cls(
            path,
            number,
            codec.sample_rate,
            codec.layout.nb_channels,
            origin,
            scale,
            frames,
            sought,
            segmented=mp4,
        )

    def length(self) -> int:
        """Samples in the stream: where its last frame ends. What cannot be sought in is decoded whole."""
        end = 0
        for position, frame in self._frames(self._last_packet() if self.sought else 0):
            end = position + frame.shape[1]
        self._check_end(end)
        return end

    def blocks(self, start: int) -> Iterator[Tensor]:
        position = start
        for block in _gather(self._samples(start)):
            yield _finite(block, self.path, position, self.sample_rate)
            position += block.shape[1]

    def _samples(self, start: int) -> Iterator[Tensor]:
        """All samples from `start` on, in pieces of any size."""
        position, segment = start, SEGMENT * self.sample_rate
        while True:
            begin = position // segment * segment if self.segmented else position
            stop = begin + segment if self.segmented else None
            for piece in self._between(begin, position, stop):
                yield piece
                position += piece.shape[1]
            if stop is None or position < stop:
                break
        if start < self.header_frames:
            self._check_end(position)

    def _between(self, begin: int, start: int, stop: int | None) -> Iterator[Tensor]:
        """Samples `start` to `stop` of a decode that begins at `begin`."""
        for position, frame in self._frames(begin):
            if position > start:
                # A wrong length in a Xing header makes FFmpeg drop up to 1.5 frames in the middle of a song.
                if position - start > self.sample_rate:
                    raise _damaged(self.path, start / self.sample_rate)
                frame = torch.nn.functional.pad(frame, (position - start, 0))
                position = start
            piece = frame[:, start - position : None if stop is None else stop - position]
            yield piece
            start += piece.shape[1]
            if start == stop:
                return

    def _frames(self, begin: int) -> Iterator[tuple[int, Tensor]]:
        """Decoded frames and their positions, from `begin` (or somewhat before) to the end."""
        position = 0
        warm = begin - WARM_UP * self.sample_rate
        try:
            with self._opened() as (container, stream):
                if self.sought and warm > 0:
                    container.seek(self.origin + int(warm / self.scale), stream=stream)
                for frame in self._decode(container, stream):
                    if self.sought and frame.pts is not None:
                        position = self._position(frame.pts)
                    yield position, self._tensor(frame, position)
                    position += frame.samples
        except av.FFmpegError:
            raise _damaged(self.path, position / self.sample_rate) from None

    def _decode(self, container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
        """Frames of the stream; undecodable packets are an error between them, but not (tags) around them."""
        bad: av.InvalidDataError | None = None
        begun = False
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError as error:
                bad = error
                continue
            if frames and bad and begun:
                raise bad
            bad = None if frames else bad
            begun = begun or bool(frames)
            yield from frames
        if bad:
            log.warning("%s: ends with bytes that are not audio; they are left out.", self.path)

    def _last_packet(self) -> int:
        """Position of the last packet."""
        last = None
        try:
            with self._opened() as (container, stream):
                container.seek(int(10**9 / (self.scale / self.sample_rate)), stream=stream)
                for packet in container.demux(stream):
                    last = last if packet.pts is None else packet.pts
        except av.FFmpegError:
            raise _damaged(self.path, self._position(last) / self.sample_rate) from None
        if last is None and self.header_frames:
            raise _cut_off(self.path, self.header_frames / self.sample_rate, None)
        return self._position(last)

    def _position(self, time_stamp: int | None) -> int:
        return 0 if time_stamp is None else int((time_stamp - self.origin) * self.scale)

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, AudioStream]]:
        with _container(self.path) as container:
            wanted = container.streams.audio[self.stream]
            for stream in container.streams:
                if stream.index != wanted.index:
                    stream.discard = av.stream.Discard.all  # a .stem.mp4 would be read five times over
            yield container, wanted

    def _tensor(self, frame: AudioFrame, position: int) -> Tensor:
        """The frame as (C, n) in float32, full scale at 1."""
        rate, channels = frame.sample_rate, frame.layout.nb_channels
        if (rate, channels) != (self.sample_rate, self.channels):
            raise UserError(
                f"{self.path}: changes from {self.sample_rate} Hz and {self.channels} channels to {rate} Hz "
                f"and {channels} at {position / self.sample_rate:.2f} s. Export it again with one format."
            )
        samples = torch.from_numpy(frame.to_ndarray())
        if not frame.format.is_planar:
            samples = samples.reshape(-1, self.channels).T
        scale = _FULL_SCALE.get(samples.dtype)
        if scale is None:
            return samples.float()
        return samples.float() / scale - (1 if samples.dtype == torch.uint8 else 0)

    def _check_end(self, end: int) -> None:
        if end < self.header_frames - self.sample_rate // 10:
            raise _cut_off(self.path, self.header_frames / self.sample_rate, end / self.sample_rate)


def _gather(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same samples in fewer tensors: a frame has about a thousand, too few for what is done to each."""
    held: list[Tensor] = []
    for piece in pieces:
        held.append(piece)
        if sum(part.shape[1] for part in held) >= BLOCK:
            yield torch.cat(held, 1)
            held = []
    if held:
        yield torch.cat(held, 1)


def _check_sizes(path: File, notes: str, sample_rate: int) -> None:
    """Raises where the header claims more than there is, which libsndfile notes but lets pass."""
    found = _SIZE_NOTE.search(notes)
    if found and int(found[2]) < int(found[1]) < _UNKNOWN_SIZE:
        raise UserError(
            f"{path}: cut off, its header says {found[1]} bytes of sound, {found[2]} are there. "
            "Copy or export it again."
        )
    found = _RF64_NOTE.search(notes)
    if found and int(found[1]) < int(found[2]):
        raise _cut_off(path, int(found[2]) / sample_rate, int(found[1]) / sample_rate)


def _check_last_page(path: File) -> None:
    """Raises where the last page of an Ogg file (RFC 3533, 6) is cut in two.

    A last page that is whole, but not marked as the last, is how recorded web radio ends, and fine.
    """
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 2 * _OGG_PAGE))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS\0")) :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if not segments or len(segments) < page[26] or len(page) < 27 + len(segments) + sum(segments):
        raise UserError(f"{path}: cut off in the middle of an Ogg page. Copy or export it again.")


def _finite(block: Tensor, path: File, position: int, sample_rate: int) -> Tensor:
    # In one pass: a sum is finite only if all samples are. One that overflows is looked at again.
    if block.sum().isfinite() or not (bad := ~block.isfinite().all(0)).any():
        return block
    seconds = (position + int(bad.to(torch.uint8).argmax())) / sample_rate
    raise UserError(f"{path}: NaN or infinite samples at {seconds:.2f} s. Export the file again.")


def _unopened(path: File, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be opened ({error.strerror}). Check the path, and who may read it.")


def _no_stream(path: File, stream: int, count: int) -> UserError:
    streams = "1 audio stream" if count == 1 else f"{count} audio streams"
    return UserError(f"{path}: has {streams}, number {stream} was asked for. Count from 0.")


def _damaged(path: File, seconds: float) -> UserError:
    return UserError(f"{path}: cannot be decoded after {seconds:.2f} s; it is damaged or cut off. Export it again.")


def _cut_off(path: File, claimed: float, found: float | None) -> UserError:
    there = "the end of which is missing" if found is None else f"{found:.2f} s are there"
    return UserError(f"{path}: cut off, its header says {claimed:.2f} s, {there}. Copy or export it again.")
