"""The embedded default: what is shipped, and the whole path on a tiny reference in its place."""

import dataclasses
import io
import json
import lzma
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from rich.console import Console
from tiny_reference import save_reference
from transformers import AutoTokenizer

from inheritune_hf import DataConfig
from inheritune_hf.cli.settings import parse_settings
from inheritune_hf.config import EMBEDDED_DEFAULTS
from inheritune_hf.data import embedded as shipped
from inheritune_hf.evaluation import read_corpus, validate
from inheritune_hf.experiments import run_embedded
from inheritune_hf.experiments.embedded import RANDOM, RANDOM_TWICE, with_embedded
from inheritune_hf.experiments.results import TRAINED_FURTHER
from inheritune_hf.records import RunState
from inheritune_hf.run_folder import write_state
from inheritune_hf.students import open_reference
from inheritune_hf.training import InherituneTrainer
from inheritune_hf.training.identity import run_identity

PARTS = ("train", "selection", "test")


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path_factory):
    """A reference of three layers, and a few hundred characters of every set, where the package has its own."""
    folder = tmp_path_factory.getbasetemp() / "embedded"
    if not folder.is_dir():
        texts = {part: [text[:300] for text in passages(part)] for part in PARTS}
        save_reference(folder / "reference", width=16, layers=3)
        for part, found in texts.items():
            with lzma.open(folder / f"{part}.jsonl.xz", "wt", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": text}) + "\n" for text in found)
    monkeypatch.setattr(shipped, "EMBEDDED", folder)


def passages(part):
    with lzma.open(shipped.embedded_file(part), "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def toy_settings(tmp_path, *words):
    small = ["--steps_per_round", "4", "--eval_steps", "2", "--save_steps", "2", "--per_device_train_batch_size", "2"]
    words = [*small, "--keep_layers", "1", "--max_layers", "2", "--grow_by", "1", "--use_cpu", *words]
    return parse_settings(["--output_dir", str(tmp_path / "demo"), *words], EMBEDDED_DEFAULTS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function that makes a run from its text to its table once: its folder, result, screen and batches."""
    made = {}

    def run():
        if not made:
            folder, screen = tmp_path_factory.mktemp("whole"), io.StringIO()
            batches, step = {}, InherituneTrainer.training_step

            def heard(trainer, model, inputs, *rest):
                batches.setdefault(trainer.output_dir.name, []).append(str(inputs["input_ids"].tolist()))
                return step(trainer, model, inputs, *rest)

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(InherituneTrainer, "training_step", heard)
                result = run_embedded(*toy_settings(folder, "--target", "0.1"), Console(file=screen, width=80))
            made["run"] = SimpleNamespace(folder=folder, result=result, shown=screen.getvalue(), batches=batches)
        return made["run"]

    return run


def test_what_is_shipped_belongs_together(monkeypatch):
    """The reference knows its tokenizer's entries, reads the passages far better than a guess, and no sets overlap."""
    monkeypatch.setattr(shipped, "EMBEDDED", Path(shipped.__file__).parents[1] / "embedded")
    reference = open_reference(shipped.embedded_reference())
    tokenizer = AutoTokenizer.from_pretrained(shipped.embedded_reference())
    assert (reference.depth, len(tokenizer)) == (12, reference.config.vocab_size)
    sets = {part: passages(part) for part in PARTS}
    assert [len(sets[part]) for part in ("selection", "test")] == [48, 48]
    assert len({text for found in sets.values() for text in found}) == sum(map(len, sets.values()))
    corpus = read_corpus([], tokenizer, len(tokenizer), 256, max_sequences_per_document=1)
    assert validate(reference.load(), corpus, batch_size=16).loss < math.log(len(tokenizer)) / 2
    assert ModelCard.load(shipped.EMBEDDED / "reference" / "README.md").data.license == "apache-2.0"
    page = (shipped.EMBEDDED / "README.md").read_text(encoding="utf-8")
    assert all(word in page for word in ("public domain", "train_reference.py", "ELTeC", "Apache-2.0"))


def test_embedded_default_goes_from_text_to_table(whole):
    """The loop, controls, table, picture, records, samples, a paragraph."""
    run = whole()
    result, demo = run.result, run.folder / "demo"
    names = ["reference", "student", RANDOM, RANDOM_TWICE, TRAINED_FURTHER]
    assert result.outcome == "no_more_layers"
    assert [row.model for row in result.rows] == names
    assert [row.steps for row in result.rows] == [0, 8, 8, 16, 8]
    assert result.rows[1].tokens == 8 * 2 * 32
    assert [row.layers for row in result.rows] == [3, 2, 2, 2, 3]
    assert len({row.parameters for row in result.rows[1:4]}) == 1
    assert "What this shows: No student matched" in run.shown
    assert "Sample, student:" in run.shown
    files = {item.name for item in demo.iterdir()}
    assert {"losses.png", "rounds.json", "results.md", "model.safetensors", "tokenizer.json"} <= files
    assert {item.name for item in (demo / "controls").iterdir()} == {"1-8-steps", "2-16-steps", "3-8-steps"}
    records = json.loads((demo / "rounds.json").read_text())
    assert set(records["curves"]) == {"student", *names[2:]}
    assert min(len(records["curves"][name]) for name in names[2:]) >= 8


def test_runs_are_collected_in_a_page(whole, tmp_path):
    """The script of docs/results makes the page and the picture from the records of a run."""
    collect = Path(__file__).parents[2] / "docs" / "results" / "collect.py"
    shutil.copy(collect, tmp_path)
    run = whole()
    subprocess.run([sys.executable, tmp_path / collect.name, run.folder / "demo"], check=True)
    page, student = (tmp_path / "embedded.md").read_text(), run.result.rows[1]
    assert f"| student | 2 | {student.parameters:,} | 8 | 512 | {student.loss:.4f} |" in page
    assert (tmp_path / "losses.png").stat().st_size > 10_000


def test_controls_see_the_students_batches(whole):
    """Each control begins with the student's batches, in its order; more steps continue in the data."""
    batches = whole().batches
    assert set(batches) == {"demo", "1-8-steps", "2-16-steps", "3-8-steps"}
    assert len(set(batches["demo"])) == 8
    assert batches["demo"] == batches["1-8-steps"] == batches["2-16-steps"][:8] == batches["3-8-steps"]


def test_data_settings_are_refused(tmp_path):
    """The embedded default brings its own text and its own way to cut it."""
    settings = toy_settings(tmp_path)
    for data in ({"dataset_name": "x"}, {"block_size": 64}, {"streaming": True, "dataset_name": "x"}):
        with pytest.raises(ValueError, match=f"{' and '.join(sorted(data))} came without a reference"):
            run_embedded(settings.run, settings.recipe, DataConfig(**data), settings.args, Console())
    found, _ = with_embedded(dataclasses.replace(settings.run, attn_implementation="eager"), DataConfig())
    assert found.where == {"attn_implementation": "eager"}  # which says nothing of where a reference is


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep_layers", "13"], "keep_layers must be between 1 and 3"),
        (["--num_train_epochs", "2"], "num_train_epochs"),
        (["--max_layers", "9"], "max_layers must be between"),
    ],
)
def test_settings_are_refused_before_anything_is_trained(tmp_path, words, message):
    """What the loop would refuse leaves no run behind."""
    settings = toy_settings(tmp_path, *words)
    with pytest.raises(ValueError, match=message):
        run_embedded(*settings, Console(quiet=True))
    assert not (tmp_path / "demo" / "rounds.json").exists()


def test_another_runs_folder_is_refused(tmp_path):
    """A folder with a run of another seed or recipe is named, with what differs, before anything is trained."""
    first = toy_settings(tmp_path)
    identity = run_identity(first.args, first.recipe, {"train_dataset": "a"})
    write_state(Path(first.args.output_dir), RunState(identity=identity, layers=(0,)))
    with pytest.raises(ValueError, match=r"args\.seed: 42 there, 2 now"):
        run_embedded(*toy_settings(tmp_path, "--seed", "2"), Console(quiet=True))


def test_an_interrupted_control_is_resumed(whole, tmp_path, monkeypatch):
    """A signal while a control is trained saves it; the same call resumes it, with the same result."""
    settings = toy_settings(tmp_path, "--target", "0.1", "--save_steps", "100")
    steps, train = [], InherituneTrainer.training_step

    def interrupted(trainer, *words, **named):
        if trainer.baseline.description == RANDOM:
            steps.append(trainer.state.global_step)
            if len(steps) == 3:
                signal.raise_signal(signal.SIGTERM)
        return train(trainer, *words, **named)

    monkeypatch.setattr(InherituneTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match=f"{RANDOM} was interrupted"):
        run_embedded(*settings, Console(quiet=True))
    again = run_embedded(*settings, Console(quiet=True))
    assert steps == list(range(len(steps)))
    assert [row.loss for row in again.rows] == [row.loss for row in whole().result.rows]
