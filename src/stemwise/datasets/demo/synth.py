"""What every part of the demo songs is made of: damped partials, shaped noise, moving filters, rooms.

All signals are float32: (N,) in mono, (2, N) in stereo. Frequencies are in hertz, times in seconds.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Signal = NDArray[np.float32]
Curve = NDArray[np.floating]

BLOCK = 256
WINDOW = 1024  # of `moving_filter`; short enough for a voice's formants to move, 43 Hz per bin
HOP = WINDOW // 4
HIGHEST = 0.47  # of the sample rate: partials above this are left out, so that nothing aliases


def hertz(pitch: ArrayLike) -> Curve:
    """MIDI pitch (69 is A4) to frequency, equal temperament."""
    return 440.0 * 2.0 ** ((np.asarray(pitch, dtype=np.float64) - 69.0) / 12.0)


def ring(
    frequencies: ArrayLike,
    gains: ArrayLike,
    decays: ArrayLike,
    seconds: float,
    rate: int,
    phases: ArrayLike = 0.0,
) -> Signal:
    """Sum of K damped sines: gain · exp(-decay · t) · sin(2π · frequency · t + phase).

    All arguments per partial are (K,) or one number; decays are per second. Returns (seconds · rate,).

    A damped sine is Im(c · zⁿ). Written n = 256·a + b, the sum over partials of (c·z^(256a)) · (z^b) is one
    matrix product of (A, K) by (K, 256), and the cost is that of a product, not of K sines per sample.
    """
    hz, gain, decay, phase = np.broadcast_arrays(np.atleast_1d(frequencies), gains, decays, phases)
    heard = (hz < HIGHEST * rate) & (hz > 0)
    exponent = (-decay[heard] + 2j * np.pi * hz[heard]) / rate
    length = round(seconds * rate)
    starts = np.arange(0, max(length, 1), BLOCK)[:, None]
    coarse = gain[heard] * np.exp(1j * phase[heard] + exponent * starts)
    fine = np.exp(exponent[:, None] * np.arange(BLOCK))
    left = np.concatenate([coarse.imag, coarse.real], axis=1).astype(np.float32)
    right = np.concatenate([fine.real, fine.imag], axis=0).astype(np.float32)
    return (left @ right).reshape(-1)[:length]


def envelope(seconds: float, rate: int, *, attack: float, release: float) -> Signal:
    """Rises for `attack`, stays at one, falls for `release` at the end; raised cosines, so without clicks."""
    time = (np.arange(round(seconds * rate)) + 0.5) / rate
    edge = np.minimum(time / max(attack, 1e-4), (seconds - time) / max(release, 1e-4))
    return ramp(edge).astype(np.float32)


def ramp(position: Curve) -> Curve:
    """0 below 0, 1 above 1, half a cosine in between."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(position, 0.0, 1.0))


def noise(seconds: float, rate: int, rng: np.random.Generator) -> Signal:
    return rng.standard_normal(round(seconds * rate), dtype=np.float32)


def shape(signal: Signal, response: Callable[[Curve], Curve], rate: int) -> Signal:
    """Filters (..., N) with the gain `response(frequencies)`, without delay."""
    length = signal.shape[-1]
    size = _fast(length)
    spectrum = np.fft.rfft(signal, n=size, axis=-1)
    gain = response(np.fft.rfftfreq(size, 1.0 / rate)).astype(np.float32)
    return np.fft.irfft(spectrum * gain, n=size, axis=-1)[..., :length].astype(np.float32)


def _fast(length: int) -> int:
    """The next length that suits an FFT: 1, 3 or 5 times a power of two. A prime takes ten times as long."""
    return min(factor * 2 ** max(int(np.ceil(np.log2(length / factor))), 0) for factor in (1, 3, 5))


def band(low: float, high: float) -> Callable[[Curve], Curve]:
    """A gain of one from `low` to `high`, falling by 12 dB per octave on either side."""

    def response(frequencies: Curve) -> Curve:
        ratio = np.maximum(frequencies, 1.0)
        return 1.0 / ((1.0 + (low / ratio) ** 2) * (1.0 + (ratio / high) ** 2))

    return response


