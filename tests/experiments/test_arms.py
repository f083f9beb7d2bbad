"""Which layers each arm takes, and what reaches its build."""

import types

import pytest
import torch
from test_initialisations import DEPTH, loaded, make_gpt2, map_of
from transformers import AutoConfig

from inheritune_hf.experiments import ARMS, initialisations
from inheritune_hf.experiments.arms import MEASURED, ArmTrainer, Start, check_arm, lazy_from, parse_arm


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    make_gpt2(scale_attn_by_inverse_layer_idx=True).save_pretrained(folder)
    return str(folder)


def start(reference, name, layers, **changes):
    depth = DEPTH if ARMS[name].whole else layers
    # The scale of a block that moves is multiplied into its queries: without it blocks are the reference's bit for bit.
    return Start(reference, {}, DEPTH, depth, seed=1, **{"keep_scale": False, **changes})


@pytest.mark.parametrize(
    ("name", "layers", "wanted"),
    [
        ("inherited", 4, [0, 1, 2, 3]),
        ("random", 4, [None] * 4),
        ("random-2x", 4, [None] * 4),
        ("random-long", 4, [None] * 4),
        ("random-whole", 4, [None] * DEPTH),
        ("continued", 4, [*range(DEPTH)]),
        ("hybrid-stacking", 4, [0, 1, 0, 1]),
        ("last", 3, [5, 6, 7]),
        ("lazy-in-place", 3, [None] * 5 + [5, 6, 7]),
        ("middle", 4, [2, 3, 4, 5]),
        ("middle", 3, [2, 3, 4]),
        ("spaced", 4, [0, 2, 5, 7]),
        ("expansion", 4, [0, None, 1, None]),
        ("distilbert", 4, [0, 2, 4, 6]),
        ("distilbert", 6, [0, 2, 4, 6, 6, 7]),
        ("released-code", 4, [0, 1, 2, 3]),
        ("attention+norms", 4, [None] * 4),
    ],
)
def test_arms_take_their_layers(reference, name, layers, wanted):
    """At each position stands the block of the layer that the arm is named for, or a random one."""
    model = ARMS[name].build(start(reference, name, layers))
    assert map_of(model, loaded(reference)) == wanted
    places = ARMS[name].places
    if places is not None and name != "expansion":
        assert list(places(start(reference, name, layers))) == wanted


@pytest.mark.parametrize("name", MEASURED)
def test_arms_that_go_by_a_measure_take_what_it_chose(reference, name):
    """The layers that a measure chose stand in their order."""
    model = ARMS[name].build(start(reference, name, 3, chosen=(1, 4, 6)))
    assert map_of(model, loaded(reference)) == [1, 4, 6]


def test_stacking_begins_at_random_and_doubles_what_it_trained(reference):
    """The first stage has nothing of the reference; the second has the first's blocks twice over, and its lineage."""
    first = ARMS["stacking"].build(start(reference, "stacking", 2))
    assert map_of(first, loaded(reference)) == [None, None]
    second = ARMS["stacking"].build(start(reference, "stacking", 4, before=first))
    assert map_of(second, first) == [0, 1, 0, 1]
    assert second.config.inheritune["kept_layers"] == []
    assert second.config.inheritune["reference"] == reference
    grown = initialisations.stacked(initialisations.inherited(reference, "last:2", 1), 4, 1, keep_scale=False)
    assert tuple(grown.config.inheritune["kept_layers"]) == (6, 7, 6, 7)


def test_the_papers_layers_in_place():
    """Of 24 layers the 16th to the last stay, as in the paper."""
    assert [layer + 1 for layer in range(lazy_from(24), 24)] == [*range(16, 25)]


def test_moved_scale_reaches_the_build(reference):
    """With `/moved-scale` a moved block has the weights it had, and so attends otherwise; else it keeps its scale."""
    whole = loaded(reference)
    given = torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(3))
    for name, kept in (("last", True), ("last/moved-scale", False)):
        trainer = types.SimpleNamespace(
            variant=parse_arm(name),
            reference=reference,
            reference_kwargs={},
            reference_depth=DEPTH,
            chosen=(),
            args=types.SimpleNamespace(seed=1),
        )
        model = ArmTrainer.next_student(trainer, types.SimpleNamespace(layers=(0, 1)), None)
        block, source = model.transformer.h[0], whole.transformer.h[DEPTH - 2]
        assert torch.equal(block.attn.c_attn.weight, source.attn.c_attn.weight) is not kept
        assert torch.allclose(block(given), source(given), atol=1e-6) is kept


ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 1, "topk_group": 1}


@pytest.mark.parametrize("name", ["stacking", "hybrid-stacking"])
def test_blocks_that_cannot_stand_in_this_order_are_found_before_they_are_built(name):
    """Where position says which blocks have experts, dense ones cannot come again after them."""
    config = AutoConfig.for_model("glm4_moe", num_hidden_layers=6, first_k_dense_replace=1, hidden_size=16, **ROUTED)
    with pytest.raises(ValueError, match=r"Blocks \[0, 1, 0, 1\] cannot be put in this order: first_k_dense_replace=1"):
        check_arm(ARMS[name], config, 4)
    check_arm(ARMS["last"], config, 4)


def test_layers_that_cannot_be_taken_are_found_before_they_are_built():
    """A choice that the architecture does not allow is found from its config."""
    config = AutoConfig.for_model(
        "lfm2", num_hidden_layers=6, hidden_size=16, layer_types=["conv", "full_attention", "conv"] * 2
    )
    with pytest.raises(ValueError, match="keeps convolutions only"):
        check_arm(ARMS["spaced"], config, 4)
    check_arm(ARMS["last"], config, 4)


OPT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 6,
    "ffn_dim": 32,
    "max_position_embeddings": 32,
}


def test_expansion_is_tried_before_it_is_built():
    """OPT that normalises after the residual has no block that changes nothing; the one that does so before has."""
    check_arm(ARMS["expansion"], AutoConfig.for_model("opt", **OPT), 4)
    check_arm(ARMS["expansion"], make_gpt2().config, 4)
    with pytest.raises(ValueError, match="blocks of this opt still change what they get"):
        check_arm(ARMS["expansion"], AutoConfig.for_model("opt", do_layer_norm_before=False, **OPT), 4)
