"""Read the records in a folder: of a run, a student, or a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..evaluation.facts import StudentEvaluation
from ..experiments.results import ComparisonRecord
from ..forecast import Forecast
from ..outcomes import Conclusion, conclude_record, student_depth
from ..publishing import FinishedRun, ResultRow
from ..records import RECORD_FILE, Count, RunState, decode, encode, read_json, read_record
from ..run_folder import CELL_FILE, EVALUATION_FILE, MODEL_FOLDER, RESULT_FILE, SETTINGS_FILE, read_state

#: Points of a loss curve: (optimizer steps, nats per token).
Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class CellOf:
    """The comparison that a model was trained in."""

    name: str  # of the model's cell
    arm: str
    folder: str  # name of the comparison's folder
    comparison: ComparisonRecord


@dataclass(frozen=True)
class RunSummary:
    """Everything that a report says about a run; of an unfinished one, its record so far."""

    name: str  # of the run's folder
    record: FinishedRun
    trained: bool  # whether there was a loop at all
    step: int  # last optimizer step on disk
    forecasts: tuple[Forecast, ...] = ()  # in the log of the last checkpoint, oldest first
    evaluation: StudentEvaluation | None = None
    left_out: str = ""  # why an evaluation in the folder is not shown
    settings: Mapping[str, Any] = field(default_factory=dict)  # as a file for `--config` holds them; empty if not kept
    cell: CellOf | None = None  # set if a finished comparison has chosen this model
    adapts: bool = False  # whether it trains the reference itself further

    @property
    def depth(self) -> str:
        """Layers of the last student and of its reference."""
        return f"{student_depth(self.record)} of {self.record.lineage.reference_layers}"

    @property
    def conclusion(self) -> Conclusion:
        """What the run came to, in words."""
        if self.adapts and self.record.outcome in {None, "interrupted"}:
            return Conclusion("not finished", None, "The training of the reference itself has not ended")
        student = self.result("student")
        return conclude_record(self.record, None if student is None else student.match)

    def result(self, model: str) -> ResultRow | None:
        """Return the row of the test set's table with that name, if there is one."""
        return next((row for row in self.record.results if row.model == model), None)


def read_run(folder: str | Path, evaluation: str | Path | None = None) -> RunSummary:
    """
    Read the records of a run, finished, interrupted or killed, or of a student that was not trained.

    Args:
        folder (`str` or `Path`): The run's `output_dir`, or a student's folder.
        evaluation (`str` or `Path`, *optional*): File of an evaluation; `evaluation.json` in the folder if not given.

    Raises:
        FileNotFoundError: If the folder holds no run and no student, or the evaluation is not there.
        ValueError: If a record is damaged, or the evaluation that is asked for is of another student.
    """
    folder = Path(folder)
    measured = folder / EVALUATION_FILE if evaluation is None else Path(evaluation)
    if evaluation is not None and not measured.is_file():
        raise FileNotFoundError(f"There is no evaluation at {measured}; make one by: inheritune evaluate {folder}")
    found = read_record(StudentEvaluation, measured) if measured.is_file() else None
    state = read_state(folder)
    unfinished = state is not None and state.outcome in {None, "interrupted"}
    left_out = ""
    if found is not None:
        left_out = _reason_against(folder, found, unfinished and evaluation is None)
        if left_out and evaluation is not None:
            raise ValueError(f"{measured} {left_out}")
    finished = folder / "rounds.json"
    ended = read_record(FinishedRun, finished) if not unfinished and finished.is_file() else None
    # A run that went on and was killed as it ended again leaves the results of its first end.
    if ended is not None and (
        state is None or (ended.rounds == state.rounds and ended.outcome in {state.outcome, "adapted"})
    ):
        record = ended
    elif state is not None:
        record = _unfinished(folder, state)
    elif (folder / RECORD_FILE).is_file():
        record = read_record(FinishedRun, folder / RECORD_FILE)
    else:
        raise FileNotFoundError(f"{folder} {_what_else(folder)}")
    curve, forecasts, step = _logged(folder)
    return RunSummary(
        name=folder.resolve().name,
        record=replace(record, curves=record.curves or {"student": curve}),
        trained=state is not None or bool(record.rounds) or record.outcome is not None,
        step=max([step, *(item.end_step for item in record.rounds)]),
        forecasts=forecasts,
        evaluation=None if left_out else found,
        left_out=left_out and f"{measured.name} {left_out}",
        settings=read_json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).is_file() else {},
        cell=_cell(folder.resolve()),
        adapts=record.outcome == "adapted" or (state is not None and bool(state.identity.get("adaptation"))),
    )


