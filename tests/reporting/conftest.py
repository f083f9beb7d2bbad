"""Runs as they lie on disk: one that matched, one that was interrupted."""

import json

import pytest
from recorded_runs import RECIPE, ROUNDS, full_evaluation, write_comparison, write_run

from inheritune_hf.records import encode, write_json


@pytest.fixture
def run(tmp_path):
    """A matched run with an evaluation."""
    folder = write_run(tmp_path / "run")
    write_json(folder / "evaluation.json", encode(full_evaluation()))
    return folder


@pytest.fixture
def comparison(tmp_path):
    """A comparison of four arms with two seeds."""
    return write_comparison(tmp_path / "compared")


@pytest.fixture
def interrupted(tmp_path):
    """A run that was stopped in its second round, as the trainer leaves it."""
    folder = tmp_path / "stopped"
    facts = {"reference": "some/reference", "reference.revision": None, "reference.layers": 8, "args.seed": 7}
    recipe = {f"recipe.{name}": value for name, value in RECIPE.items()}
    reference = {"documents": [0], "loss_sums": [10.5], "tokens": [2], "correct": [1]}
    state = {
        "identity": {**recipe, **facts},
        "reference": reference,
        "layers": [0, 1, 2, 3, 4, 5],
        "start_step": 120,
        "staged": True,
        "rounds": [encode(ROUNDS[0])],
        "outcome": "interrupted",
    }
    write_json(folder / "_inheritune" / "state.json", state)
    log = [{"step": 60, "eval_loss": 5.3476}, {"step": 120, "eval_loss": 5.2219}, {"step": 180, "eval_loss": 5.3129}]
    for step in (120, 190):
        write_json(folder / f"checkpoint-{step}" / "trainer_state.json", {"global_step": step, "log_history": log})
    # The student of an earlier, shorter run in the same folder is not this run's result.
    (folder / "rounds.json").write_text(json.dumps({}))
    return folder
