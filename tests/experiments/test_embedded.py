"""The embedded default at a toy size: the whole path, twice."""

import io
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock
from rich.console import Console

from inheritune_hf import DataConfig
from inheritune_hf.cli.settings import parse_settings
from inheritune_hf.config import EMBEDDED_DEFAULTS
from inheritune_hf.experiments import EmbeddedShape, embedded, run_embedded
from inheritune_hf.records import RunState
from inheritune_hf.run_folder import write_state
from inheritune_hf.training import InherituneTrainer
from inheritune_hf.training.identity import run_identity

TOY = EmbeddedShape(vocabulary=512, width=16, heads=2, layers=3, block_size=32, steps=6, sequences_per_document=1)


@pytest.fixture(scope="module", autouse=True)
def short_documents():
    """The short files of the standard library: a tenth of its text, and enough for all three sets."""
    documents = [item for item in embedded.standard_library_documents() if len(item.text) < 10_000]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embedded, "standard_library_documents", lambda: documents)
        yield


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def toy_settings(tmp_path, *words):
    small = ["--steps_per_round", "4", "--eval_steps", "2", "--save_steps", "2", "--per_device_train_batch_size", "2"]
    words = [*small, "--keep_layers", "1", "--max_layers", "2", "--grow_by", "1", "--use_cpu", *words]
    return parse_settings(["--output_dir", str(tmp_path / "demo"), *words], EMBEDDED_DEFAULTS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from its text to its table: its folder, result and screen, and the batches of each training in it."""
    folder, screen = tmp_path_factory.mktemp("whole"), io.StringIO()
    batches, step = {}, InherituneTrainer.training_step

    def heard(trainer, model, inputs, *rest):
        batches.setdefault(trainer.output_dir.name, []).append(str(inputs["input_ids"].tolist()))
        return step(trainer, model, inputs, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(constants, "HF_HOME", str(folder / "home"))
        patched.setattr(InherituneTrainer, "training_step", heard)
        result = run_embedded(*toy_settings(folder, "--target", "0.1"), Console(file=screen, width=80), TOY)
    return SimpleNamespace(folder=folder, result=result, shown=screen.getvalue(), batches=batches)


def test_embedded_default_goes_from_text_to_table(whole):
    """Tokenizer, reference, loop, controls, table, picture, records, a sample, a paragraph."""
    result, demo = whole.result, whole.folder / "demo"
    assert result.outcome == "no_more_layers"
    assert [row.model for row in result.rows] == [
        "reference",
        "student",
        "random weights",
        "reference, trained further",
    ]
    assert [row.steps for row in result.rows] == [6, 8, 8, 8]
    assert result.rows[1].tokens == 8 * 2 * 32
    assert [row.layers for row in result.rows] == [3, 2, 2, 3]
    assert result.rows[1].parameters == result.rows[2].parameters
    assert "What this shows: No student matched" in whole.shown
    assert "Sample, student:" in whole.shown
    files = {item.name for item in demo.iterdir()}
    assert {"losses.png", "rounds.json", "results.md", "model.safetensors", "tokenizer.json"} <= files
    assert {item.name for item in (demo / "controls").iterdir()} == {"1-8-steps", "2-8-steps"}
    records = json.loads((demo / "rounds.json").read_text())
    assert set(records["curves"]) == {"student", "random weights", "reference, trained further"}
    assert len(list(whole.folder.glob("home/inheritune_hf/embedded-*/reference/model.safetensors"))) == 1


def test_a_second_run_finds_the_reference(whole, tmp_path, monkeypatch):
    """A run in another folder uses the reference that the first one made, and ends with the same losses."""
    monkeypatch.setattr(constants, "HF_HOME", str(whole.folder / "home"))
    screen = io.StringIO()
    second = run_embedded(*toy_settings(tmp_path, "--target", "0.1"), Console(file=screen, width=80), TOY)
    assert "found in" in screen.getvalue()
    assert [row.loss for row in second.rows] == [row.loss for row in whole.result.rows]


def test_runs_are_collected_in_a_page(whole, tmp_path):
    """The script of docs/results makes the page and the picture from the records of a run."""
    collect = Path(__file__).parents[2] / "docs" / "results" / "collect.py"
    shutil.copy(collect, tmp_path)
    subprocess.run([sys.executable, tmp_path / collect.name, whole.folder / "demo"], check=True)
    page, student = (tmp_path / "embedded.md").read_text(), whole.result.rows[1]
    assert f"| student | 2 | {student.parameters:,} | 8 | 512 | {student.loss:.4f} |" in page
    assert (tmp_path / "losses.png").stat().st_size > 10_000


def test_runs_that_make_one_reference_take_turns(home, tmp_path):
    """A second run of the same sizes, seed and settings waits until the first has made the reference."""
    settings = toy_settings(tmp_path)
    folder = embedded.embedded_folder(TOY, settings.args, embedded.standard_library_documents())
    folder.mkdir(parents=True)
    held, made = threading.Event(), threading.Event()

    class Screen(io.StringIO):
        def write(self, text):
            if "this one waits for it" in text:
                assert not (folder / "tokenizer").exists()
                made.set()
            return super().write(text)

    def first():
        with WeakFileLock(folder / ".lock"):
            held.set()
            made.wait()

    other = threading.Thread(target=first, daemon=True)
    other.start()
    held.wait()
    console = Console(file=Screen(), width=80)
    ready = embedded.prepare_embedded(settings.recipe, settings.data, settings.args, console, TOY)
    assert made.is_set()
    assert Path(ready.reference.name, "model.safetensors").is_file()
    other.join()


def test_the_reference_sees_another_order_than_students_and_controls(whole):
    """No batch of the reference's training comes again; rounds and controls see as many distinct ones."""
    batches = whole.batches
    assert set(batches) == {"work", "demo", "1-8-steps", "2-8-steps"}
    assert set(batches["work"]).isdisjoint(batches["demo"])
    assert len(set(batches["demo"])) == 8
    assert batches["demo"] == batches["1-8-steps"] == batches["2-8-steps"]


@pytest.mark.parametrize(
    "data",
    [
        {"dataset_name": "x"},
        {"block_size": 64},
        {"streaming": True, "dataset_name": "x"},
    ],
)
def test_data_settings_are_refused(tmp_path, data):
    """The embedded default brings its own text and its own way to cut it."""
    settings = toy_settings(tmp_path)
    with pytest.raises(ValueError, match=f"{next(iter(data))} .*came without a reference|{next(iter(data))} came"):
        run_embedded(settings.run, settings.recipe, DataConfig(**data), settings.args, Console(), TOY)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep_layers", "13"], "keep_layers must be between 1 and 3"),
        (["--num_train_epochs", "2"], "num_train_epochs"),
        (["--max_layers", "9"], "max_layers must be between"),
    ],
)
def test_settings_are_refused_before_the_reference_is_trained(home, tmp_path, words, message):
    """What the loop would refuse costs no training."""
    settings = toy_settings(tmp_path, *words)
    with pytest.raises(ValueError, match=message):
        run_embedded(*settings, Console(quiet=True), TOY)
    assert not home.exists()


