"""Runs that are fed by a stream: they go on where they stopped, in one process and in two, across rounds."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import pytest
import tiny
import torch
from datasets import Dataset
from test_trainer import run_program
from tiny_reference import save_reference
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    TrainingArguments,
)

from inheritune_hf import InherituneConfig, InherituneTrainer
from inheritune_hf.config import DataConfig
from inheritune_hf.data import CausalCollator, load_data_splits, set_fingerprint
from inheritune_hf.data.sources import Layout
from inheritune_hf.data.stream import Exclusion
from inheritune_hf.data.tokenization import Encoder
from inheritune_hf.training.data_loading import check_boundaries

SHARDS = [(0, 9), (9, 4), (13, 20), (33, 7)]
TWO_ROUNDS = {"steps_per_round": 10, "max_layers": 2}

pytestmark = [pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny")


def settings_of(tmp_path, reference, name, **changes):
    (tmp_path / f"{name}-seen").mkdir(exist_ok=True)
    return {
        "output_dir": str(tmp_path / name),
        "result": str(tmp_path / f"{name}.json"),
        "seen": str(tmp_path / f"{name}-seen"),
        "reference": reference,
        "recipe": TWO_ROUNDS,
        "shards": SHARDS,
        **changes,
    }


def seen(tmp_path, name, rank=0):
    """The batches that a process trained on by step; a step that was trained again counts once, the last time."""
    lines = (tmp_path / f"{name}-seen" / f"{rank}.jsonl").read_text().splitlines()
    return dict(json.loads(line) for line in lines)


def without_last_loss(result):
    """Trainer's summary of a training is a mean over the steps of its own session."""
    return {**result, "history": [row for row in result["history"] if "train_loss" not in row]}


def tokens_of(batches):
    return [token for step in sorted(batches) for row in batches[step] for token in row]


@pytest.mark.parametrize(("order", "workers", "shuffle"), [("restart", 0, 0), ("continue", 2, 5)])
def test_killed_run_goes_on_token_by_token(reference, tmp_path, order, workers, shuffle):
    """SIGKILL in round 2: the batches, the weights and the log of an uninterrupted run."""
    recipe = {**TWO_ROUNDS, "data_order": order}
    common = {"recipe": recipe, "args": {"dataloader_num_workers": workers}, "shuffle": shuffle}
    whole = run_program(settings_of(tmp_path, reference, "whole", **common))
    cut = settings_of(tmp_path, reference, "cut", **common)
    assert run_program({**cut, "kill_at": 14}, check=False).returncode == -signal.SIGKILL
    resumed = run_program(cut)
    assert without_last_loss(resumed) == without_last_loss(whole)
    assert seen(tmp_path, "cut") == seen(tmp_path, "whole")
    assert whole["epochs"][0] == 1.0
    first, second = (
        tokens_of({s: b for s, b in seen(tmp_path, "whole").items() if (s >= 10) == late}) for late in (0, 1)
    )
    assert (first == second) == (order == "restart")


