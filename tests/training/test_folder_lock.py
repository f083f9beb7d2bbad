"""One run at a time in a folder, whatever ends it; a folder that cannot be written to is refused before any work."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import forking
import pytest
import tiny
from test_trainer import run_program

from inheritune_hf.training.checkpoints import last_checkpoint

MESSAGE = r"in use by process %d on .* since 20\d\d-.*; wait until it has ended, or choose another folder"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny")


@pytest.fixture
def running(reference, tmp_path):
    """A run that stands still after step 5, its settings and its process."""
    settings = {"output_dir": str(tmp_path / "run"), "reference": reference, "result": str(tmp_path / "result.json")}
    stopped = {**settings, "kill_at": 5, "signal": int(signal.SIGSTOP)}
    process = forking.start(tiny.main, stopped)
    try:
        until = time.monotonic() + 300
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "T":
            assert process.is_alive()
            assert time.monotonic() < until
            time.sleep(0.1)
        yield settings, process
    finally:
        process.kill()
        process.join()


def test_two_runs_at_once(running, reference, tmp_path):
    """A second run in the folder of one that runs is refused, and one whose process was killed is continued."""
    settings, process = running
    for changes in ({}, {"learning_rate": 5e-2}):
        with pytest.raises(BlockingIOError, match=f"run is {MESSAGE % process.pid}"):
            tiny.make_trainer(settings["output_dir"], reference, **changes).train()
    process.kill()
    process.join()
    whole = tiny.make_trainer(tmp_path / "whole", reference)
    whole.train()
    assert run_program(settings)["weights"] == tiny.weights_hash(whole.student)
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.slow
def test_every_process_of_a_second_run_ends(running):
    """In a run of two processes the main one asks for the folder; where it is refused, none of them waits for it."""
    settings, process = running
    second = run_program(settings, processes=2, check=False)
    assert second.returncode == 1
    assert second.stderr.count(f"BlockingIOError: {settings['output_dir']} is in use by process {process.pid}") == 2


def test_checkpoints_of_another_run_are_not_used(reference, tmp_path, caplog):
    """A checkpoint says which run wrote it: one of other settings that lies in the folder is named and left alone."""
    first = tiny.make_trainer(tmp_path / "run", reference, callbacks=[tiny.Kill(4, signal.SIGTERM)])
    first.train()
    other = tiny.make_trainer(tmp_path / "other", reference, learning_rate=5e-2, max_steps=8)
    other.train()
    (tmp_path / "other" / "checkpoint-8").rename(tmp_path / "run" / "checkpoint-8")
    found, seal = last_checkpoint(tmp_path / "run", 1, first.run_digest)
    assert (found.name, seal.run) == ("checkpoint-4", first.run_digest)
    assert "checkpoint-8 belongs to another run and is not used." in caplog.text


def refused_to_ordinary_user(act):
    """Do something in a forked process without root's rights, and return the `OSError` it ends with, as text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            act()
        except OSError as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("where", ["", "out"], ids=["a folder", "its parent"])
def test_read_only_folder_is_refused_at_once(reference, where):
    """An ordinary user who may not write to the folder, or not make it, is told so by name, and nothing is begun."""
    folder = Path(tempfile.mkdtemp())
    try:
        trainer = tiny.make_trainer(folder / where, reference, {"target": "reference"})
        shutil.rmtree(folder / "out", ignore_errors=True)  # Transformers makes it
        folder.chmod(0o555)
        said = refused_to_ordinary_user(trainer.train)
        assert said.startswith("PermissionError: [Errno 13] Permission denied:")
        assert str(folder / where) in said
        assert not list(folder.iterdir())
    finally:
        shutil.rmtree(folder)


def test_no_room_for_the_first_student_is_one_line(reference, tmp_path):
    """Where the disk is full before the first step, what could not be saved and why is one line; then it continues."""
    settings = {"output_dir": str(tmp_path / "run"), "reference": reference, "result": str(tmp_path / "result.json")}
    full = run_program({**settings, "full_disk_at": 0}, check=False)
    assert full.returncode == 1
    last = full.stderr.strip().splitlines()[-1]
    assert last.startswith(f"OSError: {tmp_path}/run/_inheritune/round-01 could not be saved (")
    assert last.endswith("make room or choose another place, then try again.")
    assert run_program(settings)["outcome"] == "no_more_layers"
