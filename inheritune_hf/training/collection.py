"""Python's own memory: what a process had before training need not be searched again at every boundary."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_collection() -> Iterator[None]:
    """
    Within, let a garbage collection look only at what was made within.

    Replacing a model takes collections, here and in Trainer, and each would search the hundred thousands of objects
    that the imported packages are made of. What was there before and is dropped within is collected afterwards. If
    somebody else has frozen objects, nothing is done: they are not ours to release.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
