"""Every training argument: honoured as plain Trainer honours it, or refused by name."""

import pytest
import tiny
import torch
from test_trainer import run_program
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from inheritune_hf.training.identity import numeric_arguments

#: Eight steps of twelve rows pass the end of an epoch of eighty.
BASE = {"per_device_train_batch_size": 12, "eval_strategy": "no", "save_strategy": "no"}
RECIPE = {"keep_layers": 2, "max_layers": 2, "steps_per_round": 8}

#: A setting that changes the numbers, for each argument that can.
SETTINGS = {
    "learning_rate": [{"learning_rate": 3e-3}],
    "lr_scheduler_type": [
        {"lr_scheduler_type": name}
        for name in ("linear", "polynomial", "inverse_sqrt", "constant", "constant_with_warmup")
    ],
    "lr_scheduler_kwargs": [
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}},
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": 3, "min_lr_ratio": 0.1},
        },
    ],
    "warmup_steps": [{"warmup_steps": 0}, {"warmup_steps": 0.5}],
    "optim": [{"optim": name} for name in ("adamw_torch", "sgd", "adafactor", "adagrad", "rmsprop")],
    "optim_args": [{"optim": "rmsprop", "optim_args": "momentum=0.5"}],
    "weight_decay": [{"weight_decay": 0.3}],
    "adam_beta1": [{"adam_beta1": 0.5}],
    "adam_beta2": [{"adam_beta2": 0.9}],
    "adam_epsilon": [{"adam_epsilon": 1e-3}],
    "max_grad_norm": [{"max_grad_norm": 0.05}, {"max_grad_norm": 0.0}],
    "label_smoothing_factor": [{"label_smoothing_factor": 0.2}],
    "neftune_noise_alpha": [{"neftune_noise_alpha": 5.0}],
    "use_cache": [{"use_cache": True}],
    "per_device_train_batch_size": [{"per_device_train_batch_size": 9}],
    "gradient_accumulation_steps": [{"gradient_accumulation_steps": 3}],
    "train_sampling_strategy": [{"train_sampling_strategy": "sequential"}],
    "dataloader_drop_last": [{"dataloader_drop_last": True}],
    "seed": [{"seed": 3}],
    "data_seed": [{"data_seed": 11}],
    "bf16": [{"bf16": True}],
}

#: Those of them that change how numbers are rounded, and nothing else.
ROUNDING = {"use_cache", "bf16"}

#: Arguments that change how a step is computed, and on this machine no bit of what comes out.
SAME_BITS = [
    {"activation_checkpointing": True},
    {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 2}},
    {"average_tokens_across_devices": False},
    {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3, "dataloader_multiprocessing_context": "fork"},
    {
        "eval_accumulation_steps": 1,
        "eval_delay": 4,
        "include_num_input_tokens_seen": "all",
        "logging_first_step": True,
        "prediction_loss_only": True,
        "remove_unused_columns": False,
        "torch_empty_cache_steps": 2,
    },
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny")


def ours(reference, folder, recipe=RECIPE, **changes):
    trainer = tiny.make_trainer(folder, reference, recipe, **{**BASE, **changes})
    trainer.train()
    return trainer


def plain(reference, folder, **changes):
    trainer = tiny.plain_trainer(folder, reference, layers=2, steps=8, **{**BASE, **changes})
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def base_hash(reference, tmp_path_factory):
    return tiny.weights_hash(plain(reference, tmp_path_factory.mktemp("base")).model)


def log_of(trainer):
    return [row for row in tiny.without_times(trainer.state.log_history) if "loss" in row]


def test_every_argument_that_changes_numbers_is_compared():
    """What makes a run another run is compared with plain Trainer below; fp16 alone needs a GPU."""
    names = set(numeric_arguments(TrainingArguments(use_cpu=True)))
    assert names - {"world_size", "fp16", "average_tokens_across_devices"} == set(SETTINGS)


def test_nothing_set_equals_plain_trainer(reference, tmp_path, base_hash):
    """The run that the settings below are changes of."""
    assert tiny.weights_hash(ours(reference, tmp_path).student) == base_hash


def cases():
    """The first setting of each argument, and its others as longer proofs."""
    for changes in SETTINGS.values():
        for index, change in enumerate(changes):
            name = "-".join(f"{key}={value}" for key, value in change.items())
            yield pytest.param(change, id=name, marks=[pytest.mark.slow] if index else [])


@pytest.mark.parametrize("changes", list(cases()))
def test_a_setting_does_what_it_does_in_plain_trainer(reference, tmp_path, base_hash, changes):
    """Without growth a run ends with the bits and the log of `Trainer` with that setting, not with those without it."""
    one, other = ours(reference, tmp_path / "ours", **changes), plain(reference, tmp_path / "plain", **changes)
    assert tiny.weights_hash(one.student) == tiny.weights_hash(other.model)
    assert log_of(one) == log_of(other)
    # A setting that only rounds otherwise may change no bit on some processor.
    if not ROUNDING.intersection(changes):
        assert tiny.weights_hash(one.student) != base_hash
    assert all(getattr(one.args, name) == getattr(other.args, name) for name in changes)


