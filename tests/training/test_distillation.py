"""A student that is taught by its reference: losses, chunks, maps of layers, and whole runs."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub import constants
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.quantizers import HfQuantizer, quantizer_bnb_8bit
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from inheritune_hf import InherituneConfig, InherituneTrainer
from inheritune_hf.data import CausalCollator
from inheritune_hf.distillation_losses import DISTILLATION_LOSSES, DistillationLoss
from inheritune_hf.students import estimate_run
from inheritune_hf.students.losses import Head
from inheritune_hf.training import distillation
from inheritune_hf.training.distillation import (
    Teacher,
    TopKStore,
    block_map,
    chunked_sum,
    states_sum,
    top_k_sum,
    weighted_sum,
)

WEIGHTS = {"cross_entropy": 0.6, "forward_kl": 0.4, "reverse_kl": 0.3, "jsd": 0.2}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(student, teacher, targets, weights, temperature):
    """The same losses from probabilities, token by token."""
    total = 0.0
    for scores, given, target in zip(student, teacher, targets, strict=True):
        if target == -100:
            continue
        p, q = torch.softmax(scores / temperature, -1), torch.softmax(given / temperature, -1)
        m = (p + q) / 2
        kl = {
            "forward_kl": sum(q * torch.log(q / p)),
            "reverse_kl": sum(p * torch.log(p / q)),
            "jsd": (sum(p * torch.log(p / m)) + sum(q * torch.log(q / m))) / 2,
        }
        total += weights["cross_entropy"] * -torch.log_softmax(scores, -1)[target]
        total += temperature**2 * sum(weights[name] * value for name, value in kl.items())
    return total


def test_the_teachers_head_keeps_its_precision():
    """Within the student's mixed precision the teacher's logits are those that it has outside, as its body's are."""
    teacher = Teacher(tiny.reference_model(), {"forward_kl": 1.0}, 1.0, (0,))
    compare = teacher._compare_with(Head(draw(11, 8).float()))
    scores, hidden, targets = draw(7, 11, seed=1).float(), draw(7, 8, seed=2).float(), torch.arange(7)
    outside = compare(scores, targets, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compare(scores, targets, hidden), outside)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_losses_are_what_their_formulas_say(temperature):
    """Every loss, summed over the tokens that count; none between equal distributions."""
    student, teacher = draw(7, 11), draw(7, 11, seed=1)
    targets = torch.tensor([3, -100, 0, 10, 5, -100, 2])
    torch.testing.assert_close(
        weighted_sum(student, teacher, targets, WEIGHTS, temperature),
        by_hand(student, teacher, targets, WEIGHTS, temperature),
    )
    only = {name: weight for name, weight in WEIGHTS.items() if name != "cross_entropy"}
    assert weighted_sum(student, student, targets, only, temperature).abs() < 1e-12


def test_chunks_give_the_same_loss_and_gradients(monkeypatch):
    """Logits of a few tokens at a time: value and gradients are those of all at once."""
    monkeypatch.setattr(distillation, "chunk_tokens", lambda _: 4)
    targets = torch.randint(0, 11, (10,), generator=torch.Generator().manual_seed(5))
    targets[3] = -100
    hidden, weight = draw(10, 6).requires_grad_(), draw(11, 6, seed=1).requires_grad_()
    teacher, taught = Head(draw(11, 8, seed=2), cap=5.0), draw(10, 8, seed=3)

    def compare(scores, wanted, said):
        return weighted_sum(scores, teacher.logits(said).float(), wanted, WEIGHTS, 2.0)

    chunked = chunked_sum(Head(weight, factor=0.5), hidden, targets, (taught,), compare)
    chunked.backward()
    gradients = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    whole = weighted_sum(
        Head(weight, factor=0.5).logits(hidden).float(), teacher.logits(taught).float(), targets, WEIGHTS, 2.0
    )
    whole.backward()
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(gradients, (hidden.grad, weight.grad))


