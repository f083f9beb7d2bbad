"""Facts that travel together: where a student comes from, what each round did, how a run ended."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .configuration import PARTS

Outcome = Literal["matched", "no_more_layers", "budget_exhausted", "interrupted"]

#: Beside a student's weights: the recipe, where the student comes from, and its rounds.
RECORD_FILE = "inheritune_config.json"

#: Exit status of `inheritune train` for each outcome.
EXIT_STATUS: dict[str, int] = {"matched": 0, "no_more_layers": 3, "budget_exhausted": 4, "interrupted": 75}


@dataclass(frozen=True)
class Lineage:
    """
    Where a student's parts come from; travels in `student.config.inheritune`.

    Args:
        reference (`str`): Id or path of the reference, as it was given.
        revision (`str`, *optional*): Resolved commit of the reference, if it came from the Hub.
        reference_layers (`int`): Depth of the reference, in layers.
        kept_layers (`tuple[int, ...]`): Layers of the reference that the student holds, 0-based, in order.
        versions (`dict[str, str]`): Versions of the libraries that built the student.
        inherited (`tuple[str, ...]`): Parts of the reference that came along, as in `PARTS`; the others began random.
        seed (`int`, *optional*): Seed of the parts that began random; None if there are none.
        query_scales (`tuple[float, ...]`): What each block's queries were multiplied by to compute at a new position
            what they computed at the old one; empty where none was.
        data (`dict[str, str]`): Fingerprints of the sets it was trained and selected on (`train`, `selection`).
    """

    reference: str
    revision: str | None
    reference_layers: int
    kept_layers: tuple[int, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    inherited: tuple[str, ...] = PARTS
    seed: int | None = None
    query_scales: tuple[float, ...] = ()
    data: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def base_model(self) -> str | None:
        """Id of the reference on the Hub, or None if it was a folder or a model in memory: then it has no commit."""
        is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", self.reference, flags=re.ASCII)
        return self.reference if is_id and self.revision is not None else None

    @property
    def reference_name(self) -> str:
        """What the reference may be called in public: its id on the Hub, or the last part of its path."""
        return self.base_model or re.split(r"[/\\]", self.reference.rstrip("/\\"))[-1]

    def published(self) -> Lineage:
        """Return the lineage as others may read it: no path of a machine is in it."""
        return dataclasses.replace(self, reference=self.reference_name)

    def to_dict(self) -> dict[str, Any]:
        """Return the lineage as a dictionary that JSON can hold."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Lineage:
        """Rebuild a lineage from what `to_dict` returned."""
        lists = ("kept_layers", "inherited", "query_scales")
        restored: dict[str, Any] = {name: tuple(value) if name in lists else value for name, value in values.items()}
        return cls(**restored)


@dataclass(frozen=True)
class Match:
    """
    How a student's loss compares with its target, and whether it is good enough.

    Args:
        matched (`bool`): The verdict under the recipe's tolerance and confidence.
        matched_paper (`bool`): The verdict of the paper's rule: the student's mean loss is not above the target.
        difference (`float`): Student's loss minus target, in nats per token.
        lower (`float`, *optional*): One-sided lower bound of the difference, in nats per token.
        upper (`float`, *optional*): One-sided upper bound of the difference, in nats per token.
        documents (`int`): Documents that the comparison rests on.
        note (`str`): What weakens the interval, or why there is none; empty if there is nothing to say.
    """

    matched: bool
    matched_paper: bool
    difference: float
    lower: float | None
    upper: float | None
    documents: int
    note: str = ""


