"""Files that are whole or absent."""

import json
import os

import pytest

from inheritune_hf.records import Match, Round, RunState, Validation, write_json
from inheritune_hf.run_folder import read_state, write_state
from inheritune_hf.training import checkpoints
from inheritune_hf.training.checkpoints import (
    Seal,
    check_identity,
    last_checkpoint,
    read_seal,
    seal_checkpoint,
    unseal_checkpoint,
)

SUMS = Validation((0, 1), (0.1 + 0.2, 2.0), (3, 4), (1, 2))
ROUND = Round(1, (0, 1), 0, 10, 640, 1e9, 1.5, 3.1, 3.0, Match(False, False, 0.1, 0.05, 0.15, 40))


def test_state_goes_through_its_file(tmp_path):
    """What is read is what was written."""
    state = RunState({"seed": 1}, (0, 1, 2), SUMS, 10, True, (ROUND,), None)
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state


def test_empty_folder_has_no_run(tmp_path):
    """A new folder holds no run; one that is not there neither."""
    assert read_state(tmp_path) is None
    assert read_state(tmp_path / "new") is None


def test_damaged_state_is_an_error(tmp_path):
    """A state file that is not JSON is named."""
    write_state(tmp_path, RunState({}, (0,)))
    path = tmp_path / "_inheritune" / "state.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"state\.json is damaged"):
        read_state(tmp_path)


def test_failed_write_leaves_the_old_file(tmp_path):
    """A value that JSON cannot hold fails before the old file is touched."""
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_identity_is_compared_as_json(tmp_path):
    """Tuples and lists are one thing to a file; real differences are all named."""
    state = RunState({"layers": [0, 1], "seed": 1}, (0,))
    check_identity(tmp_path, state.identity, {"layers": (0, 1), "seed": 1})
    with pytest.raises(ValueError, match=r"- lr: None there, 0\.1 now\n- seed: 1 there, 2 now"):
        check_identity(tmp_path, state.identity, {"layers": (0, 1), "seed": 2, "lr": 0.1})


def test_last_sealed_checkpoint_of_a_round(tmp_path):
    """Only sealed checkpoints of the round count, by step and not by name or time."""
    for step, index in ((5, 1), (100, 1), (20, 1), (200, 2)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        seal_checkpoint(folder, Seal(index, step, 64, 1.0, SUMS))
    (tmp_path / "checkpoint-150").mkdir()
    checkpoint, seal = last_checkpoint(tmp_path, 1)
    assert checkpoint.name == "checkpoint-100"
    assert seal == Seal(1, 100, 64, 1.0, SUMS)
    unseal_checkpoint(checkpoint)
    assert last_checkpoint(tmp_path, 1)[0].name == "checkpoint-20"
    assert last_checkpoint(tmp_path, 3) is None


def make_checkpoint(folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(bytes(range(200)))
    (checkpoint / "rng_state_1.pth").write_bytes(b"random")
    seal_checkpoint(checkpoint, Seal(1, step, 64, 1.0))
    return checkpoint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-5]), "model.safetensors has 195 bytes, not 200"),
        (lambda file: file.write_bytes(b"\xff" + file.read_bytes()[1:]), "model.safetensors has been changed"),
        (lambda file: (file.parent / "rng_state_1.pth").unlink(), "rng_state_1.pth is missing"),
    ],
    ids=["truncated", "flipped", "missing"],
)
def test_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, damage, message):
    """A truncated file, a flipped byte or a missing rank's file: the checkpoint before is used, and it is said."""
    good, bad = make_checkpoint(tmp_path, 5), make_checkpoint(tmp_path, 10)
    damage(bad / "model.safetensors")
    assert last_checkpoint(tmp_path, 1)[0] == good
    assert f"{bad} is damaged ({message}); the checkpoint before it is used." in caplog.text


def test_damaged_seal_is_no_seal(tmp_path):
    """A seal that is not whole does not count."""
    (tmp_path / "inheritune_state.json").write_text('{"step"')
    assert read_seal(tmp_path) is None


def test_a_checkpoint_is_read_once_to_be_checked(tmp_path, monkeypatch):
    """What this process sealed is not read again until a file changes; then it is, and the damage is seen."""
    reads = []
    whole = checkpoints.zlib.crc32
    monkeypatch.setattr(checkpoints.zlib, "crc32", lambda *values: reads.append(1) or whole(*values))
    checkpoint = make_checkpoint(tmp_path, 10)
    for file in checkpoint.iterdir():
        os.utime(file, (1e9, 1e9))  # long ago; of what was written just now nothing is taken for granted
    seal_checkpoint(checkpoint, Seal(1, 10, 64, 1.0))
    sealed = len(reads)
    for _ in range(3):
        assert last_checkpoint(tmp_path, 1)[0] == checkpoint
    assert len(reads) == sealed
    file = next(item for item in checkpoint.iterdir() if item.name != "inheritune_state.json")
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(bytes(content))
    assert last_checkpoint(tmp_path, 1) is None
    assert len(reads) > sealed


def test_what_a_kill_left_of_a_seal_is_not_sealed(tmp_path):
    """A checkpoint that is written again after a kill between its seal's file and name is whole."""
    checkpoint = tmp_path / "checkpoint-10"
    checkpoint.mkdir()
    (checkpoint / ".inheritune_state.json.tmp").write_text("{}")
    unseal_checkpoint(checkpoint)
    seal_checkpoint(checkpoint, Seal(1, 10, 64, 1.0))
    assert last_checkpoint(tmp_path, 1) is not None
