"""
Measure what students of the embedded reference are before training, by first layers and by every measure.

    python docs/results/untrained.py train.jsonl.xz validation.jsonl.xz

The files are those of examples/train_reference.py; examples/reference/books.json says which novels the reference was
not trained on. The figures go to untrained.json beside this script.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from inheritune_hf.analysis import measure_untrained
from inheritune_hf.analysis.sequences import cut_sequences
from inheritune_hf.data.embedded import embedded_reference
from inheritune_hf.records import encode, write_json

BOOKS = Path(__file__).parents[2] / "examples" / "reference" / "books.json"


def main() -> None:
    """Measure every depth on 100 sequences of 128 tokens, of novels that the reference was not trained on."""
    books = json.loads(BOOKS.read_text(encoding="utf-8"))
    texts = []
    for name in sys.argv[1:]:
        with lzma.open(name, "rt", encoding="utf-8") as file:
            texts += [row["text"] for row in map(json.loads, file) if row["id"] in books["evaluation"]]
    sequences = cut_sequences(texts, AutoTokenizer.from_pretrained(embedded_reference()), 100, 128)
    found = measure_untrained(embedded_reference(), sequences, range(1, 13), progress=True, dtype=torch.float32)
    write_json(Path(__file__).with_suffix(".json"), {"novels": len(texts), **encode(found)})


if __name__ == "__main__":
    main()
