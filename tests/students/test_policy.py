"""Which parts come along, and how the others begin."""

import json

import pytest
import torch
from families import CASES
from transformers import AutoConfig, AutoTokenizer, GPT2Config

from inheritune_hf import InheritedModelForCausalLM, InherituneConfig, from_pretrained_inherited
from inheritune_hf.config import INHERIT_PRESETS, PARTS
from inheritune_hf.publishing import save_inherited
from inheritune_hf.students import inspect_architecture
from inheritune_hf.students.architectures import name_in_reference


def inherited_names(student, reference, layers):
    """Names of the student's tensors that equal the reference's."""
    architecture = inspect_architecture(student.config)
    expected = reference.state_dict()
    return {
        name
        for name, tensor in student.state_dict().items()
        if torch.equal(tensor, expected[name_in_reference(architecture, layers, name)])
    }


@pytest.mark.parametrize(
    ("kind", "inherit"),
    [("gpt2", inherit) for inherit in ("all", "attention", "mlp,norms", "embeddings", "final_norm", "positions")]
    + [(kind, preset) for kind in ("gpt2", "llama", "opt", "mixtral", "lfm2") for preset in ("paper", "released-code")]
    + [("llama", "mlp"), ("mixtral", "mlp"), ("lfm2", "attention"), ("opt", "positions"), ("bloom", "norms")],
)
def test_exactly_the_named_parts_come_along(kind, inherit, build, tmp_path):
    """What `inherit` names is the reference's bit for bit, and what it does not name is not, in every family."""
    reference = build(AutoConfig.for_model(kind, **CASES[kind][0]))
    reference.save_pretrained(tmp_path)
    recipe = InherituneConfig(keep_layers=[0, 1, 4], inherit=inherit)
    student, info = from_pretrained_inherited(tmp_path, recipe, output_loading_info=True)
    assert not info["missing_keys"]
    parts = inspect_architecture(reference.config).parts
    architecture = inspect_architecture(student.config)
    tied = set(architecture.tied) | set(architecture.tied.values())
    named = set(recipe.inherited_parts)
    expected = {
        name
        for name in student.state_dict()
        if parts[name_in_reference(architecture, (0, 1, 4), name)] in named
        or (name in tied and named & {"embeddings", "lm_head"})
    }
    assert inherited_names(student, reference, (0, 1, 4)) == expected
    assert student.config.inheritune["inherited"] == list(recipe.inherited_parts)
    assert student.config.inheritune["seed"] == (None if inherit == "all" else 42)


def test_the_released_code_leaves_positions_and_last_norm_random(reference, published):
    """With GPT-2's tied head the released code keeps the token embedding; positions and last norm begin anew."""
    student = from_pretrained_inherited(published, InherituneConfig(keep_layers=6, inherit="released-code"))
    anew = set(student.state_dict()) - inherited_names(student, reference, range(6))
    assert anew == {"transformer.wpe.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"}


def test_the_released_code_leaves_untied_embeddings_random(build):
    """With a head of its own, as in LLaMA, the released code loses the token embedding and the last norm."""
    reference = build(AutoConfig.for_model("llama", **CASES["llama"][0]))
    student = from_pretrained_inherited(reference, InherituneConfig(keep_layers=3, inherit="released-code"))
    anew = set(student.state_dict()) - inherited_names(student, reference, range(3))
    assert anew == {"model.embed_tokens.weight", "model.norm.weight"}


def test_random_parts_follow_the_seed_alone(published):
    """The same seed gives the same parts whatever else is random; another gives others; the caller's state stays."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = from_pretrained_inherited(published, InherituneConfig(inherit="paper"), seed=1)
    assert torch.equal(torch.rand(1), expected)
    two = from_pretrained_inherited(published, InherituneConfig(inherit="attention"), seed=1)
    three = from_pretrained_inherited(published, InherituneConfig(inherit="paper"), seed=2)
    assert torch.equal(one.transformer.wpe.weight, two.transformer.wpe.weight)
    assert not torch.equal(one.transformer.wpe.weight, three.transformer.wpe.weight)
    assert two.config.inheritune["seed"] == 1


def test_no_device_is_seeded_for_random_parts(published, monkeypatch):
    """The generators of GPUs, which a CPU does not need, stay as the caller left them."""
    monkeypatch.setattr(torch, "manual_seed", lambda _: pytest.fail("every device would be seeded"))
    before = torch.random.get_rng_state()
    from_pretrained_inherited(published, InherituneConfig(keep_layers=2, inherit="paper"), seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_parts_begin_as_the_architecture_says(published):
    """Norms begin at one and zero, weights with the config's spread."""
    student = from_pretrained_inherited(published, InherituneConfig(inherit="embeddings"))
    assert torch.equal(student.transformer.ln_f.weight, torch.ones(16))
    assert torch.equal(student.transformer.h[2].mlp.c_fc.bias, torch.zeros(64))
    spread = student.transformer.h[2].mlp.c_fc.weight.std().item()
    assert spread == pytest.approx(student.config.initializer_range, rel=0.2)


