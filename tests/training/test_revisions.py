"""A run goes to the Hub: its last student from the trainer, and every round's as a revision."""

import json
import shutil

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from inheritune_hf.cli import main
from inheritune_hf.publishing import hub as publishing
from inheritune_hf.publishing import publish_student
from inheritune_hf.training.checkpoints import round_students


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
