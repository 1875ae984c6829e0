"""Pictures show the numbers that they were given."""

import numpy as np
import pytest

from stemwise import pictures

TO_LINEAR = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.arange(256) / 255])


def lightness(colours: np.ndarray) -> np.ndarray:
    """CIE L* of 8-bit sRGB (…, 3)."""
    luminance = TO_LINEAR[colours] @ (0.2126, 0.7152, 0.0722)
    return np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, 24389 / 27 * luminance)


def test_equal_steps_of_the_colour_map_look_equal():
    """Judged by another measure of lightness than the one it was made with."""
    found = lightness(pictures.colours())
    assert found[0] < 3
    assert found[-1] > 93
    steps = np.diff(found[32::16])  # near black the two differ
    assert steps.min() > 0.6 * steps.mean()
    assert steps.max() < 1.4 * steps.mean()
    assert np.abs(np.diff(pictures.colours().astype(int), axis=0)).max() <= 8


def test_time_goes_right_and_frequency_up():
    values = np.zeros((30, 20))
    values[25, 2] = 1  # late and low
    light = lightness(np.asarray(pictures.heat(values)))
    assert light.shape == (20, 30)
    assert np.unravel_index(light.argmax(), light.shape) == (17, 25)


def test_decibels_are_below_the_loudest():
    magnitudes = np.zeros((2, 1, 4))
    magnitudes[:, 0] = [10, 1, 1e-3, 0]
    found = pictures.decibels(magnitudes, loudest=10)
    np.testing.assert_allclose(found[0], [1, 0.75, 0, 0], atol=1e-12)  # 0 dB, -20 dB, and less than there is room for
    assert pictures.decibels(np.zeros((1, 2, 3)), loudest=0).max() == 0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 22.05, [0, 5, 10, 15, 20]),
        (61.25, 67.25, [62, 63, 64, 65, 66, 67]),
        (-3, 9, [-2, 0, 2, 4, 6, 8]),
        (1, 1, [1]),
    ],
)
def test_ticks_are_round_and_within(low, high, expected):
    assert pictures.ticks(low, high) == expected


def test_panels_stand_side_by_side_with_their_own_values():
    panels = [pictures.Panel(title, np.full((5, 4), level), "0", "1") for title, level in (("a", 0.0), ("b", 1.0))]
    picture = np.asarray(pictures.side_by_side(panels, (0, 6), 4))
    middle = pictures.TOP + pictures.SIZE[1] // 2
    for number, level in enumerate((0, 255)):
        left = number * picture.shape[1] // 2 + pictures.LEFT
        assert (picture[middle, left : left + pictures.SIZE[0]] == pictures.colours()[level]).all()


def test_a_box_spans_the_quartiles_and_leaves_out_what_is_no_number():
    picture = np.asarray(pictures.boxes({"vocals": [1, 2, 3, 4, 5, np.nan], "silent": [np.nan]}, "dB")).astype(int)
    rows = np.flatnonzero((picture == (222, 232, 236)).all(axis=2).any(axis=1))
    axis = pictures.TOP, pictures.TOP + 300  # from 6 down to -1
    values = 6 - (rows - axis[0]) / (axis[1] - axis[0]) * 7
    assert values.max() == pytest.approx(4, abs=0.05)
    assert values.min() == pytest.approx(2, abs=0.05)
