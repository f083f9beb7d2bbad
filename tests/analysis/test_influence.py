"""Blocks are worth what the model does without them."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from lazy_models import LAYERS
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune_hf.analysis import angular_distances, block_influence, loss_without
from inheritune_hf.analysis.influence import score_blocks
from inheritune_hf.students import InheritedModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "students"))
from families import CASES


def test_influence_of_directions():
    """A block that changes no direction has influence 0, one that turns by a right angle 1, one that reverses 2."""
    states = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert block_influence(states, 3 * states) == pytest.approx(0)
    assert block_influence(states, states.flip(-1)) == pytest.approx(1)
    assert block_influence(states, -states) == pytest.approx(2)


def test_angular_distance_is_a_share_of_pi():
    """It is 0 for the same direction, one half for a right angle, 1 for the opposite."""
    states = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-2.0, 0.0]]])
    wanted = torch.tensor([[0, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 0]], dtype=torch.float64)
    torch.testing.assert_close(angular_distances(states), wanted)


def test_losses_are_those_of_real_students(model, sequences):
    """Loss by depth is that of the student of the first layers, loss without a block that of the student without it."""
    batches = [sequences[:16], sequences[16:20]]
    calls = []
    scores = score_blocks(model, batches, lambda: calls.append(1))
    assert len(calls) == 2 * (2 * LAYERS + 1)
    everything = torch.cat(batches)

    def loss(of):
        with torch.no_grad():
            return float(of(everything, labels=everything).loss)

    assert scores.loss == scores.by_depth[-1] == pytest.approx(loss(model), abs=1e-5)
    for depth in range(1, LAYERS):
        student = InheritedModelForCausalLM.from_pretrained(model, keep_layers=depth)
        assert scores.by_depth[depth] == pytest.approx(loss(student), abs=1e-5)
    for layer in range(LAYERS):
        others = [other for other in range(LAYERS) if other != layer]
        student = InheritedModelForCausalLM.from_pretrained(model, keep_layers=others)
        assert scores.skipped[layer] == pytest.approx(loss(student), abs=1e-5)
    pair = InheritedModelForCausalLM.from_pretrained(model, keep_layers=[1, 2, 4, 5])
    assert loss_without(model, batches, [0, 3]) == pytest.approx(loss(pair), abs=1e-5)


def test_selections_of_tokens_are_handed_on(sequences):
    """Where layers of GLM-5 attend to what an earlier one selected, losses are those of students too."""
    types = ["full", "shared", "shared", "full", "shared", "full"]
    torch.manual_seed(0)
    config = AutoConfig.for_model("glm_moe_dsa", **{**CASES["glm_moe_dsa"][0], "indexer_types": types, "index_topk": 2})
    model = AutoModelForCausalLM.from_config(config).eval()
    scores = score_blocks(model, [sequences[:4]])

    def loss(layers):
        student = InheritedModelForCausalLM.from_pretrained(model, keep_layers=layers)
        with torch.no_grad():
            return float(student(sequences[:4], labels=sequences[:4], use_cache=False).loss)

    assert scores.skipped[1] == pytest.approx(loss([0, 2, 3, 4, 5]), abs=1e-5)
    assert scores.by_depth[2] == pytest.approx(loss(2), abs=1e-5)
    assert loss_without(model, [sequences[:4]], [1, 4]) == pytest.approx(loss([0, 2, 3, 5]), abs=1e-5)


def test_influence_and_angles_are_those_of_the_hidden_states(model, sequences):
    """They are what the model's own hidden states say."""
    scores = score_blocks(model, [sequences[:4]])
    with torch.no_grad():
        states = model(sequences[:4], output_hidden_states=True).hidden_states[:-1]  # the last one is after the norm
    cosine = torch.nn.functional.cosine_similarity(states[2], states[3], dim=-1)
    assert scores.influence[2] == pytest.approx(1 - float(cosine.mean()), abs=1e-6)
    turn = torch.nn.functional.cosine_similarity(states[1][:, -1], states[4][:, -1], dim=-1).arccos() / math.pi
    assert scores.angular[1][2] == pytest.approx(float(turn.mean()), abs=1e-5)
    assert [len(row) for row in scores.angular] == [6, 5, 4, 3, 2, 1]


def test_a_block_without_effect_is_worth_nothing(model, sequences):
    """A block with zeroed outputs has no influence, and the loss without it is the model's own."""
    lent = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (lent.transformer.h[3].attn.c_proj, lent.transformer.h[3].mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
    scores = score_blocks(lent, [sequences[:4]])
    assert scores.influence[3] == pytest.approx(0, abs=1e-6)
    assert scores.skipped[3] == pytest.approx(scores.loss, abs=1e-6)
    assert scores.by_depth[3] == pytest.approx(scores.by_depth[4], abs=1e-6)


@pytest.mark.parametrize("kind", ["bloom", "opt", "gemma2", "qwen3", "gptj"])
def test_tails_of_every_kind(kind, sequences):
    """Position of norms, projections after them, caps of logits and the form of a block's output do not matter."""
    shape = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4}
    more = {
        "bloom": {},
        "opt": {"ffn_dim": 32, "word_embed_proj_dim": 8, "do_layer_norm_before": False},
        "gemma2": {
            "head_dim": 8,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "qwen3": {"head_dim": 8, "num_key_value_heads": 1, "intermediate_size": 32},
        "gptj": {"rotary_dim": 4},
    }[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **shape, **more, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tokens = sequences[:4]
    scores = score_blocks(model, [tokens])

    def loss(layers):
        with torch.no_grad():
            return float(
                InheritedModelForCausalLM.from_pretrained(model, keep_layers=layers)(tokens, labels=tokens).loss
            )

    assert scores.loss == pytest.approx(loss(4), abs=1e-4)
    assert scores.by_depth[2] == pytest.approx(loss(2), abs=1e-4)
    assert scores.skipped[1] == pytest.approx(loss([0, 2, 3]), abs=1e-4)
