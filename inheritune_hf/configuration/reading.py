"""What settings of every kind share: read from files, unknown names refused, values checked."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

Config = TypeVar("Config")


def read_mapping(path: str | Path) -> dict[str, Any]:
    """
    Read a YAML or JSON file that holds one mapping.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is neither YAML nor JSON, or holds something else than a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; give the path of a YAML or JSON file.")
    text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold 'name: value' settings, got a {type(values).__name__}.")
    return {str(key): value for key, value in values.items()}


def reject_unknown_keys(values: Mapping[str, Any], allowed: set[str], source: str) -> None:
    """Raise a `ValueError` that names every key of `values` that is not `allowed`, with the nearest allowed one."""
    complaints = []
    for key in values:
        if key not in allowed:
            nearest = difflib.get_close_matches(key, sorted(allowed), n=1)
            complaints.append(f"{key!r}" + (f" (did you mean {nearest[0]!r}?)" if nearest else ""))
    if complaints:
        raise ValueError(f"{source} has no setting named {', '.join(complaints)}.")


def from_mapping(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a configuration from `values`; an unknown key is a `ValueError` that names the nearest one."""
    untyped: Any = cls
    reject_unknown_keys(values, {item.name for item in dataclasses.fields(untyped)}, cls.__name__)
    return cls(**values)


def number(value: Any) -> float | None:
    """Return `value` as a number, or None if it is none."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def one_sided(value: Any) -> float | None:
    """
    Return a confidence as a number, or None if it says that means are compared.

    Raises:
        ValueError: If it is neither in [0.5, 1) nor none.
    """
    if str(value).lower() == "none":
        return None
    confidence = number(value)
    if confidence is None or not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must be in [0.5, 1), or none to compare means, got {value!r}.")
    return confidence


def positive(name: str, value: Any, least: int = 1) -> None:
    """Raise a `ValueError` that names the setting if `value` is not a whole number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of {least} or more, got {value!r}.")
