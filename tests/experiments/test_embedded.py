"""The embedded default at a toy size: the whole path, twice."""

import io
import json

import pytest
from rich.console import Console

from inheritune_hf import DataConfig
from inheritune_hf.cli.settings import parse_settings
from inheritune_hf.experiments import EMBEDDED_DEFAULTS, EmbeddedShape, embedded, run_embedded

TOY = EmbeddedShape(vocabulary=512, width=16, heads=2, layers=3, block_size=32, steps=6, sequences_per_document=1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def toy_settings(tmp_path, *words):
    small = ["--steps_per_round", "4", "--eval_steps", "2", "--save_steps", "2", "--per_device_train_batch_size", "2"]
    words = [*small, "--keep_layers", "1", "--max_layers", "2", "--grow_by", "1", "--use_cpu", *words]
    return parse_settings(["--output_dir", str(tmp_path / "demo"), *words], EMBEDDED_DEFAULTS)


def test_embedded_default_goes_from_text_to_table(home, tmp_path):
    """Tokenizer, reference, loop, controls, table, picture, records, a sample, a paragraph; and it is found again."""
    settings = toy_settings(tmp_path, "--target", "0.1")
    screen = io.StringIO()
    console = Console(file=screen, width=80)
    result = run_embedded(settings.recipe, settings.data, settings.args, console, TOY)
    assert result.outcome == "no_more_layers"
    assert [row.model for row in result.rows] == ["reference", "student", "random weights", "reference, trained on"]
    assert [row.steps for row in result.rows] == [6, 8, 8, 8]
    assert result.rows[1].tokens == 8 * 2 * 32
    assert [row.layers for row in result.rows] == [3, 2, 2, 3]
    assert result.rows[1].parameters == result.rows[2].parameters
    shown = screen.getvalue()
    assert "What this shows: No student matched" in shown
    assert "Sample, student:" in shown
    files = {item.name for item in (tmp_path / "demo").iterdir()}
    assert {"losses.png", "rounds.json", "results.md", "model.safetensors", "tokenizer.json"} <= files
    assert "_controls" not in files
    records = json.loads((tmp_path / "demo" / "rounds.json").read_text())
    assert set(records["curves"]) == {"student", "random weights", "reference, trained on"}
    assert len(list(home.glob("inheritune_hf/embedded-*/reference/model.safetensors"))) == 1

    again = toy_settings(tmp_path, "--target", "0.1", "--output_dir", str(tmp_path / "again"))
    screen.truncate(0)
    second = run_embedded(again.recipe, again.data, again.args, console, TOY)
    assert "found in" in screen.getvalue()
    assert [row.loss for row in second.rows] == [row.loss for row in result.rows]


def test_data_settings_are_refused(tmp_path):
    """The embedded default brings its own text."""
    settings = toy_settings(tmp_path)
    with pytest.raises(ValueError, match="dataset_name came without a reference"):
        run_embedded(settings.recipe, DataConfig(dataset_name="x"), settings.args, Console(), TOY)
