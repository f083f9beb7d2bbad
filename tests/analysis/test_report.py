"""A report answers questions about its layers, is saved whole, and is compared with another of the same sequences."""

import dataclasses
import json
from pathlib import Path

import pytest
from lazy_models import HEADS, LAYERS, VOCABULARY
from test_measurement import fast

from inheritune_hf.analysis import CollapseReport, LayerScores, compare_laziness, measure_collapse
from inheritune_hf.records import RecordError, encode


def test_report_goes_through_json_and_into_pandas(model, sequences, tmp_path):
    """A report read back is equal; the table has a row for each layer, head and share."""
    report = measure_collapse(model, sequences)
    report.to_json(tmp_path / "report.json")
    assert CollapseReport.from_json(tmp_path / "report.json") == report
    table = report.to_pandas()
    assert len(table) == LAYERS * HEADS * len(report.shares)
    chosen = table[(table["layer"] == 2) & (table["head"] == 1) & (table["share"] == 0.9)]
    assert chosen["rank"].item() == report.ranks(2).mean(0)[1]
    assert chosen["sink"].item() == report.layers[2].sink[1]
    title, headers, *rows = repr(report).splitlines()
    where = f"{report.sequences} sequences of {report.tokens} tokens"
    assert title == f"{Path(report.model).name}: attention of {LAYERS} layers on {where}, share 0.9"
    assert headers.split() == ["layer", "MaxRank", "AvgMass"]
    assert [row.split()[1] for row in rows] == [f"{rank:.2f}" for rank in report.max_ranks()]


def test_a_damaged_report_is_refused(model, sequences, tmp_path):
    """Ranks that are not whole numbers by share, sequence and head are refused, with the file's name."""
    values = encode(fast(model, sequences[:2]))
    values["layers"][1]["ranks"] = [[1.5]]
    (tmp_path / "report.json").write_text(json.dumps(values))
    with pytest.raises(RecordError, match=r"report\.json.*ranks must be whole numbers by share, sequence and head"):
        CollapseReport.from_json(tmp_path / "report.json")


def test_shares_that_were_not_measured_are_refused(model, sequences):
    """Asking a report for another share names those that were measured."""
    with pytest.raises(ValueError, match=r"The share 0.5 was not measured \(measured: 0.9\); measure again with it"):
        fast(model, sequences[:2], shares=(0.9,)).max_ranks(0.5)


def test_lazy_by_definition_and_nearly(model, sequences):
    """A layer is lazy at MaxRank 1 exactly, near rank-1 within a tolerance; AvgRank is the mean over layers."""
    report = fast(model, sequences[:2], shares=(0.9,))
    ranks = {0: ((1,), (1,)), 1: ((1,), (2,)), 2: ((2,), (2,))}
    layers = tuple(LayerScores(n, "attention", (rows,), (rows,), (0.0,), (0.0,)) for n, rows in ranks.items())
    report = dataclasses.replace(report, layers=layers)
    assert report.lazy_layers() == [0]
    assert report.lazy_layers(0.5) == [0, 1]
    assert report.max_rank_intervals() == [None] * 3  # too few sequences
    assert report.avg_rank([1, 2]) == 1.75
    with pytest.raises(ValueError, match="AvgRank needs at least one layer with softmax attention"):
        report.avg_rank([])


def test_the_papers_question_is_answered(model, collapsed, sequences):
    """Students and references are compared by their lazy layers, on the same sequences only."""
    student, reference = fast(model, sequences), fast(collapsed, sequences)
    comparison = compare_laziness(student, reference)
    assert (comparison.student, comparison.reference) == (0, 3)
    assert comparison.sentence.startswith("The student has fewer lazy layers than its reference: 0 of 6 against 3 of 6")
    assert "more lazy layers" in compare_laziness(reference, student).sentence
    assert "as many lazy layers as its reference, which has none" in compare_laziness(student, student).sentence
    for others in (sequences[:, :20], (sequences + 1) % VOCABULARY):
        with pytest.raises(ValueError, match="Models are compared on the same sequences only, got 40 of 24 tokens"):
            compare_laziness(student, fast(collapsed, others))
