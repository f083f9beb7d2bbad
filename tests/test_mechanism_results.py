"""The mechanism check on the embedded reference: rates are tuned, sets are disjoint, the page is what records say."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
import sys

import pytest
from documentation import ROOT
from recorded_runs import cell, comparison_record

from inheritune_hf import InherituneConfig

FOLDER = ROOT / "docs" / "results" / "mechanism"
SEEDS = (1, 2, 3, 4, 5)


@pytest.fixture
def scripts(monkeypatch):
    """The two scripts as they import each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("run"), importlib.import_module("page")
    for name in ("run", "page"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    ("best", "looked", "final"),
    [
        (1.8, [(0.6, 1.8, 5.4)], (0.6, 1.8, 5.4)),
        (16.2, [(0.6, 1.8, 5.4), (0.6, 1.8, 5.4, 16.2), (0.6, 1.8, 5.4, 16.2, 48.6)], (0.6, 1.8, 5.4, 16.2, 48.6)),
        (0.2, [(0.6, 1.8, 5.4), (0.2, 0.6, 1.8, 5.4), (0.067, 0.2, 0.6, 1.8, 5.4)], (0.067, 0.2, 0.6, 1.8, 5.4)),
    ],
)
def test_a_rate_is_chosen_inside_the_grid(scripts, monkeypatch, best, looked, final):
    """Rates are added to one seed until the best lies between two others; only then the other seeds are run."""
    asked = []

    def compared(_study, name, rates, seeds):
        asked.append((name, rates, seeds))
        nearest = min(rates, key=lambda rate: abs(rate - best))
        return {"cells": [{"learning_rate": nearest * 1e-3}], "seeds": seeds}

    monkeypatch.setattr(scripts[0], "compare", compared)
    assert scripts[0].run_arm(scripts[0].EMBEDDED, "skip") == {
        "comparison": {"cells": [{"learning_rate": best * 1e-3}], "seeds": SEEDS}
    }
    assert asked == [*(("skip", rates, (1,)) for rates in looked), ("skip", final, SEEDS)]
    scripts[0].run_arm(scripts[0].EMBEDDED, "loop-paper")
    assert asked[-1] == ("loop-paper", final, (1,))
    del asked[:]
    scripts[0].run_arm(scripts[0].EMBEDDED, "loop-long")
    assert asked == 2 * [("loop-long", (1.8,), (1,))]


def test_no_book_is_in_two_sets(scripts, tmp_path, monkeypatch):
    """Arms are trained on the reference's novels, and held on passages of others, as many of each."""
    monkeypatch.chdir(tmp_path)
    text = "\n\n".join(f"{number} " + "word " * 400 for number in range(60))
    rows = "".join(json.dumps({"id": f"book{number}", "text": text}) + "\n" for number in range(77))
    (tmp_path / "books.jsonl").write_text(rows, encoding="utf-8")
    scripts[0].prepare([str(tmp_path / "books.jsonl")], tmp_path)
    found = {}
    for name in ("train", "new", "selection", "test"):
        lines = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        found[name] = [json.loads(line)["id"] for line in lines]
    assert {name: len(set(ids)) for name, ids in found.items()} == {
        "train": 45,
        "new": 8,
        "selection": 104,
        "test": 208,
    }
    books = [{name.partition("-")[0] for name in ids} for ids in found.values()]
    assert [len(one) for one in books] == [45, 8, 8, 16]
    assert len(set.union(*books)) == 77


def test_wrong_words_are_answered_before_anything_is_written(scripts, tmp_path, monkeypatch, capsys):
    """The message says which there are."""
    monkeypatch.chdir(tmp_path)
    for words, answer in (
        (["books.jsonl", "--arms", "first"], "--arms are some of continued, inherited"),
        (["books.jsonl"], "books.jsonl is not there; BOOKS are JSONL files of novels"),
    ):
        with pytest.raises(SystemExit):
            scripts[0].main(words)
        assert answer in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def record(arm, losses, layers=4, outcome=None):
    """The record of an arm with a test loss for each seed, at one of three rates."""
    cells = tuple(cell(arm, seed, loss, layers, outcome) for seed, loss in enumerate(losses, 1))
    sweep = {arm: {"0.001": 5.4, "0.002": 5.3, "0.004": 5.4}}
    return dataclasses.replace(comparison_record(), cells=cells, sweep=sweep)