def test_top_k_with_all_tokens_is_the_whole_loss():
    """With k tokens known the rest is one class; with all but one it is the whole distribution."""
    student, teacher = draw(6, 9), draw(6, 9, seed=1)
    targets = torch.tensor([1, 2, -100, 4, 5, 0])
    likeliest = torch.log_softmax(teacher / 2.0, -1).topk(8)
    known = top_k_sum(student, likeliest.indices, likeliest.values, targets, WEIGHTS, 2.0)
    torch.testing.assert_close(known, weighted_sum(student, teacher, targets, WEIGHTS, 2.0))
    few = torch.log_softmax(teacher / 2.0, -1).topk(2)
    less = top_k_sum(student, few.indices, few.values, targets, {"forward_kl": 1.0}, 2.0)
    assert 0 < less < weighted_sum(student, teacher, targets, {"forward_kl": 1.0}, 2.0)


def test_states_are_compared_pair_by_pair():
    """Mean over pairs and channels, summed over the tokens that count."""
    own, given = [draw(4, 6), draw(4, 6, seed=1)], [draw(4, 6, seed=2), draw(4, 6, seed=3)]
    targets = torch.tensor([1, -100, 2, 3])
    counts = targets != -100
    mse = sum(((left - right) ** 2).mean(1)[counts].sum() for left, right in zip(own, given, strict=True)) / 2
    cosine = sum(
        (1 - nn.functional.cosine_similarity(left, right))[counts].sum() for left, right in zip(own, given, strict=True)
    )
    wanted = 2.0 * mse + 3.0 * cosine / 2
    found = states_sum(own, given, targets, {"hidden_mse": 2.0, "hidden_cosine": 3.0})
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_blocks_stand_for_the_layers_they_came_from():
    """By lineage; a student that inherited nothing is mapped by share of depth."""
    assert block_map((0, 2, 5), 3, 6) == (0, 2, 5)
    assert block_map((), 3, 6) == (1, 3, 5)
    assert block_map((), 4, 4) == (0, 1, 2, 3)


@pytest.mark.parametrize("whole", [False, True])
def test_teacher_gives_the_models_loss(whole):
    """The loss that a student takes is the one computed from both models' logits and states; both stay as they were."""
    student, reference = tiny.reference_model(layers=2, dropout=0.0, seed=1), tiny.reference_model(dropout=0.0)
    weights = {"cross_entropy": 0.5, "forward_kl": 0.5, "hidden_mse": 0.25}
    before = tiny.weights_hash(reference)
    teacher = Teacher(reference, weights, 2.0, (0, 3))
    tokens = torch.tensor(tiny.sequences(3, seed=4))
    with teacher.teaching(student, {"input_ids": tokens, "labels": tokens}, whole):
        found = student(input_ids=tokens, labels=tokens).loss
    own = student(tokens, output_hidden_states=True)
    given = reference(tokens, output_hidden_states=True)
    targets = nn.functional.pad(tokens, (0, 1), value=-100)[:, 1:].reshape(-1)
    total = weighted_sum(own.logits.flatten(0, 1), given.logits.flatten(0, 1), targets, weights, 2.0)
    blocks = _block_states(student, tokens), _block_states(reference, tokens)
    total = total + states_sum(blocks[0], [blocks[1][0], blocks[1][3]], targets, weights)
    torch.testing.assert_close(found, total / (targets != -100).sum())
    assert tiny.weights_hash(reference) == before
    torch.testing.assert_close(
        student(input_ids=tokens, labels=tokens).loss,
        nn.functional.cross_entropy(own.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()),
    )


def _block_states(model, tokens):
    states = []
    handles = [
        block.register_forward_hook(
            lambda _block, _inputs, output: states.append(
                (output[0] if isinstance(output, tuple) else output).flatten(0, 1)
            )
        )
        for block in model.transformer.h
    ]
    model(tokens)
    for handle in handles:
        handle.remove()
    return states


def test_run_with_a_teacher_is_judged_by_the_plain_loss(tmp_path):
    """Rounds with distillation train otherwise, are judged by cross-entropy, and let the reference go."""
    reference = tiny.write_reference(tmp_path / "reference", steps=20)
    runs = {}
    for name, recipe in {
        "plain": {},
        "same": {"distillation": "cross_entropy=1.0"},
        "taught": {"distillation": "cross_entropy=0.6,forward_kl=0.4", "distillation_temperature": 2.0},
    }.items():
        trainer = tiny.make_trainer(tmp_path / name, reference, {"max_layers": 2, **recipe})
        trainer.train()
        assert trainer.teacher is None
        runs[name] = trainer
    losses = {name: [item.loss for item in trainer.rounds] for name, trainer in runs.items()}
    assert losses["same"] == pytest.approx(losses["plain"], abs=2e-4)
    assert losses["taught"] != pytest.approx(losses["plain"], abs=1e-4)
    taught = runs["taught"]
    evaluated = taught.evaluate()["eval_loss"]
    assert taught.rounds[-1].loss == pytest.approx(evaluated, abs=1e-6)


