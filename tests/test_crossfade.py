import math

import pytest
import torch

from stemwise import crossfade
from stemwise.errors import UserError

T, STEP = 16, 11
# From less than a window to many, and the lengths around the edges of windows.
LENGTHS = [1, 7, 15, 16, 17, 26, 27, 28, 32, 100, 271]


def spectrum(frames: int) -> torch.Tensor:
    """(C, t, F'), complex, of which the networks would see the first three bins."""
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(2, frames, 5, dtype=torch.complex64, generator=generator)


def blurred(windows):
    """Estimates (S, C, t, F) that depend on all of a window, so that they differ between windows."""
    for window in windows:
        seen = window[..., :3].abs()
        yield torch.stack([seen * seen.mean(dim=-2, keepdim=True), seen.flip(-2)]), window


def joined(pieces, estimated=blurred, frames=T, step=STEP):
    estimates, spectra = zip(*crossfade.crossfaded(pieces, estimated, frames, step), strict=True)
    return torch.cat(estimates, dim=-2), torch.cat(spectra, dim=-2)


def windows_of(frames: int) -> list[torch.Tensor]:
    seen = []

    def estimated(windows):
        for window in windows:
            seen.append(window[0, :, 0].real.int().tolist())
            yield window[..., :3].abs().unsqueeze(0), window

    counted = torch.arange(frames).view(1, -1, 1).expand(1, -1, 5).to(torch.complex64)
    joined(counted.split(10, dim=-2), estimated)
    return seen


def test_windows_begin_every_step_and_the_last_ends_where_the_song_does():
    assert windows_of(7) == [list(range(7))]
    assert windows_of(16) == [list(range(16))]
    assert windows_of(30) == [list(range(start, start + 16)) for start in (0, 11, 14)]
    assert windows_of(38) == [list(range(start, start + 16)) for start in (0, 11, 22)]


@pytest.mark.parametrize("frames", LENGTHS)
def test_an_estimate_is_the_mean_by_a_hann_window(frames):
    song = spectrum(frames)
    starts = [*range(0, max(frames - T, 0), STEP), max(frames - T, 0)]
    total, weight = torch.zeros(2, 2, frames, 3), torch.zeros(frames, 1)
    for start in starts:
        estimates, _ = next(blurred([song[:, start : start + T]]))
        length = estimates.shape[-2]
        hann = torch.tensor([math.sin(math.pi * (at + 0.5) / length) ** 2 for at in range(length)]).unsqueeze(-1)
        total[..., start : start + T, :] += hann * estimates
        weight[start : start + T] += hann
    found, mixture = joined([song])
    torch.testing.assert_close(found, total / weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixture, song, rtol=0, atol=0)


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("cut", [1, 5, 16, 40])
def test_how_a_spectrum_comes_in_pieces_changes_nothing(frames, cut):
    song = spectrum(frames)
    whole, pieces = joined([song]), joined(song.split(cut, dim=-2))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=0)


def test_what_a_window_says_of_its_edges_counts_little():
    def wrong_at_the_edges(windows):
        for window in windows:
            estimates = torch.zeros(1, 2, window.shape[-2], 3)
            estimates[..., :2, :] = estimates[..., -2:, :] = 1.0
            yield estimates, window

    found, _ = joined([spectrum(200)], wrong_at_the_edges, step=7)
    assert found[..., 2:-2, :].max() < 0.2  # a plain mean has 0.5
    assert (found[..., :2, :] == 1).all()  # nobody else says anything of the song's own


def test_memory_does_not_grow():
    """Of what came in, all but a few windows has come out."""
    taken = 0

    def pieces():
        nonlocal taken
        for _ in range(300):
            taken += 10
            yield spectrum(10)

    done, most = 0, 0
    for estimates, _ in crossfade.crossfaded(pieces(), blurred, T, STEP):
        most = max(most, taken - done)
        done += estimates.shape[-2]
    assert done == taken == 3000
    assert most <= T + STEP + 10


def test_no_piece_gives_none():
    assert list(crossfade.crossfaded([], blurred, T, STEP)) == []


@pytest.mark.parametrize(
    ("frames", "overlap", "step"),
    [(512, 0, 512), (512, 0.25, 383), (64, 0.5, 31), (63, 0.0, 63), (64, 0.9, 5), (2, 0.9, 1)],
)
def test_steps_of_windows_that_overlap_are_odd(frames, overlap, step):
    assert crossfade.step(frames, overlap) == step


@pytest.mark.parametrize("overlap", [-0.1, 0.91, 1, math.nan, math.inf, "half", True, None])
def test_a_share_that_is_none_says_so(overlap):
    with pytest.raises(UserError, match=r"model.overlap=.*: not a share of the window from 0 to 0.9. Take 0.25"):
        crossfade.check(overlap, "model.overlap=")


def test_shares_are_taken():
    for overlap in (0, 0.0, 0.25, 0.9):
        crossfade.check(overlap, "")
    assert all(crossfade.step(T, share / 100) % 2 for share in range(1, 91))
