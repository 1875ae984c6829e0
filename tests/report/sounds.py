"""Sound out of the scripts beside a page, as the browser gets it."""

import base64
import io

import av
import numpy as np


def decoded(sound: str) -> np.ndarray:
    """(C, N) of Ogg Opus in base64."""
    with av.open(io.BytesIO(base64.b64decode(sound))) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], 1)
