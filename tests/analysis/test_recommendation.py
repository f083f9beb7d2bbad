"""What is recommended rests on the ranks, says how sure it is, and where measures disagree."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from lazy_models import LAYERS, VOCABULARY, collapse_layers, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune_hf.analysis import (
    BlockScores,
    CollapseReport,
    LayerScores,
    Uniform,
    layer_order,
    loss_without,
    measure_collapse,
    recommend_layers,
    recommendation,
    resolve_measured,
)
from inheritune_hf.analysis.recommendation import lazy_tail_start
from inheritune_hf.measures import MEASURES
from inheritune_hf.records import encode
from inheritune_hf.students import sliced_config

sys.path.insert(0, str(Path(__file__).parents[1] / "students"))
from families import CASES, NEEDY


def report_of(ranks, sequences=40, blocks=None, masses=None):
    """A report of one head for each layer, whose ranks are given: one number, or one for each sequence."""

    def counts(values):
        return (tuple((value,) for value in values),)

    rows = [rank if isinstance(rank, list) else [rank] * sequences for rank in ranks]
    layers = tuple(
        LayerScores(layer, "attention", counts(row), counts(masses[layer] if masses else row), (0.0,), (0.0,))
        for layer, row in enumerate(rows)
    )
    return CollapseReport(
        "made", "gpt2", "", "", sequences, 100, (0.9,), layers, Uniform((5,), (30,), 3.0, 0.1), blocks=blocks
    )


@pytest.mark.parametrize(
    ("ranks", "start"),
    [
        ([9.0, 8.0, 1.0, 1.0], 2),
        ([9.0, 1.0, 8.0, 1.0, 1.0], 3),  # a lazy layer before a busy one is not a tail
        ([9.0, 1.0, 2.5, 1.0, 1.0], 1),  # a group is lazy while its mean is below 2
        ([9.0, 1.9, 2.5], None),  # the last layer alone is not lazy
        ([1.0, 1.0], 0),
        ([9.0, 9.0], None),
        ([9.0, None, 1.0, None], 2),
        ([9.0, 1.0, None], 1),
    ],
    ids=str,
)
def test_where_the_lazy_tail_begins(ranks, start):
    """It is the longest tail whose AvgRank is below 2 and that begins with a layer below 2."""
    assert lazy_tail_start(ranks) == start


def test_a_lazy_tail_is_cut(sequences):
    """A model whose last layers were forced to one column keeps those before, with a certain interval."""
    advice = recommend_layers(collapse_layers(tiny_model(), (3, 4, 5)), sequences)
    assert advice.layers == (0, 1, 2)
    assert advice.basis == "lazy tail"
    assert advice.interval == (3, 3)
    assert advice.tail_share == 1
    assert advice.by_measure["rank"] == (0, 1, 2)
    assert set(advice.by_measure) == set(MEASURES) - {"loss"}
    assert any(
        line.startswith("AvgRank of layers 3:6 is 1.00, AvgRank of those before is ") for line in advice.evidence
    )
    assert json.loads(json.dumps(encode(advice)))["layers"] == [0, 1, 2]


def test_without_a_lazy_tail_half_is_named_a_practice(model, sequences):
    """If nothing has collapsed, half is recommended, and said to be no finding."""
    advice = recommend_layers(model, sequences)
    assert advice.layers == (0, 1, 2)
    assert advice.basis == "half"
    assert advice.interval is None
    assert any("half is the paper's practice, not a finding" in line for line in advice.evidence)


def test_any_share_may_be_asked_for(model, sequences):
    """Ranks are measured at the share that is asked for, whether or not it is one of the usual ones."""
    assert recommend_layers(model, sequences, tau=0.99).layers == (0, 1, 2)


def test_uncertain_ranks_give_a_wide_interval():
    """Where sequences disagree about a layer, the interval spans what they say."""
    unsure = [1] * 20 + [3] * 20
    advice = recommend_layers(report_of([9, 9, unsure, 1, 1]))
    assert advice.interval[0] < advice.interval[1]
    assert advice.interval[0] <= len(advice.layers) <= advice.interval[1]
    few = recommend_layers(report_of([9, 9, 1, 1], sequences=10))
    assert few.interval is None
    assert few.tail_share is None
    assert "No interval: 30 sequences are needed." in few.evidence
    none = recommend_layers(report_of([9, 9, 9, 9]))
    assert none.tail_share == 0


def test_everything_lazy_keeps_one_layer():
    """There is always a student: a reference that is lazy throughout keeps its first layer."""
    assert recommend_layers(report_of([1, 1, 1])).layers == (0,)


def test_disagreements_are_named():
    """Lazy layers that are kept, busy ones that are dropped, other measures and the loss are named."""
    blocks = BlockScores(
        influence=(0.1, 0.1, 0.1, 0.1, 0.9, 0.1),
        angular=tuple(tuple(0.1 * (n + 1) for n in range(6 - layer)) for layer in range(6)),
        loss=3.0,
        by_depth=(9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0),
        skipped=(4.0,) * 6,
    )
    masses = [[20] * 40, [1] * 40, [20] * 40, [20] * 40, [1] * 40, [1] * 40]
    advice = recommend_layers(report_of([5, 1, 5, 1, 6, 1], blocks=blocks, masses=masses))
    assert advice.basis == "lazy tail"
    assert advice.layers == (0, 1, 2, 3, 4)
    found = " ".join(advice.disagreements)
    assert "Layers 1,3 are kept although their MaxRank is below 2: rank is not monotone in depth." in found
    assert "By AvgMass the lazy tail would begin after 4 layers." in found
    assert "The loss through the head comes within 0.1 nats per token of the model's own only after 6 layers." in found
    half = recommend_layers(report_of([2, 3, 2, 9, 8, 9], blocks=blocks))
    found = " ".join(half.disagreements)
    assert "Layers 3:6 are dropped although their MaxRank is above the median of the kept ones" in found
    assert "By rank, 3 of 3 layers would be others: 3:6." in found
    assert "By influence, 1 of 3 layers would be others: 0:2,4." in found


def test_a_report_of_no_attention_says_nothing(model):
    """Neither sequences nor a report, or a model without softmax attention, is an error."""
    with pytest.raises(ValueError, match="recommend_layers needs sequences to measure the reference on"):
        recommend_layers(model)
    report = dataclasses.replace(report_of([1]), layers=(LayerScores(0, "mamba"),))
    with pytest.raises(ValueError, match="made has no layer with softmax attention"):
        recommend_layers(report)


@pytest.mark.parametrize("measure", MEASURES)
def test_students_along_an_order_are_nested(model, sequences, measure):
    """Every measure orders all layers, and each of its choices holds every smaller one."""
    tokens = sequences[:4]
    order = layer_order(model, measure, tokens)
    assert sorted(order) == list(range(LAYERS))
    for count in range(1, LAYERS + 1):
        assert resolve_measured(model, f"{measure}:{count}", tokens) == tuple(sorted(order[:count]))


def test_layers_by_rank_influence_and_angle(collapsed, sequences):
    """Each measure keeps what its scores say; of equals the earlier layer stays."""
    report = measure_collapse(collapsed, sequences)
    assert resolve_measured(collapsed, "rank:3", sequences) == (0, 1, 3)
    assert resolve_measured(collapsed, "rank:5", sequences) == (0, 1, 2, 3, 4)
    costs = report.blocks.skipped
    assert resolve_measured(collapsed, "skip:2", sequences) == tuple(
        sorted(sorted(range(LAYERS), key=costs.__getitem__)[-2:])
    )
    by_influence = resolve_measured(collapsed, "influence:3", sequences)
    least = min(report.blocks.influence[layer] for layer in by_influence)
    assert all(report.blocks.influence[n] <= least for n in range(LAYERS) if n not in by_influence)
    turns = report.blocks.angular
    (gone,) = set(range(LAYERS)) - set(resolve_measured(collapsed, "angular:5", sequences))
    assert turns[gone][0] == min(turns[layer][0] for layer in range(LAYERS))
    run = sorted(set(range(LAYERS)) - set(resolve_measured(collapsed, "angular:4", sequences)))
    others = {start: turns[start][1] for start in (gone - 1, gone) if 0 <= start < LAYERS - 1}
    assert run == [run[0], run[0] + 1]
    assert turns[run[0]][1] == min(others.values())


def test_layers_by_loss_are_verified_after_each_removal(model, sequences):
    """Each removal is the one after which the loss is lowest, measured without those before it."""
    tokens = sequences[:8]
    left, removed = list(range(LAYERS)), []
    while len(left) > 3:
        losses = {layer: loss_without(model, [tokens], [*removed, layer]) for layer in left}
        gone = min(left, key=losses.get)
        removed.append(gone)
        left.remove(gone)
    assert layer_order(model, "loss", tokens, 3) == (*left, *reversed(removed))
    assert layer_order(model, "loss", tokens, LAYERS) == tuple(range(LAYERS))


def test_removals_are_kept_one_by_one(model, sequences, tmp_path, monkeypatch):
    """What a search by loss has removed is found again, for any number of layers, also where it was interrupted."""
    tokens, runs = sequences[:4], []
    fresh = {count: layer_order(model, "loss", tokens, count) for count in (3, 4)}
    monkeypatch.setattr(recommendation, "loss_without", lambda *given: runs.append(1) or loss_without(*given))
    for count, most in ((4, 6 + 5), (3, 6 + 5 + 4), (4, 6 + 5 + 4), (3, 6 + 5 + 4)):
        assert layer_order(model, "loss", tokens, count, cache_dir=tmp_path) == fresh[count]
        assert len(runs) == most
    layer_order(model, "loss", sequences[4:8], 4, cache_dir=tmp_path)
    assert len(runs) > 6 + 5 + 4


def test_from_a_path_and_with_a_cache(model, sequences, tmp_path):
    """All choices work on a path too; measures that were cached are not measured again."""
    model.save_pretrained(tmp_path / "model")
    for choice in ("auto", "rank:2", "influence:2", "angular:2", "loss:5"):
        layers = resolve_measured(tmp_path / "model", choice, sequences[:4], cache_dir=tmp_path / "scores")
        assert layers == resolve_measured(model, choice, sequences[:4])
    assert len(list((tmp_path / "scores").iterdir())) == 3  # with and without blocks, and what was removed


def test_layers_without_softmax_attention_stay():
    """By rank, a layer that has no rank is not dropped for it."""
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    torch.manual_seed(0)
    config = AutoConfig.for_model("lfm2", num_hidden_layers=4, intermediate_size=32, layer_types=kinds, **shape)
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.ones(2, 8, dtype=torch.long)
    assert set(resolve_measured(model, "rank:3", tokens)) > {0, 2}
    # Alone they are no model: what an order begins with can generate.
    for measure in ("rank", "loss"):
        assert kinds[layer_order(model, measure, tokens)[0]] == "full_attention"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), NEEDY)
def test_orders_keep_what_a_family_needs(kind, number):
    """By rank and by loss every student along the order is a model of its family, nested in the next one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **CASES[kind][number])).eval()
    tokens = torch.randint(1, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(1))
    for measure in ("rank", "loss"):
        order = layer_order(model, measure, tokens, 2)
        assert sorted(order) == list(range(6))
        for count in range(2, 7):
            assert sliced_config(model.config, sorted(order[:count])).num_hidden_layers == count


@pytest.mark.parametrize("choice", ["rank", "rank:", "rank:x", "auto:3", "loss:-1", "first:3"])
def test_incomplete_choices_are_refused(model, sequences, choice):
    """A measure needs a number of layers, auto takes none."""
    with pytest.raises(ValueError, match=re.escape(f"keep_layers={choice!r} is not complete: write 'auto', or")):
        resolve_measured(model, choice, sequences)


@pytest.mark.parametrize("choice", ["rank:7", "loss:7", "influence:0"])
def test_impossible_choices_are_refused(model, sequences, choice):
    """More layers than there are, and none, are refused before anything is measured."""
    with pytest.raises(ValueError, match=rf"keep_layers must be between 1 and 6 .* got {choice[-1]}"):
        resolve_measured(model, choice, sequences[:2])
