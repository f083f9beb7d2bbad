"""What the report of a comparison says, and that every figure is a record's."""

import json
from dataclasses import replace

import pytest
from recorded_runs import CELLS, LINEAGE, RECIPE, ROUNDS, cell, comparison_record, write_comparison

from inheritune_hf.experiments.results import arm_results, table_cells, table_notes
from inheritune_hf.records import RunRecord, encode, write_json
from inheritune_hf.reporting import read_run, write_report
from inheritune_hf.reporting.content import Chart, Table, Texts, build_comparison, build_report


def report_of(**changes):
    return build_comparison("compared", comparison_record(**changes))


def blocks_of(report, anchor):
    return next(section.blocks for section in report.sections if section.anchor == anchor)


def tables_of(report, anchor):
    return [block for block in blocks_of(report, anchor) if isinstance(block, Table)]


def test_verdict_says_which_reference_was_matched():
    """The starting reference and the one trained further are two claims, judged on the test set by the tolerance."""
    report = report_of()
    assert (report.outcome, report.good) == ("not confirmed", None)  # by two seeds, for which the interval is wide
    rows = {row.arm: row for row in arm_results(comparison_record())}
    start, continued = rows["inheritune"].to_reference, rows["inheritune"].to_continued
    assert report.verdict.startswith(
        "The loop (inheritune) matched its starting reference on the selection set with 2 of 2 seeds; its last "
        "students have 4 to 6 of 8 layers. On the test set its student"
    )
    assert start.upper > 0.01
    said = f"its student does not match the starting reference: {start.difference:+.4f} ({start.lower:+.4f} to"
    assert said in report.verdict
    assert (
        f"its student does not match the reference, trained further for the same budget: {continued.difference:+.4f}"
        in report.verdict
    )


def test_the_test_set_confirms_no_target_of_its_own():
    """A target that is a number is not the reference's loss, to which the test set's difference is."""
    numeric = report_of(recipe={**RECIPE, "target": 6.5})
    assert (numeric.outcome, numeric.good) == ("matched", True)


def test_curves_end_where_the_seeds_end():
    """A loop's seeds may take rounds of their own: the mean line ends with the shortest, the figure is of all ends."""
    first, second, *others = (encode(cell(*values)) for values in CELLS)
    longer = [*first["curve"], [10**6, 1e12, 4.0]]
    cells = [{**first, "curve": longer, "selection": {**first["selection"], "loss_sums": [8.0], "tokens": [2]}}]
    cells[0]["selection"] |= {"documents": [0], "correct": [0]}
    report = report_of(cells=[*cells, second, *others])
    mean = (4.0 + cell(*CELLS[1]).selection.loss) / 2
    chart = next(block for block in blocks_of(report, "curves") if isinstance(block, Chart))
    assert f"inheritune ends at {mean:.4f}" in chart.description


def test_verdict_is_on_the_plain_loop():
    """A variant of the loop that came out better is not what the comparison is about."""
    taught = [("inheritune/kd", seed, 5.02, 8, "no_more_layers") for seed in (1, 2)]
    cells = [encode(cell(*values)) for values in (*taught, *CELLS)]
    report = report_of(cells=cells)
    assert (report.outcome, report.good) == ("not confirmed", None)
    assert report.verdict.startswith("The loop (inheritune) matched its starting reference")
    alone = report_of(cells=[values for values in cells if values["arm"] != "inheritune"])
    assert (alone.outcome, alone.good) == ("missed", False)
    assert alone.verdict.startswith("The loop (inheritune/kd) did not match")


def test_matches_at_full_depth_are_no_reductions():
    """A loop that matched with all layers is counted as what it is, in verdict, word and table."""
    deep = [encode(cell(*CELLS[0])), {**encode(cell(*CELLS[1])), "layers": 8}]
    report = report_of(cells=deep)
    assert (report.outcome, report.good) == ("matched in part", None)
    assert "with 2 of 2 seeds, 1 of them at the full depth, which is no reduction; its last" in report.verdict
    assert [row[2] for row in tables_of(report, "cells")[0].rows] == ["matched", "matched, no reduction"]
    whole = report_of(cells=[{**values, "layers": 8} for values in deep])
    assert (whole.outcome, whole.good) == ("no reduction", None)


def test_means_are_compared_where_the_recipe_says_so():
    """Without a confidence the mean decides, and that is said."""
    report = report_of(recipe={**RECIPE, "confidence": None})
    assert (report.outcome, report.good) == ("matched", True)
    assert "On the test set its student matches by the mean the starting reference: -0.0200" in report.verdict
    assert "does not match by the mean the reference, trained further" in report.verdict


