"""The identity of a run: recipe, arguments that change numbers, reference and data, each by its content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
from transformers import TrainingArguments

from ..config import InherituneConfig
from ..data import set_fingerprint
from ..data.stream import PackedStream
from ..run_folder import NUMERIC_ARGUMENTS, read_state
from .arguments import plain
from .checkpoints import check_identity


def run_identity(args: TrainingArguments, config: InherituneConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """
    Return what makes a run this very run: an output folder that holds another one is refused.

    What may change when a run is resumed (`max_layers`, `max_steps`, how often it logs, evaluates and saves, where it
    runs) is not part of it.
    """
    recipe = {f"recipe.{name}": value for name, value in config.to_dict().items() if name != "max_layers"}
    return {**recipe, **{f"args.{name}": value for name, value in numeric_arguments(args).items()}, **facts}


def numeric_arguments(args: TrainingArguments) -> dict[str, Any]:
    """Return the training arguments that change the numbers of a run."""
    return {name: plain(getattr(args, name)) for name in NUMERIC_ARGUMENTS}


def check_output_dir(args: TrainingArguments, config: InherituneConfig) -> None:
    """
    Refuse an output folder that holds a run of other settings, as far as that is known without reference and data.

    Raises:
        ValueError: If it does; every difference is named.
    """
    folder = Path(args.output_dir or "trainer_output")
    found = read_state(folder) if args.should_save else None
    if found is not None:
        mine = run_identity(args, config, {})
        check_identity(folder, {name: value for name, value in found.identity.items() if name in mine}, mine)


def dataset_fingerprint(dataset: Any) -> str | None:
    """
    Return a fingerprint of a data set: of its content, or of some of its rows if it is no `datasets.Dataset`.

    A data set without a length has no fingerprint, unless it has one of its own.
    """
    if isinstance(dataset, PackedStream):
        return dataset.fingerprint
    if isinstance(dataset, datasets.Dataset):
        return set_fingerprint(dataset)
    if not hasattr(dataset, "__len__"):
        return None
    count = len(dataset)
    digest = hashlib.sha256(str(count).encode())
    for index in range(0, count, max(1, count // 64)):
        row = dataset[index]
        digest.update(json.dumps([int(item) for item in row["input_ids"]]).encode())
    return digest.hexdigest()
