"""Every kind of source, and what is said of one that is damaged."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from test_splits import TEXTS, documents_of, load, write_jsonl, write_texts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inheritune_hf.configuration import DataConfig
from inheritune_hf.data import Document, load_data_splits, sources

ROWS = [{"text": text} for text in TEXTS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def compress(path, data):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif path.suffix == ".xz":
        path.write_bytes(lzma.compress(data))
    else:
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(data)
    return str(path)


@pytest.mark.parametrize("ending", ["gz", "xz", "zst"])
def test_compressed_files_are_read(ending, tmp_path, tokenizer):
    """A compressed file gives what it holds, as JSON lines, as a JSON list and as text."""
    plain = load(tokenizer, train_files=[write_jsonl(tmp_path / "rows.jsonl", ROWS)]).facts
    lines = compress(tmp_path / f"rows.jsonl.{ending}", LINES)
    listed = compress(tmp_path / f"rows.json.{ending}", json.dumps(ROWS).encode())
    texts = [compress(tmp_path / f"{index:02}.txt.{ending}", text.encode()) for index, text in enumerate(TEXTS)]
    for files in ([lines], [listed], texts):
        facts = load(tokenizer, train_files=files).facts
        assert (facts.train, facts.selection, facts.test) == (plain.train, plain.selection, plain.test)


def test_arrow_files_are_read(tmp_path, tokenizer):
    """Arrow files of both layouts are read."""
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.OSFile(str(tmp_path / "s.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as file:
        file.write_table(table)
    with pyarrow.OSFile(str(tmp_path / "f.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    plain = load(tokenizer, train_files=[write_jsonl(tmp_path / "rows.jsonl", ROWS)]).facts
    for name in ("s.arrow", "f.arrow"):
        assert load(tokenizer, train_files=[name]).facts.train == plain.train


@pytest.fixture
def small_library(monkeypatch):
    documents = [Document(str(number), "group", text) for number, text in enumerate(TEXTS)]
    monkeypatch.setattr(sources, "standard_library_documents", lambda: documents)


def test_the_embedded_corpus_is_a_source(small_library, tmp_path, tokenizer):
    """The standard library is a data set like any other: whole, mixed or streamed, without a network or a file."""
    plain = load(tokenizer, train_files=[write_jsonl(tmp_path / "rows.jsonl", ROWS)]).facts
    facts = load(tokenizer, dataset_name="standard_library").facts
    assert (facts.train, facts.selection, facts.test) == (plain.train, plain.selection, plain.test)
    mixed = [{"dataset_name": "standard_library"}, {"files": write_jsonl(tmp_path / "b.jsonl", ROWS)}]
    assert load(tokenizer, sources=mixed).facts.train.documents == 2 * facts.train.documents
    streamed = load(
        tokenizer, dataset_name="standard_library", streaming=True, selection_fraction=0.2, test_fraction=0.2
    )
    assert len(next(iter(streamed.train))["input_ids"]) == 16
    with pytest.raises(ValueError, match=r"standard_library has no split 'dev'; its evaluation sets are carved, or"):
        load(tokenizer, dataset_name="standard_library", selection_split="dev")


# --- rows of tokens and of messages ----------------------------------------------------------------------------------


def test_rows_of_tokens_keep_their_labels(tmp_path, tokenizer):
    """Tokens that do not count stay so; the end-of-text token is added where it is missing."""
    end = tokenizer.eos_token_id
    rows = [{"input_ids": [1, 2, 3 + n % 200], "labels": [-100, 2, 3 + n % 200]} for n in range(30)]
    rows += [{"input_ids": [4, n % 200 + 1, end]} for n in range(30)]
    path = write_jsonl(tmp_path / "tokens.jsonl", rows)
    splits = load(tokenizer, train_files=[path], rows="tokens", block_size=4)
    everything = [pair for row in splits.train for pair in zip(row["input_ids"], row["labels"], strict=True)]
    assert {label for token, label in everything if token == 1} >= {-100}
    assert all(label in (-100, token) for token, label in everything)
    assert sum(token == end for token, _ in everything) >= splits.facts.train.documents - 4
    selection = splits.selection[0]
    assert len(selection["labels"]) == len(selection["input_ids"])
    saved = Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows])
    saved.save_to_disk("saved")
    assert load(tokenizer, dataset_name="./saved", rows="tokens", block_size=4).facts.train.documents > 0


TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
MARKED = (
    "{% for m in messages %}<{{ m.role }}> {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)


def chats(count=12):
    return [
        {"messages": [{"role": "user", "content": f"layer {n}?"}, {"role": "assistant", "content": f"kept {n}"}]}
        for n in range(count)
    ]


def test_chats_are_written_by_the_template(tmp_path, build_tokenizer):
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


@pytest.mark.parametrize(
    ("template", "settings", "message"),
    [
        (None, {}, r"tokenizer has no chat template, so the chat \"\[\{'role': 'user'.* cannot be written; set"),
        (TEMPLATE, {"chat_loss": "assistant"}, r"does not mark what the assistant says .*set chat_loss to 'all'"),
        ("{{ raise_exception('no') }}", {}, r"chat template refuses the chat .*: no; repair the row"),
    ],
)
def test_chats_that_cannot_be_written(template, settings, message, tmp_path, build_tokenizer):
    """A chat without a template, or one that does not do what is asked, is said with the chat."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    path = write_jsonl(tmp_path / "chat.jsonl", chats())
    with pytest.raises(ValueError, match=message):
        load(tokenizer, train_files=[path], rows="messages", **settings)


