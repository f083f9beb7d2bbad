"""Prepared sequences: the same as a run makes, interruptible, and recognised."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from holding import held_by_another
from test_splits import TEXTS, load, write_jsonl, write_texts

from inheritune_hf.config import DataConfig
from inheritune_hf.data import load_data_splits, prepare_data, prepared, tokenization
from inheritune_hf.data.prepared import separates_documents


def prepare(tokenizer, folder="prepared", block_size=16, **settings):
    return prepare_data(DataConfig(**settings), tokenizer, folder, block_size=block_size)


def test_a_prepared_folder_is_what_a_run_would_make(tmp_path, tokenizer):
    """The folder gives the sets and facts that the run itself would make, and leaves no unfinished work behind."""
    files = [write_texts(tmp_path / "texts")]
    plain = load(tokenizer, train_files=files)
    facts = prepare(tokenizer, train_files=files)
    assert facts == plain.facts
    assert 1 < facts.bytes_per_token < 4
    loaded = load_data_splits(DataConfig(dataset_name="prepared"), tokenizer, block_size=16)
    assert loaded.facts == plain.facts
    for name in ("train", "selection", "test"):
        assert getattr(loaded, name)[:] == getattr(plain, name)[:]
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == ["prepared.json", "sets"]


def test_a_run_takes_the_block_size_of_its_prepared_data(tmp_path, tokenizer):
    """Whatever the reference could read, sequences are as long as they were prepared."""
    prepare(tokenizer, train_files=[write_texts(tmp_path / "texts")])
    for options in ({}, {"context_length": 1024}, {"context_length": 16}, {"block_size": 16}):
        splits = load_data_splits(DataConfig(dataset_name="prepared"), tokenizer, **options)
        assert splits.facts.block_size == len(splits.train[0]["input_ids"]) == 16


def test_an_interrupted_preparation_resumes(tmp_path, build_tokenizer, monkeypatch):
    """What was tokenized before an interruption is not tokenized again, and the result is the same."""
    monkeypatch.setattr(tokenization, "DOCUMENTS_PER_PART", 10)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    done = []

    def interrupt(count, total):
        done.append((count, total))
        if count == 20:
            raise KeyboardInterrupt

    config = DataConfig(train_files=[path])
    with pytest.raises(KeyboardInterrupt):
        prepare_data(config, build_tokenizer(), "cut", block_size=16, progress=interrupt)
    assert done == [(10, 40), (20, 40)]
    with pytest.raises(FileNotFoundError, match=r"dataset_name: there is no folder \./none"):
        load(build_tokenizer(), dataset_name="./none")
    tokenizer, calls = build_tokenizer(), []
    whole = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda self, texts, **o: calls.append(1) or whole(self, texts, **o)
    )
    facts = prepare_data(config, tokenizer, "cut", block_size=16)
    assert len(calls) == 2  # two of the four parts
    assert facts == prepare_data(config, build_tokenizer(), "whole", block_size=16)
    calls.clear()
    assert prepare_data(config, tokenizer, "cut", block_size=16) == facts  # finished: nothing is done
    assert not calls


KILLED = """
import os, signal, sys
from transformers import PreTrainedTokenizerFast
from inheritune_hf.config import DataConfig
from inheritune_hf.data.prepared import separates_documents
from inheritune_hf.data import prepare_data, prepared, tokenization
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
tokenization.DOCUMENTS_PER_PART = 10
progress = None
if sys.argv[1] == "tokenizing":
    progress = lambda done, total: done == 20 and kill()
elif sys.argv[1] == "saving":
    prepared.DatasetDict.save_to_disk = kill
else:
    prepared.write_record = kill
