"""A student is an ordinary model that computes exactly what its reference's kept layers compute."""

import copy
import dataclasses
import json
import shutil
from functools import partial

import pytest
import torch
import transformers
from families import GROUPED
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model

import inheritune_hf
from inheritune_hf import InheritedGPT2, InheritedModelForCausalLM, InherituneConfig, from_pretrained_inherited
from inheritune_hf.records import Lineage, decode
from inheritune_hf.students import inherit, open_reference, plan_inheritance
from inheritune_hf.students.checkpoints import LazyTensor


def logits_of(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


@pytest.mark.parametrize("depth", [1, 5, 12])
@pytest.mark.parametrize("loaded", [False, True], ids=["path", "model"])
def test_first_layers_compute_what_they_computed(loaded, depth, published, reference, tokens, block_outputs):
    """After its last block the student's hidden states equal the reference's after the same block."""
    student = InheritedGPT2.from_pretrained(reference if loaded else published, keep_layers=depth)
    ours, theirs = block_outputs(student, tokens), block_outputs(reference, tokens)
    assert len(ours) == depth
    assert all(torch.equal(left, right) for left, right in zip(ours, theirs[:depth], strict=True))


@pytest.mark.parametrize("choice", ["last:3", "ends:2+2", "every:3", "0:2,7"])
def test_other_layers_compute_what_they_computed(choice, published, reference, tokens, skipping):
    """A student of any layers has the logits of the reference without the others."""
    student = from_pretrained_inherited(published, InherituneConfig(keep_layers=choice))
    kept = student.config.inheritune["kept_layers"]
    assert torch.equal(logits_of(student, tokens), skipping(reference, tokens, kept))


def test_a_student_is_a_plain_model(published, reference):
    """The student is a GPT2LMHeadModel in evaluation mode, in float32, with a tied head and half the layers."""
    student = from_pretrained_inherited(published)
    assert type(student) is GPT2LMHeadModel
    assert not student.training
    assert student.dtype is torch.float32
    assert student.config.num_hidden_layers == len(student.transformer.h) == 6
    assert student.lm_head.weight is student.transformer.wte.weight
    assert student.lm_head.weight.data_ptr() == student.transformer.wte.weight.data_ptr()
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert [block.attn.layer_idx for block in student.transformer.h] == list(range(6))


@pytest.mark.parametrize("from_student", [False, True])
def test_lineage_travels_in_the_config(from_student, published, tmp_path):
    """Reference, layers and versions are in the student's config.json and come back by AutoConfig."""
    if from_student:
        from_pretrained_inherited(published).save_pretrained(tmp_path / "first")
        published = tmp_path / "first"
    student = InheritedGPT2.from_pretrained(published, keep_layers=[0, 2])
    student.save_pretrained(tmp_path / "student")
    written = json.loads((tmp_path / "student" / "config.json").read_text())
    assert written["architectures"] == ["GPT2LMHeadModel"]
    lineage = decode(Lineage, AutoConfig.from_pretrained(tmp_path / "student").inheritune, "config")
    assert lineage == Lineage(
        reference=str(published),
        revision=None,
        reference_layers=6 if from_student else 12,
        kept_layers=(0, 2),
        versions={
            "inheritune_hf": inheritune_hf.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
    )
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_a_loaded_reference_is_copied_and_left_alone(reference, tokens):
    """A loaded reference shares no memory with its student, and neither it nor its config is changed."""
    before, config = copy.deepcopy(reference.state_dict()), reference.config.to_dict()
    student = InheritedGPT2.from_pretrained(reference, keep_layers=4)
    theirs = {parameter.data_ptr() for parameter in reference.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in student.parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    student.config.n_head = 1
    student.generation_config.max_length = 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in reference.state_dict().items())
    assert reference.config.to_dict() == config
    assert reference.generation_config.max_length != 3
    assert not hasattr(reference.config, "inheritune")
    assert student.config.inheritune["reference"] == "GPT2LMHeadModel"


def test_a_model_without_its_head_is_a_reference_if_the_head_is_tied(reference, tokens):
    """A bare GPT2Model gives a student, because its head is its embedding."""
    bare = GPT2Model(reference.config)
    bare.load_state_dict(reference.transformer.state_dict())
    student = InheritedGPT2.from_pretrained(bare, keep_layers=12)
    assert torch.equal(logits_of(student, tokens), logits_of(reference, tokens))


@pytest.mark.parametrize("old_style", [False, True])
def test_generation_settings_come_along(old_style, published, reference, tmp_path):
    """A student has the generation settings that `from_pretrained` gives the reference."""
    if old_style:  # settings of generate in config.json, and no generation_config.json
        reference.save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").unlink()
        values = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**values, "temperature": 0.3, "do_sample": True}))
        published = tmp_path
    expected = GPT2LMHeadModel.from_pretrained(published).generation_config.to_dict()
    assert InheritedGPT2.from_pretrained(published, keep_layers=2).generation_config.to_dict() == expected
    assert expected["temperature"] == (0.3 if old_style else 0.7)