@pytest.fixture
def records():
    """The reference is at 5.15."""
    return {
        "continued": record("continued", (5.148, 5.146), 8),
        "inherited": record("inherited", (5.40, 5.42)),
        "skip": record("skip", (5.28, 5.30)),
        "random": record("random", (5.90, 5.92)),
        "loop-heal": record("inheritune", (5.13, 5.16), 6, "matched"),
        "last": record("last", (5.60, 5.62)),
        "last-moved-scale": record("last/moved-scale", (5.70, 5.72)),
    }


MADE = {"machine": "a processor", "half": None, "unscaled": None}


def test_claims_say_what_the_records_say(scripts, records):
    """Each claim has its difference, its interval, and whether that excludes zero; what was not run is named."""
    loop = records["loop-heal"]
    early = tuple(dataclasses.replace(cell, first_match=(cell.seed * 1000, 2e12)) for cell in loop.cells)
    records["loop-heal"] = dataclasses.replace(loop, cells=early)
    text = scripts[1].page(records, {}, MADE)
    for sentence in (
        "it ends -0.0030",
        "less than the gain of 0.01 nats that was allowed",
        "| `skip` | 4 | 0.002 of 0.001, 0.002, 0.004 |",
        "(`random` minus `inherited`): +0.5000",
        "(`skip` minus `inherited`): -0.1200",
        "adds to last layers: +0.1000 (+0.1000 to +0.1000), established; that is 33% of their distance",
        "matched below full depth with 2 of 2 seeds (6 layers), first after 1,500 tokens and 2.00e+12 FLOPs",
        "Not run yet: `loop-untaught`, `loop-skip`, `loop-first`, `skip-kd`, `random-kd`, `middle`",
    ):
        assert sentence in text, sentence
    assert "at an end" not in text


def test_the_advice_on_layers_is_what_was_measured(scripts):
    """What choose-layers.md says of layers by `skip` is the difference that the records have."""
    found = scripts[1].pair(scripts[1].read_records(FOLDER), "skip", "inherited")
    advice = (ROOT / "docs" / "how-to" / "choose-layers.md").read_text(encoding="utf-8")
    assert f"by `skip` ended {-found.difference:.3f} below first" in " ".join(advice.split())
    spaced = scripts[1].pair(scripts[1].read_records(FOLDER), "skip", "spaced")
    assert f"{spaced.difference:.3f} above layers at equal distances (`spaced:6`, one seed;" in " ".join(advice.split())


def test_distillation_is_told_as_it_was_measured(scripts):
    """What distillation.md says of arms with a teacher and without are the differences that the records have."""
    found = scripts[1].read_records(FOLDER)
    skip, random = (scripts[1].pair(found, f"{name}-kd", name) for name in ("skip", "random"))
    said = " ".join((ROOT / "docs" / "explanation" / "distillation.md").read_text(encoding="utf-8").split())
    assert f"than without ({skip.difference:+.4f}, {skip.lower:+.4f} to {skip.upper:+.4f})" in said
    assert f"random weights end {random.difference:.3f} higher" in said


def test_the_moved_scale_is_told_as_it_was_measured(scripts):
    """What method.md says of last and middle layers, with their scale and with that of their position, is recorded."""
    found = scripts[1].read_records(FOLDER)
    said = " ".join((ROOT / "docs" / "explanation" / "method.md").read_text(encoding="utf-8").split())
    for name, words in (
        ("last", "adds {0:.3f} nats per token to last layers after training, which end {1:.3f} above"),
        ("middle", "and {0:.3f} to middle layers, which end {1:.3f} above."),
    ):
        added, gap = (
            scripts[1].pair(found, *pair).difference for pair in ((f"{name}-moved-scale", name), (name, "inherited"))
        )
        assert words.format(added, gap) in said


