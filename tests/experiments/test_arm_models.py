"""Which layers each arm takes, what its weights begin as, and what reaches its build."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from inheritune_hf import InherituneConfig, from_pretrained_inherited
from inheritune_hf.arms import ARMS, alternate_layers, lazy_in_place, parse_arm
from inheritune_hf.experiments import arm_models
from inheritune_hf.experiments.arm_models import ArmInputs, arm_baseline, build_arm, check_arm
from inheritune_hf.students import open_reference

DEPTH = 8
TOKENS = torch.tensor([[5, 9, 3, 11, 7, 2]])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    make_gpt2().save_pretrained(folder)
    return str(folder)


def make_gpt2(**changes):
    torch.manual_seed(0)
    values = {"n_layer": DEPTH, "n_embd": 12, "n_head": 3, "vocab_size": 32, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**{**values, "bos_token_id": 0, "eos_token_id": 0, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def same(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def outside(model):
    return {name: tensor for name, tensor in model.state_dict().items() if ".h." not in name}


def assert_outside_is_the_references(model, reference):
    whole = outside(reference)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in outside(model).items())


def map_of(model, reference):
    """For each block of the model the layer of the reference whose block it is, or None."""
    blocks = reference.transformer.h
    return [next((layer for layer, old in enumerate(blocks) if same(old, new)), None) for new in model.transformer.h]


def inputs(reference, layers=DEPTH, seed=1, **changes):
    return ArmInputs(open_reference(reference), layers, seed, **changes)


@pytest.mark.parametrize("blocks", [[7, None, 0], [None, None, None, 3, 4, 5], [0, 1, 0, 1]])
def test_blocks_come_from_where_they_should(reference, blocks):
    """Each block is bit for bit the reference's, or random; everything outside the blocks is inherited."""
    model, whole = arm_models.assemble(reference, blocks, 1), loaded(reference)
    assert map_of(model, whole) == blocks
    assert model.config.n_layer == len(blocks)
    assert_outside_is_the_references(model, whole)


def test_the_papers_layers():
    """A 16-layer student of 24 layers has 0, 2, ..., 22 and then 18 to 21; in place, the 16th to the last stay."""
    assert alternate_layers(24, 16) == (*range(0, 24, 2), 18, 19, 20, 21)
    assert alternate_layers(24, 12) == tuple(range(0, 24, 2))
    assert lazy_in_place(24) == [None] * 15 + [*range(15, 24)]


