"""Arms, seeds and rates under one budget: what each cell trains, what it keeps, and what it survives."""

import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import time
import types
from dataclasses import asdict

import forking
import pytest
import torch
from holding import held_by_another
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
)
from transformers.integrations import integration_utils

from inheritune_hf import DataConfig, InherituneConfig
from inheritune_hf.arms import ARMS, CONTROLS, parse_arm
from inheritune_hf.cli import main
from inheritune_hf.cli.settings import parse_comparison
from inheritune_hf.config import CompareConfig, RunConfig
from inheritune_hf.data import CausalCollator
from inheritune_hf.experiments import estimate_comparison, run_comparison
from inheritune_hf.experiments.comparison import (
    PAPER_DISTILLATION,
    Budget,
    CellPlan,
    Comparison,
    LoopCost,
    best_cell,
    duration,
)
from inheritune_hf.experiments.results import (
    Cell,
    ComparisonRecord,
    arm_results,
    curves_panel,
    mean_curves,
    read_cell,
    write_results,
)
from inheritune_hf.records import decode, read_record
from inheritune_hf.reporting import write_report
from inheritune_hf.students import TrainingSetup
from inheritune_hf.training import InherituneTrainer

DEPTH = 4
WORDS = "abcdefghij"


def write_material(folder, layers=DEPTH):
    """A reference of toy width with its tokenizer, and documents of letters."""
    letters = Tokenizer(
        models.WordLevel({"<end>": 0, **{word: place + 1 for place, word in enumerate(WORDS)}}, "<end>")
    )
    letters.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<end>", unk_token="<end>")
    torch.manual_seed(0)
    shape = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": layers, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, scale_attn_by_inverse_layer_idx=True))
    model.save_pretrained(folder / "reference")
    tokenizer.save_pretrained(folder / "reference")
    for place in range(120):
        text = " ".join(WORDS[(place + step * (place % 3 + 1)) % 10] for step in range(24))
        (folder / f"{place}.txt").write_text(text)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    write_material(folder)
    return folder


def compare(
    material,
    output_dir,
    arms,
    seeds=(1, 2),
    rates=(1.0,),
    recipe=None,
    args=None,
    boundaries=False,
    console=None,
    data=None,
    attention=None,
    **settings,
):
    arguments = TrainingArguments(
        str(output_dir),
        **{
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 16,
            "learning_rate": 1e-2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 2,
            "logging_steps": 2,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            **(args or {}),
        },
    )
    return run_comparison(
        CompareConfig(arms=list(arms), seeds=list(seeds), learning_rates=list(rates), **settings),
        RunConfig(reference=str(material / "reference"), attn_implementation=attention),
        InherituneConfig(**{"keep_layers": 2, "max_layers": 2, "steps_per_round": 4, "target": 0.01, **(recipe or {})}),
        DataConfig(
            train_files=[str(material / "*.txt")],
            selection_fraction=0.3,
            test_fraction=0.3,
            block_size=8,
            near_duplicates="ignore",
            document_boundaries=boundaries,
            **(data or {}),
        ),
        arguments,
        console or Console(quiet=True),
    )


def records(folder):
    return json.loads((folder / "comparison.json").read_text())


@pytest.fixture(scope="module")
def small(material, tmp_path_factory):
    """A comparison of four arms with one seed and two learning rates, whose loop takes two rounds."""
    folder = tmp_path_factory.mktemp("small")
    growing = {"keep_layers": 1, "grow_by": 1, "max_layers": 2}
    compare(material, folder, ["stacking", "inheritune"], [1], [0.5, 1.0], recipe=growing, reference_steps=5)
    return folder


def test_arms_get_the_loops_depth_and_budget(small):
    """The other arms are as deep as the loop's last student and train for all its rounds, failed ones included."""
    cells = {cell["arm"]: cell for cell in records(small)["cells"]}
    assert list(cells) == ["inheritune", "stacking", "continued", "random", "random-long"]
    loop = cells["inheritune"]
    assert (loop["layers"], loop["steps"], loop["outcome"]) == (2, 8, "no_more_layers")
    for arm in ("stacking", "random"):
        assert (cells[arm]["layers"], cells[arm]["steps"], cells[arm]["outcome"]) == (2, 8, None)
        assert cells[arm]["tokens"] == loop["tokens"] == 8 * 4 * 8
    assert cells["continued"]["layers"] == DEPTH
    assert cells["random-long"]["steps"] == 8 + 5
    assert loop["flops"] == cells["stacking"]["flops"] < cells["random"]["flops"] < cells["continued"]["flops"]
    assert [point[0] for point in loop["curve"]] == [64, 128, 192, 256]
    # In rounds that begin the data again, in stages that go on in them, and in one piece.
    assert 0 < loop["epochs"] == pytest.approx(cells["random"]["epochs"], abs=1e-3)
    assert cells["stacking"]["epochs"] == pytest.approx(cells["random"]["epochs"], abs=1e-3)
    assert all(cell["epochs"] > 0 and cell["seconds"] > 0 for cell in cells.values())


def planned(material, recipe=None, max_steps=None, **settings):
    """What a plan says of each arm of such a comparison, before anything is trained."""
    estimate = estimate_comparison(
        str(material / "reference"),
        CompareConfig(**settings),
        InherituneConfig(**{"keep_layers": 2, "max_layers": 2, "steps_per_round": 4, "target": 0.01, **(recipe or {})}),
        TrainingSetup(batch_size=4, block_size=8),
        max_steps=max_steps,
    )
    return estimate, {arm.arm: arm for arm in estimate.arms}


