"""Ways in which bytes and JSON come to harm, as strategies for hypothesis."""

import copy
import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Draw = Callable[..., Any]

# Where sizes, counts and places overflow, or point to before the beginning.
NUMBERS = [
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
]
NUMBERS += [2**64 - 1, 2**64, 10**30, 10**300]
NUMBERS += [-number for number in NUMBERS]
DIGITS = re.compile(rb"\d+")


def _set(draw: Draw, data: bytearray) -> None:
    if data:
        data[_place(draw, data)] = draw(st.integers(0, 255))


def _flip(draw: Draw, data: bytearray) -> None:
    if data:
        data[_place(draw, data)] ^= 1 << draw(st.integers(0, 7))


def _cut(draw: Draw, data: bytearray) -> None:
    del data[draw(st.integers(0, len(data))) :]


def _remove(draw: Draw, data: bytearray) -> None:
    begin, end = _range(draw, data)
    del data[begin:end]


def _repeat(draw: Draw, data: bytearray) -> None:
    begin, end = _range(draw, data)
    data[begin:begin] = data[begin:end] * draw(st.sampled_from([1, 1, 2, 30]))


def _move(draw: Draw, data: bytearray) -> None:
    begin, end = _range(draw, data)
    piece = data[begin:end]
    del data[begin:end]
    place = draw(st.integers(0, len(data)))
    data[place:place] = piece


def _clear(draw: Draw, data: bytearray) -> None:
    begin, end = _range(draw, data)
    data[begin:end] = bytes([draw(st.sampled_from([0, 255, 128, 32]))]) * (end - begin)


def _insert(draw: Draw, data: bytearray) -> None:
    place = draw(st.integers(0, len(data)))
    data[place:place] = draw(st.binary(max_size=40))


def _binary_number(draw: Draw, data: bytearray) -> None:
    """A number of 1 to 8 bytes becomes an odd one."""
    size, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "big"]))
    place = draw(st.integers(0, max(len(data) - size, 0)))
    number = draw(st.sampled_from(NUMBERS)) % 256**size
    data[place : place + size] = number.to_bytes(size, order)


def _text_number(draw: Draw, data: bytearray) -> None:
    """A number that is written in digits becomes an odd one."""
    if found := list(DIGITS.finditer(data)):
        chosen = draw(st.sampled_from(found))
        odd = st.sampled_from(NUMBERS).map(str) | st.sampled_from(["nan", "inf", "1e999", "", "0x1", "9" * 5000])
        data[chosen.start() : chosen.end()] = draw(odd).encode()


CHANGES = (
    *(_set, _flip, _cut, _remove, _repeat, _move, _clear, _insert),
    *(_binary_number, _binary_number, _text_number, _text_number),
)


def _place(draw: Draw, data: bytearray) -> int:
    return draw(st.integers(0, len(data) - 1))


def _range(draw: Draw, data: bytearray) -> tuple[int, int]:
    begin = draw(st.integers(0, len(data)))
    return begin, begin + draw(st.integers(0, min(len(data) - begin, 300)))


@st.composite
def damaged(draw: Draw, content: bytes) -> bytes:
    """`content` after one to four changes."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        draw(st.sampled_from(CHANGES))(draw, data)
    return bytes(data)


@st.composite
def begun(draw: Draw, content: bytes) -> bytes:
    """The beginning of `content`, and then anything; or the end of it, which some formats start from."""
    place = draw(st.integers(0, len(content)))
    junk = draw(st.binary(max_size=500))
    return content[:place] + junk if draw(st.booleans()) else junk + content[place:]


def anything_like(content: bytes) -> st.SearchStrategy[bytes]:
    """Bytes on the way from `content` to noise."""
    return st.one_of(damaged(content), damaged(content), begun(content), st.binary(max_size=500))


SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", ".", "..", "../../x", "/x", "\0", "\ud800", "\x1b[2J", "a" * 300, "${oc.env:HOME}", "nan"])
)
JSON = st.recursive(
    SCALARS,
    lambda some: st.lists(some, max_size=4) | st.dictionaries(st.text(max_size=5), some, max_size=3),
    max_leaves=6,
)
DEEP = st.sampled_from([5, 20, 60]).map(lambda depth: _nested(depth))


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def damaged_json(draw: Draw, value: Any) -> Any:
    """`value`, a tree of lists and dictionaries, with one to three of its places changed."""
    tree = {"": copy.deepcopy(value)}
    for _ in range(draw(st.integers(1, 3))):
        node, key = draw(st.sampled_from(list(_places(tree))))
        how = draw(st.sampled_from(["replace", "replace", "number", "remove", "wrap", "twin", "deep"]))
        if how == "remove" and node is not tree:
            del node[key]
        elif how == "number" and isinstance(node[key], int | float):
            node[key] = draw(st.sampled_from(NUMBERS) | st.floats())
        elif how == "wrap":
            node[key] = [node[key]]
        elif how == "twin":
            # The other value is of a type that somebody expects somewhere.
            other, name = draw(st.sampled_from(list(_places(tree))))
            node[key] = copy.deepcopy(other[name])
        elif how == "deep":
            node[key] = draw(DEEP)
        else:
            node[key] = draw(JSON)
    return tree[""]


def _places(node: Any, depth: int = 0) -> Any:
    """Every place of a tree, as the container and the key or number in it."""
    keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in list(keys)[:50]:
        yield node, key
        if depth < 20:
            yield from _places(node[key], depth + 1)
