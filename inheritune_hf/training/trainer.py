"""The loop inside Transformers' own Trainer: one `super().train()` for each round, each begun from disk."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
    enable_full_determinism,
    set_seed,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from ..configuration import InherituneConfig
from ..data import CausalCollator, check_tokenizer
from ..data.stream import PackedStream
from ..evaluation import compare_losses
from ..growth import GrowthRule, conclude, judge, reopen, round_end, rule_from_recipe
from ..publishing import push_student, save_student
from ..records import Lineage, Match, Outcome, Round, RunRecord, RunState, Validation, decode
from ..students import Reference, load_reference_config, prefix_sizes, student_skeleton
from .arguments import check_arguments
from .boundary import finished_round, learned_names, load_student, next_student, stage_next, tell_round
from .callbacks import RoundCallback, RoundProgress, RoundsCallbackHandler, on_main_process
from .collection import quick_collection
from .compilation import as_written, block_compiler, compile_blocks
from .distillation import with_teacher
from .distribution import DistributedTrainer, build_whole_models
from .feeding import check_data, pad_token, quick_rows
from .identity import run_facts, run_identity
from .reference_loss import measure_reference
from .staging import (
    Seal,
    check_identity,
    keep_losses,
    last_checkpoint,
    read_state,
    read_trainer_state,
    round_folder,
    seal_checkpoint,
    unseal_checkpoint,
    write_state,
)
from .trackers import one_run

logger = logging.getLogger(__name__)


class InherituneTrainer(DistributedTrainer):
    """
    Train a student of the reference's first layers, and grow it until its loss matches the reference's.

    Before `train()` the attribute `model` is an empty skeleton of the first student (no memory, no weights); afterwards
    it is the last round's student. The reference is in memory only while its loss is measured, before training.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Id, path or loaded model. A loaded model is copied to be measured and never changed.
        inheritune_config (`InherituneConfig`):
            The recipe; `steps_per_round` is needed.
        args (`transformers.TrainingArguments`):
            As for `Trainer`. `max_steps` above 0 caps all rounds together; warm-up and schedule count per round. What
            cannot work with growth is refused with a reason.
        train_dataset (`datasets.Dataset`, `torch.utils.data.Dataset` or `PackedStream`):
            Rows with `input_ids` (and `labels`, -100 where a token does not count).
        eval_dataset (`datasets.Dataset` or `torch.utils.data.Dataset`):
            The selection set: every decision rests on it. A column `document` says which rows belong together.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The reference's tokenizer, saved with every student.
        data_collator (`Callable`, *optional*):
            Turns rows into a batch with `labels`; pads and labels plain rows if not given.
        callbacks (`list[TrainerCallback]`, *optional*):
            They hear one beginning and one end of training, however many rounds there are.
        reference_kwargs (`dict`, *optional*):
            How the reference is loaded (`revision`, `token`, `attn_implementation`, ...), as for `from_pretrained`.
        reference_cache (`bool`, *optional*, defaults to `True`):
            Whether a loss of the reference that was measured before, in any run, is taken from the user's cache.
        growth_rule (`GrowthRule`, *optional*):
            How students grow and which of them may match; the recipe's rule if not given.

    Raises:
        ValueError: If arguments, recipe, data and reference do not fit together; nothing has been trained then.
    """

    def __init__(
        self,
        reference: str | os.PathLike[str] | PreTrainedModel,
        inheritune_config: InherituneConfig,
        args: TrainingArguments,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Tensor]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        reference_kwargs: Mapping[str, Any] | None = None,
        reference_cache: bool = True,
        growth_rule: GrowthRule | None = None,
    ) -> None:
        self.reference: Reference = reference
        self.reference_kwargs = dict(reference_kwargs or {})
        self.reference_cache = reference_cache
        self.inheritune_config = inheritune_config
        ready = check_arguments(args, inheritune_config)
        self._compiler = block_compiler(args, inheritune_config)
        self.budget = args.max_steps
        self.reference_config = load_reference_config(reference, **self.reference_kwargs)
        self.reference_depth: int = self.reference_config.get_text_config(decoder=True).num_hidden_layers
        self.growth_rule = growth_rule or rule_from_recipe(
            inheritune_config, self.reference_depth, prefix_sizes(self.reference_config)
        )
        check_data(train_dataset, eval_dataset, self.reference_config)
        if processing_class is not None:
            text = self.reference_config.get_text_config(decoder=True)
            check_tokenizer(processing_class, text.vocab_size, getattr(text, "eos_token_id", None))
        self._round_callback = RoundCallback()
        build_whole_models()
        skeleton = self.skeleton(self.growth_rule.first)
        #: The class of every student: sharding changes that of the model in training.
        self.student_class = type(skeleton)
        if isinstance(train_dataset, PackedStream) and self.budget <= 0:
            ready.max_steps = inheritune_config.steps_per_round or -1  # Trainer asks; each round says its own
        super().__init__(
            inheritune_config,
            ready,
            model=skeleton,
            train_dataset=quick_rows(train_dataset, data_collator),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator or CausalCollator(pad_token(processing_class)),
            callbacks=[*(callbacks or []), self._round_callback],
            loss=inheritune_config.loss,
        )
        self._show_one_run()
        self._state = RunState(identity={}, layers=self.growth_rule.first)
        self._round_tokens = 0
        self._round_began = 0.0
        self._validated_at: int | None = None
        self._confirmed = self._matched_before = False

    # What a run has and leaves

    @property
    def output_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.args.output_dir or "trainer_output")

    @property
    def student(self) -> PreTrainedModel:
        """The model in training, or the result after it."""
        model: PreTrainedModel = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The reference's tokenizer."""
        return self.processing_class if isinstance(self.processing_class, PreTrainedTokenizerBase) else None

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended."""
        return self._state.outcome

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The finished rounds, failed ones included."""
        return self._state.rounds

    @property
    def reference_validation(self) -> Validation | None:
        """The reference's loss on the selection set; None before it is measured or if the target is a number."""
        return self._state.reference

    @property
    def run_record(self) -> RunRecord:
        """Recipe, lineage, rounds and outcome: what is saved beside a student's weights."""
        self._require_student()
        return RunRecord(
            recipe=self.inheritune_config.to_dict(),
            lineage=decode(Lineage, self.student.config.inheritune, "the student's config.inheritune"),
            rounds=self.rounds,
            outcome=self.outcome,
            target=self.target_loss(),
            training=self._state.training,
        )

    # The loop

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Run rounds until the target is matched, the layers or the budget run out, or the run is interrupted.

        If `output_dir` holds this very run it goes on from its last complete checkpoint; a finished run goes on if
        `max_steps` or `max_layers` was raised.

        Returns:
            `TrainOutput`: Steps of all rounds, the last round's training loss, and metrics: `matched` (0 or 1),
            `layers`, `loss` and `reference_loss` in nats per token, `rounds`.

        Raises:
            ValueError: If `output_dir` holds another run, or something to resume from or to search over is passed.
            FloatingPointError: If a loss or a weight is not finite; the last good checkpoint is kept.
            KeyboardInterrupt: If it was asked to stop after its last step.
        """
        if resume_from_checkpoint or trial is not None:
            raise ValueError(
                "train() takes neither resume_from_checkpoint (a run goes on by itself from the last checkpoint in "
                "output_dir) nor trial; call train() without them."
            )
        self._state = self._open_run()
        training_loss = float("nan")
        if self.outcome is None:
            self.hold(self.skeleton(self._state.layers))  # lets go of what an earlier call left
        with quick_collection(), self._round_callback.listening():
            while self.outcome is None:
                training_loss = self._run_round()
        self._restore_student()
        self._rounds_handler.on_run_end(self.args, self.state, self.control)
        metrics: dict[str, Any] = {
            "matched": int(self.outcome == "matched"),
            "layers": len(self._state.layers),
            "rounds": len(self.rounds),
            "reference_loss": self.target_loss(),
            "train_loss": training_loss,
        }
        if self.rounds:
            metrics["loss"] = self.rounds[-1].loss
        return TrainOutput(self.state.global_step, training_loss, metrics)

    def _open_run(self) -> RunState:
        """Read the run in `output_dir`, or begin one by measuring the reference."""
        identity = self.identity()
        found: RunState | None = on_main_process(read_state(self.output_dir) if self.args.should_save else None)
        state = found
        if state is None:
            state = RunState(identity=identity, layers=self.growth_rule.first)
        check_identity(self.output_dir, state.identity, identity)
        if state.outcome is not None:
            state = reopen(state, self.growth_rule, self.budget)
        if state.reference is None and self.inheritune_config.target == "reference":
            state = dataclasses.replace(state, reference=self.measure_reference())
            self._write(state)
        return state

    def measure_reference(self, dataset: Any = None, metric_key_prefix: str = "reference") -> Validation:
        """
        Measure the reference's loss by the loop that judges students, then let go of it; once for the same data.

        Args:
            dataset (`datasets.Dataset`, *optional*): Sequences to measure on; the selection set if not given.
            metric_key_prefix (`str`, *optional*, defaults to `"reference"`): Prefix of the logged figures.

        Returns:
            `Validation`: Sums per document.
        """
        self.hold(self.skeleton(self._state.layers))
        given = self.eval_dataset if dataset is None else dataset
        validation = measure_reference(self, given, metric_key_prefix, self.reference_cache)
        self.hold(self.skeleton(self._state.layers))
        if self.rounds and self.outcome is not None:
            self._restore_student()
        return validation

    def identity(self) -> dict[str, Any]:
        """Return what makes a run this very run: its recipe, its numeric arguments, its reference and its data."""
        return run_identity(self.args, self.inheritune_config, run_facts(self))

    def skeleton(self, layers: Sequence[int]) -> PreTrainedModel:
        """Return the student of `layers` without weights."""
        return student_skeleton(self.reference_config, layers)

    def next_student(self, state: RunState, before: Path | None) -> PreTrainedModel:
        """Return the student with which a round begins; `before` is the last round's last checkpoint, if any."""
        return next_student(self, state, before)

    def tell_round(self, finished: Round) -> None:
        """Tell the log and the trackers how a round ended."""
        tell_round(self, finished)

    def _run_round(self) -> float:
        """Train the current student to the end of its round, judge it, and write down what comes next."""
        self._stage()
        state = self._state
        end = round_end(state, self.growth_rule, self.budget)
        folder, seal = self._last_checkpoint() or (round_folder(self.output_dir, state.round_index), None)
        self.hold(load_student(self, self._state, folder))
        self._describe_round()
        training_loss = float("nan")
        if seal is None or (seal.step < end and not seal.confirmed):
            self._begin_round(seal, folder)
            self.args.max_steps = end
            with with_teacher(self):
                training_loss = super().train(self.resume_from(folder, seal is not None)).training_loss
            if self.state.global_step < end and not self._confirmed:
                self._state = dataclasses.replace(state, outcome="interrupted")
                self._write(self._state)
                logger.info("interrupted at step %d; the same command goes on from there", self.state.global_step)
                return training_loss
            folder, seal = self._last_checkpoint()
        elif seal.validated_at != seal.step:  # the budget was lowered to where the run had come
            self.state = read_trainer_state(folder)
            self.evaluate()
            seal = dataclasses.replace(seal, validation=self.validations["eval"], validated_at=seal.step)
        self._conclude(seal)
        return training_loss

    def _last_checkpoint(self) -> Any:
        """Return the round's last whole checkpoint and its seal, as the main process finds them, or None."""
        index = self._state.round_index
        return on_main_process(last_checkpoint(self.output_dir, index) if self.args.should_save else None)

    def _stage(self) -> None:
        """Put the round's starting point on disk: a student of its layers, freshly inherited from the reference."""
        if self._state.staged:
            return
        if self.student.device.type != "meta":
            self.hold(self.skeleton(self._state.layers))  # what was trained is on disk: its memory is the next one's
        if self.args.should_save:
            stage_next(self, self._state)
        self._state = dataclasses.replace(self._state, staged=True)
        self._write(self._state)

    def _begin_round(self, seal: Seal | None, folder: Path) -> None:
        """Set everything that a round starts with, so that it does not depend on what the process did before."""
        before = folder if seal else None
        if seal is None and self.inheritune_config.continues_data and self.args.should_save:
            found = last_checkpoint(self.output_dir, self._state.round_index - 1)
            before = found[0] if found else None
        self.begin_stream(on_main_process(before))
        enable_full_determinism(self.args.seed) if self.args.full_determinism else set_seed(self.args.seed)
        self._round_tokens = 0
        self._tokens_before = seal.tokens if seal else 0
        self._seconds_before = seal.seconds if seal else 0.0
        self._round_began = time.monotonic()
        self._validated_at = seal.validated_at if seal else None
        self._confirmed = self._matched_before = False
        if seal is not None and seal.validation is not None:
            self.validations["eval"] = seal.validation
            self._matched_before = self._compare(seal.validation).matched
        callback, recipe = self._round_callback, self.inheritune_config
        callback.frozen = learned_names(self, self._state) if recipe.freeze_steps else frozenset()
        callback.frozen_until = self._state.start_step + recipe.freeze_steps

    def _compare(self, validation: Validation) -> Match:
        recipe, reference = self.inheritune_config, self._state.reference
        target = reference if reference is not None else float(recipe.target)
        match = compare_losses(validation, target, recipe.tolerance, recipe.confidence)
        return judge(self.growth_rule, self._state.layers, match)

    def _conclude(self, seal: Seal) -> None:
        """Compare the student with its target, record the round, and decide: stop or grow."""
        state = self._state
        if seal.validation is None or seal.validated_at != seal.step:
            raise ValueError(f"The checkpoint of step {seal.step} ends a round but was not evaluated.")
        match = on_main_process(self._compare(seal.validation))
        finished = finished_round(self, state, seal, match)
        if self.args.should_save:
            keep_losses(self.output_dir, state.round_index, seal.validation)
        self._state = conclude(state, finished, self.growth_rule, self.budget)
        self._write(self._state)
        self.tell_round(finished)

    # Pieces of the loop

    def hold(self, model: Any, spare: bool = False) -> None:
        """Make `model` the one that is trained or evaluated, and compile its blocks if that was asked for."""
        super().hold(model, spare)
        compile_blocks(model, self._compiler)

    def _restore_student(self) -> None:
        """Leave the last student as a user expects it: not wrapped, with the reference's cache setting and its log."""
        index = self._state.round_index if self.outcome == "interrupted" else len(self.rounds)
        found = last_checkpoint(self.output_dir, index)
        if found is not None:
            if self.sharded or self.student.device.type == "meta":
                self.hold(load_student(self, self._state, found[0]))
            if self.state.global_step != found[1].step:
                self.state = read_trainer_state(found[0])
        self.model = self.model_wrapped = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.student.config.use_cache = getattr(self.reference_config, "use_cache", True)

    def _write(self, state: RunState) -> None:
        if self.args.should_save:
            write_state(self.output_dir, state)
        self.accelerator.wait_for_everyone()

    def target_loss(self) -> float | None:
        """Return the loss to reach, in nats per token; None before the reference is measured."""
        if self._state.reference is not None:
            return self._state.reference.loss
        return None if self.inheritune_config.target == "reference" else float(self.inheritune_config.target)

    def _show_one_run(self) -> None:
        """Let callbacks see one run, and give progress bars one round each."""
        before = self.callback_handler
        callbacks = [RoundProgress() if type(item) is ProgressCallback else item for item in before.callbacks]
        self.callback_handler = self._rounds_handler = RoundsCallbackHandler(
            one_run(callbacks, self.output_dir), self.model, self.processing_class, self.optimizer, self.lr_scheduler
        )

    def _describe_round(self) -> None:
        for item in self.callback_handler.callbacks:
            if isinstance(item, RoundProgress):
                item.description = f"round {self._state.round_index} · {len(self._state.layers)} layers"
                item.start_step = self._state.start_step

    def _require_student(self) -> None:
        if self.student.device.type == "meta":
            raise RuntimeError("There is no student yet, only its empty skeleton: call train() first.")

    # Overrides of Trainer

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the student; before `train()` there is none. Within a round, two matches in a row may end it."""
        self._require_student()
        with as_written(self._compiler):
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.is_in_train and metric_key_prefix == "eval":
            now = self._compare(self.validations["eval"]).matched
            if self.inheritune_config.match_at == "evaluation":
                self._confirmed = on_main_process(now and self._matched_before)
                if self._confirmed:
                    self.control.should_save = self.control.should_training_stop = True
            self._matched_before, self._validated_at = now, self.state.global_step
        return metrics

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the schedule of one round, or of all rounds together if the recipe lets it continue."""
        recipe = self.inheritune_config
        steps = self.budget if recipe.lr_schedule == "continue" else recipe.steps_per_round
        return super().create_scheduler(steps or num_training_steps, optimizer)

    def _init_training_state(self, max_steps: int, num_update_steps_per_epoch: int, *others: Any) -> tuple[int, int]:
        """Find the place in the data: it counts from the round's first step, or from the run's if data continue."""
        super()._init_training_state(max_steps, num_update_steps_per_epoch, *others)
        if self.stream is not None:
            return 0, 0  # the loader itself begins where it should
        done = self.state.global_step - (0 if self.inheritune_config.continues_data else self._state.start_step)
        epochs, steps = divmod(done, num_update_steps_per_epoch)
        return epochs, steps * self.args.gradient_accumulation_steps

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Train on one batch and count its tokens; a loss that is not finite ends the run."""
        self._round_tokens += inputs["input_ids"].numel()
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The training loss was {loss.item()} at step {self.state.global_step + 1}; the last good "
                f"checkpoint in {self.output_dir} is kept. Lower the learning rate, clip gradients (max_grad_norm) or "
                "use fp32."
            )
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as Trainer does, then seal: only a sealed checkpoint is ever used."""
        if not self.weights_are_finite():
            raise FloatingPointError(
                f"The student's weights are not finite at step {self.state.global_step}; the last good checkpoint in "
                f"{self.output_dir} is kept. Lower the learning rate or clip gradients (max_grad_norm)."
            )
        step = self.state.global_step
        checkpoint = self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save:
                unseal_checkpoint(checkpoint)
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OSError(
                f"{checkpoint} could not be saved ({error}); older checkpoints in {self.output_dir} are whole. Make "
                "room on the disk and run the same command again."
            ) from error
        finally:
            self.args.save_total_limit = limit
        self.save_stream(checkpoint)
        tokens = torch.tensor(self._round_tokens, device=self.args.device)
        trained = int(self.accelerator.reduce(tokens, reduction="sum"))  # also: every process has saved its part
        if self.args.should_save:
            seal_checkpoint(
                checkpoint,
                Seal(
                    round_index=self._state.round_index,
                    step=step,
                    tokens=self._tokens_before + trained,
                    epochs=self.state.epoch or 0.0,
                    seconds=self._seconds_before + time.monotonic() - self._round_began,
                    validation=self.validations["eval"] if self._validated_at is not None else None,
                    validated_at=self._validated_at,
                    confirmed=self._confirmed,
                ),
            )
            # Only now: the older checkpoint must not go before the newer one can be used.
            rotate_checkpoints(str(self.output_dir), limit)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student as a standard checkpoint, with its record and card beside it."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
        elif self.args.should_save:
            save_student(self.student, Path(output_dir or self.output_dir), self.run_record, self.tokenizer)

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> str | None:
        """
        Publish the student as a standard checkpoint, after a trial in a fresh process, as `publish_student` does.

        The repository is `args.hub_model_id`, or the name of `output_dir`; what is not passed is taken from `args`.

        Returns:
            `str`, *optional*: Address of the commit, on the main process.

        Raises:
            ValueError: If something else is asked for: a student goes up whole, before this returns.
        """
        if not blocking or kwargs:
            extra = ", ".join([*([] if blocking else ["blocking=False"]), *kwargs])
            raise ValueError(f"push_to_hub uploads a student whole before it returns; leave out {extra}.")
        if not self.args.should_save:
            return None
        return push_student(
            self.student,
            self.run_record,
            self.tokenizer,
            repo_id=self.args.hub_model_id or self.output_dir.resolve().name,
            run_folder=self.output_dir,
            token=token or self.args.hub_token,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message or "End of training",
        )
