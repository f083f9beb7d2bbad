"""Every supported architecture: its students are its reference's layers, and its config says what they are."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from families import CASES, GROUPED, HEADS, HYBRID, PROMISED, PUBLISHED, SLIDING, WIDE, Published
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig

import inheritune_hf
from inheritune_hf import InherituneConfig, from_pretrained_inherited
from inheritune_hf.students import (
    SUPPORTED_MODEL_TYPES,
    InheritedModelForCausalLM,
    architectures,
    checkpoints,
    inspect_architecture,
    is_cuttable,
    logit_shaping,
    plan_inheritance,
    sliced_config,
    student_skeleton,
)
from inheritune_hf.students.architectures import kept_names
from inheritune_hf.students.losses import choose_loss, computes_from_hidden, loss_of_hidden, summed_loss

PAIRS = [
    pytest.param(kind, values, id=f"{kind}-{n}", marks=[] if kind in PROMISED else pytest.mark.slow)
    for kind, cases in CASES.items()
    for n, values in enumerate(cases)
]
MISSING_EXPERT = (
    r"do not fill the student: another shape in model\.layers\.3\.mlp\.experts\.gate_up_proj\. Check that the config"
)
GREEDY = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


STRANGER = """
import json, sys, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
try:
    import inheritune_hf
except ImportError:
    pass
else:
    sys.exit("inheritune_hf can be imported here")
from transformers import AutoModelForCausalLM
from transformers.utils import logging
logging.disable_progress_bar()

def look(folder):
    expected = torch.load(folder / "expected.pt")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    for parameter in model.parameters():  # in a mapped file they lie where products may be rounded otherwise
        parameter.data = parameter.data.clone()
    found = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    with torch.no_grad():
        logits = model(expected["tokens"], use_cache=False).logits
    found["logits"] = torch.equal(logits, expected["logits"])
    for name, use in (("cached", True), ("uncached", False)):
        made = model.generate(expected["tokens"][:, :6], use_cache=use, **expected["options"])
        found[name] = torch.equal(made, expected[name])
    return found

