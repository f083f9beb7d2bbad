"""What can be known before anything is read: plans, files, what would be fetched."""

import json

import pytest
import torch
from families import CASES
from transformers import AutoConfig, GPT2Config

from inheritune_hf.students import plan_inheritance, tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def reads_nothing(monkeypatch):
    """Make reading any tensor an error."""

    def refuse(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(tensors, "_fill", refuse)
    monkeypatch.setattr(torch.Tensor, "copy_", refuse)


@pytest.mark.parametrize("layout", ["safetensors", "safetensors-sharded", "bin", "bin-sharded"])
def test_a_plan_counts_what_would_be_read(layout, publish, reference, reads_nothing):
    """From headers alone: layers, parameters, and the bytes of exactly the kept tensors, file by file."""
    plan = plan_inheritance(publish(layout), [0, 5])
    assert plan.kept_layers == (0, 5)
    assert plan.dropped_layers == (1, 2, 3, 4, 6, 7, 8, 9, 10, 11)
    assert plan.parameters_before == reference.num_parameters()
    assert plan.bytes_to_read == 4 * plan.parameters_after
    assert plan.bytes_to_fetch == 0
    assert all(file.exact and file.at_hand for file in plan.files)
    assert len(plan.files) == (3 if layout.endswith("sharded") else 1)
    assert plan.changed_fields == {"n_layer": (12, 2)}
    assert plan.block_list == "transformer.h"
    assert plan.tied
    assert sum(plan.layer_parameters) < plan.parameters_before
    assert plan.notes == ("Not first layers only: the student cannot grow by next layers.",)


def test_a_plan_of_old_files_says_that_all_is_read(publish):
    """A .bin from before PyTorch 1.6 is counted whole."""
    folder = publish("legacy-bin")
    assert plan_inheritance(folder, 2).bytes_to_read == (folder / "pytorch_model.bin").stat().st_size


def test_a_plan_needs_no_weights(publish, reference):
    """Without files of weights, and for a loaded model, a plan has no files and says so."""
    folder = publish()
    (folder / "model.safetensors").unlink()
    for given in (folder, reference):
        plan = plan_inheritance(given, 2)
        assert plan.files == ()
        assert plan.notes == ("No files of weights were found.",)


def test_a_plan_names_the_fields_that_follow_the_layers(tmp_path):
    """Fields that speak of layers are named with their values before and after."""
    config = AutoConfig.for_model("qwen3_moe", **CASES["qwen3_moe"][0])
    config.save_pretrained(tmp_path)
    plan = plan_inheritance(tmp_path, [0, 1, 5])
    assert plan.changed_fields == {"mlp_only_layers": ([1, 5], [1, 2]), "num_hidden_layers": (6, 3)}


def test_a_plan_tells_random_parts_and_scales(tmp_path):
    """Parts that do not come along are counted, and moved blocks of a position-scaled GPT-2 are announced."""
    GPT2Config(**CASES["gpt2"][0], scale_attn_by_inverse_layer_idx=True).save_pretrained(tmp_path)
    plan = plan_inheritance(tmp_path, [0, 3], inherit="released-code")
    assert plan.random_parameters == 32 * 16 + 2 * 16  # positions and final norm; the head brings the embeddings
    assert plan.query_scales == (1.0, 0.5)
    assert plan.notes[0].startswith("Attention is scaled by position (scale_attn_by_inverse_layer_idx): moved blocks")
    assert plan.notes[1] == "544 parameters do not come along and begin random."


def test_a_plan_tells_what_moved_blocks_are_scaled_by(tmp_path):
    """Blocks that take the scale of their new position are announced; blocks that do not move need no word."""
    GPT2Config(**CASES["gpt2"][0], scale_attn_by_inverse_layer_idx=True).save_pretrained(tmp_path)
    plan = plan_inheritance(tmp_path, [0, 3], attention_scale="position")
    assert plan.query_scales == ()
    assert plan.notes[0].endswith(
        "moved blocks take the scale of their new position, and compute something else than in the reference."
    )
    assert not plan_inheritance(tmp_path, 2, attention_scale="position").rescaled


def test_a_broken_index_is_named_in_a_plan(publish):
    """A plan reads the index of shards, and names it if it cannot be read."""
    folder = publish("safetensors-sharded")
    (folder / "model.safetensors.index.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"is not an index of shards"):
        plan_inheritance(folder, 2)
