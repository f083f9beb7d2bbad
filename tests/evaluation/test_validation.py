"""The loss as a sum over a sum, whatever the batches."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from inheritune_hf.data import CausalCollator, set_fingerprint
from inheritune_hf.evaluation import ValidatedTrainer, document_ids, sequence_sums
from inheritune_hf.evaluation.validation import sum_by_document
from inheritune_hf.records import loss_text


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    ).eval()


@pytest.fixture(scope="module")
def rows():
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randint(1, 50, (length,), generator=draw).tolist() for length in [16, 5, 9, 16, 2, 7, 16, 3, 11, 8, 4]
    ]


def measure(model, rows, tmp_path, batch_size, documents=None, **settings):
    columns = {"input_ids": rows} | ({"document": documents} if documents else {})
    trainer = ValidatedTrainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path),
            per_device_eval_batch_size=batch_size,
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **settings,
        ),
        eval_dataset=Dataset.from_dict(columns),
        data_collator=CausalCollator(0),
    )
    return trainer, trainer.evaluate()


def expected_sums(model, rows):
    """Each sequence on its own, without padding, batches or our code."""
    sums = []
    for row in rows:
        tokens = torch.tensor([row])
        with torch.no_grad():
            loss = model(input_ids=tokens, labels=tokens).loss.item()
        sums.append((loss * (len(row) - 1), len(row) - 1))
    return sums


@pytest.mark.parametrize(
    ("batch_size", "lengths", "settings"),
    [
        (1, "padded", {}),
        (3, "padded", {"gradient_accumulation_steps": 4}),
        (8, "padded", {"eval_accumulation_steps": 1}),
        (8, "alike", {}),
    ],
)
def test_loss_does_not_depend_on_batches_or_padding(model, rows, tmp_path, batch_size, lengths, settings):
    """Batches of 1, 3 and 8, padded or not, with accumulation or without, give the loss of each sequence on its own."""
    if lengths == "alike":
        rows = [(row * 8)[:16] for row in rows]
    _, metrics = measure(model, rows, tmp_path, batch_size, **settings)
    losses, tokens = zip(*expected_sums(model, rows), strict=True)
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / sum(tokens), abs=1e-6)
    assert metrics["eval_perplexity"] == pytest.approx(np.exp(metrics["eval_loss"]))


def test_sums_are_kept_by_document(model, rows, tmp_path):
    """Each document's sum is that of its sequences."""
    documents = [0, 0, 1, 3, 3, 3, 4, 5, 5, 9, 9]
    trainer, _ = measure(model, rows, tmp_path, 4, documents)
    found = trainer.validations["eval"]
    assert found.documents == (0, 1, 3, 4, 5, 9)
    assert found.tokens == (19, 8, 15 + 1 + 6, 15, 2 + 10, 7 + 3)
    sums = expected_sums(model, rows)
    assert found.loss_sums[0] == pytest.approx(sums[0][0] + sums[1][0], abs=1e-5)


def test_it_is_known_whether_sequences_are_grouped(model, rows, tmp_path):
    """A set without a column `document` is measured by sequence, and its result says so."""
    alone, _ = measure(model, rows, tmp_path / "alone", 4)
    assert alone.validations["eval"].documents == tuple(range(len(rows)))
    assert not alone.validations["eval"].grouped
    grouped, _ = measure(model, rows, tmp_path / "grouped", 4, list(range(len(rows))))
    assert grouped.validations["eval"] == replace(alone.validations["eval"], grouped=True)


def test_what_is_predicted_has_its_own_documents(model, rows, tmp_path):
    """`predict` groups by the documents of its own set, before an evaluation and after one."""
    documents = [0, 0, 1, 3, 3, 3, 4, 5, 5, 9, 9]
    trainer, _ = measure(model, rows, tmp_path, 4, documents, dataloader_drop_last=True)
    other = Dataset.from_dict({"input_ids": rows, "document": [7] * 10 + [8]})
    metrics = trainer.predict(other).metrics
    assert trainer.validations["test"].documents == (7, 8)
    assert metrics["test_loss"] == pytest.approx(trainer.validations["eval"].loss)


def test_dropping_the_last_training_batch_keeps_the_evaluation_set_whole(model, rows, tmp_path):
    """`dataloader_drop_last` is about training: every sequence is evaluated."""
    trainer, _ = measure(model, rows, tmp_path, 4, dataloader_drop_last=True)
    assert sum(trainer.validations["eval"].tokens) == sum(len(row) - 1 for row in rows)
    assert trainer.args.dataloader_drop_last


def test_evaluating_leaves_the_random_state_alone(model, rows, tmp_path):
    """How often a run evaluates does not change what it trains."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    measure(model, rows, tmp_path, 4)
    torch.manual_seed(3)
    trainer, _ = measure(model, rows, tmp_path, 4)
    torch.manual_seed(3)
    trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_has_diverged_is_measured(model, rows, tmp_path):
    """A loss whose exponential is beyond any float has an infinite perplexity, and does not end the run."""
    diverged = copy.deepcopy(model)
    diverged.lm_head.weight.data.mul_(1e4)
    _, metrics = measure(diverged, rows, tmp_path, 4)
    assert 800 < metrics["eval_loss"] < math.inf
    assert metrics["eval_perplexity"] == math.inf
    assert loss_text(metrics["eval_loss"]).endswith("nats/token (perplexity inf)")


def test_sequence_sums_by_hand():
    """Uniform logits cost log(vocab) for each counted token; ignored and first tokens count nothing."""
    logits = torch.zeros(2, 4, 8)
    logits[1, :, 5] = 1000.0
    labels = torch.tensor([[1, 2, -100, 3], [5, 5, 5, 1]])
    sums = sequence_sums(logits, labels)
    assert sums.dtype == torch.float64
    assert sums[0].tolist() == pytest.approx([2 * np.log(8), 2, 0])
    assert sums[1].tolist() == [1000.0, 3, 2]


def test_reduced_precision_logits_are_summed_in_float32():
    """bfloat16 logits give the loss of their values, not a bfloat16 loss."""
    logits = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(9)[None]
    assert torch.equal(sequence_sums(logits, labels), sequence_sums(logits.float(), labels))


def test_sums_that_cannot_be_used_are_refused():
    """A set without a counted token, and sums that do not fit the documents, are errors."""
    with pytest.raises(ValueError, match="has no token that counts"):
        sum_by_document(np.zeros((2, 3)), [0, 1])
    with pytest.raises(ValueError, match="Got sums of 2 sequences but documents of 3"):
        sum_by_document(np.ones((2, 3)), [0, 1, 2])


def test_documents_of_a_set():
    """A column says the documents; without one each sequence is its own; sets without a length are refused."""
    assert document_ids(Dataset.from_dict({"input_ids": [[1], [2]], "document": [4, 4]})) == [4, 4]
    assert list(document_ids([{"input_ids": [1]}, {"input_ids": [2]}])) == [0, 1]
    named = Dataset.from_dict({"input_ids": [[1], [2]], "document": ["a.txt", "b.txt"]})
    for read in (document_ids, set_fingerprint):
        with pytest.raises(ValueError, match=r"The column document must hold whole numbers, .* got 'a.txt'"):
            read(named)
    stream = IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(ValueError, match="must have a length, got a IterableDataset"):
        document_ids(stream)
