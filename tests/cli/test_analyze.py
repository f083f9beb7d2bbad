"""`inheritune analyze`, and layers chosen by a measure, as commands."""

import json
import re
import shutil

import pytest
from test_cli import STORIES, reference  # noqa: F401  (a fixture)
from transformers import AutoModelForCausalLM

from inheritune_hf import InheritedGPT2
from inheritune_hf.analysis import CollapseReport
from inheritune_hf.cli import main
from inheritune_hf.measures import MEASURES


@pytest.fixture(autouse=True)
def scores(tmp_path, monkeypatch):
    """Scores are kept in a folder of the test's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "inheritune_hf" / "analysis"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES))
    return str(path)


def test_analyze_writes_and_prints(reference, text, tmp_path, capsys, scores):  # noqa: F811
    """It leaves report, table, advice and pictures, prints what it found, and measures nothing the second time."""
    words = ["analyze", reference, "--files", text, "--sequences", "30", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "collapse.json",
        "collapse.csv",
        "recommendation.json",
        "rank.png",
        "heads.png",
        "maps.png",
        "blocks.png",
        "depth.png",
    }
    report = CollapseReport.from_json(tmp_path / "out" / "collapse.json")
    assert (report.sequences, report.tokens, report.depth) == (30, 32, 4)
    printed, shown = capsys.readouterr()
    assert "layer/s]" in shown  # a bar with the time left
    assert "MaxRank" in printed
    assert "keep_layers: 2 of 4 (experimental; basis: half)" in printed
    (kept,) = scores.iterdir()
    before = kept.stat().st_mtime_ns
    assert main([*words, "--tau", "0.8"]) == 0
    assert "layer/s]" not in capsys.readouterr().err
    assert kept.stat().st_mtime_ns == before
    assert main([*words, "--heads", "1:0", "3:1"]) == 0
    drawn = CollapseReport.from_json(tmp_path / "out" / "collapse.json").maps
    assert [(item.layer, item.head) for item in drawn] == [(1, 0), (3, 1)]
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(SystemExit):
        main([*words, "--heads", "1-0"])
    assert "a head is LAYER:HEAD, both counted from 0, such as 4:2; got '1-0'" in capsys.readouterr().err


def test_analyze_a_revision_of_the_hub(reference, text, tmp_path, hub, on_hub):  # noqa: F811
    """What a Hub id names at a revision is analysed, not what came after it."""
    first = hub.add("me/analysed", reference)
    shallow = shutil.copytree(reference, tmp_path / "shallow")
    InheritedGPT2.from_pretrained(reference, keep_layers=2).save_pretrained(shallow)
    hub.add("me/analysed", shallow)
    depths = []
    for words in ([], ["--revision", first]):
        out = ["--files", text, "--sequences", "2", "--no-controls", "--no-blocks", "--output", str(tmp_path / "out")]
        assert on_hub(main, ["analyze", "me/analysed", *words, *out]) == 0
        depths.append(CollapseReport.from_json(tmp_path / "out" / "collapse.json").depth)
    assert depths == [2, 4]


def test_errors_have_their_status(reference, tmp_path, capsys):  # noqa: F811
    """What cannot be measured ends with status 1 and one line."""
    assert main(["analyze", reference, "--files", str(tmp_path / "none.txt")]) == 1
    assert "inheritune analyze: error: files: there is no file" in capsys.readouterr().err
    for command, what in (("analyze", "model"), ("evaluate", "tokenizer")):
        assert main([command, str(tmp_path / "nothing")]) == 1
        assert f"inheritune {command}: error: There is no {what} at '{tmp_path}/nothing'" in capsys.readouterr().err


def test_inherit_by_a_measure(reference, text, tmp_path, capsys):  # noqa: F811
    """A student keeps the layers that a measure chose, and its lineage says which."""
    words = ["inherit", reference, "--files", text, "--output"]
    assert main([*words, str(tmp_path / "by-rank"), "--keep-layers", "rank:2"]) == 0
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "by-rank")
    assert len(student.config.inheritune["kept_layers"]) == student.config.n_layer == 2
    assert main([*words, str(tmp_path / "auto"), "--keep-layers", "auto"]) == 0
    assert main([*words, str(tmp_path / "chosen"), "--keep-layers", "influence:1"]) == 0
    lineage = json.loads((tmp_path / "chosen" / "config.json").read_text())["inheritune"]
    order = lineage["order"]
    assert (order["measure"], order["first"], order["layers"][:1]) == ("influence", 1, lineage["kept_layers"])
    said = f"on {order['sequences']} sequences of {order['tokens']} tokens"
    assert said in (tmp_path / "chosen" / "README.md").read_text()
    assert main([*words, str(tmp_path / "wrong"), "--keep-layers", "rank:9"]) == 1
    assert "keep_layers must be between 1 and 4" in capsys.readouterr().err


def test_train_by_a_measure(reference, text, tmp_path):  # noqa: F811
    """A run resolves the choice on its training set, watches lazy layers, and reports on them."""
    words = ["--train_files", text, "--selection_fraction", "0.2", "--test_fraction", "0.2", "--confidence", "none"]
    words += ["--keep_layers", "auto", "--max_layers", "2", "--steps_per_round", "4", "--collapse_every", "1"]
    words += ["--use_cpu", "--report_to", "none", "--eval_strategy", "steps", "--eval_steps", "2"]
    found = []
    # The second finds the reference's loss where the first has kept it; the third is a finished run, given once more.
    for name in ("run", "again", "again"):
        assert main(["train", "--reference", reference, *words, "--output_dir", str(tmp_path / name)]) in {0, 3}
        records = json.loads((tmp_path / name / "rounds.json").read_text())
        assert records["recipe"]["keep_layers"] == "auto"
        assert (records["lineage"]["order"]["first"], records["lineage"]["kept_layers"]) == (2, [0, 1])
        assert records["lazy_layers"]["reference_layers"] == 4
        assert "lazy layers" in (tmp_path / name / "results.md").read_text()
        found.append(records["lazy_layers"])
    assert found[0] == found[1] == found[2]


def test_untrained_losses_are_shown_on_request(reference, text, tmp_path, capsys):  # noqa: F811
    """First layers and every measure, at three depths, beside the reference and a uniform guess."""
    words = ["analyze", reference, "--files", text, "--sequences", "8", "--no-controls", "--untrained"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "untrained.json").read_text())
    printed = capsys.readouterr().out
    assert list(found["losses"]) == ["first", *MEASURES]
    assert found["depths"] == [2, 3, 4]
    for name, losses in found["losses"].items():
        assert re.search(rf"{name} +│ +" + " +│ +".join(f"{loss:.3f}" for loss in losses), printed)
    assert f"{found['loss']:.3f}; a uniform guess {found['uniform']:.3f}" in printed
    assert "untrained.json" in printed
