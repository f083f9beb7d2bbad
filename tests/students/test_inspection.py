"""What can be known before anything is read: plans, files, what would be fetched."""

import json
import re

import pytest
import torch
from families import CASES, GROUPED, HEADS
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from inheritune_hf import InheritedGPT2, InheritedModelForCausalLM
from inheritune_hf.students import checkpoints, plan_inheritance

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def reads_nothing(monkeypatch):
    """Make reading any tensor an error."""

    def refuse(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(checkpoints, "_fill", refuse)
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
    assert all(file.exact and file.cached for file in plan.files)
    assert len(plan.files) == (3 if layout.endswith("sharded") else 1)
    assert plan.changed_fields == {"n_layer": (12, 2)}
    assert plan.block_list == "transformer.h"
    assert plan.tied
    assert sum(plan.layer_parameters) < plan.parameters_before
    assert plan.notes == ("Not first layers only: without a measure or a schedule the student cannot grow.",)


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
    assert plan.notes[1] == "544 parameters are not inherited and begin random."


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


def both(folder, keep=2):
    """What planning and building say of a reference: two errors, or a plan and a student."""
    said = []
    for call in (plan_inheritance, lambda where, layers: InheritedGPT2.from_pretrained(where, keep_layers=layers)):
        try:
            said.append(call(folder, keep))
        except (OSError, RuntimeError, ValueError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def drop_a_norm(tensors):
    del tensors["ln_f.bias"]


def widen(tensors):
    tensors["h.1.mlp.c_fc.bias"] = torch.zeros(3)


def wrap(tensors):
    for name in list(tensors):
        tensors[f"_orig_mod.{name}"] = tensors.pop(name)


def wrap_inside(tensors):
    for name in [item for item in tensors if item.startswith("h.1.")]:
        tensors[name.replace("h.1.", "h.1._checkpoint_wrapped_module.")] = tensors.pop(name)


def score(tensors):
    tensors["score.weight"] = torch.ones(1, 16)


def to_float8(tensors):
    for name in list(tensors):
        if name.endswith("c_fc.weight"):
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def add_scales(tensors):
    tensors["h.7.mlp.c_fc.weight_scale"] = torch.ones(())


@pytest.mark.parametrize("layout", ["safetensors", "safetensors-sharded", "bin"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_a_norm, r"RuntimeError: .* do not fill the student: no tensor for transformer\.ln_f\.bias\. Check"),
        (widen, r"RuntimeError: .*: another shape in transformer\.h\.1\.mlp\.c_fc\.bias\. Check"),
        (wrap, r"RuntimeError: .* Their names hold '_orig_mod\.', as a wrapper .* save the model inside"),
        (wrap_inside, r"RuntimeError: .* Their names hold '_checkpoint_wrapped_module\.', as a wrapper"),
        (score, r"ValueError: .* is not a causal language model: its files hold score\.weight in place of a head"),
        (to_float8, r"ValueError: .* is quantized \(transformer\.h\.0\.mlp\.c_fc\.weight is stored as float8_e4m3fn\)"),
        (
            add_scales,
            r"ValueError: .* is quantized \(its files hold h\.7\.mlp\.c_fc\.weight_scale, a scale\)",
        ),
    ],
)
def test_a_plan_refuses_what_building_refuses(edit, message, layout, publish):
    """Planning sees from headers what building would refuse, and says the same."""
    if edit is add_scales and layout == "safetensors-sharded":
        message = message.replace(r"h\.7", r"h\.\d")
    planned, built = both(publish(layout, edit))
    assert planned == built
    assert re.match(message, built, re.DOTALL), built


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json"])
def test_quantization_that_only_a_file_tells_of_is_refused(name, publish):
    """Tools write how they quantized into a file of its own."""
    folder = publish()
    (folder / name).write_text("{}")
    planned, built = both(folder)
    assert planned == built
    assert re.match(rf"ValueError: .* is quantized \({name} lies beside its weights\)", built)


@pytest.mark.parametrize(
    "name",
    [
        "weight_scale_inv",
        "dequant_scale",
        "weights_scaling_factor",
        "input_quantizer._amax",
        "weight_packed",
        "qweight",
        "weight.absmax",
    ],
)
def test_what_belongs_to_quantized_weights_is_recognised(name, publish):
    """Scales and packed weights are refused by whatever name libraries give them."""
    folder = publish(edit=lambda tensors: tensors.update({f"h.1.mlp.c_fc.{name}": torch.ones(2)}))
    with pytest.raises(
        ValueError, match=rf"is quantized \(its files hold h\.1\.mlp\.c_fc\.{re.escape(name)}, a scale\)"
    ):
        plan_inheritance(folder, 2)


def test_a_loaded_model_with_another_head_is_refused(build):
    """A classifier in memory is no reference, whatever its config says."""
    config = LlamaConfig(**GROUPED)
    with pytest.raises(ValueError, match=r"is not a causal language model but a LlamaForSequenceClassification"):
        plan_inheritance(LlamaForSequenceClassification(config), 2)


def test_the_text_model_of_a_wrapper_is_cut_as_its_page_says(tmp_path):
    """A text model inside a multimodal model is cut in memory, or saved with its head."""
    text = {**HEADS, "sliding_window": 4}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    whole = Gemma3ForConditionalGeneration(config)
    assert plan_inheritance(whole.model.language_model, 3).kept_layers == (0, 1, 2)
    saved = AutoModelForCausalLM.from_config(whole.config.text_config)
    saved.base_model.load_state_dict(whole.model.language_model.state_dict())
    saved.lm_head.load_state_dict(whole.lm_head.state_dict())
    saved.save_pretrained(tmp_path)
    student = InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=3)
    assert torch.equal(student.lm_head.weight, whole.lm_head.weight)


