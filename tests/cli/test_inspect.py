"""The verbs that look before a run and after it."""

import json
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, T5Config

from inheritune_hf.cli import main
from inheritune_hf.cli.tables import human_bytes


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "tiny"
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=6, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def shown(capsys, *words, status=0):
    assert main(list(words)) == status
    return capsys.readouterr()


def test_doctor_says_how_a_model_is_cut(reference, capsys):
    """Kept and dropped layers, parameters, bytes, files and changed fields are shown; nothing is written."""
    text = shown(capsys, "doctor", reference, "--keep-layers", "0:2,5", "--inherit", "paper").out
    for word in ("can be cut", "kept        0:2,5 (3 of 6 layers)", "dropped     2:5", "n_layer: 6 -> 3"):
        assert word in text
    size = human_bytes(Path(reference, "model.safetensors").stat().st_size)
    assert f"to read     43.5 kB of the {size} of model.safetensors" in text
    assert "544 parameters do not come along and begin random." in text
    assert "blocks      transformer.h; the head shares the token embedding's weights" in text
    values = json.loads(shown(capsys, "doctor", reference, "--json").out)
    assert values["kept_layers"] == [0, 1, 2]
    assert values["bytes_to_read"] == 4 * values["parameters_after"]


def test_doctor_says_why_a_model_cannot_be_cut(tmp_path, capsys):
    """What cannot be cut ends with status 1 and the reason."""
    T5Config().save_pretrained(tmp_path)
    error = shown(capsys, "doctor", str(tmp_path), status=1).err
    assert "inheritune doctor: error:" in error
    assert "is not a causal language model: its config has model_type 't5' and is_encoder_decoder=True" in error


def test_plan_shows_rounds_and_memory(reference, capsys):
    """Rounds with tokens, operations and hours, and the memory of each phase."""
    words = ["plan", reference, "--steps-per-round", "100", "--batch-size", "2", "--tokens-per-second", "10"]
    text = shown(capsys, *words).out
    for word in ("rounds, if all are needed", "hours", "6,400", "memory of one process at its peak: float32", "activ"):
        assert word in text
    values = json.loads(shown(capsys, *words, "--json").out)
    assert [item["layers"] for item in values["rounds"]] == [3, 5, 6]
    assert values["rounds"][0]["seconds"] == pytest.approx(640)
    assert "error: batch_size must be" in shown(capsys, *words[:4], "--batch-size", "0", status=1).err


def test_plan_measures_the_hours(reference, capsys):
    """With `--measure` a few steps are trained, and the table says where, at which depths, and what is extrapolated."""
    words = ["plan", reference, "--steps-per-round", "100", "--batch-size", "2", "--measure", "--max-layers", "3"]
    text = shown(capsys, *words).out
    assert "measured    3 steps of one process on " in text
    assert "at a depth of 1 and 3: " in text
    assert " tokens per second with 3 layers (at that depth)" in text
    assert "(extrapolated in depth)" in shown(capsys, *words[:-1], "5").out


def test_plan_takes_how_students_are_trained(reference, capsys):
    """Type, mixed precision, optimizer and checkpointing are taken, and a memory that is not known is said."""
    words = ["plan", reference, "--steps-per-round", "100", "--dtype", "bfloat16", "--bf16", "--gradient-checkpointing"]
    assert "at its peak: bfloat16, bf16, adafactor, checkpointing" in shown(capsys, *words, "--optim", "adafactor").out
    text = shown(capsys, *words, "--optim", "adamw_8bit").out
    assert "unknown" in text
    assert "note        adamw_8bit's states are not known here and left out; known: adamw_torch, " in text
    assert "error: optim must be one of" in shown(capsys, *words, "--optim", "adam8", status=1).err


def test_verify_checks_what_inherit_saved(reference, tmp_path, capsys):
    """A fresh student passes; one that is not the reference's fails with status 1."""
    student = str(tmp_path / "student")
    shown(capsys, "inherit", reference, "--keep-layers", "last:2", "--output", student)
    text = shown(capsys, "verify", student).out
    for word in ("lineage", "layers 4:6 of 6", "bit for bit", "with and without cache", "untrained student, ok"):
        assert word in text
    GPT2LMHeadModel(GPT2Config(**json.loads((tmp_path / "student" / "config.json").read_text()))).save_pretrained(
        tmp_path / "student"
    )
    text = shown(capsys, "verify", student, status=1).out
    assert "identity   FAILED" in text
    assert json.loads(shown(capsys, "verify", student, "--json", status=1).out)["passed"] is False
    assert "There is no student at" in shown(capsys, "verify", str(tmp_path / "none"), status=1).err


def test_inherit_shows_its_plan_first(reference, tmp_path, capsys):
    """The table comes before anything is read: also if weights turn out to be missing."""
    GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=64, n_positions=32).save_pretrained(tmp_path / "bare")
    words = ["inherit", str(tmp_path / "bare"), "--keep-layers", "params:20K", "--output", str(tmp_path / "student")]
    found = shown(capsys, *words, status=1)
    assert "kept        0:4 (4 of 4 layers)" in found.out
    assert "note        No files of weights were found." in found.out
    assert "There are no weights at" in found.err


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (6_431_829_968, "6.43 GB"), (2e13, "20 TB")]
)
def test_bytes_are_readable(count, text):
    """Bytes are shown in powers of a thousand."""
    assert human_bytes(count) == text
