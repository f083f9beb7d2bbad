"""Settings from the command line and files."""

import json
import re
from pathlib import Path

import pytest
import yaml

from inheritune_hf.cli import main
from inheritune_hf.cli.settings import build_parser, parse_settings
from inheritune_hf.config import PRESETS
from inheritune_hf.experiments.runs import run_settings


@pytest.fixture
def base(tmp_path):
    return ["--reference", "gpt2", "--output_dir", str(tmp_path / "out"), "--use_cpu"]


def test_command_line_wins_over_the_file(tmp_path, base):
    """A file sets defaults; what is typed wins; numbers and words are told apart."""
    path = tmp_path / "recipe.yaml"
    path.write_text("keep_layers: 12\nsteps_per_round: 100\nlearning_rate: 3e-4\ntrain_files: [a.txt, b.txt]\n")
    settings = parse_settings(["--config", str(path), "--steps_per_round", "7", "--target", "2.81", *base])
    assert settings.recipe.keep_layers == 12
    assert settings.recipe.steps_per_round == 7
    assert settings.recipe.target == 2.81
    assert settings.args.learning_rate == 3e-4
    assert settings.data.train_files == ["a.txt", "b.txt"]
    assert settings.run.reference == "gpt2"


def test_json_file(tmp_path, base):
    """JSON does as well as YAML."""
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"keep_layers": "first:3", "confidence": None}))
    settings = parse_settings(["--config", str(path), *base])
    assert settings.recipe.keep_layers == "first:3"
    assert settings.recipe.confidence is None


def test_words_for_values(base):
    """Both spellings of an option work, and 'none' turns the interval off."""
    recipe = parse_settings(["--keep-layers", "half", "--confidence", "none", "--target", "reference", *base]).recipe
    assert (recipe.keep_layers, recipe.confidence, recipe.target) == ("half", None, "reference")


