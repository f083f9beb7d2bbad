"""The verb that prepares data."""

import json
from pathlib import Path

import pytest
from tiny_reference import save_tokenizer
from transformers import GPT2Config

from inheritune_hf.cli import main
from inheritune_hf.cli.data import _progress
from inheritune_hf.cli.settings import parse_settings


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A tokenizer and some rows."""
    monkeypatch.chdir(tmp_path)
    save_tokenizer("tokenizer")
    rows = [{"text": f"document {number} is about a layer that is kept"} for number in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": ""}]))
    return tmp_path


def status_of(words):
    try:
        return main(words)
    except SystemExit as end:
        return end.code


def test_prepare_prints_what_it_saved(files, capsys):
    """The folder is made, its counts are printed, and a second call says the same."""
    words = ["data", "prepare", "--tokenizer", "tokenizer", "--output", "out", "--train_files", "rows.jsonl"]
    words += ["--block_size", "16", "--near_duplicates", "ignore"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "train       36 documents, " in printed.out
    assert "bytes/token " in printed.out
    assert "longest     " in printed.out
    assert "duplicates  0 the same, not looked for nearly; 0 removed" in printed.out
    assert "skipped     1 blank, 0 damaged" in printed.out
    assert "tokenized 41 of 41 documents" in printed.err
    assert main(words) == 0
    assert capsys.readouterr().out == printed.out


def write_config(**changes):
    settings = {"vocab_size": 300, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 256}
    GPT2Config(**{**settings, "eos_token_id": 256, **changes}).save_pretrained("tokenizer")


def test_the_references_config_is_looked_at(files, capsys, caplog):
    """Sequences are as long as the reference reads; what does not fit it is said before anything is tokenized."""
    words = ["data", "prepare", "--tokenizer", "tokenizer", "--output", "out", "--train_files", "rows.jsonl"]
    write_config(eos_token_id=5)
    assert main(words) == 0
    assert json.loads(Path("out/prepared.json").read_text())["facts"]["block_size"] == 16
    assert "The tokenizer ends documents with '<|endoftext|>' (256), the reference's config names " in caplog.text
    assert main([*words, "--output", "longer", "--block_size", "17"]) == 1
    assert "error: block_size is 17, but the reference reads at most 16; lower it." in capsys.readouterr().err
    write_config(vocab_size=100)
    assert main([*words, "--output", "other"]) == 1
    assert "tokens, the reference only 100; use the reference's own tokenizer" in capsys.readouterr().err
    assert not Path("other").exists()


def test_the_time_left_is_told_from_the_parts_that_were_done_here(capsys, monkeypatch):
    """What was found finished passes in an instant and is not counted; the rest takes as long as the parts did."""
    seconds = iter([100.0, 220.0, 280.0, 400.0])
    monkeypatch.setattr("inheritune_hf.cli.data.time.monotonic", lambda: next(seconds))
    show = _progress()
    for done in (200, 300, 350, 500):
        show(done, 500)
    assert capsys.readouterr().err.splitlines() == [
        "tokenized 200 of 500 documents",
        "tokenized 300 of 500 documents · 4 min left",
        "tokenized 350 of 500 documents · 3 min left",
        "tokenized 500 of 500 documents · 0 min left",
    ]


def test_settings_come_from_a_file_too(files, capsys):
    """A recipe's data settings are read from YAML; a mixture can be written on the command line as JSON."""
    Path("data.yaml").write_text(
        "tokenizer: tokenizer\noutput: out\nblock_size: 16\nnear_duplicates: ignore\n"
        "sources:\n- {files: rows.jsonl, weight: 2}\n- {files: [rows.jsonl], weight: 1}\n"
    )
    assert main(["data", "prepare", "--config", "data.yaml"]) == 0
    assert "source      rows.jsonl, rows.jsonl" in capsys.readouterr().out
    words = ["--sources", '{"files": "a.txt", "weight": 1}', '{"dataset_name": "b", "weight": 3}']
    settings = parse_settings(["--reference", "gpt2", "--output_dir", "o", "--use_cpu", *words])
    assert settings.data.sources == [{"files": "a.txt", "weight": 1}, {"dataset_name": "b", "weight": 3}]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "usage: inheritune data prepare --tokenizer ID --output FOLDER"),
        (
            ["prepare", "--tokenizer", "t", "--output", "o", "--rows", "pages"],
            2,
            "argument --rows: invalid choice: 'pages'",
        ),
        (["prepare", "--tokenizer", "t", "--output", "o", "--config", "no.yaml"], 2, "There is no file no.yaml"),
        (["prepare", "--tokenizer", "nothing", "--output", "o"], 1, "There is no tokenizer at 'nothing'"),
        (
            ["prepare", "--tokenizer", "tokenizer", "--output", "o"],
            1,
            "There is nothing to train on; give dataset_name",
        ),
    ],
)
def test_what_cannot_be_prepared(files, words, status, message, capsys):
    """A mistake ends with a status and one line that says what to do."""
    assert status_of(["data", *words]) == status
    assert message in capsys.readouterr().err


def test_an_interruption_has_its_status(files, capsys, monkeypatch):
    """Ctrl-C ends with 75, as an interrupted run does: the same command goes on."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("inheritune_hf.data.prepare_data", interrupt)
    assert main(["data", "prepare", "--tokenizer", "tokenizer", "--output", "o", "--train_files", "rows.jsonl"]) == 75
    assert "interrupted; the same command resumes from what is on disk" in capsys.readouterr().err