@pytest.mark.slow
@pytest.mark.parametrize("average", [True, False])
def test_two_processes_do_what_they_do_in_plain_trainer(reference, tmp_path, average):
    """So does a run in two processes, with accumulation, however they weigh each other's tokens."""
    args = {**BASE, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    args["average_tokens_across_devices"] = average
    settings = {"reference": reference, "recipe": RECIPE, "args": args, "result": str(tmp_path / "result.json")}
    ours = run_program({**settings, "output_dir": str(tmp_path / "ours")}, processes=2)
    other = run_program({**settings, "output_dir": str(tmp_path / "plain"), "plain_steps": 8}, processes=2)
    assert ours["world_size"] == other["world_size"] == 2
    assert ours["weights"] == other["weights"]


@pytest.mark.parametrize("changes", SAME_BITS, ids=lambda item: "-".join(item))
def test_settings_that_change_no_bit(reference, tmp_path, base_hash, changes):
    """How rows are loaded, activations kept and figures gathered changes nothing about what is trained."""
    assert tiny.weights_hash(ours(reference, tmp_path, **changes).student) == base_hash


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.* is deprecated:FutureWarning")
def test_old_name_of_activation_checkpointing(reference, tmp_path, base_hash):
    """The deprecated name works as long as Transformers has it."""
    assert tiny.weights_hash(ours(reference, tmp_path, gradient_checkpointing=True).student) == base_hash


def test_full_determinism(reference, tmp_path, base_hash):
    """It is switched on at a round's start, and changes no bit here."""
    before = torch.are_deterministic_algorithms_enabled()
    try:
        assert tiny.weights_hash(ours(reference, tmp_path, full_determinism=True).student) == base_hash
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_counts_go_on_over_rounds(reference, tmp_path):
    """Tokens that were seen are counted over all rounds, in the one log; figures of memory do not disturb that."""
    settings = {"include_num_input_tokens_seen": "all", "skip_memory_metrics": False}
    trainer = ours(reference, tmp_path, {**RECIPE, "keep_layers": 1}, **settings)
    seen = [row["num_input_tokens_seen"] for row in trainer.state.log_history if "loss" in row]
    assert seen == sorted(seen)
    assert seen[-1] == sum(item.tokens for item in trainer.rounds)


class Scales(TrainerCallback):
    """Give a trainer on a CPU the loss scaler of fp16, and write down with which scale its steps begin."""

    def __init__(self, trainer):
        self.trainer, self.scales = trainer, []
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, **kwargs):
        self.scales.append(self.trainer.accelerator.scaler.get_scale())


@pytest.mark.parametrize(
    ("recipe", "goes_on"), [({}, False), ({"growth": "continue", "optimizer_state": "keep"}, True)]
)
def test_loss_scale_of_a_round(reference, tmp_path, recipe, goes_on):
    """The scale of fp16 begins afresh with each round, or goes on with the optimizer's state."""
    trainer = tiny.make_trainer(tmp_path, reference, {**RECIPE, "keep_layers": 1, **recipe}, **BASE)
    scales = Scales(trainer).scales
    trainer.train()
    assert scales[:8] == [256.0] * 3 + [512.0] * 3 + [1024.0] * 2
    assert scales[8] == (1024.0 if goes_on else 256.0)


@pytest.mark.parametrize("callback", [EarlyStoppingCallback, EarlyStoppingCallback()])
def test_early_stopping_is_refused(reference, tmp_path, callback):
    """It would judge a student by the evaluations of another; the error says what to do instead."""
    with pytest.raises(ValueError, match=r"EarlyStoppingCallback would compare .* set match_at 'evaluation'"):
        tiny.make_trainer(tmp_path, reference, callbacks=[callback])
    trainer = tiny.make_trainer(tmp_path, reference)
    with pytest.raises(ValueError, match="leave it out"):
        trainer.add_callback(callback)


def test_a_callback_that_stops_interrupts_the_run(reference, tmp_path):
    """Another callback's wish to stop is a pause: the run is saved and the same command goes on to the same bits."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 13

    recipe = {**RECIPE, "keep_layers": 1}
    whole = ours(reference, tmp_path / "whole", recipe)
    cut = tiny.make_trainer(tmp_path / "cut", reference, recipe, [Stop()], **BASE)
    cut.train()
    assert cut.outcome == "interrupted"
    assert tiny.weights_hash(ours(reference, tmp_path / "cut", recipe).student) == tiny.weights_hash(whole.student)
