"""Files that are not what they seem, and files with damage within."""

from __future__ import annotations

import gzip
import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from inheritune_hf.data.sources import BadRow, Layout, read_rows

ROWS = [{"text": f"row {number} of a table, and what it says"} for number in range(400)]


def write_table(path, rows=ROWS, group=50, **options):
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
        assert found or len(rows) == len(ROWS)
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
    assert [row for row in rows if row not in damage] == ROWS[:100] + ROWS[150:]


def test_words_in_a_dictionary_are_text(tmp_path):
    """Columns of categories, and of views, are read as the strings they are."""
    texts = pyarrow.array([row["text"] for row in ROWS])
    for column in (texts.dictionary_encode(), texts.cast(pyarrow.string_view())):
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "rows.parquet")
        assert list(read_rows(tmp_path / "rows.parquet", Layout())) == ROWS


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


def test_a_json_list_is_read_whole(tmp_path):
    """Its items are rows; what is wrong with one is said with its number, and what is no JSON with its line."""
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf [{"text": "a"}, {"body": 1}]')
    rows = list(read_rows(tmp_path / "a.json", Layout(skip=True)))
    assert rows[0] == {"text": "a"}
    assert "a.json, item 2 has no column 'text'" in str(rows[1])
    for content, message in (
        (b'[{"text": "a"},\n{"text": tru}]', r"a\.json is damaged \(Expecting value: line 2 column 10 "),
        (b'[{"text": "a"}] {}', r"a\.json is damaged \(Extra data: line 1 column 17"),
        (b"[" * 100_000, r"a\.json is damaged \(maximum recursion depth exceeded"),
        (b'[{"text": "a\xff"}]', r"a\.json is not UTF-8 text: byte 0xff at byte offset 12; convert it"),
    ):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(BadRow, match=message):
            list(read_rows(tmp_path / "a.json", Layout()))


def test_other_names_of_json_lines(tmp_path):
    """.ndjson is JSON lines, and .zstd is .zst."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.ndjson").write_text(lines)
    with pyarrow.CompressedOutputStream(str(tmp_path / "b.jsonl.zstd"), "zstd") as file:
        file.write(lines.encode())
    for name in ("a.ndjson", "b.jsonl.zstd"):
        assert list(read_rows(tmp_path / name, Layout())) == ROWS


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.txt.zst"])
def test_a_file_that_cannot_be_opened_is_not_called_damaged(name, tmp_path):
    """What the system refuses is said as it is, compressed or not."""
    (tmp_path / name).symlink_to(tmp_path / name)  # leads to itself
    with pytest.raises(BadRow, match=r"the file cannot be read \(.*\); make it readable, or leave it out"):
        list(read_rows(tmp_path / name, Layout()))


DEEP = {
    "nested too deep": ("text", '{"text": ' + "[" * 100_000, r"line 2 is damaged \(maximum recursion depth exceeded"),
    "a long number": ("text", '{"text": ' + "1" * 5_000 + "}", r"line 2 is damaged \(Exceeds the limit \(4300 digits"),
    "unequal lists": ("tokens", '{"input_ids": [[1], [2, 3]]}', r"line 2: 'input_ids' must be a list of whole numbers"),
    "a label below 0": (
        "tokens",
        '{"input_ids": [1, 2], "labels": [-5, 2]}',
        r"line 2: 'labels' has 2 or -5, which is no token id; repair the row",
    ),
    "half a surrogate": (
        "messages",
        '{"messages": [{"role": "user", "content": "\\ud800"}]}',
        r"line 2: 'messages' holds half a surrogate pair",
    ),
}


@pytest.mark.parametrize("case", DEEP)
def test_strange_rows_have_a_place(case, tmp_path):
    """What Python's own readers refuse in their own words is said with its line, and can be skipped."""
    rows, bad, message = DEEP[case]
    good = {"text": {"text": "a"}, "tokens": {"input_ids": [1]}, "messages": {"messages": [{"role": "user"}]}}[rows]
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(good)}\n{bad}\n{json.dumps(good)}\n")
    with pytest.raises(BadRow, match=message):
        list(read_rows(tmp_path / "a.jsonl", Layout(rows)))
    kinds = [isinstance(row, BadRow) for row in read_rows(tmp_path / "a.jsonl", Layout(rows, skip=True))]
    assert kinds == [False, True, False]