answers = sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    try:
        found = look(Path(line.strip()))
    except Exception:
        found = traceback.format_exc()
    print(json.dumps(found), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A process that has Transformers but not this package: hand it a folder, and it says what it found."""
    work = tmp_path_factory.mktemp("stranger")
    (work / "inheritune_hf.py").write_text("raise ImportError('not here')\n")
    (work / "stranger.py").write_text(STRANGER)
    environment = {**os.environ, "PYTHONPATH": str(work)}
    with (work / "errors").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(work / "stranger.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        )

        def ask(folder):
            if process.poll() is None:
                process.stdin.write(f"{folder}\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, (work / "errors").read_text()
            return json.loads(answer)

        yield ask
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@pytest.fixture
def needs_only_transformers(stranger, tmp_path):
    """Save a student and let a process without this package load it: same logits, and generation cached or not."""

    def check(student, tokens, logits):
        folder = tmp_path / "saved"
        student.save_pretrained(folder)
        cached, uncached = (student.generate(tokens[:, :6], use_cache=use, **GREEDY) for use in (True, False))
        # With a cache Transformers' own MiniMax computes other logits: near ties fall either way.
        assert torch.equal(cached, uncached) or student.config.model_type == "minimax"
        expected = {"tokens": tokens, "logits": logits, "cached": cached, "uncached": uncached, "options": GREEDY}
        torch.save(expected, folder / "expected.pt")
        assert stranger(folder) == {"logits": True, "cached": True, "uncached": True}
        shutil.rmtree(folder)

    return check


def republish(folder, kind):
    """Rewrite what a model saved as its family publishes it; returns the bytes of what is there twice."""
    published = PUBLISHED.get(kind, Published())
    found = published(load_file(folder / "model.safetensors"))
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(found[name].nbytes for name in published.twins)


# Releases of Transformers before 5.23 script a function of GPTBigCode (modeling_gpt_bigcode.py, upcast_softmax).
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("kind", "values"), PAIRS)
def test_student_of_every_supported_type(
    kind, values, build, skipping, tokens, tmp_path, logged, needs_only_transformers, monkeypatch
):
    """Any layers of published files compute what the reference does; only they are read, and they load anywhere."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this Transformers has no {kind}")
    config = AutoConfig.for_model(kind, **values)
    reference = build(config)
    reference.save_pretrained(tmp_path)
    before = reference.config.to_dict()
    twice = republish(tmp_path, kind)
    asked, fill = [], checkpoints._fill
    monkeypatch.setattr(
        checkpoints, "_fill", lambda file, flat, path: (asked.append(flat.nbytes), fill(file, flat, path))
    )
    scattered = (1, 4, 5) if is_cuttable(config, (1, 4, 5)) else (0, 4, 5)
    for layers in [(0, 1, 2), scattered, (0, 1, 2, 3, 4, 5)]:
        student, info = InheritedModelForCausalLM.from_pretrained(
            tmp_path, keep_layers=layers, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
        assert not info["unexpected_keys"]
        assert type(student) is type(reference)
        kept = {tensor.data_ptr(): tensor.nbytes for tensor in student.state_dict().values()}
        # Whether a tied head that lies there too is the same can only be told by reading it.
        assert sum(asked) == sum(kept.values()) + twice == plan_inheritance(tmp_path, layers).bytes_to_read
        asked.clear()
        with torch.no_grad():
            logits = student(tokens, use_cache=False).logits
        assert torch.equal(logits, skipping(reference, tokens, layers))
        if len(layers) == 3:
            needs_only_transformers(student, tokens, logits)
    assert reference.config.to_dict() == before
    assert not [message for message in logged if "REPORT" in message]


@pytest.mark.parametrize("preset", ["paper", "released-code"])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in ("gpt2", "llama", "lfm2", "mixtral", "opt") else pytest.mark.slow)
        for kind in CASES
    ],
)
def test_students_with_random_parts_need_only_transformers(kind, preset, build, tokens, needs_only_transformers):
    """Students that inherit by a preset are ordinary models too: Transformers alone loads them."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this Transformers has no {kind}")
    reference = build(AutoConfig.for_model(kind, **CASES[kind][0]))
    student = from_pretrained_inherited(reference, InherituneConfig(keep_layers=[0, 2, 4], inherit=preset))
    with torch.no_grad():
        needs_only_transformers(student, tokens, student(tokens, use_cache=False).logits)


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
    monkeypatch.setattr(type(reference), "base_model", property(lambda model: model.lm_head))
    monkeypatch.setattr(architectures, "_INSPECTED", {})
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
    architecture = inspect_architecture(reference.config)
    names = ["transformer.h.3.ln_1.weight", "h.3.ln_1.weight", "wte.weight", "h.1.ln_1.weight", "h.0.attn.bias", "x"]
    assert kept_names(architecture, (0, 3), names) == {
        "transformer.h.3.ln_1.weight": "transformer.h.1.ln_1.weight",
        "h.3.ln_1.weight": "transformer.h.1.ln_1.weight",
        "wte.weight": "transformer.wte.weight",
    }


def test_kept_names_know_the_published_head_of_gpt_neox():
    """GPT-NeoX files call the head `embed_out`; it is found."""
    architecture = inspect_architecture(AutoConfig.for_model("gpt_neox", **WIDE))
    assert kept_names(architecture, (0,), ["embed_out.weight"]) == {"embed_out.weight": "lm_head.weight"}


def test_kept_names_leave_experts_to_transformers():
    """Tensors that are joined on load keep their published names, with the layer's new number."""
    architecture = inspect_architecture(AutoConfig.for_model("mixtral", **CASES["mixtral"][0]))
    name = "model.layers.{}.block_sparse_moe.experts.3.w1.weight"
    assert kept_names(architecture, (1, 3), map(name.format, range(4))) == {
        name.format(1): name.format(0),
        name.format(3): name.format(1),
    }


