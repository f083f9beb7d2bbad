"""Settings of a run from the command line and a YAML or JSON file, by Transformers' own argument parser."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers import HfArgumentParser, TrainingArguments

from ..configuration import DataConfig, InherituneConfig, RunConfig, read_mapping, reject_unknown_keys

Config = TypeVar("Config")

# How files of settings end.
_FILES = (".yaml", ".yml", ".json")


class Settings(NamedTuple):
    """Everything a run is told."""

    run: RunConfig
    recipe: InherituneConfig
    data: DataConfig
    args: TrainingArguments


class PlannedSettings(NamedTuple):
    """Everything a run is told, with training arguments as they were given: names are known, values are not checked."""

    run: RunConfig
    recipe: InherituneConfig
    data: DataConfig
    args: argparse.Namespace


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
        allowed = _names(parser)
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


def parse_plan(
    argv: Sequence[str], comparison: type[Config], add_options: Callable[[argparse.ArgumentParser], None], prog: str
) -> tuple[PlannedSettings, Config | None]:
    """
    Read the settings of a run, or of a comparison if the file has any of one, without asking what this machine can do.

    `TrainingArguments` refuses what the machine at hand has not got, such as bfloat16; a plan may be for another one.

    Args:
        argv (`Sequence[str]`): The command line, without the program's name.
        comparison (`type`): What says the settings that only a comparison has.
        add_options (`Callable`): Adds the options that only a plan has, whose values are in `args` too; `source` is the
            file of settings or the reference.
        prog (`str`): Name of the program in messages.

    Raises:
        SystemExit: With status 2 and a message if a setting is unknown or cannot be used.
    """

    def build(more: Sequence[type]) -> HfArgumentParser:
        parser = build_parser(prog, more)
        add_options(parser)
        return parser

    try:
        told = build([comparison]).parse_known_args(list(argv))[0]
        file, reference = _file_or_reference(told.source, told.config, argv)
        given = read_mapping(file) if file else {}
        untyped: Any = comparison
        more = [comparison] if given.keys() & {item.name for item in dataclasses.fields(untyped)} else []
        reject_unknown_keys(given, _names(build_parser(prog, more)), f"{file}: a run")
        parser = build(more)
        parser.set_defaults(**given)
        options, unknown = parser.parse_known_args(list(argv))
        _reject_unknown_options(unknown, _names(parser))
        options.reference = reference or options.reference
        made = _made(RunConfig, options), _made(InherituneConfig, options), _made(DataConfig, options)
        return PlannedSettings(*made, options), _made(comparison, options) if more else None
    except (ValueError, FileNotFoundError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _file_or_reference(source: str | None, config: str | None, argv: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the file of settings and the reference, each at most once, where a word may be either."""
    if source is None:
        return config, None
    if Path(source).suffix in _FILES and not Path(source).is_dir():
        if config is not None:
            raise ValueError(f"Give one file of settings, got {source} and --config {config}.")
        return source, None
    if _names_reference(argv):
        raise ValueError(f"Give one reference, got {source} and --reference.")
    return config, source


def _names(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions} - {"help", "config"}


def _made(kind: type[Config], options: argparse.Namespace) -> Config:
    untyped: Any = kind
    return kind(**{item.name: getattr(options, item.name) for item in dataclasses.fields(untyped)})


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
