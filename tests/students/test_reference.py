"""One reference, opened once and carried along."""

import copy
import json
import os
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from inheritune_hf import InherituneConfig, from_pretrained_inherited
from inheritune_hf.students import NoTokenizer, find_blocks, inspect_architecture, open_reference, plan_inheritance


@pytest.fixture
def gpt2(reference):
    """The reference, to be changed."""
    return copy.deepcopy(reference)


@pytest.fixture
def gpt2_folder(publish):
    """The reference in a folder of its own."""
    return publish()


def test_an_opened_reference_is_taken_wherever_a_reference_is(gpt2, gpt2_folder):
    """A student of an opened reference is that of its folder; nothing is opened a second time."""
    opened = open_reference(gpt2_folder, dtype=torch.bfloat16)
    assert open_reference(opened) is opened
    assert (opened.depth, opened.context_length) == (gpt2.config.n_layer, gpt2.config.n_positions)
    plan = plan_inheritance(opened, 2)
    student = from_pretrained_inherited(opened, InherituneConfig(keep_layers=2))
    assert plan.kept_layers == (0, 1)
    assert student.dtype == torch.bfloat16
    assert torch.equal(student.transformer.h[1].mlp.c_fc.weight, gpt2.transformer.h[1].mlp.c_fc.weight.bfloat16())


def test_an_opened_reference_can_be_changed_but_not_moved(gpt2_folder):
    """Config fields and options may be added to it, on a copy; where it comes from may not."""
    opened = open_reference(gpt2_folder)
    changed = open_reference(opened, attn_pdrop=0.5, attn_implementation="eager")
    assert (changed.config.attn_pdrop, changed.options) == (0.5, {"attn_implementation": "eager"})
    assert (opened.config.attn_pdrop, opened.options) == (0.1, {})
    with pytest.raises(ValueError, match="is open already: leave out revision"):
        open_reference(opened, revision="main")


def test_loading_gives_a_model_of_ones_own(gpt2, gpt2_folder):
    """A loaded reference is copied, files are loaded as Transformers loads them, with what it was opened with."""
    copied = open_reference(gpt2).load(dtype=torch.float64)
    assert copied is not gpt2
    assert (copied.dtype, gpt2.dtype) == (torch.float64, torch.float32)
    loaded = open_reference(gpt2_folder, attn_pdrop=0.5).load(dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(gpt2_folder, attn_pdrop=0.5)
    assert loaded.config.to_dict() == plain.config.to_dict()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in plain.state_dict().items())


def test_the_fingerprint_follows_the_content(gpt2, gpt2_folder, tmp_path):
    """The same files have one fingerprint wherever they lie; other weights, config or type have another."""
    other = shutil.copytree(gpt2_folder, tmp_path / "other")
    found = open_reference(gpt2_folder).fingerprint()
    assert found == open_reference(other).fingerprint()
    assert found == open_reference(other, attn_implementation="eager", token="secret").fingerprint()
    assert found != open_reference(other, dtype=torch.bfloat16).fingerprint()
    assert found != open_reference(other, attn_pdrop=0.5).fingerprint()
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    assert found != open_reference(other).fingerprint()
    loaded = open_reference(gpt2).fingerprint()
    assert loaded == open_reference(gpt2).fingerprint()
    with torch.no_grad():
        next(gpt2.parameters())[0, 0] += 1
    assert loaded != open_reference(gpt2).fingerprint()


def test_the_fingerprint_follows_a_config_that_is_given(gpt2_folder):
    """A whole config in place of that in the files makes another model; so do quantization and other files."""
    config = AutoConfig.from_pretrained(gpt2_folder)
    config.layer_norm_epsilon = 10.0
    plain = open_reference(gpt2_folder)
    others = [open_reference(gpt2_folder, config=config), open_reference(plain, config=config)]
    others.append(open_reference(gpt2_folder, use_safetensors=False))
    assert len({plain.fingerprint(), *(one.fingerprint() for one in others)}) == 3


