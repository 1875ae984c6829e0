"""Values in the grammar of Hydra's command line, whatever is in them."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_PLAIN = re.compile(r"(?!\.\d)[A-Za-z_./][\w./-]*", re.ASCII)  # .5 is a number
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"}


def text(value: Any) -> str:
    """`value` (None, a number, a text, or a list or mapping of such) as it stands behind `key=`."""
    if isinstance(value, list | tuple):
        return f"[{','.join(text(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{text(str(key))}:{text(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)  # null, true, 0.0001


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    # Within quotes a backslash is itself, but for those in front of a quote.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value) + "'"
