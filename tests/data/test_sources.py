"""Every kind of source, and the errors of those that are damaged."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from test_splits import TEXTS, load, mixture, write_jsonl

from inheritune_hf.config import DataConfig
from inheritune_hf.data import load_data_splits, sources
from inheritune_hf.data.sources import BadRow, Layout, mark_damage, read_rows

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


def chats(count=12):
    return [
        {"messages": [{"role": "user", "content": f"layer {n}?"}, {"role": "assistant", "content": f"kept {n}"}]}
        for n in range(count)
    ]


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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("texts", r"sources\[1\] must be a mapping, got 'texts'"),
        ({"file": "a"}, r"source 2 has no setting named 'file' \(did you mean 'files'\?\)"),
        ({"weight": 1}, r"source 2 needs either dataset_name or files"),
        ({"files": "a", "weight": 0}, r"source 2: weight must be above 0, got 0; leave the source out instead"),
        ({"files": "a", "weight": float("inf")}, r"source 2\.weight must be a finite number, got inf"),
        ({"files": 3}, r"source 2\.files must be a list, got 3"),
        ({"files": "a", "rows": "pages"}, r"source 2\.rows must be one of 'text', 'tokens', 'messages', got 'pages'"),
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


def test_a_full_disk_is_named(tmp_path, tokenizer, monkeypatch):
    """What cannot be written is said with the setting and the place."""

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.finalize", full)
    with pytest.raises(OSError, match=r"train_files: what was read cannot be written to the cache .*No space left"):
        load(tokenizer, train_files=[write_jsonl(tmp_path / "rows.jsonl", ROWS)])


# --- damage ----------------------------------------------------------------------------------------------------------


BAD_LINES = {
    "damaged": ("text", '{"text": ', r"line 2 is damaged \(Expecting value.*; a JSON file holds one object per line"),
    "nested too deep": ("text", '{"text": ' + "[" * 100_000, r"line 2 is damaged \(maximum recursion depth exceeded"),
    "a long number": ("text", '{"text": ' + "1" * 5_000 + "}", r"line 2 is damaged \(Exceeds the limit \(4300 digits"),
    "not UTF-8": ("text", b'{"text": "\xff"}', r"line 2 is not UTF-8 text: byte 0xff at byte offset 10; convert it"),
    "no object": ("text", "[1]", r"line 2 holds a list, not an object with the field 'text'"),
    "no column": ("text", '{"id": 1, "body": "b"}', r"line 2 has no column 'text'; set text_column .* 'id', 'body'"),
    "no text": ("text", '{"text": 3}', r"line 2: 'text' holds int, not text; set text_column to a field of strings"),
    "half a character": ("text", '{"text": "\\ud800"}', r"line 2: 'text' holds half a surrogate pair"),
    "no tokens": ("tokens", '{"text": "a"}', r"line 2 has no column 'input_ids'; rows of tokens have it; set rows to"),
    "no numbers": ("tokens", '{"input_ids": ["a"]}', r"line 2: 'input_ids' must be a list of whole numbers; repair"),
    "unequal lists": ("tokens", '{"input_ids": [[1], [2, 3]]}', r"line 2: 'input_ids' must be a list of whole numbers"),
    "a token below 0": ("tokens", '{"input_ids": [1, -5]}', r"line 2: 'input_ids' has 1 or -5, which is no token id"),
    "a label below 0": ("tokens", '{"input_ids": [1], "labels": [-5]}', r"line 2: 'labels' has -5 or -5, which is no"),
    "too few labels": ("tokens", '{"input_ids": [1, 2], "labels": [1]}', r"line 2: 2 tokens but 1 labels; give one"),
    "no role": ("messages", '{"messages": [{"content": "a"}]}', r"line 2: 'messages' must be a list of objects with"),
    "half in a chat": (
        "messages",
        '{"messages": [{"role": "user", "content": "\\ud800"}]}',
        r"line 2: 'messages' holds half a surrogate pair",
    ),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_or_skipped(case, tmp_path):
    """What is wrong with a line of JSON is said with file and line; the other lines can be read."""
    rows, bad, message = BAD_LINES[case]
    good = {"text": {"text": "a"}, "tokens": {"input_ids": [1]}, "messages": {"messages": [{"role": "user"}]}}[rows]
    line = json.dumps(good).encode()
    (tmp_path / "a.ndjson").write_bytes(b"\n".join([line, bad if isinstance(bad, bytes) else bad.encode(), line]))
    with pytest.raises(BadRow, match=r"a\.ndjson, " + message):
        list(read_rows(tmp_path / "a.ndjson", Layout(rows)))
    kinds = [isinstance(row, BadRow) for row in read_rows(tmp_path / "a.ndjson", Layout(rows, skip=True))]
    assert kinds == [False, True, False]


def test_a_json_list_is_read_whole(tmp_path):
    """Its items are rows; what is wrong with one is said with its number, and what is no JSON with its line."""
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf [{"text": "a"}, {"body": 1}]')
    rows = list(read_rows(tmp_path / "a.json", Layout(skip=True)))
    assert rows[0] == {"text": "a"}
    assert "a.json, item 2 has no column 'text'" in str(rows[1])
    for content, message in (
        (b'[{"text": "a"},\n{"text": tru}]', r"a\.json is damaged \(Expecting value: line 2 column 10 "),
        (b"[" * 100_000, r"a\.json is damaged \(maximum recursion depth exceeded"),
        (b'[{"text": "a\xff"}]', r"a\.json is not UTF-8 text: byte 0xff at byte offset 12; convert it"),
    ):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(BadRow, match=message):
            list(read_rows(tmp_path / "a.json", Layout()))


@pytest.mark.parametrize("ending", ["gz", "xz", "zst"])
def test_a_compressed_file_that_is_cut_off_is_named(ending, tmp_path):
    """A compressed file that ends too soon is named, with the last line that could be read."""
    for name, data, place in (
        ("a.jsonl", LINES * 50, r", after line \d+"),
        ("a.txt", bytes(range(32, 127)) * 3000, ""),
    ):
        path = tmp_path / f"{name}.{ending}"
        compress(path, data)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(BadRow, match=rf"{name}\.{ending}{place}: the compressed file is damaged or cut off"):
            list(read_rows(path, Layout()))


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    """Parquet and Arrow files that are none, have no such column, hold numbers or are compressed again, are named."""
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2], "body": ["a", "b"]}), path)
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-9])
    (tmp_path / "rows.arrow").write_bytes(b"ARROW1 and nothing more")
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name, layout, message in (
        ("cut.parquet", Layout(), r"cut\.parquet is not a readable Parquet file: "),
        ("rows.arrow", Layout(), r"rows\.arrow is not a readable Arrow file: "),
        ("rows.parquet.gz", Layout(), r"a \.parquet file is compressed within; give it without \.gz"),
        ("rows.parquet", Layout(), r"Column 'text' of .*rows\.parquet holds int64, not text; .*'text', 'body'"),
        (
            "rows.parquet",
            Layout(column="story"),
            r"rows\.parquet has no column 'story'; set text_column to",
        ),
    ):
        with pytest.raises(BadRow, match=message):
            list(read_rows(tmp_path / name, layout))


def test_text_that_is_not_utf8_is_named_with_its_byte(tmp_path):
    """The message has the file and the offset of the byte in it."""
    (tmp_path / "latin.txt").write_bytes("\ufeffcafé".encode() + "é".encode("latin-1"))
    with pytest.raises(BadRow, match=r"latin\.txt is not UTF-8 text: byte 0xe9 at byte offset 8; convert it"):
        list(read_rows(tmp_path / "latin.txt", Layout()))


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
    counts = place.sources[0].counts
    assert counts["damaged"] == counts["passes"] * (len(bad) + 6)


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


# --- files that are not what they seem, or damaged -------------------------------------------------------------------

TABLE_ROWS = [{"text": f"row {number} of a table, and what it says"} for number in range(400)]


def write_table(path, rows=TABLE_ROWS, group=50, **options):
    table = pyarrow.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=group, **options)
    else:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as file:
            file.write_table(table, max_chunksize=group)
    return path


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_tables_with_changed_bits_are_read_or_named(name, tmp_path):
    """Whatever bit of a table is wrong, each row is read or there is damage; nothing else is raised."""
    path = write_table(tmp_path / name, compression="none") if name == "rows.parquet" else write_table(tmp_path / name)
    whole, draw = path.read_bytes(), random.Random(0)
    damaged = 0
    for _ in range(150):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data))
        rows = list(read_rows(path, Layout(skip=True)))
        found = [row for row in rows if isinstance(row, BadRow)]
        assert found or len(rows) == len(TABLE_ROWS)
        assert all(str(damage).startswith(str(path)) or f"of {path}" in str(damage) for damage in found)
        damaged += bool(found)
    assert damaged > 5


def test_a_damaged_row_group_costs_no_other(tmp_path):
    """Of a Parquet file with a damaged row group, the others are read; checksums are looked at."""
    path = write_table(tmp_path / "rows.parquet", compression="zstd", write_page_checksum=True)
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    data[group.data_page_offset + group.total_compressed_size // 3] ^= 1
    path.write_bytes(bytes(data))
    rows = list(read_rows(path, Layout(skip=True)))
    damage = [row for row in rows if isinstance(row, BadRow)]
    assert len(damage) == 1
    with pytest.raises(BadRow, match=r"rows\.parquet, rows 101 to 150: damaged \(.*\); fetch or write it again"):
        list(read_rows(path, Layout()))
    assert [row for row in rows if row not in damage] == TABLE_ROWS[:100] + TABLE_ROWS[150:]


def test_words_in_a_dictionary_are_text(tmp_path):
    """Columns of categories, and of views, are read as the strings they are."""
    texts = pyarrow.array([row["text"] for row in TABLE_ROWS])
    for column in (texts.dictionary_encode(), texts.cast(pyarrow.string_view())):
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "rows.parquet")
        assert list(read_rows(tmp_path / "rows.parquet", Layout())) == TABLE_ROWS


def test_token_files_are_not_read_as_text(tmp_path):
    """A token file would be one long document of text."""
    (tmp_path / "a.bin").write_bytes(b"text\nhello\n")
    with pytest.raises(ValueError, match=r"a\.bin holds tokens; name token files by their ending, such as .*/\*\.bin"):
        list(read_rows(tmp_path / "a.bin", Layout()))


def test_csv_and_tsv_files_are_read_as_written(tmp_path):
    """Each row of a table is a document, whatever it looks like; what is damaged has a place."""
    texts = ["NA", "007", 'two\nlines, "quoted"', "", "é"]
    lines = [f'{n},"{text.replace(chr(34), chr(34) * 2)}"' for n, text in enumerate(texts)]
    (tmp_path / "a.csv").write_text("\n".join(["\ufeffid,text", *lines]) + "\n", encoding="utf-8")
    assert [row["text"] for row in read_rows(tmp_path / "a.csv", Layout())] == texts
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"id\ttext\n1\tone, two\n2\n"))
    assert [row["text"] for row in read_rows(tmp_path / "a.tsv.gz", Layout())] == ["one, two", ""]
    with pytest.raises(BadRow, match=r"a\.csv has no column 'body'; set text_column to one of 'id', 'text'"):
        list(read_rows(tmp_path / "a.csv", Layout(column="body")))
    with pytest.raises(BadRow, match=r"a\.csv, row 3 is longer than max_document_bytes \(10\)"):
        list(read_rows(tmp_path / "a.csv", Layout(most_bytes=10)))
    with pytest.raises(ValueError, match=r"a\.csv is a text file, but rows is 'tokens'; give JSON, Parquet or Arrow"):
        list(read_rows(tmp_path / "a.csv", Layout("tokens")))
    for content in (b"id,text\n1,a\n2,b,c\n", b"id,text\n1,\xff\n"):
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(BadRow, match=r"a\.csv is not a readable CSV file: .*; fetch or write it again"):
            list(read_rows(tmp_path / "a.csv", Layout()))
    (tmp_path / "a.csv").write_text("text,label\nhello there,1,\nsecond one,2,\n")
    with pytest.raises(BadRow, match=r"a\.csv: rows have more fields than the header has columns; name every column"):
        list(read_rows(tmp_path / "a.csv", Layout()))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.txt.zst"])
def test_a_file_that_cannot_be_opened_is_not_called_damaged(name, tmp_path):
    """What the system refuses is said as it is, compressed or not."""
    (tmp_path / name).symlink_to(tmp_path / name)  # leads to itself
    with pytest.raises(BadRow, match=r"the file cannot be read \(.*\); make it readable, or leave it out"):
        list(read_rows(tmp_path / name, Layout()))


# --- data sets on this machine ----------------------------------------------------------------------------------------

SET_ROWS = [{"text": f"document {number} of a set"} for number in range(40)]
NONE = Dataset.from_dict({"text": []}, features=Features({"text": Value("string")}))


def load_small(tokenizer, **settings):
    defaults = {"near_duplicates": "ignore", "selection_fraction": 0.2, "test_fraction": 0.2}
    return load_data_splits(DataConfig(**{**defaults, **settings}), tokenizer, block_size=8)


def saved(folder):
    DatasetDict({"train": Dataset.from_list(SET_ROWS), "empty": NONE}).save_to_disk(folder)
    return next((folder / "train").glob("*.arrow"))


def without_rows(folder):
    NONE.save_to_disk(folder)


def with_a_file_cut_off(folder):
    path = saved(folder)
    path.write_bytes(path.read_bytes()[:1000])


def without_a_file(folder):
    saved(folder).unlink()


def with_a_damaged_state(folder):
    saved(folder)
    (folder / "train" / "state.json").write_text("[]")


def an_empty_parquet_file(folder):
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), folder / "train.parquet")


def a_broken_json_file(folder):
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": \n')


def a_program(folder):
    folder.mkdir()
    (folder / "folder.py").write_text("raise SystemExit(9)")


def no_file(folder):
    folder.mkdir()


UNREADABLE = {
    "no row": (without_rows, {}, r"\./folder \(train\): folder has no row; give another split"),
    "an empty split": (saved, {"train_split": "empty"}, r"folder/empty has no row; give another split"),
    "no such split": (saved, {"train_split": "dev"}, r"\./folder has no split 'dev'; its splits are 'empty', 'train'"),
    "cut off": (with_a_file_cut_off, {}, r"folder/train cannot be read \(.*\); write it again with save_to_disk"),
    "a file missing": (without_a_file, {}, r"folder/train cannot be read \(.*\); write it again with save_to_disk"),
    "state": (with_a_damaged_state, {}, r"folder/train cannot be read \(TypeError.*; write it again with save_to_disk"),
    "Parquet": (an_empty_parquet_file, {}, r"\./folder.* cannot be read: .*; repair it, or give its files by"),
    "JSON": (a_broken_json_file, {}, r"\./folder.* cannot be read: .*; repair it, or give its files by train_"),
    "split of a folder": (a_broken_json_file, {"train_split": "dev"}, r"\./folder \(dev\).*train"),
    "a program": (
        a_program,
        {},
        r"\./folder \(train\) is made by a loading script, .*refs/convert/parquet --local-dir copy",
    ),
    "no files": (no_file, {}, r"folder doesn't contain any data files"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", UNREADABLE)
def test_a_data_set_that_cannot_be_read_is_named(case, streaming, tmp_path, tokenizer):
    """What `datasets` says in its own words is said with the name of the data set, and what to do."""
    make, settings, message = UNREADABLE[case]
    make(tmp_path / "folder")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_small(tokenizer, dataset_name="./folder", streaming=streaming, **settings)


@pytest.mark.parametrize("name", ["rows.jsonl", "./rows.jsonl"])
def test_a_file_is_no_data_set(name, tmp_path, tokenizer):
    """A file that is given as a data set is sent to where it belongs."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(FileNotFoundError, match=r"rows\.jsonl is a file; give it by train_files"):
        load_small(tokenizer, dataset_name=name)


