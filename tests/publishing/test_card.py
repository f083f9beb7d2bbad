"""The card: records in, text out."""

import pytest
from huggingface_hub import ModelCard

from inheritune_hf.publishing import render_card
from inheritune_hf.records import Lineage, Match, Round, RunRecord

LINEAGE = Lineage("gpt2-medium", "abc", 24, tuple(range(14)), {"torch": "2.13"})
ROUNDS = (
    Round(1, tuple(range(12)), 0, 100, 6400, 1e9, 1.0, 2.87, 2.81, Match(False, False, 0.06, 0.05, 0.07, 40)),
    Round(2, tuple(range(14)), 100, 200, 6400, 1e9, 1.0, 2.80, 2.81, Match(True, True, -0.01, -0.02, 0.0, 40)),
)


def card(outcome="matched", lineage=LINEAGE, rounds=ROUNDS, **facts):
    return render_card(RunRecord({"keep_layers": "half"}, lineage, rounds, outcome, 2.81), "me/student", facts)


def test_metadata_is_valid():
    """Hugging Face's own class reads the card: base model, tags, library and task."""
    data = ModelCard(card(license="mit")).data
    assert data.base_model == "gpt2-medium"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert "inheritune" in data.tags
    assert data.license == "mit"


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("matched", "**matched** its target"),
        ("no_more_layers", "**missed** its target: there were no more layers"),
        ("budget_exhausted", "**missed** its target: the step budget"),
        ("interrupted", "**interrupted**"),
        (None, "**not trained**"),
    ],
)
def test_every_outcome_is_said(outcome, words):
    """A miss is stated as plainly as a match."""
    assert words in card(outcome)


def test_layers_and_rounds_are_shown():
    """The kept layers are drawn and the rounds tabulated with their differences."""
    text = card()
    assert "█" * 14 + "░" * 10 in text
    assert "| 1 | 12 | 100 | 6,400 | 2.8700 | 2.8100 | +0.0600 (up to +0.0700) | no |" in text
    assert "| 2 | 14 | 100 | 6,400 | 2.8000 | 2.8100 | -0.0100 (up to +0.0000) | yes |" in text


def test_rule_and_its_weakness_are_said():
    """The card says how rounds were judged, and when there were too few documents for an interval."""
    recipe = {"keep_layers": "half", "tolerance": 0.01, "confidence": 0.95}
    few = Round(1, (0,), 0, 9, 64, 1e9, 1.0, 2.8, 2.81, Match(True, True, -0.01, None, None, 4, "no interval: few"))
    text = render_card(RunRecord(recipe, LINEAGE, (few,), "matched", 2.81), "me/student")
    assert "one-sided 95% upper bound of its difference" in text
    assert "Note: no interval: few." in text
    means = render_card(RunRecord({**recipe, "confidence": None}, LINEAGE, (few,), "matched", 2.81), "me/student")
    assert "if its loss is at most 0.01 nats per token above the target" in means


def test_paths_of_a_machine_stay_there(tmp_path):
    """A reference that is a folder is no base model on the Hub, and its path is not told."""
    text = card(lineage=Lineage(str(tmp_path / "secret" / "model"), None, 24, (0, 1)))
    assert str(tmp_path) not in text
    assert ModelCard(text).data.base_model is None


def test_unknown_licence_is_said():
    """Without a licence the card says that the reference's applies."""
    assert "licence of the reference is not known" in card()
    assert "licence of the reference is not known" not in card(license="mit")
