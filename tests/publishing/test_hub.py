"""Standard checkpoints on disk and on the Hub."""

import json
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from inheritune_hf import from_pretrained_inherited
from inheritune_hf.publishing import push_student, save_inherited, save_student
from inheritune_hf.records import Lineage, RunRecord


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "tiny"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=4, n_head=2)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def student(reference):
    return from_pretrained_inherited(reference)


def record(student):
    return RunRecord({"keep_layers": "half"}, Lineage.from_dict(student.config.inheritune))


def test_saved_student_is_readable_by_others(student, tmp_path):
    """Weights have the permissions that new files get, and the record is beside them."""
    save_student(student, tmp_path / "a", record(student))
    (tmp_path / "plain").write_text("")
    mode = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "a" / "model.safetensors").stat().st_mode) == mode
    assert json.loads((tmp_path / "a" / "inheritune_config.json").read_text())["lineage"]["kept_layers"] == [0, 1]
    assert "# a" in (tmp_path / "a" / "README.md").read_text()


def test_save_inherited(reference, tmp_path):
    """A student is cut and saved in one call, with what was kept and dropped."""
    plan = save_inherited(reference, "first:3", tmp_path / "student")
    assert plan.kept_layers == (0, 1, 2)
    assert plan.dropped_layers == (3,)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert saved.num_parameters() == plan.parameters_after
    assert saved.config.n_layer == 3


def test_full_folder_is_refused(reference, tmp_path):
    """A folder with something in it is left as it is."""
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not an empty folder; choose another one"):
        save_inherited(reference, 2, tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["kept.txt"]


def test_only_what_is_listed_goes_up(student, monkeypatch):
    """A push uploads weights, config, record and card, named for the repository, and nothing that is pickled."""
    uploads = []

    def create_repo(self, repo_id, private=None, exist_ok=False):
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, revision, commit_message):
        files = {item.name: item.read_bytes() for item in Path(folder_path).iterdir()}
        uploads.append((repo_id, files, allow_patterns, self.token))
        return SimpleNamespace(commit_url=f"https://example.org/{repo_id}/commit/1")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert push_student(student, record(student), None, "student", token="secret").endswith("me/student/commit/1")
    ((repo_id, files, allowed, token),) = uploads
    assert repo_id == "me/student"
    assert token == "secret"
    assert set(files) <= {
        "README.md",
        "config.json",
        "generation_config.json",
        "inheritune_config.json",
        "model.safetensors",
    }
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in allowed)
    assert not any(b"secret" in content for content in files.values())
    assert b'from_pretrained("me/student")' in files["README.md"]
