"""The sound of a page: every `SECONDS` of a song as one small script, with all its variants.

A page that was opened from the disk may not fetch files, and what a media element plays is silenced on its way through
WebAudio. A script beside the page is allowed everywhere. It hands the player Ogg Opus in base64, which the browser
decodes into samples, and the player puts these one behind the other to the sample.

Opus is a transform codec, so each chunk carries `guard` seconds of what is before and after it, and the player leaves
them out: the first and last samples that are heard were coded like all others.
Axes: V variant, C channel, N sample.
"""

import base64
import io
import json
import math
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.codec.context import Flags
from torch import Tensor

from stemwise import resampling

RATE = 48_000  # Hz, what Opus is decoded to
SECONDS = 10  # of a chunk
BITRATE = 80_000  # bit/s per channel: nothing masks the coding noise of a stem heard alone
GUARD = 0.1  # seconds, at least


class Chunks:
    """Writes `0.js`, `1.js`, … into `folder`. `key` tells the player whose sound it is."""

    def __init__(self, folder: Path, key: str, variants: int, channels: int, sample_rate: int) -> None:
        self._folder, self._key, self._rate = folder, key, sample_rate
        # A whole number of samples at both rates.
        step = sample_rate // math.gcd(sample_rate, RATE)
        self._guard = step * math.ceil(GUARD * sample_rate / step)
        self._held = torch.zeros(variants, channels, self._guard)
        self.count = 0

    @property
    def guard(self) -> float:
        """Seconds before and after each chunk that are not to be heard."""
        return self._guard / self._rate

    def write(self, blocks: Tensor) -> None:
        """Appends (V, C, n)."""
        self._held = torch.cat([self._held, blocks], -1)
        length = SECONDS * self._rate
        while self._held.shape[-1] >= length + 2 * self._guard:
            self._put(self._held[..., : length + 2 * self._guard])
            self._held = self._held[..., length:].clone()

    def end(self) -> None:
        """Writes what is left."""
        if self._held.shape[-1] > self._guard:
            self.write(self._held.new_zeros(*self._held.shape[:2], self._guard))
            if self._held.shape[-1] > 2 * self._guard:
                self._put(self._held)

    def _put(self, samples: Tensor) -> None:
        coded = [base64.b64encode(sound).decode() for sound in self._coded(samples)]
        path = self._folder / f"{self.count}.js"
        path.write_text(f"stemwise.sound({json.dumps(self._key)}, {self.count}, {json.dumps(coded)});\n", "ascii")
        self.count += 1

    def _coded(self, samples: Tensor) -> list[bytes]:
        """Each variant as an Ogg Opus file; all are coded side by side, and this thread can be interrupted."""
        flat = samples.flatten(0, 1)
        if self._rate != RATE:
            flat = torch.cat(list(resampling.resample(iter([flat]), self._rate, RATE)), 1)
        found: dict[int, bytes] = {}
        errors: list[Exception] = []

        def code(number: int, sound: np.ndarray) -> None:
            try:
                found[number] = opus(sound)
            except Exception as error:
                errors.append(error)

        parts = enumerate(flat.unflatten(0, samples.shape[:2]).numpy())
        threads = [threading.Thread(target=code, args=part, daemon=True) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [found[number] for number in range(len(threads))]


def opus(samples: np.ndarray) -> bytes:
    """A waveform (C, N) at `RATE` as an Ogg Opus file."""
    file = io.BytesIO()
    # Bit-exact: no random serial number. Above a complexity of 4 it takes twice as long, and the error is the same.
    with av.open(file, "w", format="ogg", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=RATE, options={"compression_level": "4"})
        stream.layout, stream.format = f"{len(samples)}c", "flt"
        stream.codec_context.flags |= Flags.bitexact
        stream.bit_rate = BITRATE * len(samples)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples.T).reshape(1, -1), format="flt", layout=f"{len(samples)}c"
        )
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