@pytest.mark.parametrize(
    ("rows", "row", "message"),
    [
        ("tokens", {"input_ids": "abc"}, r"Column 'input_ids' of \./folder \(train\) holds .*lists of whole numbers"),
        ("tokens", {"input_ids": [1, 2**40]}, r"The row .*: 'input_ids' has 1099511627776 or 1, which is no token id"),
        ("tokens", {"input_ids": [1, None]}, r"The row .*: 'input_ids' must be a list of whole numbers; repair it"),
        (
            "tokens",
            {"input_ids": [1, 2], "labels": [1]},
            r"The row .*: 2 tokens but 1 labels; give one label",
        ),
        ("tokens", {"input_ids": [1, 2], "labels": [1, 999]}, r"Label 999 at place 1 of the document .* is out of the"),
        ("text", {"text": ["hello"]}, r"Column 'text' of \./folder \(train\) holds .*, not text; set text_column"),
        ("messages", {"messages": "hello"}, r"Column 'messages' of \./folder \(train\) holds .*objects with 'role'"),
    ],
)
def test_rows_of_a_data_set_hold_what_they_should(rows, row, message, tmp_path, tokenizer):
    """Tokens and messages of a data set are looked at as those of files are."""
    Dataset.from_list([row] * 9).save_to_disk(tmp_path / "folder")
    with pytest.raises(ValueError, match=message):
        load_small(tokenizer, dataset_name="./folder", rows=rows)


