"""References in GGUF files, dequantized by Transformers."""

import json

import pytest
import torch
from families import GROUPED
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from inheritune_hf import InheritedModelForCausalLM
from inheritune_hf.cli import main
from inheritune_hf.publishing import save_inherited
from inheritune_hf.students import OpenedReference, open_reference, plan_inheritance, verify_student
from inheritune_hf.students.checkpoints import Source

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

FILE = "tiny.gguf"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    """Return how GGUF calls a tensor of a Llama."""
    for here, there in {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}.items():
        if name.startswith(here):
            return name.replace(here, there)
    _, _, layer, rest = name.split(".", 3)
    module = rest.removesuffix(".weight")
    return f"blk.{layer}.{NAMES[module]}.weight"


def interleaved(tensor, heads):
    """Return a query or key projection with the rows of its rotary halves in turns, as GGUF has them."""
    return tensor.view(heads, 2, -1, tensor.shape[-1]).swapaxes(1, 2).reshape(tensor.shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a Llama and its tokenizer in a GGUF file of half-precision weights."""
    folder = tmp_path_factory.mktemp("gguf")
    config = AutoConfig.for_model(
        "llama", **{**GROUPED, "num_hidden_layers": 4, "vocab_size": 260, "rms_norm_eps": 2**-20}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).half().float()
    writer = gguf.GGUFWriter(folder / FILE, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    writer.add_token_list([*letters, "<|endoftext|>", "th", "he", "in"])
    writer.add_token_merges(["t h", "h e", "i n"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            tensor = interleaved(tensor, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        kind = torch.float32 if tensor.dim() == 1 else torch.float16
        writer.add_tensor(gguf_name(name), tensor.to(kind).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder, model


def test_a_gguf_file_is_a_reference(folder, tokens, tmp_path, caplog):
    """It is planned, cut, saved, verified and loaded whole; it is said that it is read whole."""
    folder, model = folder
    plan = save_inherited(open_reference(folder, gguf_file=FILE), "0,2", tmp_path / "student")
    assert plan.bytes_to_read == (folder / FILE).stat().st_size
    assert plan.notes[0].startswith("The weights are dequantized from a GGUF file, which is read whole")
    assert "bytes are read, and dequantized" in caplog.text
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert not hasattr(student.config, "quantization_config")
    for here, there in ((0, 0), (1, 2)):
        mine, theirs = (item.model.layers[place].state_dict() for item, place in ((student, here), (model, there)))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert (student.config.inheritune["gguf_file"], student.config.inheritune["text_model"]) == (FILE, False)
    found = verify_student(tmp_path / "student")
    assert found.passed
    assert {check.name for check in found.checks if check.passed} >= {"lineage", "shapes", "identity"}


def test_a_gguf_reference_is_loaded_whole_and_plain(folder, tokens):
    """It computes what the original does, can be saved, and it has a tokenizer and a fingerprint."""
    folder, model = folder
    opened = open_reference(folder, gguf_file=FILE)
    assert opened.depth == 4
    whole = opened.load()
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(whole(tokens).logits, model(tokens).logits)
    assert opened.tokenizer.decode(opened.tokenizer("the inn").input_ids, skip_special_tokens=True) == "the inn"
    assert opened.fingerprint() == open_reference(folder, gguf_file=FILE).fingerprint()
    same = InheritedModelForCausalLM.from_pretrained(folder, gguf_file=FILE)
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_data_is_prepared_with_the_tokenizer_inside(folder, tmp_path):
    """Sequences are of its tokens, and as long as the model in the file reads."""
    rows = [json.dumps({"text": f"the inn on heath {number}"}) for number in range(40)]
    (tmp_path / "text.jsonl").write_text("\n".join(rows))
    words = ["data", "prepare", "--tokenizer", str(folder[0]), "--gguf-file", FILE, "--output", str(tmp_path / "out")]
    assert main([*words, "--train_files", str(tmp_path / "text.jsonl")]) == 0
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["facts"]["block_size"] == 32


def test_what_is_no_gguf_file_is_refused(folder, tmp_path):
    """A folder of GGUF files says how to name one; a file that is not there, or is none, is named."""
    folder, _ = folder
    with pytest.raises(FileNotFoundError, match=rf"no config\.json; to read a GGUF file there, say gguf_file='{FILE}'"):
        plan_inheritance(folder, 2)
    with pytest.raises(FileNotFoundError, match=rf"of a GGUF file, give its folder, and gguf_file='{FILE}'"):
        plan_inheritance(folder / FILE, 2)
    with pytest.raises(
        FileNotFoundError, match=r"There is no other\.gguf at .*: gguf_file is the name of a file there"
    ):
        open_reference(folder, gguf_file="other.gguf")
    with pytest.raises(
        ValueError, match=r"gguf_file must be the name of a file in the reference's folder, got '/elsewhere/x'"
    ):
        open_reference(folder, gguf_file="/elsewhere/x")
    (tmp_path / "text.gguf").write_text("no weights, but words enough to fill a header of a file")
    with pytest.raises(ValueError, match=r"text\.gguf cannot be read as GGUF: .* need the package gguf"):
        open_reference(tmp_path, gguf_file="text.gguf")
    (tmp_path / "cut.gguf").write_bytes((folder / FILE).read_bytes())
    opened = open_reference(tmp_path, gguf_file="cut.gguf")
    (tmp_path / "cut.gguf").write_bytes((folder / FILE).read_bytes()[:-5000])
    with pytest.raises(OSError, match=r"cut\.gguf cannot be read as GGUF: "):
        opened.load()


def test_each_file_of_a_repository_is_a_reference_of_its_own():
    """At one commit of the Hub, two quantizations of a model are told apart."""
    config = LlamaConfig(num_hidden_layers=1)
    files = ("q8.gguf", "q2.gguf", None)
    opened = [OpenedReference("a/b", config, None, Source("a/b", gguf_file=name), "c0ffee") for name in files]
    assert len({reference.fingerprint() for reference in opened}) == 3