BAD_ROWS = {
    "tokens that are no numbers": ("tokens", {"input_ids": ["a"]}, r"line 2: 'input_ids' must be a list of whole numb"),
    "negative tokens": ("tokens", {"input_ids": [1, -5]}, r"line 2: 'input_ids' has 1 or -5, which is no token id"),
    "labels of another length": (
        "tokens",
        {"input_ids": [1, 2], "labels": [1]},
        r"line 2 has 2 tokens but 1 labels; give one label per token, -100",
    ),
    "no tokens": ("tokens", {"text": "a"}, r"line 2 has no column 'input_ids'; rows of tokens have it; set rows to"),
    "messages without a role": ("messages", {"messages": [{"content": "a"}]}, r"line 2: 'messages' must be a list of"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_do_not_hold_what_they_should(case, tmp_path, tokenizer):
    """What a row lacks is said with its file and line."""
    rows, bad, message = BAD_ROWS[case]
    good = {"input_ids": [1, 2]} if rows == "tokens" else chats(1)[0]
    path = write_jsonl(tmp_path / "rows.jsonl", [good, bad])
    with pytest.raises(ValueError, match=message):
        load(tokenizer, train_files=[path], rows=rows)


def test_text_files_hold_no_tokens(tmp_path, tokenizer):
    """A text file cannot be a row of tokens."""
    with pytest.raises(ValueError, match=r"000\.txt is a text file, but rows is 'tokens'; give JSON, Parquet or Arrow"):
        load(tokenizer, train_files=[write_texts(tmp_path / "texts")], rows="tokens")


def test_tokens_of_a_saved_set_may_have_too_few_labels(tokenizer):
    """Labels that do not fit are found in a saved data set too."""
    Dataset.from_list([{"input_ids": [1, 2], "labels": [1]}] * 5).save_to_disk("saved")
    with pytest.raises(ValueError, match=r"The row \[1, 2\]... has 2 tokens but 1 labels; give as many"):
        load(tokenizer, dataset_name="./saved", rows="tokens")


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["files", "folder", "saved"])
@pytest.mark.parametrize("most", [10**6, 0])
def test_a_source_is_known_by_what_is_in_its_files(most, kind, tmp_path, tokenizer, monkeypatch):
    """An edit that keeps the size is another source; a copy, and what datasets leaves in a folder, are the same."""
    monkeypatch.setattr(sources, "_MOST_HASHED", most)
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "rows.jsonl"
    write_jsonl(path, ROWS)
    if kind == "saved":
        path.unlink()
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "a")
        path = next((tmp_path / "a").glob("*.arrow"))
    given = {"train_files": [str(path)]} if kind == "files" else {"dataset_name": "./a"}

    def fingerprint():
        return sources.sources_fingerprint(sources.training_sources(DataConfig(**given)))

    os.utime(path, (1000, 1000))
    before = fingerprint()
    (tmp_path / "a" / "cache-1.arrow").write_text("made by datasets")
    (tmp_path / "a" / "tmp1").write_text("not finished")
    (tmp_path / "a" / ".cache").mkdir()
    (tmp_path / "a" / ".cache" / "rows.metadata").write_text("when it was fetched")
    shutil.copytree("a", "b", copy_function=shutil.copy2 if most == 0 else shutil.copy)
    (tmp_path / "a").rename("c")
    (tmp_path / "b").rename("a")
    assert fingerprint() == before
    data = path.read_bytes()
    path.write_bytes(data.replace(b"layer_11", b"layer_99"))
    assert path.stat().st_size == len(data)
    assert fingerprint() != before


# --- mixtures --------------------------------------------------------------------------------------------------------


def mixture(tmp_path, *weights):
    sources = []
    for number, weight in enumerate(weights):
        rows = [{"text": f"source {number} says {n} " * 3} for n in range(20 * (number + 1))]
        source = {"files": write_jsonl(tmp_path / f"{number}.jsonl", rows)}
        sources.append(source if weight is None else {**source, "weight": weight})
    return sources