def test_a_missing_expert_is_refused(build, tmp_path):
    """One expert too few is said, not loaded as a smaller layer or filled up with random numbers."""
    reference = build(AutoConfig.for_model("mixtral", **CASES["mixtral"][0]))
    reference.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    del saved["model.layers.3.block_sparse_moe.experts.2.w1.weight"]
    save_file(saved, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=MISSING_EXPERT):
        InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=[0, 3])
    assert InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=[0, 2]).num_parameters()


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("gpt_neo", CASES["gpt_neo"][0], {"attention_types": [[["global", "local", "global"], 1]]}),
        ("qwen2", CASES["qwen2"][1], {"max_window_layers": 2, "layer_types": ["full_attention"] * 2 + SLIDING[:1]}),
        ("qwen2", CASES["qwen2"][0], {"max_window_layers": 28}),
        ("smollm3", CASES["smollm3"][1], {"no_rope_layers": [1, 0, 0]}),
        ("qwen3_moe", {**HEADS, "mlp_only_layers": [1, 2, 5]}, {"mlp_only_layers": [1, 2]}),
        ("qwen2_moe", CASES["qwen2_moe"][0], {"mlp_only_layers": [0, 1], "decoder_sparse_step": 1}),
        ("deepseek_v3", CASES["deepseek_v3"][0], {"first_k_dense_replace": 2}),
        ("lfm2_moe", CASES["lfm2_moe"][0], {"num_dense_layers": 2, "layer_types": ["conv", "full_attention", "conv"]}),
        ("llama4_text", CASES["llama4_text"][0], {"moe_layers": [1, 2], "no_rope_layers": [1, 1, 0]}),
        ("hunyuan_v1_moe", CASES["hunyuan_v1_moe"][0], {"moe_topk": [2, 2, 1], "num_shared_expert": [1] * 3}),
        ("mimo_v2_flash", CASES["mimo_v2_flash"][0], {"hybrid_layer_pattern": [1, 0, 0], "moe_layer_freq": [0, 0, 1]}),
        ("kimi_linear", CASES["kimi_linear"][0], {"layer_types": HYBRID["layer_types"][:3]}),
        ("nemotron_h", CASES["nemotron_h"][0], {"hybrid_override_pattern": "M*E", "num_nextn_predict_layers": 0}),
        ("jamba", CASES["jamba"][0], {"attn_layer_offset": 1, "expert_layer_period": 3, "expert_layer_offset": 2}),
        ("bamba", CASES["bamba"][0], {"attn_layer_indices": [1]}),
        ("qwen3_next", {**CASES["qwen3_next"][0], "decoder_sparse_step": 2}, {"mlp_only_layers": [0, 1]}),
        ("qwen3_5_text", CASES["qwen3_5_text"][0], {"full_attention_interval": 3, "mtp_num_hidden_layers": 0}),
        ("laguna", CASES["laguna"][0], {"num_attention_heads_per_layer": [2, 2, 2]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fields_that_speak_of_layers_follow_them(kind, values, expected):
    """Per-layer lists, layer positions and thresholds of the student's config belong to its kept layers."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this Transformers has no {kind}")
    config = AutoConfig.for_model(kind, **values)
    before = config.to_dict()
    choices = {
        "gpt_neo": (0, 1, 4),
        "smollm3": (0, 1, 4),
        "qwen2": (0, 2, 5),
        "qwen2_moe": (0, 2, 3),
        "jamba": (0, 4, 5),
    }
    layers = choices.get(kind, (0, 1, 5))
    sliced = sliced_config(config, layers)
    assert {name: getattr(sliced, name) for name in expected} == expected
    if kind == "kimi_linear":  # counts from 1
        lists = {name: sliced.linear_attn_config[name] for name in ("full_attn_layers", "kda_layers")}
        assert lists == {"full_attn_layers": [2], "kda_layers": [1, 3]}
    assert sliced.num_hidden_layers == 3
    assert type(config).from_dict(sliced.to_dict()).to_dict() == sliced.to_dict()
    assert config.to_dict() == before


@pytest.mark.parametrize("extra", [{}, {"reorder_and_upcast_attn": True}], ids=["plain", "reordered"])
def test_moved_blocks_of_a_position_scaled_gpt2_keep_their_scale(
    extra, build, skipping, tokens, needs_only_transformers
):
    """A block that divided attention by 4 at position 3 divides it by 4 at position 1: in its weights, and recorded."""
    values = {**CASES["gpt2"][0], **extra, "scale_attn_by_inverse_layer_idx": True}
    reference = build(transformers.GPT2Config(**values))
    student = InheritedModelForCausalLM.from_pretrained(reference, keep_layers=[0, 3, 5])
    with torch.no_grad():
        logits = student(tokens, use_cache=False).logits
    torch.testing.assert_close(logits, skipping(reference, tokens, (0, 3, 5)), rtol=1e-5, atol=1e-5)
    assert student.config.inheritune["query_scales"] == [1.0, 2 / 4, 3 / 6]
    # Powers of two change no digit: here the student is exact.
    assert torch.equal(logits, skipping(reference, tokens, (0, 3, 5)))
    needs_only_transformers(student, tokens, logits)
    odd = InheritedModelForCausalLM.from_pretrained(reference, keep_layers=[1, 4])
    with torch.no_grad():
        torch.testing.assert_close(odd(tokens).logits, skipping(reference, tokens, (1, 4)), rtol=1e-5, atol=1e-5)


def test_moved_blocks_take_the_scale_of_their_new_position_if_asked(build, skipping, tokens, needs_only_transformers):
    """With `attention_scale="position"` the weights are the reference's, and a block divides by where it is now."""
    reference = build(transformers.GPT2Config(**CASES["gpt2"][0], scale_attn_by_inverse_layer_idx=True))
    recipe = InherituneConfig(keep_layers=[0, 3, 5], attention_scale="position")
    student = from_pretrained_inherited(reference, recipe)
    for block, layer in zip(student.transformer.h, (0, 3, 5), strict=True):
        theirs = reference.transformer.h[layer].state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in block.state_dict().items())
    assert student.config.inheritune["query_scales"] == []
    with torch.no_grad():
        logits = student(tokens, use_cache=False).logits
    assert not torch.allclose(logits, skipping(reference, tokens, (0, 3, 5)), atol=1e-4)
    for block, layer in zip(student.transformer.h, (0, 3, 5), strict=True):
        reference.transformer.h[layer].attn.scaling = block.attn.scaling
    assert torch.equal(logits, skipping(reference, tokens, (0, 3, 5)))
    needs_only_transformers(student, tokens, logits)


def test_random_attention_is_not_rescaled(build):
    """Queries that do not come along begin as the architecture initialises them, and no scale is recorded."""
    reference = build(transformers.GPT2Config(**CASES["gpt2"][0], scale_attn_by_inverse_layer_idx=True))
    recipe = InherituneConfig(keep_layers=[0, 3], inherit="mlp,norms")
    assert from_pretrained_inherited(reference, recipe).config.inheritune["query_scales"] == []


def test_position_scaled_gpt2_keeps_its_first_layers_exactly(build, skipping, tokens):
    """The first layers of a GPT-2 with attention scaled by position compute what they computed."""
    reference = build(transformers.GPT2Config(**CASES["gpt2"][0], scale_attn_by_inverse_layer_idx=True))
    student = InheritedModelForCausalLM.from_pretrained(reference, keep_layers=3)
    with torch.no_grad():
        assert torch.equal(student(tokens).logits, skipping(reference, tokens, (0, 1, 2)))


@pytest.mark.skipif(
    not hasattr(transformers.LlamaConfig, "is_heterogeneous"), reason="Transformers without such configs"
)
def test_what_a_config_says_of_single_layers_follows_them(tmp_path):
    """Gemma 4's layers of full attention have wider heads, at their new positions; a Llama cannot have such layers."""
    config = AutoConfig.for_model("gemma4_text", **CASES["gemma4_text"][0])
    saved = sliced_config(config, (1, 2, 3, 5)).to_dict()["per_layer_config"]
    assert {int(layer): fields["head_dim"] for layer, fields in saved.items()} == {1: 16, 3: 16}
    again = type(config).from_dict(sliced_config(config, (1, 2, 3, 5)).to_dict())
    assert again.to_dict()["per_layer_config"] == saved
    config = AutoConfig.for_model("llama", **GROUPED)
    config.per_layer_config = {1: {"intermediate_size": 48}}
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"No model can be made of this config .* 'intermediate_size' is a per-layer"):
        plan_inheritance(tmp_path, 1)


