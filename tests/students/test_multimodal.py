"""The text model inside a multimodal model, as a reference."""

import json

import pytest
import torch
from families import DELTA, ENDS_FULL, EXPERTS, GROUPED, HEADS, HYBRID, LOCAL_EXPERTS, Published
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from inheritune_hf import InheritedModelForCausalLM
from inheritune_hf.analysis import measure_collapse
from inheritune_hf.publishing import save_inherited
from inheritune_hf.students import open_reference, plan_inheritance, verify_student
from inheritune_hf.students.architectures import MULTIMODAL_TYPES

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {
    "depth": 1,
    "embed_dim": 16,
    "hidden_size": 16,
    "out_hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 16,
    "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0],
}
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}

#: The text model's config inside each, and the vision model's where it needs another.
CASES = {
    "deepseek_vl": {"model_type": "llama", **GROUPED},
    "exaone4_5": {"model_type": "exaone4", **GROUPED},
    "fuyu": {"model_type": "persimmon", **GROUPED},
    "gemma3": {"model_type": "gemma3_text", **HEADS, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma4": {
        **HEADS,
        **ENDS_FULL,
        "hidden_size_per_layer_input": 0,
        "global_head_dim": 16,
        "num_kv_shared_layers": 0,
    },
    "gemma4_unified": {**HEADS, **ENDS_FULL, "global_head_dim": 16},
    "got_ocr2": {"model_type": "qwen2", **GROUPED},
    "hyperclovax_vision_v2": {"model_type": "hyperclovax", **GROUPED},
    "idefics2": {"model_type": "mistral", **GROUPED},
    "idefics3": {"model_type": "llama", **GROUPED},
    "internvl": {"model_type": "qwen2", **GROUPED},
    "janus": {"model_type": "llama", **GROUPED},
    "lfm2_vl": {"model_type": "lfm2", **GROUPED, "layer_types": ["conv", "full_attention"] * 3},
    "lighton_ocr": {"model_type": "qwen3", **HEADS},
    "llama4": {
        **HEADS,
        **LOCAL_EXPERTS,
        "intermediate_size_mlp": 32,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 3,
        "attention_chunk_size": 8,
    },
    "llava": {"model_type": "llama", **GROUPED},
    "llava_next": {"model_type": "mistral", **GROUPED},
    "llava_next_video": {"model_type": "llama", **GROUPED},
    "llava_onevision": {"model_type": "qwen2", **GROUPED},
    "mistral3": {"model_type": "ministral3", **HEADS},
    "ovis2": {"model_type": "qwen2", **GROUPED},
    "qwen2_5_vl": {**GROUPED, **ROTARY},
    "qwen2_audio": {"model_type": "qwen2", **GROUPED},
    "qwen2_vl": {**GROUPED, **ROTARY, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "qwen3_5": {**HEADS, **DELTA, **HYBRID, **ROTARY, "mtp_num_hidden_layers": 1},
    "qwen3_5_moe": {
        **HEADS,
        **EXPERTS,
        **DELTA,
        **HYBRID,
        **ROTARY,
        "mtp_num_hidden_layers": 1,
        "shared_expert_intermediate_size": 8,
    },
    "qwen3_vl": {**HEADS, **ROTARY},
    "smolvlm": {"model_type": "llama", **GROUPED},
    "video_llava": {"model_type": "llama", **GROUPED},
    "vipllava": {"model_type": "llama", **GROUPED},
    "voxtral": {"model_type": "llama", **GROUPED},
}
PREDICTION = {"mtp.fc.weight": (16, 32), "mtp.layers.0.input_layernorm.weight": (16,), "mtp.norm.weight": (16,)}

#: What files of published models hold besides, and names that are theirs.
PUBLISHED = {
    "gemma4": Published(names=("model.language_model.layers.5.layer_scalar",)),
    "llama4": Published(
        names=("language_model.model.layers.1.feed_forward.experts.gate_up_proj", "language_model.lm_head.weight")
    ),
    "qwen3_5": Published(extra=PREDICTION, names=("model.language_model.layers.0.linear_attn.A_log",)),
    "qwen3_5_moe": Published(extra=PREDICTION, names=("model.language_model.layers.0.mlp.experts.gate_up_proj",)),
}
OFTEN_USED = ("gemma3", "idefics3", "llava", "mistral3", "qwen2_vl", "qwen3_vl")


def published_name(name):
    """Return a tensor's name as wrappers around a language model were published before Transformers 5."""
    for now, before in (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")):
        if name.startswith(now):
            return before + name.removeprefix(now)
    return name.removeprefix("model.")


@pytest.fixture
def build():
    """Build a random multimodal model of a type, in evaluation mode."""

    def make(kind, **changes):
        torch.manual_seed(0)
        fields = CONFIG_MAPPING[kind]().to_dict()
        vision = QWEN_VISION if kind.startswith(("qwen", "hyperclovax")) else VISION
        audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
        parts = {"vision_config": vision, "audio_config": {**VISION, **audio}}
        known = {name: values for name, values in parts.items() if name in fields}
        config = AutoConfig.for_model(kind, text_config=CASES[kind], **known, **changes)
        model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
        model = (model_class or MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)])(config).eval()
        with torch.no_grad():
            saved = [buffer for name, buffer in model.named_buffers() if name in model.state_dict()]
            for tensor in (*model.parameters(), *filter(torch.is_floating_point, saved)):
                tensor.normal_(0, 0.2) if tensor.dim() > 1 else tensor.uniform_(0.5, 1.5)
        return model

    return make


