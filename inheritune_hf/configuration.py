"""The recipe: what to inherit, how to grow, when a student is good enough, and which data to use."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

Config = TypeVar("Config", "InherituneConfig", "DataConfig")


@dataclass
class InherituneConfig:
    """
    Say how a student is inherited, grown and judged.

    The same class is read from Python, from the command line and from YAML or JSON files. Settings that
    `transformers.TrainingArguments` already has (learning rate, precision, trackers, seed) are said there only.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    keep_layers: int | str | list[int] = field(
        default="half",
        metadata={
            "help": "Layers of the reference that the first student inherits: a number ('12'), 'half' (the paper), "
            "'first:12', 'last:8', 'ends:4+4', 'every:2', 'spaced:12', half-open ranges ('0:8,10') or a list; "
            "experimental: 'auto' and measures ('rank:12', 'influence:12', 'angular:12', 'loss:12')."
        },
    )
    grow_by: int = field(
        default=2, metadata={"help": "Layers added for each further round (the paper: 2), up to the reference's depth."}
    )
    max_layers: int | None = field(
        default=None, metadata={"help": "Deepest student to try, in layers; the reference's depth if not given."}
    )
    steps_per_round: int | None = field(
        default=None, metadata={"help": "Optimizer steps of one round. Needed to train, not to build a student."}
    )
    target: str | float = field(
        default="reference",
        metadata={"help": "What a student must reach: 'reference' (its measured loss) or a number in nats per token."},
    )
    tolerance: float = field(
        default=0.01, metadata={"help": "Loss above the target that still counts as matched, in nats per token."}
    )
    confidence: float | None = field(
        default=0.95,
        metadata={
            "help": "One-sided confidence with which the loss must be within the tolerance, from intervals that "
            "cluster by document. 'none' compares the plain means (with tolerance 0: the paper's rule)."
        },
    )

    def __post_init__(self) -> None:
        _positive("grow_by", self.grow_by)
        if self.max_layers is not None:
            _positive("max_layers", self.max_layers)
        if self.steps_per_round is not None:
            _positive("steps_per_round", self.steps_per_round)
        # Files and the command line may bring numbers as text: YAML reads 1e-2 as a word.
        if self.target != "reference":
            target = _number(self.target)
            if target is None or not target > 0:
                raise ValueError(
                    f"target must be 'reference' or a number above 0 in nats per token, got {self.target!r}."
                )
            self.target = target
        tolerance = _number(self.tolerance)
        if tolerance is None or not tolerance >= 0:
            raise ValueError(f"tolerance must be 0 nats per token or more, got {self.tolerance!r}.")
        self.tolerance = tolerance
        if str(self.confidence).lower() == "none":
            self.confidence = None
        else:
            confidence = _number(self.confidence)
            if confidence is None or not 0.5 <= confidence < 1:
                raise ValueError(f"confidence must be in [0.5, 1), or none to compare means, got {self.confidence!r}.")
            self.confidence = confidence

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as a plain dictionary that JSON and YAML can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InherituneConfig:
        """Build a recipe from `values`; an unknown key is a `ValueError` that names the nearest one."""
        return _from_dict(cls, values)

    @classmethod
    def from_file(cls, path: str | Path) -> InherituneConfig:
        """Read a recipe from a YAML or JSON file; an unknown key is a `ValueError` that names the nearest one."""
        return _from_dict(cls, read_mapping(path))


@dataclass
class RunConfig:
    """
    Say which reference a run starts from, and what a launcher is told at its end.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    reference: str | None = field(
        default=None,
        metadata={"help": "Hub id or path of the reference; the embedded default runs offline if none is given."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the reference on the Hub."})
    collapse_every: int | None = field(
        default=None,
        metadata={"help": "Measure the student's lazy layers at every so many evaluations; never if not given."},
    )
    require_match: bool = field(
        default=False, metadata={"help": "Let the example script end with the outcome's status, not 0, on a miss."}
    )

    def __post_init__(self) -> None:
        if self.collapse_every is not None:
            _positive("collapse_every", self.collapse_every)


@dataclass
class DataConfig:
    """
    Say which text a student is trained, selected and tested on.

    Give either `dataset_name` (a Hub data set or a folder of one) or `train_files`. The selection and test sets are
    given, or carved out of the training source by whole documents.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, or local folder, of a data set with a text column."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of the Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split of the Hub data set to train on."})
    selection_split: str | None = field(
        default=None, metadata={"help": "Split that decides about growing and stopping; carved if not given."}
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split for the reported result; carved if not given."}
    )
    train_files: list[str] = field(
        default_factory=list,
        metadata={"help": "Text (one document each), JSONL or Parquet files to train on; globs are allowed."},
    )
    selection_files: list[str] = field(
        default_factory=list, metadata={"help": "Files that decide about growing and stopping; carved if not given."}
    )
    test_files: list[str] = field(
        default_factory=list, metadata={"help": "Files for the reported result; carved if not given."}
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds a document's text."})
    selection_fraction: float = field(
        default=0.05, metadata={"help": "Share of the training documents carved for selection if none is given."}
    )
    test_fraction: float = field(
        default=0.05, metadata={"help": "Share of the training documents carved for the test if none is given."}
    )
    block_size: int | None = field(
        default=None,
        metadata={"help": "Tokens of one sequence; the reference's context length (at most 1024) if not given."},
    )
    max_sequences_per_document: int | None = field(
        default=None,
        metadata={"help": "Sequences kept of each selection or test document (the first ones); all if not given."},
    )
    preprocessing_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenize; this process alone if not given."}
    )

    def __post_init__(self) -> None:
        for name in ("selection_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(f"{name} must be above 0 and below 0.5, got {getattr(self, name)!r}.")
        for name in ("block_size", "max_sequences_per_document", "preprocessing_workers"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        if self.block_size is not None and self.block_size < 2:
            raise ValueError(f"block_size must be 2 tokens or more, got {self.block_size}.")
        for name in ("train_files", "selection_files", "test_files"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        if self.dataset_name and self.train_files:
            raise ValueError("Give dataset_name or train_files, not both.")

    def to_dict(self) -> dict[str, Any]:
        """Return the data settings as a plain dictionary that JSON and YAML can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """Build data settings from `values`; an unknown key is a `ValueError` that names the nearest one."""
        return _from_dict(cls, values)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """
    Read a YAML or JSON file that holds one mapping.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is neither YAML nor JSON, or holds something else than a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; give the path of a YAML or JSON file.")
    text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold 'name: value' settings, got a {type(values).__name__}.")
    return {str(key): value for key, value in values.items()}


def reject_unknown_keys(values: Mapping[str, Any], allowed: set[str], source: str) -> None:
    """Raise a `ValueError` that names every key of `values` that is not `allowed`, with the nearest allowed one."""
    complaints = []
    for key in values:
        if key not in allowed:
            nearest = difflib.get_close_matches(key, sorted(allowed), n=1)
            complaints.append(f"{key!r}" + (f" (did you mean {nearest[0]!r}?)" if nearest else ""))
    if complaints:
        raise ValueError(f"{source} has no setting named {', '.join(complaints)}.")


def _from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    reject_unknown_keys(values, {item.name for item in dataclasses.fields(cls)}, cls.__name__)
    return cls(**values)


def _number(value: Any) -> float | None:
    """Return `value` as a number, or None if it is none."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}.")
