"""The verbs that look before a run and after it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, T5Config, TrainingArguments

from inheritune_hf.cli import main
from inheritune_hf.cli.tables import human_bytes
from inheritune_hf.config import DataConfig
from inheritune_hf.data import prepare_data


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
    assert "544 parameters are not inherited and begin random." in text
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
    for word in ("rounds, if all are needed", "hours", "6,400", "memory of one process at its peak: float32", "acts"):
        assert word in text
    assert max(map(len, (line for line in text.splitlines() if "│" in line))) <= 80
    assert "looks 3 at the selection set, each at 98.3% one-sided confidence" in " ".join(text.split())
    assert "looks" not in shown(capsys, *words, "--confidence", "none").out
    early = shown(capsys, *words, "--abandon", "0.9").out
    assert "rounds, if all are needed; one that is 90% sure to miss ends early and grows" in " ".join(early.split())
    values = json.loads(shown(capsys, *words, "--json").out)
    assert [item["layers"] for item in values["rounds"]] == [3, 5, 6]
    assert values["rounds"][0]["seconds"] == pytest.approx(640)
    assert "error: batch_size must be" in shown(capsys, *words[:4], "--batch-size", "0", status=1).err


def test_plan_of_a_large_run_fits_80_columns(tmp_path, capsys, monkeypatch):
    """Each row is one line of at most 80 characters, and nothing is cut off."""
    monkeypatch.setenv("COLUMNS", "80")
    GPT2Config(n_layer=48, n_embd=1600, n_head=25, vocab_size=50257).save_pretrained(tmp_path)
    words = ["plan", str(tmp_path), "--steps-per-round", "100000", "--bf16", "--tokens-per-second", "300"]
    words += ["--keep-layers", "46"]
    lines = shown(capsys, *words).out.splitlines()
    rows = [line for line in lines if line.startswith(("│", "┃"))]
    assert "…" not in "".join(rows)
    assert sum(line.startswith("│ train ") for line in rows) == 2
    assert "│ train 48 layers │ 6.23 GB │" in "\n".join(rows)
    assert max(map(len, rows)) <= 80


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
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--optim", "adam8"])


def write_recipe(folder, reference, **changes):
    """A recipe for a machine with other hardware than this one."""
    values = {
        "reference": reference,
        "steps_per_round": 10,
        "keep_layers": 2,
        "grow_by": 3,
        "max_layers": 5,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 4,
        "block_size": 8,
        "bf16": True,
        "tf32": True,
        "optim": "adafactor",
        "activation_checkpointing": True,
        "learning_rate": 1e-3,
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
    return str(path)


def planned(capsys, *words):
    return json.loads(shown(capsys, "plan", *words, "--json").out)


@pytest.fixture
def no_hardware(monkeypatch):
    """A machine that has no half precision, and says so when training arguments are made."""
    made = TrainingArguments.__post_init__

    def refuse(self):
        if self.bf16 or self.fp16 or self.tf32:
            raise ValueError("Your setup doesn't support bf16/gpu.")
        made(self)

    monkeypatch.setattr(TrainingArguments, "__post_init__", refuse)


def test_plan_reads_a_recipe(reference, tmp_path, capsys, no_hardware):
    """A recipe's layers, batches, precision, optimizer and checkpointing are planned, whatever this machine can do."""
    recipe = write_recipe(tmp_path, reference)
    found = planned(capsys, recipe)
    assert found == planned(capsys, "--config", recipe)
    assert [(item["layers"], item["steps"], item["tokens"]) for item in found["rounds"]] == [
        (2, 10, 10 * 3 * 4 * 8),
        (5, 10, 10 * 3 * 4 * 8),
    ]
    assert found["setup"] == {
        "batch_size": 3,
        "block_size": 8,
        "accumulation": 4,
        "processes": 1,
        "dtype": "float32",
        "mixed_precision": "bf16",
        "optim": "adafactor",
        "gradient_checkpointing": True,
    }
    assert "float32, bf16, adafactor, checkpointing, full loss" in shown(capsys, "plan", recipe).out


