"""The settings of a run, from the command line and a YAML or JSON file; every field of its recipe is an option."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..config import PRESETS, CompareConfig, DataConfig, InherituneConfig, RunConfig, read_mapping, reject_unknown_keys
from ..foreign_text import one_line, parse_json
from .parsing import metavar_of
from .training_options import argument_parser, make_training_arguments, training_options

if TYPE_CHECKING:
    from transformers import TrainingArguments

Config = TypeVar("Config")

_DESCRIPTION = (
    "Inherit layers of a reference, train them, add layers until the reference's validation loss is matched, and save "
    "the student. Without --reference the embedded default runs, offline."
)
#: How files of settings end.
_FILES = (".yaml", ".yml", ".json")

#: The settings that `--help` shows, by the title of their group; `--help-all` shows the others too.
_MAIN = {
    "reference and student": ("reference", "preset", "keep_layers", "grow_by", "max_layers", "distillation"),
    "match": ("tolerance",),
    "data": ("dataset_name", "train_files", "block_size"),
    "comparison": ("arms", "seeds", "learning_rates", "budget", "budget_steps", "layers"),
    "training": ("steps_per_round", "learning_rate", "per_device_train_batch_size", "bf16", "output_dir"),
}


class Settings(NamedTuple):
    """The settings of a run; of a plan, training arguments are a namespace whose values are not checked."""

    run: RunConfig
    recipe: InherituneConfig
    data: DataConfig
    args: TrainingArguments


def build_parser(prog: str, comparison: bool = False, left_out: Collection[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of a run, or of a comparison: every field is an option, and no help shows those `left_out`."""
    kinds = [RunConfig, InherituneConfig, DataConfig, training_options(), *([CompareConfig] if comparison else [])]
    parser = _parser(prog, kinds, _DESCRIPTION)
    _group(parser, {name: title for title, names in _MAIN.items() for name in names}, left_out)
    for action in parser._actions:
        if action.dest in _names_of(training_options()):
            action.default = argparse.SUPPRESS  # the class itself knows its defaults
    return parser


class _HelpAll(argparse.Action):
    """Show the help of every option, also of those that `--help` leaves out."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for action, text in self.const:
            action.help = text
        parser.print_help()
        parser.exit()


def _group(parser: argparse.ArgumentParser, titles: Mapping[str, str], left_out: Collection[str]) -> None:
    """Put the options that `titles` has a title for into groups, and leave the others to `--help-all`."""
    options, rest = parser._action_groups[1], parser.add_argument_group("all other settings")
    groups = {title: parser.add_argument_group(title) for title in titles.values()}
    hidden = []
    for action in _setting_actions(parser):
        options._group_actions.remove(action)
        shown = action.dest in titles and action.const is not False and action.dest not in left_out
        groups.get(titles.get(action.dest, "") if shown else "", rest)._group_actions.append(action)
        if not shown:
            if action.dest not in left_out:
                hidden.append((action, action.help))
            action.help = argparse.SUPPRESS
    parser._action_groups = [*parser._action_groups[:2], *groups.values(), rest]
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, const=hidden, help="show all settings and exit")


def _setting_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.dest not in {"help", "help_all", "config"}]


def _say(parser: argparse.ArgumentParser, **texts: str) -> None:
    """Give options, by the names of their settings, a help of this verb's own."""
    for action in parser._actions:
        action.help = texts.get(action.dest, action.help)


def parse_demo(argv: Sequence[str], defaults: Mapping[str, Any], prog: str) -> Settings:
    """Read the settings of the embedded default: another reference than its own is a `ValueError`."""
    its_own = (_names_of(RunConfig) | _names_of(DataConfig)) - {"preset", "collapse_every"}
    parser = build_parser(prog, left_out=its_own)
    parser.description = (
        "Run the whole recipe offline, in minutes on a CPU, with a small reference and text of its own: inherit, "
        "train, compare, grow. Any other setting of inheritune train may be given."
    )
    with usage_errors(prog):
        settings = _settings(_read(parser, argv, defaults))
    if settings.run.reference is not None:
        raise ValueError(
            f"The demo brings its own reference, got {settings.run.reference!r}; for another one use: inheritune train "
            "--reference ..."
        )
    return settings


def parse_settings(
    argv: Sequence[str], defaults: Mapping[str, Any] | None = None, prog: str = "inheritune train"
) -> Settings:
    """Read the settings of a run; `defaults` hold where nothing else is given, if there is no reference."""
    with usage_errors(prog):
        return _settings(_read(build_parser(prog), argv, defaults))


