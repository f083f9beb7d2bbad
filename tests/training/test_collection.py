"""Collections during a run look at what the run made, and nothing stays frozen afterwards."""

import gc
import weakref

import pytest
import tiny
from transformers import TrainerCallback

from inheritune_hf.training.speed import frozen_gc


class Ring:
    """A cycle that only a collection can free."""

    def __init__(self):
        self.me = self


def test_what_is_made_within_is_collected():
    """A cycle made and dropped within is gone after a collection; one from before is gone when it is over."""
    before = Ring()
    old = weakref.ref(before)
    with frozen_gc():
        young = weakref.ref(Ring())
        del before
        gc.collect()
        assert young() is None
        assert old() is not None
    gc.collect()
    assert old() is None


def test_released_after_an_error():
    """Nothing stays frozen when training fails."""

    @frozen_gc()
    def fail():
        raise RuntimeError(gc.get_freeze_count())

    with pytest.raises(RuntimeError) as error:
        fail()
    assert error.value.args[0] > 0
    assert not gc.get_freeze_count()


def test_what_others_froze_stays():
    """A process that froze its objects itself finds them as they were."""
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with frozen_gc():
            assert gc.get_freeze_count() == count
        assert gc.get_freeze_count() == count
    finally:
        gc.unfreeze()


def test_a_run_searches_only_its_own(tmp_path):
    """While rounds are trained the packages' objects are set aside; afterwards they are back."""
    reference = tiny.write_reference(tmp_path / "reference")
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(gc.get_freeze_count())

    tiny.make_trainer(tmp_path / "run", reference, {"max_layers": 2}, callbacks=[Watch()]).train()
    assert min(seen) > 10_000
    assert not gc.get_freeze_count()
