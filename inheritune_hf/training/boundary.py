"""What lies between two rounds: the next student, and what of the last round goes on with it."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, TrainerState
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCALER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data import CausalCollator
from ..records import Match, Round, RunState
from ..students import from_pretrained_inherited
from .carry import by_name, by_place, carry_optimizer, group_names
from .expansion import expand_student, parameter_origins
from .feeding import check_boundaries
from .staging import Seal, last_checkpoint, read_trainer_state, round_trainer_state, stage_round

logger = logging.getLogger(__name__)

#: What a student takes over from the way its reference is loaded, and a checkpoint does not keep.
_MODEL_SETTINGS = ("attn_implementation", "experts_implementation")

if TYPE_CHECKING:
    from .trainer import InherituneTrainer


def stage_next(trainer: InherituneTrainer, state: RunState) -> None:
    """Put the starting point of the round that comes next on disk."""
    found = last_checkpoint(trainer.output_dir, state.round_index - 1)
    before = found[0] if found else None
    student = trainer.next_student(state, before)
    student.config.inheritune["data"] = {
        "train": state.identity["train_dataset"],
        "selection": state.identity["eval_dataset"],
    }
    history = read_trainer_state(before) if before else first_log(trainer, state)
    stage_round(
        trainer.output_dir,
        state.round_index,
        student,
        round_trainer_state(history, trainer.args),
        {**(carried_states(trainer, state, before, student) if before else {}), **loss_scale(trainer, before)},
        sorted(before.glob("rng_state*.pth")) if before and trainer.inheritune_config.continues_data else (),
    )


def load_student(trainer: InherituneTrainer, state: RunState, folder: Path) -> PreTrainedModel:
    """
    Return the student in a staged round or a checkpoint, ready to be trained.

    Raises:
        ValueError: If the folder holds a student of another depth, or one that lets documents see each other although
            their boundaries are to be kept.
    """
    kwargs = trainer.reference_kwargs
    settings = {name: kwargs[name] for name in _MODEL_SETTINGS if name in kwargs}
    student: PreTrainedModel = trainer.student_class.from_pretrained(folder, dtype=torch.float32, **settings)
    if len(state.layers) != student.config.get_text_config(decoder=True).num_hidden_layers:
        raise ValueError(f"{folder} does not hold a student of {len(state.layers)} layers; it was changed.")
    student.config.use_cache = trainer.args.use_cache
    collator = trainer.data_collator
    if isinstance(collator, CausalCollator) and collator.end_token_id is not None:
        check_boundaries(student)
    return student


def finished_round(trainer: InherituneTrainer, state: RunState, seal: Seal, match: Match) -> Round:
    """Return the record of the round that ended with the checkpoint of `seal`."""
    log = read_trainer_state(trainer.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{seal.step}")
    return Round(
        index=state.round_index,
        kept_layers=state.layers,
        start_step=state.start_step,
        end_step=seal.step,
        tokens=seal.tokens,
        epochs=round(seal.epochs, 4),
        flops=float(log.total_flos - sum(item.flops for item in state.rounds)),
        seconds=round(seal.seconds, 3),
        loss=seal.validation.loss if seal.validation else float("nan"),
        target=trainer.target_loss() or float("nan"),
        match=match,
    )


def tell_round(trainer: InherituneTrainer, item: Round) -> None:
    """Tell the log and the trackers how a round ended."""
    logger.info(
        "round %d · %d layers · %.4f nats/token · target %.4f · %s%s",
        item.index,
        item.layers,
        item.loss,
        item.target,
        "matched" if item.match.matched else f"missed by {item.match.difference:+.4f}",
        f" ({item.match.note})" if item.match.note else "",
    )
    # A round that was judged when the run went on after a kill has no step in this process to be told at.
    if trainer.state.global_step == item.end_step:
        figures = {"layers": item.layers, "loss": item.loss, "target": item.target, "difference": item.match.difference}
        figures |= {"matched": int(item.match.matched), "tokens": item.tokens, "flops": item.flops}
        trainer.log({f"round/{name}": float(value) for name, value in figures.items()})


def next_student(trainer: InherituneTrainer, state: RunState, before: Path | None) -> PreTrainedModel:
    """Return the round's student: inherited afresh, or the one in the checkpoint `before` with blocks added."""
    recipe, seed = trainer.inheritune_config, trainer.args.seed
    if before is None or recipe.growth == "reinherit":
        chosen = dataclasses.replace(recipe, keep_layers=list(state.layers))
        return from_pretrained_inherited(trainer.reference, chosen, seed=seed, **trainer.reference_kwargs)
    return expand_student(
        _trained(trainer, before),
        state.rounds[-1].kept_layers,
        trainer.reference,
        state.layers,
        recipe,
        seed + state.round_index,
        trainer.reference_kwargs,
    )


