"""Settings of a run from the command line and a YAML or JSON file, by Transformers' own argument parser."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from transformers import HfArgumentParser, TrainingArguments

from ..configuration import DataConfig, InherituneConfig, RunConfig, read_mapping, reject_unknown_keys

Config = TypeVar("Config")


class Settings(NamedTuple):
    """Everything a run is told."""

    run: RunConfig
    recipe: InherituneConfig
    data: DataConfig
    args: TrainingArguments


def build_parser(prog: str | None = None, more: Sequence[type] = ()) -> HfArgumentParser:
    """Return the parser of a run: every field of recipe, data settings, `TrainingArguments` and `more` is an option."""
    settings: Any = (RunConfig, InherituneConfig, DataConfig, TrainingArguments, *more)
    parser = HfArgumentParser(
        settings,
        prog=prog,
        description="Inherit the first layers of a reference, train, grow until its loss is matched, and save the "
        "student. Without --reference the embedded default runs, offline.",
        formatter_class=argparse.HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file of settings; the command line wins.")
    _set_readers(parser)
    return parser


def parse_settings(argv: Sequence[str], defaults: Mapping[str, Any] | None = None, prog: str | None = None) -> Settings:
    """
    Read the settings of a run.

    Args:
        argv (`Sequence[str]`): The command line, without the program's name.
        defaults (`Mapping[str, Any]`, *optional*): Used, if there is no reference, where neither the command line nor
            the file says anything.
        prog (`str`, *optional*): Name of the program in messages.

    Raises:
        SystemExit: With status 2 and a message if a setting is unknown or cannot be used.
    """
    return Settings(*_parse(argv, defaults, prog))


def parse_comparison(
    argv: Sequence[str], comparison: type[Config], defaults: Mapping[str, Any] | None = None, prog: str | None = None
) -> tuple[Settings, Config]:
    """
    Read the settings of a comparison: those of a run, and the fields of `comparison`.

    The first word may be the file of settings.

    Raises:
        SystemExit: With status 2 and a message if a setting is unknown or cannot be used.
    """
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = ["--config", *words]
    *run, config = _parse(words, defaults, prog, (comparison,))
    return Settings(*run), config


def _parse(
    argv: Sequence[str], defaults: Mapping[str, Any] | None, prog: str | None, more: Sequence[type] = ()
) -> tuple[Any, ...]:
    parser = build_parser(prog, more)
    try:
        file = _config_file(argv)
        given = read_mapping(file) if file else {}
        allowed = {action.dest for action in parser._actions} - {"help", "config"}
        reject_unknown_keys(given, allowed, f"{file}: a run")
        if defaults and "reference" not in given and not _names_reference(argv):
            parser.set_defaults(**defaults)
        parser.set_defaults(**given)
        *parsed, _, unknown = parser.parse_args_into_dataclasses(
            list(argv), return_remaining_strings=True, look_for_args_file=False
        )
        _reject_unknown_options(unknown, allowed)
    except (ValueError, FileNotFoundError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    return tuple(parsed)


def _reject_unknown_options(words: Sequence[str], allowed: set[str]) -> None:
    """Raise a `ValueError` for options that do not exist, with the nearest ones, and for words that are no option."""
    options = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    reject_unknown_keys(dict.fromkeys(sorted(options)), allowed, "a run")
    if words:
        raise ValueError(f"{words[0]!r} is no option; write --name value.")


def parse_data_settings(
    argv: Sequence[str], prog: str, add_options: Callable[[argparse.ArgumentParser], None]
) -> tuple[argparse.Namespace, DataConfig]:
    """
    Read data settings and the options that `add_options` adds, from the command line and its `--config`.

    Raises:
        SystemExit: With status 2 and a message if a setting is unknown or cannot be used.
    """
    settings: Any = (DataConfig,)
    parser = HfArgumentParser(settings, prog=prog, formatter_class=argparse.HelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file of settings; the command line wins.")
    add_options(parser)
    _set_readers(parser)
    try:
        file = _config_file(argv)
        given = read_mapping(file) if file else {}
        reject_unknown_keys(given, {action.dest for action in parser._actions} - {"help", "config"}, str(file))
        for action in parser._actions:
            action.required = action.required and action.dest not in given
        parser.set_defaults(**given)
        config, options = parser.parse_args_into_dataclasses(list(argv), look_for_args_file=False)
    except (ValueError, FileNotFoundError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    return options, config


def _set_readers(parser: argparse.ArgumentParser) -> None:
    # Values that may be a word or a number: the parser knows one type for each option.
    for action in parser._actions:
        if action.dest in _READERS:
            action.type = _READERS[action.dest]


def _config_file(argv: Sequence[str]) -> str | None:
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only.add_argument("--config")
    found: str | None = only.parse_known_args(list(argv))[0].config
    return found


def _names_reference(argv: Sequence[str]) -> bool:
    return any(item == "--reference" or item.startswith("--reference=") for item in argv)


def _number_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _source(text: str) -> Any:
    return json.loads(text)


_READERS: dict[str, Any] = {
    "keep_layers": _number_or_word,
    "target": str,
    "confidence": str,
    "sources": _source,
}