def test_a_later_shard_that_cannot_be_read_is_named(tmp_path, tokenizer):
    """A stream that comes upon a damaged file says of which source."""
    (tmp_path / "folder").mkdir()
    Dataset.from_list(SET_ROWS).to_parquet(tmp_path / "folder" / "train-0.parquet")
    Dataset.from_list(SET_ROWS).to_parquet(tmp_path / "folder" / "train-1.parquet")
    settings = {"dataset_name": "./folder", "streaming": True, "holdout_documents": 40, "shuffle_documents": 0}
    stream = load_small(tokenizer, **settings).train
    path = tmp_path / "folder" / "train-1.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"\./folder cannot be read: .*; repair it, or give its files by train_files"):
        for _ in zip(range(500), stream, strict=False):
            pass


@pytest.mark.parametrize("streaming", [False, True])
def test_long_documents_of_a_data_set_are_damage_too(streaming, tmp_path, tokenizer):
    """max_document_bytes holds for data sets as well: an error, or left out if asked."""
    rows = [*SET_ROWS, {"text": "é" * 1001}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "folder")
    settings = {"dataset_name": "./folder", "max_document_bytes": 2001, "streaming": streaming}
    place = r"The document 'é.*'" if streaming else r"\./folder \(train\), row 41"
    with pytest.raises(ValueError, match=rf"{place} is longer than max_document_bytes \(2,001\); split the document"):
        for _ in zip(range(500), load_small(tokenizer, **settings).train, strict=False):
            pass
    splits = load_small(tokenizer, **settings, damaged_rows="skip")
    rows = [row for _, row in zip(range(400), splits.train, strict=False)]
    assert "é" not in tokenizer.decode([token for row in rows for token in row["input_ids"]])
    if streaming:
        counts = rows[-1]["reader_state"].sources[0].counts
        assert counts["damaged"] == counts["passes"] > 0
    else:
        assert (splits.facts.damaged_rows, splits.facts.skipped_documents) == (1, 0)


