"""What a run's folder says."""

import json
from dataclasses import replace

import pytest
from recorded_runs import LINEAGE, RECIPE, RESULTS, ROUNDS, full_evaluation, write_run

from inheritune_hf.publishing import FinishedRun, ResultRow
from inheritune_hf.records import RunRecord, encode, write_json, write_record
from inheritune_hf.reporting import read_run
from inheritune_hf.reporting.content import build_report
from inheritune_hf.students import open_reference


def test_finished_run_is_read_whole(run):
    """Rounds, curves, results, data and the evaluation are those that were written."""
    found = read_run(run)
    assert (found.name, found.record.outcome, found.record.rounds, found.step) == ("run", "matched", ROUNDS, 240)
    assert found.record.results == tuple(RESULTS)
    assert found.record.curves["student"] == ((60, 5.3476), (120, 5.2219), (180, 5.3129), (240, 5.1857))
    assert found.record.data.test.fingerprint.startswith("ea33e9b2")
    assert found.evaluation == full_evaluation()
    assert found.record.lineage == LINEAGE


def test_interrupted_run_is_read_from_its_state(interrupted):
    """Without a result the run's state and its last checkpoint's log tell how far it came."""
    found = read_run(interrupted)
    record = found.record
    assert (record.outcome, record.rounds, found.step, record.target) == ("interrupted", ROUNDS[:1], 190, 5.25)
    assert record.curves["student"][-1] == (180, 5.3129)
    assert (record.lineage.reference_layers, record.seed) == (8, 7)
    assert record.recipe == RECIPE


def test_only_the_evaluation_of_this_student_is_taken(interrupted, run):
    """An earlier student's evaluation is no part of a run that goes on, nor another's when it is asked for."""
    write_json(interrupted / "evaluation.json", encode(full_evaluation()))
    found = read_run(interrupted)
    assert found.evaluation is None
    assert found.left_out.startswith("evaluation.json is of an earlier student")
    assert read_run(interrupted, interrupted / "evaluation.json").evaluation == full_evaluation()
    (run / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    (run / "model.safetensors").write_text("weights")
    same = full_evaluation(fingerprints={"student": open_reference(run).fingerprint(), "reference": "b"})
    write_json(run / "evaluation.json", encode(same))
    assert (read_run(run).evaluation, read_run(run).left_out) == (same, "")
    (run / "model.safetensors").write_text("trained")
    with pytest.raises(ValueError, match="is of another student than the one in this folder; measure this one by"):
        read_run(run, run / "evaluation.json")


def test_cut_student_is_read_from_its_record(tmp_path):
    """A student that was only cut out has a lineage and no rounds."""
    write_json(tmp_path / "inheritune_config.json", encode(RunRecord(RECIPE, LINEAGE)))
    found = read_run(tmp_path)
    assert (found.trained, found.record.rounds, found.record.outcome) == (False, (), None)
    assert found.record.curves == {"student": ()}


def test_results_of_an_earlier_end_are_not_a_runs(interrupted):
    """A run that went on and was killed as it ended again is told by its state, without the test set's results."""
    state = json.loads((interrupted / "_inheritune" / "state.json").read_text())
    earlier = FinishedRun(
        RECIPE, LINEAGE, ROUNDS[:1], "budget_exhausted", results=(ResultRow("student", 4, 5, 1, 9, 3.0),)
    )
    write_record(interrupted / "rounds.json", earlier)
    both = [encode(item) for item in ROUNDS]
    write_json(interrupted / "_inheritune" / "state.json", {**state, "rounds": both, "outcome": "matched"})
    found = read_run(interrupted).record
    assert (found.rounds, found.outcome, found.results) == (ROUNDS, "matched", ())
    write_record(interrupted / "rounds.json", replace(earlier, rounds=ROUNDS, outcome="matched"))
    assert len(read_run(interrupted).record.results) == 1


@pytest.mark.parametrize(
    ("outcome", "found", "says"),
    [
        (None, None, "The training of the reference itself has not ended."),
        ("interrupted", "interrupted", "The training of the reference itself has not ended."),
        ("no_more_layers", "adapted", "The reference was trained further for 240 steps"),
    ],
)
def test_an_adaptation_that_was_killed_is_no_students_run(interrupted, outcome, found, says):
    """It misses nothing, and is run again by its own verb."""
    path = interrupted / "_inheritune" / "state.json"
    state = json.loads(path.read_text())
    state |= {"outcome": outcome, "rounds": [encode(item) for item in ROUNDS]}
    write_json(path, {**state, "identity": {**state["identity"], "adaptation": True}})
    (interrupted / "rounds.json").unlink()
    run = read_run(interrupted)
    assert run.record.outcome == found
    report = build_report(run)
    assert says in report.verdict
    assert "inheritune adapt --config recipe.json" in str(report.sections)


def test_what_is_not_there_or_damaged_is_said(tmp_path, run):
    """An empty folder, a missing evaluation and a damaged record are named."""
    with pytest.raises(FileNotFoundError, match="holds neither a run nor a student"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no evaluation at .*none\.json"):
        read_run(run, tmp_path / "none.json")
    (run / "rounds.json").write_text("{")
    with pytest.raises(ValueError, match=r"rounds\.json is damaged"):
        read_run(run)


def test_evaluation_may_lie_elsewhere(tmp_path):
    """An evaluation in another file is taken when it is named."""
    write_json(tmp_path / "measured.json", encode(full_evaluation(tasks=())))
    found = read_run(write_run(tmp_path / "run"), tmp_path / "measured.json")
    assert found.evaluation.tasks == ()
