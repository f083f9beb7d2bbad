"""Arms, seeds and rates under one budget."""

import csv
import dataclasses
import io
import json
import os
import signal
import types
from dataclasses import asdict

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainingArguments

from inheritune_hf import DataConfig, InherituneConfig
from inheritune_hf.cli.settings import parse_comparison
from inheritune_hf.configuration import RunConfig
from inheritune_hf.data import CausalCollator
from inheritune_hf.experiments import ARMS, CompareConfig, estimate_comparison, run_comparison, write_results
from inheritune_hf.experiments.arms import ArmTrainer, parse_arm
from inheritune_hf.experiments.comparison import CellPlan, Comparison, best_cell, duration
from inheritune_hf.experiments.results import Cell, arm_results
from inheritune_hf.reporting import write_report
from inheritune_hf.students import TrainingSetup

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
        RunConfig(reference=str(material / "reference")),
        InherituneConfig(**{"keep_layers": 2, "max_layers": 2, "steps_per_round": 4, "target": 0.01, **(recipe or {})}),
        DataConfig(
            train_files=[str(material / "*.txt")],
            selection_fraction=0.3,
            test_fraction=0.3,
            block_size=8,
            near_duplicates="ignore",
            document_boundaries=boundaries,
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
    result = compare(
        material, folder, ["stacking", "inheritune"], [1], [0.5, 1.0], recipe=growing, reference_steps=5, controls=True
    )
    assert result.complete
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


def planned(material, recipe=None, **settings):
    """What a plan says of each arm of such a comparison, before anything is trained."""
    estimate = estimate_comparison(
        str(material / "reference"),
        CompareConfig(**settings),
        InherituneConfig(**{"keep_layers": 2, "max_layers": 2, "steps_per_round": 4, "target": 0.01, **(recipe or {})}),
        TrainingSetup(batch_size=4, block_size=8),
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
    cell = Cell.from_dict(records(small)["cells"][0])
    worse = dataclasses.replace(cell.selection, loss_sums=tuple(loss + 1 for loss in cell.selection.loss_sums))
    missed = dataclasses.replace(cell, outcome="no_more_layers", layers=6)
    shallow = dataclasses.replace(cell, outcome="matched", layers=2, selection=worse)
    deep = dataclasses.replace(cell, outcome="matched", layers=4)
    assert best_cell([missed, deep, shallow]) is shallow
    other = dataclasses.replace(cell, outcome=None, selection=worse)
    plain = dataclasses.replace(cell, outcome=None)
    assert best_cell([other, plain]) is plain


def test_table_is_made_from_the_records(small):
    """Table, CSV and curves say what the records say; nothing is trained for them."""
    facts = records(small)
    before = (small / "comparison.md").read_text()
    for name in ("comparison.md", "comparison.csv", "comparison.png", "differences.png"):
        (small / name).unlink()
    write_results(small)
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
    assert "does not match the reference trained on for the same budget" in report.verdict
    for row in arm_results(records(small)):
        assert f"{row.loss:.4f}" in page.read_text()
    (tmp_path / "again.json").write_text(json.dumps(records(small)["settings"]))
    settings, again = parse_comparison([str(tmp_path / "again.json"), "--use_cpu"], CompareConfig)
    assert asdict(again) == records(small)["compare"]
    assert (settings.run.reference, settings.recipe.max_layers) == (str(material / "reference"), 2)
    assert (settings.data.block_size, settings.args.learning_rate) == (8, 0.01)
    model = small / f"inheritune-seed1-lr{records(small)['cells'][0]['learning_rate']:g}" / "model"
    report, _ = write_report(model, tmp_path / "cell")
    assert "comparison" in [section.anchor for section in report.sections]


def test_finished_comparison_is_not_trained_again(small, material, monkeypatch):
    """The same call reads what is on disk."""
    before = {path: path.stat().st_mtime_ns for path in small.glob("*/cell.json")}
    monkeypatch.setattr(ArmTrainer, "training_step", None)
    growing = {"keep_layers": 1, "grow_by": 1, "max_layers": 2}
    compare(material, small, ["stacking", "inheritune"], [1], [0.5, 1.0], recipe=growing, reference_steps=5)
    assert before == {path: path.stat().st_mtime_ns for path in small.glob("*/cell.json")}


def test_finished_cells_of_other_settings_are_refused(material, tmp_path):
    """A finished cell stands for its own settings only: with others it is refused, and what differs is named."""
    fixed = {"layers": 1, "controls": False}
    compare(material, tmp_path, ["random"], [1], budget_steps=2, **fixed)
    with pytest.raises(ValueError, match=r"holds another run:\n- args.weight_decay: 0.0 there, 0.1 now"):
        compare(material, tmp_path, ["random"], [1], budget_steps=2, args={"weight_decay": 0.1}, **fixed)
    with pytest.raises(ValueError, match=r"recipe\.steps_per_round: 2 there, 3 now"):
        compare(material, tmp_path, ["random"], [1], budget_steps=3, **fixed)
    assert compare(material, tmp_path, ["random"], [1, 2], budget_steps=2, **fixed).complete


def weights(folder):
    return {path.parent.parent.name: path.read_bytes() for path in folder.glob("*/model/model.safetensors")}


def test_interrupted_cell_goes_on_to_the_same_bits(material, tmp_path, monkeypatch):
    """A comparison stopped within a cell goes on there; its cells equal those of one that was not stopped."""
    fixed = {"layers": 2, "budget_steps": 6, "controls": False}
    compare(material, tmp_path / "whole", ["hybrid-stacking", "random"], [1], **fixed)
    taken, step = [], ArmTrainer.training_step

    def stopped(trainer, *batch):
        taken.append(1)
        if len(taken) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *batch)

    monkeypatch.setattr(ArmTrainer, "training_step", stopped)
    first = compare(material, tmp_path / "cut", ["hybrid-stacking", "random"], [1], **fixed)
    assert not first.complete
    assert len(list((tmp_path / "cut").glob("*/cell.json"))) == 1
    assert compare(material, tmp_path / "cut", ["hybrid-stacking", "random"], [1], **fixed).complete
    assert len(taken) == 6 + 6
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert len(weights(tmp_path / "cut")) == 2


def test_comparison_stopped_at_the_end_of_a_cell_begins_no_other(material, tmp_path, monkeypatch):
    """A signal during a cell's last evaluation stops the comparison there; the cell is not trained again."""
    fixed = {"layers": 2, "budget_steps": 6, "controls": False}
    taken, step, evaluate = [], ArmTrainer.training_step, ArmTrainer.evaluate

    def counted(trainer, *batch):
        taken.append(1)
        return step(trainer, *batch)

    def stopped(trainer, *args, **kwargs):
        if len(taken) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(trainer, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(ArmTrainer, "training_step", counted)
        patched.setattr(ArmTrainer, "evaluate", stopped)
        with pytest.raises(KeyboardInterrupt):
            compare(material, tmp_path, ["inherited", "random"], [1], **fixed)
    assert len(taken) == 6
    monkeypatch.setattr(ArmTrainer, "training_step", counted)
    assert compare(material, tmp_path, ["inherited", "random"], [1], **fixed).complete
    assert len(taken) == 6 + 6


def test_budget_in_flops(material, tmp_path):
    """Under a budget of operations a deeper arm takes fewer steps, and spends as much."""
    compare(
        material, tmp_path, ["random", "random-whole"], [1], layers=2, budget_steps=8, budget="flops", controls=False
    )
    cells = {cell["arm"]: cell for cell in records(tmp_path)["cells"]}
    assert cells["random"]["steps"] == 8
    assert cells["random-whole"]["steps"] < 8
    step = cells["random-whole"]["flops"] / cells["random-whole"]["steps"]
    assert abs(cells["random-whole"]["flops"] - cells["random"]["flops"]) <= step / 2
    fixed = {"layers": 2, "budget_steps": 8, "budget": "flops", "controls": False, "arms": ["random", "random-whole"]}
    check_plan(planned(material, **fixed)[1], tmp_path)


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


def test_arms_that_cannot_be_built_are_left_out_and_said(material, tmp_path):
    """An arm that the reference or the depth does not allow is named with the reason; the others run."""
    arms = ["random", "stacking", "distilbert"]
    compare(material, tmp_path, arms, [1], layers=3, budget_steps=2, controls=False)
    facts = records(tmp_path)
    assert facts["left_out"] == {"stacking": "it doubles a number of layers, and 3 is odd"}
    estimate, _ = planned(material, arms=arms, layers=3, budget_steps=2, controls=False)
    assert estimate.left_out == facts["left_out"]
    assert "Left out: `stacking`" in (tmp_path / "comparison.md").read_text()


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
        ({"budget": "hours"}, "budget must be tokens or flops"),
        ({"budget_steps": 0}, "budget_steps must be a whole number of 1 or more"),
    ],
)
def test_comparisons_that_make_no_sense_are_refused(values, message):
    """Bad settings are refused before anything is read."""
    with pytest.raises(ValueError, match=message):
        CompareConfig(**values)