def test_likeliest_tokens_are_kept_and_found(tmp_path):
    """What is kept is found by its tokens, by any process; what a killed one left half written is not."""
    store = TopKStore(tmp_path, 6, 3)
    rows = [torch.tensor(row) for row in ([5, 9, 3, 1, 0, 7], [5, 9, 3])]
    kept = [(torch.randint(0, 64, (len(row), 3)), draw(len(row), 3).float()) for row in rows]
    for row, (tokens, values) in zip(rows, kept, strict=True):
        store.keep(row, tokens, values)
        store.keep(row, tokens + 1, values)  # kept already
    for path in tmp_path.glob("*.records"):
        path.write_bytes(path.read_bytes() + b"half")
    again = TopKStore(tmp_path, 6, 3, process=1)
    assert len(again) == 2
    again.keep(torch.tensor([1]), torch.tensor([[1, 2, 3]]), torch.zeros(1, 3))
    for reader in (again, TopKStore(tmp_path, 6, 3)):
        for row, wanted in zip(rows, kept, strict=True):
            assert all(torch.equal(left, right) for left, right in zip(reader.find(row), wanted, strict=True))
    assert len(TopKStore(tmp_path, 6, 3)) == 3
    assert again.find(torch.tensor([2])) is None
    with pytest.raises(ValueError, match="up to 6 tokens, got one of 7"):
        again.keep(torch.arange(7), torch.zeros(7, 3), torch.zeros(7, 3))