def parse_comparison(
    argv: Sequence[str], defaults: Mapping[str, Any] | None = None, prog: str = "inheritune compare"
) -> tuple[Settings, CompareConfig]:
    """Read the settings of a comparison, as `parse_settings` does those of a run; the first word may be their file."""
    words = ["--config", *argv] if argv and not argv[0].startswith("-") else argv
    with usage_errors(prog):
        parser = build_parser(prog, comparison=True)
        parser.description = (
            "Train baselines under the loop's budget, from one file of settings, and show them side by side. Without "
            "--reference on the embedded default, offline."
        )
        parser.usage = "%(prog)s [FILE] [--NAME VALUE ...]"
        options = _read(parser, words, defaults)
        comparison = _made(CompareConfig, options)
        return _settings(options), comparison


def parse_adaptation(argv: Sequence[str], prog: str) -> Settings:
    """
    Read the settings of training a reference further; the first word may be the reference.

    The file may be that of a student's run. What it says of the student is kept, but cannot be changed by an option.
    """
    words = ["--reference", *argv] if argv and not argv[0].startswith("-") else list(argv)
    of_student = _names_of(InherituneConfig) - {"steps_per_round", "loss"}
    parser = build_parser(prog, left_out=of_student)
    parser.description = (
        "Train a reference further on the data of a run for steps_per_round steps, and save it: an ordinary "
        "checkpoint, to be the reference of a run on the same data."
    )
    parser.usage = "%(prog)s [REFERENCE] [--config FILE] [--NAME VALUE ...]"
    _say(parser, reference="Hub id or path of the reference to train.", steps_per_round="Optimizer steps.")
    with usage_errors(prog):
        useless = sorted(_named(words) & {_option(name) for name in of_student})
        if useless:
            raise ValueError(f"{useless[0]} is about a student, and the whole reference is trained here: leave it out.")
        settings = _settings(_read(parser, words))
        if settings.run.reference is None:
            raise ValueError("there is no reference: give its Hub id or path.")
    return settings


def parse_plan(
    argv: Sequence[str], add_options: Callable[[argparse.ArgumentParser], object], prog: str
) -> tuple[Settings, CompareConfig | None]:
    """
    Read the settings of a run, or of a comparison if the file has any of one, without asking what this machine can do.

    `TrainingArguments` refuses what this machine lacks, such as bfloat16; a plan may be for another one.
    `add_options` adds the options of a plan alone, which are in `args` too; its `source` is a file or a reference.
    """

    def build(comparison: bool) -> argparse.ArgumentParser:
        parser = build_parser(prog, comparison)
        _say(parser, reference="Hub id or path of the reference.")
        add_options(parser)
        return parser

    with usage_errors(prog):
        words = build(True).parse_known_args(list(argv))[0]
        file, reference = _file_or_reference(words.source, words.config, argv)
        given = read_mapping(file) if file else {}
        compares = bool(given.keys() & _names_of(CompareConfig))
        reject_unknown_keys(given, _options(build_parser(prog, compares)), f"{file}: a run")
        options: Any = _parsed(build(compares), argv, given)
        options.reference = reference or options.reference
        made = _made(RunConfig, options), _made(InherituneConfig, options), _made(DataConfig, options)
        comparison = _made(CompareConfig, options) if compares else None
    from transformers import TrainingArguments

    for item in dataclasses.fields(TrainingArguments):
        if not hasattr(options, item.name) and item.default is not dataclasses.MISSING:
            setattr(options, item.name, item.default)
    return Settings(*made, options), comparison


def parse_data_settings(
    argv: Sequence[str], prog: str, add_options: Callable[[argparse.ArgumentParser], None]
) -> tuple[argparse.Namespace, DataConfig]:
    """Read data settings and the options that `add_options` adds, from the command line and its `--config`."""
    parser = _parser(prog, (DataConfig,), "Tokenize and pack text ahead of time, for any number of runs.")
    parser.usage = "%(prog)s --tokenizer ID --output FOLDER [--config FILE] [--NAME VALUE ...]"
    add_options(parser)
    with usage_errors(prog):
        options = _read(parser, argv, whose="")
        return options, _made(DataConfig, options)