def test_another_runs_folder_is_refused_before_the_reference_is_trained(home, tmp_path):
    """A folder with a run of another seed or recipe is named, with what differs, before anything is trained."""
    first = toy_settings(tmp_path)
    identity = run_identity(first.args, first.recipe, {"train_dataset": "a"})
    write_state(Path(first.args.output_dir), RunState(identity=identity, layers=(0,)))
    other = toy_settings(tmp_path, "--seed", "2")
    with pytest.raises(ValueError, match=r"args\.seed: 42 there, 2 now"):
        run_embedded(*other, Console(quiet=True), TOY)
    assert not home.exists()


@pytest.mark.parametrize("phase", ["reference", pytest.param("random weights", marks=pytest.mark.slow)])
def test_an_interrupted_phase_goes_on(home, whole, tmp_path, monkeypatch, phase):
    """A signal while the reference or a control is trained saves it; the same call goes on to the same end."""
    settings = toy_settings(tmp_path, "--target", "0.1", "--save_steps", "100")
    steps, train = [], InherituneTrainer.training_step

    def interrupted(trainer, *words, **named):
        if trainer.baseline.description == phase:
            steps.append(trainer.state.global_step)
            if len(steps) == 3:
                signal.raise_signal(signal.SIGTERM)
        return train(trainer, *words, **named)

    monkeypatch.setattr(InherituneTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match=f"{phase} was interrupted"):
        run_embedded(*settings, Console(quiet=True), TOY)
    again = run_embedded(*settings, Console(quiet=True), TOY)
    assert steps == list(range(len(steps)))
    assert [row.loss for row in again.rows] == [row.loss for row in whole.result.rows]
