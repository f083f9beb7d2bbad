"""The recipes of the paper and beyond: every one is read, and runs at toy width with the depth it says."""

import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from test_comparison import write_material
from transformers import GPT2Config

from inheritune_hf.arms import parse_arm
from inheritune_hf.cli import main
from inheritune_hf.cli.settings import parse_comparison, parse_settings
from inheritune_hf.experiments import run_comparison, run_recipe
from inheritune_hf.students import MemoryEstimate, estimates

RECIPES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.yaml"))
DEPTHS = {"gpt2": 12, "gpt2-medium": 24, "gpt2-large": 36, "gpt2-xl": 48, "openlm-research/open_llama_3b": 26}
DEPTHS["HuggingFaceTB/SmolLM2-135M"] = 30
#: What toy runs change: sizes, lengths and what needs a GPU or the Hub; never which layers, arms or schedule.
TOY = {
    "block_size": 8,
    "selection_fraction": 0.3,
    "test_fraction": 0.3,
    "steps_per_round": 2,
    "warmup_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "bf16": False,
    "tf32": False,
    "torch_compile": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "near_duplicates": "ignore",
}


#: What says where results go and how often they are told, and a part of a data set's name.
UNSOURCED = {"output_dir", "dataset_config", "arms", "eval_strategy", "save_steps", "logging_steps", "report_to"}
SOURCE = re.compile(r"v4|v2|released code|log |the paper|ours|as (max_layers|keep_layers|steps_per_round):")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_read(path):
    """Every key is known, and every value quotes its source or says what it is."""
    values = yaml.safe_load(path.read_text())
    for line in path.read_text().splitlines():
        if line.startswith("#") or line.partition(":")[0] in UNSOURCED:
            continue
        assert SOURCE.match(line.partition("# ")[2]), line
    if "arms" in values:
        _, config = parse_comparison([str(path), "--use_cpu", "--tf32", "false", "--bf16", "false"])
        assert config.layers == values.get("layers")
    else:
        settings = parse_settings(["--config", str(path), "--use_cpu", "--tf32", "false", "--bf16", "false"])
        assert settings.recipe.steps_per_round == values["steps_per_round"]


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """A folder for each reference of a recipe: a config alone, of its depth and a toy's width."""
    folder = tmp_path_factory.mktemp("references")
    for name, depth in DEPTHS.items():
        config = GPT2Config(n_layer=depth, n_embd=16, n_head=4, vocab_size=11, n_positions=2048)
        config.scale_attn_by_inverse_layer_idx = True  # as in the paper
        config.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_planned(path, references, capsys, monkeypatch):
    """From its file and the reference's config alone a recipe is planned: its rounds or arms, steps and tokens."""
    # Memory has tests of its own, and tracing hundreds of layers takes minutes.
    nothing = MemoryEstimate("training", 0, 0, 0, 0, 0, 0)
    monkeypatch.setattr(estimates, "training_memory", lambda *_: nothing)
    values = yaml.safe_load(path.read_text())
    depth = DEPTHS[values["reference"]]
    words = [str(path), "--reference", str(references / values["reference"]), "--block-size", "16", "--json"]
    assert main(["plan", *words, "--tokens-per-second", "1000", "--accumulation", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["setup"]["batch_size"] == values["per_device_train_batch_size"]
    assert found["setup"]["mixed_precision"] == "bf16"
    step = values["per_device_train_batch_size"] * 3 * 16
    if "arms" not in values:
        first = depth // 2 if str(values["keep_layers"]).endswith("half") else values["keep_layers"]
        depths = list(range(first, values.get("max_layers", depth) + 1, values.get("grow_by", 2)))
        steps = values["steps_per_round"]
        expected = [(layers, steps, steps * step) for layers in depths]
        assert [(item["layers"], item["steps"], item["tokens"]) for item in found["rounds"]] == expected
        return
    # What stands in a recipe is run, and so are the controls that it does not name; how long the reference was trained
    # the recipes do not say.
    assert list(found["left_out"]) == ["random-long"]
    assert [arm["arm"] for arm in found["arms"]] == list(dict.fromkeys([*values["arms"], "continued", "random"]))
    layers, rounds = values["max_layers"], 1
    if "budget_steps" not in values:  # the loop says how deep the others are and how long they train
        rounds += (layers - depth // 2) // values["grow_by"]
    for arm in found["arms"]:
        kind = parse_arm(arm["arm"]).arm
        assert arm["layers"] == (depth if kind.whole else layers)
        assert arm["steps"] == values["steps_per_round"] * rounds * kind.budgets
        assert arm["tokens"] == arm["steps"] * step
        assert arm["cells"] == len(values["learning_rates"]) + len(values["seeds"]) - 1
        assert arm["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_at_toy_width(path, tmp_path):
    """The recipe's own depth, layers, arms and schedule, a few steps each, on a reference of toy width."""
    values = yaml.safe_load(path.read_text())
    write_material(tmp_path, layers=DEPTHS[values["reference"]])
    for name in ("dataset_name", "dataset_config", "streaming"):
        values.pop(name, None)
    values |= TOY
    values |= {"reference": str(tmp_path / "reference"), "train_files": [str(tmp_path / "*.txt")]}
    values["output_dir"] = str(tmp_path / "out")
    if "arms" in values:
        if "budget_steps" in values:
            values["budget_steps"] = 2
        values["reference_steps"] = 2
    changed = tmp_path / "recipe.yaml"
    changed.write_text(yaml.safe_dump(values))
    console = Console(quiet=True)
    if "arms" in values:
        settings, config = parse_comparison([str(changed)])
        run_comparison(config, *settings, console=console)
        return
    settings = parse_settings(["--config", str(changed), "--max_steps", "6"])
    result = run_recipe(*settings, console=console)
    assert result.outcome in ("matched", "no_more_layers", "budget_exhausted")


def test_both_readings_of_growth_stand_in_each_recipe_that_grows():
    """What the paper leaves open is said where it matters: how students grow, and what comes along."""
    for path in RECIPES:
        values = yaml.safe_load(path.read_text())
        if ("arms" in values and "budget_steps" in values) or path.stem == "heal" or values.get("max_layers") == 13:
            continue
        assert (values["growth"], values["inherit"]) == ("reinherit", "all"), path.stem
        assert '"continue"' in path.read_text(), path.stem
        assert '"paper" leaves those random' in path.read_text(), path.stem
