"""What a sound file can be: codecs with their sample rates, bit depths and bit rates, and which tags are written."""

import io
import re
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import soundfile

from stemwise.errors import UserError


@dataclass(frozen=True)
class Codec:
    """What a codec can do, and what FFmpeg calls it."""

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
_AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)

# The bit rates are higher than those for whole songs: nothing masks the coding noise of a stem heard alone.
_CODECS = {
    "wav": Codec(
        "wav",
        {"16": ("pcm_s16le", "s16"), "24": ("pcm_s24le", "s32"), "float": ("pcm_f32le", "flt")},
        range(1, 1 << 27),  # FFmpeg's header has the bytes per second in 32 bits, of 8 channels of 4 bytes
        8,
        options={"rf64": "auto"},  # past 4 GiB
    ),
    "flac": Codec("flac", {"16": ("flac", "s16"), "24": ("flac", "s32")}, range(1, 1 << 20), 8),
    "mp3": Codec("mp3", _lossy("libmp3lame", "fltp"), _MP3_RATES, 2, 128_000),
    # Above 50 kHz Vorbis does not know what bit rate a quality has.
    "ogg": Codec("ogg", _lossy("libvorbis", "flt"), range(8000, 48001), 2, 128_000),
    "m4a": Codec("ipod", _lossy("aac", "fltp"), _AAC_RATES, 2, 128_000),
    "opus": Codec("ogg", _lossy("libopus", "flt"), (8000, 12000, 16000, 24000, 48000), 2, 96_000),
}

CODECS = tuple(_CODECS)

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
        codec = known(self.codec)
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

    @property
    def bits(self) -> int | None:
        """Bits of a sample; None where the encoder takes floats."""
        if _CODECS[self.codec].bitrate or self.bit_depth == "float":
            return None
        return int(self.bit_depth or 16)

    def bitrate_at(self, sample_rate: int, channels: int) -> int:
        """Bit/s at that rate, with those channels; what was asked for, or else this format's own choice."""
        if self.bitrate:
            return self.bitrate
        allowed = _bitrates(self.codec, sample_rate, channels)
        fits = bisect_right(allowed, _CODECS[self.codec].bitrate * channels)
        return allowed[max(0, fits - 1)]


def bitrate(text: str) -> int:
    """Bit/s of `128k`, `128000` and the like; raises `UserError` for anything else."""
    found = re.fullmatch(r"([0-9]{1,7})([kK]?)", text.strip())
    if not found:
        raise UserError(f"bitrate {text!r} is no bit rate. Write it like 128k.")
    return int(found[1]) * (1000 if found[2] else 1)


def sample_rate(codec: str, wanted: int) -> int:
    """The rate that a file of `codec` gets for audio at `wanted` Hz: the next one up that it has, else its highest."""
    rates = known(codec).rates
    return rates[min(bisect_left(rates, wanted), len(rates) - 1)]


def known(codec: str) -> Codec:
    """The codec of that name; raises `UserError` if there is none."""
    if codec not in _CODECS:
        raise UserError(f"codec {codec!r} cannot be written. Choose one of {', '.join(CODECS)}.")
    return _CODECS[codec]


def written(tags: Mapping[str, str]) -> dict[str, str]:
    """Of a song's tags those that are written, in a fixed order; FFmpeg's strings end at a NUL, and are UTF-8."""
    cleaned = {name: tags.get(name, "").replace("\0", "").encode("utf-8", "ignore").decode() for name in TAGS}
    return {name: value for name, value in cleaned.items() if value}


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


@lru_cache
def vorbis_quality(bitrate: int, rate: int, channels: int) -> float:
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
        empty.write(np.zeros((1, channels), np.float32))
    header = file.getvalue().partition(b"\1vorbis")[2]
    return int(struct.unpack_from("<IBIiii", header)[4])


def _choices(values: Sequence[int], unit: int, suffix: str = "") -> str:
    if isinstance(values, range):
        return f"Choose from {values[0] / unit:.10g}{suffix} to {values[-1] / unit:.10g}{suffix}."
    return f"Choose one of {', '.join(f'{value / unit:.10g}{suffix}' for value in values)}."