def test_defaults_are_for_runs_without_a_reference(tmp_path, base):
    """The embedded run's defaults do not leak into a run that names its reference."""
    defaults = {"steps_per_round": 5}
    assert parse_settings(["--output_dir", str(tmp_path), "--use_cpu"], defaults).recipe.steps_per_round == 5
    assert parse_settings(base, defaults).recipe.steps_per_round is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kep_layers", "3"], "no setting named '--kep-layers' (did you mean '--keep-layers'?)"),
        (["--kep-layers=3"], "no setting named '--kep-layers' (did you mean '--keep-layers'?)"),
        (["--grow_by", "two"], "argument --grow-by: invalid int value: 'two'"),
        (["stray"], "'stray' is no option"),
        (["--tolerance", "-1"], "tolerance must be 0 nats per token or more, got -1.0"),
        (["--preset", "heel"], "argument --preset: invalid choice: 'heel'"),
        (["--target", "soon"], "target must be 'reference' or a number above 0 in nats per token, got 'soon'"),
        (["--config", "nothing.yaml"], "There is no file nothing.yaml"),
        (["--steps_per_round", "0"], "steps_per_round must be a whole number of 1 or more, got 0"),
    ],
)
def test_bad_words_are_usage_errors(base, capsys, words, message):
    """What cannot be used ends with status 2 and says what came."""
    with pytest.raises(SystemExit) as end:
        parse_settings([*words, *base], prog="inheritune train")
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_misspelt_key_of_a_file_is_a_usage_error(tmp_path, base, capsys):
    """It ends with status 2, names the file and the nearest setting."""
    path = tmp_path / "recipe.yaml"
    path.write_text("kep_layers: 3\n")
    with pytest.raises(SystemExit, match="2"):
        parse_settings(["--config", str(path), *base])
    assert (
        "recipe.yaml: a run has no setting named 'kep_layers' (did you mean 'keep_layers'?)" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("output_dir: 3", "output_dir must be text, got 3"),
        ("dataloader_num_workers: [1]", "dataloader_num_workers must be a whole number, got [1]"),
        ("learning_rate: .nan", "learning_rate must be a finite number, got nan"),
        ("bf16: maybe", "bf16"),
        ("fsdp: true\nsources: [3]", "sources[0] must be a mapping, got 3"),
        ("a: " + "[" * 3000, "recipe.yaml nests deeper than 100 levels"),
        ("a: &a [x]\nb: *a", "recipe.yaml has the alias *a: write out what it stands for"),
    ],
)
def test_values_of_other_types_are_usage_errors(tmp_path, capsys, setting, message):
    """A value that a setting cannot have ends with status 2 and names the setting, of whichever class it is."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"use_cpu: true\n{setting}\n")
    with pytest.raises(SystemExit, match="2"):
        parse_settings(["--config", str(path)])
    assert message in capsys.readouterr().err


def test_any_setting_wins_over_a_preset(tmp_path, base):
    """The command line wins over the file, the file over the preset, and that over the embedded defaults."""
    path = tmp_path / "recipe.yaml"
    path.write_text("preset: paper\ngrow_by: 5\ntolerance: 0.5\n")
    settings = parse_settings(["--config", str(path), "--grow_by", "7", *base])
    recipe = settings.recipe
    assert (recipe.keep_layers, recipe.grow_by, recipe.tolerance, recipe.confidence) == ("half", 7, 0.5, None)
    assert settings.args.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    heal = ["--preset", "heal", "--output_dir", str(tmp_path), "--use_cpu"]
    other = parse_settings(["--config", str(path), *heal], {"learning_rate": 5.0, "logging_steps": 3})
    assert (other.recipe.growth, other.recipe.confidence, other.recipe.grow_by) == ("continue", 0.95, 5)
    assert (other.args.learning_rate, other.args.logging_steps) == (PRESETS["heal"]["learning_rate"], 3)
    assert other.recipe.distillation == PRESETS["heal"]["distillation"]
    assert parse_settings(["--distillation", "none", *heal]).recipe.distillation is None


@pytest.mark.parametrize("words", [["--lr-scheduler-type", "cosine"], ["--lr_scheduler_type=linear"]])
def test_another_schedule_is_not_given_the_presets_settings(tmp_path, base, words):
    """They are of the preset's own schedule, and stay with it where it is named."""
    assert not parse_settings(["--preset", "paper", *words, *base]).args.lr_scheduler_kwargs
    path = tmp_path / "recipe.yaml"
    path.write_text("preset: paper\nlr_scheduler_type: cosine\n")
    assert not parse_settings(["--config", str(path), *base]).args.lr_scheduler_kwargs
    own = ["--lr_scheduler_type", "cosine_with_min_lr"]
    assert parse_settings(["--preset", "paper", *own, *base]).args.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    default = {"lr_scheduler_type": own[1], "lr_scheduler_kwargs": {"min_lr_rate": 0.2}}
    embedded = ["--output_dir", str(tmp_path), "--use_cpu"]
    assert parse_settings([*own, *embedded], default).args.lr_scheduler_kwargs == {"min_lr_rate": 0.2}
    assert not parse_settings([*words, *embedded], default).args.lr_scheduler_kwargs


def test_a_schedule_takes_the_place_of_what_a_preset_keeps(tmp_path, base):
    """Layers that a preset or the embedded default would keep are no contradiction; those that are given are one."""
    path = tmp_path / "recipe.yaml"
    path.write_text("schedule: ['0:2', '0:4']\n")
    for words in (["--schedule", "0:2", "0:4"], ["--config", str(path)]):
        recipe = parse_settings(["--preset", "heal", *words, *base], {"keep_layers": "skip:10"}).recipe
        assert (recipe.schedule, recipe.keep_layers) == (["0:2", "0:4"], "half")
    given = parse_settings(["--keep_layers", "3", "--schedule", "0:2", "0:4", *base]).recipe
    assert given.keep_layers == 3  # which the growth rule refuses


def test_abandoning_can_be_switched_off(base):
    """As its message says, and as confidence can."""
    assert parse_settings(["--abandon", "none", *base]).recipe.abandon is None
    assert parse_settings(["--abandon", "0.95", *base]).recipe.abandon == 0.95


