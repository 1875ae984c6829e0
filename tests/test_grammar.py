"""Values in Hydra's grammar: what is written is read again, whatever it is."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from stemwise import grammar

# A `${` refers to another key; keys of mappings are identifiers there.
TEXTS = st.text(st.characters(exclude_characters="$", exclude_categories=["Cs", "Cc"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS


def _maps(values):
    return st.dictionaries(st.from_regex(r"[a-z_]{2,8}", fullmatch=True).filter(_is_no_word), values, max_size=3)


def _is_no_word(name: str) -> bool:
    return name not in {"null", "true", "false", "yes", "no", "on", "off", "nan", "inf"}


VALUES = st.recursive(SCALARS, lambda some: st.lists(some, max_size=4) | _maps(some), max_leaves=8)


@given(VALUES)
def test_a_value_comes_back(value):
    (override,) = OverridesParser.create().parse_overrides([f"key={grammar.text(value)}"])
    assert override.value() == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-4, "0.0001"),
        (float("inf"), "inf"),
        ("songs/a.csv", "songs/a.csv"),
        ("null", "'null'"),
        (".5", "'.5'"),
        ("It's, (1)", r"'It\'s, (1)'"),
        (["vocals", 2], "[vocals,2]"),
        ({"a": [1.5]}, "{a:[1.5]}"),
    ],
)
def test_values_are_written_as_people_would(value, text):
    assert grammar.text(value) == text
