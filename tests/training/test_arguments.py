"""Training arguments that are honoured, and those that are refused."""

import pytest
import tiny
import torch
from datasets import Dataset

from inheritune_hf import InherituneConfig
from inheritune_hf.training.arguments import REFUSED, check_arguments, dataset_fingerprint, run_identity

RECIPE = InherituneConfig(steps_per_round=40)

REFUSALS = {
    "num_train_epochs": {"num_train_epochs": 1},
    "load_best_model_at_end": {"load_best_model_at_end": True, "eval_steps": 3, "save_steps": 3},
    "save_strategy": {"save_strategy": "best", "metric_for_best_model": "loss"},
    "save_only_model": {"save_only_model": True},
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "ignore_data_skip": {"ignore_data_skip": True},
    "restore_callback_states_from_checkpoint": {"restore_callback_states_from_checkpoint": True},
    "resume_from_checkpoint": {"resume_from_checkpoint": "checkpoint-5"},
    "eval_on_start": {"eval_on_start": True},
    "eval_do_concat_batches": {"eval_do_concat_batches": False},
    "batch_eval_metrics": {"batch_eval_metrics": True},
    "train_sampling_strategy": {"train_sampling_strategy": "group_by_length"},
    "lr_scheduler_type": {"lr_scheduler_type": "reduce_lr_on_plateau"},
    "hub_strategy": {"push_to_hub": True, "hub_strategy": "every_save"},
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_arguments_say_why(tmp_path, name):
    """Each argument that cannot work with growth is refused by name, with its reason."""
    args = tiny.arguments(tmp_path, **REFUSALS[name])
    with pytest.raises(ValueError, match=f"cannot work with growth:\n(.*\n)*- {name}: ") as error:
        check_arguments(args, RECIPE)
    assert REFUSED[name][1] in str(error.value)


def test_all_complaints_come_at_once(tmp_path):
    """Two refused arguments are both named in one message."""
    args = tiny.arguments(tmp_path, eval_on_start=True, save_only_model=True)
    with pytest.raises(ValueError, match=r"save_only_model: (.*\n)*.*eval_on_start: "):
        check_arguments(args, RECIPE)


def test_fractions_are_of_a_round(tmp_path):
    """A fraction in eval, save and logging steps is one of a round, not of a run whose length is not known."""
    args = tiny.arguments(tmp_path, eval_steps=0.25, save_steps=0.5, logging_steps=0.1)
    ready = check_arguments(args, RECIPE)
    assert (ready.eval_steps, ready.save_steps, ready.logging_steps) == (10, 20, 4)
    assert args.eval_steps == 0.25


def test_length_of_a_round_is_needed(tmp_path):
    """Training without steps_per_round, or with a budget of nothing, is refused."""
    with pytest.raises(ValueError, match="steps_per_round is needed to train"):
        check_arguments(tiny.arguments(tmp_path), InherituneConfig())
    with pytest.raises(ValueError, match="max_steps must be above 0 to cap all rounds together, or -1"):
        check_arguments(tiny.arguments(tmp_path, max_steps=0), RECIPE)


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