def check_plan(arms, folder):
    """Every cell took what the plan had said."""
    cells = records(folder)["cells"]
    assert {cell["arm"] for cell in cells} == set(arms)
    for cell in cells:
        arm = arms[cell["arm"]]
        for name in ("layers", "parameters", "steps", "tokens"):
            assert cell[name] == getattr(arm, name), (cell["arm"], name)
        assert cell["flops"] == pytest.approx(arm.flops, rel=1e-9), cell["arm"]


def test_a_plan_says_what_cells_take(small, material):
    """Every cell takes the depth, parameters, steps, tokens and operations planned if the loop needs all its rounds."""
    growing = {"keep_layers": 1, "grow_by": 1, "max_layers": 2}
    arms = {"arms": ["stacking", "inheritune"], "seeds": [1], "learning_rates": [0.5, 1.0], "reference_steps": 5}
    estimate, found = planned(material, growing, **arms)
    assert list(found) == [cell["arm"] for cell in records(small)["cells"]]
    check_plan(found, small)
    assert all(arm.cells == 2 for arm in found.values())
    assert len(list(small.glob("*/cell.json"))) == estimate.cells == 10
    assert estimate.flops == pytest.approx(2 * sum(arm.flops for arm in found.values()))


def test_learning_rate_is_chosen_on_the_selection_set(small):
    """Each arm goes on with the rate of the lowest selection loss; only that cell meets the test set."""
    facts = records(small)
    for cell in facts["cells"]:
        losses = {float(rate): loss for rate, loss in facts["sweep"][cell["arm"]].items()}
        assert set(losses) == {0.005, 0.01}
        assert cell["learning_rate"] == min(losses, key=losses.get)
        other = small / f"{cell['arm']}-seed1-lr{max(losses, key=losses.get):g}" / "cell.json"
        assert json.loads(other.read_text())["test"] is None
        assert cell["test"] is not None


def test_a_match_is_worth_more_than_a_deeper_student(small):
    """The loop goes on with the rate that matched at the fewest layers; a rate that missed has grown deeper."""
    cell = decode(Cell, records(small)["cells"][0], "comparison.json")
    worse = dataclasses.replace(cell.selection, loss_sums=tuple(loss + 1 for loss in cell.selection.loss_sums))
    missed = dataclasses.replace(cell, outcome="no_more_layers", layers=6)
    shallow = dataclasses.replace(cell, outcome="matched", layers=2, selection=worse)
    deep = dataclasses.replace(cell, outcome="matched", layers=4)
    assert best_cell([missed, deep, shallow]) is shallow
    other = dataclasses.replace(cell, outcome=None, selection=worse)
    plain = dataclasses.replace(cell, outcome=None)
    assert best_cell([other, plain]) is plain
    whole = [dataclasses.replace(deep, curve=((64, 1e9, loss),)) for loss in (2.9, 2.5, 2.7)]
    assert best_cell(whole) is whole[1]


def test_table_is_made_from_the_records(small):
    """Table, CSV and curves say what the records say; nothing is trained for them."""
    facts = records(small)
    before = (small / "comparison.md").read_text()
    for name in ("comparison.md", "comparison.csv", "comparison.png", "differences.png"):
        (small / name).unlink()
    write_results(small, read_record(ComparisonRecord, small / "comparison.json"))
    assert (small / "comparison.md").read_text() == before
    assert (small / "comparison.png").stat().st_size > 10_000
    assert (small / "differences.png").stat().st_size > 10_000
    rows = {row["arm"]: row for row in csv.DictReader((small / "comparison.csv").read_text().splitlines())}
    losses = [float(row["loss"]) for row in rows.values()]
    assert losses[1:] == sorted(losses[1:])
    for cell in facts["cells"]:
        test, row = cell["test"], rows[cell["arm"]]
        loss = sum(test["loss_sums"]) / sum(test["tokens"])
        assert float(row["loss"]) == loss
        start = facts["reference"]["test"]
        assert float(row["to_reference_difference"]) == pytest.approx(
            loss - sum(start["loss_sums"]) / sum(start["tokens"])
        )
        assert f"| {loss:.4f} |" in before
    assert rows["continued"]["to_continued_difference"] == ""
    assert "1 seed: what another seed changes is not covered" in before


def test_report_tells_the_comparison_again(small, material, tmp_path):
    """A comparison has a report as it stands on disk, and the settings in it are read as the same comparison."""
    report, (page, _, _) = write_report(small, tmp_path)
    assert report.outcome == "missed"
    assert "does not match the reference, trained further for the same budget" in report.verdict
    for row in arm_results(read_record(ComparisonRecord, small / "comparison.json")):
        assert f"{row.loss:.4f}" in page.read_text()
    (tmp_path / "again.json").write_text(json.dumps(records(small)["settings"]))
    settings, again = parse_comparison([str(tmp_path / "again.json"), "--use_cpu"])
    assert asdict(again) == records(small)["compare"]
    assert (settings.run.reference, settings.recipe.max_layers) == (str(material / "reference"), 2)
    assert (settings.data.block_size, settings.args.learning_rate) == (8, 0.01)
    model = small / f"inheritune-seed1-lr{records(small)['cells'][0]['learning_rate']:g}" / "model"
    report, _ = write_report(model, tmp_path / "cell")
    assert "comparison" in [section.anchor for section in report.sections]


