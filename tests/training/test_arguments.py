"""Training arguments that are honoured, and those that are refused."""

from dataclasses import replace

import pytest
import tiny

from inheritune_hf import InherituneConfig
from inheritune_hf.training.arguments import REFUSED, check_arguments

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
    "metric_for_best_model": {"metric_for_best_model": "loss"},
    "enable_jit_checkpoint": {"enable_jit_checkpoint": True},
    "bf16_full_eval": {"bf16_full_eval": True},
    "fp16_full_eval": {"fp16_full_eval": True},
    "eval_use_gather_object": {"eval_use_gather_object": True},
    "include_for_metrics": {"include_for_metrics": ["inputs"]},
    "label_names": {"label_names": ["targets"]},
    "optim": {"optim": "schedule_free_adamw"},
    "optim_target_modules": {"optim_target_modules": "all-linear"},
    "save_on_each_node": {"save_on_each_node": True},
    "dataloader_in_order": {"dataloader_in_order": False},
    "dataloader_persistent_workers": {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    "debug": {"debug": "underflow_overflow"},
    "accelerator_config": {"accelerator_config": {"even_batches": False}},
}


@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"parallelism_config", "use_liger_kernel"}))
def test_refused_arguments_say_why(tmp_path, name):
    """Each argument that cannot work with growth is refused by name, with its reason."""
    args = tiny.arguments(tmp_path, **REFUSALS[name])
    with pytest.raises(ValueError, match=f"cannot work with growth:\n(.*\n)*- {name}: ") as error:
        check_arguments(args, RECIPE)
    assert REFUSED[name] in str(error.value)


@pytest.mark.parametrize("name", ["parallelism_config", "use_liger_kernel"])
def test_what_needs_more_than_this_machine_is_refused(tmp_path, name):
    """What `TrainingArguments` takes only with devices or packages that are not here is refused by name too."""
    args = tiny.arguments(tmp_path)
    setattr(args, name, True)
    with pytest.raises(ValueError, match=f"- {name}: .*(while its tensors are split|with other kernels)"):
        check_arguments(args, RECIPE)


@pytest.mark.parametrize(
    "changed",
    [
        {"split_batches": True},
        {"dispatch_batches": True},
        {"use_seedable_sampler": False},
        {"gradient_accumulation_kwargs": {"num_steps": 2}},
    ],
    ids=lambda item: next(iter(item)),
)
def test_what_would_change_the_rows_of_a_step_is_refused(tmp_path, changed):
    """Of accelerate's settings those that say which rows a step sees are refused; the others are not."""
    args = tiny.arguments(tmp_path)
    check_arguments(args, RECIPE)
    for name, value in changed.items():
        setattr(args.accelerator_config, name, value)
    with pytest.raises(ValueError, match="- accelerator_config: split_batches, "):
        check_arguments(args, RECIPE)


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


@pytest.mark.parametrize("changes", [{"eval_strategy": "no"}, {"eval_steps": 10}, {"eval_steps": 0.5}])
def test_a_round_is_abandoned_by_its_evaluations(tmp_path, changes):
    """Without four of them before its end there are no two forecasts, and never a reason to end it."""
    recipe = replace(RECIPE, abandon=0.95)
    with pytest.raises(ValueError, match=r"abandon=0.95 needs 4 evaluations before a round of 40 steps ends, to"):
        check_arguments(tiny.arguments(tmp_path, **changes), recipe)
    check_arguments(tiny.arguments(tmp_path, eval_steps=9), recipe)
    check_arguments(tiny.arguments(tmp_path, eval_strategy="epoch"), recipe)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("cosine", {"min_lr_rate": 0.1}, r"lr_scheduler_kwargs=\{'min_lr_rate': 0.1\} do not fit .* 'cosine'"),
        ("warmup_stable_decay", None, r"lr_scheduler_kwargs=\{\} do not fit lr_scheduler_type 'warmup_stable_decay'"),
    ],
)
def test_a_schedule_and_its_settings_fit(tmp_path, kind, given, words):
    """What a schedule does not take, or lacks, is said before anything is measured."""
    with pytest.raises(ValueError, match=words):
        check_arguments(tiny.arguments(tmp_path, lr_scheduler_type=kind, lr_scheduler_kwargs=given), RECIPE)


def test_smoothed_labels_take_no_teachers_place(tmp_path):
    """Transformers computes a smoothed loss in place of the model's, a teacher's among them: one of them must go."""
    args, taught = tiny.arguments(tmp_path, label_smoothing_factor=0.1), {"distillation": "forward_kl=1.0"}
    with pytest.raises(
        ValueError, match=r"label_smoothing_factor=0\.1 would take the place of the recipe's distillation"
    ):
        check_arguments(args, InherituneConfig(steps_per_round=40, **taught))
    assert check_arguments(args, RECIPE).label_smoothing_factor == 0.1
