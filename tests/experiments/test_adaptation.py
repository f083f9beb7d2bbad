"""A reference that is trained further: the checkpoint, its record, and what can be done with it."""

import json
import os
import signal

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_comparison import write_material
from transformers import AutoModelForCausalLM, AutoTokenizer

from inheritune_hf.cli import main
from inheritune_hf.cli.settings import parse_settings
from inheritune_hf.experiments import run_recipe
from inheritune_hf.publishing import hub as publishing
from inheritune_hf.publishing.bundle import read_record
from inheritune_hf.reporting import write_report
from inheritune_hf.training import InherituneTrainer


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A reference, its text, and the settings of a run."""
    folder = tmp_path_factory.mktemp("material")
    write_material(folder)
    values = {
        "reference": str(folder / "reference"),
        "train_files": [str(folder / "*.txt")],
        "selection_fraction": 0.3,
        "test_fraction": 0.3,
        "near_duplicates": "ignore",
        "block_size": 8,
        "keep_layers": 1,
        "max_layers": 2,
        "grow_by": 1,
        "steps_per_round": 3,
        "target": 0.01,
        "data_order": "continue",
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 100,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (folder / "recipe.json").write_text(json.dumps(values))
    return folder


def adapt(material, output_dir, *words):
    return main(["adapt", "--config", str(material / "recipe.json"), "--output_dir", str(output_dir), *words])


@pytest.fixture(scope="module")
def adapted(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted") / "adapted"
    assert adapt(material, folder, "--steps_per_round", "6") == 0
    return folder


def test_an_adapted_reference_is_a_plain_checkpoint(material, adapted):
    """Whole depth, its tokenizer, and a record of what it was made from, on which data and for how long."""
    model, info = AutoModelForCausalLM.from_pretrained(adapted, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before = AutoModelForCausalLM.from_pretrained(material / "reference")
    assert model.config.n_layer == before.config.n_layer
    assert not torch.equal(model.transformer.h[0].mlp.c_fc.weight, before.transformer.h[0].mlp.c_fc.weight)
    assert (
        AutoTokenizer.from_pretrained(adapted).get_vocab()
        == AutoTokenizer.from_pretrained(material / "reference").get_vocab()
    )
    record = read_record(adapted)
    assert record.outcome == "adapted"
    assert record.lineage.reference == str(material / "reference")
    assert record.lineage.kept_layers == tuple(range(before.config.n_layer))
    assert set(record.lineage.data) == {"train", "selection"}
    (only,) = record.rounds
    assert (only.end_step, only.tokens, only.match.matched) == (6, 6 * 2 * 8, False)
    assert only.loss < only.target
    card = (adapted / "README.md").read_text()
    assert f"was {only.target:.4f} nats per token before and is {only.loss:.4f} after 6 optimizer steps" in card
    assert "inheritune adapt --config recipe.yaml" in card
    assert "data_seed" not in card
    assert "matched" not in card
    assert "missed" not in card


def test_losses_and_the_next_command_are_printed(material, adapted, capsys):
    """Given again, the command trains nothing, and says the losses on both sets and how the result is used."""
    assert adapt(material, adapted, "--steps_per_round", "6") == 0
    shown = capsys.readouterr().out
    record = json.loads((adapted / "rounds.json").read_text())
    (only,), (before, after) = record["rounds"], record["results"]
    assert f"selection   {only['target']:.4f} before, {only['loss']:.4f} after (nats per token)" in shown
    assert f"test        {before['loss']:.4f} before, {after['loss']:.4f} after (nats per token)" in shown
    assert f"difference {after['match']['difference']:+.4f} ({after['match']['lower']:+.4f} to" in shown
    line = next(line for line in shown.splitlines() if line.startswith("next"))
    command = f"inheritune train --config {adapted}/settings.json --reference {adapted} --output-dir student"
    assert line.split(maxsplit=1)[1] == command
    report, _ = write_report(adapted)
    assert report.outcome == "trained further"
    assert "The reference was trained further for 6 steps" in report.verdict


def test_a_run_takes_it_for_its_reference(material, adapted, tmp_path, monkeypatch, capsys):
    """The settings beside it are those of the student's run; it can be cut, inspected, verified and published."""
    words = ["--config", str(adapted / "settings.json"), "--reference", str(adapted), "--output_dir", str(tmp_path)]
    settings = parse_settings([*words, "--use_cpu", "--disable_tqdm", "true"])
    assert (settings.recipe.keep_layers, settings.args.data_seed) == (1, None)
    result = run_recipe(*settings, console=Console(quiet=True))
    assert result.rows[0].loss == json.loads((adapted / "rounds.json").read_text())["results"][1]["loss"]
    assert main(["verify", str(adapted)]) == 0
    assert main(["doctor", str(adapted), "--keep-layers", "2"]) == 0
    assert main(["inherit", str(adapted), "--keep-layers", "2", "--output", str(tmp_path / "cut")]) == 0
    assert main(["verify", str(tmp_path / "cut")]) == 0
    monkeypatch.setattr(publishing, "try_out", lambda _: None)  # which other tests are about
    assert main(["publish", str(adapted), "--repo-id", "me/adapted"]) == 0
    assert "repository  me/adapted" in capsys.readouterr().out


