"""Documents into tokens, and whether the tokenizer fits them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sources import chats
from test_splits import TEXTS, documents_of, load, write_jsonl
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inheritune_hf.config import DataConfig
from inheritune_hf.data import check_tokenizer, load_data_splits, tokenization
from inheritune_hf.data.tokenization import MOST_PER_BATCH, Encoder, documents_per_batch, tokenize_documents

ROOT = Path(__file__).parents[2]
ROWS = [{"text": text} for text in TEXTS]


quick = settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
texts = st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=1, max_size=12)


def make_documents(items, tokenizer):
    dataset = Dataset.from_dict({"text": items}, features=Features({"text": Value("large_string")}))
    return tokenize_documents(dataset, Encoder(tokenizer))


def expected_tokens(items, tokenizer):
    """The same documents, the plain way: one at a time."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in items if text.strip()]
    return [[*row, tokenizer.eos_token_id] for row in ids]


@quick
@given(items=texts)
def test_every_document_ends_with_the_end_of_text_token(items, tokenizer):
    """Tokenizing keeps the order, ends each document, and leaves out blank ones."""
    documents = make_documents(items, tokenizer)
    assert documents["input_ids"][:] == expected_tokens(items, tokenizer)
    assert documents["length"][:] == [len(row) for row in documents["input_ids"]]


def test_few_long_documents_are_processed_together():
    """A batch has about as many bytes whatever the documents are, within limits, and knows what was left out before."""
    for letters, count in ((2_000_000, 16), (160_000, 99), (10, MOST_PER_BATCH)):
        documents = Dataset.from_dict({"text": ["a" * letters] * 20})
        assert documents_per_batch(documents) == count
        assert documents_per_batch(documents.select([3, 1])) == count


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_worker_that_dies_is_named(tokenizer, monkeypatch):
    """A worker that is killed, as one is that runs out of memory, ends in an error that says what to do."""

    def die(*arguments, **options):
        import os

        os._exit(9)

    monkeypatch.setattr(tokenization, "_tokenize_batch", die)
    rows = Dataset.from_dict({"text": ["a"] * 40})
    with pytest.raises(ChildProcessError, match=r"A process that tokenized has died .*; what was finished is not done"):
        tokenize_documents(rows, Encoder(tokenizer), workers=2)


def test_workers_share_a_tokenizer(build_tokenizer, tokenizer):
    """A tokenizer that is shared is the one an encoder finds at its other end; another one brings its own."""
    shared = build_tokenizer(vocab_size=270)
    before = pickle.loads(pickle.dumps(Encoder(shared)))  # noqa: S301 (its own pickle)
    assert before.tokenizer is not shared
    assert before.tokenizer("layer")["input_ids"] == shared("layer")["input_ids"]
    Encoder(shared).share()
    assert pickle.loads(pickle.dumps(Encoder(shared, source="here"))) == Encoder(shared, source="here")  # noqa: S301 (its own pickle)
    assert pickle.loads(pickle.dumps(Encoder(tokenizer))).tokenizer is not shared  # noqa: S301 (its own pickle)


def test_no_other_special_token_is_added(build_tokenizer):
    """A tokenizer that opens every text with a token of its own does not do so here."""
    from tokenizers.processors import TemplateProcessing

    opening = build_tokenizer()
    opening.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", opening.eos_token_id)]
    )
    assert opening("layer")["input_ids"][0] == opening.eos_token_id
    row = make_documents(["layer"], opening)["input_ids"][0]
    assert row.count(opening.eos_token_id) == 1


def test_a_tokenizer_must_fit_the_reference(tokenizer):
    """As many tokens as embeddings or fewer pass; more are refused with both numbers."""
    check_tokenizer(tokenizer, len(tokenizer))
    check_tokenizer(tokenizer, 50257)
    with pytest.raises(ValueError, match=rf"tokenizer has {len(tokenizer)} tokens, the reference only 100; use the"):
        check_tokenizer(tokenizer, 100)


def test_another_end_of_text_than_the_references_is_warned_of_once(build_tokenizer, caplog):
    """Where the config names other tokens only, it is warned of, with both; one of several, or none, is right."""
    tokenizer = build_tokenizer()
    end = tokenizer.eos_token_id
    for right in (None, [], end, [7, end]):
        check_tokenizer(tokenizer, 50257, right)
    assert not caplog.records
    other = tokenizer.convert_ids_to_tokens(7)
    for _ in range(2):
        check_tokenizer(tokenizer, 50257, [7, 50256])
    said = f"ends documents with '<|endoftext|>' ({end}), the reference's config names {other!r} (7), None (50256)"
    assert [record.getMessage().count(said) for record in caplog.records] == [1]


def test_a_tokenizer_must_end_documents(build_tokenizer):
    """Without an end-of-text token there is no way to separate documents."""
    with pytest.raises(ValueError, match=r"no end-of-text token, .*set tokenizer.eos_token"):
        check_tokenizer(build_tokenizer(end=None), 50257)


TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
MARKED = (
    "{% for m in messages %}<{{ m.role }}> {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)


def test_chats_are_rendered_by_the_template(tmp_path, build_tokenizer):
    """Rows of messages become the text that the reference's template makes of them."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    splits = load(tokenizer, train_files=[write_jsonl(tmp_path / "chat.jsonl", chats())], rows="messages")
    assert documents_of(splits.selection, tokenizer)[0].startswith("<user> layer ")
    tokenizer.chat_template = MARKED
    splits = load(
        tokenizer, train_files=[str(tmp_path / "chat.jsonl")], rows="messages", chat_loss="assistant", block_size=64
    )
    row = splits.selection[0]
    counted = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(counted).strip().startswith("kept ")


def test_a_chat_without_messages_is_no_document(tmp_path, build_tokenizer):
    """From a file, where messages are read as text, as from a table."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    rows = [*chats(), {"messages": []}]
    facts = load(tokenizer, train_files=[write_jsonl(tmp_path / "chat.jsonl", rows)], rows="messages").facts
    assert facts.skipped_documents == 1


def test_a_chat_that_ends_itself_is_ended_once(tmp_path, build_tokenizer):
    """A template that writes the end-of-text token after the last turn gives the same tokens under either chat_loss."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = MARKED + "{{ eos_token }}"
    path = write_jsonl(tmp_path / "chat.jsonl", chats())
    found = [
        load(tokenizer, train_files=[path], rows="messages", chat_loss=loss, document_boundaries=True, block_size=64)
        for loss in ("all", "assistant")
    ]
    rows = [splits.selection["input_ids"] for splits in found]
    assert list(rows[0]) == list(rows[1])
    assert all(row.count(tokenizer.eos_token_id) == 1 for row in rows[0])


@pytest.mark.parametrize(
    ("template", "settings", "message"),
    [
        (None, {}, r"tokenizer has no chat template, so the chat \"\[\{'role': 'user'.* cannot be written; set"),
        (TEMPLATE, {"chat_loss": "assistant"}, r"does not mark the assistant's tokens .*set chat_loss to 'all'"),
        ("{{ raise_exception('no') }}", {}, r"chat template refuses the chat .*: no; repair the row"),
    ],
)
def test_chats_that_cannot_be_rendered(template, settings, message, tmp_path, build_tokenizer):
    """A chat without a template, or one that does not do what is asked, is said with the chat."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    path = write_jsonl(tmp_path / "chat.jsonl", chats())
    with pytest.raises(ValueError, match=message):
        load(tokenizer, train_files=[path], rows="messages", **settings)


# --- the tokenizer and the data --------------------------------------------------------------------------------------


def word_tokenizer():
    """A tokenizer that knows a few words only."""
    words = {"<end>": 0, "<unk>": 1, "layer": 2, "kept": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")


@pytest.mark.parametrize("streaming", [False, True])
def test_text_that_the_tokenizer_does_not_know(streaming, tmp_path):
    """A tokenizer that was made for other text is found at the first documents, with one of them."""
    known = write_jsonl(tmp_path / "known.jsonl", [{"text": "layer kept"}] * 30)
    foreign = write_jsonl(tmp_path / "foreign.jsonl", [{"text": "layer kept"}, {"text": "schicht bleibt"}] * 30)
    sets = {"selection_files": [known], "test_files": [known], "streaming": streaming, "near_duplicates": "ignore"}
    assert load(word_tokenizer(), train_files=[known], block_size=2, **sets)

    def begin():
        next(iter(load(word_tokenizer(), train_files=[foreign], block_size=2, **sets).train))

    with pytest.raises(
        ValueError, match=r"foreign\.jsonl: the tokenizer does not know \d+ of \d+ tokens .*'schicht bl"
    ):
        begin()


def test_the_end_of_text_token_within_a_document(tmp_path, tokenizer, caplog):
    """It is warned of, with the document; where it separates documents, it is an error."""
    rows = [*ROWS, {"text": f"one {tokenizer.eos_token} two"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    load(tokenizer, train_files=[path])
    assert "the end-of-text token '<|endoftext|>' is within a document, as in 'one <|endoftext|> two'" in caplog.text
    with pytest.raises(ValueError, match=r"rows\.jsonl: the end-of-text token .* is within a document too, as in 'one"):
        load(tokenizer, train_files=[path], document_boundaries=True)


def test_tokens_out_of_range(tmp_path, tokenizer):
    """A tokenizer, or a row, with more tokens than the reference knows is refused, with the row."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"input_ids": [1, 2]}, {"input_ids": [1, 999]}])
    with pytest.raises(
        ValueError, match=r"Token 999 at place 1 of the document '\[1, 999\]' is out of the reference's"
    ):
        load(tokenizer, train_files=[path], rows="tokens")
    with pytest.raises(ValueError, match=r"tokenizer has 292 tokens, the reference only 100; use the reference's own"):
        load_data_splits(DataConfig(train_files=[path], rows="tokens"), tokenizer, vocab_size=100)