def test_random_weights_have_nothing_of_the_reference(reference):
    """Same shape, other numbers, decided by the seed alone; the caller's random state stays."""
    state = torch.get_rng_state()
    first, again, other = (arm_models.random_weights(inputs(reference, 4, seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, again)
    assert not same(first, other)
    whole = loaded(reference)
    assert map_of(first, whole) == [None] * 4
    assert not any(
        torch.equal(tensor, outside(whole)[name]) for name, tensor in outside(first).items() if "wte" in name
    )
    assert arm_models.random_weights(inputs(reference)).config.n_layer == DEPTH
    lineage = first.config.inheritune
    assert (lineage["reference_layers"], lineage["kept_layers"], lineage["inherited"]) == (DEPTH, [], [])
    parts = arm_models.build_arm(ARMS["last"], inputs(reference, 4)).config.inheritune["inherited"]
    assert "attention" in parts


@pytest.mark.parametrize(
    ("parts", "kept", "left"),
    [
        ("attention+norms", ("attn", "ln_1", "ln_2"), ("mlp",)),
        ("mlp+norms", ("mlp", "ln_1", "ln_2"), ("attn",)),
        ("attention+mlp", ("attn", "mlp"), ("ln_1", "ln_2")),
    ],
)
def test_submodules_are_inherited(reference, parts, kept, left):
    """The sub-module ablation: the named parts of every block are the reference's, the others are not."""
    model, whole = arm_models.with_parts(inputs(reference, 4), parts), loaded(reference)
    for new, old in zip(model.transformer.h, whole.transformer.h, strict=False):
        assert all(same(getattr(new, name), getattr(old, name)) for name in kept)
        assert not any(same(getattr(new, name), getattr(old, name)) for name in left)
    assert_outside_is_the_references(model, whole)


def test_released_codes_partial_copy(reference):
    """Blocks and head (tied with the token embedding) are inherited; positions and the final norm start afresh."""
    model, whole = arm_models.with_parts(inputs(reference, 4), "released-code"), loaded(reference)
    assert map_of(model, whole) == [0, 1, 2, 3]
    assert torch.equal(model.transformer.wte.weight, whole.transformer.wte.weight)
    assert not torch.equal(model.transformer.wpe.weight, whole.transformer.wpe.weight)
    assert torch.equal(model.transformer.ln_f.weight, torch.ones(12))


def test_expansion_computes_what_the_half_does(reference):
    """Identity blocks change nothing: the logits are those of the reference's first layers."""
    half = from_pretrained_inherited(reference, InherituneConfig(keep_layers=2))
    model = arm_models.expanded(inputs(reference, 4))
    assert map_of(model, half) == [0, None, 1, None]
    assert torch.equal(model(TOKENS).logits, half(TOKENS).logits)


def test_half_width_has_the_leading_heads_and_neurons(reference):
    """Each of query, key and value is cut by itself; of three heads one is kept, and said."""
    model, whole = arm_models.half_width(inputs(reference)), loaded(reference)
    assert (model.config.n_layer, model.config.n_head, model.config.n_embd) == (DEPTH, 1, 4)
    new, old = model.transformer.h[5], whole.transformer.h[5]
    thirds = [old.attn.c_attn.weight[:4, start : start + 4] for start in (0, 12, 24)]
    assert torch.equal(new.attn.c_attn.weight, torch.cat(thirds, 1))
    assert torch.equal(
        new.attn.c_attn.bias, torch.cat([old.attn.c_attn.bias[start : start + 4] for start in (0, 12, 24)])
    )
    assert torch.equal(new.attn.c_proj.weight, old.attn.c_proj.weight[:4, :4])
    assert torch.equal(new.mlp.c_fc.weight, old.mlp.c_fc.weight[:4, :16])
    assert torch.equal(new.mlp.c_proj.weight, old.mlp.c_proj.weight[:16, :4])
    assert torch.equal(model.transformer.wte.weight, whole.transformer.wte.weight[:, :4])
    assert torch.equal(new.ln_1.weight, old.ln_1.weight[:4])
    assert model(TOKENS).logits.shape == (1, 6, 32)


@pytest.mark.parametrize(
    ("kind", "changes", "queries", "shared"),
    [
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2}, 2, 1),
        ("qwen2", {"num_attention_heads": 6, "num_key_value_heads": 3}, 2, 1),
        ("mistral", {"num_attention_heads": 4, "num_key_value_heads": 1}, 2, 1),
        ("olmo2", {"num_attention_heads": 4, "num_key_value_heads": 4}, 2, 2),
    ],
)
def test_half_width_keeps_queries_with_their_keys(tmp_path, kind, changes, queries, shared):
    """With grouped queries whole groups are kept; heads keep their size."""
    heads = changes["num_attention_heads"]
    shape = {"hidden_size": heads * 4, "intermediate_size": heads * 8, "num_hidden_layers": 2, "vocab_size": 32}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, head_dim=4, max_position_embeddings=16, **shape, **changes)
    whole = AutoModelForCausalLM.from_config(config)
    whole.save_pretrained(tmp_path)
    model = arm_models.half_width(inputs(str(tmp_path)))
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (queries, shared)
    width = model.config.hidden_size
    assert width == heads * 4 * queries // heads
    new, old = model.model.layers[1], whole.model.layers[1]
    assert torch.equal(new.self_attn.q_proj.weight, old.self_attn.q_proj.weight[: queries * 4, :width])
    assert torch.equal(new.self_attn.k_proj.weight, old.self_attn.k_proj.weight[: shared * 4, :width])
    assert torch.equal(new.mlp.gate_proj.weight, old.mlp.gate_proj.weight[: heads * 8 * queries // heads, :width])
    assert model(TOKENS).logits.shape == (1, 6, 32)


@pytest.mark.parametrize(
    ("kind", "changes", "queries", "neurons"),
    [
        ("gpt_neox", {}, "gpt_neox.layers.1.attention.query_key_value", "gpt_neox.layers.1.mlp.dense_h_to_4h"),
        ("opt", {"word_embed_proj_dim": 16}, "model.decoder.layers.1.self_attn.q_proj", "model.decoder.layers.1.fc1"),
        (
            "qwen3",
            {"num_key_value_heads": 2, "head_dim": 8},
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.mlp.gate_proj",
        ),
    ],
)
def test_half_width_of_other_layouts(tmp_path, kind, changes, queries, neurons):
    """Leading heads and neurons of GPT-NeoX, whose heads hold query, key and value each, of OPT, and of wide heads."""
    shape = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
    inner = "ffn_dim" if kind == "opt" else "intermediate_size"
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, max_position_embeddings=16, pad_token_id=1, **shape, **{inner: 64}, **changes)
    )
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    whole.save_pretrained(tmp_path)
    model = arm_models.half_width(inputs(str(tmp_path)))
    assert (model.config.hidden_size, model.config.num_attention_heads, getattr(model.config, inner)) == (8, 2, 32)
    for name, rows in ((queries, None), (neurons, 32)):
        new, old = model.get_submodule(name).weight, whole.get_submodule(name).weight
        # GPT-NeoX has one head's query, key and value after another's: half of the rows are half of the heads.
        assert torch.equal(new, old[: rows or len(old) // 2, :8])
    assert len(model.get_submodule(queries).weight) == len(whole.get_submodule(queries).weight) // 2
    if kind == "qwen3":
        norm = "model.layers.1.self_attn.q_norm"
        assert torch.equal(model.get_submodule(norm).weight, whole.get_submodule(norm).weight)
    assert torch.isfinite(model(TOKENS).logits).all()
    assert model(TOKENS).logits.shape == (1, 6, 32)


def test_moved_blocks_keep_their_scale_unless_asked(tmp_path):
    """A block moved in a GPT-2 that scales attention by depth computes what it did; if asked, what its weights say."""
    whole = make_gpt2(scale_attn_by_inverse_layer_idx=True)
    whole.save_pretrained(tmp_path)
    given = torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(3))
    kept = arm_models.assemble(str(tmp_path), [5, 1, 5], 1)
    raw = arm_models.assemble(str(tmp_path), [5, 1, 5], 1, keep_scale=False)
    for place, layer in enumerate([5, 1, 5]):
        wanted = whole.transformer.h[layer](given)
        torch.testing.assert_close(kept.transformer.h[place](given), wanted)
        block = raw.transformer.h[place]
        assert torch.equal(block.attn.c_attn.weight, whole.transformer.h[layer].attn.c_attn.weight)
        if place != layer:
            assert not torch.allclose(block(given), wanted)


def test_what_cannot_be_built_is_refused(reference, tmp_path):
    """Odd numbers of layers cannot be doubled; unknown architectures are not narrowed by guess."""
    with pytest.raises(ValueError, match="doubles a number of layers, and 3 is odd"):
        build_arm(ARMS["hybrid-stacking"], inputs(reference, 3))
    with pytest.raises(ValueError, match="keep_layers must name layers from 0 to 7"):
        arm_models.assemble(reference, [0, 8], 1)
    for kind in ("bloom", "gemma4_text"):
        with pytest.raises(ValueError, match=f"A {kind} cannot be halved in width: .* It is known of gpt2, gpt_neox, "):
            arm_models.narrowed_config(AutoConfig.for_model(kind))
    with pytest.raises(ValueError, match="one attention head"):
        arm_models.narrowed_config(AutoConfig.for_model("gpt2", n_head=1))


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaled")
    make_gpt2(scale_attn_by_inverse_layer_idx=True).save_pretrained(folder)
    return str(folder)


def start(reference, name, layers, **changes):
    depth = DEPTH if ARMS[name].whole else layers
    # The scale of a block that moves is multiplied into its queries: without it blocks are the reference's bit for bit.
    return inputs(reference, depth, **{"keep_scale": False, **changes})


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
def test_arms_take_their_layers(scaled, name, layers, wanted):
    """At each position stands the block of the layer that the arm is named for, or a random one."""
    model = build_arm(ARMS[name], start(scaled, name, layers))
    assert map_of(model, loaded(scaled)) == wanted
    places = ARMS[name].places
    if places is not None and name != "expansion":
        assert list(places(DEPTH, DEPTH if ARMS[name].whole else layers)) == wanted


def test_arms_that_go_by_a_measure_take_what_it_chose(scaled):
    """The layers that a measure chose are in their order."""
    model = build_arm(ARMS["lazy"], start(scaled, "lazy", 3, chosen=(1, 4, 6)))
    assert map_of(model, loaded(scaled)) == [1, 4, 6]


def test_stacking_begins_at_random_and_doubles_what_it_trained(scaled):
    """The first stage has nothing of the reference; the second has the first's blocks twice over, and its lineage."""
    first = build_arm(ARMS["stacking"], start(scaled, "stacking", 2))
    assert map_of(first, loaded(scaled)) == [None, None]
    second = build_arm(ARMS["stacking"], start(scaled, "stacking", 4, before=first))
    assert map_of(second, first) == [0, 1, 0, 1]
    assert_outside_is_the_references(second, first)
    assert second.config.inheritune["kept_layers"] == []
    assert second.config.inheritune["reference"] == scaled
    last = from_pretrained_inherited(scaled, InherituneConfig(keep_layers="last:2"))
    grown = arm_models.stacked(inputs(scaled, 4, keep_scale=False, before=last))
    assert tuple(grown.config.inheritune["kept_layers"]) == (6, 7, 6, 7)


def test_moved_scale_reaches_the_build(scaled):
    """With `/moved-scale` a moved block has the weights it had, and so attends otherwise; else it keeps its scale."""
    whole = loaded(scaled)
    given = torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(3))
    for name, kept in (("last", True), ("last/moved-scale", False)):
        variant = parse_arm(name)
        recipe = InherituneConfig(keep_layers=2, max_layers=2, steps_per_round=1)
        build = arm_baseline(variant, inputs(scaled, 2, keep_scale=not variant.moved_scale), recipe).build
        model = build((0, 1), None)
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
    with pytest.raises(ValueError, match=r"keeps no layer with softmax attention.*keep one of \[1, 4\] too"):
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
    with pytest.raises(ValueError, match="blocks of this opt still change their input"):
        check_arm(ARMS["expansion"], AutoConfig.for_model("opt", do_layer_norm_before=False, **OPT), 4)