@pytest.mark.parametrize("loaded", [False, True])
def test_changed_tokens_reach_the_generation_settings(loaded, published, reference):
    """Config fields that are given change them as in `from_pretrained`."""
    given = {"eos_token_id": 7, "pad_token_id": 5}
    student = InheritedGPT2.from_pretrained(reference if loaded else published, keep_layers=2, **given)
    assert {name: getattr(student.generation_config, name) for name in given} == given
    assert {name: getattr(student.config, name) for name in given} == given


def test_a_schedule_says_what_the_first_student_keeps(published):
    """Its first stage takes the place of the default's half; layers that are given win."""
    recipe = InherituneConfig(schedule=["ends:1+1", "ends:2+2"], steps_per_round=1)
    assert from_pretrained_inherited(published, recipe).config.inheritune["kept_layers"] == [0, 11]
    recipe = dataclasses.replace(recipe, keep_layers=[3])
    assert from_pretrained_inherited(published, recipe).config.inheritune["kept_layers"] == [3]


def test_a_student_in_memory_is_not_its_reference(published):
    """What is cut out of it has a lineage of its own: the original has other layers, and other weights."""
    first = InheritedGPT2.from_pretrained(published, keep_layers=[1, 3, 5])
    lineage = InheritedGPT2.from_pretrained(first, keep_layers=2).config.inheritune
    assert (lineage["reference"], lineage["revision"]) == ("GPT2LMHeadModel", None)
    assert lineage["reference_layers"] == 3


def test_weights_that_a_config_names_are_refused(published, tmp_path):
    """Transformers would read that file, and a student would be made of another."""
    shutil.copytree(published, tmp_path / "named")
    values = json.loads((tmp_path / "named" / "config.json").read_text())
    (tmp_path / "named" / "config.json").write_text(json.dumps({**values, "transformers_weights": "o.safetensors"}))
    with pytest.raises(ValueError, match=r"names the file of its weights in its config \(transformers_weights\)"):
        from_pretrained_inherited(tmp_path / "named")


def test_queries_that_are_offloaded_are_not_rescaled(publish, tmp_path):
    """Nothing would be multiplied, without a word."""
    folder = publish()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "scale_attn_by_inverse_layer_idx": True}))
    places = {"transformer.h.0": "disk", "transformer.h.1": "cpu"}
    rest = dict.fromkeys(("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"), "cpu")
    options = {"device_map": {**places, **rest}, "offload_folder": str(tmp_path / "offloaded")}
    with pytest.raises(ValueError, match="its weights are offloaded: give a device_map that offloads none"):
        InheritedGPT2.from_pretrained(folder, keep_layers=[3, 5], **options)


def test_generation_settings_can_be_given(published):
    """`generation_config` wins over the reference's."""
    given = transformers.GenerationConfig(top_k=3)
    assert InheritedGPT2.from_pretrained(published, keep_layers=2, generation_config=given).generation_config.top_k == 3


