"""`inheritune publish`: shows what would go up, and puts it there when asked to."""

import pytest
from tiny_reference import save_model

from inheritune_hf.cli import main
from inheritune_hf.publishing import hub as publishing
from inheritune_hf.publishing import save_inherited


@pytest.fixture
def saved(tmp_path):
    save_inherited(save_model(tmp_path / "reference"), 2, tmp_path / "student")
    return tmp_path / "student"


def run(words, token=None):
    """Run a command where the trial, which other tests are about, is left out; returns its status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "try_out", lambda _: None)
        if token:
            patch.setenv("HF_TOKEN", token)
        return main(words)


def test_a_dry_run_is_the_default(saved, capsys):
    """Every file is listed with where it goes, and nothing is uploaded."""
    (saved / "optimizer.pt").write_bytes(b"")
    assert run(["publish", str(saved), "--repo-id", "me/student"]) == 0
    text = capsys.readouterr().out
    assert "upload      model.safetensors" in text
    assert "left out    optimizer.pt (pickled files are never published)" in text
    assert "note        The licence of the reference is not known" in text
    assert "repository  me/student" in text
    assert "Nothing was uploaded. Add --push to upload." in text


def test_a_push_is_one_word_more(hub, on_hub, saved):
    """With `--push` the student is on the Hub, with what the options say."""
    words = ["publish", str(saved), "--repo-id", "me/by-command", "--push", "--license", "mit", "--language", "en"]
    assert on_hub(run, [*words, "--message", "First"], "hf_writer") == 0
    files = hub.files("me/by-command")
    assert "model.safetensors" in files
    assert b"license: mit" in files["README.md"]


def test_what_fails_is_said(saved, tmp_path, capsys):
    """Errors are one line and status 1; a missing option is wrong usage."""
    assert run(["publish", str(tmp_path), "--repo-id", "me/student"]) == 1
    assert "inheritune publish: error: There is no student in" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["publish", str(saved)])
    assert ended.value.code == 2


def test_rounds_of_a_cut_are_none(saved, capsys):
    """A student that was not trained has no rounds to publish, and that is no error."""
    assert run(["publish", str(saved), "--repo-id", "me/student", "--rounds"]) == 0
    assert "round 1" not in capsys.readouterr().out