def test_an_interrupted_adaptation_is_resumed_to_the_same_bits(material, adapted, tmp_path, monkeypatch):
    """A signal ends it with 75; the same command resumes it."""
    step = InherituneTrainer.training_step

    def stopped(trainer, *batch):
        if trainer.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(InherituneTrainer, "training_step", stopped)
        assert adapt(material, tmp_path / "out", "--steps_per_round", "6") == 75
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert adapt(material, tmp_path / "out", "--steps_per_round", "6") == 0
    found, whole = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", adapted))
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def test_no_batch_is_seen_twice(material, tmp_path, monkeypatch):
    """Neither the rounds of a run nor the reference that was trained further for it repeat a batch of another."""
    seen, step = {}, InherituneTrainer.training_step

    def heard(trainer, model, inputs, *rest):
        seen.setdefault(trainer.output_dir.name, []).append(inputs["input_ids"].tolist())
        return step(trainer, model, inputs, *rest)

    monkeypatch.setattr(InherituneTrainer, "training_step", heard)
    assert adapt(material, tmp_path / "adapted", "--steps_per_round", "6") == 0
    words = ["--config", str(material / "recipe.json"), "--output_dir", str(tmp_path / "run")]
    run_recipe(*parse_settings(words), console=Console(quiet=True))
    rows = {name: [str(row) for row in batches] for name, batches in seen.items()}
    assert len({*rows["adapted"], *rows["run"]}) == len(rows["adapted"]) + len(rows["run"]) == 12


def test_an_adapted_reference_can_be_pushed_at_once(hub, on_hub, material, tmp_path):
    """`push_to_hub` puts it on the Hub when it is saved."""
    words = ["--push_to_hub", "--hub_model_id", "me/adapted", "--hub_strategy", "end", "--hub_token", "hf_writer"]
    assert on_hub(adapt, material, tmp_path / "out", *words) == 0
    assert b"trained further" in hub.files("me/adapted")["README.md"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--keep_layers", "2"], 2, "--keep-layers is about a student, and the whole reference is trained here"),
        (["--reference="], 1, "There is no model at ''"),
        (["--num_train_epochs", "2"], 1, "num_train_epochs"),
        (["--max_steps", "0"], 1, "max_steps must be above 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(material, tmp_path, capsys, words, status, message):
    """Before anything is read or trained, in one line."""
    try:
        ended = adapt(material, tmp_path / "out", *words)
    except SystemExit as end:
        ended = end.code
    assert ended == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_reference_is_never_overwritten(material, capsys):
    """Its own folder is no place for the result."""
    assert adapt(material, material / "reference") == 1
    assert "output_dir is the reference's own folder" in capsys.readouterr().err


def test_there_must_be_a_reference(tmp_path, capsys):
    """The embedded default has no reference to train further before it is made."""
    with pytest.raises(SystemExit, match="2"):
        main(["adapt", "--output_dir", str(tmp_path)])
    assert "there is no reference: give its Hub id or path" in capsys.readouterr().err