def test_weights_without_config_take_the_given_one(published, reference, tokens, tmp_path):
    """A folder with weights only gives a student when `config` is given."""
    (tmp_path / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes())
    student = InheritedGPT2.from_pretrained(tmp_path, keep_layers=12, config=reference.config)
    assert torch.equal(logits_of(student, tokens), logits_of(reference, tokens))


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({}, torch.float32),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "auto"}, torch.float16),
        ({"dtype": None}, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("keep", [3, None])
def test_parameters_are_float32_unless_said(given, dtype, keep, publish):
    """A half-precision reference gives float32 parameters, or the type that was asked for."""

    def halve(tensors):
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    assert InheritedGPT2.from_pretrained(publish(edit=halve), keep_layers=keep, **given).dtype is dtype


def test_arguments_of_from_pretrained_still_work(published, reference):
    """Attention implementation, device map, config fields and a changed config are taken as usual."""
    student = InheritedGPT2.from_pretrained(
        published, keep_layers=2, attn_implementation="eager", device_map="cpu", attn_pdrop=0.25, use_cache=False
    )
    assert student.config._attn_implementation == "eager"
    assert student.config.attn_pdrop == 0.25
    assert student.config.use_cache is False
    config = GPT2Config.from_pretrained(published, resid_pdrop=0.5)
    assert InheritedGPT2.from_pretrained(published, keep_layers=2, config=config).config.resid_pdrop == 0.5
    assert InheritedGPT2.from_pretrained(published, keep_layers=2, config=str(published)).config.n_layer == 2
    assert config.n_layer == 12
    assert InheritedGPT2.from_pretrained(reference, keep_layers=2, attn_pdrop=0.25).config.attn_pdrop == 0.25
    with pytest.raises(TypeError, match="nonsense"):
        InheritedGPT2.from_pretrained(published, keep_layers=2, nonsense=1)


@pytest.mark.parametrize("face", [InheritedGPT2, InheritedModelForCausalLM])
def test_without_keep_layers_nothing_is_cut(face, published, reference, tokens, tmp_path):
    """A student that was published loads whole, and its lineage stays as it was."""
    first = face.from_pretrained(published, keep_layers=[1, 2])
    first.save_pretrained(tmp_path)
    again, info = face.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is GPT2LMHeadModel
    assert not info["missing_keys"]
    assert again.config.inheritune == first.config.inheritune
    assert torch.equal(logits_of(again, tokens), logits_of(first, tokens))
    assert face.from_pretrained(tmp_path, config=first.config).config.n_layer == 2
    assert face.from_pretrained(tmp_path, config=str(tmp_path)).config.n_layer == 2
    assert face.from_pretrained(tmp_path, strict=True, text_model=False, gguf_file=None).config.n_layer == 2


GPT2_XL = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 1600,
    "n_head": 25,
    "n_layer": 48,
    "n_positions": 1024,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}


@pytest.mark.parametrize(
    ("changes", "before", "after"),
    [({}, 1_557_611_200, 819_832_000), ({"n_layer": 12, "n_embd": 768, "n_head": 12}, 124_439_808, 81_912_576)],
    ids=["gpt2-xl", "gpt2"],
)
def test_a_plan_counts_real_sizes(changes, before, after, tmp_path):
    """Half of gpt2-xl has 820 million parameters, and half of gpt2 as many as distilgpt2."""
    (tmp_path / "config.json").write_text(json.dumps({**GPT2_XL, **changes}))
    plan = plan_inheritance(tmp_path, "half")
    assert (plan.parameters_before, plan.parameters_after) == (before, after)


@pytest.mark.parametrize("face", [InheritedGPT2, InheritedModelForCausalLM])
def test_faces_are_not_instantiated(face):
    """The faces are used by from_pretrained only, like Auto classes."""
    message = (
        rf"{face.__name__} is not instantiated: use {face.__name__}\.from_pretrained\(reference, keep_layers=12\)\."
    )
    with pytest.raises(TypeError, match=message):
        face(GPT2Config())


