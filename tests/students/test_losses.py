"""The loss from last hidden states: the plain value and gradients, and never all logits."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from inheritune_hf.evaluation import sequence_sums
from inheritune_hf.students import losses
from inheritune_hf.students.losses import (
    Head,
    choose_loss,
    chunk_tokens,
    computes_from_hidden,
    loss_of_hidden,
    summed_loss,
    sums_of_hidden,
)

TOKENS, WIDTH, VOCABULARY = 70, 8, 50
HAS_LINEAR = hasattr(nn.functional, "linear_cross_entropy")
LINEAR = pytest.param(
    "linear",
    marks=pytest.mark.skipif(not HAS_LINEAR, reason="this torch does not have it"),
)


@pytest.fixture(autouse=True)
def few_tokens_at_once(monkeypatch):
    """Chunks of 32 tokens, so that there are several of them."""
    monkeypatch.setattr(losses, "_CHUNK_NUMBERS", 1)


def problem(dtype, bias, factor=1.0, cap=None):
    draw = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(shape, generator=draw).to(dtype).requires_grad_()

    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=draw)
    targets[::7] = -100
    head = Head(tensor(VOCABULARY, WIDTH), tensor(VOCABULARY) if bias else None, factor, cap)
    return head, tensor(TOKENS, WIDTH), targets


def value_and_gradients(total, head, hidden):
    wanted = [item for item in (hidden, head.weight, head.bias) if item is not None]
    return [total, *torch.autograd.grad(3 * total, wanted)]


@pytest.mark.parametrize(
    ("method", "factor", "cap"),
    [("chunked", 1.0, None), ("chunked", 0.3, 5.0), pytest.param(*LINEAR.values, 0.3, None, marks=LINEAR.marks)],
)
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_the_plain_ones(method, factor, cap, bias):
    """Chunk by chunk the loss and its gradients are those of all logits, with factor, cap, bias and ignored tokens."""
    head, hidden, targets = problem(torch.float64, bias, factor, cap)
    plain = nn.functional.cross_entropy(head.logits(hidden), targets, reduction="sum")
    expected = value_and_gradients(plain, head, hidden)
    found = value_and_gradients(summed_loss(head, hidden, targets, method), head, hidden)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_under_autocast_logits_are_in_its_type_and_losses_in_float32(cap):
    """Under bfloat16 autocast the value and gradients are near the plain ones and in float32."""
    head, hidden, targets = problem(torch.float32, True, 1.0, cap)
    with torch.autocast("cpu", torch.bfloat16):
        plain = nn.functional.cross_entropy(head.logits(hidden).float(), targets, reduction="sum")
        expected = value_and_gradients(plain, head, hidden)
        found = value_and_gradients(summed_loss(head, hidden, targets, "chunked"), head, hidden)
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        one, other = one.detach(), other.detach()
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.03 * float(other.abs().max()))


def test_going_backward_twice_is_refused():
    """The gradients are used up by the first pass; a second one would be wrong."""
    head, hidden, targets = problem(torch.float32, False)
    total = summed_loss(head, hidden, targets, "chunked")
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up; call backward once"):
        total.backward()


def test_sums_of_sequences_are_those_of_their_logits():
    """Losses, counts and hits of each sequence are what its logits give."""
    head, hidden, _ = problem(torch.float32, True, 0.5, 20.0)
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(0, VOCABULARY, (5, TOKENS // 5), generator=draw)
    labels[0] = -100
    labels[2, :4] = -100
    hidden = hidden.detach().view(5, -1, WIDTH)
    targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    found = sums_of_hidden(head, hidden, targets)
    expected = sequence_sums(head.logits(hidden), labels)
    assert found.dtype == torch.float64
    assert torch.equal(found[:, 1:], expected[:, 1:])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """Remembers the numbers in the largest tensor that any operation returned."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in tree_iter(result):
            if isinstance(item, torch.Tensor):
                self.numbers = max(self.numbers, item.numel())
        return result


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=1000, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


def test_all_logits_are_never_there():
    """Training and evaluating from hidden states, no tensor is as large as all logits; the plain way has one."""
    model, tokens = gpt2(), torch.arange(8 * 16).view(8, 16)

    def train(head, hidden, targets, _):
        return summed_loss(head, hidden.flatten(0, 1), targets.flatten(), "chunked")

    def evaluate(head, hidden, targets, _):
        return sums_of_hidden(head, hidden, targets)[:, 0].sum()

    for compute in (train, evaluate):
        with Largest() as seen, loss_of_hidden(model, compute):
            loss = model(input_ids=tokens, labels=tokens).loss
            if compute is train:
                loss.backward()
        assert chunk_tokens(1000) * 1000 <= seen.numbers < 8 * 15 * 1000
    with Largest() as seen:
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert seen.numbers >= 8 * 15 * 1000