def test_arms_say_where_they_come_from():
    """Each arm has a sentence and a source."""
    assert all(arm.summary and arm.source for arm in ARMS.values())
    assert parse_arm("last/moved-scale").moved_scale


def test_arms_are_trained_and_judged_as_the_loop_is():
    """How a model is trained and judged is the recipe's for every arm; what the loop does between rounds is not."""
    recipe = InherituneConfig(
        loss="chunked",
        compile_scope="model",
        tolerance=0.5,
        confidence=None,
        target=2.0,
        growth="continue",
        new_blocks="identity",
        optimizer_state="keep",
        freeze_steps=3,
        distillation="jsd=1",
        distillation_temperature=2.0,
    )
    plan = CellPlan(parse_arm("stacking"), 1, 0.1, 4, 10)
    found = plan.recipe(recipe)
    assert (found.loss, found.compile_scope) == ("chunked", "model")
    assert (found.tolerance, found.confidence, found.target) == (0.5, None, 2.0)
    assert (found.growth, found.new_blocks, found.optimizer_state, found.freeze_steps) == (
        "reinherit",
        "reference",
        "reset",
        0,
    )
    assert (found.keep_layers, found.grow_by, found.max_layers, found.steps_per_round) == (2, 2, 4, 5)
    assert found.distillation is None
    taught = CellPlan(parse_arm("random/kd"), 1, 0.1, 4, 10).recipe(recipe)
    assert (taught.distillation, taught.distillation_temperature) == ("jsd=1", 2.0)
    assert CellPlan(parse_arm("inheritune/kd"), 1, 0.1, 0, 0).recipe(recipe).growth == "continue"


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
        ("lazy", ("rank", 3), (1, 3, 4)),
        ("rank", ("rank", 3), (0, 2, 5)),
        ("influence", ("influence", 3), (0, 2, 5)),
        ("angular", ("angular", 3), (0, 2, 5)),
        ("loss", ("loss", 3), (0, 2, 5)),
    ],
)
def test_measured_arms_ask_for_their_measure(monkeypatch, name, asked, wanted):
    """Each arm's layers are its measure's; `lazy` takes those that the highest rank leaves."""
    heard = []

    def measured(reference, measure, layers, sequences, **_):
        heard.append((measure, layers))
        return (0, 2, 5)

    monkeypatch.setattr("inheritune_hf.experiments.comparison.layers_by_measure", measured)
    monkeypatch.setattr("inheritune_hf.experiments.comparison.leading_sequences", lambda _: [])
    splits, reference = types.SimpleNamespace(selection=[]), types.SimpleNamespace(name="given", depth=6)
    ready = types.SimpleNamespace(reference=reference, kwargs={}, splits=splits)
    grid = types.SimpleNamespace(args=types.SimpleNamespace(process_index=0), ready=ready)
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
    assert "but for the controls (`continued`, `random`, `random-long`)" in (tmp_path / "comparison.md").read_text()


def test_arms_see_one_order_and_the_loop_begins_it_again(material, tmp_path, monkeypatch):
    """Each arm goes through one order; the loop's rounds each begin it anew, unless its data continue."""
    seen, step = {}, ArmTrainer.training_step

    def heard(trainer, model, inputs, *rest):
        seen.setdefault(trainer.output_dir.parts[-2:], []).append(inputs["input_ids"].tolist())
        return step(trainer, model, inputs, *rest)

    monkeypatch.setattr(ArmTrainer, "training_step", heard)
    growing = {"keep_layers": 1, "grow_by": 1, "max_layers": 2, "steps_per_round": 2}
    for order in ("restart", "continue"):
        arms = ["inheritune", "random", "stacking"]
        recipe = {**growing, "data_order": order}
        compare(material, tmp_path / order, arms, [1], recipe=recipe, layers=2, controls=False)
    batches = {(order, cell.partition("-")[0]): rows for (order, cell), rows in seen.items()}
    whole = batches["restart", "random"]
    assert len(whole) == 4
    assert whole[:2] != whole[2:]
    assert batches["restart", "stacking"] == whole
    assert batches["restart", "inheritune"] == whole[:2] * 2
    assert batches["continue", "inheritune"] == batches["continue", "random"] == whole