@pytest.mark.parametrize("keep", [1, None])
def test_inherited_gpt2_is_for_gpt2(keep, build, tmp_path):
    """Another model type is refused with the name of the face for every architecture."""
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    build(transformers.LlamaConfig(**shape, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has model_type 'llama': use InheritedModelForCausalLM\.from_pretrained"):
        InheritedGPT2.from_pretrained(tmp_path, keep_layers=keep)
    assert InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=keep).config.model_type == "llama"


@pytest.mark.parametrize("keep", [2, None])
def test_a_reference_that_is_not_there_is_named(keep, tmp_path):
    """A path without a model, a folder without config.json and an unknown id are named, with what to give."""
    (tmp_path / "empty").mkdir()
    end = "give a folder with config.json or a Hub id."
    for given, message in [
        (tmp_path / "none", f"There is no model at '{tmp_path / 'none'}': {end}"),
        ("./none", f"There is no model at './none': {end}"),
        (tmp_path / "empty", f"There is no model at '{tmp_path / 'empty'}' (the folder has no config.json): {end}"),
        ("org/none", "There is no model at 'org/none' (its config.json is not in the Hub's cache and could not be "),
    ]:
        with pytest.raises(FileNotFoundError) as caught:
            InheritedGPT2.from_pretrained(given, keep_layers=keep, local_files_only=True, cache_dir=tmp_path)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"config\.json is damaged: it is not valid"),
        ("[]", r"config\.json must hold a mapping, got a list\."),
    ],
)
def test_a_broken_config_is_named(content, message, tmp_path):
    """A config.json that cannot be read is named."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_reference(tmp_path)


def test_layers_are_checked_before_weights_are_read(published, tmp_path):
    """A wrong keep_layers is said although the weights are not even there."""
    (tmp_path / "config.json").write_text((published / "config.json").read_text())
    message = r"keep_layers must be between 1 and 12 \(the reference's depth\), got 13\."
    with pytest.raises(ValueError, match=message):
        InheritedGPT2.from_pretrained(tmp_path, keep_layers=13)
    with pytest.raises(FileNotFoundError, match="There are no weights at"):
        InheritedGPT2.from_pretrained(tmp_path, keep_layers=12)


def drop_layer(tensors):
    for name in [name for name in tensors if name.startswith("h.3.")]:
        del tensors[name]


def widen(tensors):
    tensors["ln_f.weight"] = torch.ones(17)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_layer, r"do not fill the student: no tensor for transformer\.h\.3\.\S+, .* and 7 more\. Check that the"),
        (widen, r"do not fill the student: another shape in transformer\.ln_f\.weight\. Check that the config"),
    ],
    ids=["missing", "mismatched"],
)
def test_weights_that_do_not_fill_the_student_are_refused(edit, message, publish, logged):
    """A kept layer without tensors, or a tensor of another shape, is named as the reference calls it, not replaced."""
    with pytest.raises(RuntimeError, match=message):
        InheritedGPT2.from_pretrained(publish(edit=edit), keep_layers=[2, 3], ignore_mismatched_sizes=True)
    assert logged == []


def test_what_transformers_reports_is_checked_too(published, monkeypatch):
    """Keys that Transformers reports as missing after loading are refused even if none was missing before."""
    monkeypatch.setattr(inherit.Cut, "check", lambda *_: ())
    tensors = inherit.kept_names

    def forget(*args, **options):
        return {name: new for name, new in tensors(*args, **options).items() if "ln_f" not in name}

    monkeypatch.setattr(inherit, "kept_names", forget)
    with pytest.raises(RuntimeError, match=r"no tensor for transformer\.ln_f\.bias, transformer\.ln_f\.weight\. Check"):
        InheritedGPT2.from_pretrained(published, keep_layers=2)


@pytest.mark.parametrize("layout", ["bin", "bin-sharded", "loaded"])
def test_a_tied_head_that_is_the_same_is_read_once(layout, publish, reference, monkeypatch):
    """A head that shares the embedding's storage, as .bin files and loaded models have it, is counted and read once."""

    def beside(tensors):
        tensors["lm_head.weight"] = tensors["wte.weight"]

    asked, read = [], LazyTensor.__getitem__
    monkeypatch.setattr(
        LazyTensor, "__getitem__", lambda self, index: (asked.append(self.nbytes), read(self, index))[1]
    )
    given = reference if layout == "loaded" else publish(layout, beside)
    student = InheritedGPT2.from_pretrained(given, keep_layers=2)
    assert student.lm_head.weight is student.transformer.wte.weight
    assert torch.equal(student.lm_head.weight, reference.lm_head.weight)
    assert sum(asked) == 4 * student.num_parameters()
    if layout != "loaded":
        assert plan_inheritance(given, 2).bytes_to_read == 4 * student.num_parameters()


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_that_lies_apart_is_what_transformers_makes_of_it(layout, same, publish, tokens):
    """A head beside the embedding that it is tied to is read, and tied if it is the same; else it stays its own."""

    def beside(tensors):
        tensors["lm_head.weight"] = tensors["wte.weight"] + (0 if same else 1)

    folder = publish(layout, beside)
    student = InheritedGPT2.from_pretrained(folder, keep_layers=12)
    assert (student.lm_head.weight is student.transformer.wte.weight) == same
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(student(tokens).logits, whole(tokens).logits)
    embedding = student.transformer.wte.weight
    assert plan_inheritance(folder, 12).bytes_to_read == 4 * (whole.num_parameters() + same * embedding.numel())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers cannot be combined with keep_layers, which says how deep"),
        ({"n_layer": 3}, "n_layer cannot be combined with keep_layers, which says how deep the student is."),
        ({"state_dict": {}}, "state_dict cannot be combined with keep_layers: the weights come from the reference."),
        ({"key_mapping": {"a": "b"}}, "key_mapping cannot be combined with keep_layers: renamed tensors"),
    ],
    ids=str,
)
def test_contradicting_arguments_are_refused(options, message, published):
    """Arguments that would load something else than the kept layers are refused with the reason."""
    with pytest.raises(ValueError, match=message):
        InheritedGPT2.from_pretrained(published, keep_layers=2, **options)


