"""What runs without a download: a small reference and passages of novels, shipped with the package."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Literal

from ..config import DataConfig

#: Folder of the embedded reference, its text, and a page that says where both come from.
EMBEDDED = Path(__file__).parents[1] / "embedded"

#: Sequences that are kept of each held-out passage.
SEQUENCES = 2


def embedded_reference() -> str:
    """Return the folder of the embedded reference and its tokenizer."""
    return str(EMBEDDED / "reference")


def embedded_file(part: Literal["train", "selection", "test"]) -> str:
    """Return the file of the passages of one set, as a pattern that matches it alone."""
    return glob.escape(str(EMBEDDED / f"{part}.jsonl.xz"))


def embedded_data() -> DataConfig:
    """Return the data of the embedded run: all training passages, and `SEQUENCES` of each other one."""
    return DataConfig(
        train_files=[embedded_file("train")],
        selection_files=[embedded_file("selection")],
        test_files=[embedded_file("test")],
        max_sequences_per_document=SEQUENCES,
    )
