"""Deeper students from trained ones."""

import copy
import sys
from pathlib import Path

import pytest
import tiny
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
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
from inheritune_hf.students import SUPPORTED_MODEL_TYPES, is_cuttable, open_reference
from inheritune_hf.training.expansion import (
    carry_optimizer,
    expand_student,
    learned_names,
    make_identity,
    moved_scales,
    parameter_names,
    rekeyed,
    rescale_moments,
    try_identity,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "students"))

from families import BESIDES, PROMISED


@pytest.fixture(scope="module")
def reference():
    return tiny.reference_model(layers=6, dropout=0.0)


@pytest.fixture
def trained(reference):
    """A student of layers 0, 1 and 4 that has moved away from its reference."""
    return moved_away(from_pretrained_inherited(reference, InherituneConfig(keep_layers=[0, 1, 4])))


def moved_away(student):
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
    model = OPTForCausalLM(config).eval()
    with pytest.raises(ValueError, match="new_blocks='identity' cannot be made of opt blocks"):
        make_identity(model, 1)


def test_identity_can_be_tried(tmp_path, trained):
    """A run that could not grow by it is refused before its first round; a model on which it was tried is as it was."""
    before = tiny.weights_hash(trained)
    try_identity(trained)
    assert tiny.weights_hash(trained) == before
    config = OPTConfig(
        **SMALL, ffn_dim=32, max_position_embeddings=32, word_embed_proj_dim=16, do_layer_norm_before=False
    )
    recipe = {"keep_layers": 1, "growth": "continue", "new_blocks": "identity"}
    trainer = tiny.make_trainer(tmp_path, OPTForCausalLM(config), recipe)
    with pytest.raises(ValueError, match="new_blocks='identity' cannot be made of opt blocks"):
        trainer.train()
    assert trainer.rounds == ()
    assert trainer.state.global_step == 0


def test_what_was_learned_keeps_its_precision(trained, reference):
    """A reference that is loaded in half precision rounds nothing of what was trained in float32."""
    deeper = expand(trained, open_reference(reference, dtype=torch.bfloat16), "reference")
    assert {tensor.dtype for tensor in deeper.parameters()} == {torch.float32}
    assert same(block(deeper, 3), block(trained, 2))


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


def by_name(optimizer, model):
    return rekeyed(optimizer.state_dict(), dict(enumerate(parameter_names(optimizer, model))))


def test_optimizer_state_is_carried_by_name(trained, reference):
    """Each trained parameter finds its own moments again, each added one none, and the groups stay right."""
    old = adamw(trained)
    step(trained, old)
    deeper = expand(trained, reference, "reference")
    new = adamw(deeper)
    origins = learned_names(deeper, {0: 0, 1: 1, 3: 2})
    carried = carry_optimizer(by_name(old, trained), by_name(new, deeper), origins, True, True)
    places = {name: place for place, name in enumerate(parameter_names(new, deeper))}
    new.load_state_dict(rekeyed(carried, places))
    names = {id(parameter): name for name, parameter in deeper.named_parameters()}
    found = {names[id(parameter)]: state for parameter, state in new.state.items()}
    assert not [name for name in found if name.startswith(("transformer.h.2.", "transformer.h.4."))]
    learned = dict(trained.named_parameters())
    assert len(found) == len(learned)
    for name, state in found.items():
        assert torch.equal(state["exp_avg"], old.state[learned[origins[name]]]["exp_avg"])
    step(deeper, new)
    assert len(new.state) == len(dict(deeper.named_parameters()))


def test_missing_state_is_an_error(trained, reference):
    """State that is not complete is not carried in part; an optimizer that keeps none has nothing to lose."""
    old = adamw(trained)
    for parameter in list(trained.parameters())[1:]:
        parameter.grad = torch.zeros_like(parameter)
    old.step()
    deeper = expand(trained, reference, "reference")
    new = adamw(deeper)
    origins, fresh = learned_names(deeper, {0: 0, 1: 1, 3: 2}), by_name(new, deeper)
    with pytest.raises(ValueError, match=r"has no state for transformer\.wte\.weight, which was trained"):
        carry_optimizer(by_name(old, trained), fresh, origins, True, False)
    assert carry_optimizer(by_name(adamw(trained), trained), fresh, origins, True, False)["state"] == {}
    one = torch.optim.AdamW(trained.parameters())
    with pytest.raises(ValueError, match="had 1 parameter groups and now has 2"):
        carry_optimizer(by_name(one, trained), fresh, origins, True, False)


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


KINDS = [(kind, values) for kind, cases in PROMISED.items() for values in cases]
KINDS += [pytest.param(*pair, marks=pytest.mark.slow) for kind in BESIDES for pair in [(kind, BESIDES[kind][0])]]


