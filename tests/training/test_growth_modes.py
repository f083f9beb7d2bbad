"""The ways to grow: what goes on, what begins afresh, and that a killed run ends with the same bits in each."""

import signal

import pytest
import tiny
import torch
from test_trainer import run_program
from transformers import Trainer, TrainerCallback

from inheritune_hf import InheritedGPT2
from inheritune_hf.evaluation import ValidatedTrainer
from inheritune_hf.forecast import Forecast
from inheritune_hf.growth import GrowthRule
from inheritune_hf.training import Baseline


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny")


CONTINUE = {"growth": "continue"}
EVERYTHING = {**CONTINUE, "optimizer_state": "keep", "lr_schedule": "continue"}


class Watch(TrainerCallback):
    """What rounds begin with."""

    def __init__(self):
        self.rates, self.moments, self.weights = {}, {}, {}

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.rates[state.global_step] = optimizer.param_groups[0]["lr"]
        if state.global_step in (10, 20):
            self.moments[state.global_step] = len(optimizer.optimizer.state_dict()["state"])
            self.weights[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


def test_continue_keeps_what_was_trained(reference, tmp_path):
    """A round begins with the weights the last one ended with, and the reference's blocks above them."""
    watch = Watch()
    tiny.make_trainer(tmp_path, reference, CONTINUE, callbacks=[watch]).train()
    ended = InheritedGPT2.from_pretrained(tmp_path / "checkpoint-10").state_dict()
    whole = InheritedGPT2.from_pretrained(reference).state_dict()
    for name, value in watch.weights[10].items():
        assert torch.equal(value, whole[name] if name.startswith("transformer.h.1.") else ended[name])
    assert watch.moments == {10: 0, 20: 0}


def test_optimizer_and_schedule_go_on(reference, tmp_path):
    """Kept moments are there for trained parameters alone, and one schedule runs over all rounds."""
    watch = Watch()
    tiny.make_trainer(tmp_path, reference, EVERYTHING, callbacks=[watch], max_steps=30).train()
    assert watch.moments == {10: 16, 20: 28}
    rates = [watch.rates[step] for step in range(30)]
    assert rates[2] == max(rates) == 1e-2
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_optimizer_may_be_kept_while_the_schedule_restarts(reference, tmp_path):
    """Moments stay and the learning rate warms up again."""
    watch = Watch()
    tiny.make_trainer(tmp_path, reference, {**CONTINUE, "optimizer_state": "keep"}, callbacks=[watch]).train()
    assert watch.moments == {10: 16, 20: 28}
    rates = [watch.rates[step] for step in range(30)]
    assert rates[:10] == rates[10:20] == rates[20:]


def test_schedule_may_go_on_while_the_optimizer_is_reset(reference, tmp_path):
    """No moments, and the learning rate of one schedule."""
    watch = Watch()
    recipe = {"lr_schedule": "continue"}
    tiny.make_trainer(tmp_path, reference, recipe, callbacks=[watch], max_steps=30).train()
    assert watch.moments == {10: 0, 20: 0}
    rates = [watch.rates[step] for step in range(30)]
    assert rates[2:] == sorted(rates[2:], reverse=True)


def batches(monkeypatch):
    seen = []
    plain = ValidatedTrainer.training_step

    def note(self, model, inputs, num_items_in_batch=None):
        seen.extend(tuple(row) for row in inputs["input_ids"].tolist())
        return plain(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(ValidatedTrainer, "training_step", note, raising=False)
    return seen


@pytest.mark.parametrize(
    ("recipe", "restarts"),
    [({}, True), (CONTINUE, False), ({"data_order": "continue"}, False), ({**CONTINUE, "data_order": "restart"}, True)],
)
def test_data_order(reference, tmp_path, monkeypatch, recipe, restarts):
    """Data restart with each round where students do, and go on where they do, unless the recipe says otherwise."""
    seen = batches(monkeypatch)
    tiny.make_trainer(tmp_path, reference, {**recipe, "max_layers": 2}).train()
    assert len(seen) == 80
    assert (seen[:40] == seen[40:]) is restarts
    if not restarts:
        assert sorted(seen) == sorted(tuple(row) for row in tiny.sequences(80, seed=1))


@pytest.mark.parametrize(("kind", "strategy"), [(Trainer, "no"), (ValidatedTrainer, "steps")])
def test_rounds_without_growth_equal_one_plain_run(reference, tmp_path, kind, strategy):
    """
    Three rounds that add nothing are one plain run of thirty steps: its weights and its loss curves, to the bit.

    A plain `Trainer` that evaluates draws from the random state that dropout uses, so it does not evaluate here. Our
    own evaluation does not: with it the curves of both losses are compared.
    """
    rule = GrowthRule((0, 1), lambda layers: layers, 10)
    trainer = tiny.make_trainer(
        tmp_path / "rounds", reference, EVERYTHING, max_steps=30, baseline=Baseline(growth_rule=rule)
    )
    trainer.train()
    plain = kind(
        model=InheritedGPT2.from_pretrained(reference, keep_layers=2),
        args=tiny.arguments(tmp_path / "plain", max_steps=30, eval_strategy=strategy, dataloader_pin_memory=False),
        train_dataset=tiny.train_set(),
        eval_dataset=tiny.selection_set(),
        data_collator=trainer.data_collator,
    )
    plain.train()
    assert len(trainer.rounds) == 3
    assert tiny.weights_hash(plain.model) == tiny.weights_hash(trainer.student)
    for figure in ("loss", "eval_loss") if strategy == "steps" else ("loss",):
        curves = [
            # A run says of each evaluation whether it matches; another trainer has no target.
            [{**row, "eval_matched": None} for row in tiny.without_times(one.state.log_history) if figure in row]
            for one in (trainer, plain)
        ]
        assert len(curves[0]) >= 6
        assert curves[0] == curves[1]


def test_schedule_of_scattered_layers(reference, tmp_path):
    """A schedule grows what has no next layer, and keeps what was trained where it belongs."""
    recipe = {**CONTINUE, "keep_layers": "half", "schedule": ["last:1", "2:4", "0:1,2:4"], "max_layers": None}
    trainer = tiny.make_trainer(tmp_path, reference, recipe)
    trainer.train()
    assert [item.kept_layers for item in trainer.rounds] == [(3,), (2, 3), (0, 2, 3)]
    assert trainer.outcome == "no_more_layers"


def test_two_evaluations_in_a_row_match(reference, tmp_path):
    """With match_at 'evaluation' a round ends at the second evaluation in a row that matches, not at the first."""
    recipe = {"target": 3.9, "tolerance": 0.0, "confidence": None, "steps_per_round": 40, "match_at": "evaluation"}
    trainer = tiny.make_trainer(tmp_path, reference, recipe)
    trainer.train()
    losses = [(row["step"], row["eval_loss"]) for row in trainer.state.log_history if "eval_loss" in row]
    assert trainer.outcome == "matched"
    assert losses[-1][1] <= 3.9
    assert losses[-2][1] <= 3.9
    assert all(loss > 3.9 for _, loss in losses[:-2])
    assert trainer.rounds[0].end_step == losses[-1][0] < 40


ABANDON = {"abandon": 0.95, "steps_per_round": 40}


def test_rounds_that_will_miss_are_abandoned(reference, tmp_path):
    """A round ends at the second forecast that is sure of a miss, says so, and grows; the deepest is trained whole."""
    trainer = tiny.make_trainer(tmp_path, reference, ABANDON)
    trainer.train()
    assert [(item.end_step - item.start_step, item.abandoned) for item in trainer.rounds] == [
        (20, True),
        (20, True),
        (40, False),
    ]
    assert trainer.outcome == "no_more_layers"
    forecasts = [Forecast.from_log(row) for row in trainer.state.log_history if "forecast/loss" in row]
    assert [item.at_step for item in forecasts[:5]] == [15, 20, 35, 40, 55]
    assert [item.end_step for item in forecasts[:5]] == [40, 40, 60, 60, 80]
    assert max(item.match for item in forecasts[:4]) <= 0.05
    assert trainer.forecast() is None


def test_forecasts_change_nothing(reference, tmp_path):
    """Without abandon, weights are the bits of plain rounds; with one that may be matched, no round is abandoned."""
    hashes = set()
    for name, recipe in (("plain", {}), ("sure", {"abandon": 0.95})):
        settings = {"steps_per_round": 40, "target": 10.0, **recipe}
        trainer = tiny.make_trainer(tmp_path / name, reference, settings)
        trainer.train()
        assert (trainer.outcome, trainer.rounds[0].abandoned, trainer.rounds[0].end_step) == ("matched", False, 40)
        hashes.add(tiny.weights_hash(trainer.student))
    assert len(hashes) == 1


class Ask(TrainerCallback):
    """Asks for forecasts as a user's callback would."""

    def __init__(self):
        self.trainer, self.heard = None, {}

    def on_step_end(self, args, state, control, **kwargs):
        self.heard[state.global_step] = self.trainer.forecast()


def test_a_forecast_can_be_asked_for(reference, tmp_path):
    """While training, the trainer returns the forecast of the last evaluation, or None before there are enough."""
    ask = Ask()
    ask.trainer = tiny.make_trainer(tmp_path, reference, {"steps_per_round": 40, "max_layers": 1}, callbacks=[ask])
    assert ask.trainer.forecast() is None
    ask.trainer.train()
    logged = [Forecast.from_log(row) for row in ask.trainer.state.log_history if "forecast/loss" in row]
    assert [item.at_step for item in logged] == [15, 20, 25, 30, 35]
    assert ask.heard[15] is None
    assert [ask.heard[step] for step in (16, 20, 21, 36)] == [logged[0], logged[0], logged[1], logged[4]]


RUNS = {
    "abandon": ABANDON,
    "continue": CONTINUE,
    "continue-keep": {**CONTINUE, "optimizer_state": "keep"},
    "continue-identity": {**CONTINUE, "new_blocks": "identity"},
    "everything": EVERYTHING,
}


# With kept optimizer states: test_layer_order.py.
@pytest.mark.parametrize("name", ["abandon", "continue-identity"])
def test_killed_runs_go_on_to_the_same_bits(reference, tmp_path, name):
    """SIGKILL in round 2, in each way to grow: the weights and the log of an uninterrupted run."""
    args = {} if name == "abandon" else {"max_steps": 30}
    check_kill(reference, tmp_path, {"recipe": RUNS[name], "args": args}, 14)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(RUNS) - {"abandon"}))
