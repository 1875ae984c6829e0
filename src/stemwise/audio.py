"""Files to waveforms and back, at the sample rate and the number of channels that a model wants.

Waveforms are float32 tensors (C, N), full scale at ±1. `start` and `frames` count samples at the rate asked
for. A read from `start` equals the same slice of the whole, and blocks put together equal the whole. Whatever
is wrong with a file raises `UserError`.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from torch import Tensor

from stemwise import resampling
from stemwise.codecs import decoding, encoding, formats
from stemwise.errors import UserError
from stemwise.files.places import Place

_ESCAPED = re.compile("[\ud800-\udfff]")  # bytes that are not UTF-8, as Python carries them


@dataclass(frozen=True)
class Info:
    """What is in a file: samples per channel at its own rate, that rate in Hz, channels."""

    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def probe(path: Place, stream: int | None = None) -> Info:
    """Length, rate and channels of a file, or of its audio stream number `stream` (from 0; None: the first).

    The length is what `read` gives, whatever the header says: in M4A with AAC the last packet is whole, up to 1023
    samples more than the header counts. It is found without decoding the whole file, except in containers without
    a sample-exact clock (Matroska, ASF, raw AAC and the like) and in Ogg Opus.

    Raises `UserError` for a file that is missing, a folder, a pipe, unreadable, damaged, cut off, empty, or without
    audio or such a stream. An MP3 that was cut off is merely shorter: nothing in it says how long it was.
    """
    source = decoding.source(path, stream)
    frames = source.length()
    if not frames:
        raise UserError(f"{path}: empty, 0 samples. Export it again, or remove it.")
    return Info(frames, source.sample_rate, source.channels)


def length(info: Info, sample_rate: int, speed: int = 100) -> int:
    """Samples that `read` gives for the file at `sample_rate` and `speed` percent: ceil(frames · new / old)."""
    return -(-info.frames * sample_rate * 100 // (info.sample_rate * speed))


def stream(
    path: Place,
    *,
    sample_rate: int,
    channels: int,
    stream: int | None = None,
    channel: int | None = None,
    start: int = 0,
    frames: int | None = None,
    speed: int = 100,
    block: int = 1 << 17,
) -> Iterator[Tensor]:
    """Yields a file in blocks (channels, block), the last one shorter; memory does not grow with the file.

    `stream` is the audio stream of the file, `channel` picks one of its channels, both from 0. For a stereo
    model mono is doubled and of more than two channels the first two are kept, as Spleeter does; for a mono
    model the first two are averaged. Reading past the end yields what is there. At a `speed` of 110 percent the file
    is a tenth shorter and higher, and so is what `start` and `frames` count.

    Raises `UserError`, when the block is reached, for all that `probe` finds and for NaN or infinite samples.
    """
    if start < 0 or block < 1 or speed < 1 or (frames is not None and frames < 0):
        raise ValueError(f"expected start, frames >= 0 and block, speed > 0, got {start}, {frames}, {block}, {speed}")
    if frames == 0:
        return
    source = decoding.source(path, stream)
    old, new = source.sample_rate * speed, sample_rate * 100
    if old == new:
        pieces = _mix(source.blocks(start), path, channel, channels)
        yield from _blocks(pieces, frames, block)
        return
    # Reading begins on the grid of resampling's phases, with as much before `start` as its filter sees.
    first, skip = resampling.position(start, old, new)
    pieces = _mix(source.blocks(first), path, channel, channels)
    yield from _blocks(_skip(resampling.resample(pieces, old, new), skip), frames, block)


def read(
    path: Place,
    *,
    sample_rate: int,
    channels: int,
    stream: int | None = None,
    channel: int | None = None,
    start: int = 0,
    frames: int | None = None,
) -> Tensor:
    """The same as `stream` in one tensor (channels, N); N is less than `frames` where the file ends first."""
    blocks = _stream(
        path,
        sample_rate=sample_rate,
        channels=channels,
        stream=stream,
        channel=channel,
        start=start,
        frames=frames,
    )
    return torch.cat([torch.zeros(channels, 0), *blocks], 1)


_stream = stream  # `read` has an argument of that name


def _mix(blocks: Iterator[Tensor], path: Place, channel: int | None, channels: int) -> Iterator[Tensor]:
    for block in blocks:
        there = len(block)
        if channel is not None and channel >= there:
            names = "1 channel" if there == 1 else f"{there} channels"
            raise UserError(f"{path}: has {names}, number {channel} was asked for. Count from 0.")
        if channel is not None:
            block = block[channel : channel + 1]
        if 1 < len(block) < channels:
            raise UserError(
                f"{path}: has {there} channels, {channels} are needed. Export it with that many, or as mono."
            )
        yield mixed(block, channels)


def mixed(block: Tensor, channels: int) -> Tensor:
    """A waveform (any number of channels, n) as a mono or stereo model takes it: (channels, n); see `stream`."""
    if channels == 1 and len(block) > 1:
        return block[:2].mean(0, keepdim=True)
    return block.expand(channels, -1) if len(block) == 1 else block[:channels]


def _skip(blocks: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    for block in blocks:
        yield block[:, count:]
        count = max(0, count - block.shape[1])


def _blocks(pieces: Iterator[Tensor], frames: int | None, size: int) -> Iterator[Tensor]:
    """The first `frames` samples of `pieces`, cut into blocks of `size`."""
    held: list[Tensor] = []
    count = 0
    left = sys.maxsize if frames is None else frames
    for piece in pieces:
        held.append(piece[:, :left])
        left -= held[-1].shape[1]
        count += held[-1].shape[1]
        if count >= size:
            parts = torch.cat(held, 1).split(size, 1)
            whole = count // size
            yield from (part.contiguous() for part in parts[:whole])
            held, count = list(parts[whole:]), count % size
        if not left:
            break
    if count:
        yield torch.cat(held, 1)


def tags(path: Path) -> dict[str, str]:
    """The tags of a file and of its first audio stream, by FFmpeg's names in lower case: title, artist, album, ...

    Of two with the same name the file's counts. Left out is what is not UTF-8. Empty for a file that FFmpeg cannot
    open, of which `probe` says what is wrong.
    """
    try:
        with av.open(f"file:{path}", metadata_errors="surrogateescape") as container:
            found = [stream.metadata for stream in container.streams.audio[:1]] + [container.metadata]
    except (av.FFmpegError, OSError, ValueError):  # ValueError: a NUL in the name
        return {}
    pairs = {name.lower(): value for tags in found for name, value in tags.items()}
    return {name: value for name, value in pairs.items() if not _ESCAPED.search(name + value)}


def write(path: Path, waveform: Tensor, sample_rate: int, *, codec: str = "wav", bit_depth: str | None = None) -> int:
    """Writes a waveform (C, N); the file appears complete or not at all, and its folders are made.

    `codec` and `bit_depth` are those of `formats.Format`. Returns how many samples were clamped to full scale.

    Raises `UserError` for another codec or bit depth, a target that cannot be written, and a full disk.
    """
    format = formats.Format(codec, bit_depth)
    with encoding.Writer(path, sample_rate, len(waveform), format) as writer:
        for part in waveform.split(1 << 18, 1):
            writer.write(part)
        writer.publish()
    return writer.clipped
