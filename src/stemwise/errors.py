"""The one exception for a mistake that its reader can mend: no traceback, exit code 2."""

from collections.abc import Sequence


class UserError(ValueError):
    """A message for the person at the keyboard.

    It says where (file and row, or config key), what is wrong, what was found, and what to do.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks show instead of a traceback: the message, as on the command line."""
        return [f"UserError: {self}"]


def raise_all(problems: Sequence[str], *, heading: str) -> None:
    """Raises one `UserError` that lists all `problems` under `heading`; returns if there are none."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError("\n  ".join([f"{heading}: {count}", *problems]))