def test_what_a_run_keeps_needs_no_preset(tmp_path, base):
    """Its settings are written out, so that what was switched off stays so."""
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"preset": "heal", "distillation": None}))
    first = parse_settings(["--config", str(path), *base])
    path.write_text(json.dumps(run_settings(*first)))
    again = parse_settings(["--config", str(path), *base])
    assert again.run.preset is None
    assert again.recipe == first.recipe
    assert again.recipe.distillation is None


def test_the_healing_recipe_is_the_preset():
    """Every value of the preset stands in the file, with what was measured beside it."""
    values = yaml.safe_load((Path(__file__).parents[2] / "examples" / "recipes" / "heal.yaml").read_text())
    assert {name: values.get(name) for name in PRESETS["heal"]} == PRESETS["heal"]


@pytest.mark.parametrize(
    ("word", "found"), [("8bit", "8bit"), ('{"quant_method": "x", "bits": 3}', {"quant_method": "x", "bits": 3})]
)
def test_a_quantization_is_a_word_or_a_mapping(base, word, found):
    """On the command line a mapping is written as JSON."""
    assert parse_settings(["--distillation_quantization", word, *base]).recipe.distillation_quantization == found


def test_the_reference_cache_can_be_switched_off(tmp_path, base):
    """A reference's loss is taken from the cache unless a word or a file says not to."""
    path = tmp_path / "recipe.yaml"
    path.write_text("reference_cache: false\n")
    assert parse_settings(base).run.reference_cache
    assert not parse_settings(["--no_reference_cache", *base]).run.reference_cache
    assert not parse_settings(["--config", str(path), *base]).run.reference_cache


def help_of(capsys, verb, option):
    with pytest.raises(SystemExit, match="0"):
        main([verb, option])
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "adapt", "compare", "plan"])
def test_help_shows_what_matters_and_help_all_the_rest(verb, capsys):
    """`--help` has about fifteen settings in groups, with their defaults; `--help-all` has each of them once."""
    short, full = help_of(capsys, verb, "--help"), help_of(capsys, verb, "--help-all")
    named = re.findall(r"^  (--[\w-]+)", short, re.MULTILINE)
    assert {"--config", "--help-all", "--reference", "--train-files", "--learning-rate"} <= set(named)
    assert len(named) <= {"compare": 24, "plan": 31}.get(verb, 18)
    assert "\ntraining:\n" in short
    assert "(default: 8)" in short
    every = re.findall(r"^  (--[\w-]+)", full, re.MULTILINE)
    assert set(named) < set(every)
    assert len(every) == len(set(every)) > 150
    assert "--weight-decay" in every
    assert ("--growth" in every) == (verb != "adapt")
    assert not re.findall(r"--\w+_\w+", full)
    assert "_" not in "".join(every)


def test_help_says_what_no_does_and_names_values_by_kind(capsys):
    """`--no-x` turns x off; a number is N or NUMBER, a switch true or false."""
    text = " ".join(help_of(capsys, "train", "--help-all").split())
    assert "--no-reference-cache Turn off --reference-cache: Cache the reference's loss, and reuse it if" in text
    assert "--reference-cache [true|false]" in text
    assert "--grow-by N " in text
    assert "--tolerance NUMBER " in text


def test_the_help_of_the_demo_has_no_reference_or_data(capsys):
    """What the demo brings itself is not offered as an option of it."""
    short, full = help_of(capsys, "demo", "--help"), help_of(capsys, "demo", "--help-all")
    assert "Run the whole recipe offline" in short
    assert "--steps-per-round" in short
    assert not re.findall("--reference|--dataset|--train-files|--gguf|--selection", full)


def test_every_option_is_read_with_hyphens_and_underscores():
    """Both spellings of each option of a comparison lead to the same action."""
    parser = build_parser("compare", comparison=True)
    for action in parser._actions:
        for word in action.option_strings:
            underscored = "--" + word.removeprefix("--").replace("-", "_")
            if word.startswith("--") and action.dest != "help_all":
                assert parser._option_string_actions[underscored] is action


def test_the_demo_brings_its_own_reference(base, capsys):
    """`inheritune demo` takes any setting of a run but a reference, with which it says what to do."""
    assert main(["demo", *base]) == 1
    assert (
        "The demo brings its own reference, got 'gpt2'; for another one use: inheritune train --ref"
        in capsys.readouterr().err
    )
