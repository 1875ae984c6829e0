"""The band: plays a score with all four parts and mixes them."""

import numpy as np

from stemwise.datasets.demo import bass, drums, other, score, synth, vocals
from stemwise.datasets.demo.synth import Signal

PLAYERS = {"vocals": vocals.play, "drums": drums.play, "bass": bass.play, "other": other.play}
LEVELS = {"vocals": 0.0, "drums": -0.5, "bass": -2.0, "other": -2.5}  # decibels, while a part plays
SPREAD = 2.0  # decibels by which the mix of one song may differ from another's
PEAK = 10 ** (-1 / 20)


def compose(seed: int, *, seconds: float, sample_rate: int = 44100) -> dict[str, Signal]:
    """The song that belongs to `seed`: stems vocals, drums, bass, other, each (2, seconds · sample_rate).

    The peak of their sum is -1 dBFS. The same arguments give the same samples.
    """
    song = score.write(seed, seconds)
    close = synth.envelope(seconds, sample_rate, attack=0.0, release=min(0.25, seconds / 4))
    stems: dict[str, Signal] = {}
    for number, (name, play) in enumerate(PLAYERS.items(), start=1):
        rng = np.random.default_rng([seed, number])
        track = play(song, rng, sample_rate)
        level = LEVELS[name] + rng.uniform(-SPREAD, SPREAD)
        stems[name] = track * close * np.float32(10 ** (level / 20) / max(synth.loudness(track, sample_rate), 1e-9))
    mixture = sum(stems.values(), start=np.zeros_like(stems["vocals"]))
    gain = np.float32(PEAK / np.abs(mixture).max())
    return {name: stem * gain for name, stem in stems.items()}
