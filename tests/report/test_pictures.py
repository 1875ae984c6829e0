"""The colours: a louder place is never darker, and equal steps look equal."""

import numpy as np

from stemwise.report import pictures


def lightness(colours: np.ndarray) -> np.ndarray:
    """L* of CIELAB, another measure than the one the colours were drawn by."""
    part = colours / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)


def test_lightness_grows_evenly():
    levels = lightness(pictures.colours())
    assert levels[0] < 3
    assert levels[-1] > 93
    steps = np.diff(levels[32::16])  # near black OKLab and CIELAB differ
    assert steps.min() > 0.6 * steps.mean()
    assert steps.max() < 1.4 * steps.mean()


def test_neighbours_look_alike():
    assert np.abs(np.diff(pictures.colours().astype(int), axis=0)).max() <= 8