def test_a_mixture_has_the_shares_it_was_given(tmp_path, tokenizer):
    """Each source has its share of the sequences, spread evenly; each document comes at least once."""
    splits = load(tokenizer, sources=mixture(tmp_path, 3, 1), near_duplicates="ignore")
    texts = [tokenizer.decode(row) for row in splits.train["input_ids"]]
    first = [("source 0" in text or "e 0 says" in text) for text in texts]
    assert 0.7 < sum(first) / len(first) < 0.8
    assert 0.6 < sum(first[: len(first) // 4]) / (len(first) // 4) < 0.9
    passes = [source.passes for source in splits.facts.sources]
    assert passes[0] > 1
    assert min(passes) == 1
    plain = load(tokenizer, sources=mixture(tmp_path, None, None), near_duplicates="ignore")
    assert [source.passes for source in plain.facts.sources] == [1, 1]
    assert plain.facts.train.documents == splits.facts.train.documents == 54


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("texts", r"source 2 must be a mapping of settings, got 'texts'"),
        ({"file": "a"}, r"source 2 has no setting named 'file' \(did you mean 'files'\?\)"),
        ({"weight": 1}, r"source 2 needs either dataset_name or files"),
        ({"files": "a", "weight": 0}, r"source 2: weight must be a number above 0, got 0; leave the source out"),
        ({"files": "a", "weight": float("inf")}, r"source 2: weight must be a number above 0, got inf; leave the"),
        ({"files": "a", "weight": True}, r"source 2: weight must be a number above 0, got True; leave the source"),
        ({"files": 3}, r"source 2: files must be a path or a list of paths, got 3"),
        ({"files": "a", "rows": "pages"}, r"source 2: rows must be one of text, tokens, messages, got 'pages'"),
        ({"files": "a"}, r"source 2 has no weight, but another has; give all of them, or none"),
        (
            {"files": ["a.bin", "b.txt"], "weight": 1},
            r"source 2: a\.bin holds tokens and b\.txt text; give them as two",
        ),
        ({"files": ["a.bin"], "weight": 1}, r"Token files \(\.bin\) cannot be mixed with other sources"),
    ],
)
def test_sources_that_cannot_be_mixed(source, message, tmp_path, tokenizer):
    """What is wrong with a source of a mixture is said with its number."""
    with pytest.raises(ValueError, match=message):
        load(tokenizer, sources=[*mixture(tmp_path, 1), source])


def test_a_weight_that_is_a_slip_is_not_tried(tmp_path, tokenizer):
    """A weight by which one source would come a thousand times and more is said with both sizes, at once."""
    with pytest.raises(
        ValueError, match=r"source 1 would come [\d,]+ times \(at most 1,000\), so that .* source 2 comes once; give"
    ):
        load(tokenizer, sources=mixture(tmp_path, 1, 1e-9), near_duplicates="ignore")


def test_a_full_disk_is_named(tmp_path, tokenizer, monkeypatch):
    """What cannot be written is said with the setting and the place."""

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.finalize", full)
    with pytest.raises(OSError, match=r"train_files: what was read cannot be written to the cache .*No space left"):
        load(tokenizer, train_files=[write_jsonl(tmp_path / "rows.jsonl", ROWS)])