def test_finished_comparison_is_not_trained_again(small, material, monkeypatch):
    """The same call reads what is on disk."""
    before = {path: path.stat().st_mtime_ns for path in small.glob("*/cell.json")}
    monkeypatch.setattr(InherituneTrainer, "training_step", None)
    growing = {"keep_layers": 1, "grow_by": 1, "max_layers": 2}
    compare(material, small, ["stacking", "inheritune"], [1], [0.5, 1.0], recipe=growing, reference_steps=5)
    assert before == {path: path.stat().st_mtime_ns for path in small.glob("*/cell.json")}


def test_another_test_set_is_measured(small, material, tmp_path):
    """What a finished cell says of a test set is not taken for that of another one."""
    shutil.copytree(small, tmp_path / "copy")
    growing = {"keep_layers": 1, "grow_by": 1, "max_layers": 2}
    for path in tmp_path.glob("copy/*/cell.json"):
        cell = json.loads(path.read_text())
        if cell["test"] is not None:
            cell["test"]["loss_sums"] = [0.0] * len(cell["test"]["loss_sums"])
            path.write_text(json.dumps({**cell, "test_set": "another"}))
    again = tmp_path / "copy"
    compare(material, again, ["stacking", "inheritune"], [1], [0.5, 1.0], recipe=growing, reference_steps=5)
    assert [cell["test"] for cell in records(again)["cells"]] == [cell["test"] for cell in records(small)["cells"]]


def test_max_steps_limits_the_loop(material, tmp_path):
    """A recipe's max_steps holds for the loop, in the plan too; other arms take as many steps as it took."""
    growing = {"keep_layers": 1, "grow_by": 1, "max_layers": 2}
    arms = {"arms": ["inheritune", "random"], "seeds": [1], "learning_rates": [1.0], "controls": False}
    args = {"args": {"max_steps": 6, "push_to_hub": True, "hub_strategy": "end"}}
    compare(material, tmp_path, ["inheritune", "random"], [1], recipe=growing, controls=False, **args)
    assert [cell["steps"] for cell in records(tmp_path)["cells"]] == [6, 6]
    _, found = planned(material, growing, 6, **arms)
    check_plan(found, tmp_path)


def test_a_loop_that_matches_untrained_has_no_curve(material, tmp_path):
    """With a budget of its own a comparison ends with table, picture and report though its loop trained for no step."""
    whole = {"keep_layers": "first:4", "max_layers": None, "target": "reference", "tolerance": 10.0}
    arms = {"controls": False, "budget_steps": 2, "layers": 2}
    compare(material, tmp_path, ["inheritune", "random"], [1], recipe=whole, **arms)
    assert [len(cell["curve"]) for cell in records(tmp_path)["cells"]] == [0, 1]
    report, _ = write_report(tmp_path)
    assert report.verdict
    record = read_record(ComparisonRecord, tmp_path / "comparison.json")
    trained = dataclasses.replace(record.cells[1], arm="inheritune", seed=2)
    assert list(mean_curves(dataclasses.replace(record, cells=(*record.cells, trained)))) == ["random", "inheritune"]
    assert curves_panel(dataclasses.replace(record, cells=record.cells[:1])).height > 0


def test_finished_cells_of_other_settings_are_refused(material, tmp_path):
    """A finished cell stands for its own settings only: with others it is refused, and what differs is named."""
    fixed = {"layers": 1, "controls": False}
    compare(material, tmp_path, ["random"], [1], budget_steps=2, **fixed)
    with pytest.raises(ValueError, match=r"holds another run:\n- args.weight_decay: 0.0 there, 0.1 now"):
        compare(material, tmp_path, ["random"], [1], budget_steps=2, args={"weight_decay": 0.1}, **fixed)
    with pytest.raises(ValueError, match=r"recipe\.steps_per_round: 2 there, 3 now"):
        compare(material, tmp_path, ["random"], [1], budget_steps=3, **fixed)
    compare(material, tmp_path, ["random"], [1, 2], budget_steps=2, **fixed)


def weights(folder):
    return {path.parent.parent.name: path.read_bytes() for path in folder.glob("*/model/model.safetensors")}


def test_interrupted_cell_goes_on_to_the_same_bits(material, tmp_path, monkeypatch):
    """A comparison stopped within a cell goes on there; its cells equal those of one that was not stopped."""
    fixed = {"layers": 2, "budget_steps": 6, "controls": False}
    compare(material, tmp_path / "whole", ["hybrid-stacking", "random"], [1], **fixed)
    taken, step = [], InherituneTrainer.training_step

    def stopped(trainer, *batch):
        taken.append(1)
        if len(taken) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *batch)

    monkeypatch.setattr(InherituneTrainer, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"random-seed1-lr0\.01 was interrupted"):
        compare(material, tmp_path / "cut", ["hybrid-stacking", "random"], [1], **fixed)
    assert len(list((tmp_path / "cut").glob("*/cell.json"))) == 1
    compare(material, tmp_path / "cut", ["hybrid-stacking", "random"], [1], **fixed)
    assert len(taken) == 6 + 6
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert len(weights(tmp_path / "cut")) == 2


def test_two_comparisons_in_one_folder_do_not_mix(material, tmp_path):
    """While one process holds the folder another is refused, and told which one holds it; afterwards it runs."""
    fixed = {"layers": 1, "budget_steps": 2, "controls": False}
    with (
        held_by_another(tmp_path) as process,
        pytest.raises(BlockingIOError, match=rf"in use by process {process} on .* since 20\d\d"),
    ):
        compare(material, tmp_path, ["random"], [1], **fixed)
    assert not list(tmp_path.glob("random*"))
    compare(material, tmp_path, ["random"], [1], **fixed)