def _what_else(folder: Path) -> str:
    """Return what a folder is that holds neither a run nor a student, and what to give in its place."""
    if (folder / CELL_FILE).is_file():
        return (
            f"is a cell of a comparison; give its model, {folder / MODEL_FOLDER}, or the comparison, {folder.parent}."
        )
    if any(folder.glob(f"*/{CELL_FILE}")):
        return "holds a comparison that has not ended; give the same `inheritune compare` again, then report it."
    return (
        f"holds neither a run nor a student of this package (no rounds.json, no {RECORD_FILE}), nor a comparison; give "
        "the output_dir of a run or of a comparison."
    )


def _reason_against(folder: Path, found: StudentEvaluation, earlier: bool) -> str:
    """Return why an evaluation does not belong to the student in a folder, or an empty string."""
    if earlier:
        return "is of an earlier student: this run has not ended; evaluate again when it has."
    if not any(folder.glob("*.safetensors")):
        return ""  # without weights nothing can be compared
    from ..students import open_reference

    if open_reference(folder).fingerprint() == found.fingerprints["student"]:
        return ""
    return f"is of another student than the one in this folder; measure this one by: inheritune evaluate {folder.name}"


def _cell(folder: Path) -> CellOf | None:
    """Return the cell whose model a folder holds, if its comparison is finished and has chosen it."""
    cell, comparison = folder.parent, folder.parent.parent
    if folder.name != MODEL_FOLDER or not (comparison / RESULT_FILE).is_file():
        return None
    record = read_record(ComparisonRecord, comparison / RESULT_FILE)
    arm = next((item.arm for item in record.cells if item.folder == cell.name), None)
    return None if arm is None else CellOf(cell.name, arm, comparison.name, record)


def _unfinished(folder: Path, state: RunState) -> FinishedRun:
    """Return the record of a run so far, from its state."""
    identity = state.identity
    recipe = {name.removeprefix("recipe."): value for name, value in identity.items() if name.startswith("recipe.")}
    target = recipe.get("target") if state.reference is None else state.reference.loss
    values = {
        "recipe": recipe,
        "lineage": {
            "reference": identity.get("reference"),
            "revision": identity.get("reference.revision"),
            "reference_layers": identity.get("reference.layers"),
            "kept_layers": state.layers,
            "order": encode(state.order),
        },
        "target": None if target == "reference" else target,
        "training": state.training,
        "seed": identity.get("args.seed"),
    }
    record = decode(FinishedRun, values, f"{folder}: the state's identity")
    # Of an adaptation that was killed while it was measured the state says that there are no more layers.
    ended = identity.get("adaptation") and state.outcome not in {None, "interrupted"}
    return replace(record, rounds=state.rounds, outcome="adapted" if ended else state.outcome)


def _logged(folder: Path) -> tuple[Curve, tuple[Forecast, ...], int]:
    """Return the selection losses and forecasts in the log of the last checkpoint, and its step."""
    found = {path.name.rpartition("-")[2]: path / "trainer_state.json" for path in folder.glob("checkpoint-*")}
    logs = {int(step): path for step, path in found.items() if step.isdecimal() and path.is_file()}
    if not logs:
        return (), (), 0
    last = logs[max(logs)]
    log = decode(_TrainerLog, read_json(last), str(last), only_known=False)
    points = [(item.get("step"), item["eval_loss"]) for item in log.log_history if "eval_loss" in item]
    curve = decode(tuple[tuple[Count, float], ...], points, f"{last}: log_history")
    made = (Forecast.from_log(item, f"{last}: log_history") for item in log.log_history)
    return curve, tuple(item for item in made if item is not None), log.global_step


@dataclass(frozen=True)
class _TrainerLog:
    global_step: Count
    log_history: tuple[Mapping[str, Any], ...]
