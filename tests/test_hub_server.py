"""The local Hub speaks the protocol: huggingface_hub and Transformers cannot tell it from the real one."""

import json

import pytest
import torch

FILES = {"README.md": "# Hello\n", "config.json": "{}", "model.safetensors": "x" * 1000, "deep/er/note.txt": "down"}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_text(content)
    return tmp_path / "repository"


def download(repository, cache, token=None, revision=None, name="model.safetensors"):
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        path = hf_hub_download(repository, name, cache_dir=cache, token=token, revision=revision)
    except HfHubHTTPError as error:
        return type(error).__name__
    with open(path) as file:  # noqa: PTH123
        return file.read()


def ask(method, *args, token=None, **kwargs):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = getattr(HfApi(token=token), method)(*args, **kwargs)
        return found if isinstance(found, dict | str | bool | None) else repr(found)
    except HfHubHTTPError as error:
        return type(error).__name__


def upload(repository, folder, token, **kwargs):
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repository, exist_ok=True)
    return api.upload_folder(repo_id=repository, folder_path=folder, **kwargs).oid


def test_files_come_down_over_two_hosts(hub, on_hub, folder, tmp_path):
    """Small files come from the Hub, large ones from a second host that is never shown the token."""
    commit = hub.add("me/served", folder)
    assert on_hub(download, "me/served", tmp_path / "cache", "hf_writer") == FILES["model.safetensors"]
    assert on_hub(download, "me/served", tmp_path / "cache", revision=commit, name="deep/er/note.txt") == "down"
    assert on_hub(download, "me/served", tmp_path / "cache", name="nothing") == "RemoteEntryNotFoundError"
    assert on_hub(download, "me/served", tmp_path / "cache", revision="nowhere") == "RevisionNotFoundError"
    assert on_hub(download, "me/nobody", tmp_path / "cache") == "RepositoryNotFoundError"
    asked = {(entry["server"], entry["method"]): entry for entry in hub.log}
    assert asked["hub", "HEAD"]["authorization"] is None or "Bearer" in asked["hub", "HEAD"]["authorization"]
    assert asked["storage", "GET"]["authorization"] is None
    assert asked["storage", "GET"]["bytes"] == 1000
    assert hub.endpoint.startswith("http://127.0.0.1:")


def test_private_and_gated_repositories_ask_who_is_there(hub, on_hub, folder, tmp_path):
    """Whoever may not read a repository is told so as the real Hub tells it."""
    hub.add("me/private", folder, private=True)
    hub.add("me/gated", folder, gated_for=["me"])
    assert on_hub(download, "me/private", tmp_path / "a") == "RepositoryNotFoundError"
    assert on_hub(download, "me/private", tmp_path / "a", "hf_reader") == "RepositoryNotFoundError"
    assert on_hub(download, "me/private", tmp_path / "a", "hf_writer") == FILES["model.safetensors"]
    assert on_hub(download, "me/gated", tmp_path / "b", "hf_reader") == "GatedRepoError"
    assert on_hub(download, "me/gated", tmp_path / "b", "hf_writer") == FILES["model.safetensors"]
    assert on_hub(ask, "whoami", token="hf_writer")["name"] == "me"
    assert on_hub(ask, "whoami", token="hf_wrong") == "HfHubHTTPError"


def test_folders_go_up_and_revisions_stay(hub, on_hub, folder):
    """A repository is made, committed to, branched and tagged; the same folder again is no commit."""
    first = on_hub(upload, "me/uploaded", str(folder), "hf_writer")
    assert hub.files("me/uploaded")["model.safetensors"] == FILES["model.safetensors"].encode()
    assert on_hub(upload, "me/uploaded", str(folder), "hf_writer") == first
    assert on_hub(ask, "create_tag", "me/uploaded", tag="v1", token="hf_writer") is None
    assert on_hub(ask, "create_branch", "me/uploaded", branch="next", token="hf_writer") is None
    (folder / "README.md").write_text("# Changed\n")
    assert on_hub(upload, "me/uploaded", str(folder), "hf_writer", revision="next") != first
    assert hub.files("me/uploaded", "v1")["README.md"] == b"# Hello\n"
    assert hub.files("me/uploaded", "next")["README.md"] == b"# Changed\n"
    assert "next" in on_hub(ask, "list_repo_refs", "me/uploaded")
    assert on_hub(ask, "file_exists", "me/uploaded", "deep/er/note.txt") is True
    assert "deep/er/note.txt" in on_hub(ask, "model_info", "me/uploaded")
    assert on_hub(ask, "create_repo", "other/name", token="hf_writer") == "HfHubHTTPError"


def transformers_round_trip(repository, token):
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=2, n_head=2))
    model.push_to_hub(repository, token=token)
    loaded = AutoModelForCausalLM.from_pretrained(repository, token=token)
    return all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_transformers_cannot_tell(on_hub):
    """A model that Transformers pushes is the model that Transformers loads."""
    assert on_hub(transformers_round_trip, "me/plain", "hf_writer")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"kind": "status", "status": 429, "headers": {"Retry-After": "0"}}, FILES["model.safetensors"]),
        ({"kind": "cut", "bytes": 400}, FILES["model.safetensors"]),
        ({"kind": "status", "status": 403}, "HfHubHTTPError"),
        ({"kind": "slow", "seconds": 0.2}, FILES["model.safetensors"]),
    ],
    ids=lambda value: json.dumps(value)[:30],
)
def test_faults_look_real(hub, on_hub, folder, tmp_path, rule, expected):
    """huggingface_hub itself retries, resumes or gives up, as it does when a real server misbehaves."""
    hub.add("me/faulty", folder)
    hub.break_by({"server": "storage", "method": "GET", **rule})
    assert on_hub(download, "me/faulty", tmp_path / "cache") == expected