@pytest.mark.slow
def test_a_killed_comparison_goes_on_to_the_same_bits(material, tmp_path):
    """Killed at a cell's state, checkpoint, record and test, a comparison is finished by the same command, as ever."""
    settings = {
        "reference": str(material / "reference"),
        "train_files": [str(material / "*.txt")],
        "block_size": 8,
        "selection_fraction": 0.3,
        "test_fraction": 0.3,
        "near_duplicates": "ignore",
        "keep_layers": 2,
        "max_layers": 2,
        "steps_per_round": 4,
        "target": 0.01,
        "use_cpu": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "disable_tqdm": True,
        "arms": ["stacking", "random"],
        "seeds": [1],
        "controls": False,
        "learning_rates": [1.0],
        "layers": 2,
        "budget_steps": 6,
    }

    def run(name, event=None):
        (tmp_path / f"{name}.json").write_text(json.dumps({**settings, "output_dir": str(tmp_path / name)}))
        process = forking.start(main, ["compare", str(tmp_path / f"{name}.json")])
        while event and process.is_alive() and not list((tmp_path / name).glob(event)):
            time.sleep(0.005)
        if event:
            process.kill()
        process.join()
        return process.exitcode

    events = [
        "stacking*/_inheritune/state.json",
        "stacking*/checkpoint-2",
        "stacking*/cell.json",
        "random*/checkpoint-6",
    ]
    assert [run("cut", event) for event in events] == [-signal.SIGKILL] * len(events)
    assert (run("cut"), run("whole")) == (0, 0)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert len(weights(tmp_path / "cut")) == 2
    assert not [*(tmp_path / "cut").glob("*/checkpoint-*"), *(tmp_path / "cut").glob("*/_inheritune")]
    tests = [[cell["test"] for cell in records(tmp_path / name)["cells"]] for name in ("cut", "whole")]
    assert tests[0] == tests[1]


@pytest.mark.slow
def test_every_arm_in_one_comparison(material, tmp_path):
    """All initialisations under one budget; cells of another run with the same seed are equal to the bit."""
    names = [name for name in ARMS if name != "inheritune"]
    names += [f"{name}/moved-scale" for name in names if ARMS[name].moves] + ["random/kd", "inheritune/kd"]
    fixed = {"layers": 2, "budget_steps": 4, "reference_steps": 4}
    compare(material, tmp_path / "first", ["inheritune", *names], [1], **fixed)
    facts = records(tmp_path / "first")
    assert facts["left_out"] == {}
    assert {cell["arm"] for cell in facts["cells"]} == {"inheritune", *names}
    check_plan(planned(material, arms=["inheritune", *names], seeds=[1], **fixed)[1], tmp_path / "first")
    first = weights(tmp_path / "first")
    assert len(first) == len(names) + 1
    again = ["stacking", "half-width", "lazy", "attention+norms", "expansion", "random/kd"]
    compare(material, tmp_path / "second", again, [1], controls=False, **fixed)
    second = weights(tmp_path / "second")
    assert len(second) == len(again)
    assert second.items() <= first.items()


def test_without_the_loop_the_budget_is_all_that_is_needed(material, tmp_path):
    """Arms have no rounds, so that a comparison without the loop is planned and run without `steps_per_round`."""
    fixed = {"layers": 1, "budget_steps": 2, "controls": False}
    _, arms = planned(material, {"steps_per_round": None}, arms=["random"], **fixed)
    compare(material, tmp_path, ["random"], [1], recipe={"steps_per_round": None}, **fixed)
    check_plan(arms, tmp_path)
    with pytest.raises(ValueError, match="steps_per_round is needed to train"):
        compare(material, tmp_path / "loop", ["inheritune"], [1], recipe={"steps_per_round": None}, **fixed)


def test_arms_that_cannot_be_built_are_left_out_and_said(material, tmp_path):
    """An arm that the reference or the depth does not allow is named with the reason; the others run."""
    arms = ["random", "stacking", "distilbert"]
    compare(material, tmp_path, arms, [1], layers=3, budget_steps=2, controls=False)
    facts = records(tmp_path)
    assert facts["left_out"] == {"stacking": "it doubles a number of layers, and 3 is odd"}
    estimate, _ = planned(material, arms=arms, layers=3, budget_steps=2, controls=False)
    assert estimate.left_out == facts["left_out"]
    assert "Left out: `stacking`" in (tmp_path / "comparison.md").read_text()


def test_losses_that_no_arm_uses_are_refused(material, tmp_path):
    """A recipe's teacher is for arms with /kd: where there is none it would be left out without a word."""
    recipe = {"distillation": "cross_entropy=0.3,forward_kl=0.7"}
    message = r"distillation='cross_entropy=0.3,forward_kl=0.7' is for arms with /kd alone, .* write inheritune/kd"
    with pytest.raises(ValueError, match=message):
        compare(material, tmp_path, ["inheritune", "random"], [1], recipe=recipe)
    with pytest.raises(ValueError, match=message):
        planned(material, arms=["inheritune", "random"], recipe=recipe)
    assert not (tmp_path / "comparison.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arms": ["randm"]}, "There is no arm 'randm' \\(did you mean 'random'\\?\\)"),
        ({"arms": ["random/moved-scale"]}, "random moves no block"),
        ({"arms": ["random", "random"]}, "arms must be a list of different values"),
        ({"arms": ["random"]}, "give layers and budget_steps"),
        ({"arms": ["inheritune/kd"]}, "give layers and budget_steps"),
        ({"seeds": []}, "seeds must be a list"),
        ({"learning_rates": [0.0]}, "must be multiples above 0"),
        ({"budget": "hours"}, "budget must be one of 'tokens', 'flops', got 'hours'"),
        ({"budget_steps": 0}, "budget_steps must be a whole number of 1 or more"),
    ],
)
def test_comparisons_that_make_no_sense_are_refused(values, message):
    """Bad settings are refused before anything is read."""
    with pytest.raises(ValueError, match=message):
        CompareConfig(**values)


