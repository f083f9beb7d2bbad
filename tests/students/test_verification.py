"""A saved student is checked against its reference."""

import json

import pytest
import torch
from families import CASES
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GPT2Config

from inheritune_hf import InheritedModelForCausalLM, InherituneConfig, from_pretrained_inherited
from inheritune_hf.students import verify_student


@pytest.fixture
def student(published, tmp_path):
    folder = tmp_path / "student"
    from_pretrained_inherited(published, InherituneConfig(keep_layers=[0, 3])).save_pretrained(folder)
    return folder


def outcome(found):
    return {check.name: check.passed for check in found.checks}


def test_an_untrained_student_is_its_reference(student, published):
    """Lineage, shapes and every tensor are right, and it loads and generates the same with and without cache."""
    found = verify_student(student)
    assert found.passed
    assert not found.trained
    assert [check.name for check in found.checks] == ["lineage", "shapes", "identity", "reload", "generate"]
    assert all(check.passed for check in found.checks)
    assert found.checks[0].detail == f"layers 0,3 of 12 of {published}"
    assert found.checks[2].detail.endswith("tensors are the reference's, bit for bit")


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_neo", "llama", "qwen3_next", "gemma4_text"])
def test_students_of_other_families_are_verified(kind, build, tmp_path):
    """Also where files hold one tensor per expert, and against a loaded reference."""
    reference = build(AutoConfig.for_model(kind, **CASES[kind][0]))
    reference.save_pretrained(tmp_path / "reference")
    student = InheritedModelForCausalLM.from_pretrained(tmp_path / "reference", keep_layers="last:2")
    student.save_pretrained(tmp_path / "student")
    for given in (None, reference):
        found = verify_student(tmp_path / "student", given)
        assert found.passed
        assert all(check.passed for check in found.checks)


@pytest.mark.parametrize("layout", ["per expert", "joined"])
@pytest.mark.parametrize(("kind", "name"), [("mixtral", "w2"), ("qwen3_moe", "up_proj")])
def test_one_changed_expert_is_found(kind, name, layout, build, tmp_path):
    """A single other number in an expert fails against files with one tensor per expert, and against joined ones."""
    reference = build(AutoConfig.for_model(kind, **CASES[kind][0]))
    reference.save_pretrained(tmp_path / "reference")
    student = InheritedModelForCausalLM.from_pretrained(tmp_path / "reference", keep_layers=[0, 2])
    student.save_pretrained(tmp_path / "student")
    if layout == "joined":
        reference.save_pretrained(tmp_path / "reference", save_original_format=False)
        assert any("gate_up_proj" in name for name in load_file(tmp_path / "reference" / "model.safetensors"))
    assert outcome(verify_student(tmp_path / "student"))["identity"]
    tensors = load_file(tmp_path / "student" / "model.safetensors")
    (changed,) = [item for item in tensors if ".1." in item and f".experts.3.{name}." in item]
    tensors[changed][3, 2] += 1e-6
    save_file(tensors, tmp_path / "student" / "model.safetensors", metadata={"format": "pt"})
    for given in (None, reference):
        found = verify_student(tmp_path / "student", given)
        assert outcome(found)["identity"] is False
        assert "1 of " in found.checks[2].detail


@pytest.mark.parametrize("inherit", ["paper", "released-code", "attention"])
def test_random_parts_are_not_compared(inherit, published, tmp_path):
    """Only what came along must be the reference's."""
    recipe = InherituneConfig(keep_layers=3, inherit=inherit)
    from_pretrained_inherited(published, recipe).save_pretrained(tmp_path / "student")
    assert verify_student(tmp_path / "student").passed


def test_rescaled_queries_and_other_types_are_recognised(build, tmp_path):
    """Moved blocks of a position-scaled GPT-2, and a student saved in bfloat16, are still the reference's."""
    reference = build(GPT2Config(**CASES["gpt2"][0], scale_attn_by_inverse_layer_idx=True))
    reference.save_pretrained(tmp_path / "reference")
    for layers, dtype in (([0, 3], torch.float32), ([1, 4, 5], torch.float32), (2, torch.bfloat16)):
        student = InheritedModelForCausalLM.from_pretrained(tmp_path / "reference", keep_layers=layers, dtype=dtype)
        student.save_pretrained(tmp_path / "student")
        assert outcome(verify_student(tmp_path / "student"))["identity"], layers