def logits(model, tokens):
    """Return what a model says of text, of shape (batch, tokens, vocab)."""
    with torch.no_grad():
        return model(input_ids=tokens).logits


def test_every_type_is_tried():
    """What the package says it can cut is what is proven here."""
    assert tuple(sorted(CASES)) == MULTIMODAL_TYPES


@pytest.mark.parametrize(
    "kind", [kind if kind in OFTEN_USED else pytest.param(kind, marks=pytest.mark.slow) for kind in CASES]
)
def test_the_text_model_is_the_one_inside(kind, build, tokens, tmp_path):
    """From its files, whole, it says of text what the multimodal model says; a student is its layers, and verified."""
    whole = build(kind)
    # Qwen3.5 is published with all experts of a layer in one tensor, as models hold them.
    whole.save_pretrained(tmp_path / "reference", save_original_format=kind != "qwen3_5_moe")
    path = tmp_path / "reference" / "model.safetensors"
    save_file(PUBLISHED.get(kind, Published())(load_file(path)), path, metadata={"format": "pt"})
    opened = open_reference(tmp_path / "reference", text_model=True)
    tokens = tokens % 50
    alone = opened.load(dtype=torch.float32)
    assert torch.equal(logits(alone, tokens), logits(whole, tokens))
    assert "ForCausalLM" in type(alone).__name__
    measured = [measure_collapse(one, tokens, text_model=True, controls=False) for one in (whole, opened)]
    assert measured[0].blocks.loss == measured[1].blocks.loss
    in_memory = open_reference(whole, text_model=True).load()
    assert torch.equal(logits(in_memory, tokens), logits(whole, tokens))
    plan = save_inherited(opened, "1,2,5", tmp_path / "student")
    written = load_file(tmp_path / "student" / "model.safetensors").values()
    assert plan.bytes_to_read == sum(tensor.nbytes for tensor in written)
    assert plan.unknown_tensors == ()
    assert plan.notes[0] == f"The reference is the text model inside a multimodal model of type {kind}."
    found = verify_student(tmp_path / "student")
    assert found.passed, found
    assert {check.name for check in found.checks if check.passed} >= {"lineage", "shapes", "identity", "reload"}
    lineage = json.loads((tmp_path / "student" / "config.json").read_text())["inheritune"]
    assert (lineage["text_model"], lineage["gguf_file"]) == (True, None)


@pytest.mark.parametrize("tied", [True, False])
def test_files_as_they_were_published_are_read(tied, build, tokens, tmp_path):
    """Names from before Transformers 5, and a head of which only the files say whether it is one of its own."""
    whole = build("mistral3", tie_word_embeddings=tied)
    whole.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    renamed = {published_name(name): tensor for name, tensor in load_file(path).items()}
    assert ("language_model.lm_head.weight" in renamed) is not tied
    save_file(renamed, path, metadata={"format": "pt"})
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": True}))
    student = InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=6, text_model=True)
    assert student.config.tie_word_embeddings is tied
    assert torch.equal(logits(student, tokens), logits(whole, tokens))
    assert type(student).__name__ == "Ministral3ForCausalLM"


def test_a_text_model_is_asked_for(build, tmp_path):
    """`doctor` and `inherit` say how to cut a multimodal model, and that text_model is not for others."""
    build("qwen2_vl").save_pretrained(tmp_path)
    for refuse in (
        plan_inheritance,
        lambda folder, _: InheritedModelForCausalLM.from_pretrained(folder, keep_layers=2),
    ):
        with pytest.raises(
            ValueError, match=r"is a multimodal model \(model_type 'qwen2_vl'\): .* say text_model=True"
        ):
            refuse(tmp_path, 2)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **GROUPED))
    with pytest.raises(ValueError, match=r"text_model is for multimodal models of the types .* has model_type 'llama'"):
        open_reference(plain, text_model=True)
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"text_model is for multimodal .* has model_type 'llama': leave it out"):
        open_reference(tmp_path / "plain", text_model=True)


def test_a_text_model_that_cannot_be_cut_is_refused_by_its_field(tmp_path):
    """The small Gemma 4 models share keys and values between layers, and that is said, with `text_model` or without."""
    values = {"model_type": "gemma4", "text_config": {"model_type": "gemma4_text", "num_kv_shared_layers": 20}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for given in ({}, {"text_model": True}):
        with pytest.raises(ValueError, match=r"cannot be cut: its config has .*num_kv_shared_layers=20, and its last"):
            open_reference(tmp_path, **given)


def test_weights_that_do_not_fill_the_text_model_are_refused(build, tmp_path):
    """A multimodal model of which a shard went missing is not loaded with random weights in its place."""
    build("llava").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        RuntimeError, match=r"do not fill the model: no tensor of its shape for model\.layers\.1\.mlp\.up_"
    ):
        open_reference(tmp_path, text_model=True).load()