@pytest.mark.parametrize(
    "config",
    [transformers.BertConfig(num_hidden_layers=2), transformers.T5Config(), transformers.ViTConfig()],
    ids=["bert", "t5", "vit"],
)
def test_other_models_are_refused(config, tmp_path):
    """Encoders, encoder-decoders and models without language are refused before anything else is read."""
    config.save_pretrained(tmp_path)
    why = " and is_encoder_decoder=True" if config.model_type == "t5" else ""
    message = rf"is not a causal language model: its config has model_type '{config.model_type}'{why}\. Give a model of"
    with pytest.raises(ValueError, match=message):
        InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "kimi_k2", "auto_map": {"AutoModelForCausalLM": "modeling.Kimi"}},
            r"needs remote code \(model_type 'kimi_k2', with an auto_map\), which is not run here",
        ),
        (
            {"model_type": "paligemma", "text_config": {"model_type": "gemma2"}},
            r"the text model inside it, of type 'gemma2' \(text_config\), can be cut: .*give its language_model",
        ),
        (
            {"model_type": "qwen2_5_omni", "thinker_config": {"text_config": {"model_type": "qwen2"}}},
            r"the text model inside it, of type 'qwen2' \(thinker_config\.text_config\), can be cut",
        ),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            r"is not a causal language model but a LlamaForSequenceClassification: its head does not predict tokens\.",
        ),
        (
            {"model_type": "llama9", "architectures": ["Llama9ForCausalLM"]},
            r"has model_type 'llama9', which this version of Transformers \(.*\) does not know: upgrade it if",
        ),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForProcessRewardModel"]}, "but a Qwen2ForProcessRewardModel"),
    ],
)
def test_a_refusal_says_what_can_be_given_instead(values, message, tmp_path):
    """Models with code of their own, wrappers of a text model, and other heads are each refused for what they are."""
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        plan_inheritance(tmp_path, 1)


