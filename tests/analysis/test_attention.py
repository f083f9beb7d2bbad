"""Probabilities are those of the model, its output is untouched, and nothing is left on it."""

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from inheritune_hf.analysis.attention import attention_kinds, probabilities, watching_attention
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
    with watching_attention(model, seen.__setitem__):
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
    wanted = output.attentions
    kinds = getattr(eager.config, "layer_types", None) or ["full_attention"] * 6
    attending = [layer for layer, item in enumerate(kinds) if "attention" in item]
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
            if kind == "gpt_oss":  # its sinks take a share
                assert float(weights.sum(-1).max()) < 1
            else:
                assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
            assert float(weights.triu(1).abs().max()) == 0
    assert "eager" in tried


def test_every_supported_model_type_is_tested():
    """The cases above are all supported model types."""
    assert {pair.values[0] for pair in PAIRS} == set(SUPPORTED_MODEL_TYPES)


def test_attention_sinks_take_their_share():
    """Fused kernels get learned sinks (GPT-OSS) as an argument: rows sum to less than one."""
    query, key = torch.randn(1, 2, 4, 3), torch.randn(1, 1, 4, 3)
    sinks = torch.tensor([0.5, 30.0])
    logits = torch.cat([(query @ key.mT) * 3**-0.5, sinks.view(1, 2, 1, 1).expand(1, 2, 4, 1)], dim=-1)
    torch.testing.assert_close(probabilities(query, key, sinks=sinks), logits.softmax(-1)[..., :-1])


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
    """An attention implementation of a user's own, as a fused kernel is one: it ends in torch's fused attention."""
    inner = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module, query, key, value, mask, **kwargs):
        kwargs.pop("softcap", None)
        return inner(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("mine", attend)
    AttentionMaskInterface.register("mine", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    yield attend
    del AttentionInterface._global_mapping["mine"]
    del AttentionMaskInterface._global_mapping["mine"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_other_implementations_are_watched_where_they_get_their_inputs(kind, custom):
    """A registered implementation is seen once in each layer, and its registration is as before afterwards."""
    values = {pair.values[0]: pair.values[1] for pair in PAIRS}[kind]
    model = build(kind, values, "mine")
    with torch.no_grad():
        before = model(IDS, use_cache=False).logits
    calls = []
    with watching_attention(model, lambda layer, weights: calls.append((layer, weights))):
        logits = model(IDS, use_cache=False).logits
    assert torch.equal(logits, before)
    assert [layer for layer, _ in calls] == list(range(6))
    assert ALL_ATTENTION_FUNCTIONS["mine"] is custom
    assert "mine" not in ALL_ATTENTION_FUNCTIONS._local_mapping
    _, wanted = watched(build(kind, values, "eager"))
    for layer, weights in calls:
        torch.testing.assert_close(weights, wanted[layer], atol=2e-5, rtol=1e-4)


def test_a_local_registration_is_put_back(custom):
    """What someone else put into the registry for a while stays theirs."""
    ALL_ATTENTION_FUNCTIONS["mine"] = custom
    try:
        watched(build("llama", {**WIDE}, "mine"))
        assert ALL_ATTENTION_FUNCTIONS._local_mapping["mine"] is custom
    finally:
        del ALL_ATTENTION_FUNCTIONS["mine"]


def test_masks_windows_and_caps_of_fused_kernels():
    """Causal order, window, soft cap and position bias are what a dense computation says they are."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 6, 4, generator=generator) for heads in (4, 2))
    dense = query @ key.repeat_interleave(2, dim=1).mT * 0.3
    place = torch.arange(6)
    late, far = place[:, None] < place, place[:, None] - place >= 3
    bias = torch.randn(1, 4, 6, 6, generator=generator)
    capped = 2 * torch.tanh(dense / 2) + bias
    wanted = capped.masked_fill(late | far, -torch.inf).softmax(-1)
    got = probabilities(query, key, scale=0.3, is_causal=True, window=3, softcap=2.0, bias=bias)
    torch.testing.assert_close(got, wanted)
    seen = ~late
    torch.testing.assert_close(probabilities(query, key, seen), probabilities(query, key, is_causal=True))
    added = torch.zeros(6, 6).masked_fill(late, -torch.inf)
    torch.testing.assert_close(probabilities(query, key, added), probabilities(query, key, is_causal=True))


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "mine"])
def test_an_exception_leaves_nothing_behind(implementation, custom):
    """If measuring fails half way, hooks and registrations are gone and the model computes what it did."""
    model = build("llama", WIDE, implementation)
    with torch.no_grad():
        before = model(IDS).logits
    hooked = hooks(model)

    def fail(layer, weights):
        if layer == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watching_attention(model, fail):
        model(IDS, use_cache=False)
    assert hooks(model) == hooked
    assert ALL_ATTENTION_FUNCTIONS["mine"] is custom
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, before)


def test_never_more_than_one_layer_in_memory():
    """When a layer's probabilities come, those of the layer before are gone."""
    model = build("gpt2", dict(SHAPE, n_positions=32, **TOKENS))
    alive = []

    def seen(layer, weights):
        gc.collect()
        assert not any(item() is not None for item in alive)
        alive.append(weakref.ref(weights))

    with watching_attention(model, seen):
        model(IDS, use_cache=False)
    assert len(alive) == 6
