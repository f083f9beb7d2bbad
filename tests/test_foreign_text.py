"""Text that others wrote is read within bounds, and what is shown of it stays text."""

import pytest

from inheritune_hf.foreign_text import (
    MAX_NESTING,
    MAX_YAML,
    file_names,
    first_line,
    one_line,
    parse_json,
    parse_yaml,
    printable,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [bold] é 层 \t\n", "plain [bold] é 层 \t\n"),
        ("\x1b[31mred\x1b]0;title\x07", "\\u001b[31mred\\u001b]0;title\\u0007"),
        ("a\rb\x9b31m\x7f", "a\\u000db\\u009b31m\\u007f"),
        ("evil\u202etxt.exe\u2066", "evil\\u202etxt.exe\\u2066"),
        ("half a character: \udc80", "half a character: \\udc80"),
        ("https://me:p@ss@host/a?b", "https://***@host/a?***"),
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        ("(https://host/f?X-Amz-Signature=abc&x=1)", "(https://host/f?***)"),
        ("'https://host/f?Signature=abc' is", "'https://host/f?***' is"),
        ("with hf_" + "a1" * 10, "with ***"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
    ],
)
def test_foreign_text_is_shown_as_text(text, shown):
    """Control characters, marks of direction and halves of characters are written out; secrets are hidden."""
    assert printable(text) == shown
    assert printable(shown) == shown


def test_errors_are_one_line():
    """An error's first line is a sentence, and all of its lines are one, without secrets."""
    error = OSError("\n 403 Forbidden for url: https://cdn/f?Signature=abc\n (Request ID \x1b[1m)")
    assert first_line(error) == "403 Forbidden for url: https://cdn/f?***."
    assert one_line(error) == "403 Forbidden for url: https://cdn/f?*** (Request ID \\u001b[1m)"
    assert first_line(TimeoutError()) == "TimeoutError."


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", r"f is not valid JSON: "),
        (b"\xff", r"f is not valid JSON: .*utf-8"),
        ("9" * 5000, "f is not valid JSON: Exceeds the limit"),
        ("[" * 200_000, f"f nests deeper than {MAX_NESTING} levels"),
        ("[" * 101 + "]" * 101, f"f nests deeper than {MAX_NESTING} levels"),
    ],
    ids=["damaged", "no text", "large number", "very deep", "deep"],
)
def test_json_is_bounded(text, complaint):
    """What is not JSON, or nests deeper than anybody writes, is refused by a message that names it."""
    with pytest.raises(ValueError, match=complaint):
        parse_json(text, "f")
    assert parse_json('{"a": [1, {"b": null}]}', "f") == {"a": [1, {"b": None}]}
    deepest = "[" * MAX_NESTING + "]" * MAX_NESTING
    assert str(parse_json(deepest, "f")) == str(parse_yaml(deepest, "f")) == deepest


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [1", "f is not valid YAML: "),
        ("a: 2020-13-45", "f is not valid YAML: month must be in"),
        ("\ud800: 1", "f is not valid YAML: .*surrogates"),
        ("a: " + "[" * 3000, f"f nests deeper than {MAX_NESTING} levels"),
        ("a: &x [1, 1]\nb: [*x, *x]", r"f has the alias \*x: write out what it stands for"),
        ("- &a [*a]", r"f has the alias \*a"),
        ("a: !!timestamp x", "f has the tag tag:yaml.org,2002:timestamp: write the value without it"),
        ("a: !!python/object/apply:os.system [ls]", "f has the tag .*os.system"),
        ("x" * (MAX_YAML + 1), f"f is longer than {MAX_YAML:,} characters"),
    ],
    ids=["damaged", "date", "no text", "deep", "bomb", "circle", "tag", "code", "long"],
)
def test_yaml_is_bounded(text, complaint):
    """What is not YAML, nests deeper than anybody writes, or stands for more than it says is refused."""
    with pytest.raises(ValueError, match=complaint):
        parse_yaml(text, "f")
    assert parse_yaml("a: [1, {b: null}]\n", "f") == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([], ""),
        (["a.txt", "b/c.txt"], "a.txt, b/c.txt"),
        ([f"text/{number}.txt" for number in range(168)], "168 files (text/*.txt)"),
        ([f"{number}.safetensors" for number in range(4)], "4 files (*.safetensors)"),
        (["/data/a/1.txt", "/data/a/2.txt", "/data/b/3.jsonl", "/data/b/4.txt"], "4 files (/data/**/*)"),
        (["/data/1.txt", "2.txt", "3.txt", "4.txt"], "4 files (**/*.txt)"),
    ],
)
def test_many_files_are_a_count_and_a_pattern(names, shown):
    """Up to three files are named; more are counted, with the folder and the ending that they share."""
    assert file_names(names) == shown


def test_files_below_the_current_folder_are_named_from_there(tmp_path, monkeypatch):
    """The whole path of a file beside one's work says nothing more; another folder's file keeps it."""
    monkeypatch.chdir(tmp_path)
    elsewhere = f"{tmp_path}-2/b.txt"
    assert file_names([str(tmp_path / "a.txt"), elsewhere]) == f"a.txt, {elsewhere}"
