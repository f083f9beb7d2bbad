"""What makes a run this very run."""

import tiny
import torch
from datasets import Dataset

from inheritune_hf import InherituneConfig
from inheritune_hf.training import identity as module
from inheritune_hf.training.identity import content_fingerprint, dataset_fingerprint, run_identity

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


def test_files_of_a_commit_are_known_by_it(tmp_path, monkeypatch):
    """What lies in the Hub's cache is not read again: a commit does not change."""
    commits = ["a" * 40, "b" * 40]
    folders = [tmp_path / "models--x" / "snapshots" / commit for commit in commits]
    for folder in folders:
        tiny.write_reference(folder)
    monkeypatch.setattr(module, "find_weights", None)
    assert content_fingerprint(str(folders[0])) != content_fingerprint(str(folders[1]))


def test_selection_sets_of_other_kinds_are_told_apart():
    """The fingerprint that the cache rests on is of all rows, not of some."""
    rows = [[1, 2, 3]] * 500
    one = dataset_fingerprint(Dataset.from_dict({"input_ids": rows}))
    rows[301] = [1, 2, 4]
    assert dataset_fingerprint(Dataset.from_dict({"input_ids": rows})) != one


def test_a_cache_of_ones_own_is_found(tmp_path):
    """A repository of the Hub is known by its commit in the cache that it was fetched to, without network."""
    commit = "a" * 40
    folder = tmp_path / "models--owner--name"
    tiny.write_reference(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    found = content_fingerprint("owner/name", cache_dir=str(tmp_path))
    assert found == content_fingerprint("owner/name", cache_dir=str(tmp_path), local_files_only=True)
    assert found != content_fingerprint("owner/name", cache_dir=str(tmp_path), dtype=torch.bfloat16)


def test_files_are_read_again_when_they_change(tmp_path):
    """Other weights of the same size have another fingerprint; the same ones are read once."""
    folder = tmp_path / "reference"
    found = []
    for seed in (0, 0, 1):
        tiny.write_reference(folder, seed=seed)
        found.append(content_fingerprint(folder))
    assert found[0] == found[1] != found[2]