def test_unproven_architectures_are_refused_with_the_list(tmp_path):
    """A causal language model whose architecture is not proven here is refused, and the supported ones are named."""
    transformers.RwkvConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type 'rwkv', whose layers .* Supported are: afmoe, .*qwen3"):
        plan_inheritance(tmp_path, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "gemma3n_text", "num_kv_shared_layers": 15},
            "num_kv_shared_layers=15, and its last layers reuse",
        ),
        (
            {"model_type": "gemma3n", "text_config": {"num_kv_shared_layers": 10}},
            r"text_config\.num_kv_shared_layers=10, and its last layers reuse",
        ),
        (
            {"model_type": "gemma4", "text_config": {"hidden_size_per_layer_input": 256}},
            r"text_config\.hidden_size_per_layer_input=256, and tens",
        ),
        (
            {"model_type": "gemma4_text", "hidden_size_per_layer_input": 256},
            "hidden_size_per_layer_input=256, and tens",
        ),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention=True, and its blocks read an enc"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_what_cannot_be_cut_is_refused_by_field_and_reason(values, message, tmp_path):
    """From config.json alone, with no weights there: the field that stands in the way, its value and why it does."""
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"cannot be cut: its config has {message}"):
        InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=1)


def test_kinds_of_layers_that_are_not_proven_are_refused(tmp_path):
    """A model whose `layer_types` names layers of a new kind is refused with the kind and those that are proven."""
    values = {"model_type": "qwen3_next", "layer_types": ["folded_attention", "full_attention"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    message = (
        r"its config has layer_types with 'folded_attention', .* of these kinds: attention, chunked_attention, conv"
    )
    with pytest.raises(ValueError, match=message):
        InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=1)


WINDOWED = ["sliding_attention"] * 5 + ["full_attention"]
GLOBALS = ["sliding_attention"] * 3 + ["full_attention"]
TWELVE = {"num_hidden_layers": 12, "sliding_window": 4}


@pytest.mark.parametrize(
    ("kind", "values", "layers", "expected"),
    [
        ("gemma3_text", {"sliding_window_pattern": 6}, (0, 1, 5, 6, 11), None),
        ("gemma3_text", {"sliding_window_pattern": 6}, (0, 5, 6, 11), 2),
        ("gemma3_text", {"sliding_window_pattern": 6}, (1, 2, 3), 6),
        ("gemma3_text", {"sliding_window_pattern": 6}, tuple(range(7)), 6),
        ("exaone4", {"sliding_window_pattern": "LLLG", "layer_types": GLOBALS * 3}, (0, 3, 7), "LGG"),
        ("exaone4", {"sliding_window_pattern": "LLLG", "layer_types": GLOBALS * 3}, tuple(range(5)), "LLLG"),
        ("cohere2", {"layer_switch": 6, "layer_types": WINDOWED * 2}, (0, 5, 6, 11), 2),
        (
            "olmo3",
            {"global_every_n_layers": 3, "layer_types": ["full_attention", *SLIDING[:1] * 2] * 4},
            (0, 1, 3, 4),
            2,
        ),
        ("smollm3", {"no_rope_layer_interval": 4}, (0, 3, 4, 7), 2),
        ("smollm3", {"no_rope_layer_interval": 4}, (0, 3, 7), None),
        ("gemma2", {"rope_interval": 5, "layer_types": SLIDING * 2}, (0, 3), 5),
    ],
)
def test_periods_follow_the_lists_that_they_speak_of(kind, values, layers, expected):
    """What says by a period what a list says for each layer holds for the student, or is left out."""
    config = AutoConfig.for_model(kind, **{**GROUPED, **TWELVE, "head_dim": 8, **values})
    sliced = sliced_config(config, layers)
    name = next(iter(values))
    assert vars(sliced).get(name) == vars(sliced).get(f"_{name}", expected) == expected
    lists = ("layer_types", "no_rope_layers")
    again = type(config).from_dict(sliced.to_dict())
    assert all(getattr(again, item, None) == getattr(sliced, item, None) for item in lists)


@pytest.mark.parametrize(
    "values", [{"num_nextn_predict_layers": 1}, {"mtp_num_hidden_layers": 2}, {"use_mtp": True, "num_mtp_modules": 3}]
)
def test_layers_beside_the_decoder_are_left_out(values, build, tokens, tmp_path):
    """Layers that predict later tokens are no obstacle and no part of a student, which says that it has none."""
    config = AutoConfig.for_model("glm4_moe", **{**CASES["glm4_moe"][0], "num_nextn_predict_layers": 0, **values})
    build(config).save_pretrained(tmp_path)
    tensors = PUBLISHED["glm4_moe"](load_file(tmp_path / "model.safetensors"))
    tensors |= {"mtp.layers.0.norm.weight": torch.ones(16), "model.mtp_layers.1.norm.weight": torch.ones(16)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    student = InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=[0, 1, 4], strict=True)
    assert {name: getattr(student.config, name) for name in values} == dict.fromkeys(values, 0)
    plan = plan_inheritance(tmp_path, [0, 1, 4])
    assert plan.unknown_tensors == ()
    assert set(values) <= set(plan.changed_fields)
    assert plan.bytes_to_read == sum(tensor.nbytes for tensor in student.state_dict().values())
    count = max(values.values())
    assert plan.prediction_layers == student.config.inheritune["prediction_layers"] == count
    assert any(f"multi-token prediction (the config has {count}) are left out" in note for note in plan.notes)
    assert student.generate(tokens[:, :6], **GREEDY).shape == (2, 10)  # as a config asks for by `use_mtp`, it could not


def test_convolutions_alone_are_refused():
    """A student that keeps no attention layer cannot generate: it is refused with the layers that would help."""
    config = AutoConfig.for_model("lfm2", **CASES["lfm2"][0])
    with pytest.raises(ValueError, match=r"keep_layers='0,2' keeps no layer with softmax .*: keep one of \[1, 4\] too"):
        sliced_config(config, (0, 2))


@pytest.mark.parametrize(
    ("kind", "changes", "layers", "message"),
    [
        ("qwen3_next", {}, (0, 2), r"'0,2' keeps no layer with softmax attention, .*: keep one of \[1, 4\] too\."),
        ("nemotron_h", {}, (0, 3), r"'0,3' keeps no layer with softmax attention, .*: keep one of \[1, 4\] too\."),
        ("gemma4_text", {}, (0, 2, 3), r"ends with a layer of sliding_attention, .* end with one of \[2, 4, 5\]\."),
        ("modernbert-decoder", {}, (1, 4), r"'1,4' begins with layer 1, .* no norm before .*: keep layer 0 too\."),
        ("olmo_hybrid", {}, (1, 4), r"'1,4' leaves a model that Transformers refuses: .* one 'linear_attention' layer"),
        (
            "glm_moe_dsa",
            {},
            (1, 2),
            r"'1:3' keeps layer 1, which attends to what layer 0 selects .*: keep layer 0 too",
        ),
        ("jamba", {}, (1, 4, 5), r"'1,4:6' cannot be cut: the config has attn_layer_period=3, which says by a period"),
        (
            "ernie4_5_moe",
            {"moe_layer_interval": 2, "moe_layer_start_index": 0},
            (1, 2, 3, 5),
            r"the config has moe_layer_interval=2, which says by a period what each layer is",
        ),
    ],
)
def test_choices_that_leave_no_model_of_the_family_are_refused(kind, changes, layers, message):
    """Layers that no config of the family can describe, or of which one must be kept, are refused with a way out."""
    config = AutoConfig.for_model(kind, **{**CASES[kind][0], **changes})
    with pytest.raises(ValueError, match=message):
        sliced_config(config, layers)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((0, 1, 2), (1, 1, 2)),
        ((0, 2, 4), (3, 2, 2)),
        ((1, 3, 5), (0, 2, 1)),
        ((0, 3, 4, 5), (1, 3, 2)),
        ((5,), (0, 0, 1)),
    ],
)
def test_where_experts_begin_and_end_follows(layers, expected):
    """ERNIE 4.5 says by first, last and step which layers have experts: here layers 1, 3 and 5."""
    config = AutoConfig.for_model(
        "ernie4_5_moe", **{**CASES["ernie4_5_moe"][0], "moe_layer_interval": 2, "moe_layer_start_index": 0}
    )
    sliced = sliced_config(config, layers)
    first, last, step = sliced.moe_layer_start_index, sliced.moe_layer_end_index, sliced.moe_layer_interval
    assert (first, last, step) == expected
    again = inspect_architecture(type(config).from_dict(sliced.to_dict()))
    assert again.sparse_blocks == {place for place, layer in enumerate(layers) if layer % 2}


