"""Losses of students before training, by first layers and by every measure."""

import json
import lzma
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from families import CASES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from inheritune_hf import InherituneConfig, from_pretrained_inherited
from inheritune_hf.analysis import layer_order, loss_without, measure_untrained
from inheritune_hf.analysis.sequences import cut_sequences
from inheritune_hf.data import embedded_reference
from inheritune_hf.measures import MEASURES

ROOT = Path(__file__).parents[2]
NOVELS = ROOT.parent / "shared" / "data" / "eltec_eng" / "train.jsonl.xz"


def test_losses_are_those_of_students(model, sequences, tmp_path):
    """Orders come from every other sequence, losses from the rest: those of the students that would be inherited."""
    tokens = sequences[:8]
    found = measure_untrained(model, tokens, cache_dir=tmp_path)
    assert found.depths == (3, 4, 5)
    assert found.uniform == math.log(model.config.vocab_size)
    assert found.loss == loss_without(model, [tokens[1::2]], [])
    assert list(found.losses) == ["first", *MEASURES]
    assert found.layers["first"] == ((0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4))
    for name in MEASURES:
        order = layer_order(model, name, tokens[::2], 3)
        assert found.layers[name] == tuple(tuple(sorted(order[:count])) for count in (3, 4, 5))
    for name, students in found.layers.items():
        for kept, loss in zip(students, found.losses[name], strict=True):
            student = from_pretrained_inherited(model, InherituneConfig(keep_layers=list(kept)))
            with torch.no_grad():
                assert loss == pytest.approx(float(student(tokens[1::2], labels=tokens[1::2]).loss), abs=1e-4)


def test_depths_may_be_given(model, sequences):
    """They are sorted; one sequence is not enough, and no student is deeper than its reference."""
    assert measure_untrained(model, sequences[:2], [6, 2]).depths == (2, 6)
    with pytest.raises(ValueError, match=r"Two sequences or more are needed, .* got 1"):
        measure_untrained(model, sequences[:1])
    with pytest.raises(ValueError, match=r"depths must be from 1 to 6, .* got \[2, 7\]"):
        measure_untrained(model, sequences[:2], [2, 7])


def test_students_are_those_that_a_run_would_cut(sequences):
    """Of a hybrid each student keeps a layer that attends, whatever a measure says."""
    kinds = ["conv", "conv", "full_attention", "conv"]
    values = {**CASES["lfm2"][0], "num_hidden_layers": 4, "layer_types": kinds}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("lfm2", **values))
    found = measure_untrained(model, sequences[:2] % model.config.vocab_size, [1, 2])
    assert all(2 in kept for students in found.layers.values() for kept in students)


@pytest.mark.slow
@pytest.mark.skipif(not NOVELS.is_file(), reason="../shared/data is not here")
def test_an_order_by_loss_begins_lower_than_first_layers():
    """
    On a trained reference, at every depth, on other sequences than it was ordered on; loss falls with depth.

    The text is of novels that the reference was not trained on.
    """
    held_out = json.loads((ROOT / "examples" / "reference" / "books.json").read_text())["evaluation"]
    with lzma.open(NOVELS, "rt", encoding="utf-8") as file:
        texts = [row["text"] for row in map(json.loads, file) if row["id"] in held_out]
    sequences = cut_sequences(texts, AutoTokenizer.from_pretrained(embedded_reference()), 96, 128)
    found = measure_untrained(embedded_reference(), sequences, range(1, 13), dtype=torch.float32)
    assert found.losses["first"][-1] == found.losses["loss"][-1] == found.loss < found.uniform
    for by_loss, first in zip(found.losses["loss"], found.losses["first"], strict=True):
        assert by_loss <= first
    assert all(shallower > deeper for shallower, deeper in pairwise(found.losses["loss"]))
    json.dumps(found.losses)
