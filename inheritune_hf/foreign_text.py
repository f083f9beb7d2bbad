"""Text that others wrote: JSON and YAML are read within bounds, and what is shown of it stays text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

#: Deepest nesting of JSON and YAML.
MAX_NESTING = 100

#: Characters of YAML that are read at most.
MAX_YAML = 300_000

_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What a terminal or a reader would take for something else than text: control characters other than tabs and line
# ends, marks that change the direction of writing, further line ends, and halves of characters.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

#: Tokens and keys of services, as they are written.
TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[A-Za-z0-9_-]{32,}|AKIA[0-9A-Z]{16})\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
#: The beginning of an address up to the end of the password in it.
PASSWORD = re.compile(r"\b(\w+://)[^\s/\"'<>]*:[^\s/\"'<>]*@")
# What stands behind the path of an address: the signature of a signed one, or a key.
_QUERY = re.compile(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>)]+")


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the values of a JSON text, in UTF-8; a `ValueError` names `where` if it is none, or nests too deep."""
    try:
        values = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{where} nests deeper than {MAX_NESTING} levels.") from error
    level: list[Any] = [values]
    for _ in range(MAX_NESTING + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return values
        level = [value for item in level for value in (item.values() if isinstance(item, dict) else item)]
    raise ValueError(f"{where} nests deeper than {MAX_NESTING} levels.")


def parse_yaml(text: str, where: str) -> Any:
    """
    Return the values of a YAML text, which may have no aliases: by them few bytes stand for gigabytes.

    A `ValueError` names `where` if it is not YAML, is too long, nests too deep, or has aliases or tags.
    """
    if len(text) > MAX_YAML:
        raise ValueError(f"{where} is longer than {MAX_YAML:,} characters.")
    try:
        refused = _refused_yaml(yaml.parse(text, Loader=_YAML_LOADER))
        values = None if refused else yaml.load(text, Loader=_YAML_LOADER)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from error
    if refused:
        raise ValueError(f"{where} {refused}.")
    return values


def _refused_yaml(events: Iterable[Any]) -> str | None:
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_NESTING:
            return f"nests deeper than {MAX_NESTING} levels"
        if isinstance(event, yaml.AliasEvent):
            return f"has the alias *{event.anchor}: write out what it stands for"
        if getattr(event, "tag", None) is not None:
            return f"has the tag {event.tag}: write the value without it"
    return None


def printable(text: str) -> str:
    """Return text of any origin as text: control characters are written out, secrets are replaced by three stars."""
    text = PASSWORD.sub(r"\1***@", _QUERY.sub(r"\1?***", TOKEN.sub("***", text)))
    return _UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: object) -> str:
    """Return text of any origin on one line, as `printable` does."""
    return printable(" ".join(str(text).split()))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message as a sentence, as `printable` does, or its kind if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = printable(lines[0]) if lines else type(error).__name__
    return text if text.endswith((".", "!")) else f"{text}."


def file_names(names: Sequence[str], most: int = 3) -> str:
    """
    Return the names of files as they are shown: up to `most` in full, more as in "168 files (text/*.txt)".

    Those below the current folder are named from there.
    """
    names = [name.removeprefix(str(Path.cwd()) + os.sep) for name in names]
    if len(names) <= most:
        return ", ".join(names)
    paths = [PurePath(name) for name in names]
    folders, suffixes = {str(path.parent) for path in paths}, {path.suffix for path in paths}
    try:
        shared = os.path.commonpath(folders)
    except ValueError:  # relative and absolute ones, or on several drives
        shared = ""
    pattern = ("*" if len(folders) == 1 else "**/*") + (suffixes.pop() if len(suffixes) == 1 else "")
    return f"{len(names)} files ({PurePath(shared, pattern).as_posix()})"