def test_a_missing_shard_is_missed_by_a_plan(publish):
    """A shard that holds a kept layer and is not there is an error of both; one of dropped layers is of neither."""
    folder = publish("safetensors-sharded")
    (folder / "model-7.safetensors").unlink()
    assert not isinstance(both(folder)[1], str)
    (folder / "model-1.safetensors").unlink()
    planned, built = both(folder)
    assert planned == built
    assert built.startswith("FileNotFoundError: model-1.safetensors is missing")


def test_unknown_tensors_of_kept_layers_are_named(publish, caplog):
    """What files hold for kept layers and the architecture does not know is named; `strict` refuses it."""

    def add_sinks(tensors):
        tensors["h.1.attn.sinks"] = torch.ones(2)
        tensors["h.9.attn.gates"] = torch.ones(2)
        tensors["ln_f.gate"] = torch.ones(2)
        tensors["v_head.summary.weight"] = torch.ones(1, 16)

    folder = publish(edit=add_sinks)
    planned, student = both(folder)
    assert planned.unknown_tensors == ("h.*.attn.sinks", "ln_f.gate")
    assert "has nothing of them: h.*.attn.sinks, ln_f.gate." in " ".join(planned.notes)
    assert student.config.inheritune["unknown_tensors"] == ["h.*.attn.sinks", "ln_f.gate"]
    assert "h.*.attn.sinks" in caplog.text
    with pytest.raises(
        ValueError, match=r"does not know, and the student has nothing of them: h\.\*\.attn\.sinks, ln_f\.gate\. G"
    ):
        InheritedGPT2.from_pretrained(folder, keep_layers=2, strict=True)
    assert both(publish())[1].config.inheritune["unknown_tensors"] == []


def test_kinds_of_layers_that_all_go_are_named(tmp_path):
    """A choice that drops every layer of a kind is noted; a choice that keeps one is not."""
    values = {**CASES["gpt_oss"][0], "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    AutoConfig.for_model("gpt_oss", **values).save_pretrained(tmp_path)
    plan = plan_inheritance(tmp_path, "every:2")
    assert plan.dropped_kinds == ("full_attention",)
    assert "No full_attention layer is kept: the reference has some." in plan.notes
    assert plan_inheritance(tmp_path, 2).dropped_kinds == ()
    AutoConfig.for_model("smollm3", **CASES["smollm3"][1]).save_pretrained(tmp_path)
    assert plan_inheritance(tmp_path, [0, 3, 5]).dropped_kinds == ("no_rope",)


def test_code_of_the_reference_is_not_named_by_a_student(publish):
    """A config with an auto_map of a type that Transformers knows gives a student that needs no code."""
    folder = publish()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoConfig": "configuration.Own"}}))
    assert not hasattr(InheritedGPT2.from_pretrained(folder, keep_layers=2).config, "auto_map")