def test_a_loop_of_full_depth_gives_no_budget(material, tmp_path):
    """It may match before it trains, so that other arms would train for no steps: both verbs refuse it."""
    with pytest.raises(ValueError, match="keep_layers='first:4' begins at the reference's full depth of 4 layers"):
        compare(material, tmp_path, ["inheritune"], [1], recipe={"keep_layers": "first:4", "max_layers": None})
    with pytest.raises(ValueError, match="the other arms would get no steps: begin below it, or give budget_steps"):
        planned(material, recipe={"keep_layers": "first:4", "max_layers": None})
    assert not (tmp_path / "comparison.json").exists()


def test_arms_are_trained_and_judged_as_the_loop_is():
    """How a model is trained and judged is the recipe's for every arm; what the loop does between rounds is not."""
    recipe = InherituneConfig(
        loss="chunked",
        tolerance=0.5,
        confidence=None,
        target=2.0,
        growth="continue",
        new_blocks="identity",
        optimizer_state="keep",
        distillation="jsd=1",
        distillation_temperature=2.0,
    )
    plan = CellPlan(parse_arm("stacking"), 1, 0.1, 4, 10)
    found = plan.recipe(recipe)
    assert found.loss == "chunked"
    assert (found.tolerance, found.confidence, found.target) == (0.5, None, 2.0)
    assert (found.growth, found.new_blocks, found.optimizer_state) == ("reinherit", "reference", "reset")
    assert (found.keep_layers, found.grow_by, found.max_layers, found.steps_per_round) == (2, 2, 4, 5)
    assert found.distillation is None
    taught = CellPlan(parse_arm("random/kd"), 1, 0.1, 4, 10).recipe(recipe)
    assert (taught.distillation, taught.distillation_temperature) == ("jsd=1", 2.0)
    assert CellPlan(parse_arm("inheritune/kd"), 1, 0.1, 0, 0).recipe(recipe).growth == "continue"
    # Unless the recipe says otherwise, as in the paper.
    assert CellPlan(parse_arm("random/kd"), 1, 0.1, 4, 10).recipe(InherituneConfig()).distillation == PAPER_DISTILLATION


def test_documents_are_kept_apart_in_every_cell(material, tmp_path, monkeypatch):
    """With document_boundaries every arm is trained, and measured on the test set, by the run's own collator."""
    seen = []
    whole = CausalCollator.__call__
    monkeypatch.setattr(
        CausalCollator, "__call__", lambda collator, rows: seen.append(collator.end_token_id) or whole(collator, rows)
    )
    compare(material, tmp_path, ["random"], [1], layers=1, budget_steps=2, controls=False, boundaries=True)
    assert set(seen) == {0}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3540, "59 min"), (3600, "1 h 00 min"), (7530, "2 h 06 min")],
)
def test_durations_as_people_say_them(seconds, said):
    """Seconds, minutes, or hours and minutes."""
    assert duration(seconds) == said


def test_progress_over_the_grid(material, tmp_path, monkeypatch):
    """Every cell is announced with its place in the grid; the time left is what cells took here, times those left."""
    clock = iter(range(0, 10_000, 60))
    watch = types.SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("inheritune_hf.experiments.comparison.time", watch)
    text = io.StringIO()
    console = Console(file=text, width=100)
    fixed = {"layers": 1, "budget_steps": 2, "controls": False}
    compare(material, tmp_path, ["random", "stacking", "inherited"], [1, 2], console=console, **fixed)
    rules = [line.strip("─ ") for line in text.getvalue().splitlines() if " of " in line and " seed " in line]
    # An arm that is left out is not counted.
    assert "stacking is left out" in text.getvalue()
    assert rules[0] == "1 of 6 · random · seed 1 · 0.01"
    assert [rule.partition(" · about ")[0] for rule in rules[1:]] == [
        "2 of 6 · random · seed 2 · 0.01",
        "3 of 4 · inherited · seed 1 · 0.01",
        "4 of 4 · inherited · seed 2 · 0.01",
    ]
    assert rules[3].endswith(" · about 60 s left")
    text.truncate(0)
    compare(material, tmp_path, ["random", "stacking", "inherited"], [1, 2], console=console, **fixed)
    assert " of 6 · " not in text.getvalue()


@pytest.mark.parametrize(
    ("name", "asked", "wanted"),
    [
        ("lazy", "rank:3", (1, 3, 4)),
        ("loss", "loss:3", (0, 2, 5)),
    ],
)
def test_measured_arms_ask_for_their_measure(monkeypatch, name, asked, wanted):
    """Each arm's layers are its measure's; `lazy` takes those that the highest rank leaves."""
    heard = []

    def measured(reference, choice, sequences, **_):
        heard.append(choice)
        return (0, 2, 5)

    monkeypatch.setattr("inheritune_hf.experiments.comparison.resolve_measured", measured)
    monkeypatch.setattr("inheritune_hf.experiments.comparison.sample_sequences", lambda _: [])
    splits, reference = types.SimpleNamespace(train=[]), types.SimpleNamespace(name="given", depth=6)
    ready = types.SimpleNamespace(reference=reference, splits=splits)
    args = types.SimpleNamespace(process_index=0, disable_tqdm=True, device="cpu")
    grid = types.SimpleNamespace(args=args, ready=ready)
    assert Comparison.chosen_layers(grid, parse_arm(name), 3) == wanted
    assert heard == [asked]
    assert Comparison.chosen_layers(grid, parse_arm("last"), 3) == ()
    if name == "lazy":
        assert Comparison.chosen_layers(grid, parse_arm(name), 6) == (0, 1, 2, 3, 4, 5)