def test_loaded_models_need_layers_and_no_source(reference):
    """A loaded model needs keep_layers, takes no argument about files, and must be in memory."""
    with pytest.raises(ValueError, match=r"A loaded model needs keep_layers, which says what to copy from it\."):
        InheritedGPT2.from_pretrained(reference)
    with pytest.raises(ValueError, match=r"A loaded model is not fetched from anywhere: leave out revision\."):
        InheritedGPT2.from_pretrained(reference, keep_layers=2, revision="main")
    with torch.device("meta"):
        empty = GPT2LMHeadModel(reference.config)
    with pytest.raises(
        ValueError, match=r"is not wholly in memory \(transformer\.wte\.weight is not\): load it without"
    ):
        InheritedGPT2.from_pretrained(empty, keep_layers=2)


def test_other_references_are_type_errors(published):
    """A reference that is neither text, path nor model, and a recipe that is none, are type errors."""
    with pytest.raises(TypeError, match=r"A reference is a Hub id, a folder .* or a loaded model, got a NoneType\."):
        from_pretrained_inherited(None)
    with pytest.raises(
        TypeError, match=r"config must be an InherituneConfig, got a GPT2Config; to load with a changed"
    ):
        from_pretrained_inherited(published, GPT2Config())


def test_adapters_are_refused(publish):
    """What is not the weights of one model is refused with what to give instead."""
    folder = publish()
    (folder / "adapter_config.json").write_text("{}")
    for refuse in (partial(plan_inheritance, choice=2), partial(InheritedGPT2.from_pretrained, keep_layers=2)):
        with pytest.raises(
            ValueError, match=r"holds an adapter beside its model: merge it \(merge_and_unload\) and save"
        ):
            refuse(folder)


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ("mxfp4", r"or dequantize it: AutoModelForCausalLM\.from_pretrained\(.*, quantization_config=Mxfp4Config\(deq"),
        (
            "fp8",
            r"or dequantize it: .*quantization_config=FineGrainedFP8Config\(dequantize=True\)\)\.save_pretrained\(",
        ),
        ("compressed-tensors", r"quantization_config=CompressedTensorsConfig\(dequantize=True\)\)\.save_pretrained\("),
        (
            "bitsandbytes",
            r"or dequantize it: AutoModel.*\)\.dequantize\(\)\.save_pretrained\(FOLDER, save_original_format=False\)",
        ),
        ("gptq", r"give the original model; Transformers does not dequantize this method\.$"),
        ("awq", r"give the original model; Transformers does not dequantize this method\.$"),
    ],
)
def test_a_quantized_reference_is_refused_by_its_method(method, advice, publish):
    """The message names the method, and the call that makes plain weights of it where Transformers has one."""
    folder = publish()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": {"quant_method": method}}))
    said = rf"is quantized \(quant_method '{method}' in its config\), and .*{advice}"
    with pytest.raises(ValueError, match=said):
        plan_inheritance(folder, 2)
    with pytest.raises(ValueError, match=said):
        InheritedGPT2.from_pretrained(folder, keep_layers=2)


