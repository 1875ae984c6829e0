import functools
import math
import operator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from stemwise import crossfade, masks, separator, spectrogram, wiener
from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings


def rebuilt(model: Separator, **changes: object) -> Separator:
    """The same weights under other settings."""
    parts = {
        name: getattr(model, name) for name in ("stems", "spectrogram", "unet", "mask", "output", "overlap")
    } | changes
    other = Separator(**parts)
    other.load_state_dict(model.state_dict())
    return other.eval()


def rebuilt_as(model: Separator, **changes: object) -> Separator:
    """Fresh weights under other STFT settings."""
    return Separator(model.stems, replace(model.spectrogram, **changes), model.unet, model.mask).eval()


def whole(model: Separator, waveform: torch.Tensor) -> torch.Tensor:
    """Separation as the formula has it: all windows at once, one mask for the whole song."""
    settings = model.spectrogram
    spectrum = spectrogram.stft(waveform, settings)
    magnitudes = spectrum[..., : settings.bins].abs()
    frames, size = magnitudes.shape[-2], settings.frames
    padded = torch.nn.functional.pad(magnitudes, (0, 0, 0, -frames % size))
    starts = list(range(0, frames, size))
    if model.overlap:
        last = max(frames - size, 0)
        starts = [*range(0, last, crossfade.step(size, model.overlap)), last]
    batch = torch.stack([padded[..., start : start + size, :] for start in starts])
    weights = torch.hann_window(2 * size, periodic=True)[1::2].unsqueeze(-1)
    with torch.no_grad():
        estimates = model(batch)
    total, counted = torch.zeros(*estimates.shape[1:3], *padded.shape[-2:]), torch.zeros(padded.shape[-2], 1)
    for start, one in zip(starts, estimates, strict=True):
        total[..., start : start + size, :] += weights * one
        counted[start : start + size] += weights
    found = (total / counted)[..., :frames, :].unsqueeze(0)
    found = masks.ratio(found, magnitudes.unsqueeze(0), model.mask)[0]
    full = masks.extend(found, settings.full_bins, model.mask.extension)
    return spectrogram.istft(full * spectrum, waveform.shape[-1], settings)


# From nothing to many windows, and the lengths around the edges of windows and of the overlap.
LENGTHS = [1, 10, 64 * 16 - 257, 64 * 16 - 256, 64 * 16 - 255, 64 * 16, 2 * 64 * 16 - 255, 5000, 12345]


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("extension", masks.EXTENSIONS)
def test_streaming_equals_the_whole(small_separator, samples, extension):
    assert_streams_as_the_whole(rebuilt(small_separator, mask=MaskRule(extension=extension)), samples)


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.9])
def test_streaming_with_windows_that_overlap_equals_the_whole(small_separator, samples, overlap):
    assert_streams_as_the_whole(rebuilt(small_separator, overlap=overlap), samples)


@pytest.mark.parametrize("overlap", [0, 0.25])
def test_streaming_in_stereo_equals_the_whole(stereo, overlap):
    assert_streams_as_the_whole(rebuilt(stereo, overlap=overlap), 12345)


def assert_streams_as_the_whole(model, samples):
    channels = model.spectrogram.channels
    song = torch.randn(channels, samples)
    expected = whole(model, song)
    torch.testing.assert_close(model.separate(song), expected, rtol=0, atol=1e-6)
    for block in (1000, 77):
        streamed = torch.cat(list(model.stream(song.split(block, dim=-1))), dim=-1)
        assert streamed.shape == (2, channels, samples)
        torch.testing.assert_close(streamed, expected, rtol=0, atol=1e-6)


def whole_song_wiener(model, song):
    """norbert's filter over the whole song, with the model's windows."""
    estimates, spectra = zip(*model.estimates([song]), strict=True)
    spectrum = torch.cat(spectra, dim=-2)
    stems = wiener.wiener(torch.cat(estimates, dim=-2), spectrum)
    full = torch.nn.functional.pad(stems, (0, spectrum.shape[-1] - stems.shape[-1]))
    return spectrogram.istft(full, song.shape[-1], model.spectrogram)


@pytest.fixture
def stereo(small_separator):
    """In mono a Wiener filter of one step has no use for the song's statistics."""
    torch.manual_seed(0)
    return rebuilt_as(small_separator, channels=2)


@pytest.mark.parametrize("samples", [10, 1024, 5000, 12345])
@pytest.mark.parametrize("overlap", [0, 0.5])
def test_streaming_the_wiener_filter_equals_the_whole(stereo, samples, overlap):
    stereo.overlap = overlap
    song = torch.randn(2, samples)
    expected = whole_song_wiener(stereo, song)
    total = functools.reduce(operator.add, stereo.statistics(song.split(777, dim=-1)))
    streamed = torch.cat(list(stereo.stream(song.split(500, dim=-1), stereo.by_wiener(total))), -1)
    torch.testing.assert_close(streamed, expected, rtol=0, atol=1e-6)
    many = stereo.separate(song, stereo.by_wiener_of(100))
    torch.testing.assert_close(many, expected, rtol=0, atol=1e-6)