def test_a_source_needs_one_sequence(tmp_path, tokenizer):
    """A source of a mixture that is shorter than a sequence would have no share."""
    small = write_jsonl(tmp_path / "small.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"source 2 has fewer tokens than one sequence; leave it out, or lower block"):
        load(
            tokenizer,
            sources=[*mixture(tmp_path, 1), {"files": small, "weight": 1}],
            selection_files=[write_texts(tmp_path / "s", TEXTS[:1])],
            test_files=[write_texts(tmp_path / "t", TEXTS[1:2])],
        )


# --- damage ----------------------------------------------------------------------------------------------------------


def cut_off(path, data=LINES * 50):
    compress(path, data)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return str(path)


@pytest.mark.parametrize("ending", ["gz", "xz", "zst"])
def test_a_compressed_file_that_is_cut_off_is_named(ending, tmp_path, tokenizer):
    """A compressed file that ends too soon is named, with the last line that could be read."""
    path = cut_off(tmp_path / f"rows.jsonl.{ending}")
    with pytest.raises(
        ValueError, match=rf"rows\.jsonl\.{ending}, after line \d+: the compressed file is damaged or c"
    ):
        load(tokenizer, train_files=[path])
    text = cut_off(tmp_path / f"text.txt.{ending}", bytes(range(32, 127)) * 3000)
    with pytest.raises(ValueError, match=rf"text\.txt\.{ending}: the compressed file is damaged or cut off"):
        load(tokenizer, train_files=[text])


def test_a_parquet_file_that_is_cut_off_is_named(tmp_path, tokenizer):
    """Parquet and Arrow files that end too soon are named."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS * 50), tmp_path / "rows.parquet")
    data = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(data[: len(data) // 2])
    (tmp_path / "rows.arrow").write_bytes(b"ARROW1 and nothing more")
    for name, message in (("rows.parquet", "a readable Parquet file"), ("rows.arrow", "a readable Arrow file")):
        with pytest.raises(ValueError, match=rf"{name.replace('.', '[.]')} is not {message}: "):
            load(tokenizer, train_files=[name])
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress(data))
    with pytest.raises(ValueError, match=r"rows\.parquet\.gz: a \.parquet file is compressed within; give it without"):
        load(tokenizer, train_files=["rows.parquet.gz"])


def test_damage_can_be_skipped_and_is_counted(tmp_path, tokenizer, caplog):
    """With damaged_rows 'skip' the other rows are used; how many were not is in the facts, and the first are named."""
    good = [json.dumps(row).encode() for row in ROWS]
    bad = [b'{"text": ', b'{"text": "\xff"}', b'{"body": "b"}', b"[1]", b'{"text": 3}', b'{"text": "\\ud800"}']
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*good[:20], *bad, *good[20:]]))
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    whole = {"gz": gzip.compress(b"a text " * 99), "xz": lzma.compress(b"a text " * 99)}
    files = [
        "rows.jsonl",
        "latin.txt",
        "empty.txt",
        "blank.jsonl",
        "cut.parquet",
        *(f"cut.txt.{kind}" for kind in whole),
    ]
    for kind, data in whole.items():
        (tmp_path / f"cut.txt.{kind}").write_bytes(data[:-9])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-9])
    for _ in range(2):  # the second time from the cache
        facts = load(tokenizer, train_files=files, damaged_rows="skip").facts
        assert facts.damaged_rows == len(bad) + 6
        assert facts.skipped_documents == 0
        assert facts.train.documents + facts.selection.documents + facts.test.documents == 40
    assert "skipped: " in caplog.text
    assert "rows.jsonl, line 21 is damaged" in caplog.text
    streamed = load(
        tokenizer, train_files=files, damaged_rows="skip", streaming=True, selection_fraction=0.2, test_fraction=0.2
    )
    rows = iter(streamed.train)
    for _ in range(100):
        place = next(rows)["reader_state"]
    counts = place["sources"][0]["counts"]
    assert counts["damaged"] == counts["passes"] * (len(bad) + 6)


def test_a_damaged_data_set_is_named(tmp_path, tokenizer):
    """A folder of a data set with a file that cannot be read is named, with what to do."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match=r"\./folder \(train\) cannot be read: .*give its files by train_files, which"):
        load(tokenizer, dataset_name="./folder")


def test_long_documents_are_damage(tmp_path, tokenizer):
    """A document longer than the bound is named, in a line, a row and a file, without being held."""
    rows = [*ROWS[:2], {"text": "a" * 4000}, *ROWS[2:]]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "long.txt").write_text("é" * 2001)
    for name, place in (("rows.jsonl", ", line 3"), ("rows.parquet", ", row 3"), ("long.txt", "")):
        with pytest.raises(
            ValueError, match=rf"{name}{place} is longer than max_document_bytes \(3,999\); split the d"
        ):
            load(tokenizer, train_files=[name], max_document_bytes=3999)
    facts = load(tokenizer, train_files=[path], max_document_bytes=1000, damaged_rows="skip").facts
    assert facts.damaged_rows == 1


LONG_LINE = """
import json, resource, sys
from inheritune_hf.data.sources import BadRow, Layout, read_rows
from pathlib import Path
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = list(read_rows(Path(sys.argv[1]), Layout(most_bytes=1_000_000, skip=True)))
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(json.dumps({"grown": grown, "rows": [str(row) if isinstance(row, BadRow) else row["text"][:9] for row in rows]}))
"""


@pytest.mark.slow
def test_a_line_of_200_megabytes_is_not_held(tmp_path):
    """A single line of 200 MB is named or skipped, in a few megabytes of memory, and the next line is read."""
    with (tmp_path / "rows.jsonl").open("w") as file:
        file.write('{"text": "the one"}\n{"text": "')
        for _ in range(200):
            file.write("a line without an end " * 45_455)
        file.write('"}\n{"text": "the next"}\n')
    assert (tmp_path / "rows.jsonl").stat().st_size > 200_000_000
    command = [sys.executable, "-c", LONG_LINE, str(tmp_path / "rows.jsonl")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["rows"][0] == "the one"
    assert "rows.jsonl, line 2 is longer than max_document_bytes (1,000,000)" in result["rows"][1]
    assert result["rows"][2] == "the next"
    assert result["grown"] < 20_000_000


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
    """It is warned of, with the document; where documents are to be told apart by it, it is an error."""
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