@dataclass(frozen=True)
class Round:
    """
    One round of the loop: inherit, train, compare.

    Args:
        index (`int`): Number of the round, from 1.
        kept_layers (`tuple[int, ...]`): Layers of the reference that the student started from.
        start_step (`int`): Optimizer step at which the round began, counted over all rounds.
        end_step (`int`): Optimizer step at which it was judged, counted over all rounds.
        tokens (`int`): Tokens trained on in this round.
        flops (`float`): Floating-point operations of this round's training, by Transformers' own estimate.
        seconds (`float`): Wall time of this round's training and evaluation, in the session that ended it.
        loss (`float`): The student's loss on the selection set, in nats per token.
        target (`float`): The loss it had to reach, in nats per token.
        match (`Match`): The comparison.
        epochs (`float`): Passes over the training set when it was judged; whole ones of a stream.
    """

    index: int
    kept_layers: tuple[int, ...]
    start_step: int
    end_step: int
    tokens: int
    flops: float
    seconds: float
    loss: float
    target: float
    match: Match
    epochs: float = 0.0

    @property
    def layers(self) -> int:
        """Depth of this round's student, in layers."""
        return len(self.kept_layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the round as a dictionary that JSON can hold."""
        return {**dataclasses.asdict(self), "kept_layers": list(self.kept_layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Round:
        """Rebuild a round from what `to_dict` returned."""
        return cls(**{**values, "kept_layers": tuple(values["kept_layers"]), "match": Match(**values["match"])})


@dataclass(frozen=True)
class Validation:
    """
    A model's loss on one set of sequences, as sums per document.

    Args:
        documents (`tuple[int, ...]`): The documents, ascending.
        loss_sums (`tuple[float, ...]`): Summed loss of each document's counted tokens, in nats.
        tokens (`tuple[int, ...]`): Counted tokens of each document.
        correct (`tuple[int, ...]`): Tokens of each document that the model ranked first.
    """

    documents: tuple[int, ...]
    loss_sums: tuple[float, ...]
    tokens: tuple[int, ...]
    correct: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean loss over all tokens, in nats per token."""
        return sum(self.loss_sums) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        """Exponential of the loss."""
        return math.exp(self.loss)

    @property
    def accuracy(self) -> float:
        """Share of tokens that the model ranked first."""
        return sum(self.correct) / sum(self.tokens)

    def to_dict(self) -> dict[str, list[float] | list[int]]:
        """Return the sums as lists that JSON can hold."""
        return {
            "documents": list(self.documents),
            "loss_sums": list(self.loss_sums),
            "tokens": list(self.tokens),
            "correct": list(self.correct),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[Any]]) -> Validation:
        """Rebuild the sums from what `to_dict` returned."""
        return cls(**{name: tuple(items) for name, items in values.items()})


@dataclass(frozen=True)
class RunState:
    """
    Where a run stands.

    Args:
        identity (`dict`): What makes it this very run.
        reference (`Validation`, *optional*): The reference's measured loss; None before it is measured, or if the
            target is a number.
        layers (`tuple[int, ...]`): Layers of the student that is being trained.
        start_step (`int`): Step at which its round began, counted over all rounds.
        staged (`bool`): Whether its starting point is on disk.
        rounds (`tuple[Round, ...]`): Finished rounds.
        outcome (`str`, *optional*): How the run ended, if it has.
    """

    identity: Mapping[str, Any]
    layers: tuple[int, ...]
    reference: Validation | None = None
    start_step: int = 0
    staged: bool = False
    rounds: tuple[Round, ...] = ()
    outcome: Outcome | None = None

    @property
    def round_index(self) -> int:
        """Number of the round that is being trained, from 1."""
        return len(self.rounds) + 1

    @property
    def training(self) -> dict[str, Any]:
        """Training arguments that change the numbers of the run."""
        named = ((name.partition(".")[2], value) for name, value in self.identity.items() if name.startswith("args."))
        return dict(named)


@dataclass(frozen=True)
class RunRecord:
    """
    What a published student carries beside its weights, in `inheritune_config.json`.

    Args:
        recipe (`dict`): The `InherituneConfig` as a dictionary.
        lineage (`Lineage`): Where the student's parts come from.
        rounds (`tuple[Round, ...]`): All rounds, failed ones included.
        outcome (`str`, *optional*): `matched`, `no_more_layers`, `budget_exhausted` or `interrupted`; None if the
            student was not trained.
        target (`float`, *optional*): The loss to reach, in nats per token.
        training (`dict`): Training arguments that change the numbers of a run, seeds among them.
    """

    recipe: Mapping[str, Any]
    lineage: Lineage
    rounds: tuple[Round, ...] = ()
    outcome: Outcome | None = None
    target: float | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def published(self) -> RunRecord:
        """Return the record as others may read it: no path of a machine is in it."""
        return dataclasses.replace(self, lineage=self.lineage.published())

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dictionary that JSON can hold."""
        return {
            "recipe": dict(self.recipe),
            "lineage": self.lineage.to_dict(),
            "rounds": [item.to_dict() for item in self.rounds],
            "outcome": self.outcome,
            "target": self.target,
            "training": dict(self.training),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """Rebuild a record from what `to_dict` returned."""
        return cls(
            recipe=values["recipe"],
            lineage=Lineage.from_dict(values["lineage"]),
            rounds=tuple(Round.from_dict(item) for item in values["rounds"]),
            outcome=values["outcome"],
            target=values["target"],
            training=values["training"],
        )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` so that a reader finds the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write `values` to `path` as JSON so that a reader finds the old file or the new one, never a part."""
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