tokenizer = PreTrainedTokenizerFast.from_pretrained("tokenizer")
prepare_data(DataConfig(train_files=["rows.jsonl"]), tokenizer, "cut", block_size=16, progress=progress)
"""


@pytest.mark.slow
def test_a_killed_preparation_resumes(tmp_path, tokenizer):
    """Killed while it tokenizes, while it saves and before its record, it ends with what it would have made at once."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    tokenizer.save_pretrained("tokenizer")
    for moment in ("tokenizing", "saving", "saying"):
        command = [sys.executable, "-c", KILLED, moment]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        with pytest.raises(ValueError, match=r"The preparation of \./cut was interrupted; run the command"):
            load(tokenizer, dataset_name="./cut")
    facts = prepare(tokenizer, "cut", train_files=[path])
    assert facts == prepare(tokenizer, "whole", train_files=[path])
    for name in ("train", "selection", "test"):
        one, two = (getattr(load(tokenizer, dataset_name=folder), name)[:] for folder in ("cut", "whole"))
        assert one == two
    assert sorted(item.name for item in (tmp_path / "cut").iterdir()) == ["prepared.json", "sets"]


def test_a_folder_is_not_written_over(tmp_path, tokenizer, build_tokenizer):
    """Other data, another tokenizer or block size are refused, with what to do."""
    files = [write_texts(tmp_path / "texts")]
    prepare(tokenizer, train_files=files)
    with pytest.raises(ValueError, match=r"prepared holds data that were prepared with other settings; choose another"):
        prepare(tokenizer, train_files=files, block_size=8)
    with pytest.raises(ValueError, match=r"prepared was prepared with sequences of 16 tokens, got block_size 8; leave"):
        load(tokenizer, dataset_name="prepared", block_size=8)
    with pytest.raises(
        ValueError, match=r"of 16 tokens, but the reference reads at most 12; prepare the data again wi"
    ):
        load_data_splits(DataConfig(dataset_name="prepared"), tokenizer, context_length=12)
    with pytest.raises(ValueError, match=r"prepared with another tokenizer \(292 tokens\) than the reference's \(260"):
        load(build_tokenizer(vocab_size=260), dataset_name="prepared")
    with pytest.raises(ValueError, match=r"prepared is prepared already; give it to the run as dataset_name"):
        prepare(tokenizer, "again", dataset_name="prepared")