def test_teacher_runs_once_over_each_sequence(tmp_path, monkeypatch):
    """With k tokens kept, a second run finds them all on disk; with nearly all tokens it is the whole loss."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    reference = tiny.write_reference(tmp_path / "reference", steps=20)
    calls, run = [], Teacher._run
    monkeypatch.setattr(Teacher, "_run", lambda *given: calls.append(1) or run(*given))
    losses = {}
    for name, recipe in {"whole": {}, "first": {"distillation_top_k": 63}, "again": {"distillation_top_k": 63}}.items():
        calls.clear()
        settings = {"max_layers": 1, "distillation": "cross_entropy=0.5,forward_kl=0.5", **recipe}
        trainer = tiny.make_trainer(tmp_path / name, reference, settings)
        trainer.train()
        losses[name] = trainer.rounds[-1].loss
        kept = sum(path.stat().st_size // 16 for path in tmp_path.glob("home/*/*/*/*.digests"))
        assert len(calls) == {"whole": 10, "first": kept, "again": 0}[name]
        assert kept <= 40  # ten steps of four sequences
    assert losses["first"] == losses["again"] == pytest.approx(losses["whole"], abs=1e-4)


@pytest.fixture
def rounding(monkeypatch):
    """A quantization that rounds weights while they are read, and keeps what it was used on."""
    used = []

    class Rounding(HfQuantizer):
        is_serializable, is_trainable = False, False

        def validate_environment(self, *args, **kwargs):
            if self.quantization_config.missing:
                raise ImportError("Rounding needs a package: `pip install rounding`\n(or not)")

        def _process_model_after_weight_loading(self, model, **kwargs):
            used.append((self.quantization_config.steps, kwargs.get("device_map"), model))
            with torch.no_grad():
                for weight in model.parameters():
                    weight.copy_((weight * self.quantization_config.steps).round() / self.quantization_config.steps)

    class RoundingConfig(QuantizationConfigMixin):
        def __init__(self, steps=1, missing=False, **_):
            self.quant_method, self.steps, self.missing = "rounding", steps, missing

    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, "rounding", Rounding)
    monkeypatch.setitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "rounding", RoundingConfig)
    return used


def test_the_teacher_alone_is_quantized(tmp_path, rounding):
    """Once a round the teacher is read quantized; what is measured, staged and saved is not, nor says that it is."""
    reference = tiny.write_reference(tmp_path / "reference", steps=20)
    taught = {"max_layers": 2, "distillation": "forward_kl=1", "steps_per_round": 4}
    plain = tiny.make_trainer(tmp_path / "plain", reference, taught)
    plain.train()
    assert rounding == []
    quantized = {**taught, "distillation_quantization": {"quant_method": "rounding", "steps": 2}}
    trainer = tiny.make_trainer(tmp_path / "quantized", reference, quantized)
    trainer.train()
    assert [steps for steps, *_ in rounding] == [2, 2]
    weights = [weight for *_, teacher in rounding for weight in teacher.parameters()]
    assert all(torch.equal(weight * 2, (weight * 2).round()) for weight in weights)
    assert trainer.reference_validation == plain.reference_validation
    assert tiny.weights_hash(trainer.student) != tiny.weights_hash(plain.student)
    trainer.save_model()
    assert "quantization_config" not in (tmp_path / "quantized" / "config.json").read_text()
    assert getattr(trainer.reference.config, "quantization_config", None) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("8bit", r"distillation_quantization='8bit' cannot be used here: .*requires bitsandbytes: `pip install"),
        ({"quant_method": "rounding", "missing": True}, r"cannot be used here: Rounding needs a package: `pip install"),
        ({"quant_method": "no such"}, r"cannot be used here: Unknown quantization type, got no such"),
    ],
    ids=str,
)
def test_a_quantization_that_cannot_be_made_is_refused(tmp_path, rounding, monkeypatch, given, message):
    """A missing package is named before anything is read; without distillation nothing is quantized."""
    monkeypatch.setattr(quantizer_bnb_8bit, "is_bitsandbytes_available", lambda: False)
    recipe = {"distillation": "forward_kl=1", "distillation_quantization": given}
    with pytest.raises(ValueError, match=message):
        tiny.make_trainer(tmp_path, str(tmp_path / "nowhere"), recipe)
    reference = tiny.write_reference(tmp_path / "reference")
    assert tiny.make_trainer(tmp_path, reference, {**recipe, "distillation": None}).teacher is None


def test_only_a_reference_that_is_read_whole_is_quantized(tmp_path, rounding):
    """A model in memory, a text model and a GGUF file are refused, by `plan` too."""
    recipe = {"distillation": "forward_kl=1", "distillation_quantization": {"quant_method": "rounding", "steps": 2}}
    model = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=64, n_positions=32))
    with pytest.raises(ValueError, match="give its id or path, no model in memory, text_model or gguf_file"):
        tiny.make_trainer(tmp_path, model, recipe)
    with pytest.raises(ValueError, match="give its id or path, no model in memory, text_model or gguf_file"):
        estimate_run(model, InherituneConfig(**recipe, steps_per_round=2))


@pytest.mark.parametrize("given", ["2bit", {"load_in_8bit": True}])
def test_what_is_no_quantization_is_refused(given):
    """A word is one of two; a mapping says which method."""
    message = r"distillation_quantization must be 8bit, 4bit or a mapping with quant_method, got "
    with pytest.raises(ValueError, match=message):
        InherituneConfig(distillation_quantization=given)


def test_a_model_in_memory_cannot_be_quantized(tmp_path, rounding):
    """It was read already."""
    recipe = {"distillation": "forward_kl=1", "distillation_quantization": {"quant_method": "rounding"}}
    with pytest.raises(ValueError, match=r"quantizes the reference while it is read: give its id or path, no model"):
        tiny.make_trainer(tmp_path, tiny.reference_model(), recipe)


def test_states_need_the_teacher():
    """A store of likeliest tokens has no states to compare with: the recipe says so, before anything is read."""
    with pytest.raises(ValueError, match="leave hidden_mse out of distillation, or distillation_top_k"):
        InherituneConfig(distillation="hidden_mse=1", distillation_top_k=2)


def test_no_more_tokens_are_kept_than_there_are(tmp_path):
    """More likeliest tokens than the vocabulary has are refused before anything is measured."""
    recipe = {"distillation": "forward_kl=1", "distillation_top_k": 65}
    with pytest.raises(ValueError, match=r"distillation_top_k=65 is more than the reference has tokens \(64\)"):
        tiny.make_trainer(tmp_path, tiny.reference_model(), recipe)


def test_a_sequence_is_more_than_its_tokens_with_boundaries(tmp_path):
    """What is kept by tokens alone cannot be found where documents have positions of their own."""
    recipe = InherituneConfig(distillation="forward_kl=1", distillation_top_k=2, steps_per_round=1)
    sets = {"train_dataset": tiny.train_set(), "eval_dataset": tiny.selection_set()}
    with pytest.raises(ValueError, match="document_boundaries add positions: leave one of them out"):
        InherituneTrainer(
            tiny.reference_model(), recipe, tiny.arguments(tmp_path), data_collator=CausalCollator(0, 0), **sets
        )


def test_two_runs_keep_their_own_records(tmp_path):
    """Runs that share a teacher write at the same time: each finds its own sequences, and later ones find all."""
    one, other = TopKStore(tmp_path, 4, 1), TopKStore(tmp_path, 4, 1)
    rows = [torch.full((4,), value) for value in range(3)]
    for store, row in ((one, rows[0]), (other, rows[1]), (one, rows[2])):
        store.keep(row, row[:, None], row[:, None].float())
    for store, own in ((one, (0, 2)), (other, (1,)), (TopKStore(tmp_path, 4, 1), (0, 1, 2))):
        for place in own:
            assert torch.equal(store.find(rows[place])[0][:, 0], rows[place])


@pytest.mark.parametrize(
    "text", ["cross_entropy", "cross_entropy=0", "kl=1", "forward_kl=1,forward_kl=1", "forward_kl=-1", ""]
)
def test_what_is_no_distillation_is_refused(text):
    """Each loss is known, has a weight above 0, and comes once."""
    with pytest.raises(ValueError, match=r"distillation must be 'none' or losses out of cross_entropy, forward_kl"):
        InherituneConfig(distillation=text)


def test_weights_are_read():
    """The paper's baseline in the recipe's notation."""
    recipe = InherituneConfig(distillation="cross_entropy=0.6, forward_kl=0.4")
    assert recipe.distillation_weights == {"cross_entropy": 0.6, "forward_kl": 0.4}
    assert math.isclose(sum(recipe.distillation_weights.values()), 1.0)


def test_states_of_other_widths_are_refused():
    """A student whose states have other channels than the teacher's is refused with both widths."""
    narrow = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=32, n_positions=16))
    wide = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=16))
    distillation._check_width(wide, wide)
    with pytest.raises(ValueError, match="the student's have 8 channels, the teacher's 16"):
        distillation._check_width(narrow, wide)
    assert distillation.compares_states(InherituneConfig(distillation="cross_entropy=1,hidden_cosine=1"))
    assert not distillation.compares_states(InherituneConfig(distillation="cross_entropy=1"))
    assert not distillation.compares_states(InherituneConfig())


@pytest.mark.parametrize("kind", ["logits", "states"])
def test_a_loss_is_added_in_one_place(kind, tmp_path, monkeypatch):
    """One entry of the registry is a loss that a recipe may name, and that trains."""
    seen = []

    def absolute(student, teacher):
        seen.append(student.shape)
        return (student.exp() - teacher.exp()).abs().sum(-1) if kind == "logits" else (student - teacher).abs().mean(-1)

    monkeypatch.setitem(DISTILLATION_LOSSES, "absolute", DistillationLoss(kind, "absolute difference", absolute))
    recipe = {"keep_layers": 2, "max_layers": 2, "steps_per_round": 2, "distillation": "cross_entropy=0.5,absolute=0.5"}
    trainer = tiny.make_trainer(tmp_path / "run", tiny.reference_model(), recipe)
    trainer.train()
    assert set(seen) == {torch.Size([64, tiny.VOCABULARY if kind == "logits" else 16])}
    with pytest.raises(ValueError, match=r"losses out of .*, absolute, each once"):
        InherituneConfig(distillation="relative=1")


def test_every_loss_is_in_the_guide():
    """The guide's table has a row for each loss."""
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "distill.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in guide for name in DISTILLATION_LOSSES)
