"""Whatever is written as a selection or a recipe either means what it says or is refused with a message."""

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune_hf import InherituneConfig
from inheritune_hf.config import INHERIT_PRESETS, PARTS
from inheritune_hf.layers import describe, resolve_layers

FAST = settings(max_examples=200, deadline=None, derandomize=True, database=None)
MANY = settings(max_examples=10_000, deadline=None, derandomize=True, database=None)
SIZES = tuple(1000 * (layer + 1) for layer in range(100))

numbers = st.integers(-3, 60)
items = st.one_of(
    numbers.map(str), st.builds("{}:{}".format, numbers, numbers), st.builds("{}-{}".format, numbers, numbers)
)
forms = st.builds(
    "{}:{}".format,
    st.sampled_from(["first", "last", "every", "spaced", "params", "rank", "ends"]),
    st.one_of(items, st.text()),
)
ends = st.builds("ends:{}+{}".format, numbers, numbers)
sizes = st.builds("params:{}{}".format, st.floats(0, 200), st.sampled_from(["", "k", "K", "M", "b", "x"]))
texts = st.one_of(
    items,
    forms,
    ends,
    sizes,
    st.just("half"),
    st.just("auto"),
    st.lists(items, max_size=4).map(",".join),
    st.text(),
    st.text("0123456789:,+- firstlaendvyhp", max_size=12),
)
choices = st.one_of(
    texts, numbers, st.lists(numbers, max_size=6), st.lists(st.one_of(numbers, st.booleans(), st.text()))
)


def meaning(text, depth):
    """What a selection says, written a second time and as plainly as can be; None where it says nothing."""
    text = text.strip()
    if text == "half":
        return set(range(max(1, depth // 2)))
    found = re.fullmatch(r"[+]?(\d+)", text) or re.fullmatch(r"first:(\d+)", text)
    if found:
        return set(range(int(found[1])))
    found = re.fullmatch(r"last:(\d+)", text)
    if found:
        return set(range(depth)[-int(found[1]) :]) if int(found[1]) else set()
    found = re.fullmatch(r"ends:(\d+)\+(\d+)", text)
    if found:
        return {layer for layer in range(depth) if layer < int(found[1]) or layer >= depth - int(found[2])}
    found = re.fullmatch(r"every:(\d+)", text)
    if found:
        return {layer for layer in range(depth) if int(found[1]) and layer % int(found[1]) == 0}
    found = re.fullmatch(r"params:(\d+(?:\.\d+)?)([kmb]?)", text.lower())
    if found:
        limit = float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[found[2]]
        return {layer for layer in range(depth) if SIZES[layer] <= limit}
    if re.fullmatch(r"\s*\d+\s*(:\s*\d+\s*)?(,\s*\d+\s*(:\s*\d+\s*)?)*", text):
        layers = set()
        for item in text.split(","):
            start, _, stop = item.partition(":")
            layers |= set(range(int(start), int(stop))) if stop else {int(start)}
        return layers
    return None


def attempt(call):
    """What a call returns, or what it says as it refuses; any other error is a failure."""
    try:
        return call(), ""
    except ValueError as error:
        return None, str(error)


def check_selection(choice, depth):
    """A selection is what it says: ascending, without repeats, within the depth, and read back; or it is refused."""
    layers, refusal = attempt(lambda: resolve_layers(choice, depth, SIZES[:depth]))
    if refusal:
        assert "keep_layers" in refusal
        assert refusal.endswith((".", "?"))
        return
    assert layers
    assert list(layers) == sorted(set(layers))
    assert 0 <= layers[0] <= layers[-1] < depth
    assert resolve_layers(describe(layers), depth) == layers
    if isinstance(choice, str) and not choice.strip().startswith("spaced"):
        assert set(layers) == meaning(choice, depth)
    elif isinstance(choice, list):
        assert list(layers) == choice


recipes = st.fixed_dictionaries(
    {
        "keep_layers": choices,
        "inherit": st.one_of(
            st.sampled_from(sorted(INHERIT_PRESETS)), st.lists(st.sampled_from(PARTS)), st.text(), st.none()
        ),
        "attention_scale": st.sampled_from(["keep", "position", "none"]),
        "grow_by": st.integers(-1, 5),
        "max_layers": st.one_of(st.none(), st.integers(0, 5)),
        "steps_per_round": st.one_of(st.none(), st.integers(0, 10**6)),
        "target": st.one_of(st.just("reference"), st.floats(), st.text(max_size=3)),
        "tolerance": st.floats(),
        "confidence": st.one_of(st.none(), st.floats(0, 1.5)),
    }
)


def check_recipe(values, folder):
    """A recipe survives dictionary, JSON and YAML unchanged; or it is refused with what came."""
    recipe, refusal = attempt(lambda: InherituneConfig(**values))
    if refusal:
        assert "got" in refusal
        return
    assert InherituneConfig.from_dict(recipe.to_dict()) == recipe
    for ending, dump in (("json", json.dumps), ("yaml", yaml.safe_dump)):
        path = folder / f"recipe.{ending}"
        path.write_text(dump(recipe.to_dict()), encoding="utf-8")
        assert InherituneConfig.from_file(path) == recipe


@FAST
@given(choices, st.integers(1, 60))
def test_a_selection_is_what_it_says_or_is_refused(choice, depth):
    """Any selection parses to the layers it says or is refused with a message that names the setting."""
    check_selection(choice, depth)


@FAST
@given(recipes)
def test_a_recipe_survives_files(tmp_path_factory, values):
    """Any recipe goes through JSON and YAML unchanged, or is refused with a message."""
    check_recipe(values, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@MANY
@given(choices, st.integers(1, 60))
def test_many_selections_are_what_they_say(choice, depth):
    """The same, for ten thousand selections."""
    check_selection(choice, depth)


@pytest.mark.slow
@MANY
@given(recipes)
def test_many_recipes_survive_files(tmp_path_factory, values):
    """The same, for ten thousand recipes."""
    check_recipe(values, tmp_path_factory.getbasetemp())