def test_wiener_filtering_of_windows_knows_only_their_statistics(stereo):
    song = torch.randn(2, 3 * 1024)
    of_two = stereo.separate(song, stereo.by_wiener_of(2))
    assert of_two.shape == (2, 2, 3 * 1024)
    changed = song.clone()
    changed[:, 2 * 1024 :] *= 2  # beyond the first two windows, which begin 256 samples before the song
    early = slice(0, 2 * 1024 - 256 - 256)
    again = stereo.separate(changed, stereo.by_wiener_of(2))
    torch.testing.assert_close(again[..., early], of_two[..., early])
    whole = stereo.separate(song, stereo.by_wiener_of(100))
    assert (whole - of_two)[..., early].abs().max() > 1e-4


def test_the_wiener_filter_leaves_the_rest_out(small_separator):
    song = torch.randn(1, 4000)
    with_rest = rebuilt(small_separator, mask=MaskRule(rest=True)).eval()
    assert whole_song_wiener(small_separator, song).sum(0).square().mean() > 1.01 * (
        with_rest.separate(song, with_rest.by_wiener_of(100)).sum(0).square().mean()
    )


@pytest.mark.parametrize(("precision", "least"), [(torch.bfloat16, 20), (torch.float16, 40)])
def test_lower_precision_is_nearly_the_same(small_separator, precision, least):
    song = torch.randn(1, 4000)
    expected = small_separator.separate(song)
    small_separator.lower(precision)
    found = small_separator.separate(song)
    assert found.dtype == torch.float32
    decibels = 10 * torch.log10(expected.square().sum() / (found - expected).square().sum())
    assert least < decibels < 90