@pytest.mark.parametrize(
    ("kind", "layers", "expected"),
    [
        ("deepseek_v3", (2, 3), ("dense",)),
        ("deepseek_v3", (0, 1), ("sparse",)),
        ("deepseek_v3", (1, 2), ()),
        ("nemotron_h", (0, 1), ("mlp", "moe", "sparse")),
        ("gpt_oss", (0, 2), ("full_attention",)),
        ("qwen3_next", (1, 4), ("linear_attention",)),
    ],
)
def test_kinds_of_which_no_layer_is_kept(kind, layers, expected):
    """Kinds that the lists name, and layers with and without experts however the config says which they are."""
    assert architectures.dropped_kinds(AutoConfig.for_model(kind, **CASES[kind][0]), layers) == expected


@pytest.mark.parametrize("depth", range(1, 6))
def test_minicpm3_scales_residuals_as_before(depth):
    """What residual branches are multiplied by does not depend on how many layers are kept, to the last bit."""
    config = AutoConfig.for_model("minicpm3", **CASES["minicpm3"][0])
    sliced = sliced_config(config, range(depth))
    assert sliced.scale_depth / math.sqrt(depth) == config.scale_depth / math.sqrt(6)


PARTS_OF = {
    "gpt2": {
        "wte": "embeddings",
        "wpe": "positions",
        "c_attn": "attention",
        "c_fc": "mlp",
        "ln_1": "norms",
        "ln_f": "final_norm",
        "lm_head": "lm_head",
    },
    "bloom": {"word_embeddings_layernorm": "embeddings", "query_key_value": "attention", "dense_h_to_4h": "mlp"},
    "opt": {
        "embed_positions": "positions",
        "self_attn_layer_norm": "norms",
        "fc1": "mlp",
        "out_proj": "attention",
        "decoder.final_layer_norm": "final_norm",
    },
    "gpt_neox": {"post_attention_layernorm": "norms", "final_layer_norm": "final_norm", "dense_4h_to_h": "mlp"},
    "qwen3_moe": {"q_norm": "attention", "experts": "mlp", "model.norm": "final_norm", "embed_tokens": "embeddings"},
    "lfm2": {"in_proj": "attention", "feed_forward": "mlp", "operator_norm": "norms", "embedding_norm": "final_norm"},
    "falcon_h1": {"mamba": "attention", "self_attn": "attention", "feed_forward": "mlp"},
    "mamba2": {"mixer": "attention", "norm_f": "final_norm"},
    "modernbert-decoder": {
        "lm_head.dense": "lm_head",
        "lm_head.norm": "final_norm",
        "decoder": "lm_head",
        "final_norm": "final_norm",
    },
    "nemotron_h": {"layers.0.mixer": "attention", "layers.1.mixer": "attention", "layers.2.mixer": "mlp"},
    "qwen3_next": {"linear_attn": "attention", "self_attn": "attention", "experts": "mlp"},
    "mpt": {"Wqkv": "attention", "norm_1": "norms", "norm_f": "final_norm", "ffn": "mlp"},
}


