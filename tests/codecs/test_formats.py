"""What a sound file can be, and a message that says what it can be instead."""

import pytest

from stemwise.codecs import formats
from stemwise.codecs.formats import Format
from stemwise.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"), [("128k", 128_000), ("320K", 320_000), (" 96k ", 96_000), ("64000", 64_000)]
)
def test_bit_rates_in_words(text: str, expected: int) -> None:
    assert formats.bitrate(text) == expected


@pytest.mark.parametrize("text", ["", "k", "-128k", "12.5k", "128 kbps", "12٣k", "99999999999"])
def test_what_is_no_bit_rate(text: str) -> None:
    with pytest.raises(UserError, match=r"is no bit rate. Write it like 128k"):
        formats.bitrate(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wma",), "codec 'wma' cannot be written. Choose one of wav, flac, mp3, ogg, m4a, opus."),
        (("flac", "float"), "flac has no bit depth float. Choose from 16, 24."),
        (("wav", "32"), "wav has no bit depth 32. Choose from 16, 24, float."),
        (("mp3", "16"), "mp3 has no bit depth 16. Leave it out."),
        (("wav", None, 128_000), "wav is lossless and has no bitrate. Leave it out, or choose one of mp3, ogg, m4a"),
        (("mp3", None, 0), "mp3 has no bitrate of 0k. Choose one of 8k, 16k, 24k, 32k, 40k, 48k, 56k, 64k, 80k, 96k"),
        (("mp3", None, 200_000), "mp3 has no bitrate of 200k."),
        (("mp3", None, 9_999_000), "mp3 has no bitrate of 9999k."),
        (("ogg", None, 9_999_000), "ogg has no bitrate of 9999k. Choose from 14k to 499.821k."),
        (("m4a", None, 0), "m4a has no bitrate of 0k. Choose from 8k to 1152k."),
        (("opus", None, 600_000), "opus has no bitrate of 600k. Choose from 6k to 512k."),
    ],
)
def test_formats_that_there_are_not(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError) as error:
        Format(*arguments)
    assert message in str(error.value)


def test_settings_that_fit_no_file() -> None:
    for format, rate, channels, message in (
        (Format("mp3", bitrate=144_000), 44100, 2, r"mp3 at 44100 Hz in stereo has no bitrate of 144k.*128k, 160k"),
        (Format("mp3", bitrate=320_000), 16000, 2, r"mp3 at 16000 Hz in stereo has no bitrate of 320k.*144k, 160k\."),
        (Format("opus", bitrate=300_000), 48000, 1, r"Choose from 6k to 256k\."),
        (Format("wav"), 0, 2, r"wav has no sample rate of 0 Hz. Choose from 1 to 134217727\."),
        (Format("mp3"), 44100, 6, r"mp3 takes 1 to 2 channels here, not 6"),
    ):
        with pytest.raises(UserError, match=message):
            format.check(rate, channels)
