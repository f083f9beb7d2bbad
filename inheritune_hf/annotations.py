"""Check values that come from outside against the type annotations that say what they may be."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclasses.dataclass(frozen=True)
class Within:
    """The range of a number, as an annotation says it: `Annotated[int, Within(1, 12)]`."""

    least: float = -math.inf
    most: float = math.inf

    def __str__(self) -> str:
        if self.most == math.inf:
            return f"of {self.least:g} or more"
        return f"from {self.least:g} to {self.most:g}"


def conform(kind: Any, value: Any, place: str) -> Any:
    """
    Return `value`, as JSON or YAML give it, in the type that an annotation asks for.

    Lists become tuples and mappings become dataclasses where the annotation says so; a dataclass's `__post_init__` may
    check more.

    Args:
        kind: Annotation: a plain type, a dataclass, a `Literal`, an optional or another union, a tuple, a list, a
            mapping with string keys, any of them in `Annotated` with a `Within`, or `Any`.
        value: The value.
        place (`str`): What the value is called in an error.

    Raises:
        ValueError: If the value is of another type, not finite, or out of range; the message names the place.
    """
    origin, choices = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return _in_range(choices[0], choices[1:], value, place)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise ValueError(f"{place} must be one of {', '.join(map(repr, choices))}, got {_shown(value)}.")
        return value
    if origin in (Union, types.UnionType):
        return _one_of(choices, value, place)
    if dataclasses.is_dataclass(kind):
        return _to_dataclass(kind, value, place)
    if origin in (list, tuple):
        return _to_sequence(origin, choices, value, place)
    if isinstance(origin, type):
        items = _expect(dict, "a mapping", value, place).items()
        return {_expect(str, "text", key, place): conform(choices[1], item, f"{place}.{key}") for key, item in items}
    return _to_float(value, place) if kind is float else _expect(kind, _NAMES[kind], value, place)


_NAMES = {int: "a whole number", str: "text", bool: "true or false", type(None): "nothing", dict: "a mapping"}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _expect(kind: type, name: str, value: Any, place: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{place} must be {name}, got {_shown(value)}.")
    return value


def _in_range(kind: Any, limits: Sequence[Any], value: Any, place: str) -> Any:
    ranges = [item for item in limits if isinstance(item, Within)]
    try:
        found = conform(kind, value, place)
        if all(item.least <= found <= item.most for item in ranges):
            return found
    except ValueError:
        if not ranges:
            raise
    number = "a whole number" if kind is int else "a number"
    raise ValueError(f"{place} must be {number} {' and '.join(map(str, ranges))}, got {_shown(value)}.") from None


def _to_float(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{place} must be a finite number, got {_shown(value)}.")
    return float(value)


def _one_of(kinds: Sequence[Any], value: Any, place: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        with contextlib.suppress(ValueError):
            return conform(kind, value, place)
    return conform(others[-1], value, place)


def _to_sequence(origin: Any, kinds: Sequence[Any], value: Any, place: str) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{place} must be a list, got {_shown(value)}.")
    fixed = origin is tuple and kinds[-1] is not Ellipsis
    if fixed and len(value) != len(kinds):
        raise ValueError(f"{place} must be a list of {len(kinds)}, got {len(value)}.")
    if not fixed and kinds[0] in (int, bool, str) and all(type(item) is kinds[0] for item in value):
        return origin(value)  # lists of a million counts are common
    expected = kinds if fixed else [kinds[0]] * len(value)
    items = zip(expected, value, strict=True)
    return origin(conform(kind, item, f"{place}[{index}]") for index, (kind, item) in enumerate(items))


def _to_dataclass(kind: Any, value: Any, place: str) -> Any:
    values = _expect(Mapping, "a mapping", value, place)
    fields = [item for item in dataclasses.fields(kind) if item.init]
    hints = annotations_of(kind)
    unknown = sorted(str(name) for name in set(values) - {item.name for item in fields})
    if unknown:
        raise ValueError(f"{place} has no field {unknown[0]!r}.")
    found = {}
    for item in fields:
        if item.name in values:
            found[item.name] = conform(hints[item.name], values[item.name], f"{place}.{item.name}".lstrip("."))
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ValueError(f"{place} lacks the field {item.name!r}.")
    try:
        return kind(**found)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


@functools.cache
def annotations_of(kind: Any) -> dict[str, Any]:
    """Return the annotations of a dataclass's fields, resolved, with what `Annotated` adds."""
    return get_type_hints(kind, include_extras=True)
