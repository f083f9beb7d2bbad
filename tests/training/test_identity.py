"""What makes a run this very run."""

import tiny
import torch
from datasets import Dataset

from inheritune_hf import InherituneConfig
from inheritune_hf.training.identity import dataset_fingerprint, run_identity

RECIPE = InherituneConfig(steps_per_round=40)


def test_identity_holds_what_changes_the_numbers(tmp_path):
    """Learning rate and recipe are part of a run; its depth limit, budget and logging are not."""

    def identity(recipe=RECIPE, **changes):
        return run_identity(tiny.arguments(tmp_path, **changes), recipe, {"train_dataset": "a"})

    assert identity() == identity(max_steps=5, logging_steps=1)
    assert identity() == identity(InherituneConfig(steps_per_round=40, max_layers=3))
    assert identity() != identity(learning_rate=1e-4)
    assert identity() != identity(InherituneConfig(steps_per_round=40, tolerance=0.5))


def test_fingerprints_tell_data_sets_apart():
    """Other rows are another data set, whatever kind of data set holds them."""
    rows = [{"input_ids": [1, 2]}, {"input_ids": [3, 4]}]
    changed = [{"input_ids": [1, 2]}, {"input_ids": [3, 5]}]
    for kind in (Dataset.from_list, list):
        assert dataset_fingerprint(kind(rows)) == dataset_fingerprint(kind(rows))
        assert dataset_fingerprint(kind(rows)) != dataset_fingerprint(kind(changed))

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    assert dataset_fingerprint(Stream()) is None


def test_selection_sets_of_other_kinds_are_told_apart():
    """The fingerprint that the cache rests on is of all rows, not of some."""
    rows = [[1, 2, 3]] * 500
    one = dataset_fingerprint(Dataset.from_dict({"input_ids": rows}))
    rows[301] = [1, 2, 4]
    assert dataset_fingerprint(Dataset.from_dict({"input_ids": rows})) != one