def moving_filter(signal: Signal, gains: NDArray[np.floating]) -> Signal:
    """Filters (N,) with a gain that changes over time: gains (T, 513), one row per 256 samples.

    Overlapping frames, weighted in and out by the root of a Hann window whose squares add up to two.
    """
    length, count = signal.shape[0], len(gains)
    padded = np.zeros((count - 1) * HOP + WINDOW, np.float32)
    # Three frames that begin before the signal reach into its first samples.
    middle = slice(WINDOW - HOP, WINDOW - HOP + length)
    padded[middle] = signal
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * window
    spectrum = np.fft.rfft(frames, axis=-1) * gains
    frames = np.fft.irfft(spectrum, n=WINDOW, axis=-1).astype(np.float32) * (window / 2)
    output = np.zeros((count + 3) * HOP, np.float32)
    for quarter in range(4):
        piece = frames[:, quarter * HOP : (quarter + 1) * HOP].reshape(-1)
        output[quarter * HOP : quarter * HOP + piece.shape[0]] += piece
    return output[middle]


def frame_times(seconds: float, rate: int) -> Curve:
    """When the rows of `moving_filter`'s gains apply, for a signal of this length: (T,)."""
    return (np.arange(round(seconds * rate) // HOP + 5) - 1) * (HOP / rate)


def place(track: Signal, sound: Signal, at: float, rate: int, *, gain: float = 1.0, pan: float = 0.0) -> None:
    """Adds a sound, (n,) or (2, n), to the (2, N) `track` from `at` seconds on; what sticks out is cut off.

    `pan` goes from -1 (left) to 1 (right), at constant power.
    """
    start = round(at * rate)
    first, last = max(0, -start), min(sound.shape[-1], track.shape[-1] - start)
    if last <= first:
        return
    angle = (pan + 1) * np.pi / 4
    sides = np.float32(gain * np.sqrt(2)) * np.array([[np.cos(angle)], [np.sin(angle)]], np.float32)
    track[:, start + first : start + last] += sides * sound[..., first:last]


def reverb(track: Signal, rate: int, rng: np.random.Generator, *, seconds: float, wet: float) -> Signal:
    """(2, N) in a room: `wet` is the room's energy relative to the dry sound's, as an amplitude.

    The room is decaying noise, different on both sides, 60 dB down after `seconds`.
    """
    length = max(round(seconds * rate), 8)
    time = np.arange(length) / length
    tail = rng.standard_normal((2, length)) * np.exp(-6.9 * time) * ramp(time * 30)
    room = shape(tail.astype(np.float32), band(180.0, 5500.0), rate)
    room *= wet / np.sqrt(np.mean(np.sum(room**2, axis=1)))
    return track + _convolve(track, room)


def _convolve(track: Signal, response: Signal) -> Signal:
    """(2, N) by (2, L) → (2, N), in blocks, so that a long song needs no long transform."""
    length, taps = track.shape[1], response.shape[1]
    size = _fast(3 * taps)
    hop = size - taps
    count = -(-length // hop)
    blocks = np.zeros((2, count * hop), np.float32)
    blocks[:, :length] = track
    spectrum = np.fft.rfft(blocks.reshape(2, count, hop), n=size)
    spectrum *= np.fft.rfft(response, n=size)[:, None]
    blocks = np.fft.irfft(spectrum, n=size).astype(np.float32)
    output = np.zeros((2, (count + 1) * hop), np.float32)
    output[:, : count * hop] = blocks[..., :hop].reshape(2, -1)
    overlap = output[:, hop:].reshape(2, count, hop)[..., : size - hop]
    overlap += blocks[..., hop:]
    return output[:, :length]


def loudness(track: Signal, rate: int) -> float:
    """Root mean square of the passages that are not silent (over 50 ms, within 30 dB of the loudest)."""
    block = max(rate // 20, 1)
    count = max(track.shape[1] // block, 1)
    power = np.mean(track[:, : count * block].reshape(2, count, -1).astype(np.float64) ** 2, axis=(0, 2))
    return float(np.sqrt(np.mean(power[power >= 1e-3 * power.max()])))
