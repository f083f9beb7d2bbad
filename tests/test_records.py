"""Records go through files unchanged, and what is wrong in a file is one line that names file and field."""

import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
from holding import held_by_another
from safetensors import SafetensorError

from inheritune_hf import records
from inheritune_hf.foreign_text import MAX_NESTING
from inheritune_hf.records import (
    EXIT_STATUS,
    Cache,
    Count,
    DataFacts,
    Lineage,
    Match,
    RecordError,
    Round,
    RunRecord,
    SetFacts,
    Validation,
    decode,
    encode,
    hold_folder,
    read_json,
    read_record,
    saving,
    write_json,
    write_record,
    write_text,
)
from inheritune_hf.run_folder import without_nothing

ROUND = Round(1, (0, 1), 0, 10, 640, 1e9, 1.5, 3.1, 3.0, Match(False, False, 0.1, None, None, 4, "few"))
LINEAGE = Lineage("gpt2", None, 12, (0, 1), {"torch": "2"})
RUN = RunRecord({"keep_layers": 2}, LINEAGE, (ROUND,), "no_more_layers", 3.0)


def test_the_command_that_cuts_one_layer_names_it():
    """A list of one layer is no count of first layers."""
    for layers, word in (([5], "5:6"), ([0], "0:1"), (2, "2"), ([0, 1, 2, 5], "0:3,5")):
        assert f" --keep-layers {word} " in replace(RUN, recipe={"keep_layers": layers}).inherit_command("ref", "out")


def test_processes_may_write_a_shared_file_at_once(tmp_path):
    """What another process has begun to write is not touched."""
    (tmp_path / ".source.json.tmp").write_text("half")
    (tmp_path / ".source.json.1.tmp").write_text("half")
    write_json(tmp_path / "source.json", {"a": 1}, shared=True)
    assert read_json(tmp_path / "source.json") == {"a": 1}
    assert {path.read_text() for path in tmp_path.glob(".*.tmp")} == {"half"}
    assert len(list(tmp_path.glob(".*.tmp"))) == 2


def test_what_none_says_is_kept_in_settings():
    """Without a teacher, and by means: where a default would say otherwise, none is written."""
    values = {"confidence": None, "distillation": None, "schedule": [], "target": 2.0, "revision": None}
    assert without_nothing(values) == {"confidence": None, "distillation": None, "target": 2.0}


@dataclass(frozen=True)
class Sample:
    """Every kind of annotation."""

    FORMAT: ClassVar[int] = 3
    pair: tuple[int, float]
    rows: tuple[tuple[int, ...], ...]
    kind: Literal["a", "b"]
    steps: Count
    flag: bool = False
    choice: int | str | list[int] = 1
    table: Mapping[str, float | None] | None = None
    rest: Any = None


SAMPLE = Sample((1, 2.5), ((1, 2), ()), "a", 4, table={"x": None, "y": 1.0}, rest=[{"z": 1}])


@pytest.mark.parametrize("record", [RUN, SAMPLE, Validation((0, 2), (0.1 + 0.2, 1 / 3), (3, 4), (1, 0))])
def test_records_go_through_files(record, tmp_path):
    """What is read equals what was written, to the bit."""
    write_record(tmp_path / "folder" / "record.json", record)
    assert read_record(type(record), tmp_path / "folder" / "record.json") == record
    assert ROUND.layers == 2


