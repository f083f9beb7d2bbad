"""What each verb imports before it knows that it has work to do, and for the work itself."""

import subprocess
import sys

import pytest
from tiny_reference import save_model
from transformers import HfArgumentParser, TrainingArguments

from inheritune_hf.cli.training_options import argument_parser, make_training_arguments, training_options

VERBS = [
    "demo",
    "train",
    "adapt",
    "inherit",
    "data",
    "doctor",
    "plan",
    "verify",
    "compare",
    "analyze",
    "evaluate",
    "report",
    "publish",
]
HEAVY = {"torch", "transformers", "datasets", "evaluate", "accelerate", "numpy", "pandas", "scipy", "matplotlib"}

_PROGRAM = """
import sys
from inheritune_hf.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print(status, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def imported(*words, status=0):
    """The packages that a command imports, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *words], capture_output=True, text=True)
    ended, *names = done.stderr.splitlines()[-1].split()
    assert ended == str(status), done.stderr
    return set(names)


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(verb):
    """A verb's options are shown without any of the libraries that its work needs."""
    words = [verb, "prepare"] if verb == "data" else [verb]
    assert not imported(*words, "--help") & HEAVY


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config", "missing.yaml"],
        ["train", "--keep_layer", "3"],
        ["train", "--learning_rate", "fast"],
        ["train", "--growth", "sideways"],
        ["compare", "missing.yaml"],
        ["compare", "--arms", "randon"],
        ["plan", "missing.yaml"],
        ["plan", "gpt2", "--step_per_round", "3"],
        ["data", "prepare", "--output", "out"],
        ["doctor"],
        ["inherit", "gpt2"],
        ["report"],
    ],
    ids=" ".join,
)
def test_a_usage_error_imports_nothing_heavy(words):
    """What is wrong with the words alone is said at once."""
    assert not imported(*words, status=2) & HEAVY


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("reference") / "tiny")


def test_looking_at_a_reference_needs_its_model_class_alone(reference, tmp_path):
    """`doctor` and `inherit` import Transformers, with what it imports itself, and no library for data or pictures."""
    found = imported("doctor", reference)
    assert "transformers" in found
    assert not found & {"datasets", "evaluate", "matplotlib"}
    assert "matplotlib" not in imported("inherit", reference, "--output", str(tmp_path / "student"))


def test_options_are_those_of_the_training_arguments():
    """Every option of the installed `TrainingArguments` is read from its source as the class itself gives it."""

    def options(parser, kind):
        return [
            (item.option_strings, item.nargs, item.const, getattr(item.type, "__name__", item.type), item.required)
            for item in parser(kind)._actions
        ]

    assert options(argument_parser(), training_options()) == options(HfArgumentParser, TrainingArguments)
    ours, theirs = argument_parser()(training_options())._actions, HfArgumentParser(TrainingArguments)._actions
    computed = {"log_level", "log_level_replica"}
    for one, other in zip(ours, theirs, strict=True):
        assert one.dest in computed or (one.help, one.choices) == (other.help, other.choices)
        assert one.default in (None, other.default)


def test_choices_that_are_computed_are_checked(tmp_path):
    """A choice that the source does not spell out is refused when the training arguments are made."""
    with pytest.raises(ValueError, match=r"log_level must be one of detail, .*, got 'loud'\."):
        make_training_arguments({"output_dir": str(tmp_path), "log_level": "loud"})
