"""Items of a long JSON list, a part of the file at a time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune_hf.data import json_lists
from inheritune_hf.data.files import read_rows
from inheritune_hf.data.rows import Damage, Layout

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


def items_of(data, most=10_000, at_once=7, layout=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "_BYTES_AT_ONCE", at_once)
        return list(json_lists.list_items(io.BytesIO(data), "a.json", most, layout or Layout()))


@settings(deadline=None, database=None, derandomize=True)
@given(
    rows=st.lists(st.fixed_dictionaries({"text": TEXT, "more": st.lists(st.integers() | TEXT | st.booleans())})),
    indent=st.sampled_from([None, 0, 3]),
    letters=st.booleans(),
    at_once=st.integers(1, 30),
)
def test_items_are_those_of_the_whole_list(rows, indent, letters, at_once):
    """However the file is written, and wherever it is cut while it is read, its items are those that json reads."""
    data = json.dumps(rows, indent=indent, ensure_ascii=letters).encode()
    assert items_of(b"\xef\xbb\xbf \n" + data + b" \n", at_once=at_once) == [{"text": row["text"]} for row in rows]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"text": "a"}, {"text": tru}]', r"item 2 is damaged \(Expecting value; what follows is lost\); a JSON"),
        (b'[{"text": "a"}, {"text": "b', r"item 2 is damaged \(Unterminated string starting at; what follows"),
        (b'[{"text": "a"} {"text": "b"}]', r"item 1 is damaged \(Expecting ',', got '{'; what follows is lost"),
        (b'[{"text": "a"},', r"item 2 is damaged \(Expecting value; what"),
        (b'[{"text": "a"}', r"item 1 is damaged \(Expecting ','; what"),
        (b'[{"text": "a"}] {}', r"item 1 is damaged \(Something follows the list; what"),
        (b'[{"text": "a"}, ' + b"[" * 100_000, r"item 2 is damaged \(maximum recursion depth exceeded"),
        (b'[{"text": "a"}, ' + b"1" * 5_000 + b"]", r"item 2 is damaged \(Exceeds the limit \(4300 digits\)"),
        (b'[{"text": "a\xff"}]', r"a\.json is not UTF-8 text: byte 0xff at byte offset 12; convert it"),
        (b'[{"text": "a"}, {"text": "\xc3"}]', r"a\.json is not UTF-8 text: byte 0xc3 at byte offset 26; convert it"),
        (b'[{"text": "a"}, {"text": "' + b"b" * 20_000, r"item 2 is longer than max_document_bytes"),
    ],
)
@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_damage_in_a_list_has_a_place(data, message, at_once):
    """What is no JSON is named with its item; what came before it was read."""
    most = 10_000 if at_once < 1 << 20 or b"b" * 9 in data else 1 << 20
    rows = items_of(data, most, at_once)
    assert isinstance(rows[-1], Damage)
    with pytest.raises(Damage, match=message):
        raise rows[-1]
    assert rows[:-1] in ([], [{"text": "a"}])


def test_a_long_list_is_not_held(tmp_path):
    """A list of 40 MB takes a few megabytes of memory."""
    import tracemalloc

    path = tmp_path / "long.json"
    item = json.dumps({"text": "layer kept " * 200})
    path.write_text("[" + ",\n".join([item] * 20_000) + "]")
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_rows(Path(path), Layout()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 16_000_000