def carried_states(
    trainer: InherituneTrainer, state: RunState, before: Path, student: PreTrainedModel
) -> dict[str, Any]:
    """
    Return the optimizer and scheduler states with which the round begins, by file name; none if both begin afresh.

    The trainer holds no model afterwards.
    """
    recipe = trainer.inheritune_config
    keep_state, keep_rates = recipe.optimizer_state == "keep", recipe.lr_schedule == "continue"
    if not keep_state and not keep_rates:
        return {}
    trained = _trained(trainer, before)
    names, optimizers, schedulers = [], [], []
    for model in (trained, student):
        trainer.hold(model)
        optimizers.append(trainer.create_optimizer())
        schedulers.append(trainer.create_scheduler(trainer.budget))
        names.append(group_names(optimizers[-1], model))
    origins = parameter_origins(trained, state.rounds[-1].kept_layers, student, state.layers)
    file = OPTIMIZER_NAME_BIN if trainer.is_fsdp_enabled else OPTIMIZER_NAME
    saved = torch.load(before / file, map_location="cpu", weights_only=True)
    if trainer.is_fsdp_enabled:
        names[0], saved = [list(group["params"]) for group in saved["param_groups"]], by_place(saved)
    optimizer = carry_optimizer(saved, names[0], optimizers[1].state_dict(), names[1], origins, keep_state, keep_rates)
    scheduler = schedulers[1].state_dict()
    if trainer.is_fsdp_enabled:
        optimizer = by_name(optimizer, names[1], optimizers[1])
    if keep_rates:
        scheduler = torch.load(before / SCHEDULER_NAME, weights_only=True)
    trainer.hold(trainer.skeleton(state.layers))
    return {file: optimizer, SCHEDULER_NAME: scheduler}


def loss_scale(trainer: InherituneTrainer, before: Path | None) -> dict[str, Any]:
    """
    Return the state of the loss scaler with which the round begins, by file name; none without fp16.

    It goes on with the optimizer's state. The scaler itself outlives a round, so what it begins with is always said.
    """
    scaler: Any = trainer.accelerator.scaler
    if scaler is None:
        return {}
    if before is not None and trainer.inheritune_config.optimizer_state == "keep":
        return {SCALER_NAME: torch.load(before / SCALER_NAME, weights_only=True)}
    return {SCALER_NAME: {**scaler.state_dict(), "scale": scaler._init_scale, "_growth_tracker": 0}}


def first_log(trainer: InherituneTrainer, state: RunState) -> TrainerState:
    """Return the log a run begins with: the reference's figures, whether they were measured just now or before."""
    reference = state.reference
    log: Any = TrainerState()
    log.stateful_callbacks = trainer.state.stateful_callbacks
    if reference is not None:
        figures = {"loss": reference.loss, "perplexity": reference.perplexity, "accuracy": reference.accuracy}
        log.log_history = [{**{f"reference_{name}": value for name, value in figures.items()}, "step": 0}]
    begun: TrainerState = log
    return begun


def learned_names(trainer: InherituneTrainer, state: RunState) -> frozenset[str]:
    """Return the names of the parameters in the round's student that were trained in rounds before."""
    if not state.rounds:
        return frozenset()
    last = state.rounds[-1].kept_layers
    skeleton = trainer.skeleton(last)
    return frozenset(parameter_origins(skeleton, last, trainer.student, state.layers))


def _trained(trainer: InherituneTrainer, checkpoint: Path) -> PreTrainedModel:
    model: PreTrainedModel = trainer.student_class.from_pretrained(checkpoint, dtype=torch.float32)
    return model