def test_a_budget_of_operations_is_said_with_the_table(material, tmp_path):
    """The table says what was held equal: under a budget of operations the controls' steps are the student's."""
    recipe = {"keep_layers": 1, "grow_by": 1, "max_layers": 2, "steps_per_round": 2}
    compare(material, tmp_path, ["inheritune", "inherited"], [1], budget="flops", recipe=recipe)
    cells = {cell["arm"]: cell for cell in records(tmp_path)["cells"]}
    assert cells["random"]["steps"] == cells["continued"]["steps"] == cells["inheritune"]["steps"] == 4
    assert cells["inherited"]["steps"] < 4
    check_plan(planned(material, recipe, arms=["inheritune", "inherited"], seeds=[1], budget="flops")[1], tmp_path)
    assert "but for the controls (`continued`, `random`, `random-long`)" in (tmp_path / "comparison.md").read_text()


def batches_by(monkeypatch, key):
    """Note the tokens of every training batch from here on, by what `key` says of its trainer."""
    seen, step = {}, InherituneTrainer.training_step

    def heard(trainer, model, inputs, *rest):
        seen.setdefault(key(trainer), []).append(inputs["input_ids"].tolist())
        return step(trainer, model, inputs, *rest)

    monkeypatch.setattr(InherituneTrainer, "training_step", heard)
    return seen


def test_all_arms_see_one_order_and_so_does_the_loop(material, tmp_path, monkeypatch):
    """Each arm goes through one order; the loop does as well, unless its rounds are asked to begin it anew."""
    seen = batches_by(monkeypatch, lambda trainer: trainer.output_dir.parts[-2:])
    growing = {"keep_layers": 1, "grow_by": 1, "max_layers": 2, "steps_per_round": 2}
    for order in ("restart", None):
        arms = ["inheritune", "random", "stacking"]
        recipe = {**growing, "data_order": order}
        compare(material, tmp_path / str(order), arms, [1], recipe=recipe, layers=2, controls=False)
    batches = {(order, cell.partition("-")[0]): rows for (order, cell), rows in seen.items()}
    whole = batches["restart", "random"]
    assert len(whole) == 4
    assert whole[:2] != whole[2:]
    assert batches["restart", "stacking"] == whole
    assert batches["restart", "inheritune"] == whole[:2] * 2
    assert batches["None", "inheritune"] == batches["None", "random"] == whole


def test_each_seed_reads_a_stream_in_its_own_order(material, tmp_path, monkeypatch):
    """The order of a stream is its own: the sampler's seed alone would give all seeds the same batches."""
    seen = batches_by(monkeypatch, lambda trainer: trainer.args.seed)
    given = {"layers": 2, "controls": False, "budget_steps": 2}
    compare(material, tmp_path, ["inherited"], [1, 2], data={"streaming": True, "shuffle_documents": 50}, **given)
    assert len(seen[1]) == len(seen[2]) == 2
    assert seen[1] != seen[2]
    assert len({cell["selection"]["loss_sums"][0] for cell in records(tmp_path)["cells"]}) == 2


def test_the_test_set_is_measured_as_was_trained(material, tmp_path, monkeypatch):
    """Models and reference attend as the recipe says: other kernels round in another way, and that is no difference."""
    seen, measure = [], Comparison._test_loss

    def noted(comparison, model):
        seen.append(model.config._attn_implementation)
        return measure(comparison, model)

    monkeypatch.setattr(Comparison, "_test_loss", noted)
    given = {"layers": 2, "controls": False, "budget_steps": 2}
    compare(material, tmp_path, ["inherited"], [1], attention="eager", **given)
    assert seen == ["eager", "eager"]


def test_a_rate_that_diverges_is_left_out_of_the_sweep(material, tmp_path, monkeypatch):
    """It is the worst of its sweep, and is named; if every rate diverges there is nothing to compare."""
    train = InherituneTrainer.train

    def diverging(trainer):
        if trainer.args.learning_rate > 0.05:
            raise FloatingPointError("The training loss was nan at step 2.")
        return train(trainer)

    monkeypatch.setattr(InherituneTrainer, "train", diverging)
    given = {"layers": 2, "controls": False, "budget_steps": 2}
    compare(material, tmp_path / "one", ["inherited"], [1, 2], [1.0, 9.0], **given)
    found = records(tmp_path / "one")
    assert found["left_out"] == {"inherited at 0.09": "The training loss was nan at step 2"}
    assert [cell["learning_rate"] for cell in found["cells"]] == [0.01, 0.01]
    assert list(found["sweep"]["inherited"]) == ["0.01"]
    with pytest.raises(FloatingPointError, match="nan at step 2"):
        compare(material, tmp_path / "none", ["inherited"], [1, 2], [8.0, 9.0], **given)


# Budgets

GPT2 = GPT2Config(n_layer=8, n_embd=16, n_head=4, vocab_size=32, n_positions=16)
#: Two rounds of 50 steps, of 2 and of 4 layers.
ROUNDS = ((2, 50), (4, 50))


def budget_of(budget="tokens", states=False, **settings):
    compare = CompareConfig(arms=["inheritune"], budget=budget, reference_steps=30, **settings)
    return Budget(compare, GPT2, 8, 32, states)