@pytest.mark.parametrize("kind", PARTS_OF)
def test_parts_are_told_by_role(kind):
    """Embeddings, positions, attention, MLP, norms and head are told apart by what modules are, in every family."""
    parts = inspect_architecture(AutoConfig.for_model(kind, **CASES[kind][0])).parts
    for words, part in PARTS_OF[kind].items():
        found = {parts[name] for name in parts if words in name}
        assert found == {part}, words


@pytest.mark.parametrize("kind", CASES)
def test_every_tensor_has_a_part(kind):
    """Every family has embeddings, what mixes tokens, a head and, but for Mamba, an MLP; nothing is without a part."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this Transformers has no {kind}")
    architecture = inspect_architecture(AutoConfig.for_model(kind, **CASES[kind][0]))
    assert set(architecture.parts) == set(architecture.parameters)
    needed = {"embeddings", "attention", "lm_head", *(() if "mamba" in kind else ("mlp",))}
    assert needed <= set(architecture.parts.values())
    assert architecture.prefix_sizes[-1] == architecture.parameter_count


PAGE = Path(inheritune_hf.__file__).parents[1] / "docs" / "reference" / "architectures.md"


def rows(heading):
    """First cells of the table under a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [line.split("|")[1].strip().strip("`") for line in lines]


def test_every_supported_type_is_on_the_page():
    """The page lists exactly the supported model types, in order."""
    assert rows("Supported") == list(SUPPORTED_MODEL_TYPES)