@pytest.mark.parametrize("streaming", [False, True])
def test_wrong_tokens_of_a_data_set_are_damage_too(streaming, tmp_path, tokenizer):
    """With damaged_rows 'skip' they are left out and counted, as those of files are."""
    rows = [{"input_ids": [n + 1, 2, 3, 4], "labels": [n + 1, 2, 3, 4]} for n in range(40)]
    Dataset.from_list([*rows, {"input_ids": [250, 251, 252], "labels": [250]}]).save_to_disk(tmp_path / "folder")
    settings = {"dataset_name": "./folder", "rows": "tokens", "damaged_rows": "skip", "streaming": streaming}
    splits = load_small(tokenizer, **settings)
    rows = [row for _, row in zip(range(200), splits.train, strict=False)]
    assert not {250, 251, 252} & {token for row in rows for token in row["input_ids"]}
    if streaming:
        assert rows[-1]["reader_state"].sources[0].counts["damaged"] > 0
    else:
        assert (splits.facts.damaged_rows, splits.facts.skipped_documents) == (1, 0)


def test_a_saved_set_that_was_written_again_is_read_again(tmp_path, tokenizer):
    """Its own fingerprint may stay the same: that of a function by its name, which has changed since."""
    for word in ("first", "other"):
        rows = Dataset.from_list([{"text": f"{word} {number}"} for number in range(40)])
        rows._fingerprint = "same"
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        rows.save_to_disk(tmp_path / "folder")
        train = load_small(tokenizer, dataset_name="./folder").train
        assert word in tokenizer.decode(train[0]["input_ids"])