def cost(given):
    flops = sum(steps * 32 * given.operations(parse_arm("inheritune"), layers) for layers, steps in ROUNDS)
    return LoopCost(4, 100, flops)


def steps(name, given):
    return given.plan(parse_arm(name), 1, 0.1, cost(given)).steps


@pytest.mark.parametrize("budget", ["tokens", "flops"])
def test_controls_take_the_loops_steps_under_either_budget(budget):
    """A control sees as much text as the student over all its rounds, and random-long the reference's besides."""
    given = budget_of(budget)
    assert {name: steps(name, given) for name in CONTROLS} == {"continued": 100, "random": 100, "random-long": 130}


def test_other_arms_get_the_budgets_operations():
    """Under a budget of operations arms that are no controls spend what the loop spent, whatever steps that makes."""
    given = budget_of("flops")
    spent = cost(given).flops
    for name, budgets in (("inherited", 1), ("random-2x", 2), ("random-whole", 1), ("random/kd", 1)):
        plan = given.plan(parse_arm(name), 1, 0.1, cost(given))
        step = 32 * given.operations(plan.variant, plan.layers)
        assert abs(plan.steps * step - budgets * spent) <= budgets * step / 2, name
        assert plan.steps != 100 * budgets
    assert steps("random-whole", given) < steps("inherited", given) < 100


def test_taught_states_need_a_model_as_wide_as_the_teacher():
    """Half as many channels cannot be compared with the teacher's; distributions can."""
    variant = parse_arm("half-width/kd")
    assert "narrower than its teacher's" in budget_of(states=True).reason_against(variant, [None])
    fixed = budget_of(layers=4, budget_steps=2)
    assert fixed.reason_against(variant, [None]) == ""
    assert budget_of(states=True, layers=4, budget_steps=2).reason_against(parse_arm("half-width"), [None]) == ""


# Cells

FIXED = {"layers": 2, "budget_steps": 4, "controls": False}


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
    """A cell that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    compare(material, folder, ["random"], [1], **FIXED)
    return folder


def only_cell(folder):
    (path,) = folder.glob("*/cell.json")
    return read_cell(path.parent)


def assert_same_cell(folder, whole):
    found, wanted = only_cell(folder), only_cell(whole)
    assert found.selection == wanted.selection
    assert found.test == wanted.test
    assert (found.curve, found.steps, found.tokens, found.flops) == (
        wanted.curve,
        wanted.steps,
        wanted.tokens,
        wanted.flops,
    )
    assert weights(folder) == weights(whole)
    assert not list(folder.glob("*/checkpoint-*"))


def test_a_trained_cell_whose_model_could_not_be_saved_is_finished_later(material, whole, tmp_path, monkeypatch):
    """If the disk is full after training, the same call saves the trained model: nothing is trained again."""
    save = InherituneTrainer.save_model

    def full(trainer, output_dir=None, _internal_call=False):
        if not _internal_call:
            raise OSError("No space left on device")
        save(trainer, output_dir, _internal_call)

    with monkeypatch.context() as patched:
        patched.setattr(InherituneTrainer, "save_model", full)
        with pytest.raises(OSError, match="No space left"):
            compare(material, tmp_path, ["random"], [1], **FIXED)
    monkeypatch.setattr(InherituneTrainer, "training_step", None)
    compare(material, tmp_path, ["random"], [1], **FIXED)
    assert_same_cell(tmp_path, whole)


def test_a_cell_killed_after_its_last_checkpoint_is_finished_later(material, whole, tmp_path, monkeypatch):
    """Killed between the last checkpoint and its judgement, a cell is judged by what the checkpoint says."""

    def killed(trainer, seal):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(InherituneTrainer, "finish_round", killed)
        with pytest.raises(KeyboardInterrupt):
            compare(material, tmp_path, ["random"], [1], **FIXED)
    monkeypatch.setattr(InherituneTrainer, "training_step", None)
    compare(material, tmp_path, ["random"], [1], **FIXED)
    assert_same_cell(tmp_path, whole)


def test_a_trained_cell_without_its_checkpoint_says_what_to_do(material, tmp_path, monkeypatch):
    """What was trained and is lost is said, with the folder to remove."""

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Comparison, "_finished", full)
        with pytest.raises(OSError, match="No space left"):
            compare(material, tmp_path, ["random"], [1], **FIXED)
    (seal,) = tmp_path.glob("*/checkpoint-4/inheritune_state.json")
    seal.unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4, .* is gone or damaged, .* remove the folder to"):
        compare(material, tmp_path, ["random"], [1], **FIXED)


def test_a_cell_keeps_its_log(whole):
    """Every logged figure stays in the cell's folder when its checkpoints go."""
    (path,) = whole.glob("*/log.json")
    log = json.loads(path.read_text())["log"]
    losses = [(row["step"], row["eval_loss"]) for row in log if "eval_loss" in row]
    assert [step for step, _ in losses] == [2, 4]
    assert [loss for _, loss in losses] == [loss for _, _, loss in only_cell(whole).curve]
    assert [row["step"] for row in log if "loss" in row] == [2, 4]


def test_a_numeric_target_is_not_taken_for_the_reference(material, tmp_path):
    """With a target of one's own the reference's line is the reference's still, but what is matched is the target."""
    for name, target in (("own", 2.0), ("measured", "reference"), ("easy", 9.0)):
        compare(material, tmp_path / name, ["random"], [1], recipe={"target": target}, **FIXED)
    own, measured, easy = (records(tmp_path / name) for name in ("own", "measured", "easy"))
    assert own["reference"]["selection_loss"] == measured["reference"]["selection_loss"] != 2.0
    assert own["cells"][0]["reference_loss"] == measured["cells"][0]["reference_loss"]
    assert own["cells"][0]["first_match"] is None
    assert easy["cells"][0]["first_match"] == easy["cells"][0]["curve"][0][:2]
    (*_, row) = csv.DictReader((tmp_path / "easy" / "comparison.csv").read_text().splitlines())
    assert (row["arm"], float(row["tokens_to_match"])) == ("random", easy["cells"][0]["first_match"][0])
    assert weights(tmp_path / "own") == weights(tmp_path / "measured")