@pytest.mark.parametrize("kill_at", [10, 11])
def test_killed_runs_go_on_to_the_same_bits_wherever(reference, tmp_path, name, kill_at):
    """The same around the boundary of a round and within the next."""
    # Saved where it logs: Trainer's logged loss is a mean since the last log, or since the process began.
    check_kill(reference, tmp_path, {"recipe": RUNS[name], "args": {"max_steps": 30, "save_steps": 2}}, kill_at)


@pytest.mark.slow
def test_two_processes_abandon_together(reference, tmp_path):
    """The main process decides: a run of two that is killed where it abandons a round ends in the same bits."""
    args = {"per_device_train_batch_size": 2, "save_steps": 2}
    for kill_at in (17, 20):
        check_kill(reference, tmp_path / str(kill_at), {"recipe": ABANDON, "args": args}, kill_at, processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_with_accumulation_reduced_precision_and_workers(reference, tmp_path, processes):
    """Accumulation of 2, bfloat16 autocast and data workers change nothing about that, in one process and in two."""
    args = {
        "max_steps": 30,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2 // processes,
        "bf16": True,
        "dataloader_num_workers": 2,
    }
    check_kill(reference, tmp_path, {"recipe": RUNS["continue-keep"], "args": args}, 14, processes)


def check_kill(reference, tmp_path, settings, kill_at, processes=1):
    settings = {**settings, "reference": reference, "result": str(tmp_path / "result.json")}
    whole = run_program({**settings, "output_dir": str(tmp_path / "whole")}, processes)
    killed = run_program({**settings, "output_dir": str(tmp_path / "cut"), "kill_at": kill_at}, processes, check=False)
    assert not isinstance(killed, dict)
    assert processes > 1 or killed.returncode == -signal.SIGKILL
    resumed = run_program({**settings, "output_dir": str(tmp_path / "cut")}, processes)
    assert resumed == whole
    assert whole["world_size"] == processes
    assert whole["layers"] == [1, 2, 3]
    return whole
