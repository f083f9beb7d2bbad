"""Deeper students from trained ones."""

import pytest
import tiny
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from inheritune_hf import InherituneConfig, from_pretrained_inherited
from inheritune_hf.students import SUPPORTED_MODEL_TYPES
from inheritune_hf.training.expansion import (
    carry_optimizer,
    expand_student,
    group_names,
    make_identity,
    parameter_origins,
)


@pytest.fixture(scope="module")
def reference():
    return tiny.reference_model(layers=6, dropout=0.0)


@pytest.fixture
def trained(reference):
    """A student of layers 0, 1 and 4 that has moved away from its reference."""
    student = from_pretrained_inherited(reference, InherituneConfig(keep_layers=[0, 1, 4]))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return student


def expand(trained, reference, new_blocks, wanted=(0, 1, 2, 4, 5), seed=1):
    recipe = InherituneConfig(growth="continue", new_blocks=new_blocks)
    return expand_student(trained, (0, 1, 4), reference, wanted, recipe, seed)


def block(model, place):
    return model.transformer.h[place].state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("new_blocks", ["reference", "copy_last", "identity", "random"])
def test_what_was_learned_stays(trained, reference, new_blocks):
    """Old blocks, embeddings and final norm are the student's, wherever they move; the student is left as it was."""
    before = tiny.weights_hash(trained)
    deeper = expand(trained, reference, new_blocks)
    assert deeper.config.n_layer == 5
    for place, old in ((0, 0), (1, 1), (3, 2)):
        assert same(block(deeper, place), block(trained, old))
    assert torch.equal(deeper.transformer.wte.weight, trained.transformer.wte.weight)
    assert torch.equal(deeper.transformer.wpe.weight, trained.transformer.wpe.weight)
    assert torch.equal(deeper.transformer.ln_f.weight, trained.transformer.ln_f.weight)
    assert deeper.lm_head.weight.data_ptr() == deeper.transformer.wte.weight.data_ptr()
    assert tiny.weights_hash(trained) == before
    assert deeper.config.inheritune["kept_layers"] == [0, 1, 2, 4, 5]


def test_new_blocks_from_the_reference(trained, reference):
    """Added blocks are the reference's at their layers."""
    deeper = expand(trained, reference, "reference")
    assert same(block(deeper, 2), block(reference, 2))
    assert same(block(deeper, 4), block(reference, 5))


def test_new_blocks_copied_from_the_one_before(trained, reference):
    """Added blocks are copies of the trained block before them."""
    deeper = expand(trained, reference, "copy_last")
    assert same(block(deeper, 2), block(trained, 1))
    assert same(block(deeper, 4), block(trained, 2))


def test_random_blocks_follow_the_seed(trained, reference):
    """Random blocks are the architecture's own, the same for one seed and others for another."""
    one, again, other = (expand(trained, reference, "random", seed=seed) for seed in (1, 1, 2))
    assert same(block(one, 2), block(again, 2))
    assert not same(block(one, 2), block(other, 2))
    assert torch.equal(one.transformer.h[2].ln_1.weight, torch.ones(16))
    assert one.transformer.h[2].attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_identity_blocks_do_not_change_the_logits(trained, reference):
    """With identity blocks the deeper student's logits are those of the student, and the new blocks can learn."""
    deeper = expand(trained, reference, "identity")
    tokens = torch.tensor(tiny.sequences(3, seed=5))
    with torch.no_grad():
        assert torch.equal(deeper(tokens).logits, trained(tokens).logits)
    deeper(input_ids=tokens, labels=tokens).loss.backward()
    assert deeper.transformer.h[2].attn.c_proj.weight.grad.abs().sum() > 0
    assert deeper.transformer.h[2].mlp.c_proj.weight.grad.abs().sum() > 0


SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
OTHERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=32)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, intermediate_size=32, num_key_value_heads=1, head_dim=8)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, intermediate_size=32)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SMALL, intermediate_size=32)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=32, max_position_embeddings=32, word_embed_proj_dim=16)),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_identity_in_other_architectures(name):
    """Identity blocks are found by running them, in sequential and parallel blocks, and can still learn."""
    assert name in SUPPORTED_MODEL_TYPES
    torch.manual_seed(0)
    model = OTHERS[name]().eval()
    student = from_pretrained_inherited(model, InherituneConfig(keep_layers=2))
    recipe = InherituneConfig(growth="continue", new_blocks="identity")
    deeper = expand_student(student, (0, 1), model, (0, 1, 2), recipe, 0)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(deeper(tokens).logits, student(tokens).logits)
    deeper(input_ids=tokens, labels=tokens).loss.backward()
    decoder = deeper.get_decoder()
    blocks = getattr(decoder, "layers", None)
    grads = [parameter.grad.abs().sum().item() for parameter in blocks[2].parameters() if parameter.grad is not None]
    assert sum(grads) > 0