def mxfp4_gpt_oss():
    """A gpt-oss as it is published: experts in blocks of four bits, with scales."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    config = AutoConfig.for_model("gpt_oss", **sizes, **heads, max_position_embeddings=32, pad_token_id=0)
    tensors = {}
    for name, tensor in AutoModelForCausalLM.from_config(config).bfloat16().state_dict().items():
        if name.endswith(("_up_proj", "down_proj")):
            rows = (2, tensor.shape[-1], tensor.shape[1] // 32)
            tensors[f"{name}_blocks"] = torch.full((*rows, 16), 34, dtype=torch.uint8)  # twice 1.0 in each byte
            tensors[f"{name}_scales"] = torch.full(rows, 126, dtype=torch.uint8)  # one half
        else:
            tensors[name] = tensor.contiguous()
    return config, tensors, {"quant_method": "mxfp4"}, "model.layers.1.mlp.experts.down_proj", 0.5


def fp8_llama():
    """A Llama in eight bits, with a scale for each block of a matrix."""
    config = AutoConfig.for_model("llama", **{**GROUPED, "num_hidden_layers": 2})
    tensors = {}
    for name, tensor in AutoModelForCausalLM.from_config(config).bfloat16().state_dict().items():
        if "proj" in name:
            tensors[name] = torch.full(tensor.shape, 2.0).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = torch.full((1, 1), 0.25)
        else:
            tensors[name] = tensor.contiguous()
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    return config, tensors, quantization, "model.layers.1.mlp.down_proj.weight", 0.5


@pytest.mark.parametrize("quantized", [mxfp4_gpt_oss, fp8_llama])
def test_the_call_of_a_refusal_makes_plain_weights(quantized, tmp_path):
    """What the message says can be run, and a student is cut out of what it saves."""
    config, tensors, quantization, weight, value = quantized()
    (tmp_path / "packed").mkdir()
    save_file(tensors, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    values = {**config.to_dict(), "dtype": "bfloat16", "quantization_config": quantization}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="or dequantize it: ") as refused:
        plan_inheritance(tmp_path / "packed", 1)
    call = str(refused.value).partition("dequantize it: ")[2].removesuffix(".")
    named = ("AutoModelForCausalLM", "FineGrainedFP8Config", "Mxfp4Config")
    eval(call, {"FOLDER": tmp_path / "plain", **{name: getattr(transformers, name) for name in named}})
    student = InheritedModelForCausalLM.from_pretrained(tmp_path / "plain", keep_layers=[1])
    found = student.state_dict()[weight.replace("layers.1", "layers.0")]
    assert torch.equal(found, torch.full_like(found, value))