def test_students_that_took_the_scale_of_their_position_are_recognised(build, tmp_path):
    """Their weights are the reference's, bit for bit."""
    reference = build(GPT2Config(**CASES["gpt2"][0], scale_attn_by_inverse_layer_idx=True))
    recipe = InherituneConfig(keep_layers=[1, 4], attention_scale="position")
    from_pretrained_inherited(reference, recipe).save_pretrained(tmp_path)
    assert verify_student(tmp_path, reference).passed


def test_one_changed_number_is_found(student):
    """A single other number in a single tensor fails, and is named."""
    tensors = load_file(student / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 2] += 1e-6
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})
    found = verify_student(student)
    assert not found.passed
    assert outcome(found)["identity"] is False
    assert "1 of 28 tensors differ, such as transformer.h.1.mlp.c_fc.weight" in found.checks[2].detail


def test_a_trained_student_is_not_compared(student):
    """A record with rounds says that the student was trained: its tensors are its own, its shapes are not."""
    (student / "inheritune_config.json").write_text(json.dumps({"rounds": [{}]}))
    tensors = load_file(student / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.weight"] += 1
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})
    found = verify_student(student)
    assert found.trained
    assert found.passed
    assert outcome(found)["identity"] is None


def edit_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def test_what_does_not_fit_is_found(student, published, build, tmp_path):
    """No lineage, layers that the reference has not, another shape, tensors that are missing: each is found."""
    lineage = json.loads((student / "config.json").read_text())["inheritune"]
    edit_config(student, inheritune={**lineage, "kept_layers": [0, 12]})
    assert outcome(verify_student(student))["lineage"] is False
    edit_config(student, inheritune=None)
    assert "has no lineage" in verify_student(student).checks[0].detail
    edit_config(student, inheritune={**lineage, "inherited": []})
    assert "no tensor of the student is one of the reference" in verify_student(student).checks[2].detail
    edit_config(student, inheritune=lineage)
    other = build(GPT2Config(**{**CASES["gpt2"][0], "num_hidden_layers": 12}))
    found = verify_student(student, build(GPT2Config(**{**other.config.to_dict(), "n_inner": 8})))
    assert "tensors differ from what the reference gives, such as transformer.h.0" in found.checks[1].detail


def test_a_student_that_lacks_tensors_is_found(student, logged):
    """Missing tensors fail the reload."""
    tensors = load_file(student / "model.safetensors")
    del tensors["transformer.ln_f.bias"]
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})
    found = verify_student(student)
    assert not found.passed
    assert "missing keys: transformer.ln_f.bias" in {check.name: check.detail for check in found.checks}["reload"]


def test_a_head_that_the_reference_has_not_is_found(student):
    """A head of its own beside the tied one would be loaded: it must be the reference's embedding."""
    tensors = load_file(student / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})
    assert verify_student(student).passed
    tensors["lm_head.weight"][3, 2] += 1e-6
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})
    found = verify_student(student)
    assert "1 of 29 tensors differ, such as lm_head.weight" in found.checks[2].detail


@pytest.mark.parametrize("reach", [True, False])
def test_an_incomplete_student_is_named(student, reach):
    """A file of the student of which only a part is there is named, whether or not the reference can be reached."""
    if not reach:
        lineage = json.loads((student / "config.json").read_text())["inheritune"]
        edit_config(student, inheritune={**lineage, "reference": "./gone"})
    file = student / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"model\.safetensors is not a complete safetensors file \(.*\)\. Download it"):
        verify_student(student)


def test_a_reference_out_of_reach_is_said(student, tmp_path):
    """If the reference is gone, what needs it is left out, and the rest is checked."""
    edit_config(
        student, inheritune={**json.loads((student / "config.json").read_text())["inheritune"], "reference": "./gone"}
    )
    found = verify_student(student)
    assert found.passed
    assert outcome(found) == {"lineage": None, "reload": True, "generate": True}
    assert "the reference cannot be reached: There is no model at './gone'" in found.checks[0].detail
    with pytest.raises(FileNotFoundError, match=r"There is no student at '.*': give a folder with config\.json\."):
        verify_student(tmp_path / "none")