def test_misses_and_comparisons_without_the_loop_are_said():
    """A loop that missed, or matched with some seeds, says so; without it the lowest loss is named."""
    missed = [encode(cell(*values[:4], values[4] and "no_more_layers")) for values in CELLS]
    report = report_of(cells=missed)
    assert (report.outcome, report.good) == ("missed", False)
    assert report.verdict.startswith("The loop (inheritune) did not match its starting reference on the selection set;")
    part = [missed[0], encode(cell(*CELLS[1])), *missed[2:]]
    report = report_of(cells=part, recipe={**RECIPE, "target": 5.2})
    assert (report.outcome, report.good) == ("matched in part", None)
    assert "matched the target loss on the selection set with 1 of 2 seeds" in report.verdict
    others = [encode(cell(*values)) for values in CELLS if values[0] not in {"inheritune", "continued"}]
    report = report_of(cells=others)
    assert (report.outcome, report.good) == ("compared", None)
    assert report.verdict.startswith("Of 2 arms, last/moved-scale has the lowest test loss of those shallower")
    assert "Whether last/moved-scale would match the reference, trained further, was not measured." in report.verdict
    deep = [{**values, "layers": 8} for values in others]
    report = report_of(cells=deep)
    assert report.verdict.startswith("Of 2 arms, last/moved-scale has the lowest test loss.")


def test_every_figure_is_a_records():
    """Arms, cells and the sweep hold the records' figures; notes and what was left out are there."""
    record = comparison_record()
    report = build_comparison("compared", record)
    outcome, cost, arms = tables_of(report, "arms")
    for row, first, second in zip(arm_results(record), outcome.rows, cost.rows, strict=True):
        cells = table_cells(row)
        shown = {**dict(zip(outcome.headers, first, strict=True)), **dict(zip(cost.headers, second, strict=True))}
        assert shown == cells
    assert [(row[0], row[1]) for row in arms.rows] == [(row.arm, row.summary) for row in arm_results(record)[1:]]
    cells, sweep = tables_of(report, "cells")
    assert cells.rows[1] == (
        "inheritune-seed2-lr0.002", "inheritune", "matched", "2", "0.002", "6", "240", "5.1400", "5.1400"
    )  # fmt: skip
    assert sweep.headers == ("arm", "0.002", "0.004")
    assert sweep.rows[0] == ("inheritune", "5.3000", "5.4000")
    assert "Left out: stacking, because it doubles a number of layers, and 5 is odd." in str(blocks_of(report, "arms"))
    (chart,) = (block for block in blocks_of(report, "curves") if isinstance(block, Chart))
    assert "random ends at 5.7250" in chart.description
    given = {table.caption: table.rows for table in tables_of(report, "data")}
    assert ("train", "48", "42,933", "341", "ea33e9b29185b614") in next(iter(given.values()))
    assert ("train_files", "a.txt") in given["Data settings"]
    assert ("learning_rate", "0.002") in given["Training settings"]
    texts = dict(text for block in blocks_of(report, "reproduce") if isinstance(block, Texts) for text in block.texts)
    assert json.loads(texts["The comparison, as JSON"])["arms"] == ["inheritune", "random", "last/moved-scale"]
    assert texts["Commands"].splitlines() == ["inheritune compare comparison.json", "inheritune report compared"]


def test_a_cells_model_shows_its_comparison(comparison):
    """The report of a model that a comparison chose has its table, and its answer on the reference, trained further."""
    model = comparison / "inheritune-seed1-lr0.002" / "model"
    write_json(model / "inheritune_config.json", encode(RunRecord(RECIPE, LINEAGE, ROUNDS, "matched", 5.1951)))
    write_json(model.parent / "cell.json", {})
    report = build_report(read_run(model))
    assert (
        "On the test set it does not match the reference, trained further for the same budget: +0.1500"
        in report.verdict
    )
    assert tables_of(report, "comparison") == tables_of(report_of(), "arms")
    texts = [block.texts[0][1] for block in blocks_of(report, "reproduce") if isinstance(block, Texts)]
    assert texts[-1].startswith("inheritune compare comparison.json\n")  # no student that a run would train
    with pytest.raises(
        FileNotFoundError, match=r"is a cell of a comparison; give its model, .*model, or the comparison"
    ):
        read_run(model.parent)


def test_what_is_no_finished_comparison_is_said(comparison, tmp_path):
    """A comparison that goes on, a damaged one, and an evaluation for one are named, with what to do."""
    write_json(tmp_path / "begun" / "random-seed1-lr0.002" / "cell.json", {})
    with pytest.raises(FileNotFoundError, match="holds a comparison that has not ended; give the same"):
        write_report(tmp_path / "begun")
    with pytest.raises(ValueError, match=r"is a comparison, and x\.json is the evaluation of one student"):
        write_report(comparison, evaluation="x.json")
    (write_comparison(tmp_path / "broken") / "comparison.json").write_text("{")
    with pytest.raises(ValueError, match=r"comparison\.json is damaged"):
        write_report(tmp_path / "broken")


def test_arms_that_get_more_are_named():
    """The budget is the same for all but those whose name says otherwise, and only those that were run are named."""
    record = comparison_record()
    rows = arm_results(record)
    assert table_notes(rows, record)[0] == "The budget of every arm is the same tokens."
    more = [*rows, *(replace(rows[-1], arm=name) for name in ("random-2x", "random-long"))]
    assert table_notes(more, record)[0].endswith("same tokens. More by design: `random-2x`, `random-long`.")