# Releases of Transformers before 5.23 script a function of GPTBigCode.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("kind", "values"), KINDS)
def test_blocks_move_in_every_architecture(kind, values):
    """
    A scattered student that gains layers in between is what a student of all of them would be, to the bit: windows,
    experts, convolutions and every other field of a layer move along, whether its blocks were trained or not.
    """
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this Transformers has no {kind}")
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)).eval()
    recipe = InherituneConfig(growth="continue")
    few = next(layers for layers in ((1, 4), (0, 4), (0, 5)) if is_cuttable(reference.config, layers))
    more, tokens = (0, 1, 2, 4, 5), torch.arange(20).reshape(2, 10)
    trained = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.01)
    for given in (reference, trained):
        student = from_pretrained_inherited(given, InherituneConfig(keep_layers=list(few)))
        deeper = expand_student(student, few, given, more, recipe, 0)
        whole = from_pretrained_inherited(given, InherituneConfig(keep_layers=list(more)))
        assert deeper.config.to_dict() == whole.config.to_dict()
        assert same(deeper.state_dict(), whole.state_dict())
        with torch.no_grad():
            assert torch.equal(deeper(tokens, use_cache=False).logits, whole(tokens, use_cache=False).logits)


def test_trained_blocks_that_move_keep_their_scale(scaled):
    """
    A trained block whose attention is scaled by position computes at its new place what it computed: its queries make
    up for it. With attention_scale 'position' they stay as they are.
    """
    recipe = InherituneConfig(growth="continue", new_blocks="identity", keep_layers=[0, 4])
    student = moved_away(from_pretrained_inherited(scaled, recipe))
    deeper = expand_student(student, (0, 4), scaled, (0, 1, 4), recipe, 1)
    tokens = torch.tensor(tiny.sequences(3, seed=5))
    with torch.no_grad():
        assert torch.allclose(deeper(tokens).logits, student(tokens).logits, atol=1e-5)
    assert torch.equal(block(deeper, 2)["attn.c_attn.bias"][:16], block(student, 1)["attn.c_attn.bias"][:16] * (3 / 2))
    assert deeper.config.inheritune["query_scales"] == [1.0, 1.0, 3 / 5]
    recipe = InherituneConfig(growth="continue", attention_scale="position", keep_layers=[0, 4])
    student = from_pretrained_inherited(scaled, recipe)
    deeper = expand_student(student, (0, 4), scaled, (0, 1, 4), recipe, 1)
    for place, layer in enumerate((0, 1, 4)):
        assert same(block(deeper, place), block(scaled, layer))


def test_moments_of_rescaled_queries_follow(scaled):
    """
    Gradients of queries that were multiplied are divided by the factor, so their moments are: what is carried over is
    what the optimizer would have for the same gradients at the new place. Of another state it is not known.
    """
    recipe = InherituneConfig(growth="continue", new_blocks="identity", keep_layers=[0, 4])
    student = from_pretrained_inherited(scaled, recipe)
    deeper = expand_student(student, (0, 4), scaled, (0, 1, 4), recipe, 1)
    states = []
    for model in (student, deeper):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        step(model, optimizer)
        states.append(by_name(optimizer, model)["state"])
    old, wanted = states
    name, before = "transformer.h.2.attn.c_attn.weight", "transformer.h.1.attn.c_attn.weight"
    carried = {name: old[before]}
    untouched = copy.deepcopy(carried)
    scales = moved_scales(deeper, {0: 0, 2: 1}, "keep")
    rescale_moments(carried, deeper, scales)

    def far(state, key, columns):
        (one, other) = (given[name][key][:, columns] for given in (state, wanted))
        return float((one - other).norm() / other.norm())

    for key in ("exp_avg", "exp_avg_sq"):
        assert far(carried, key, slice(0, 16)) < 1e-3 < 0.3 < far(untouched, key, slice(0, 16))
        assert far(carried, key, slice(16, None)) == far(untouched, key, slice(16, None)) < 1e-3
    assert moved_scales(deeper, {0: 0, 2: 1}, "position") == {}
    carried = {name: {"row_means": torch.ones(16)}}
    with pytest.raises(ValueError, match=rf"state row_means of {name} cannot be carried over: that block's queries"):
        rescale_moments(carried, deeper, scales)


def test_a_copy_of_another_kind_of_block_is_refused():
    """A block of experts is no copy for a layer without."""
    reference = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **PROMISED["qwen3_moe"][0]))
    recipe = InherituneConfig(growth="continue", new_blocks="copy_last", keep_layers=[0])
    student = from_pretrained_inherited(reference, recipe)
    with pytest.raises(ValueError, match="cannot put a copy of layer 0 in the place of layer 1, a block of another"):
        expand_student(student, (0,), reference, (0, 1), recipe, 0)


def test_a_copied_block_keeps_the_scale_of_its_origin(scaled):
    """The copy of a block on top of it attends as the block does: its queries make up for the other position."""
    recipe = InherituneConfig(growth="continue", new_blocks="copy_last", keep_layers=4)
    student = from_pretrained_inherited(scaled, recipe)
    deeper = expand_student(student, range(4), scaled, range(5), recipe, 1)
    old, new = block(deeper, 3)["attn.c_attn.weight"], block(deeper, 4)["attn.c_attn.weight"]
    assert torch.equal(new[:, :16], old[:, :16] * (5 / 4))
    assert torch.equal(new[:, 16:], old[:, 16:])
