"""One entry of the registry is a measure: of the grammar, of an analysis, of advice, figures, help and arms."""

import pytest

from inheritune_hf import InheritedGPT2, InherituneConfig
from inheritune_hf.analysis import measure_collapse, recommend_layers, resolve_measured
from inheritune_hf.analysis.plots import blocks_figure
from inheritune_hf.arms import ARMS
from inheritune_hf.measures import MEASURES, Measure, examples, is_measured, order_passes
from inheritune_hf.students import TrainingSetup, estimate_run


def even_first(report, tau):
    return [float(layer % 2 == 0) for layer in range(report.depth)]


@pytest.fixture
def added(monkeypatch):
    """A measure that prefers even layers."""
    measure = Measure("even layers first", "nobody", "evenness", even_first)
    monkeypatch.setitem(MEASURES, "even", measure)
    return measure


def test_an_entry_works_everywhere(added, model, sequences):
    """It is chosen by in `keep_layers`, shown by an analysis and drawn, and orders all layers, nested."""
    tokens = sequences[:2]
    assert resolve_measured(model, "even:4", tokens) == (0, 1, 2, 4)
    with pytest.raises(ValueError, match="keep_layers='even:4' is not resolved here: it needs an analysis"):
        InheritedGPT2.from_pretrained(model, keep_layers="even:4")
    with pytest.raises(ValueError, match="'loss:12', 'even:12'"):
        resolve_measured(model, "even", tokens)
    report = measure_collapse(model, tokens)
    assert recommend_layers(report).by_measure["even"] == (0, 2, 4)
    assert blocks_figure(report).axes[-1].get_ylabel() == "evenness"
    assert added.order(report) == (0, 2, 4, 1, 3, 5)


def test_layers_are_removed_one_by_one(monkeypatch, model, sequences):
    """A measure may say which layer goes next, by losses that are measured again after each removal."""
    asked = []

    def remove(left, loss_without):
        asked.append((tuple(left), loss_without(left[0])))
        return left[0]

    monkeypatch.setitem(MEASURES, "last", Measure("last layers", "nobody", "", even_first, remove=remove))
    assert resolve_measured(model, "last:4", sequences[:2]) == (2, 3, 4, 5)
    assert [left for left, _ in asked] == [(0, 1, 2, 3, 4, 5), (1, 2, 3, 4, 5)]
    assert asked[0][1] != asked[1][1]


def test_every_measure_has_its_place():
    """Help text and arms of comparisons follow the registry."""
    assert examples() in InherituneConfig.__dataclass_fields__["keep_layers"].metadata["help"]
    assert {name: ARMS[name].summary for name in MEASURES} == {name: item.keeps for name, item in MEASURES.items()}
    assert ARMS["lazy"].measure == "rank"


@pytest.mark.parametrize(
    ("choice", "passes"),
    [("loss:15", sum(range(16, 31))), ("skip:15", 32), ("auto", 32), ("rank:15", 1), ("half", 0), (15, 0)],
)
def test_what_an_order_costs(choice, passes):
    """Of 30 layers, removing one by one takes a pass for each that is left; a measure of blocks two halves of each."""
    assert order_passes(choice, 30) == passes


def test_a_plan_says_what_the_order_costs(model):
    """The rounds of a measure are planned by depth, and its forward passes counted in operations."""
    plan = estimate_run(model, InherituneConfig(keep_layers="loss:3", steps_per_round=2), TrainingSetup(1, 8))
    assert [item.layers for item in plan.rounds] == [3, 5, 6]
    assert plan.order_passes == 4 + 5 + 6
    one = estimate_run(model, InherituneConfig(keep_layers="rank:3", steps_per_round=2), TrainingSetup(1, 8))
    assert plan.order_flops == 15 * one.order_flops > 0
    assert estimate_run(model, InherituneConfig(steps_per_round=2), TrainingSetup(1, 8)).order_flops == 0


def test_what_is_measured():
    """The words of the grammar that need sequences are known, and no others."""
    assert all(is_measured(choice) for choice in ("auto", "rank:12", " loss:3", "influence:1", "angular:2", "rank"))
    assert not any(is_measured(choice) for choice in ("half", "first:3", 3, [0, 1], "12", "params:3M"))