@contextmanager
def usage_errors(prog: str) -> Iterator[None]:
    """Turn settings that cannot be used into a message and exit status 2."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def _settings(options: argparse.Namespace) -> Settings:
    made = _made(RunConfig, options), _made(InherituneConfig, options), _made(DataConfig, options)
    training = {name: getattr(options, name) for name in _names_of(training_options()) if hasattr(options, name)}
    return Settings(*made, make_training_arguments(training))


def _parser(prog: str, kinds: Sequence[type], description: str | None = None) -> argparse.ArgumentParser:
    """Return a parser whose options are the fields of dataclasses, and `--config`."""
    parser: argparse.ArgumentParser = argument_parser()(
        kinds,
        prog=prog,
        usage="%(prog)s [--config FILE] [--NAME VALUE ...]",  # a hundred names are no help
        description=description,
        formatter_class=argparse.HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file of settings; the command line wins.")
    for action in _setting_actions(parser):
        # Both spellings are read; help and messages have that with hyphens.
        action.option_strings = [word for word in action.option_strings if "_" not in word]
        # Values that may be a word or a number: the parser knows one type for each option.
        action.type = _READERS.get(action.dest, action.type)
        _describe(action)
    return parser


def _describe(action: argparse.Action) -> None:
    """Name an option's value by its kind, and let its help say its default; of `--no-x`, what it does."""
    if action.const is False:
        action.help = f"Turn off {_option(action.dest)}: {action.help}"
        return
    if action.const is True:
        action.metavar = "true|false"
    elif action.choices is None or len(list(action.choices)) > 8:  # forty names are no help
        action.metavar = metavar_of(action)
    default = getattr(action.default, "value", action.default)
    if default not in (None, [], "") and "default" not in (action.help or "").lower():
        words = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        action.help = f"{(action.help or '').rstrip('.')} (default: {words.replace('%', '%%')})."


def _read(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
    whose: str = ": a run",
) -> argparse.Namespace:
    """Return what the command line says, where it says nothing what its file does, and else the defaults."""
    file: str | None = _first_words(argv).config
    given = read_mapping(file) if file else {}
    reject_unknown_keys(given, _options(parser), f"{file}{whose}")
    if defaults and "reference" not in given and "--reference" not in _named(argv):
        parser.set_defaults(**defaults)
    return _parsed(parser, argv, given)


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str], given: Mapping[str, Any]) -> argparse.Namespace:
    """Return what the command line says, else what a file does, else what a preset does; unknown names are refused."""
    first = _first_words(argv)
    chosen = first.preset or given.get("preset")
    preset = PRESETS.get(chosen, {}) if isinstance(chosen, str) else {}
    if "schedule" in given or "--schedule" in _named(argv):
        preset = {**preset, "keep_layers": InherituneConfig.keep_layers}  # which the schedule takes the place of
    kind = preset.get("lr_scheduler_type", parser.get_default("lr_scheduler_type"))
    if (first.lr_scheduler_type or given.get("lr_scheduler_type", kind)) != kind:
        preset = {**preset, "lr_scheduler_kwargs": None}  # they are of the other schedule
    parser.set_defaults(**{**preset, **given})
    for action in parser._actions:
        action.required = action.required and action.dest not in given
    options, unknown = parser.parse_known_args(list(argv))
    allowed = {_option(name) for name in _options(parser)}
    reject_unknown_keys(dict.fromkeys(sorted(_named(unknown))), allowed, parser.prog)
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no option; write --name value.")
    return options


def _first_words(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options that say where other settings come from."""
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only.add_argument("--config")
    only.add_argument("--preset")
    only.add_argument("--lr-scheduler-type", "--lr_scheduler_type")
    return only.parse_known_args(list(argv))[0]


def _file_or_reference(source: str | None, config: str | None, argv: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the file of settings and the reference, each at most once, where a word may be either."""
    if source is None:
        return config, None
    if Path(source).suffix in _FILES and not Path(source).is_dir():
        if config is not None:
            raise ValueError(f"Give one file of settings, got {source} and --config {config}.")
        return source, None
    if "--reference" in _named(argv):
        raise ValueError(f"Give one reference, got {source} and --reference.")
    return config, source


def _named(words: Sequence[str]) -> set[str]:
    return {_option(word.split("=")[0].removeprefix("--")) for word in words if word.startswith("--")}


def _option(name: str) -> str:
    """Return the option of a setting, as it is shown."""
    return f"--{name.replace('_', '-')}"


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest for action in _setting_actions(parser)}


def _names_of(kind: Any) -> set[str]:
    return {item.name for item in dataclasses.fields(kind)}


def _made(kind: type[Config], options: argparse.Namespace) -> Config:
    return kind(**{name: getattr(options, name) for name in _names_of(kind)})


def _number_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _word_or_mapping(text: str) -> Any:
    return _mapping(text) if text.startswith("{") else text


def _mapping(text: str) -> Any:
    try:
        return parse_json(text, "the value")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


_READERS: dict[str, Callable[[str], Any]] = {
    "keep_layers": _number_or_word,
    "target": str,
    "confidence": str,
    "abandon": str,
    "sources": _mapping,
    "distillation_quantization": _word_or_mapping,
}