def test_identity_is_refused_where_it_cannot_be():
    """Blocks that normalise after the residual cannot hand on what they get."""
    config = OPTConfig(
        **SMALL, ffn_dim=32, max_position_embeddings=32, word_embed_proj_dim=16, do_layer_norm_before=False
    )
    with pytest.raises(ValueError, match="new_blocks='identity' cannot be made of opt blocks"):
        make_identity(OPTForCausalLM(config).eval(), 1)


def test_layers_cannot_be_dropped(trained, reference):
    """A student that goes on keeps its layers."""
    with pytest.raises(ValueError, match=r"keeps its layers, but \[4\] are not in \[0, 1, 2, 3\]"):
        expand(trained, reference, "reference", wanted=(0, 1, 2, 3))


def adamw(model):
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3)


def step(model, optimizer):
    tokens = torch.tensor(tiny.sequences(4, seed=3))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_optimizer_state_is_carried_by_name(trained, reference):
    """Each trained parameter finds its own moments again, each added one none, and the groups stay right."""
    old = adamw(trained)
    step(trained, old)
    deeper = expand(trained, reference, "reference")
    new = adamw(deeper)
    origins = parameter_origins(trained, (0, 1, 4), deeper, (0, 1, 2, 4, 5))
    carried = carry_optimizer(
        old.state_dict(), group_names(old, trained), new.state_dict(), group_names(new, deeper), origins, True, True
    )
    new.load_state_dict(carried)
    names = {id(parameter): name for name, parameter in deeper.named_parameters()}
    found = {names[id(parameter)]: state for parameter, state in new.state.items()}
    assert not [name for name in found if name.startswith(("transformer.h.2.", "transformer.h.4."))]
    by_name = dict(trained.named_parameters())
    assert len(found) == len(by_name)
    for name, state in found.items():
        assert torch.equal(state["exp_avg"], old.state[by_name[origins[name]]]["exp_avg"])
    step(deeper, new)
    assert len(new.state) == len(dict(deeper.named_parameters()))


def test_missing_state_is_an_error(trained, reference):
    """State that is not complete is not carried in part."""
    old = adamw(trained)
    deeper = expand(trained, reference, "reference")
    new = adamw(deeper)
    origins = parameter_origins(trained, (0, 1, 4), deeper, (0, 1, 2, 4, 5))
    names = (group_names(old, trained), group_names(new, deeper))
    with pytest.raises(ValueError, match=r"has no state for transformer\.wte\.weight, which was trained"):
        carry_optimizer(old.state_dict(), names[0], new.state_dict(), names[1], origins, True, False)
    one = torch.optim.AdamW(trained.parameters())
    with pytest.raises(ValueError, match="had 1 parameter groups and now has 2"):
        carry_optimizer(one.state_dict(), [[]], new.state_dict(), names[1], origins, True, False)


def test_other_model_is_left_in_its_mode(reference):
    """Making an identity block leaves the model in training mode if it was."""
    model = GPT2LMHeadModel(reference.config).train()
    make_identity(model, 1)
    assert model.training


@pytest.fixture
def scaled():
    """A GPT-2 of six layers that divides attention by position."""
    config = GPT2Config(
        n_layer=6, n_embd=16, n_head=2, vocab_size=64, n_positions=16, scale_attn_by_inverse_layer_idx=True
    )
    return GPT2LMHeadModel(config).eval()


def test_trained_blocks_move_only_if_they_may_change_their_scale(scaled):
    """A trained block whose attention is scaled by position is not moved, unless it may take its new position's."""
    recipe = InherituneConfig(growth="continue", keep_layers=[0, 4])
    student = from_pretrained_inherited(scaled, recipe)
    message = (
        r"would move to layer 2 of a GPT-2 with scale_attn_by_inverse_layer_idx=True.* attention_scale 'position'\."
    )
    with pytest.raises(ValueError, match=message):
        expand_student(student, (0, 4), scaled, (0, 1, 4), recipe, 1)
    recipe = InherituneConfig(growth="continue", attention_scale="position", keep_layers=[0, 4])
    student = from_pretrained_inherited(scaled, recipe)
    deeper = expand_student(student, (0, 4), scaled, (0, 1, 4), recipe, 1)
    for place, layer in enumerate((0, 1, 4)):
        assert same(block(deeper, place), block(scaled, layer))


def test_a_copied_block_keeps_the_scale_of_its_origin(scaled):
    """The copy of a block on top of it attends as the block does: its queries make up for the other position."""
    recipe = InherituneConfig(growth="continue", new_blocks="copy_last", keep_layers=4)
    student = from_pretrained_inherited(scaled, recipe)
    deeper = expand_student(student, range(4), scaled, range(5), recipe, 1)
    old, new = block(deeper, 3)["attn.c_attn.weight"], block(deeper, 4)["attn.c_attn.weight"]
    assert torch.equal(new[:, :16], old[:, :16] * (5 / 4))
    assert torch.equal(new[:, 16:], old[:, 16:])
