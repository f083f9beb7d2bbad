"""Documents that are in two sets: counted, and named for removal if asked; what judges stays."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from ..configuration import DataConfig
from .duplicates import Group, document_groups, index_documents, near_duplicates
from .sets import Integers, among, column

logger = logging.getLogger(__name__)

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Overlaps:
    """
    Which documents are in two sets.

    Args:
        shared (`int`): Selection and test documents that are, word for word, in another set too.
        near (`int`, *optional*): Training and selection documents nearly the same as one that judges; None if they
            were not looked for.
        drop_train (`list[np.ndarray]`): For each training source, which of its documents are to be removed.
        drop_selection (`np.ndarray`): Which selection documents are to be removed, because they are in the test set.
    """

    shared: int
    near: int | None
    drop_train: list[Mask]
    drop_selection: Mask

    @property
    def removed(self) -> int:
        """Documents to be removed."""
        return int(sum(mask.sum() for mask in [*self.drop_train, self.drop_selection]))


def find_overlaps(
    sets: Mapping[str, Dataset],
    digests: Sequence[Integers],
    groups: Sequence[Iterable[Group]],
    config: DataConfig,
) -> Overlaps:
    """
    Look for documents that are in two sets.

    Args:
        sets (`dict[str, datasets.Dataset]`): The tokenized selection and test sets.
        digests (`Sequence[np.ndarray]`): For each training source, the digests of its documents; none for a stream.
        groups (`Sequence[Iterable]`): For each training source, the tokens of its documents.
        config (`DataConfig`): What to look for, and whether to remove it.
    """
    selection, test = (column(sets[name], "digest") for name in ("selection", "test"))
    same = [among(own, np.concatenate([selection, test])) for own in digests]
    same_selection = np.isin(selection, test)
    near = [np.zeros(len(own), dtype=bool) for own in digests]
    near_selection = np.zeros(len(selection), dtype=bool)
    count = None
    if config.near_duplicates != "ignore":
        index = index_documents([sets["test"]], config.near_duplicate_threshold)
        near_selection[[item.document for item in near_duplicates(document_groups(sets["selection"]), index)]] = True
        near_selection &= ~same_selection
        if digests:
            index = index_documents([sets["test"], sets["selection"]], config.near_duplicate_threshold)
        for own, documents, found in zip(same, groups, near, strict=True):
            found[[item.document for item in near_duplicates(documents, index)]] = True
            found &= ~own
        count = int(near_selection.sum()) + sum(int(item.sum()) for item in near)
        if count:
            logger.warning(
                "%d documents are nearly the same as one of the selection or test set%s.",
                count,
                ": they are left out"
                if config.near_duplicates == "remove"
                else "; near_duplicates 'remove' leaves them out",
            )
    drop_near, drop_same = config.near_duplicates == "remove", config.duplicates == "remove"
    return Overlaps(
        count_shared(selection, test, digests),
        count,
        [(one & drop_near) | (other & drop_same) for one, other in zip(near, same, strict=True)],
        (near_selection & drop_near) | (same_selection & drop_same),
    )


def count_shared(selection: Integers, test: Integers, train: Sequence[Integers]) -> int:
    """Return how many selection and test documents, told by their digests, are in another set too."""
    trained = [np.unique(own[among(own, np.concatenate([selection, test]))]) for own in train]
    known = np.concatenate([*trained, np.empty(0, dtype=np.int64)])
    return int(np.isin(selection, known).sum() + np.isin(test, np.concatenate([known, selection])).sum())
