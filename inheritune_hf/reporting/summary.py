"""Read the records in a folder: a run, a student, or a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.facts import StudentEvaluation
from ..publishing import ResultRow
from ..records import RECORD_FILE, DataFacts, Match, Outcome, Round, RunRecord, RunState, decode, read_record
from ..run_folder import CELL_FILE, EVALUATION_FILE, MODEL_FOLDER, RESULT_FILE, SETTINGS_FILE, read_state

#: Points of a loss curve: (optimizer steps, nats per token).
Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class CellOf:
    """
    The comparison that a model was trained in.

    Args:
        name (`str`): Name of the model's cell.
        arm (`str`): Its arm.
        comparison (`str`): Name of the comparison's folder.
        facts (`dict`): The comparison's records.
    """

    name: str
    arm: str
    comparison: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class RunSummary:
    """
    Everything that a report tells of a run. What is not known is empty or None.

    Args:
        name (`str`): Name of the run's folder.
        recipe (`dict`): The recipe's fields.
        reference (`str`): Id or path of the reference.
        revision (`str`, *optional*): Its commit on the Hub.
        reference_layers (`int`): Its depth.
        kept_layers (`tuple[int, ...]`): Layers that the last student holds.
        outcome (`str`, *optional*): How the run ended; None if it has not, or if nothing was to be trained.
        trained (`bool`): Whether there was a loop at all.
        rounds (`tuple[Round, ...]`): Finished rounds.
        step (`int`): Last optimizer step that is known of.
        target (`float`, *optional*): Loss to reach, in nats per token.
        curves (`dict[str, Curve]`): Selection losses of the student and of the controls.
        results (`tuple[ResultRow, ...]`): The test set's table.
        data (`DataFacts`, *optional*): The sets.
        seed (`int`, *optional*): Seed of the run.
        laziness (`str`): What the run itself said of lazy layers.
        versions (`dict[str, str]`): Versions of the libraries that built the student.
        evaluation (`StudentEvaluation`, *optional*): What `inheritune evaluate` left.
        left_out (`str`): Why an evaluation that lies in the folder is not shown; empty if it is, or if there is none.
        training (`dict`): Training arguments that change the numbers of the run.
        settings (`dict`): What the run was told, as a file for `--config` holds it; empty if it was not kept.
        cell (`CellOf`, *optional*): The finished comparison that chose this model, if there is one.
    """

    name: str
    recipe: Mapping[str, Any]
    reference: str
    reference_layers: int
    kept_layers: tuple[int, ...]
    revision: str | None = None
    outcome: Outcome | None = None
    trained: bool = True
    rounds: tuple[Round, ...] = ()
    step: int = 0
    target: float | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    results: tuple[ResultRow, ...] = ()
    data: DataFacts | None = None
    seed: int | None = None
    laziness: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    evaluation: StudentEvaluation | None = None
    left_out: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    cell: CellOf | None = None

    def result(self, model: str) -> ResultRow | None:
        """Return the row of the test set's table with that name, if there is one."""
        return next((row for row in self.results if row.model == model), None)


def read_run(folder: str | Path, evaluation: str | Path | None = None) -> RunSummary:
    """
    Read the records of a run: a finished one, one that was interrupted or killed, or a student that was only cut out.

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
    shown = None if left_out else found
    kept = {
        "evaluation": shown,
        "left_out": left_out and f"{measured.name} {left_out}",
        "settings": _settings(folder),
        "cell": _cell(folder.resolve()),
    }
    if not unfinished and (folder / "rounds.json").is_file():
        return _finished(folder, _read(folder / "rounds.json"), kept)
    if state is not None:
        return _unfinished(folder, state, kept)
    if (folder / RECORD_FILE).is_file():
        return _finished(folder, _read(folder / RECORD_FILE), kept)
    if (folder / CELL_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} is a cell of a comparison; give its model, {folder / MODEL_FOLDER}, or the comparison, "
            f"{folder.parent}."
        )
    if any(folder.glob(f"*/{CELL_FILE}")):
        raise FileNotFoundError(
            f"{folder} holds a comparison that has not ended; give the same `inheritune compare` again, then report it."
        )
    raise FileNotFoundError(
        f"{folder} holds neither a run nor a student of this package (no rounds.json, no {RECORD_FILE}), nor a "
        "comparison; give the output_dir of a run or of a comparison."
    )


def read_comparison(path: Path) -> dict[str, Any]:
    """
    Read the records of a comparison.

    Raises:
        ValueError: If they are damaged.
    """
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is damaged ({error}); run the same comparison again, which writes it anew."
        ) from error
    return facts


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
    facts = _read(comparison / RESULT_FILE)
    arm = next((item["arm"] for item in facts["cells"] if item["folder"] == cell.name), None)
    return None if arm is None else CellOf(cell.name, arm, comparison.name, facts)


def _settings(folder: Path) -> dict[str, Any]:
    return _read(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).is_file() else {}


def _finished(folder: Path, values: dict[str, Any], kept: Mapping[str, Any]) -> RunSummary:
    record = decode(RunRecord, values, str(folder), only_known=False)
    curves = {name: _curve(points) for name, points in values.get("curves", {}).items()}
    if not curves:
        curves = {"student": _logged_curve(folder)[0]}
    return RunSummary(
        name=folder.resolve().name,
        recipe=record.recipe,
        reference=record.lineage.reference,
        revision=record.lineage.revision,
        reference_layers=record.lineage.reference_layers,
        kept_layers=record.lineage.kept_layers,
        outcome=record.outcome,
        trained=bool(record.rounds) or record.outcome is not None,
        rounds=record.rounds,
        step=record.rounds[-1].end_step if record.rounds else 0,
        target=record.target,
        curves=curves,
        results=tuple(_row(item) for item in values.get("results", ())),
        data=decode(DataFacts, values["data"], f"{folder}, data") if values.get("data") else None,
        seed=values.get("seed"),
        laziness=(values.get("lazy_layers") or {}).get("sentence", ""),
        versions=record.lineage.versions,
        training=record.training,
        **kept,
    )


def _unfinished(folder: Path, state: RunState, kept: Mapping[str, Any]) -> RunSummary:
    recipe = {
        name.removeprefix("recipe."): value for name, value in state.identity.items() if name.startswith("recipe.")
    }
    curve, step = _logged_curve(folder)
    target = None if recipe["target"] == "reference" else float(recipe["target"])
    return RunSummary(
        name=folder.resolve().name,
        recipe=recipe,
        reference=str(state.identity["reference"]),
        revision=state.identity.get("reference.revision"),
        reference_layers=int(state.identity["reference.layers"]),
        kept_layers=state.layers,
        outcome=state.outcome,
        rounds=state.rounds,
        step=max(step, state.start_step),
        target=target if state.reference is None else state.reference.loss,
        curves={"student": curve},
        seed=state.identity.get("args.seed"),
        training=state.training,
        **kept,
    )


def _logged_curve(folder: Path) -> tuple[Curve, int]:
    """Return the selection losses in the log of the last checkpoint, and its step."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    if not checkpoints:
        return (), 0
    last = max(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]))
    log = _read(last / "trainer_state.json")
    points = [(int(item["step"]), item["eval_loss"]) for item in log["log_history"] if "eval_loss" in item]
    return _curve(points), int(log["global_step"])


def _curve(points: Any) -> Curve:
    return tuple((int(step), float(loss)) for step, loss in points)


def _row(values: Mapping[str, Any]) -> ResultRow:
    match = values["match"]
    return ResultRow(**{**values, "match": None if match is None else Match(**match)})


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); make it again, or move it away.") from error
    return values
