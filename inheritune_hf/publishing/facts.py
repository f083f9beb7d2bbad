"""What a card tells besides the record: read from the student's folder and, where it can be reached, the reference."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoConfig

from ..records import RunRecord
from ..students import Source, inspect_architecture, load_reference_config
from ..students.estimation import operations_per_token
from .card import CardFacts

logger = logging.getLogger(__name__)

# Tokens of a sequence for which operations are counted, unless the model takes fewer.
_BLOCK_SIZE = 1024


def gather_facts(
    folder: Path,
    record: RunRecord,
    run_folder: Path | None = None,
    token: str | None = None,
    license: str | None = None,
    language: Sequence[str] = (),
    datasets: Sequence[str] = (),
    pictures: Sequence[str] = (),
) -> CardFacts:
    """
    Return what is known for a student's card; a reference that cannot be reached leaves its facts out.

    Args:
        folder (`Path`): The student, saved.
        record (`RunRecord`): Its record, with the reference as it was given.
        run_folder (`Path`, *optional*): Output folder of its run, which may hold the results on the test set.
        token (`str`, *optional*): Token for a private or gated reference.
        license (`str`, *optional*): Licence, as the Hub calls it; the reference's if not given.
        language (sequence of `str`): Languages; the reference's if not given.
        datasets (sequence of `str`): Data sets of the Hub that it was trained on.
        pictures (sequence of `str`): Names of pictures beside the card.
    """
    lineage = record.lineage
    mine = AutoConfig.from_pretrained(folder)
    source = Source(lineage.reference, revision=lineage.revision, token=token)
    card: dict[str, Any] = {}
    theirs = None
    try:
        theirs = load_reference_config(lineage.reference, revision=lineage.revision, token=token)
        path = source.find("README.md")
        card = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict() if path is not None else {}
    except (OSError, ValueError) as error:
        logger.info("The card says less of the reference: %s", error)
    spoken = language or card.get("language") or ()
    test = _test_losses(run_folder)
    block = min(getattr(mine, "max_position_embeddings", None) or _BLOCK_SIZE, _BLOCK_SIZE)
    return CardFacts(
        license=license or card.get("license"),
        license_name=None if license else card.get("license_name"),
        license_link=None if license else card.get("license_link"),
        language=(spoken,) if isinstance(spoken, str) else tuple(spoken),
        datasets=tuple(datasets),
        parameters=inspect_architecture(mine).parameter_count,
        reference_parameters=None if theirs is None else inspect_architecture(theirs).parameter_count,
        operations=operations_per_token(mine, block),
        reference_operations=None if theirs is None else operations_per_token(theirs, block),
        test_loss=test.get("student"),
        reference_test_loss=test.get("reference"),
        pictures=tuple(pictures),
    )


def _test_losses(run_folder: Path | None) -> dict[str, float]:
    """Return the losses on the test set by model, from the results of a run."""
    path = None if run_folder is None else run_folder / "rounds.json"
    if path is None or not path.is_file():
        return {}
    return {row["model"]: row["loss"] for row in json.loads(path.read_text(encoding="utf-8"))["results"]}