def test_the_readme_says_what_was_measured(scripts):
    """What training gains the reference is the record's; what the demo's controls lack is on the page of its seeds."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    gained = scripts[1].to_reference(scripts[1].read_records(FOLDER)["continued"])
    assert f"it gains {-gained.difference:.3f}" in readme
    seeds = " ".join((ROOT / "docs" / "results" / "embedded.md").read_text(encoding="utf-8").split())
    twice = re.search(r"(\S+) to (\S+) after twice as many", seeds).groups()
    assert "{:.1f} to {:.1f} nats above".format(*map(float, twice)) in readme
    worse = re.search(r"without a teacher, ends (\S+) to (\S+) above", seeds).groups()
    assert {f"gets {float(bound):.2f} worse" in readme for bound in worse} == {True}


def test_documents_say_where_the_loops_ended(scripts):
    """With how many seeds and layers the loop with a teacher matched, and that those without one did not."""
    found = scripts[1].read_records(FOLDER)
    matched = {name: scripts[1].matched_below(found[name]) for name in ("loop-heal", "loop-skip", "loop-first")}
    assert [len(cells) for cells in matched.values()] == [5, 0, 0]
    assert {cell.layers for cell in matched["loop-heal"]} == {11}
    assert found["loop-heal"].recipe["tolerance"] == InherituneConfig.tolerance
    above = scripts[1].pair(found, "loop-heal", "continued").difference
    documents = (ROOT / "README.md", ROOT / "docs" / "how-to" / "distill.md")
    readme, advice = (" ".join(path.read_text(encoding="utf-8").split()) for path in documents)
    assert f"with 5 of 5 seeds and 11 layers, and ends {above:.3f} above the reference trained further" in readme
    (longer,) = scripts[1].matched_below(found["loop-long"])
    assert longer.layers == 9
    assert longer.tokens == pytest.approx(0.3 * found["loop-heal"].reference.tokens, rel=1e-3)
    assert "on 30% of them 9 layers match, too (one seed)" in readme
    assert "with 5 of 5 seeds and 11 of 12 layers, and on 30% of them with 9 (one seed); loops without a" in advice


def test_a_reference_that_fails_the_gate_is_said_to(scripts, records):
    """Further training that gains more, and half a depth that loses less, are marked; so is a rate at an end."""
    further = record("continued", (5.10, 5.12), 8)
    edge = dataclasses.replace(further, sweep={"continued": {"0.002": 5.1, "0.004": 5.2}})
    half = {"layers": 4, "corpus": {"match": {"difference": 0.03, "lower": 0.02, "upper": 0.04}}}
    text = scripts[1].page({**records, "continued": edge}, {}, {**MADE, "half": half})
    assert "**not less** than the gain of 0.01 nats that was allowed" in text
    assert "end +0.0300 [+0.0200, +0.0400] from it: **not more** than the 0.05" in text
    assert "0.002 of 0.002, 0.004, at an end" in text


def test_the_page_is_what_its_records_say(scripts):
    """No figure of the page is typed: the committed records make the committed page."""
    page = scripts[1]
    made = page.page(page.read_records(FOLDER), page.read_records(FOLDER / "wide"), page.facts(FOLDER))
    assert made == page.PAGE.read_text(encoding="utf-8")


def test_all_arms_have_one_reference(scripts):
    """It is measured once, and as its students are: one that is the reference itself ends where it does."""
    records = scripts[1].read_records(FOLDER)
    assert len({record.reference.test for record in records.values()}) == 1
    (whole,) = records["loop-paper"].cells
    assert (whole.layers, whole.outcome, whole.test) == (12, "matched", records["loop-paper"].reference.test)


def test_new_novels_are_told_apart(scripts, records):
    """What the reference gains on novels that it has not seen has a line of its own."""
    text = scripts[1].gate({**records, "continued-new": record("continued", (5.13, 5.14), 8)}, None)
    assert "novels that it has not seen, trained for as many tokens at 0.002, it ends -0.0150" in text


def test_rounds_of_a_loop_are_parts_of_the_budget(scripts):
    """Both studies give a tenth of the reference's steps to an arm, and a loop looks as often at each width."""
    run = scripts[0]
    for study, rounds in ((run.EMBEDDED, ("1848", "924", "77")), (run.WIDE, ("400", "200", "16"))):
        assert study.recipe["budget_steps"] * 10 == study.recipe["reference_steps"]
        words = study.words("loop-heal")
        values = dict(zip(words[1::2], words[2::2], strict=True))
        assert tuple(values[name] for name in ("--max_steps", "--steps_per_round", "--eval_steps")) == rounds
        depths = [
            words[words.index("--keep_layers") + 1]
            for words in map(study.words, ("loop-skip", "loop-first", "loop-heal"))
        ]
        assert depths == ["skip:9", "9", "skip:10"]
        assert "--preset heal" in " ".join(study.words("loop-heal"))
    untaught = " ".join(run.EMBEDDED.words("loop-untaught"))
    assert untaught.replace(" --distillation none", "") == " ".join(run.EMBEDDED.words("loop-heal")).replace("/kd", "")
    assert run.EMBEDDED.words("skip-kd") == ["skip/kd", "--budget", "flops"]
    assert set(run.WIDE.arms) < set(run.EMBEDDED.arms)


