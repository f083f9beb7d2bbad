"""Where blocks are, how configs are cut, and that students of every supported architecture equal their references."""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune_hf.students import (
    SUPPORTED_MODEL_TYPES,
    InheritedModelForCausalLM,
    inspect_architecture,
    kept_names,
    plan_inheritance,
    sliced_config,
    student_skeleton,
)

SHAPE = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 6}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
WIDE = {**SHAPE, **TOKENS, "intermediate_size": 32, "max_position_embeddings": 32}
GROUPED = {**WIDE, "num_key_value_heads": 1}
SLIDING = ["sliding_attention", "full_attention"] * 3

CASES = {
    "gpt2": [
        dict(SHAPE, n_positions=32, **TOKENS),
        dict(SHAPE, n_positions=32, reorder_and_upcast_attn=True, **TOKENS),
    ],
    "bloom": [{**SHAPE, **TOKENS}],
    "gemma": [{**GROUPED, "head_dim": 8}],
    "gemma2": [{**GROUPED, "head_dim": 8, "sliding_window": 4, "layer_types": SLIDING}],
    "gemma3_text": [{**GROUPED, "head_dim": 8, "sliding_window": 4, "layer_types": SLIDING}],
    "gpt_bigcode": [dict(SHAPE, n_positions=32, **TOKENS)],
    "gpt_neo": [
        {
            **SHAPE,
            **TOKENS,
            "max_position_embeddings": 32,
            "window_size": 4,
            "attention_types": [[["global", "local"], 2], [["global"], 2]],
        }
    ],
    "gpt_neox": [WIDE, {**WIDE, "use_parallel_residual": False, "tie_word_embeddings": True}],
    "gptj": [dict(SHAPE, n_positions=32, rotary_dim=4, **TOKENS)],
    "granite": [{**GROUPED, "logits_scaling": 2.0, "residual_multiplier": 0.5}],
    "llama": [GROUPED, {**GROUPED, "tie_word_embeddings": True, "attention_bias": True}],
    "mistral": [{**GROUPED, "sliding_window": 4, "head_dim": 8}],
    "olmo2": [GROUPED],
    "opt": [
        {**SHAPE, **TOKENS, "ffn_dim": 32, "max_position_embeddings": 32},
        {
            **SHAPE,
            **TOKENS,
            "ffn_dim": 32,
            "max_position_embeddings": 32,
            "word_embed_proj_dim": 8,
            "do_layer_norm_before": False,
        },
    ],
    "phi": [GROUPED],
    "phi3": [{**GROUPED, "sliding_window": 4}],
    "qwen2": [GROUPED, {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}],
    "qwen3": [
        {**GROUPED, "head_dim": 8},
        {**GROUPED, "head_dim": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ],
    "smollm3": [
        {**GROUPED, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 4},
        {**GROUPED, "no_rope_layers": [1, 0, 0, 1, 0, 1]},
    ],
    "stablelm": [GROUPED],
    "starcoder2": [{**GROUPED, "sliding_window": 4}],
}
PAIRS = [
    pytest.param(kind, values, id=f"{kind}-{n}") for kind, cases in CASES.items() for n, values in enumerate(cases)
]


# Releases of Transformers before 5.23 script a function of GPTBigCode (modeling_gpt_bigcode.py, upcast_softmax).
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 3, 5), (0, 1, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize(("kind", "values"), PAIRS)
def test_student_of_every_supported_type(kind, values, layers, build, skipping, tokens, tmp_path, logged):
    """A student computes what its reference computes without the dropped layers, also saved and loaded by Auto."""
    config = AutoConfig.for_model(kind, **values)
    before = config.to_dict()
    reference = build(config)
    reference.save_pretrained(tmp_path / "reference")
    student, info = InheritedModelForCausalLM.from_pretrained(
        tmp_path / "reference", keep_layers=layers, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not info["unexpected_keys"]
    assert type(student) is type(reference)
    with torch.no_grad():
        logits = student(tokens, use_cache=False).logits
    assert torch.equal(logits, skipping(reference, tokens, layers))
    student.save_pretrained(tmp_path / "student")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    with torch.no_grad():
        assert torch.equal(reloaded(tokens, use_cache=False).logits, logits)
    assert reloaded.config.num_hidden_layers == len(layers)
    greedy = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    prompt = tokens[:, :6]
    assert torch.equal(
        reloaded.generate(prompt, use_cache=True, **greedy), reloaded.generate(prompt, use_cache=False, **greedy)
    )
    after = reference.config.to_dict()
    assert {name: after[name] for name in before if name not in ("dtype", "architectures")} == {
        name: before[name] for name in before if name not in ("dtype", "architectures")
    }
    assert not [message for message in logged if "REPORT" in message]


def test_every_supported_type_is_proven():
    """A model type is supported exactly if a test above proves its students."""
    assert sorted(CASES) == list(SUPPORTED_MODEL_TYPES)


def test_inspection_finds_the_blocks(reference):
    """The blocks of GPT-2 are found by name, with the tied head, and the config is left as it is."""
    before = reference.config.to_dict()
    architecture = inspect_architecture(reference.config)
    assert architecture.block_list == "transformer.h"
    assert architecture.depth == 12
    assert architecture.model_class is type(reference)
    assert architecture.tied == {"lm_head.weight": "transformer.wte.weight"}
    assert architecture.parameter_count == reference.num_parameters()
    assert architecture.parameters.keys() == reference.state_dict().keys()
    assert reference.config.to_dict() == before


def test_inspection_needs_the_blocks_that_the_config_promises(reference, monkeypatch):
    """A model class without a list of as many blocks as its config says is refused."""
    monkeypatch.setattr(type(reference), "get_decoder", lambda model: model.lm_head)
    with pytest.raises(
        RuntimeError, match=r"GPT2LMHeadModel has no list of 12 blocks, the depth that its config says\."
    ):
        inspect_architecture(reference.config)


def test_skeleton_has_no_weights(reference):
    """A skeleton is the student's class and shape, and lies on the meta device."""
    skeleton = student_skeleton(reference.config, (0, 1, 2))
    assert type(skeleton) is type(reference)
    assert skeleton.config.num_hidden_layers == 3
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert reference.config.num_hidden_layers == 12


def test_kept_names_cover_both_layouts_and_renumber(reference):
    """Kept tensors are known with and without the base model's prefix; masks and dropped layers are not known."""
    names = kept_names(inspect_architecture(reference.config), (0, 3))
    assert names["transformer.h.3.ln_1.weight"] == "transformer.h.1.ln_1.weight"
    assert names["h.3.ln_1.weight"] == "transformer.h.1.ln_1.weight"
    assert names["wte.weight"] == "transformer.wte.weight"
    assert not {"h.1.ln_1.weight", "transformer.h.1.ln_1.weight", "h.0.attn.bias", "h.3.attn.bias"} & set(names)


def test_kept_names_know_the_published_head_of_gpt_neox():
    """GPT-NeoX files call the head `embed_out`; it is found."""
    config = AutoConfig.for_model("gpt_neox", **WIDE)
    architecture = inspect_architecture(config)
    head = kept_names(architecture, (0,))["embed_out.weight"]
    assert head in architecture.parameters
    assert not head.startswith(architecture.block_list)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("gpt_neo", CASES["gpt_neo"][0], {"attention_types": [[["global", "local", "global"], 1]]}),
        ("qwen2", CASES["qwen2"][1], {"max_window_layers": 2, "layer_types": ["full_attention"] * 2 + SLIDING[:1]}),
        ("qwen2", CASES["qwen2"][0], {"max_window_layers": 28}),
        ("smollm3", CASES["smollm3"][1], {"no_rope_layers": [1, 0, 0]}),
        ("qwen3_moe", {**GROUPED, "mlp_only_layers": [1, 2, 5]}, {"mlp_only_layers": [1, 2]}),
    ],
    ids=["gpt_neo", "qwen2-sliding", "qwen2", "smollm3", "qwen3_moe"],
)
def test_fields_that_speak_of_layers_follow_them(kind, values, expected):
    """Per-layer lists, layer positions and thresholds of the student's config belong to its kept layers."""
    config = AutoConfig.for_model(kind, **values)
    before = config.to_dict()
    layers = (0, 1, 4) if kind in ("gpt_neo", "smollm3") else (0, 2, 5) if kind == "qwen2" else (0, 1, 5)
    sliced = sliced_config(config, layers)
    assert {name: getattr(sliced, name) for name in expected} == expected
    assert sliced.num_hidden_layers == 3
    assert type(config).from_dict(sliced.to_dict()).to_dict() == sliced.to_dict()
    assert config.to_dict() == before