@pytest.fixture
def tracker(monkeypatch):
    """A stand-in for Weights & Biases, as far as Transformers' callback calls it."""
    stand_in = types.ModuleType("wandb")
    errors = types.ModuleType("wandb.sdk.lib.config_util")
    errors.ConfigError = type("ConfigError", (Exception,), {})
    stand_in.run, stand_in.runs = None, []

    class Run(dict):
        def __init__(self, name, id):
            super().__init__(steps=[])
            self.id, self.name, self.summary, self.ended = id, name, {}, False

        def _label(self, **_):
            pass

    def init(project=None, name=None, id=None, resume=None):
        known = [run for run in stand_in.runs if id is not None and run.id == id]
        if not known:
            stand_in.runs.append(Run(name, id))
        stand_in.run = known[0] if known else stand_in.runs[-1]
        stand_in.run.ended = False

    def finish():
        stand_in.run.ended = True
        stand_in.run = None

    class Config(dict):
        def update(self, values, allow_val_change=False):
            super().update(values)

    stand_in.init, stand_in.finish, stand_in.config = init, finish, Config()
    stand_in.log = lambda figures: stand_in.run["steps"].append(figures["train/global_step"])
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    for name in ("wandb.sdk", "wandb.sdk.lib"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.config_util", errors)
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: True)
    return stand_in


def test_each_cell_is_a_tracked_run_of_its_own(material, tmp_path, tracker):
    """Weights & Biases gets one run for each cell, named by comparison, arm, seed and rate, and nothing else."""
    folder = tmp_path / "mine"
    compare(material, folder, ["random"], [1, 2], args={"report_to": ["wandb"]}, recipe={"target": 2.0}, **FIXED)
    assert [run.name for run in tracker.runs] == ["mine/random-seed1-lr0.01", "mine/random-seed2-lr0.01"]
    assert all(run.ended and run["steps"] and sorted(run["steps"]) == run["steps"] for run in tracker.runs)
    compare(material, tmp_path / "named", ["random"], [1], args={"report_to": ["wandb"], "run_name": "sweep"}, **FIXED)
    assert tracker.runs[-1].name == "sweep/random-seed1-lr0.01"


def test_a_run_that_was_open_before_stays_open(material, tmp_path, tracker):
    """A caller's own run is not ended: the cells write into it."""
    tracker.init(name="the caller's")
    compare(material, tmp_path, ["random"], [1], args={"report_to": ["wandb"]}, **FIXED)
    (run,) = tracker.runs
    assert run["steps"]
    assert not run.ended


def test_the_second_stage_of_stacking_is_taught_by_depth(material, tmp_path, monkeypatch):
    """Blocks that grew from random ones stand for layers at their share of the teacher's depth, in both stages."""
    seen = []
    whole = torch.nn.Module.register_forward_hook

    def heard(block, *_, **__):
        if type(block).__name__ == "GPT2Block":
            seen.append(block.attn.layer_idx)
        return whole(block, *_, **__)

    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", heard)
    recipe = {"distillation": "cross_entropy=1,hidden_mse=1"}
    compare(material, tmp_path, ["stacking/kd"], [1], recipe=recipe, layers=4, budget_steps=2, controls=False)
    # Each step hooks the teacher's blocks, then the student's.
    assert seen[:12] == [1, 3, 0, 1, 0, 1, 2, 3, 0, 1, 2, 3]
    (folder,) = tmp_path.glob("*/model")
    kept = AutoModelForCausalLM.from_pretrained(folder).config.inheritune
    assert kept["kept_layers"] == []
    assert kept["reference"].endswith("reference")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "stop", "recipe"),
    [
        ("stacking", 4, {}),
        ("stacking", 2, {}),
        ("inheritune", 3, {"keep_layers": 1, "grow_by": 1, "steps_per_round": 2}),
        ("inheritune", 3, {"keep_layers": 1, "grow_by": 1, "steps_per_round": 2, "growth": "continue"}),
        ("random/kd", 3, {}),
        ("stacking/kd", 4, {"distillation": "cross_entropy=1,hidden_mse=1"}),
    ],
)
def test_interrupted_cells_of_several_stages_go_on_to_the_same_bits(material, tmp_path, monkeypatch, arm, stop, recipe):
    """Stacking, the loop and distillation, stopped within a stage, end with the weights of an undisturbed cell."""
    fixed = {"layers": 2, "budget_steps": 6 if arm != "inheritune" else 4, "controls": False}
    compare(material, tmp_path / "whole", [arm], [1], recipe=recipe, **fixed)
    taken, step = [], InherituneTrainer.training_step

    def stopped(trainer, *batch):
        taken.append(1)
        if len(taken) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *batch)

    monkeypatch.setattr(InherituneTrainer, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt, match="was interrupted"):
        compare(material, tmp_path / "cut", [arm], [1], recipe=recipe, **fixed)
    compare(material, tmp_path / "cut", [arm], [1], recipe=recipe, **fixed)
    assert len(taken) == fixed["budget_steps"]
    assert_same_cell(tmp_path / "cut", tmp_path / "whole")