def test_the_command_line_wins_over_a_recipe(reference, tmp_path, capsys, no_hardware):
    """What is given beside a recipe replaces what it says, under its own name or a short one, before it or after."""
    recipe = write_recipe(tmp_path, "none/such", max_steps=15)
    changes = [
        "--batch-size",
        "2",
        "--steps-per-round",
        "20",
        "--bf16",
        "false",
        "--optim",
        "sgd",
        "--dtype",
        "bfloat16",
    ]
    found = planned(capsys, recipe, "--reference", reference, *changes, "--processes", "2")
    assert [(item["layers"], item["steps"]) for item in found["rounds"]] == [(2, 15)]
    assert found["rounds"][0]["tokens"] == 15 * 2 * 4 * 8 * 2
    assert (found["setup"]["mixed_precision"], found["setup"]["optim"]) == (None, "sgd")
    assert planned(capsys, *changes, "--processes", "2", reference, "--config", recipe) == found


def test_plan_knows_when_all_logits_are_there(tmp_path, capsys, no_hardware):
    """The loss is the one that the run would compute: of a few tokens at a time, unless a setting needs all logits."""
    config = GPT2Config(vocab_size=20_000, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    config.save_pretrained(tmp_path / "large")
    for changes, losses in (
        ({}, {"chunked", "liger"}),
        ({"bf16": False}, {"linear", "chunked", "liger"}),
        ({"bf16": False, "fp16": True}, {"full"}),
        ({"loss": "full"}, {"full"}),
        ({"label_smoothing_factor": 0.1}, {"full"}),
        ({"torch_compile": True}, {"chunked", "liger"}),
    ):
        recipe = write_recipe(tmp_path, str(tmp_path / "large"), keep_layers=1, max_layers=1, **changes)
        assert planned(capsys, recipe)["loss"] in losses, changes


def test_plan_takes_the_sequences_of_prepared_data(reference, tmp_path, capsys, no_hardware):
    """Without a block size it is that of the prepared data which the recipe names, else the reference's context."""
    texts = [tmp_path / f"{count}.txt" for count in range(3)]
    for count, text in enumerate(texts):
        text.write_text("to be or not to be\n" * (100 + count))
    words = Tokenizer(WordLevel({"be": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="?")
    prepare_data(DataConfig(train_files=[*map(str, texts)]), tokenizer, tmp_path / "data", block_size=16)
    recipe = write_recipe(tmp_path, reference, block_size=None, dataset_name=str(tmp_path / "data"))
    assert planned(capsys, recipe)["setup"]["block_size"] == 16
    recipe = write_recipe(tmp_path, reference, block_size=None)
    assert planned(capsys, recipe)["setup"]["block_size"] == 32


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"steps_per_ronud": 5}, [], "no setting named 'steps_per_ronud' (did you mean 'steps_per_round'?)"),
        ({"tokens_per_second": 5}, [], "no setting named 'tokens_per_second'"),
        ({"seeds": [1], "armz": []}, [], "no setting named 'armz' (did you mean 'arms'?)"),
        ({}, ["--step_per_round", "5"], "no setting named '--step-per-round' (did you mean '--steps-per-round'?)"),
        ({}, ["--arms", "random"], "no setting named '--arms'"),
        ({"grow_by": 0}, [], "grow_by must be a whole number of 1 or more, got 0."),
        ({"reference": None}, [], "there is no reference: give it on the command line or in a file"),
        ({"steps_per_round": None}, [], "there is no steps_per_round: give it on the command line or in a file"),
        ({}, ["--config", "other.yaml"], "Give one file of settings, got"),
    ],
)
def test_plans_that_make_no_sense_are_usage_errors(changes, words, message, reference, tmp_path, capsys, no_hardware):
    """Unknown settings, in a file or on the command line, and what is missing or given twice, end with status 2."""
    recipe = write_recipe(tmp_path, **{"reference": reference, **changes})
    try:
        status = main(["plan", recipe, *words])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_plan_says_which_reference_and_file(reference, tmp_path, capsys):
    """Two references, a file that is not there, and two precisions are named."""
    for words, message in (
        ([reference, "--reference", reference], "Give one reference, got"),
        ([str(tmp_path / "none.yaml")], "There is no file"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["plan", *words])
        assert message in capsys.readouterr().err
    recipe = write_recipe(tmp_path, reference, fp16=True)
    assert "bf16 and fp16 are both set" in shown(capsys, "plan", recipe, status=1).err
    recipe = write_recipe(tmp_path, reference, optim="adam8")
    assert "error: optim must be one of" in shown(capsys, "plan", recipe, status=1).err


def test_plan_shows_a_comparison(reference, tmp_path, capsys, no_hardware):
    """Each arm has a row, the grid a total; arms that would not be run are named, and what was measured is said."""
    recipe = write_recipe(
        tmp_path,
        reference,
        arms=["random", "stacking", "half-width", "last/moved-scale", "random/kd"],
        layers=2,
        budget_steps=7,
        seeds=[1, 2],
        learning_rates=[0.5, 1.0],
        max_steps=1,
    )
    text = shown(capsys, "plan", recipe, "--tokens-per-second", "10").out
    for word in ("one cell of each arm", "half-width", "continued", "all cells", "hours", "peak memory", "adafactor"):
        assert word in text
    for word in ("last/moved-scale: the reference does not scale", "random-long: how long the reference was trained"):
        assert f"left out    {word}" in text
    values = planned(capsys, recipe, "--tokens-per-second", "10")
    arms = {arm["arm"]: arm for arm in values["arms"]}
    assert list(arms) == ["random", "stacking", "half-width", "random/kd", "continued"]
    step = 3 * 4 * 8
    assert arms["random"]["seconds"] == pytest.approx(7 * step / 10)
    assert {name: arm["tokens"] for name, arm in arms.items()} == {
        **dict.fromkeys(arms, 7 * step),
        "stacking": 6 * step,
    }
    assert arms["stacking"]["seconds"] < arms["random"]["seconds"] < arms["random/kd"]["seconds"]
    assert all(arm["cells"] == 3 for arm in arms.values())
    measured = shown(capsys, "plan", recipe, "--measure", "--batch-size", "1", "--accumulation", "1").out
    assert "measured    3 steps of one process on " in measured
    loop = write_recipe(tmp_path, reference, arms=["inheritune"], controls=False)
    assert "note        The loop is taken to need every round." in shown(capsys, "plan", loop).out


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


def test_verify_names_an_incomplete_student(reference, tmp_path, capsys):
    """A student of which only a part arrived ends with status 1 and a message, also far from its reference."""
    student = tmp_path / "student"
    shown(capsys, "inherit", reference, "--keep-layers", "2", "--output", str(student))
    config = json.loads((student / "config.json").read_text())
    config["inheritune"]["reference"] = "./gone"
    (student / "config.json").write_text(json.dumps(config))
    file = student / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    error = shown(capsys, "verify", str(student), status=1).err
    assert "inheritune verify: error:" in error
    assert "model.safetensors is not a complete safetensors file" in error


def test_inherit_shows_its_plan_first(reference, tmp_path, capsys):
    """The table comes before anything is read: also if weights turn out to be missing."""
    GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=64, n_positions=32).save_pretrained(tmp_path / "bare")
    words = ["inherit", str(tmp_path / "bare"), "--keep-layers", "params:20K", "--output", str(tmp_path / "student")]
    found = shown(capsys, *words, status=1)
    assert "kept        0:4 (4 of 4 layers)" in found.out
    assert "note        No files of weights were found." in found.out
    assert "There are no weights at" in found.err


def test_inherit_refuses_unknown_tensors_if_told_to(reference, tmp_path, capsys):
    """With `--strict` tensors of kept layers that the architecture does not know are an error, and nothing is left."""
    folder = shutil.copytree(reference, tmp_path / "reference")
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.attn.sinks"] = torch.ones(2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    words = ["inherit", str(folder), "--keep-layers", "2", "--output", str(tmp_path / "student")]
    found = shown(capsys, *words, "--strict", status=1)
    assert "has nothing of them: transformer.h.*.attn.sinks. Give a reference" in found.err
    assert not (tmp_path / "student").exists()
    assert "transformer.h.*.attn.sinks" in shown(capsys, *words).out


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (6_431_829_968, "6.43 GB"), (2e13, "20 TB")]
)
def test_bytes_are_readable(count, text):
    """Bytes are shown in powers of a thousand."""
    assert human_bytes(count) == text
