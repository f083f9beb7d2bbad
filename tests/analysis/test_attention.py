"""Probabilities are those of the model, its output is untouched, and nothing is left on it."""

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from inheritune_hf.analysis.attention import attention_kinds, probabilities, watch_attention
from inheritune_hf.students import SUPPORTED_MODEL_TYPES

sys.path.insert(0, str(Path(__file__).parents[1] / "students"))
from families import CASES, SHAPE, TOKENS, WIDE

PAIRS = [
    pytest.param(kind, values, id=f"{kind}-{number}")
    for kind, cases in CASES.items()
    for number, values in enumerate(cases)
]

IDS = torch.randint(1, 64, (2, 20), generator=torch.Generator().manual_seed(1))


def build(kind, values, attention="sdpa", dtype=torch.float32):
    """A model of other values in every parameter than its initialisation gives, so that heads differ."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values), attn_implementation=attention)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.to(dtype).eval()


def watched(model, ids=IDS):
    seen = {}
    with watch_attention(model, seen.__setitem__):
        output = model(ids, use_cache=False)
    return output.logits, seen


def hooks(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


# Releases of Transformers before 5.23 script a function of GPTBigCode (modeling_gpt_bigcode.py, upcast_softmax).
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("kind", "values"), PAIRS)
def test_every_architecture_that_students_can_be_made_of(kind, values):
    """Probabilities are the eager model's own, in float32, for each implementation; logits stay equal to the bit."""
    eager = build(kind, values, "eager")
    with torch.no_grad():
        output = eager(IDS, use_cache=False, output_attentions=True)
    wanted = getattr(output, "attentions", None)  # state spaces have none
    kinds = getattr(eager.config, "layer_types", None) or ["full_attention"] * 6
    without = ("conv", "linear_attention", "mlp", "moe")
    attending = [layer for layer, item in enumerate(kinds) if item not in without]
    if wanted and len(wanted) > len(attending):  # MiniMax gives what its linear attention multiplies, too
        wanted = [wanted[layer] for layer in attending]
    tried = []
    for name in ("eager", "sdpa"):
        try:
            model = build(kind, values, name)
        except ValueError:
            continue
        tried.append(name)
        with torch.no_grad():
            before = model(IDS, use_cache=False).logits
        hooked = hooks(model)
        logits, seen = watched(model)
        assert torch.equal(logits, before)
        assert hooks(model) == hooked
        assert sorted(seen) == attending
        # Falcon with ALiBi computes something else by sdpa than it does eagerly: there is nothing to compare with.
        alike = torch.allclose(before, output.logits, atol=1e-3)
        assert alike or kind == "falcon"
        for place, layer in enumerate(attending):
            weights = seen[layer]
            assert weights.dtype == torch.float32
            if wanted and alike:
                torch.testing.assert_close(weights, wanted[place].float(), atol=2e-5, rtol=1e-4)
            if kind in ("flint", "gpt_oss", "mimo_v2_flash"):  # sinks take a share, in MiMo within windows only
                sums, sinks = weights.sum(-1), kind != "mimo_v2_flash" or layer in (0, 2, 4)
                assert float(sums.max()) < 1 if sinks else bool((sums > 0.999).all())
            else:
                assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
            assert float(weights.triu(1).abs().max()) == 0
    assert "eager" in tried


def test_every_supported_model_type_is_tested():
    """The cases above are all supported model types."""
    assert {pair.values[0] for pair in PAIRS} == set(SUPPORTED_MODEL_TYPES)