def test_rounds_that_continue_read_the_stream_once(reference, tmp_path):
    """With data_order 'continue', the batches of all rounds, end to end, are the documents in order."""
    recipe = {**TWO_ROUNDS, "data_order": "continue"}
    run_program(settings_of(tmp_path, reference, "run", recipe=recipe, shards=[(0, 60)]))
    once = [t for row in tiny.stream_rows([(0, 60)]) for t in [*row["input_ids"], 0]]
    trained = tokens_of(seen(tmp_path, "run"))
    assert len(trained) == 2 * 10 * 4 * tiny.TOKENS
    assert trained == (once * (len(trained) // len(once) + 1))[: len(trained)]


def test_map_style_rounds_continue_too(reference, tmp_path):
    """A data set with a length is gone on with as well: no batch of round 1 comes again before the rest has come."""
    recipe = {**TWO_ROUNDS, "data_order": "continue"}
    settings = settings_of(tmp_path, reference, "run", recipe=recipe)
    del settings["shards"]
    run_program(settings)
    rows = [tuple(row) for step, batch in sorted(seen(tmp_path, "run").items()) for row in batch]
    expected = sorted(tuple(row) for row in tiny.train_set()["input_ids"])
    assert sorted(rows) == expected  # 2 rounds of 10 steps of 4 rows: every one of the 80 rows once


@pytest.mark.slow
def test_two_processes_share_documents_out_and_go_on(reference, tmp_path):
    """Two processes with workers: no document is read by both, a kill changes nothing, and no one waits for ever."""
    shards = [(0, 2), (2, 30), (32, 3), (35, 8)]  # the first process has 5 documents, the second 38
    args = {"per_device_train_batch_size": 2, "dataloader_num_workers": 1}
    common = {"shards": shards, "args": args}
    whole = run_program(settings_of(tmp_path, reference, "whole", **common), processes=2)
    cut = settings_of(tmp_path, reference, "cut", **common)
    assert not isinstance(run_program({**cut, "kill_at": 14}, processes=2, check=False), dict)
    resumed = run_program(cut, processes=2)
    assert without_last_loss(resumed) == without_last_loss(whole)
    assert whole["world_size"] == 2
    documents = []
    for rank, own in enumerate([[(0, 2), (32, 3)], [(2, 30), (35, 8)]]):
        assert seen(tmp_path, "cut", rank) == seen(tmp_path, "whole", rank)
        once = [t for row in tiny.stream_rows(own) for t in [*row["input_ids"], 0]]
        first_round = tokens_of({s: b for s, b in seen(tmp_path, "whole", rank).items() if s < 10})
        assert first_round == (once * (len(first_round) // len(once) + 1))[: len(first_round)]
        documents.append(set(first_round) - {0})
    assert not documents[0] & documents[1]
    state = json.loads((tmp_path / "whole" / "checkpoint-20" / "stream_0.json").read_text())
    assert state["workers"]["0"]["sources"][0]["counts"]["passes"] > 1


@pytest.mark.slow
def test_two_processes_continue_across_rounds(reference, tmp_path):
    """With data_order 'continue' each process reads its own documents in order; passes and counts are those of both."""
    shards = [(0, 2), (2, 30), (32, 3), (35, 8)]
    args = {"per_device_train_batch_size": 2, "dataloader_num_workers": 1}
    recipe = {**TWO_ROUNDS, "data_order": "continue"}
    settings = settings_of(tmp_path, reference, "run", shards=shards, args=args, recipe=recipe, held_out=0.3)
    result = run_program(settings, processes=2)
    assert result["world_size"] == 2
    counts, exclusion = [], Exclusion(share=0.3)
    for rank, own in enumerate([[(0, 2), (32, 3)], [(2, 30), (35, 8)]]):
        documents = Encoder(SimpleNamespace(eos_token_id=0), Layout(rows="tokens"))(columns(tiny.stream_rows(own)))
        kept = [row for row, kind in zip(documents, exclusion(documents), strict=True) if not kind]
        once = [token for row in kept for token in row.tokens.tolist()]
        trained = tokens_of(seen(tmp_path, "run", rank))
        assert len(trained) == 2 * 10 * 2 * tiny.TOKENS
        assert trained == (once * (len(trained) // len(once) + 1))[: len(trained)]
        place = json.loads((tmp_path / "run" / "checkpoint-20" / f"stream_{rank}.json").read_text())
        counts.append(place["workers"]["0"]["sources"][0]["counts"])
    assert counts[0]["passes"] > counts[1]["passes"] == result["epochs"][1]
    last = next(row for row in reversed(result["history"]) if "stream_left_out" in row)
    assert last["stream_left_out"] == counts[0]["left_out"] + counts[1]["left_out"] > counts[0]["left_out"] > 0
    assert last["epoch"] == counts[1]["passes"]


def columns(rows):
    rows = list(rows)
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_what_a_stream_leaves_out_is_logged(reference, tmp_path):
    """The log says how many documents a process left out so far (of groups read whole), and nothing else."""
    stream = tiny.stream(SHARDS)
    stream.exclusion = Exclusion(seed=0, share=0.5)
    trainer = tiny.make_trainer(tmp_path / "run", reference, {"steps_per_round": 4, "max_layers": 1}, train=stream)
    trainer.train()
    assert trainer.stream.state.total("left_out") > 0
    assert trainer.state.log_history[-1]["stream_left_out"] == trainer.stream.state.total("left_out")
    assert not any("stream_damaged" in row or "stream_near" in row for row in trainer.state.log_history)


def test_another_number_of_workers_is_another_run(reference, tmp_path):
    """A stream is dealt among workers: their number cannot change when a run goes on."""
    recipe = {"steps_per_round": 2, "max_layers": 1}
    tiny.make_trainer(tmp_path / "run", reference, recipe, train=tiny.stream(SHARDS)).train()
    other = tiny.make_trainer(tmp_path / "run", reference, recipe, train=tiny.stream(SHARDS), dataloader_num_workers=1)
    with pytest.raises(ValueError, match=r"args\.dataloader_num_workers: 0 there, 1 now"):
        other.train()
    with pytest.raises(ValueError, match="train_dataset: "):
        tiny.make_trainer(tmp_path / "run", reference, recipe, train=tiny.stream(SHARDS[:2])).train()


def test_a_checkpoint_that_lost_its_place_is_passed_over(reference, tmp_path, caplog):
    """Without its place in the stream a checkpoint is damaged: the one before is used, and the bits are the same."""
    recipe = {"steps_per_round": 6, "max_layers": 1}
    whole = tiny.make_trainer(tmp_path / "whole", reference, recipe, train=tiny.stream(SHARDS))
    whole.train()
    callbacks = [tiny.Kill(3, signal.SIGTERM)]
    tiny.make_trainer(tmp_path / "run", reference, recipe, callbacks, train=tiny.stream(SHARDS)).train()
    (tmp_path / "run" / "checkpoint-3" / "stream_0.json").unlink()
    resumed = tiny.make_trainer(tmp_path / "run", reference, recipe, train=tiny.stream(SHARDS))
    resumed.train()
    assert "checkpoint-3 is damaged (stream_0.json is missing)" in caplog.text
    assert tiny.weights_hash(resumed.student) == tiny.weights_hash(whole.student)


def test_a_place_that_cannot_be_read_is_named(reference, tmp_path):
    """A trainer that is told to begin where no place is written stops and says so."""
    trainer = tiny.make_trainer(tmp_path / "run", reference, train=tiny.stream(SHARDS))
    with pytest.raises(ValueError, match=r"does not say where process 0 was in the stream .*remove the"):
        trainer.stream.begin(tmp_path)


def test_sequences_of_a_stream_must_fit_the_reference(reference, tmp_path):
    """A stream's block size is checked as the rows of a data set are."""
    stream = tiny.stream(SHARDS)
    stream.block_size = tiny.TOKENS + 1
    with pytest.raises(ValueError, match=f"train_dataset has sequences of {tiny.TOKENS + 1} tokens, but the reference"):
        tiny.make_trainer(tmp_path / "run", reference, train=stream)


# --- documents kept apart --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_documents_of_a_sequence_are_kept_apart(attention):
    """The loss of two documents in one sequence is that of each alone, and nothing is predicted across their border."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2, attn_implementation=attention)
    model = GPT2LMHeadModel(config).eval()
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel .* lets a document see the one before"):
        check_boundaries(model)  # with a cache, Transformers does not look at the positions
    model.config.use_cache = False  # as in training
    check_boundaries(model)
    documents = [[5, 6, 7, 0], [9, 8, 0]]
    together = CausalCollator(0, end_token_id=0)([{"input_ids": documents[0] + documents[1]}])
    assert together["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert together["labels"].tolist() == [[-100, 6, 7, 0, -100, 8, 0]]
    assert "attention_mask" not in together
    with torch.no_grad():
        joined = model(**together).logits[0]
        alone = [model(torch.tensor([document])).logits[0] for document in documents]
    torch.testing.assert_close(joined, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_padding_is_a_document_of_its_own():
    """Rows of other lengths need no mask: padding is apart from what comes before it."""
    batch = CausalCollator(3, end_token_id=0)([{"input_ids": [1, 0, 2, 4]}, {"input_ids": [5, 6]}])
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 0, -100, 4], [-100, 6, -100, -100]]


def test_a_model_that_mixes_documents_is_refused():
    """A model whose attention does not follow the positions is named, with what was seen."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=64, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16
    )
    model = OPTForCausalLM(config)

    def blind(self, position_ids=None, **kwargs):
        return forward(**kwargs)

    forward = model.forward
    model.forward = blind.__get__(model)
    with pytest.raises(ValueError, match=r"document_boundaries: OPTForCausalLM .* lets a document see the one before"):
        check_boundaries(model)


def test_a_run_checks_its_student(reference, tmp_path):
    """A run with boundaries trains a student that keeps documents apart."""
    recipe = {"steps_per_round": 2, "max_layers": 1}
    trainer = tiny.make_trainer(tmp_path / "run", reference, recipe, train=tiny.stream(SHARDS))
    trainer.data_collator = CausalCollator(0, end_token_id=0)
    trainer.train()
    assert trainer.outcome == "no_more_layers"


def test_the_lineage_knows_the_data(reference, tmp_path):
    """A student's lineage holds the fingerprints of the sets it was trained and selected on."""
    recipe = {"steps_per_round": 2, "max_layers": 1}
    trainer = tiny.make_trainer(tmp_path / "run", reference, recipe, train=tiny.stream(SHARDS))
    trainer.train()
    data = trainer.run_record.lineage.data
    assert data == {
        "train": str([tuple(shard) for shard in SHARDS]),
        "selection": set_fingerprint(tiny.selection_set()),
    }
    assert trainer.rounds[0].epochs == 0.0


DOCUMENTS = [f"def function_{number}():\n    return {number}\n" for number in range(40)]
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


def rows_trainer(folder, train, selection, **changes):
    """A trainer of a GPT-2 with a tokenizer of bytes, whose template writes chats."""
    reference = save_reference(folder / "reference")
    tokenizer = AutoTokenizer.from_pretrained(reference)
    tokenizer.chat_template = TEMPLATE
    args = TrainingArguments(str(folder / "run"), report_to="none", use_cpu=True, disable_tqdm=True)
    recipe = InherituneConfig(keep_layers=2, steps_per_round=1)
    given = {"train_dataset": train, "eval_dataset": selection, "processing_class": tokenizer}
    return InherituneTrainer(reference, recipe, args, **{**given, **changes}), tokenizer


@pytest.mark.parametrize("kind", ["text", "messages"])
@pytest.mark.parametrize("make", [list, Dataset.from_list], ids=["list", "dataset"])
def test_rows_of_text_and_messages_are_packed(kind, make, tmp_path):
    """They become the sequences that `load_data_splits` makes of the same rows in files."""
    contents = DOCUMENTS if kind == "text" else [[{"role": "user", "content": text}] for text in DOCUMENTS]
    rows = [{kind: content, "source": "here"} for content in contents]
    trainer, tokenizer = rows_trainer(tmp_path, make(rows[:30]), make(rows[30:]))
    for name, part in (("train", rows[:30]), ("selection", rows[30:]), ("test", rows[30:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = {f"{name}_files": [str(tmp_path / f"{name}.jsonl")] for name in ("train", "selection", "test")}
    splits = load_data_splits(DataConfig(rows=kind, **files), tokenizer, context_length=32, vocab_size=257)
    for own, expected in ((trainer.train_dataset, splits.train), (trainer.eval_dataset, splits.selection)):
        assert set_fingerprint(own) == set_fingerprint(expected)
    assert trainer.eval_dataset["document"] == splits.selection["document"]


def test_rows_that_cannot_be_packed_are_refused(tmp_path):
    """Without a tokenizer, of a stream, or with other columns: the message says what to do."""
    rows = Dataset.from_dict({"text": DOCUMENTS})
    with pytest.raises(
        ValueError, match="train_dataset has rows of text, not of tokens: give the reference's tokenizer"
    ):
        rows_trainer(tmp_path / "a", rows, rows, processing_class=None)
    with pytest.raises(ValueError, match=r"train_dataset streams rows of text: give a data set with a length, or let "):
        rows_trainer(tmp_path / "b", rows.to_iterable_dataset(), rows)
    with pytest.raises(ValueError, match=r"rows of eval_dataset have prompt; they need input_ids, text or messages"):
        rows_trainer(tmp_path / "c", rows, Dataset.from_dict({"prompt": DOCUMENTS}))
