"""The grammar of `keep_layers`."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune_hf.layers import describe, is_prefix, resolve_layers


@pytest.mark.parametrize(
    ("choice", "depth", "layers"),
    [
        (12, 12, range(12)),
        (1, 12, [0]),
        ("12", 48, range(12)),
        (" 3 ", 12, range(3)),
        ("half", 12, range(6)),
        ("half", 7, range(3)),
        ("half", 1, [0]),
        ("first:4", 12, range(4)),
        ("last:3", 12, [9, 10, 11]),
        ("ends:2+1", 12, [0, 1, 11]),
        ("ends:1+2", 12, [0, 10, 11]),
        ("ends:6+6", 12, range(12)),
        ("every:1", 4, range(4)),
        ("every:2", 7, [0, 2, 4, 6]),
        ("every:5", 12, [0, 5, 10]),
        ("spaced:1", 12, [0]),
        ("spaced:2", 12, [0, 11]),
        ("spaced:5", 12, [0, 3, 6, 8, 11]),
        ("spaced:12", 12, range(12)),
        ("0:8,10", 12, [*range(8), 10]),
        ("3:4", 12, [3]),
        ("1,3, 5:7", 12, [1, 3, 5, 6]),
        ([0, 2], 12, [0, 2]),
        ((5,), 12, [5]),
        (range(2, 4), 12, [2, 3]),
    ],
    ids=str,
)
def test_every_form_selects_what_it_says(choice, depth, layers):
    """Every form of the grammar selects its layers, 0-based and ascending."""
    assert resolve_layers(choice, depth) == tuple(layers)


BETWEEN = "keep_layers must be between 1 and 12 (the reference's depth), got {}."
NAMED = "keep_layers must name layers from 0 to 11 (the reference has 12), got {}"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (13, BETWEEN.format(13)),
        (0, BETWEEN.format(0)),
        (-1, BETWEEN.format(-1)),
        ("0", BETWEEN.format(0)),
        ("-1", BETWEEN.format(-1)),
        ("13", BETWEEN.format(13)),
        ("first:0", BETWEEN.format(0)),
        ("last:13", BETWEEN.format(13)),
        ("every:0", BETWEEN.format(0)),
        ("spaced:13", BETWEEN.format(13)),
        ("ends:0+2", BETWEEN.format(0)),
        ("ends:7+6", BETWEEN.format(13)),
        ("abc", "keep_layers must be a number (12), 'half', 'first:12', "),
        ("", "or a list ([0, 2]), got ''."),
        ("0:8,", "or a list ([0, 2]), got '0:8,'."),
        (":8", "or a list ([0, 2]), got ':8'."),
        ("1.5", "or a list ([0, 2]), got '1.5'."),
        ("first", "keep_layers='first' is not complete: write it like 'first:2'."),
        ("first:", "keep_layers='first:' is not complete: write it like 'first:2'."),
        ("ends:4", "keep_layers='ends:4' is not complete: write it like 'ends:4+4'."),
        ("0-8", "has a dash, which leaves open whether the last layer is meant; write a half-open range with a colon"),
        ("0-8,10 - 12", "'0:8,10:12' leaves the last number out."),
        ("4:4", "keep_layers='4:4' has the empty range '4:4': its end must be above its start."),
        ("5:2,7", "has the empty range '5:2'"),
        ("0:13", NAMED.format(12)),
        ("3,12", NAMED.format(12)),
        ([12], NAMED.format("12 in [12].")),
        ([-1, 2], NAMED.format("-1 in [-1, 2].")),
        ([3, 1], "keep_layers must be in ascending order without repeats, got [3, 1]."),
        ([1, 1], "keep_layers must be in ascending order without repeats, got [1, 1]."),
        ("0:3,2", "keep_layers must be in ascending order without repeats, got '0:3,2'."),
        ([], "keep_layers must name at least one layer, got []."),
        ([0, True], "keep_layers must list whole numbers, got True in [0, True]."),
        ([0, 1.0], "keep_layers must list whole numbers, got 1.0 in [0, 1.0]."),
        (["1"], "keep_layers must list whole numbers, got '1' in ['1']."),
    ],
    ids=str,
)
def test_every_refusal_says_what_came_and_what_is_allowed(choice, message):
    """What is not in the grammar, or not in the reference, is refused with what came and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_layers(choice, 12)