def test_model_is_what_it_was_afterwards():
    """Within the context logits are empty; after it, even after an error, the model knows nothing of it."""
    model, tokens = gpt2().eval(), torch.arange(16)[None]
    before = model(input_ids=tokens, labels=tokens)
    kept = dict(vars(model))

    def fail(*_):
        raise ArithmeticError

    with loss_of_hidden(model, lambda *_: torch.zeros(())):
        assert model(input_ids=tokens, labels=tokens).logits.numel() == 0
    with pytest.raises(ArithmeticError), loss_of_hidden(model, fail):
        model(input_ids=tokens, labels=tokens)
    assert computes_from_hidden(model)
    after = model(input_ids=tokens, labels=tokens)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)
    assert vars(model).keys() == kept.keys()
    assert not model.lm_head._forward_pre_hooks


def test_a_cap_nobody_knows_of_is_noticed(monkeypatch):
    """A model whose logits are not what its head is known to make is left to compute its loss itself."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=8,
        num_key_value_heads=1,
    )
    model = Gemma2ForCausalLM(config).train()
    state = torch.get_rng_state()
    assert computes_from_hidden(model)
    monkeypatch.setattr(losses, "logit_shaping", lambda config: (1.0, None))
    assert not computes_from_hidden(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_of_another_kind_is_left_alone():
    """A head that is no plain linear map, such as one with adapters, computes its logits itself."""

    class Adapted(nn.Linear):
        pass

    model = gpt2()
    model.lm_head = Adapted(8, 1000, bias=False)
    assert not computes_from_hidden(model)


def choice(setting="auto", vocabulary=50257, device="cpu", dtype=torch.float32, cap=None):
    return choose_loss(setting, vocabulary, device, dtype, cap)


def test_choice_by_device_and_size(monkeypatch):
    """A small vocabulary takes all logits; a large one PyTorch's operator where it can, else chunks; Liger on CUDA."""
    monkeypatch.setattr(nn.functional, "linear_cross_entropy", None, raising=False)
    monkeypatch.setattr(losses.importlib.util, "find_spec", lambda name: None)
    assert choice(vocabulary=4096) == ("full", "a vocabulary of 4,096 tokens is small")
    assert choice() == ("linear", "a vocabulary of 50,257 tokens on cpu")
    assert choice(cap=30.0)[0] == "chunked"
    assert choice(dtype=torch.bfloat16)[0] == "chunked"
    assert choice(device="cuda")[0] == "linear"
    monkeypatch.setattr(losses.importlib.util, "find_spec", lambda name: True)
    assert choice(device="cuda", dtype=torch.bfloat16)[0] == "liger"
    assert choice(device="cuda", cap=30.0)[0] == "liger"
    monkeypatch.delattr(nn.functional, "linear_cross_entropy")
    assert choice()[0] == "chunked"


@pytest.mark.parametrize("setting", ["full", "chunked", "liger"])
def test_what_is_set_is_used(setting, monkeypatch):
    """A setting is taken whatever the size."""
    monkeypatch.setattr(losses.importlib.util, "find_spec", lambda name: True)
    assert choice(setting, vocabulary=64, device="cuda") == (setting, "as set")


def test_what_cannot_be_used_is_said(monkeypatch):
    """Where a setting cannot be used the reason comes with what is used instead."""
    assert choice("liger") == ("linear" if HAS_LINEAR else "chunked", "not liger: it needs a CUDA device, not cpu")
    monkeypatch.setattr(losses.importlib.util, "find_spec", lambda name: None)
    assert choice("liger", device="cuda")[1] == "not liger: liger-kernel is not installed"
    monkeypatch.setattr(nn.functional, "linear_cross_entropy", None, raising=False)
    assert choice("linear", cap=30.0) == ("chunked", "not linear: it knows no capped logits")
    assert choice("linear", dtype=torch.bfloat16)[1] == "not linear: it would sum losses in torch.bfloat16"
    monkeypatch.delattr(nn.functional, "linear_cross_entropy")
    assert "has no linear_cross_entropy" in choice("linear")[1]
    assert choice("chunked", dtype=torch.float16)[0] == "full"
