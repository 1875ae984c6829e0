"""MP3, MP4 and all else, by FFmpeg through PyAV: see `decoding`.

Samples are tensors (C, n).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from torch import Tensor

from stemwise.codecs import damage
from stemwise.codecs.remote import File, handle
from stemwise.errors import UserError

log = logging.getLogger(__name__)

BLOCK = 1 << 16  # samples
SEGMENT = 20  # seconds
WARM_UP = 1  # seconds. AAC is exact after 1 frame, MP3 at low rates after about 20

_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_FULL_SCALE = {torch.uint8: 1 << 7, torch.int16: 1 << 15, torch.int32: 1 << 31}


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
                    raise damage.no_stream(path, stream, len(streams))
                if container.format.name == "ogg":
                    damage.check_last_page(path)
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
            yield damage.finite(block, self.path, position, self.sample_rate)
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
                    raise damage.damaged(self.path, start / self.sample_rate)
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
            raise damage.damaged(self.path, position / self.sample_rate) from None

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
            raise damage.damaged(self.path, self._position(last) / self.sample_rate) from None
        if last is None and self.header_frames:
            raise damage.cut_off(self.path, self.header_frames / self.sample_rate, None)
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
            raise damage.cut_off(self.path, self.header_frames / self.sample_rate, end / self.sample_rate)


@contextmanager
def _container(path: File) -> Iterator[InputContainer]:
    with handle(path, "file:{}".format) as opened, av.open(opened, metadata_errors="ignore") as container:
        yield container


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