@pytest.mark.parametrize("choice", ["auto", "rank:12", "influence:12", "angular:12", "loss:12"])
def test_measures_are_not_resolved_here(choice):
    """Selections by a measure are refused, because they need an analysis of sequences."""
    message = rf"keep_layers='{choice}' is not resolved here: .* inheritune_hf.analysis.resolve_measured"
    with pytest.raises(ValueError, match=message):
        resolve_layers(choice, 12)


@pytest.mark.parametrize("choice", [True, 1.5, None, {0, 1}], ids=str)
def test_other_types_are_refused(choice):
    """What is neither a number, a string nor a sequence is refused with what is allowed."""
    with pytest.raises(ValueError, match=r"keep_layers must be a number \(12\), .*, got "):
        resolve_layers(choice, 12)


SIZES = (100, 150, 200, 1_000_000, 2_500_000_000)


@pytest.mark.parametrize(
    ("choice", "count"),
    [("params:100", 1), ("params:0.1K", 1), ("params:199", 2), ("params:1M", 4), ("params:1.5m", 4), ("params:3B", 5)],
)
def test_sizes_take_as_many_first_layers_as_fit(choice, count):
    """A number of parameters selects the deepest student of first layers that has no more."""
    assert resolve_layers(choice, 5, SIZES) == tuple(range(count))


@pytest.mark.parametrize(
    ("choice", "sizes", "message"),
    [
        ("params:99", SIZES, "is too small: a student of the first layer alone has 100 parameters."),
        ("params:", SIZES, "keep_layers='params:' is not a number of parameters: write it like 'params:350M'"),
        ("params:-3", SIZES, "is not a number of parameters"),
        ("params:1X", SIZES, "is not a number of parameters"),
        (
            "params:1M",
            None,
            "keep_layers='params:1M' needs the reference's config, which says how many parameters fit.",
        ),
    ],
)
def test_sizes_that_fit_nothing_are_refused(choice, sizes, message):
    """A size that is none, or too small for one layer, is refused with what would do."""
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_layers(choice, 5, sizes)


def test_prefixes_are_recognised():
    """First layers without a gap are a prefix; others are not."""
    assert is_prefix((0, 1, 2))
    assert is_prefix((0,))
    assert not is_prefix((1, 2))
    assert not is_prefix((0, 2))


@pytest.mark.parametrize(
    ("layers", "text"), [((0, 1, 2), "0:3"), ((0, 1, 2, 10), "0:3,10"), ((3,), "3:4"), ((0, 2, 3), "0,2:4")]
)
def test_descriptions_are_compact(layers, text):
    """Layers are described in half-open ranges and single layers."""
    assert describe(layers) == text


@settings(deadline=None, derandomize=True, database=None)
@given(st.sets(st.integers(0, 30), min_size=1))
def test_descriptions_are_read_back(layers):
    """Any selection, described, resolves to itself."""
    ordered = tuple(sorted(layers))
    assert resolve_layers(describe(ordered), 31) == ordered


@settings(deadline=None, derandomize=True, database=None)
@given(st.integers(1, 60), st.data())
def test_spaced_layers_are_distinct_and_reach_both_ends(depth, data):
    """Evenly spaced layers are as many as asked for, distinct, and include the first and the last."""
    count = data.draw(st.integers(1, depth))
    layers = resolve_layers(f"spaced:{count}", depth)
    assert len(set(layers)) == count
    assert layers[0] == 0
    assert count == 1 or layers[-1] == depth - 1
    gaps = {right - left for left, right in itertools.pairwise(layers)}
    assert not gaps or max(gaps) - min(gaps) <= 1