def test_layers_without_softmax_attention_are_not_seen():
    """In a hybrid (LFM2) only the attention layers are seen, and the short convolutions have a kind of their own."""
    values = {**WIDE, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"] * 3, "block_multiple_of": 8}
    model = build("lfm2", values)
    _, seen = watched(model)
    assert sorted(seen) == [1, 3, 5]
    assert attention_kinds(model) == ("conv", "attention") * 3


def test_kinds_come_from_the_config_or_from_the_blocks():
    """Layers are of sliding or full attention by the config's list, or by its one window."""
    assert attention_kinds(build(*PAIRS[0].values)) == ("attention",) * 6
    by_type = {pair.values[0]: pair.values[1] for pair in PAIRS}
    assert attention_kinds(build("gpt_neo", by_type["gpt_neo"], "eager"))[:2] == ("attention", "sliding_attention")
    assert attention_kinds(build("gemma2", by_type["gemma2"], "eager"))[:2] == ("sliding_attention", "attention")
    # One window for all layers, and no list.
    for kind in ("phi3", "starcoder2", "mixtral"):
        shape = {name: value for name, value in by_type[kind].items() if name != "sliding_window"}
        assert set(attention_kinds(build(kind, {**shape, "sliding_window": 4}, "eager"))) == {"sliding_attention"}
        assert set(attention_kinds(build(kind, {**shape, "sliding_window": None}, "eager"))) == {"attention"}


def test_reduced_precision_keeps_a_float32_softmax():
    """A bfloat16 model gives float32 rows that sum to one, and its own output stays equal to the bit."""
    model = build("llama", {**WIDE, "num_key_value_heads": 1}, dtype=torch.bfloat16)
    with torch.no_grad():
        before = model(IDS, use_cache=False).logits
    logits, seen = watched(model)
    assert torch.equal(logits, before)
    for weights in seen.values():
        assert weights.dtype == torch.float32
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-6)


@pytest.fixture
def custom():
    """An attention implementation of a user, which torch sees nothing of, as of a fused kernel."""

    def attend(module, query, key, value, mask, **kwargs):
        raise AssertionError("it is not used while attention is watched")

    AttentionInterface.register("mine", attend)
    AttentionMaskInterface.register("mine", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    yield attend
    del AttentionInterface._global_mapping["mine"]
    del AttentionMaskInterface._global_mapping["mine"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_other_implementations_are_watched_as_eager(kind, custom):
    """A model with a registered implementation attends eagerly while it is watched, and not afterwards."""
    values = {pair.values[0]: pair.values[1] for pair in PAIRS}[kind]
    model = build(kind, values, "mine")
    logits, seen = watched(model)
    assert model.config._attn_implementation == "mine"
    wanted, attention = watched(build(kind, values, "eager"))
    assert torch.equal(logits, wanted)
    assert all(torch.equal(seen[layer], attention[layer]) for layer in range(6))


def test_masks_of_fused_attention():
    """Causal order, a mask and an added bias are what a dense computation says they are."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 6, 4, generator=generator) for heads in (4, 2))
    late = torch.ones(6, 6).triu(1).bool()
    bias = torch.randn(1, 4, 6, 6, generator=generator)
    dense = query @ key.repeat_interleave(2, dim=1).mT * 0.3
    got = probabilities(query, key, attn_mask=bias.masked_fill(late, -torch.inf), scale=0.3)
    torch.testing.assert_close(got, (dense + bias).masked_fill(late, -torch.inf).softmax(-1))
    torch.testing.assert_close(probabilities(query, key, attn_mask=~late), probabilities(query, key, is_causal=True))


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "mine"])
def test_an_exception_leaves_nothing_behind(implementation, custom):
    """If measuring fails half way, hooks are gone and the model has its implementation."""
    model = build("llama", WIDE, implementation)
    hooked = hooks(model)

    def fail(layer, weights):
        if layer == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watch_attention(model, fail):
        model(IDS, use_cache=False)
    assert hooks(model) == hooked
    assert model.config._attn_implementation == implementation


def test_never_more_than_one_layer_in_memory():
    """When a layer's probabilities come, those of the layer before are gone."""
    model = build("gpt2", dict(SHAPE, n_positions=32, **TOKENS))
    alive = []

    def seen(layer, weights):
        gc.collect()
        assert not any(item() is not None for item in alive)
        alive.append(weakref.ref(weights))

    with watch_attention(model, seen):
        model(IDS, use_cache=False)
    assert len(alive) == 6