def test_a_wide_reference_is_trained_once_before_its_arms(scripts, tmp_path, monkeypatch):
    """Its records have a folder of their own; an arm that has one is not run again."""
    run, trained, ran = scripts[0], [], []
    study = dataclasses.replace(run.WIDE, records=tmp_path / "wide", work=tmp_path / "work")
    study.records.mkdir()
    shutil.copy(run.WIDE.records / "recipe.yaml", study.records)
    monkeypatch.setattr(run, "WIDE", study)
    monkeypatch.setattr(run, "train", lambda books, folder, *words: trained.append((books, folder, words)))
    monkeypatch.setattr(run, "prepare", lambda books, folder: (folder / "prepared").touch())
    monkeypatch.setattr(run, "run_arm", lambda found, name: ran.append(name) or {"comparison": {}})
    books = tmp_path / "books.jsonl"
    books.touch()
    for _ in range(2):
        run.main([str(books), "--wide", "gpt2", "--arms", "inherited,skip"])
    assert ran == ["inherited", "skip"]
    assert {path.name for path in study.records.glob("*.json")} == {"inherited.json", "skip.json"}
    assert [(books, folder) for books, folder, _ in trained] == [([str(books)], study.work / "reference")]
    assert trained[0][2][-2:] == ("--tokenizer", "gpt2")


def test_a_wide_reference_has_its_own_section(scripts, records):
    """Without records the page says what is needed; with them it has the claims."""
    assert "needs a GPU" in scripts[1].page(records, {}, MADE)
    text = scripts[1].page(records, records, MADE).partition("## As wide as GPT-2 small")[2]
    for sentence in (
        "8 layers",
        "it ends -0.0030",
        "(`random` minus `inherited`): +0.5000",
        "matched below full depth",
    ):
        assert sentence in text, sentence


def test_lazy_layers_are_told_of_both_references(scripts, records):
    """With attention scaled by depth and without: the range of ranks, and which layers are near one."""
    ranks = {"max_ranks": [5.0, 36.0], "random": [4.0, 4.5], "lazy": [], "loss": 3.6, "sequences": 100, "tokens": 100}
    unscaled = {**ranks, "max_ranks": [1.1, 20.0], "lazy": [7]}
    text = scripts[1].page(records, {}, {**MADE, "unscaled": {"scaled": ranks, "unscaled": unscaled}})
    assert "- scaled: MaxRank of its layers from 5.0 to 36.0 (random weights: 4.0 to 4.5), near rank 1: none" in text
    assert "- unscaled: MaxRank of its layers from 1.1 to 20.0 (random weights: 4.0 to 4.5), near rank 1: 7;" in text


def test_a_loop_by_order_is_held_against_one_from_first_layers_on(scripts, records):
    """Tokens and operations to the match, over the seeds with which both matched."""
    by_skip = {"loop-skip": record("inheritune", (5.13, 5.16), 6, "matched")}
    found = {**by_skip, "loop-first": record("inheritune", (5.15, 5.18), 7, "matched")}
    said = scripts[1].matches(found)
    assert "matched with 2 seeds, `loop-first` with 2; where both did, after 100% of the tokens" in said
    missed = {**by_skip, "loop-first": record("inheritune", (5.25, 5.28), 8, "no_more_layers")}
    assert scripts[1].matches(missed) == "- `loop-skip` matched with 2 seeds, `loop-first` with 0"
    assert "(`loop-skip` minus `loop-first`): -0.1200" in "".join(scripts[1].by_order(missed))


def test_an_arm_of_one_seed_is_told_so(scripts, records):
    """It has no spread, is paired with the same seed of others, and is named where seeds are counted."""
    one = record("spaced", (5.50,))
    one = dataclasses.replace(one, compare=dataclasses.replace(one.compare, seeds=[1]))
    text = scripts[1].page({**records, "spaced": one}, {}, MADE)
    assert "seeds were run with it (but for `spaced`: one)" in text
    assert "| 5.5000 | +0.3500" in text
    assert "(`spaced` minus `inherited`): +0.1000" in text
    assert "what another seed changes is not covered" in text