def test_older_files_are_read(tmp_path):
    """A file without a format, as students published before have it, and without fields that came later, is read."""
    values = encode(RUN)
    del values["rounds"][0]["epochs"], values["lineage"]["query_scales"]
    write_json(tmp_path / "record.json", values)
    assert read_record(RunRecord, tmp_path / "record.json") == RUN


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("pair", 1), "2.5", r"pair\[1\] must be a finite number, got '2.5'"),
        (("pair", 1), float("nan"), r"pair\[1\] must be a finite number, got nan"),
        (("pair",), [1], r"pair must be a list of 2, got 1"),
        (("rows", 0, 1), True, r"rows\[0\]\[1\] must be a whole number, got True"),
        (("rows", 0), {}, r"rows\[0\] must be a list, got {}"),
        (("kind",), "c", "kind must be one of 'a', 'b', got 'c'"),
        (("steps",), -1, "steps must be a whole number from 0 to .*, got -1"),
        (("flag",), 1, "flag must be true or false, got 1"),
        (("choice",), {}, "choice must be a list, got {}"),
        (("table", "x"), "a", "table.x must be a finite number, got 'a'"),
        (("table",), 5, "table must be a mapping, got 5"),
        (("format",), 4, r"was written by a later version of inheritune-hf \(format 4, this one reads up to 3\)"),
        (("format",), "1", "format must be a whole number of 1 or more, got '1'"),
        (("other",), 1, "has no field 'other'"),
    ],
)
def test_what_does_not_fit_is_named(path, value, message, tmp_path):
    """A field of another type, out of range, unknown, or of a later format is one line with file and field."""
    file = tmp_path / "sample.json"
    write_record(file, SAMPLE)
    values = place = json.loads(file.read_text())
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    file.write_text(json.dumps(values))
    with pytest.raises(RecordError, match=f"sample.json:? ?.*{message}") as caught:
        read_record(Sample, file)
    assert "\n" not in str(caught.value)