def test_a_gap_is_no_random_part(publish):
    """What should come along and is not there is refused, whatever is allowed to be random."""

    def forget(tensors):
        del tensors["ln_f.bias"], tensors["wpe.weight"]

    with pytest.raises(RuntimeError, match=r"no tensor for transformer\.ln_f\.bias\. Check"):
        from_pretrained_inherited(publish(edit=forget), InherituneConfig(keep_layers=2, inherit="mlp,final_norm"))
    from_pretrained_inherited(publish(edit=forget), InherituneConfig(keep_layers=2, inherit="paper"))


def test_parts_left_out_are_not_read(published, monkeypatch):
    """The tensors of parts that do not come along are not asked of the file."""
    from inheritune_hf.students import checkpoints

    asked, fill = [], checkpoints._fill
    monkeypatch.setattr(
        checkpoints, "_fill", lambda file, flat, path: (asked.append(flat.nbytes), fill(file, flat, path))
    )
    student = from_pretrained_inherited(published, InherituneConfig(keep_layers=2, inherit="mlp"))
    kept = sum(p.numel() for block in student.transformer.h for p in block.mlp.parameters())
    assert sum(asked) == 4 * kept


@pytest.mark.parametrize("given", ["attn", "", "all,mlp", [], ["mlp", 3], None, 7, "paper,released-code"])
def test_other_parts_are_refused(given):
    """What is neither a preset nor parts is refused with both lists."""
    message = r"inherit must be one of all, paper, released-code, or parts out of embeddings, .* lm_head, got "
    with pytest.raises(ValueError, match=message):
        InherituneConfig(inherit=given)


def test_parts_are_given_in_any_form_and_order():
    """A list, or words with spaces, in any order, are the same parts."""
    assert InherituneConfig(inherit=["mlp", "attention"]).inherited_parts == ("attention", "mlp")
    assert InherituneConfig(inherit=" mlp , attention").inherited_parts == ("attention", "mlp")
    assert InherituneConfig().inherited_parts == PARTS
    assert set(INHERIT_PRESETS) == {"all", "paper", "released-code"}


def test_sizes_select_layers(published, reference):
    """`params:` keeps the deepest first layers that fit, told from the config."""
    sizes = inspect_architecture(reference.config).prefix_sizes
    assert sizes[-1] == reference.num_parameters()
    student = from_pretrained_inherited(published, InherituneConfig(keep_layers=f"params:{sizes[4] + 1}"))
    assert student.config.num_hidden_layers == 5
    assert student.num_parameters() == sizes[4]


@pytest.mark.parametrize("tied", [True, False])
def test_resized_vocabularies_come_out_right(tied, build, tokens, skipping, tmp_path):
    """After resize_token_embeddings, tied or not, embedding and head come along with all their rows."""
    values = {**CASES["llama"][0], "tie_word_embeddings": tied}
    reference = build(AutoConfig.for_model("llama", **values))
    reference.resize_token_embeddings(71, mean_resizing=False)
    reference.save_pretrained(tmp_path)
    student = InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=2)
    assert student.config.vocab_size == 71
    assert student.get_output_embeddings().weight.shape == (71, 16)
    assert (student.lm_head.weight is student.model.embed_tokens.weight) == tied
    with torch.no_grad():
        assert torch.equal(student(tokens, use_cache=False).logits, skipping(reference, tokens, (0, 1)))


def test_untying_is_kept(build, tmp_path, tokens, skipping):
    """A GPT-2 whose head was untied keeps a head of its own."""
    reference = build(GPT2Config(**CASES["gpt2"][0], tie_word_embeddings=False))
    reference.save_pretrained(tmp_path)
    student = InheritedModelForCausalLM.from_pretrained(tmp_path, keep_layers=2)
    assert student.lm_head.weight.data_ptr() != student.transformer.wte.weight.data_ptr()
    with torch.no_grad():
        assert torch.equal(student(tokens, use_cache=False).logits, skipping(reference, tokens, (0, 1)))


def test_tokenizer_template_and_generation_settings_come_along(published, tmp_path, tokenizer):
    """A saved student has the reference's tokenizer, chat template and generation settings."""
    folder = tmp_path / "reference"
    folder.mkdir()
    for file in published.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer.chat_template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    save_inherited(str(folder), 2, tmp_path / "student")
    saved = AutoTokenizer.from_pretrained(tmp_path / "student")
    chat = [{"role": "user", "content": "a"}]
    assert saved.chat_template == tokenizer.chat_template
    assert saved.apply_chat_template(chat, tokenize=False) == "<user>a"
    assert saved("ab").input_ids == tokenizer("ab").input_ids
    settings = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert settings["temperature"] == 0.7
    assert settings["eos_token_id"] == 5