def test_moved_blocks_of_a_position_scaled_gpt2_are_refused(publish):
    """GPT-2 with attention scaled by position cannot keep other than first layers: a moved block would be rescaled."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**CASES["gpt2"][0], scale_attn_by_inverse_layer_idx=True)
    )
    folder = publish(model=model)
    message = r"keep_layers='0,3' moves blocks of a GPT-2 with scale_attn_by_inverse_layer_idx=True, .* 'first:2'\."
    with pytest.raises(ValueError, match=message):
        InheritedModelForCausalLM.from_pretrained(folder, keep_layers=[0, 3])
    assert plan_inheritance(folder, 3).kept_layers == (0, 1, 2)


def test_position_scaled_gpt2_keeps_its_first_layers_exactly(build, skipping, tokens):
    """The first layers of a GPT-2 with attention scaled by position compute what they computed."""
    reference = build(transformers.GPT2Config(**CASES["gpt2"][0], scale_attn_by_inverse_layer_idx=True))
    student = InheritedModelForCausalLM.from_pretrained(reference, keep_layers=3)
    with torch.no_grad():
        assert torch.equal(student(tokens).logits, skipping(reference, tokens, (0, 1, 2)))


@pytest.mark.skipif(
    not hasattr(transformers.LlamaConfig, "is_heterogeneous"), reason="Transformers without such configs"
)
def test_layers_of_several_kinds_are_refused():
    """A config that describes every layer by itself cannot be cut."""
    config = AutoConfig.for_model("llama", **GROUPED)
    config.per_layer_config = {0: {"intermediate_size": 64}}
    with pytest.raises(ValueError, match=r"keep_layers cannot cut a config with per_layer_config"):
        sliced_config(config, (0, 1))


@pytest.mark.parametrize(
    "config",
    [transformers.BertConfig(num_hidden_layers=2), transformers.T5Config(), transformers.ViTConfig()],
    ids=["bert", "t5", "vit"],
)
def test_other_models_are_refused(config, tmp_path):
    """Encoders, encoder-decoders and models without language are refused before anything else is read."""
    config.save_pretrained(tmp_path)
    message = rf"is not a causal language model: its config has model_type '{config.model_type}'\. Give a model of"
    with pytest.raises(ValueError, match=message):
        InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=1)


def test_unproven_architectures_are_refused_with_the_list(tmp_path):
    """A causal language model whose architecture is not proven here is refused, and the supported ones are named."""
    transformers.MambaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type 'mamba', whose layers .* Supported are: bloom, gemma, .*qwen3"):
        plan_inheritance(tmp_path, 1)
