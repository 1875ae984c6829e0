"""Music source separation that people train themselves: Spleeter's design on PyTorch Lightning and Hydra.

To separate from Python:

    import stemwise

    model = stemwise.load("spleeter:4stems")           # or the path of a model file
    stems = stemwise.separate(model, "song.mp3")       # {"vocals": (C, N), "drums": (C, N), ...}
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemwise.api import Wish, load, separate

__all__ = ["Wish", "load", "separate"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Torch takes a second to import: `stemwise --help` need not wait for it.
    if name in __all__:
        from stemwise import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