def test_the_fingerprint_of_shards_in_a_folder(gpt2, tmp_path):
    """An index may name shards in a folder beside it."""
    gpt2.save_pretrained(tmp_path, max_shard_size="100KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (tmp_path / "shards").mkdir()
    for shard in set(content["weight_map"].values()):
        (tmp_path / shard).rename(tmp_path / "shards" / shard)
    content["weight_map"] = {name: f"shards/{shard}" for name, shard in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    before = open_reference(tmp_path).fingerprint()
    assert len(list((tmp_path / "shards").iterdir())) > 1
    shard = sorted((tmp_path / "shards").iterdir())[-1]
    shard.write_bytes(shard.read_bytes()[:-1] + bytes([shard.read_bytes()[-1] ^ 1]))
    assert open_reference(tmp_path).fingerprint() != before


def test_a_changed_file_is_read_again(gpt2_folder):
    """The hash of a file is kept for as long as the file is: one that was replaced is read anew."""
    weights = gpt2_folder / "model.safetensors"
    before = open_reference(gpt2_folder).fingerprint()
    times = weights.stat().st_mtime_ns
    replaced = gpt2_folder / "replaced"
    replaced.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    replaced.replace(weights)
    os.utime(weights, ns=(times, times))
    assert open_reference(gpt2_folder).fingerprint() != before


def test_a_quantized_reference_is_not_loaded_whole(gpt2_folder):
    """Weights whose scales only a file of its own tells of would be read as if these were 1: loading refuses them."""
    (gpt2_folder / "hf_quant_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is quantized \(hf_quant_config\.json lies beside its weights\)"):
        open_reference(gpt2_folder).load()


def test_a_reference_without_a_tokenizer_says_so(gpt2_folder):
    """None there and one that cannot be read are two things."""
    with pytest.raises(NoTokenizer, match=r"There is no tokenizer at .*tokenizer\.save_pretrained"):
        _ = open_reference(gpt2_folder).tokenizer
    (gpt2_folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (gpt2_folder / "tokenizer.json").write_text('{"version":')
    with pytest.raises(ValueError, match=r"The tokenizer at .* cannot be read\. Transformers says") as error:
        _ = open_reference(gpt2_folder).tokenizer
    assert not isinstance(error.value, NoTokenizer)


@pytest.mark.parametrize(
    ("limit", "number", "complaint"),
    [
        ("long", 1, "its model_max_length is 'long', not a number"),
        (9, 10**9, "a token has the number 1,000,000,000, abo"),
    ],
)
def test_a_tokenizer_of_other_values_is_named(gpt2_folder, limit, number, complaint):
    """A limit that is no number, and numbers of tokens that no vocabulary has, are refused before they are used."""
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": limit}
    (gpt2_folder / "tokenizer_config.json").write_text(json.dumps(values))
    words = {"type": "WordLevel", "vocab": {"a": 0, "b": number}, "unk_token": "a"}
    core = {"version": "1.0", "added_tokens": [], "model": words}
    (gpt2_folder / "tokenizer.json").write_text(json.dumps(core))
    with pytest.raises(ValueError, match=f"The tokenizer at .* cannot be used: {complaint}"):
        _ = open_reference(gpt2_folder).tokenizer


@pytest.mark.parametrize("given", [{}, {"trust_remote_code": True}])
def test_code_of_a_tokenizer_is_run_only_if_said(given, gpt2_folder, monkeypatch):
    """Transformers is told so, and does not ask on standard input."""
    seen = []

    def load(_place, **kwargs):
        seen.append(kwargs["trust_remote_code"])
        raise ValueError("Loading needs trust_remote_code.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)
    with pytest.raises(ValueError, match=r"Loading needs trust_remote_code\."):
        _ = open_reference(gpt2_folder, **given).tokenizer
    assert seen == [bool(given)]


def test_an_architecture_is_inspected_once_for_each_content_of_a_config(gpt2):
    """The same config gives the same object, a changed one another; a lineage changes nothing."""
    before = inspect_architecture(gpt2.config)
    gpt2.config.inheritune = {"reference": "elsewhere"}
    assert inspect_architecture(gpt2.config) is before
    gpt2.config.n_inner = 100
    assert inspect_architecture(gpt2.config).parameters != before.parameters


def test_blocks_are_found_in_the_model(gpt2):
    """`find_blocks` gives the model's own list."""
    assert find_blocks(gpt2) is gpt2.transformer.h


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": "12"}, r"its config has n_layer='12'; a number from 1 to 10,000 is needed"),
        ({"n_layer": 0}, r"n_layer=0; a number"),
        ({"n_layer": 10**9}, r"n_layer=1000000000; a number"),
        ({"n_layer": None}, r"config\.json cannot be used: Validation error for field 'n_layer'"),
        ({"n_head": 0}, r"No model can be made of this config of type 'gpt2': ZeroDivisionError"),
        ({"activation_function": "x"}, r"No model can be made of this config of type 'gpt2': KeyError"),
        ({"id2label": 3}, r"config\.json cannot be used"),
        ({"model_type": ["gpt2"]}, r"model_type=\['gpt2'\], not a name"),
        ({"dtype": "load"}, r"config\.json cannot be used"),
        ({"n_embd": 10**12}, r"No model can be made of this config"),
        ({"layer_types": 5}, r"layer_types=5; a list is needed"),
        ({"text_config": {"a": 1}}, r"No model can be made of this config"),
    ],
)
def test_a_config_of_wrong_types_is_one_line(changes, message, gpt2_folder):
    """A field of another type, or a value that no model can have, is a `ValueError` that names file or field."""
    path = gpt2_folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message) as error:
        _ = open_reference(gpt2_folder).architecture
    assert "\n" not in str(error.value)
