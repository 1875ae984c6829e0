"""Songs that stemwise composes itself, so that the first training run needs no download and no licence.

`find` writes them to disk and returns their indexes; `compose` returns one as waveforms.
"""

from stemwise.datasets.demo.band import compose
from stemwise.datasets.demo.files import find

__all__ = ["compose", "find"]
