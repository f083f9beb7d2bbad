"""The script that makes the embedded reference: two stages, one command, the same weights after an interruption."""

from __future__ import annotations

import importlib
import json
import shutil
import sys

import pytest
from documentation import ROOT
from transformers import GPT2LMHeadModel

SMALL = "--layers 2 --width 16 --heads 2 --vocab_size 300 --block_size 32 --batch_size 2"
STEPS = "--steps 4 --warmup_steps 1 --decay_steps 2 --further_steps 3"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A function that runs the script on 60 small books, and returns its folder."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    script = importlib.import_module("train_reference")
    text = "\n\n".join(f"{number} words of a book " * 20 for number in range(20))
    rows = "".join(json.dumps({"id": f"book{number}", "text": f"{number} {text}"}) + "\n" for number in range(60))
    (tmp_path / "books.jsonl").write_text(rows, encoding="utf-8")

    def run(name, *more):
        words = f"train_reference.py {SMALL} {STEPS}".split()
        paths = ("--books", tmp_path / "books.jsonl", "--output_dir", tmp_path / name)
        monkeypatch.setattr(sys, "argv", [*words, *map(str, paths), *more])
        script.main()
        return tmp_path / name

    yield run
    sys.modules.pop("train_reference")


def test_an_interrupted_stage_is_resumed(trained, tmp_path):
    """With the first stage alone on disk the same command ends with the same weights."""
    whole = trained("whole")
    for part in ("first", "tokenizer"):
        shutil.copytree(whole / part, tmp_path / "resumed" / part)
    resumed = trained("resumed")
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, resumed)]
    assert weights[0] == weights[1]
    logs = [json.loads((whole / stage / "log.json").read_text()) for stage in ("first", "further")]
    assert [log[-1]["step"] for log in logs] == [4, 3]
    assert json.loads((whole / "before-decay" / "trainer_state.json").read_text())["global_step"] == 2
    assert {path.name for path in whole.glob("*.jsonl.xz")} == {"train.jsonl.xz", "selection.jsonl.xz", "test.jsonl.xz"}
    before = [(whole / name / "model.safetensors").read_bytes() for name in ("before-decay", "first/checkpoint-4")]
    assert len({*before, weights[0]}) == 3


def test_attention_and_tokenizer_are_as_asked_for(trained, capsys):
    """Attention may be left unscaled, and the tokenizer be one that there is."""
    with pytest.raises(SystemExit):
        trained("none", "--tokenizer", "gpt3")
    assert "--tokenizer is a folder of a tokenizer, got 'gpt3'" in capsys.readouterr().err
    first = trained("first", "--further_steps", "1")
    other = trained("other", "--further_steps", "1", "--unscaled", "--tokenizer", str(first / "tokenizer"))
    assert not (other / "tokenizer").exists()
    scaled = [GPT2LMHeadModel.from_pretrained(folder / "model").config for folder in (first, other)]
    assert [config.scale_attn_by_inverse_layer_idx for config in scaled] == [True, False]