def test_what_was_skipped_comes_back_when_it_is_allowed(tmp_path, tokenizer):
    """A document that was too long for one run is read by the next, which allows it; nothing stale is used."""
    Dataset.from_list([*SET_ROWS, {"text": "long " * 300}]).select(range(1, 41)).save_to_disk(tmp_path / "folder")

    def counts(**settings):
        facts = load_small(tokenizer, dataset_name="./folder", **settings).facts
        documents = facts.train.documents + facts.selection.documents + facts.test.documents
        return documents, facts.damaged_rows

    assert counts(max_document_bytes=1000, damaged_rows="skip") == (39, 1)
    assert counts() == (40, 0)
    with pytest.raises(ValueError, match=r"\./folder \(train\), row 40 is longer than max_document_bytes \(1,000\)"):
        counts(max_document_bytes=1000)
    assert counts(max_document_bytes=1000, damaged_rows="skip") == (39, 1)


def test_chosen_rows_are_marked_by_their_own_sizes():
    """Of a data set that is a choice of rows, those are marked that are chosen; a null is not."""
    rows = Dataset.from_dict({"text": ["a" * 9, "b", None, "c" * 8]}).select([3, 2, 1])
    layout = Layout(most_bytes=7, skip=True)
    marked = mark_damage(rows, layout, "here")
    assert [row and row[:34] for row in marked["bad_row"]] == ["here, row 1 is longer than max_doc", None, None]
    assert marked["text"][:] == ["c" * 8, None, "b"]
    assert mark_damage(rows.select([1, 2]), layout, "here").column_names == ["text"]
