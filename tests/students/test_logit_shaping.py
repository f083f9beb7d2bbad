"""What every supported architecture does to its head's output is known."""

import pytest
import torch
from families import CASES, PROMISED
from transformers import CONFIG_MAPPING

from inheritune_hf.students import logit_shaping
from inheritune_hf.students.losses import choose_loss, computes_from_hidden, loss_of_hidden, summed_loss

PAIRS = [
    pytest.param(kind, values, id=f"{kind}-{n}", marks=[] if kind in PROMISED else pytest.mark.slow)
    for kind, cases in CASES.items()
    for n, values in enumerate(cases)
]


# Releases of Transformers before 5.23 script a function of GPTBigCode (modeling_gpt_bigcode.py, upcast_softmax).
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("kind", "values"), PAIRS)
@pytest.mark.parametrize("method", ["chunked", "linear"])
def test_loss_and_gradients_from_hidden_states(method, kind, values, build, tokens):
    """From last hidden states the loss and every gradient are the model's own, with large logits, a mean and a sum."""
    model = build(CONFIG_MAPPING[kind](**values))
    with torch.no_grad():
        head = model.get_output_embeddings()
        head.weight.mul_(30 / head.weight.norm(dim=1).mean())
    assert computes_from_hidden(model)
    why_not = choose_loss(method, head.out_features, "cpu", model.dtype, logit_shaping(model.config)[1])[1]
    if why_not != "as set":
        pytest.skip(why_not)  # capped logits, or a torch without the operator
    labels = tokens.clone()
    labels[0, :5] = -100

    def compute(head, hidden, targets, items):
        total = summed_loss(head, hidden.flatten(0, 1), targets.flatten(), method)
        return total / ((targets != -100).sum() if items is None else items)

    def run(**kwargs):
        model.zero_grad()
        loss = model(input_ids=tokens, labels=labels, use_cache=False, **kwargs).loss
        loss.backward()
        return loss, {name: item.grad for name, item in model.named_parameters() if item.grad is not None}

    for kwargs in ({}, {"num_items_in_batch": torch.tensor(7)}):
        plain, expected = run(**kwargs)
        with loss_of_hidden(model, compute):
            loss, found = run(**kwargs)
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
        assert found.keys() == expected.keys()
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        for name, gradient in expected.items():
            # As a whole: rounding of large numbers is all of a small one. Some are zero but for rounding, such as that
            # of a bias of keys.
            distance, length = float((found[name] - gradient).norm()), float(gradient.norm())
            assert distance <= 1e-4 * length + 1e-6 * largest, name