def test_a_changed_file_is_not_what_was_prepared(tmp_path, tokenizer):
    """After an edit that keeps the size, a finished folder is refused, not given back with the old text."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    facts = prepare(tokenizer, train_files=[path])
    os.utime(path, (1000, 1000))
    assert prepare(tokenizer, train_files=[path]) == facts
    Path(path).write_text(Path(path).read_text().replace("layer_11", "layer_99"))
    os.utime(path, (1000, 1000))
    with pytest.raises(ValueError, match=r"prepared holds data that were prepared with other settings"):
        prepare(tokenizer, train_files=[path])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("selection_files", ["texts/*.txt"]),
        ("streaming", True),
        ("near_duplicates", "remove"),
        ("selection_fraction", 0.2),
        ("document_boundaries", True),
    ],
)
def test_what_was_decided_is_not_asked_for_again(name, value, tmp_path, tokenizer):
    """A setting that prepared data would ignore is refused, with both values; what they were prepared with may stay."""
    prepare(tokenizer, train_files=[write_texts(tmp_path / "texts")], test_fraction=0.1, near_duplicates="ignore")
    assert load(
        tokenizer, dataset_name="prepared", test_fraction=0.1, near_duplicates="ignore", preprocessing_workers=2
    )
    with pytest.raises(
        ValueError, match=rf"prepared is prepared: its sets are final\. Leave out {name} .* \(prepared wi"
    ):
        load(tokenizer, dataset_name="prepared", **{name: value})


@pytest.mark.parametrize("apart", [True, False])
def test_documents_stay_apart_as_they_were_prepared(apart, tmp_path, tokenizer):
    """A run need not say again that documents are kept apart."""
    prepare(tokenizer, train_files=[write_texts(tmp_path / "texts")], document_boundaries=apart)
    assert separates_documents(DataConfig(dataset_name="prepared")) is apart
    assert separates_documents(DataConfig(dataset_name="elsewhere", document_boundaries=True))


def test_what_needs_no_preparation(tmp_path, tokenizer):
    """Streams and token files are not prepared."""
    with pytest.raises(ValueError, match=r"A stream is packed during training; leave out streaming"):
        prepare(tokenizer, train_files=["a.jsonl"], streaming=True)
    with pytest.raises(ValueError, match=r"Token files \(\.bin\) are used as they are; .*nothing to prepare"):
        prepare(tokenizer, train_files=["a.bin"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["request"].update(block_size="16"), r"request\.block_size must be a whole number"),
        (lambda values: values["request"]["config"].update(rows="pages"), r"rows must be one of"),
        (lambda values: values["request"].pop("tokenizer"), r"tokenizer"),
        (lambda values: values["facts"]["train"].update(tokens=-1), r"facts\.train\.tokens must be "),
        (lambda values: values["facts"].update(sources=[3]), r"facts\.sources\[0\] must be a mapping"),
        (lambda values: values.update(format=99), r"was written by a later version"),
    ],
)
def test_a_damaged_folder_is_named(change, message, tmp_path, tokenizer):
    """Every field of prepared.json is checked where it is read: one line names file and field."""
    prepare(tokenizer, train_files=[write_texts(tmp_path / "texts")])
    path = tmp_path / "prepared" / "prepared.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"prepared/prepared\.json.*{message}"):
        load(tokenizer, dataset_name="prepared")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"prepared/prepared\.json is damaged: it is not valid JSON"):
        load(tokenizer, dataset_name="prepared")


def test_damaged_sequences_are_named(tmp_path, tokenizer):
    """A set of a prepared folder that is damaged, lacks rows or holds something else is named, with what to do."""
    prepare(tokenizer, train_files=[write_texts(tmp_path / "texts")])
    sets = tmp_path / "prepared" / "sets"
    Dataset.from_dict({"input_ids": [[1] * 16]}).save_to_disk(tmp_path / "few")
    for damage, message in (
        (
            lambda: shutil.copytree("few", sets / "test", dirs_exist_ok=True),
            r"sets/test does not hold the \d+ seq",
        ),
        (lambda: (sets / "selection" / "state.json").write_text("[]"), r"sets/selection cannot be read \(TypeError"),
        (lambda: shutil.rmtree(sets / "train"), r"sets/train cannot be read \(FileNotFoundError"),
    ):
        damage()
        with pytest.raises(ValueError, match=rf"prepared/{message}.*; prepare the data again in another folder"):
            load(tokenizer, dataset_name="prepared")


def test_a_folder_without_a_format_is_read(tmp_path, tokenizer):
    """A file without the number of its format, as was written before, is the first format."""
    facts = prepare(tokenizer, train_files=[write_texts(tmp_path / "texts")])
    path = tmp_path / "prepared" / "prepared.json"
    values = json.loads(path.read_text())
    assert values.pop("format") == 1
    path.write_text(json.dumps(values))
    assert load(tokenizer, dataset_name="prepared").facts == facts
    assert prepare(tokenizer, train_files=[f"{tmp_path}/texts/*.txt"]) == facts


def test_one_process_prepares_a_folder(tmp_path, tokenizer):
    """A second process gets an error that names the first; a lock file that a killed one left does not matter."""
    files = [write_texts(tmp_path / "texts")]
    with (
        held_by_another(tmp_path / "prepared") as process,
        pytest.raises(BlockingIOError, match=rf"prepared is in use by process {process} on .* since 20"),
    ):
        prepare(tokenizer, train_files=files)
    (tmp_path / "prepared" / ".lock").write_text("process 1 on elsewhere since long ago")
    prepare(tokenizer, train_files=files)
    assert sorted(item.name for item in (tmp_path / "prepared").iterdir()) == ["prepared.json", "sets"]


def test_a_folder_that_was_finished_in_between_is_not_prepared_again(tmp_path, tokenizer, monkeypatch):
    """Where another process finishes a folder just before this one would begin, its sequences are used."""
    files, saved, hold, save = [write_texts(tmp_path / "texts")], [], prepared.hold_folder, prepared._save

    @contextlib.contextmanager
    def another_first(folder):
        monkeypatch.setattr(prepared, "hold_folder", hold)
        prepare(tokenizer, train_files=files)
        with hold(folder):
            yield

    monkeypatch.setattr(prepared, "hold_folder", another_first)
    monkeypatch.setattr(prepared, "_save", lambda *values: saved.append(1) or save(*values))
    assert prepare(tokenizer, train_files=files) == load(tokenizer, dataset_name="prepared").facts
    assert saved == [1]
