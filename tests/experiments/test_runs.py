"""What a run refuses before it measures for hours."""

from types import SimpleNamespace

import pytest

from inheritune_hf import InherituneConfig
from inheritune_hf.experiments.runs import measured_recipe, watch_collapse


@pytest.mark.parametrize("limit", [None, 4])
def test_a_measure_needs_the_depth_to_stop_at(limit):
    """A measure may choose layers that cannot grow: without max_layers of as many the run is refused unmeasured."""
    recipe = InherituneConfig(keep_layers="loss:2", max_layers=limit)
    with pytest.raises(ValueError, match=r"keep_layers='loss:2' may choose layers anywhere, .* set max_layers to 2 to"):
        measured_recipe(recipe, None, None)


@pytest.mark.parametrize("sharding", ["fsdp", "zero3"])
def test_sharded_students_are_not_watched(sharding):
    """A process that has parts of the weights cannot measure the student, and the reference is not measured either."""
    trainer = SimpleNamespace(sharding=sharding)
    assert watch_collapse(trainer, None, None) is None
    with pytest.raises(ValueError, match=f"collapse_every=2 measures .* under {sharding} has a part of each weight"):
        watch_collapse(trainer, None, 2)