def test_a_record_checks_more_than_types():
    """What a record's own check refuses, and a field that is missing, are named as well."""
    with pytest.raises(RecordError, match=r"^seal\.json: validation: a validation needs documents"):
        decode(
            dict[str, Validation],
            {"validation": encode(Validation((0,), (1.0,), (2,), (1,))) | {"tokens": [0]}},
            "seal.json",
        )
    with pytest.raises(RecordError, match=r"^seal\.json: lacks the field 'pair'"):
        decode(Sample, {}, "seal.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is damaged: it is not valid JSON"),
        (b"\xff{}", "is damaged: it is not valid JSON"),
        (b"[1]", "must hold a mapping, got a list"),
        (b'{"a":' * (MAX_NESTING + 1) + b"1" + b"}" * (MAX_NESTING + 1), f"nests deeper than {MAX_NESTING} levels"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, f"nests deeper than {MAX_NESTING} levels"),
        (b" " * 2_000 + b"{}", "is larger than 1,000 bytes"),
    ],
)
def test_what_is_no_file_of_facts_is_refused(content, message, tmp_path, monkeypatch):
    """Size and nesting are bounded, and what is not one JSON mapping is said."""
    monkeypatch.setattr(records, "MAX_BYTES", 1_000 if b" " in content else 1 << 20)
    (tmp_path / "facts.json").write_bytes(content)
    with pytest.raises(RecordError, match=f"facts.json.*{message}"):
        read_json(tmp_path / "facts.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    """The old file stays as it was, and nothing else is left."""
    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_cache_gives_back_what_it_was_given(tmp_path):
    """An entry is found by its key alone."""
    cache = Cache(tmp_path / "cache", tuple[Match, ...])
    assert cache.read(["a", 1.5]) is None
    cache.write(["a", 1.5], (ROUND.match,))
    assert cache.read(["a", 1.5]) == (ROUND.match,)
    assert cache.read(["a", 1]) is None


def test_entries_that_cannot_be_used_are_dropped(tmp_path, caplog):
    """A damaged entry, one of another kind and one of another key are named, removed and written again."""
    cache = Cache(tmp_path, Match)
    for wrong, message in (
        (lambda text: text[:-9], "is damaged: it is not valid JSON"),
        (lambda text: text.replace('"documents"', '"pages"'), "has no field 'pages'"),
        (lambda text: text.replace('"key": "a"', '"key": "b"'), "is of another key than its name"),
    ):
        cache.write("a", ROUND.match)
        (path,) = tmp_path.iterdir()
        path.write_text(wrong(path.read_text()))
        caplog.clear()
        assert cache.read("a") is None
        assert f"{path}" in caplog.text
        assert message in caplog.text
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners")
def test_entries_of_other_users_are_not_believed(tmp_path, monkeypatch, caplog):
    """What another user has put there is not used."""
    cache = Cache(tmp_path, Match)
    cache.write("a", ROUND.match)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert cache.read("a") is None
    assert "belongs to another user" in caplog.text


def test_a_cache_that_cannot_be_written_is_said(tmp_path, caplog):
    """Nothing is kept then, and nothing fails."""
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache", Match)
    with caplog.at_level(logging.WARNING):
        cache.write("a", ROUND.match)
    assert "cannot be written" in caplog.text
    assert cache.read("a") is None


def test_a_folder_is_held_by_one_process(tmp_path):
    """It may hold the folder twice; another process is told which one holds it, until that has ended or was killed."""
    held = r"runs is in use by process {} on .* since 20\d\d-.*; wait until it has ended, or choose another folder"
    with (
        held_by_another(tmp_path / "runs") as process,
        pytest.raises(BlockingIOError, match=held.format(process)),
        hold_folder(tmp_path / "runs"),
    ):
        pass
    assert (tmp_path / "runs" / ".lock").exists()
    with hold_folder(tmp_path / "runs"), hold_folder(tmp_path / "runs"):
        child = os.fork()
        if child == 0:  # as a data worker does, it outlives its parent's hold of the folder
            time.sleep(60)
            os._exit(0)
    with hold_folder(tmp_path / "runs"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    with hold_folder(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()


def test_a_folder_is_held_on_windows(tmp_path, monkeypatch):
    """Without flock and fork the byte behind the text is locked; one that is locked already is another process's."""
    locked = []

    def locking(file, mode, count):
        if locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        locked.append((os.lseek(file, 0, os.SEEK_CUR), mode, count))

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr("inheritune_hf.records.sys.platform", "win32")
    with hold_folder(tmp_path / "a"):
        assert locked == [(1 << 30, 2, 1)]
        with pytest.raises(BlockingIOError, match="is in use by another process; wait until"), hold_folder(tmp_path):
            pass
    assert not (tmp_path / "a").exists()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    """Where nothing can be locked a warning says so, and the folder is used; another failure is one."""
    fcntl = pytest.importorskip("fcntl")

    def fail(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(fcntl, "flock", fail(errno.ENOSYS))
    with hold_folder(tmp_path):
        assert "this file system has no locks" in caplog.text
    monkeypatch.setattr(fcntl, "flock", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), hold_folder(tmp_path):
        pass


def test_what_no_library_could_save_is_one_line(tmp_path):
    """Whichever error a library raises, what could not be saved is named with the reason."""
    for error in (
        OSError(28, "No space left on device"),
        RuntimeError("no space left"),
        SafetensorError("no space left"),
    ):
        with (
            pytest.raises(OSError, match=r"model could not be saved \(.*o space left.*\); make room"),
            saving(tmp_path / "model"),
        ):
            raise error


def test_every_outcome_has_its_own_status():
    """Exit statuses tell outcomes apart."""
    assert EXIT_STATUS == {"matched": 0, "no_more_layers": 3, "budget_exhausted": 4, "interrupted": 75}


def test_a_published_lineage_holds_no_path():
    """Others read the reference's name, not where it was."""
    assert replace(LINEAGE, reference="/home/me/models/tiny").published().reference == "tiny"


def test_facts_about_data_are_one_line():
    """A log line names the source and counts documents, tokens and sequences of each set; a stream has no counts."""
    held_out = SetFacts(2, 1_300, 11, "b")
    facts = DataFacts("168 files (text/*.txt)", 128, SetFacts(None, None, None, "a"), held_out, held_out)
    counts = "2 documents, 1,300 tokens, 11 sequences"
    assert str(facts) == f"168 files (text/*.txt) · train: a stream · selection: {counts} · test: {counts}"
