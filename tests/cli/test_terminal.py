"""What verbs write to the terminal."""

import ast
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.table import Table
from tiny_reference import save_model
from tqdm.auto import tqdm

import inheritune_hf
from inheritune_hf.cli import main
from inheritune_hf.cli.terminal import LogFormat, LogHandler, Terminal, log_to_terminal


@dataclass(frozen=True)
class Named:
    """A record with a name that somebody chose."""

    name: str


EVIL = "[bold]m[/red] :smile: \x1b[31m\x1b]0;owned\x07\u202e"
SHOWN = "[bold]m[/red] :smile: \\u001b[31m\\u001b]0;owned\\u0007\\u202e"


def test_names_are_shown_as_they_are(capsys):
    """Markup, emoji and escape sequences are text in lines, titles, cells, rules and records; lines stay one."""
    terminal = Terminal()
    terminal.print(EVIL)
    terminal.print_facts([("note", f"{EVIL}\nforged  line")])
    terminal.rule(EVIL)
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    terminal.print(table)
    terminal.print_record(Named(EVIL), more=EVIL)
    out = capsys.readouterr().out
    assert not set(out) & {"\x1b", "\x07", "\u202e"}
    lines = out.splitlines()
    assert lines[:2] == [SHOWN, f"note        {SHOWN}\\nforged  line"]
    assert out.count(SHOWN) == 8
    assert json.loads(out[out.index("{") :]) == {"name": EVIL, "more": EVIL}


def test_log_records_are_shown_as_they_are(monkeypatch):
    """A log record is text, and the password of an address in it is hidden."""
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s of %s", (EVIL, "https://me:word@host/a?key=1"), None)
    assert LogFormat("%(message)s").format(record) == f"{SHOWN} of https://***@host/a?***"
    root = logging.RootLogger(logging.WARNING)
    monkeypatch.setattr(logging, "root", root)
    log_to_terminal()
    assert isinstance(root.handlers[0].formatter, LogFormat)


def test_lines_do_not_break_a_progress_bar(capsys):
    """What is logged or printed while a bar is shown stands on a line of its own, and the bar is drawn again."""
    with tqdm(total=2, desc="round 1", file=sys.stderr):
        LogHandler().emit(logging.LogRecord("x", logging.INFO, "", 0, "logged", (), None))
        Terminal().print("printed")
        shown = capsys.readouterr()
    assert "\rlogged\n" in shown.err
    assert shown.err.count("\rround 1:") == 3
    assert shown.out == "printed\n"


@pytest.mark.parametrize("name", ["[bold]m", "[/red]m", "\x1b[31mm", ":smile:"])
def test_a_folder_of_any_name_can_be_used(name, tmp_path, capsys):
    """`doctor` and `inherit` show a reference's name as it is, and so does an error."""
    save_model(tmp_path / name)
    shown = f"{tmp_path / name}".replace("\x1b", "\\u001b")
    assert main(["doctor", str(tmp_path / name)]) == 0
    out = capsys.readouterr().out
    assert "The reference can be cut." in out
    assert f"{shown} (gpt2, 4 layers)" in out
    assert main(["inherit", str(tmp_path / name), "--output", str(tmp_path / f"{name}-student")]) == 0
    assert f"saved in    {shown}-student" in capsys.readouterr().out
    (tmp_path / name / "config.json").write_text("{")
    assert main(["doctor", str(tmp_path / name)]) == 1
    err = capsys.readouterr().err
    assert f"{shown}/config.json is damaged: it is not valid JSON" in err
    assert err.count("\n") == 1


def test_everything_shown_passes_through_the_terminal():
    """Only `cli` writes to the terminal, with `print` for texts of its own alone, and makes no other console."""
    package = Path(inheritune_hf.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in {"print", "Console", "basicConfig"}:
                found.append((path.relative_to(package).as_posix(), called.id, ast.unparse(node.args[0])))
    assert {(file, name) for file, name, _ in found} == {
        ("cli/__init__.py", "print"),
        ("cli/data.py", "print"),
        ("cli/train.py", "print"),
        ("cli/settings.py", "print"),
    }
    foreign = [text for _, _, text in found if "error}" in text or "{error" in text]
    assert all("one_line(error)" in text for text in foreign)