def test_a_gpu_separates_in_full_float32(small_separator, monkeypatch):
    """torch lets cuDNN use TF32 unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen, forward = [], small_separator.forward

    def watched(magnitudes):
        seen.append(torch.backends.cudnn.allow_tf32)
        return forward(magnitudes)

    monkeypatch.setattr(small_separator, "forward", watched)
    small_separator.separate(torch.randn(1, 4000))
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_no_precision_is_lost_where_none_is_lowered(small_separator):
    song = torch.randn(1, 4000)
    expected = small_separator.separate(song)
    small_separator.lower(torch.float32)
    torch.testing.assert_close(small_separator.separate(song), expected, rtol=0, atol=0)


@pytest.mark.parametrize("count", [2, 3, 16])
def test_windows_that_pass_together_do_not_know_of_each_other(small_separator, monkeypatch, count):
    song = torch.randn(1, 4 * 16 * 64 + 700)  # a last window of few frames, and a last group of one window
    monkeypatch.setattr(separator, "TOGETHER", {"cpu": 1})
    alone = list(small_separator.estimates([song]))
    monkeypatch.setattr(separator, "TOGETHER", {"cpu": count})
    together = list(small_separator.estimates([song]))
    assert len(alone) == len(together) > count // 4
    for (estimates, spectrum), (expected, mixture) in zip(together, alone, strict=True):
        # Processors differ in how they add up batches of another size: by 1.4e-5 on an EPYC.
        torch.testing.assert_close(estimates, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(spectrum, mixture, rtol=0, atol=0)


def test_threads_may_share_a_model(small_separator):
    songs = [torch.randn(1, 6000 + 100 * number) for number in range(8)]
    expected = [small_separator.separate(song) for song in songs]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(small_separator.separate, songs), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_no_sample_at_all_gives_none(small_separator):
    assert sum(piece.shape[-1] for piece in small_separator.stream([torch.zeros(1, 0)])) == 0


@pytest.mark.parametrize("output", separator.OUTPUTS)
def test_the_stems_add_up_to_the_mixture(small_separator, output):
    song = torch.randn(1, 6000)
    everywhere = rebuilt(small_separator, mask=MaskRule(extension="average"), output=output)
    torch.testing.assert_close(everywhere.separate(song).sum(dim=0), song, rtol=0, atol=1e-5)
    # With zeros above F, they add up to what a low pass leaves of it.
    settings = small_separator.spectrogram
    spectrum = spectrogram.stft(song, settings)
    spectrum[..., settings.bins :] = 0
    low = spectrogram.istft(spectrum, song.shape[-1], settings)
    below = rebuilt(small_separator, output=output)
    torch.testing.assert_close(below.separate(song).sum(dim=0), low, rtol=0, atol=1e-5)


def test_silence_stays_silence(small_separator):
    assert not small_separator.separate(torch.zeros(1, 3000)).any()


def test_estimates_are_a_bounded_share_of_the_mixture(small_separator):
    magnitudes = torch.rand(2, 1, 16, 64)
    for output in separator.OUTPUTS:
        estimates = rebuilt(small_separator, output=output)(magnitudes)
        assert estimates.shape == (2, 2, 1, 16, 64)
        assert (estimates >= 0).all()
        assert (estimates <= magnitudes.unsqueeze(1)).all()
    torch.testing.assert_close(estimates.sum(dim=1), magnitudes)  # softmax


def test_one_network_per_stem(small_separator):
    magnitudes = torch.rand(1, 1, 16, 64)
    expected = [unet(magnitudes).sigmoid() * magnitudes for unet in small_separator.unets]
    torch.testing.assert_close(small_separator(magnitudes), torch.stack(expected, dim=1))


def test_starting_from_another_model_takes_the_stems_that_are_in_both(small_separator):
    names = ["drums", "accompaniment"]
    other = Separator(names, small_separator.spectrogram, small_separator.unet, MaskRule())
    before = other.unets[0].last.weight.clone()
    assert separator.start_from(other, small_separator) == ["accompaniment"]
    torch.testing.assert_close(other.unets[1].state_dict(), small_separator.unets[1].state_dict())
    torch.testing.assert_close(other.unets[0].last.weight, before)


def test_starting_from_a_model_that_does_not_fit_says_why(small_separator):
    settings, unet = small_separator.spectrogram, small_separator.unet
    cases = {
        "none of drums": Separator(["drums"], settings, unet, MaskRule()),
        r"Add model.unet.filters=\[4,6,8\]\.": Separator(["vocals"], settings, UNetSettings((4, 4, 4)), MaskRule()),
        "Add spectrogram.channels=1": Separator(["vocals"], replace(settings, channels=2), unet, MaskRule()),
        "Add model.output=sigmoid model.unet.decoder_activation=relu": Separator(
            ["vocals"], settings, replace(unet, decoder_activation="elu", dropout=0.0), MaskRule(), "softmax"
        ),
    }
    for message, model in cases.items():
        with pytest.raises(UserError, match=message):
            separator.start_from(model, small_separator)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stems": []}, "name at least one stem"),
        ({"stems": ["a", "a"]}, "each once"),
        ({"stems": [f"stem {number}" for number in range(65)]}, "65 stems, each with a network. Name at most 64"),
        ({"stems": ["a\n"]}, r"'a\\n' is no name for a stem.* all printable"),
        ({"stems": ["\ud800"]}, "is no name for a stem"),
        ({"overlap": 1}, "model.overlap=1: not a share of the window"),
        ({"output": "tanh"}, "model.output='tanh' is not one of sigmoid, softmax"),
        ({"spectrogram": Spectrogram(frames=100)}, "spectrogram.frames=100 is not a multiple of 64.* Take 64"),
        ({"spectrogram": Spectrogram(bins=1000)}, "spectrogram.bins=1000 is not a multiple of 64.* Take 960"),
    ],
)
def test_settings_that_cannot_work_say_why(arguments, message):
    parts = {"stems": ["vocals"], "spectrogram": Spectrogram(), "unet": UNetSettings(), "mask": MaskRule()}
    with torch.device("meta"), pytest.raises(UserError, match=message):
        Separator(**parts | arguments)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.75])
def test_memory_does_not_grow_with_the_song(small_separator, overlap):
    """What a window leaves behind is one overlap: the pieces that come out are no longer than a window."""
    model, seconds = rebuilt(small_separator, overlap=overlap), 20
    blocks = (torch.randn(1, 8000) for _ in range(seconds))
    pieces = [piece.shape[-1] for piece in model.stream(blocks)]
    assert max(pieces) <= model.spectrogram.frames * model.spectrogram.hop
    later = model.spectrogram.frame_count(seconds * 8000) - model.spectrogram.frames
    # The zeros in front of the song may be a piece of their own.
    assert model.pieces(seconds * 8000) - len(pieces) in (0, 1)
    assert model.pieces(seconds * 8000) == 1 + math.ceil(later / model.step)


def test_windows_that_overlap_make_another_estimate_where_they_do(small_separator):
    song = torch.randn(1, 9000)
    apart = (rebuilt(small_separator, overlap=0.5).separate(song) - small_separator.separate(song)).abs()
    assert apart.max() > 1e-3
    # Of one window there is but one estimate.
    short = song[:, :500]
    found = rebuilt(small_separator, overlap=0.5).separate(short)
    torch.testing.assert_close(found, small_separator.separate(short), rtol=0, atol=1e-6)


def test_the_oracle_is_the_mask_rule_on_the_truth(small_separator):
    stems = torch.randn(2, 1, 5000)
    mixture = stems.sum(dim=0)
    found = small_separator.oracle(mixture, stems)
    settings = small_separator.spectrogram
    spectra = [spectrogram.stft(wave, settings) for wave in (mixture, *stems)]
    powers = torch.stack([s[..., : settings.bins].abs().square() for s in spectra[1:]])
    mask = masks.extend(powers[0] / powers.sum(dim=0), settings.full_bins, "zeros")
    expected = spectrogram.istft(mask * spectra[0], 5000, settings)
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=0)
