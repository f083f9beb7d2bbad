"""Resolve `keep_layers`: which layers of the reference a student holds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from .measures import is_measured

#: What `keep_layers` may be; every error message ends in it or in the one form that was meant.
GRAMMAR = (
    "a number (12), 'half', 'first:12', 'last:8', 'ends:4+4', 'every:2', 'spaced:12', "
    "half-open ranges ('0:8,10'), a size ('params:350M') or a list ([0, 2])"
)

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def resolve_layers(
    choice: int | str | Sequence[int], depth: int, prefix_sizes: Sequence[int] | None = None
) -> tuple[int, ...]:
    """
    Return the layers that `choice` selects out of a reference of `depth` layers.

    The layers are 0-based, in ascending order, without repeats, and never none.

    Args:
        choice (`int`, `str` or sequence of `int`):
            `12` or `"12"` (the first 12 layers), `"half"`, `"first:12"`, `"last:8"`, `"ends:4+4"`, `"every:2"`,
            `"spaced:12"` (evenly, the first and the last included), `"0:8,10"` (half-open ranges and single layers),
            `"params:350M"` (as many first layers as fit into so many parameters) or a list of layers.
        depth (`int`):
            Depth of the reference, in layers.
        prefix_sizes (sequence of `int`, *optional*):
            Parameters of a student of the first layer, of the first two, and so on; needed for `"params:350M"`.

    Returns:
        `tuple[int, ...]`: The kept layers.

    Raises:
        ValueError: If `choice` is not in the grammar, or selects what the reference does not have.
    """
    if isinstance(choice, bool) or not isinstance(choice, int | str | Sequence):
        raise ValueError(f"keep_layers must be {GRAMMAR}, got {choice!r}.")
    if isinstance(choice, int | str):
        return _resolve_text(str(choice).strip(), depth, prefix_sizes)
    return _checked(choice, depth, choice)


def is_prefix(layers: Sequence[int]) -> bool:
    """Return whether `layers` are the first layers of the reference, without a gap."""
    return list(layers) == list(range(len(layers)))


def describe(layers: Sequence[int]) -> str:
    """Return `layers` in the compact half-open notation that `resolve_layers` reads, such as `0:8,10`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([layer, layer + 1])
    # A lone "0" would be read as a number of layers, so a selection of one layer stays a range.
    single = len(layers) == 1
    return ",".join(f"{start}:{stop}" if single or stop - start > 1 else str(start) for start, stop in runs)


def _resolve_text(text: str, depth: int, prefix_sizes: Sequence[int] | None) -> tuple[int, ...]:
    if re.fullmatch(r"[+-]?\d+", text):
        return tuple(range(_count(int(text), depth)))
    if text == "half":
        return tuple(range(max(1, depth // 2)))
    word, _, argument = text.partition(":")
    if is_measured(text):
        raise ValueError(
            f"keep_layers={text!r} is not resolved here: it needs an analysis of sequences. Give the layers that "
            "inheritune_hf.analysis.resolve_measured(reference, choice, sequences) returns, as `inheritune inherit` "
            "does; InherituneTrainer and `inheritune train` measure by themselves."
        )
    if word == "params":
        return _resolve_size(argument, text, prefix_sizes)
    if word in ("first", "last", "every", "spaced", "ends"):
        return _resolve_form(word, argument, text, depth)
    if re.search(r"\d\s*-\s*\d", text):
        raise ValueError(
            f"keep_layers={text!r} has a dash, which leaves open whether the last layer is meant; write a half-open "
            f"range with a colon: {re.sub(r'(?<=[0-9])[ ]*-[ ]*(?=[0-9])', ':', text)!r} leaves the last number out."
        )
    return _resolve_ranges(text, depth)


def _resolve_size(argument: str, text: str, prefix_sizes: Sequence[int] | None) -> tuple[int, ...]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMbBgGtT]?)", argument)
    if found is None:
        raise ValueError(
            f"keep_layers={text!r} is not a number of parameters: write it like 'params:350M' (or K, B), "
            "the size that the student may have."
        )
    if prefix_sizes is None:
        raise ValueError(f"keep_layers={text!r} needs the reference's config, which says how many parameters fit.")
    limit = float(found[1]) * _UNITS[found[2].lower()]
    count = sum(size <= limit for size in prefix_sizes)
    if count == 0:
        raise ValueError(
            f"keep_layers={text!r} is too small: a student of the first layer alone has {prefix_sizes[0]:,} parameters."
        )
    return tuple(range(count))


def _resolve_form(word: str, argument: str, text: str, depth: int) -> tuple[int, ...]:
    pattern = r"(\d+)\+(\d+)" if word == "ends" else r"(\d+)"
    found = re.fullmatch(pattern, argument)
    if found is None:
        example = "ends:4+4" if word == "ends" else f"{word}:2"
        raise ValueError(f"keep_layers={text!r} is not complete: write it like {example!r}.")
    count = int(found[1])
    if word == "ends":
        front, back = _count(count, depth), _count(int(found[2]), depth)
        _count(front + back, depth)
        return (*range(front), *range(depth - back, depth))
    _count(count, depth)
    if word == "every":
        return tuple(range(0, depth, count))
    if word == "last":
        return tuple(range(depth - count, depth))
    if word == "spaced" and count > 1:
        # Rounded in whole numbers: neighbours are at least one layer apart, so no layer repeats.
        return tuple((index * (depth - 1) + (count - 1) // 2) // (count - 1) for index in range(count))
    return tuple(range(count))


def _resolve_ranges(text: str, depth: int) -> tuple[int, ...]:
    layers: list[int] = []
    for item in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:\s*:\s*(\d+))?\s*", item)
        if found is None:
            raise ValueError(f"keep_layers must be {GRAMMAR}, got {text!r}.")
        start = int(found[1])
        stop = start + 1 if found[2] is None else int(found[2])
        if stop <= start:
            raise ValueError(
                f"keep_layers={text!r} has the empty range {item.strip()!r}: its end must be above its start."
            )
        if stop > depth:
            raise ValueError(_out_of_range(stop - 1, depth, text))
        layers.extend(range(start, stop))
    return _checked(layers, depth, text)


def _checked(layers: Sequence[int], depth: int, given: object) -> tuple[int, ...]:
    if not layers:
        raise ValueError(f"keep_layers must name at least one layer, got {given!r}.")
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise ValueError(f"keep_layers must list whole numbers, got {layer!r} in {given!r}.")
        if not 0 <= layer < depth:
            raise ValueError(_out_of_range(layer, depth, given))
    if any(left >= right for left, right in itertools.pairwise(layers)):
        raise ValueError(f"keep_layers must be in ascending order without repeats, got {given!r}.")
    return tuple(layers)


def _count(count: int, depth: int) -> int:
    if not 1 <= count <= depth:
        raise ValueError(f"keep_layers must be between 1 and {depth} (the reference's depth), got {count}.")
    return count


def _out_of_range(layer: int, depth: int, given: object) -> str:
    return f"keep_layers must name layers from 0 to {depth - 1} (the reference has {depth}), got {layer} in {given!r}."