def facts_of(kind):
    """What the page says of a type: kinds of layers, fields that follow them, which cuts it allows, what has ranks."""
    kinds, fields = set(), set()
    for values in CASES[kind]:
        config = AutoConfig.for_model(kind, **values)
        depth, sparse = config.num_hidden_layers, inspect_architecture(config).sparse_blocks
        kinds.update(getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ["attention"])
        kinds.update(("dense", "experts") if 0 < len(sparse) < depth else ("experts",) if sparse else ())
        if 0 in (getattr(config, "no_rope_layers", None) or ()):
            kinds.add("without rotation")
        old, new = config.to_dict(), sliced_config(config, (0, 4, 5)).to_dict()
        counts = {"num_hidden_layers", config.attribute_map.get("num_hidden_layers")}
        fields.update(name for name in old if old[name] != new.get(name) and name not in counts)
    without = kinds & {"conv", "linear_attention", "mlp", "moe"}
    attends = {item for item in kinds - without if "attention" in item or item in ("hybrid", "global", "local")}
    cuts = {
        "ernie4_5_moe": "said by a period",
        "gemma4_text": "ends with full attention",
        "gemma4_unified_text": "ends with full attention",
        "glm_moe_dsa": "with selectors",
        "jamba": "with softmax attention, said by a period",
        "olmo_hybrid": "of both kinds",
    }
    hybrid = "with softmax attention" if without and attends else "any"
    ranks = "layers with softmax attention" if without else "all layers"
    shown = (", ".join(f"`{name}`" for name in sorted(fields)) or "none", cuts.get(kind, hybrid))
    return ", ".join(sorted(kinds)), *shown, ranks if attends else "none has ranks"


@pytest.mark.parametrize(
    "kind", [*PROMISED, "gemma4_text", "jamba", "kimi_linear", "mamba", "nemotron_h", "qwen3_next"]
)
def test_the_page_says_what_is_done_with_a_type(kind):
    """Kinds of layers, fields that follow, cuts and analysis are what the configs of the tests give."""
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{kind}` |"))
    assert tuple(cell.strip() for cell in row.strip("|").split("|")[2:]) == facts_of(kind)


def test_every_field_that_depends_on_depth_is_on_the_page():
    """The page lists every config field that follows the layers, and every one that stands in the way."""
    fields = {
        *architectures._PER_LAYER_LISTS,
        *architectures._INDEX_LISTS,
        *architectures._THRESHOLDS,
        "attention_types",
        "linear_attn_config",
        "max_window_layers",
        "moe_layer_start_index",
        "attn_layer_period",
        "per_layer_config",
        "scale_depth",
        "decoder_sparse_step",
        "scale_attn_by_inverse_layer_idx",
    }
    assert set(rows("Config fields that follow the layers")) == fields
    assert set(rows("What is refused")) == set(architectures._UNCUTTABLE)


PAIRS = [
    pytest.param(kind, values, id=f"{kind}-{n}", marks=[] if kind in PROMISED else pytest.mark.slow)
    for kind, cases in CASES.items()
    for n, values in enumerate(cases)
]


# Releases of Transformers before 5.23 script a function of GPTBigCode (modeling_gpt_bigcode.py, upcast_softmax).
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("kind", "values"), PAIRS)
@pytest.mark.parametrize("method", ["chunked", "linear"])
def test_loss_and_gradients_from_hidden_states(method, kind, values, build, tokens):
    """From last hidden states the loss and every gradient are the model's own, with large logits, a mean and a sum."""
    model = build(CONFIG_MAPPING[kind](**values))
    with torch.no_grad():
        head = model.get_output_embeddings()
        head.weight.mul_(30 / head.weight.norm(dim=1).mean())
    assert computes_from_hidden(model)
    why_not = choose_loss(method, head.out_features, "cpu", model.dtype, logit_shaping(model.config)[1])[1]
    if why_not != "as set":
        pytest.skip(why_not)  # capped logits, or a torch without the operator
    labels = tokens.clone()
    labels[0, :5] = -100

    def compute(head, hidden, targets, items):
        total = summed_loss(head, hidden.flatten(0, 1), targets.flatten(), method)
        return total / ((targets != -100).sum() if items is None else items)

    def run(**kwargs):
        model.zero_grad()
        loss = model(input_ids=tokens, labels=labels, use_cache=False, **kwargs).loss
        loss.backward()
        return loss, {name: item.grad for name, item in model.named_parameters() if item.grad is not None}

    for kwargs in ({}, {"num_items_in_batch": torch.tensor(7)}):
        plain, expected = run(**kwargs)
        with loss_of_hidden(model, compute):
            loss, found = run(**kwargs)
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
        assert found.keys() == expected.keys()
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        for name, gradient in expected.items():
            # As a whole: rounding of large numbers is all of a small one. Some are zero but for rounding, such as that
            # of a bias of keys.
            distance, length = float((found[name] - gradient).norm()), float(gradient.norm())
            assert distance <= 1e-4 * length + 1e-6 * largest, name
