"""WAV, AIFF, CAF, FLAC and Ogg Vorbis, by libsndfile, where it can be trusted: see `decoding`.

Samples are tensors (C, n).
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import soundfile
import torch
from torch import Tensor

from stemwise.codecs import damage
from stemwise.codecs.remote import File, handle
from stemwise.errors import UserError

BLOCK = 1 << 16  # samples

# MP3 is not among them: libsndfile believes the length in an MP3's Xing header, or guesses one from the bit
# rate, and ends the file there. A file of 8.0 s whose header said 1.3 s was read as 1.3 s.
_LIBSNDFILE_HEADS = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"caff", b"fLaC", b"OggS")
_UNKNOWN_SIZE = 0x7FFFF000  # sizes from here on mean "written to a pipe": sox writes this one, ffmpeg 0xFFFFFFFF
_UNKNOWN_FRAMES = 1 << 60

# What libsndfile notes about sizes while it parses: "data : 1411692 (should be 705824)".
_SIZE_NOTE = re.compile(r"^\s*(?:data|SSND|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_RF64_NOTE = re.compile(r"frame count (\d+) does not match value from 'ds64' chunk of (\d+)")


@dataclass(frozen=True)
class Libsndfile:
    """A file of one of these formats."""

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
                    damage.check_last_page(path)
                return cls(path, file.samplerate, file.channels, file.frames, file.subtype)
        except OSError as error:
            raise damage.unopened(path, error) from None
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
            raise damage.cut_off(self.path, self.frames / self.sample_rate, None)
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
                    yield damage.finite(torch.from_numpy(samples.T), self.path, position, self.sample_rate)
                    position += len(samples)
        except soundfile.LibsndfileError:
            raise damage.damaged(self.path, position / self.sample_rate) from None
        if position < self.frames:
            raise damage.cut_off(self.path, self.frames / self.sample_rate, position / self.sample_rate)

    def _landing(self, start: int) -> int:
        """The sample to jump to, from which decoding on to `start` is exact."""
        if self.subtype == "VORBIS":
            # libsndfile 1.2.2 lands beside the mark in the last page, of at most 255 packets of 4096 samples.
            return min(start, max(0, self.frames - 255 * 4096))
        return start


@contextmanager
def _sound(path: File) -> Iterator[soundfile.SoundFile]:
    # As bytes: soundfile refuses names that are not UTF-8.
    with handle(path, os.fsencode) as opened, soundfile.SoundFile(opened) as file:
        yield file


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
        raise damage.cut_off(path, int(found[2]) / sample_rate, int(found[1]) / sample_rate)
