"""Files of a run that are whole or absent, and its rounds as students to publish."""

import json
import shutil
import time

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from inheritune_hf.cli import main
from inheritune_hf.publishing import hub as publishing
from inheritune_hf.publishing import publish_student
from inheritune_hf.records import Match, Round, RunState, Validation
from inheritune_hf.run_folder import read_state, write_state
from inheritune_hf.training import checkpoints
from inheritune_hf.training.checkpoints import (
    Seal,
    check_identity,
    last_checkpoint,
    read_seal,
    round_students,
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


def test_identity_is_compared_as_json(tmp_path):
    """Tuples and lists are one thing to a file; real differences are all named."""
    state = RunState({"layers": [0, 1], "seed": 1}, (0,))
    check_identity(tmp_path, state.identity, {"layers": (0, 1), "seed": 1})
    with pytest.raises(ValueError, match=r"- lr: None there, 0\.1 now\n- seed: 1 there, 2 now"):
        check_identity(tmp_path, state.identity, {"layers": (0, 1), "seed": 2, "lr": 0.1})


def test_a_reference_of_the_same_weights_may_be_named_otherwise(tmp_path):
    """A path may be written in two ways, and a branch be named for its commit; other weights are another run."""
    there = {"reference": "ref", "reference.revision": None, "reference.weights": "abc"}
    check_identity(tmp_path, there, {**there, "reference": "/data/ref", "reference.revision": "main"})
    with pytest.raises(ValueError, match=r"- reference: 'ref' there, 'other' now\n- reference.weights"):
        check_identity(tmp_path, there, {**there, "reference": "other", "reference.weights": "def"})
    with pytest.raises(ValueError, match=r"- reference: 'ref' there, 'other' now"):
        check_identity(tmp_path, {"reference": "ref"}, {"reference": "other"})


def test_files_named_like_checkpoints_are_none(tmp_path):
    """What somebody packed beside the checkpoints is passed over."""
    (tmp_path / "checkpoint-4.tar.gz").write_bytes(b"")
    assert last_checkpoint(tmp_path, 1, "me") is None


def test_last_sealed_checkpoint_of_a_round(tmp_path):
    """Only sealed checkpoints of the round count, by step and not by name or time."""
    for step, index in ((5, 1), (100, 1), (20, 1), (200, 2)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        seal_checkpoint(folder, Seal("run", index, step, 64, 1.0, SUMS))
    (tmp_path / "checkpoint-150").mkdir()
    checkpoint, seal = last_checkpoint(tmp_path, 1, "run")
    assert checkpoint.name == "checkpoint-100"
    assert seal == Seal("run", 1, 100, 64, 1.0, SUMS)
    unseal_checkpoint(checkpoint)
    assert last_checkpoint(tmp_path, 1, "run")[0].name == "checkpoint-20"
    assert last_checkpoint(tmp_path, 3, "run") is None


def make_checkpoint(folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(bytes(range(200)))
    (checkpoint / "rng_state_1.pth").write_bytes(b"random")
    seal_checkpoint(checkpoint, Seal("run", 1, step, 64, 1.0))
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
    assert last_checkpoint(tmp_path, 1, "run")[0] == good
    assert f"{bad} is damaged ({message}); the checkpoint before it is used." in caplog.text


def test_damaged_seal_is_no_seal(tmp_path):
    """A seal that is not whole, or says something else of its files than size and checksum, does not count."""
    (tmp_path / "state").write_text("state")
    seal_checkpoint(tmp_path, Seal("run", 1, 4, 640, 1.5))
    assert read_seal(tmp_path) is not None
    seal = tmp_path / "inheritune_state.json"
    whole = seal.read_text()
    for text in ('{"step"', whole.replace('"crc32": ', '"crc": '), whole.replace('"bytes": 5', '"bytes": "5"')):
        seal.write_text(text)
        assert read_seal(tmp_path) is None


def test_a_checkpoint_is_read_once_to_be_checked(tmp_path, monkeypatch):
    """What this process sealed is not read again until a file changes; then it is, and the damage is seen."""
    reads = []
    whole = checkpoints.zlib.crc32
    monkeypatch.setattr(checkpoints.zlib, "crc32", lambda *values: reads.append(1) or whole(*values))
    checkpoint = make_checkpoint(tmp_path, 10)
    time.sleep(0.1)  # a file that changed just now is read again
    seal_checkpoint(checkpoint, Seal("run", 1, 10, 64, 1.0))
    sealed = len(reads)
    for _ in range(3):
        assert last_checkpoint(tmp_path, 1, "run")[0] == checkpoint
    assert len(reads) == sealed
    file = next(item for item in checkpoint.iterdir() if item.name != "inheritune_state.json")
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(bytes(content))
    assert last_checkpoint(tmp_path, 1, "run") is None
    assert len(reads) > sealed


def test_what_a_kill_left_of_a_seal_is_not_sealed(tmp_path):
    """A checkpoint that is written again after a kill between its seal's file and name is whole."""
    checkpoint = tmp_path / "checkpoint-10"
    checkpoint.mkdir()
    (checkpoint / ".inheritune_state.json.tmp").write_text("{}")
    unseal_checkpoint(checkpoint)
    seal_checkpoint(checkpoint, Seal("run", 1, 10, 64, 1.0))
    assert last_checkpoint(tmp_path, 1, "run") is not None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two rounds that missed its target, saved."""
    folder = tmp_path_factory.mktemp("run")
    reference = tiny.write_reference(folder / "reference")
    trainer = tiny.make_trainer(folder / "run", reference, {"keep_layers": 2})
    trainer.train()
    trainer.save_model()
    return folder / "run"


def train_and_push(folder, repo_id, token):
    """Train in a client process and push with the trainer; returns the address of the commit."""
    reference = tiny.write_reference(folder / "reference")
    recipe = {"keep_layers": 2, "max_layers": 2}
    trainer = tiny.make_trainer(folder / "run", reference, recipe, hub_model_id=repo_id, hub_token=token)
    trainer.train()
    return trainer.push_to_hub()


def push_rounds(folder, repo_id, token):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "try_out", lambda _: None)
        patch.setenv("HF_TOKEN", token)
        return main(["publish", str(folder), "--repo-id", repo_id, "--push", "--rounds"])


def test_the_trainer_publishes_its_student(hub, on_hub, tmp_path):
    """`push_to_hub` puts up the student, its record and card, and no pickle, optimizer or path."""
    url = on_hub(train_and_push, tmp_path, "me/trained", "hf_writer")
    assert url.startswith(f"{hub.endpoint}/me/trained/commit/")
    files = hub.files("me/trained")
    assert set(files) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "generation_config.json",
        "inheritune_config.json",
        "layers.png",
        "model.safetensors",
    }
    assert not any(str(tmp_path).encode() in content or b"hf_writer" in content for content in files.values())
    record = json.loads(files["inheritune_config.json"])
    assert record["training"]["seed"] == 7
    assert record["lineage"]["reference"] == "reference"
    assert "## Rounds" in ModelCard(files["README.md"].decode()).text


def test_every_round_is_a_revision(hub, on_hub, finished, tmp_path):
    """Each round's student lies on its own branch with its record up to there; the last one on main as well."""
    assert on_hub(push_rounds, finished, "me/rounds", "hf_writer") == 0
    depths = {}
    for revision in ("main", "round-1", "round-2"):
        files = hub.files("me/rounds", revision)
        config, record = json.loads(files["config.json"]), json.loads(files["inheritune_config.json"])
        assert config["use_cache"] is True
        assert config["n_layer"] == len(record["lineage"]["kept_layers"])
        depths[revision] = (config["n_layer"], len(record["rounds"]), record["outcome"])
        assert set(files) >= {"model.safetensors", "README.md", "generation_config.json"}
    assert depths == {
        "main": (3, 2, "no_more_layers"),
        "round-1": (2, 1, None),
        "round-2": (3, 2, "no_more_layers"),
    }
    assert "round 1 **missed** its target" in hub.files("me/rounds", "round-1")["README.md"].decode()
    assert hub.files("me/rounds")["model.safetensors"] == hub.files("me/rounds", "round-2")["model.safetensors"]


def test_a_rounds_student_is_its_checkpoint(finished, monkeypatch):
    """What is published of a round has the weights of the checkpoint that ended it, and is a student like any other."""
    monkeypatch.setattr(publishing, "try_out", lambda _: None)
    found = {}
    for index, folder in round_students(finished):
        model = AutoModelForCausalLM.from_pretrained(folder)
        found[index] = (model.config.n_layer, model.transformer.wte.weight.detach().clone())
        assert publish_student(folder, "me/student").files["model.safetensors"] > 0
    assert [depth for depth, _ in found.values()] == [2, 3]
    last = AutoModelForCausalLM.from_pretrained(finished)
    assert torch.equal(found[2][1], last.transformer.wte.weight)
    assert not torch.equal(found[1][1], last.transformer.wte.weight)


def test_a_round_that_is_gone_is_named(finished, tmp_path):
    """If a round's last checkpoint was not kept, that is said with what to do."""
    shutil.copytree(finished, tmp_path / "run")
    first = json.loads((finished / "inheritune_config.json").read_text())["rounds"][0]["end_step"]
    shutil.rmtree(tmp_path / "run" / f"checkpoint-{first}")
    with pytest.raises(FileNotFoundError, match=r"The checkpoint that ended round 1 is not in .* save_total_limit"):
        list(round_students(tmp_path / "run"))
