"""Inherit, train, compare and grow: the loop of Inheritune inside Transformers' own Trainer."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    enable_full_determinism,
    set_seed,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ..analysis import measure_order, sample_sequences, scores_folder
from ..config import PARTS, InherituneConfig
from ..data import CausalCollator, check_tokenizer
from ..data.stream import PackedStream
from ..evaluation import ValidatedTrainer, compare_losses
from ..forecast import Forecast, forecast_round
from ..growth import (
    GrowthRule,
    conclude,
    confidence_of_look,
    judge,
    looks,
    match_counts,
    reopen,
    round_end,
    rule_from_recipe,
)
from ..layers import describe
from ..measures import is_measured
from ..outcomes import Conclusion, conclusion, goal_of
from ..publishing import push_student, save_student
from ..records import (
    SAVE_ERRORS,
    LayerOrder,
    Lineage,
    Match,
    Outcome,
    Round,
    Rounds,
    RunRecord,
    RunState,
    Validation,
    decode,
    digest_of,
    encode,
    loss_text,
)
from ..run_folder import read_state, write_state
from ..students import Reference, from_pretrained_inherited, open_reference, student_skeleton
from ..students.losses import Method, loss_of_hidden, mean_loss
from ..tabular import Table, Tabular
from .arguments import check_arguments, make_scheduler
from .callbacks import RoundCallback, RoundProgress, RoundsCallbackHandler, merge_tracker_runs
from .checkpoints import (
    Seal,
    check_identity,
    last_checkpoint,
    read_trainer_state,
    rotate_checkpoints,
    round_end_folder,
    round_folder,
    seal_checkpoint,
    stage_round,
    unseal_checkpoint,
    write_losses,
)
from .data_loading import (
    ResumableStream,
    as_sequences,
    check_boundaries,
    check_data,
    pad_token,
    row_length,
    with_tensor_format,
)
from .distillation import Teacher, open_teacher
from .distributed import (
    build_whole_models,
    check_sharding,
    hold_output_dir,
    on_main_process,
    sharding_of,
    weights_are_finite,
)
from .expansion import Baseline, Trained, carry_states, expand_student, loss_scale, try_identity
from .identity import dataset_fingerprint, run_identity
from .losses import choose_method, describe_method
from .reference_loss import loss_cache, loss_key
from .speed import block_compiler, compile_blocks, eager_mode, frozen_gc, slow_settings

logger = logging.getLogger(__name__)


class InherituneTrainer(Tabular, ValidatedTrainer):
    """
    Train a student of the reference's first layers, and grow it until its loss matches the reference's.

    Before `train()` the attribute `model` is an empty skeleton of the first student (no memory, no weights); afterwards
    it is the last round's student. The reference is in memory only while its loss is measured, before training, unless
    it teaches (`distillation`).

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Id, path or loaded model. A loaded model is copied to be measured and never changed.
        inheritune_config (`InherituneConfig`):
            The recipe; `steps_per_round` is needed.
        args (`transformers.TrainingArguments`, *optional*):
            As for `Trainer`. `max_steps` above 0 caps all rounds together; warm-up and schedule count per round. What
            cannot work with growth is refused with a reason.
        train_dataset (`datasets.Dataset`, `torch.utils.data.Dataset` or `PackedStream`):
            Rows with `input_ids` (and `labels`, -100 where a token does not count); rows of `text` or `messages` are
            tokenized with `processing_class` and packed, as `load_data_splits` does it. The same of `eval_dataset`.
        eval_dataset (`datasets.Dataset` or `torch.utils.data.Dataset`):
            The selection set: every decision rests on it. A column `document` says which rows belong together.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The reference's tokenizer, saved with every student.
        data_collator (`Callable`, *optional*):
            Turns rows into a batch with `labels`; pads and labels plain rows if not given.
        callbacks (`list[TrainerCallback]`, *optional*):
            They see one beginning and one end of training, for any number of rounds.
        reference_kwargs (`dict`, *optional*):
            How the reference is loaded (`revision`, `token`, `attn_implementation`, ...), as for `from_pretrained`.
        reference_cache (`bool`, *optional*, defaults to `True`):
            Whether a loss of the reference that was measured before, in any run, is taken from the user's cache.
        baseline (`Baseline`, *optional*):
            Another initialisation or growth rule than the recipe's, for baselines and controls.
        model (`None`, *optional*):
            Refused, with what to do: other trainers are given the model that they train, this one its `reference`.

    Raises:
        ValueError: If arguments, recipe, data and reference do not fit together; nothing has been trained then.
    """

    run: RunState
    growth_rule: GrowthRule
    teacher: Teacher | None
    _staged_folder: str | None

    # The loop

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Run rounds until the target is matched, the layers or the budget run out, or the run is interrupted.

        If `output_dir` holds this very run it resumes from its last complete checkpoint; a finished run continues if
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
                "train() takes neither resume_from_checkpoint (a run resumes by itself from the last checkpoint in "
                "output_dir) nor trial; call train() without them."
            )
        training_loss = float("nan")
        with hold_output_dir(self.args):
            self.run = self.open_run()  # the run in output_dir, or a new one with the reference's loss measured
            with frozen_gc(), self._round_callback.listening():
                while self.run.outcome is None:
                    self.stage_student()  # inherit: a student of more layers, or blocks for the trained one, on disk
                    training_loss, seal = self.train_round()  # train: one super().train(), resumable
                    if seal is None:
                        self.write_run(replace(self.run, outcome="interrupted"))
                        logger.info("interrupted at step %d; the same command resumes there", self.state.global_step)
                    else:
                        finished = self.finish_round(seal)  # compare
                        self.write_run(conclude(self.run, finished, self.growth_rule, self.budget))  # grow, or stop
                        self.log_round(finished)
            self.restore_student()
        self._rounds_handler.on_run_end(self.args, self.state, self.control)
        metrics = {
            "matched": int(self.outcome == "matched"),
            "layers": len(self.run.layers),
            "rounds": len(self.rounds),
            "reference_loss": self.target_loss(),
            "train_loss": training_loss,
            **({"loss": self.rounds[-1].loss} if self.rounds else {}),
        }
        return TrainOutput(self.state.global_step, training_loss, cast(dict[str, float], metrics))

    def open_run(self) -> RunState:
        """Read the run in `output_dir`, or begin one by measuring the reference: its layers' order, and its loss."""
        identity = self.identity()
        found: RunState | None = on_main_process(read_state(self.output_dir) if self.args.should_save else None)
        run = found or RunState(identity=identity, layers=self.growth_rule.first)
        check_identity(self.output_dir, run.identity, identity)
        if run.order is None and is_measured(self.inheritune_config.keep_layers):
            order = self.measure_order()
            run = replace(run, order=order, layers=self.rule(order).first)
            self.write_run(run)
        self.growth_rule = self.rule(run.order)
        if run.outcome is not None:
            run = reopen(run, self.growth_rule, self.budget)
        lowered = run.outcome is None and run.rounds and 0 < self.budget <= run.start_step
        if lowered and last_checkpoint(self.output_dir, run.round_index, digest_of(run.identity)) is None:
            kept = run.rounds[-1].kept_layers
            run = replace(run, outcome="budget_exhausted", layers=kept, staged=False, start=None)
            self.write_run(run)
        if run.reference is None and self.inheritune_config.target == "reference":
            run = replace(run, reference=self.measure_reference())
            self.write_run(run)
        if run.reference is not None:
            recipe = self.inheritune_config
            judged = compare_losses(run.reference, run.reference, recipe.tolerance, recipe.confidence)
            if not judged.decided:
                logger.warning("no student can match, because the selection set is too small: %s", judged.note)
        if run.outcome is None:
            self.set_model(self.skeleton(run.layers))  # releases what an earlier call left
        return run

    def stage_student(self) -> None:
        """Put the round's starting point on disk, once: its student, and what continues of the last round's states."""
        run, recipe = self.run, self.inheritune_config
        if run.staged:
            return
        if self.student.device.type != "meta":
            self.set_model(self.skeleton(run.layers))  # what was trained is on disk: its memory is the next one's
        if self.args.should_save:
            before = self.ended_checkpoint()
            trained = Trained(before, run.rounds[-1].kept_layers, self.student_class) if before else None
            student = self.build_student(trained)
            if trained is None and recipe.growth == "continue" and recipe.new_blocks == "identity":
                try_identity(student)  # or the first growth would refuse what was trained for a round
            student.config.inheritune["data"] = {
                "train": run.identity["train_dataset"],
                "selection": run.identity["eval_dataset"],
            }
            if run.order is not None:
                student.config.inheritune["order"] = encode(run.order)
            states: dict[str, Any] = {}
            keep_state = recipe.optimizer_state == "keep"
            if trained is not None and (keep_state or recipe.lr_schedule == "continue"):
                states = carry_states(trained, student, run.layers, recipe, self.new_optimizer, self.is_fsdp_enabled)
                self.set_model(self.skeleton(run.layers))
            states |= loss_scale(self.accelerator.scaler, before if keep_state else None)
            log: Any = read_trainer_state(before) if before else self.first_log()
            log.train_batch_size = self.args.train_batch_size
            random_states = sorted(before.glob("rng_state*.pth")) if before and recipe.continues_data else []
            stage_round(self.output_dir, run.round_index, student, log, states, random_states)
        self.write_run(replace(run, staged=True))

    def ended_checkpoint(self) -> Path | None:
        """
        Return the checkpoint that ended the last round; None in the first one.

        Raises:
            ValueError: If it is gone or damaged, and the round continues from it.
        """
        run, recipe = self.run, self.inheritune_config
        if run.start_step == 0:
            return None
        found = last_checkpoint(self.output_dir, run.round_index - 1, self.run_digest)
        if found is not None and found[1].step == run.start_step:
            return found[0]
        continued = recipe.growth == "continue" or recipe.lr_schedule == "continue" or recipe.continues_data
        if continued or self.baseline.build is not None:
            raise ValueError(
                f"{self.output_dir}: the checkpoint that ended round {run.round_index - 1}, of step {run.start_step}, "
                f"is gone or damaged, and round {run.round_index} continues from it. Put it back, or begin again in "
                "another output_dir."
            )
        logger.warning("The checkpoint that ended round %d is gone: its log is lost.", run.round_index - 1)
        return None

    def build_student(self, before: Trained | None) -> PreTrainedModel:
        """Return the student with which the round begins; `before` is the last round's, if any."""
        run, recipe, seed = self.run, self.inheritune_config, self.args.seed
        if self.baseline.build is not None:
            return self.baseline.build(run.layers, before.checkpoint if before else None)
        if before is None or recipe.growth == "reinherit":
            return from_pretrained_inherited(self.reference, replace(recipe, keep_layers=list(run.layers)), seed=seed)
        seed += run.round_index  # random blocks of different rounds differ
        return expand_student(before.load(), before.layers, self.reference, run.layers, recipe, seed)

    def train_round(self) -> tuple[float, Seal | None]:
        """
        Train the staged student to the end of its round and evaluate it there.

        Returns:
            `tuple[float, Seal | None]`: The training loss (not a number if nothing was left to train), and what the
            checkpoint that ends the round says of itself; None if the run was interrupted before.
        """
        run = self.run
        end = round_end(run, self.growth_rule, self.budget)
        folder, seal = self.round_checkpoint() or (round_folder(self.output_dir, run.round_index), None)
        if seal is None:
            self.measure_start(folder)
        self.set_model(self.load_student(folder))
        self.describe_round()
        if seal is None and self.matches_untrained():
            self.state = read_trainer_state(folder)
            step = self.run.start_step
            return float("nan"), Seal(self.run_digest, run.round_index, step, 0, 0.0, self.run.start, step)
        if seal is not None and (seal.step >= end or seal.confirmed or seal.abandoned):
            if seal.validated_at != seal.step:  # the budget was lowered to where the run had come
                self.state = read_trainer_state(folder)
                self.evaluate()
                seal = replace(seal, validation=self.validations["eval"], validated_at=seal.step)
            return float("nan"), seal
        self.begin_round(seal, folder)
        self.args.max_steps = end
        precision, length = str(self.accelerator.mixed_precision), row_length(self.train_dataset)
        self.teacher = open_teacher(self.reference, self.student, self.inheritune_config, self.args, precision, length)
        # A DeepSpeed engine has nothing of its own in a staged folder to resume from.
        self._staged_folder = str(folder) if self.is_deepspeed_enabled and seal is None else None
        try:
            output = super().train(None if self._staged_folder else str(folder))
        except SAVE_ERRORS as error:
            if self._unfinished is None:
                raise
            raise OSError(
                f"{self._unfinished} could not be saved ({error}); older checkpoints in {self.output_dir} are whole. "
                "Make room on the disk and run the same command again."
            ) from error
        finally:
            self.teacher = None
        if self.state.global_step < end and not (self.progress.confirmed or self.progress.abandoned):
            return output.training_loss, None
        last = self.round_checkpoint()
        if last is None:
            raise OSError(
                f"The checkpoint that ends round {run.round_index} in {self.output_dir} is damaged although it was just"
                " written; look at the disk, then run the same command again."
            )
        return output.training_loss, last[1]

    def measure_start(self, folder: Path) -> None:
        """Measure the student that is staged in `folder`, once, and log its loss; a poor start is a warning."""
        run, recipe = self.run, self.inheritune_config
        if run.start is not None or self.growth_rule.match != "any":
            return
        self.set_model(self.load_student(folder), discard_after=True)
        self.evaluate(metric_key_prefix="start")
        self.set_model(self.skeleton(run.layers))  # a model that was prepared to be evaluated is not to be trained
        start = self.validations["start"]
        self.write_run(replace(run, start=start))
        beside, uniform = "target" if run.reference is None else "reference", self.uniform_loss
        text = "round %d · %d layers · begins at %s · %s %.4f · uniform guess %.4f"
        logger.info(text, run.round_index, len(run.layers), loss_text(start.loss), beside, self.target_loss(), uniform)
        if start.loss > uniform and (run.reference is None or run.reference.loss < uniform):
            logger.warning(
                "The student of layers %s begins worse than a uniform guess (%.4f against %.4f nats/token): %s.",
                describe(run.layers),
                start.loss,
                uniform,
                advise_start(recipe, len(run.layers)),
            )

    def matches_untrained(self) -> bool:
        """Tell whether the student is as deep as the reference and matches before it is trained: training may harm."""
        start = self.run.start
        return start is not None and len(self.run.layers) == self.reference.depth and self.compare(start).matched

    def compare(self, validation: Validation) -> Match:
        """Compare a student's loss with the target at this look's confidence; the main process decides for all."""
        decided: Match = on_main_process(judge(self.growth_rule, self.run.layers, self._match(validation)))
        return decided

    def _match(self, validation: Validation) -> Match:
        """Return how a student compares with the target, at the confidence of one of the run's looks."""
        recipe, reference = self.inheritune_config, self.run.reference
        target = reference if reference is not None else float(recipe.target)
        chances = looks(self.growth_rule, self.budget, recipe.match_at)
        confidence = confidence_of_look(recipe.confidence, chances)
        return compare_losses(validation, target, recipe.tolerance, confidence)

    def figures(self, validation: Validation, prefix: str) -> dict[str, float]:
        """Return what is logged of a validation: of the student in training, whether it matches by the run's rule."""
        found = super().figures(validation, prefix)
        if self.is_in_train and prefix == "eval" and self.growth_rule.match != "never":
            found["eval_matched"] = float(self._match(validation).matched)
        return found

    # What a run is made of and leaves

    def __init__(
        self,
        reference: Reference | None = None,
        inheritune_config: InherituneConfig | None = None,
        args: TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Tensor]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        reference_kwargs: Mapping[str, Any] | None = None,
        reference_cache: bool = True,
        baseline: Baseline | None = None,
        model: None = None,
    ) -> None:
        if reference is None or model is not None:
            other = "" if model is None else ", not as model: students are made of its layers"
            raise ValueError(f"Give the model to be made smaller, or its Hub id or path, as reference{other}.")
        inheritune_config, args = inheritune_config or InherituneConfig(), args or TrainingArguments()
        ready = check_arguments(args, inheritune_config)
        bounded = getattr(data_collator, "end_token_id", None) is not None
        if bounded and inheritune_config.distillation_top_k is not None:
            raise ValueError(
                "distillation_top_k finds a sequence by its tokens alone, and document_boundaries add positions: leave "
                "one of them out."
            )
        self.inheritune_config = inheritune_config
        self.baseline = baseline or Baseline()
        self.reference_kwargs = dict(reference_kwargs or {})
        self.reference = open_reference(reference, **self.reference_kwargs)
        if (inheritune_config.distillation_top_k or 0) > (known := self.reference.text_config.vocab_size):
            raise ValueError(
                f"distillation_top_k={inheritune_config.distillation_top_k} is more than the reference has tokens "
                f"({known}); lower it, or leave it out for all."
            )
        self.reference_cache = reference_cache
        self.budget = args.max_steps
        self.growth_rule = self.rule()  # with first layers in place of an order that is not measured yet
        if inheritune_config.quantization_config is not None:
            self.reference.require_quantizable()
        if processing_class is not None:
            text = self.reference.text_config
            check_tokenizer(processing_class, text.vocab_size, getattr(text, "eos_token_id", None))
        train_dataset, eval_dataset = (
            as_sequences(name, dataset, processing_class, self.reference, args)
            for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset))
        )
        check_data(train_dataset, eval_dataset, self.reference.config)
        self.run = RunState(identity={}, layers=self.growth_rule.first)
        self.progress = RoundCounts()
        self.teacher = None
        self._round_callback = RoundCallback()
        self._compiler = block_compiler(args)
        self._discard_after = False
        self._staged_folder = None
        self._rates: list[float] = []
        self._unfinished: Path | None = None
        self.checkpoints_kept, ready.save_total_limit = ready.save_total_limit, None  # see finish_checkpoint
        self._loss_method: str | None = None
        self._loss_line = ""
        build_whole_models()
        skeleton = self.skeleton(self.growth_rule.first)
        #: The class of every student: sharding changes that of the model in training.
        self.student_class = type(skeleton)
        if isinstance(train_dataset, PackedStream) and self.budget <= 0:
            ready.max_steps = inheritune_config.steps_per_round or -1  # Trainer asks; each round says its own
        super().__init__(
            model=skeleton,
            args=ready,
            train_dataset=with_tensor_format(train_dataset, data_collator),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator or CausalCollator(pad_token(processing_class)),
            callbacks=[*(callbacks or []), self._round_callback],
        )
        build_whole_models()
        check_sharding(self.accelerator.state, inheritune_config)
        self.stream: ResumableStream | None = None
        if isinstance(train_dataset, PackedStream):
            self.stream = ResumableStream(train_dataset, self.accelerator)
        # By name: the class for notebooks can be imported in notebooks alone.
        standard = {"ProgressCallback", "NotebookProgressCallback"}
        shown: list[Any] = self.callback_handler.callbacks
        bars = [RoundProgress() if type(item).__name__ in standard else item for item in shown]
        self.callback_handler = self._rounds_handler = RoundsCallbackHandler(
            self.sync_stream,
            self.finish_checkpoint,
            merge_tracker_runs(bars, self.output_dir),
            self.model,
            self.processing_class,
            self.optimizer,
            self.lr_scheduler,
        )

    @property
    def output_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.args.output_dir or "trainer_output")

    @property
    def student(self) -> PreTrainedModel:
        """The model in training, or the result after it."""
        return self.bare_model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The reference's tokenizer."""
        return self.processing_class if isinstance(self.processing_class, PreTrainedTokenizerBase) else None

    @property
    def sharding(self) -> str:
        """How a model is spread over devices while it trains: `none`, `fsdp` or `zero1` to `zero3`."""
        return sharding_of(self.accelerator.state)

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended."""
        return self.run.outcome

    @property
    def rounds(self) -> Rounds:
        """The finished rounds, failed ones included."""
        return Rounds(self.run.rounds)

    def table(self) -> Table:
        """Return a row for each finished round, under what the run came to so far."""
        return self.rounds.table()._replace(title=f"{type(self).__name__}: {self.conclude().sentence}.")

    def conclude(self, test: Match | None = None) -> Conclusion:
        """Return what the run came to, in words; `test` compares its student on the test set, once that is opened."""
        goal, decided = goal_of(self.inheritune_config.target), all(item.match.decided for item in self.rounds[-1:])
        return conclusion(self.outcome, len(self.run.layers), self.reference.depth, goal, decided, test)

    @property
    def reference_validation(self) -> Validation | None:
        """The reference's loss on the selection set; None before it is measured or if the target is a number."""
        return self.run.reference

    @property
    def run_digest(self) -> str:
        """Digest of the run's identity, which its checkpoints carry."""
        return digest_of(self.run.identity)

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
            training=self.run.training,
            uniform_loss=self.uniform_loss,
        )

    @property
    def uniform_loss(self) -> float:
        """Loss of a uniform guess over the vocabulary, in nats per token."""
        return math.log(self.reference.text_config.vocab_size)

    def target_loss(self) -> float | None:
        """Return the loss to reach, in nats per token; None before the reference is measured."""
        if self.run.reference is not None:
            return self.run.reference.loss
        return None if self.inheritune_config.target == "reference" else float(self.inheritune_config.target)

    def identity(self) -> dict[str, Any]:
        """Return what makes a run this very run: its recipe, its numeric arguments, its reference and its data."""
        args, reference = self.args, self.reference
        facts = {
            "sharding": self.sharding,
            "reference": reference.name if reference.model is None else reference.model.name_or_path,
            "reference.revision": None if reference.source is None else reference.source.revision,
            "reference.layers": self.reference.depth,
            # Weights, not names: a folder's may be replaced, a branch may move, and a loaded model has no name.
            "reference.weights": on_main_process(reference.fingerprint() if args.process_index == 0 else None),
            "train_dataset": dataset_fingerprint(self.train_dataset),
            "eval_dataset": dataset_fingerprint(self.eval_dataset),
            "document_boundaries": getattr(self.data_collator, "end_token_id", None) is not None,
        }
        if self.stream is not None:  # whose places are those of its readers
            facts["args.dataloader_num_workers"] = args.dataloader_num_workers
        return {**run_identity(args, self.inheritune_config, facts), **self.baseline.identity}

    def rule(self, order: LayerOrder | None = None) -> GrowthRule:
        """Return how students grow, along `order` if the recipe's layers are chosen by a measure."""
        sizes = self.reference.architecture.prefix_sizes
        recipe, given = self.inheritune_config, self.baseline.growth_rule
        order = order or self.reference.order_before(recipe.keep_layers)
        return given or rule_from_recipe(recipe, self.reference.depth, sizes, order)

    def measure_order(self) -> LayerOrder:
        """
        Measure the order of the reference's layers by the recipe's `keep_layers`, on sequences of the training set.

        Once for the same weights and sequences, unless `reference_cache` is off; in float32, as it is compared, if the
        reference's options name no other type. A loaded reference is measured where it is.
        """
        choice, found = str(self.inheritune_config.keep_layers), None
        if self.args.process_index == 0:
            found = measure_order(
                self.reference,
                choice,
                sample_sequences(self.train_dataset),
                progress=not self.args.disable_tqdm,
                cache_dir=scores_folder() if self.reference_cache else None,
                device_map={"": str(self.args.device)},
                **({} if self.reference.model else {"dtype": self.reference.options.get("dtype", torch.float32)}),
            )
        order: LayerOrder = on_main_process(found)
        logger.info(order.sentence)
        return order

    def measure_reference(self, dataset: Any = None, metric_key_prefix: str = "reference") -> Validation:
        """
        Measure the reference's loss by the loop that judges students, then release it; once for the same data.

        Args:
            dataset (`datasets.Dataset`, *optional*): Sequences to measure on; the selection set if not given.
            metric_key_prefix (`str`, *optional*, defaults to `"reference"`): Prefix of the logged figures.

        Returns:
            `Validation`: Sums per document.
        """
        given = self.eval_dataset if dataset is None else dataset
        cache, key = loss_cache(), None
        if self.reference_cache and self.args.process_index == 0:
            facts = {
                "mixed_precision": self.accelerator.mixed_precision,
                "sharding": self.sharding,
                "measured_by": f"{type(self).__module__}.{type(self).__qualname__}",
            }
            key = loss_key(self.reference, given, self.data_collator, self.args, facts)
        found: Validation | None = on_main_process(cache.read(key) if key is not None else None)
        source = f" · measured before ({cache.folder}; reference_cache=False measures it again)" if found else ""
        self.set_model(self.skeleton(self.run.layers))
        if found is None:
            loaded = self.reference.model is not None
            dtype = torch.float32 if loaded else self.reference.options.get("dtype", torch.float32)
            self.set_model(self.reference.load(dtype=dtype), discard_after=True)
            self.evaluate(given, metric_key_prefix=metric_key_prefix)
            found = self.validations[metric_key_prefix]
            if key is not None:
                cache.write(key, found)
            self.set_model(self.skeleton(self.run.layers))
        else:
            self.validations[metric_key_prefix] = found
            self.log(self.figures(found, metric_key_prefix))
        where = metric_key_prefix.removeprefix("reference").replace("_", " ")
        logger.info("reference%s · %d layers · %s%s", where, self.reference.depth, loss_text(found.loss), source)
        if self.rounds and self.outcome is not None:
            self.restore_student()
        return found

    # Steps of a round

    def skeleton(self, layers: Sequence[int]) -> PreTrainedModel:
        """Return the student of `layers` without weights."""
        return student_skeleton(self.reference.config, layers)

    def write_run(self, run: RunState) -> None:
        """Write down where the run stands, before anything else happens."""
        self.run = run
        if self.args.should_save:
            write_state(self.output_dir, run)
        self.accelerator.wait_for_everyone()

    def round_checkpoint(self) -> tuple[Path, Seal] | None:
        """Return the round's last whole checkpoint and its seal, as the main process finds them, or None."""
        index = self.run.round_index
        found: tuple[Path, Seal] | None = on_main_process(
            last_checkpoint(self.output_dir, index, self.run_digest) if self.args.should_save else None
        )
        return found

    def load_student(self, folder: Path) -> PreTrainedModel:
        """
        Return the student in a staged round or a checkpoint, ready to be trained.

        Raises:
            ValueError: If the folder holds a student of another depth, or one that lets documents see each other
                although their boundaries are to be kept.
        """
        settings = {"dtype": torch.float32, **self.reference.student_options}
        student: PreTrainedModel = self.student_class.from_pretrained(folder, **settings)
        if len(self.run.layers) != student.config.get_text_config(decoder=True).num_hidden_layers:
            raise ValueError(f"{folder} does not hold a student of {len(self.run.layers)} layers; it was changed.")
        student.config.use_cache = self.args.use_cache
        collator = self.data_collator
        if isinstance(collator, CausalCollator) and collator.end_token_id is not None:
            check_boundaries(student)
        return student

    def new_optimizer(self, model: PreTrainedModel) -> tuple[torch.optim.Optimizer, Any]:
        """Return a new optimizer and scheduler for `model`, as its training would begin with."""
        self.set_model(model)
        return self.create_optimizer(), self.create_scheduler(self.budget)

    def begin_round(self, seal: Seal | None, folder: Path) -> None:
        """Set everything that a round starts with, so that it does not depend on what the process did before."""
        if self.stream is not None:
            before = folder if seal else None
            if seal is None and self.inheritune_config.continues_data and self.args.should_save:
                before = self.ended_checkpoint()
            self.stream.begin(on_main_process(before))
        enable_full_determinism(self.args.seed) if self.args.full_determinism else set_seed(self.args.seed)
        self.progress, self._unfinished = RoundCounts(began=time.monotonic()), None
        self._rates = self.learning_rates()
        if seal is not None:
            self.progress.tokens_before, self.progress.seconds_before = seal.tokens, seal.seconds
            self.progress.validated_at = seal.validated_at
            if seal.validation is not None:
                self.validations["eval"] = seal.validation
                self.progress.match = self.compare(seal.validation)

    def finish_round(self, seal: Seal) -> Round:
        """
        Judge the round that ended with the checkpoint of `seal`: return its record, and keep its losses per document.

        Raises:
            ValueError: If that checkpoint was not evaluated.
        """
        run, validation = self.run, seal.validation
        if validation is None or seal.validated_at != seal.step:
            raise ValueError(f"The checkpoint of step {seal.step} ends a round but was not evaluated.")
        if self.args.should_save:
            write_losses(self.output_dir, run.round_index, validation)
        log = read_trainer_state(round_end_folder(self.output_dir, run.round_index, run.start_step, seal.step))
        return Round(
            index=run.round_index,
            kept_layers=run.layers,
            start_step=run.start_step,
            end_step=seal.step,
            tokens=seal.tokens,
            epochs=round(seal.epochs, 4),
            flops=float(log.total_flos - sum(item.flops for item in run.rounds)),
            seconds=round(seal.seconds, 3),
            loss=validation.loss,
            target=self.target_loss() or float("nan"),
            match=self.compare(validation),
            start_loss=None if run.start is None else run.start.loss,
            abandoned=seal.abandoned,
        )

    def log_round(self, item: Round) -> None:
        """Log how a round ended, to trackers too; a control has no target to log."""
        if self.growth_rule.match == "never":
            return
        came = f"missed by {item.match.difference:+.4f}" if item.match.decided else "undecided"
        if item.match.matched:
            came = "matched, no reduction" if item.layers == self.reference.depth else "matched"
        logger.info(
            "round %d · %d layers · %s · target %.4f · %s%s%s",
            item.index,
            item.layers,
            loss_text(item.loss),
            item.target,
            came,
            f", abandoned after {item.end_step - item.start_step} steps" if item.abandoned else "",
            f" ({item.match.note})" if item.match.note else "",
        )
        # A round that was judged when the run resumed after a kill has no step in this process to be logged at.
        if self.state.global_step == item.end_step:
            figures = {"layers": item.layers, "loss": item.loss, "target": item.target}
            figures |= {"difference": item.match.difference, "matched": int(item.match.matched)}
            figures |= {"tokens": item.tokens, "flops": item.flops}
            self.log({f"round/{name}": float(value) for name, value in figures.items()})

    def first_log(self) -> TrainerState:
        """Return the log of a run without a checkpoint: the reference's figures, and where its last round ended."""
        run = self.run
        history = [] if run.reference is None else [{**self.figures(run.reference, "reference"), "step": 0}]
        flops = sum(item.flops for item in run.rounds)
        log: Any = TrainerState(global_step=run.start_step, total_flos=flops, log_history=history)
        log.compute_steps(self.args, self.inheritune_config.steps_per_round)  # or Transformers warns that they differ
        return cast(TrainerState, log)

    def begin_checkpoint(self) -> None:
        """
        Before a checkpoint is written: refuse weights that are not numbers, and take away what says it is complete.

        Raises:
            FloatingPointError: If a weight is not finite; nothing is written.
        """
        if not weights_are_finite(cast(nn.Module, self.model), self.args.device, self.accelerator.reduce):
            raise FloatingPointError(
                f"The student's weights are not finite at step {self.state.global_step}; the last good checkpoint in "
                f"{self.output_dir} is kept. Lower the learning rate or clip gradients (max_grad_norm)."
            )
        self._unfinished = self.checkpoint_folder()
        if self.args.should_save:
            unseal_checkpoint(self._unfinished)

    def finish_checkpoint(self) -> None:
        """After a checkpoint was written: seal it, then let older ones go, and not before: it could not be used."""
        progress, checkpoint = self.progress, self.checkpoint_folder()
        if self.stream is not None:
            self.stream.save(checkpoint)
        tokens = torch.tensor(progress.tokens, device=self.args.device)
        trained = int(self.accelerator.reduce(tokens, reduction="sum"))  # also: every process has saved its part
        if self.args.should_save:
            seal = Seal(
                run=self.run_digest,
                round_index=self.run.round_index,
                step=self.state.global_step,
                tokens=progress.tokens_before + trained,
                epochs=self.state.epoch or 0.0,
                seconds=progress.seconds_before + time.monotonic() - progress.began,
                validation=self.validations["eval"] if progress.validated_at is not None else None,
                validated_at=progress.validated_at,
                confirmed=progress.confirmed,
                abandoned=progress.abandoned,
            )
            seal_checkpoint(checkpoint, seal)
            rotate_checkpoints(self.output_dir, self.state.global_step, self.checkpoints_kept)
        self.accelerator.wait_for_everyone()
        self._unfinished = None

    def checkpoint_folder(self) -> Path:
        """Return the folder of this step's checkpoint."""
        return self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def describe_round(self) -> None:
        """Show on progress bars which round begins."""
        text = f"round {self.run.round_index} · {len(self.run.layers)} layers"
        for item in self.callback_handler.callbacks:
            if isinstance(item, RoundProgress):
                item.description = self.baseline.description or text
                item.start_step = self.run.start_step

    def restore_student(self) -> None:
        """
        Leave the last student as a user expects it: not wrapped, with the reference's cache setting and its log.

        Raises:
            ValueError: If the student must be loaded, and the checkpoint that ended its round is gone or damaged.
        """
        index = self.run.round_index if self.outcome == "interrupted" else len(self.rounds)
        found = last_checkpoint(self.output_dir, index, self.run_digest)
        folder = found[0] if found else round_folder(self.output_dir, index)  # which matched untrained
        absent = self.sharding != "none" or self.student.device.type == "meta"
        if absent and self.outcome != "interrupted":
            last = self.rounds[-1]
            ended = round_end_folder(self.output_dir, index, last.start_step, last.end_step)
            if folder != ended:
                raise ValueError(
                    f"{ended}, the checkpoint that ended round {index}, is gone or damaged, so the student cannot be "
                    f"loaded from it. What this run has saved in {self.output_dir} is left as it is; remove the folder "
                    "to train it again."
                )
        if folder.is_dir():
            if absent:
                self.set_model(self.load_student(folder))
            if found is None or self.state.global_step != found[1].step:
                self.state = read_trainer_state(folder)
        self.model = self.model_wrapped = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.student.config.use_cache = getattr(self.reference.config, "use_cache", True)

    def set_model(self, model: Any, discard_after: bool = False) -> None:
        """
        Make `model` the one that is trained or evaluated, and forget every trace of the one before.

        With `discard_after` it is not needed after it was evaluated, so that sharding makes no copy of it.
        """
        self._discard_after, self._loss_method = discard_after, None
        was_empty = self.student.device.type == "meta"
        self.model = self.model_wrapped = model
        self.optimizer = self.lr_scheduler = self.deepspeed = None
        self.callback_handler.model = model
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        if not was_empty:  # an empty skeleton was never prepared: there is nothing to collect
            self.accelerator.free_memory()
        if self.place_model_on_device:
            model.to(self.args.device)
        compile_blocks(model, self._compiler)

    @property
    def place_model_on_device(self) -> bool:
        """Whether Trainer moves the model: not the empty skeleton, which its constructor would move."""
        model = getattr(self, "model", None)
        return self._places_model and model is not None and model.device.type != "meta"

    @place_model_on_device.setter
    def place_model_on_device(self, value: bool) -> None:
        self._places_model = value

    def sync_stream(self) -> None:
        """Before a step is logged, evaluated or saved: share how far each process is in the stream."""
        if self.stream is not None:
            self.state.epoch = self.stream.sync_counts()

    def _require_student(self) -> None:
        if self.student.device.type == "meta":
            raise RuntimeError("There is no student yet, only its empty skeleton: call train() first.")

    # Overrides of Trainer: public methods

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the training set; that of a stream begins where it should."""
        if self.stream is None:
            return super().get_train_dataloader()
        return self.stream.loader(self.args, self._train_batch_size, self.data_collator)

    def get_batch_samples(self, *words: Any) -> tuple[list[Any], Tensor | int | None]:
        """
        Return the batches of a step and how many of their tokens count, but at least 1.

        Where none counts, as within a long user message, the loss is then 0 and not NaN.
        """
        batches, items = super().get_batch_samples(*words)
        return batches, items.clamp(min=1) if isinstance(items, Tensor) else items

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the schedule of one round, or of all rounds together if the recipe lets it continue."""
        continues = self.inheritune_config.lr_schedule == "continue"
        steps = self.budget if continues else self.inheritune_config.steps_per_round
        return super().create_scheduler(steps or num_training_steps, optimizer)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Train on one batch and count its tokens; a loss that is not finite ends the run."""
        if self.stream is not None:
            self.stream.note(inputs)
        self.progress.tokens += inputs["input_ids"].numel()
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The training loss was {loss.item()} at step {self.state.global_step + 1}; the last good "
                f"checkpoint in {self.output_dir} is kept. Lower the learning rate, clip gradients (max_grad_norm) or "
                "use fp32."
            )
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss as Trainer does, but with a teacher or from the last hidden states where that was chosen."""
        method = self.loss_method()
        context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.teacher is not None:
            context = self.teacher.teaching(self.bare_model, inputs, method == "full")
        elif method != "full":
            context = loss_of_hidden(self.bare_model, functools.partial(mean_loss, method=cast(Method, method)))
        with context:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def loss_method(self) -> str:
        """Return how the loss of the present model is computed; chosen once for a model, and logged if it changes."""
        if self._loss_method is not None:
            return self._loss_method
        model, precision = self.bare_model, str(self.accelerator.mixed_precision)
        obstacle = self.why_full_logits()
        if type(self).compute_loss is not InherituneTrainer.compute_loss or self.compute_loss_func is not None:
            obstacle = "another loss is computed"
        elif self.label_smoother is not None:
            obstacle = "labels are smoothed"
        method, why = choose_method(
            self.inheritune_config.loss, model, self.args.device, precision, obstacle, self.teacher is not None
        )
        line = describe_method(method, why, model)
        slow = [] if self._loss_line else slow_settings(model, self.args.device, precision)
        if slow:
            logger.warning("slow here: %s", "; ".join(slow))
        if line != self._loss_line:
            logger.log(logging.WARNING if why.startswith("not ") else logging.INFO, line)
        self._loss_method, self._loss_line = method, line
        return method

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        Measure the student; before `train()` there is none.

        Within a round, how it will end is forecast and logged; two matches in a row may end it, or a forecast miss.
        """
        self._require_student()
        settings = (eval_dataset, ignore_keys, metric_key_prefix)
        with eager_mode(self._compiler):
            if self.is_in_train or self.sharding == "none":
                metrics: dict[str, float] = super().evaluate(*settings)
            else:
                metrics = self.evaluate_sharded(*settings)
        if self.is_in_train and metric_key_prefix == "eval":
            now, progress = self.compare(self.validations["eval"]), self.progress
            twice = now.matched and progress.match is not None and progress.match.matched
            progress.confirmed = self.inheritune_config.match_at == "evaluation" and twice
            progress.match, progress.validated_at = now, self.state.global_step
            progress.abandoned = self.will_miss(self.forecast()) and not now.matched
            if progress.confirmed or progress.abandoned:
                self.control.should_save = self.control.should_training_stop = True
        return metrics

    def forecast(self) -> Forecast | None:
        """
        Forecast the loss at the end of the round in progress, and whether and after how many tokens it will match.

        It rests on this round's evaluations and learning rates: see [Forecasts](../how-to/grow.md#forecasts). The bound
        by which a match is judged is taken to stay as far above the loss as it was at the last evaluation.

        Returns:
            `Forecast`, *optional*: None before there are 3 evaluations and a quarter of the round, and at its end.
        """
        run, recipe, step = self.run, self.inheritune_config, self.state.global_step
        match, target, low_enough = self.progress.match, self.target_loss(), None
        if match is None or target is None or run.outcome is not None or step <= run.start_step:
            return None
        if match_counts(self.growth_rule, run.layers):
            if recipe.confidence is None:
                low_enough = target + recipe.tolerance
            elif match.decided and match.upper is not None:
                low_enough = target + recipe.tolerance - (match.upper - match.difference)
        log: list[Any] = self.state.log_history
        losses = {item["step"]: item["eval_loss"] for item in log if "eval_loss" in item}
        return forecast_round(
            [(at, loss) for at, loss in sorted(losses.items()) if run.start_step < at <= step],
            self._rates,
            run.start_step,
            low_enough,
            (self.progress.tokens_before + self.progress.tokens * self.args.world_size) / (step - run.start_step),
        )

    def will_miss(self, forecast: Forecast | None) -> bool:
        """
        Log a forecast, and return whether it ends the round: the second in a row that is sure enough of a miss.

        The main process decides for all.
        """
        confidence, misses = self.inheritune_config.abandon, False
        if forecast is not None:
            logger.info("%s", forecast)
            self.log(forecast.logged())
        if forecast is not None and confidence is not None and self.growth_rule.grow(self.run.layers) is not None:
            log = [item for item in self.state.log_history if "forecast/loss" in item][-2:]
            chances = [item.get("forecast/match", 1.0) for item in log if item["step"] > self.run.start_step]
            misses = len(chances) == 2 and 1 - max(chances) >= confidence
        return bool(on_main_process(misses))

    def learning_rates(self) -> list[float]:
        """Return the learning rate of every step of the round in progress."""
        start, steps = self.run.start_step, self.inheritune_config.steps_per_round or 0
        continues = self.inheritune_config.lr_schedule == "continue"
        length = self.budget if continues else steps
        scheduler = make_scheduler(self.args, length)
        end = round_end(self.run, self.growth_rule, self.budget)
        steps_of_round = range(start, end) if continues else range(end - start)
        return [float(scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step)) for step in steps_of_round]

    def evaluate_sharded(self, *settings: Any) -> dict[str, float]:
        """Evaluate outside training as within: a copy of the model is sharded, so that the model itself stays whole."""
        whole: Any = self.model
        if not self._discard_after:
            self.set_model(copy.deepcopy(whole))
        model: Any = self.model
        # An engine of DeepSpeed exists in training alone, and each process has the whole model, in its precision.
        engine, self.is_deepspeed_enabled = self.is_deepspeed_enabled, False
        try:
            if self.is_fsdp_enabled:
                # FSDP2 shards a model together with an optimizer only.
                model, _ = self.accelerator.prepare(model, torch.optim.SGD(model.parameters()))
                self.model = self.model_wrapped = model
            elif engine:
                model.to(device=self.args.device, dtype=self.accelerator.state.deepspeed_plugin.hf_ds_config.dtype())
            metrics: dict[str, float] = super().evaluate(*settings)
        finally:
            self.is_deepspeed_enabled = engine
            self.set_model(whole)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the passes over a stream for an epoch, and what was found in it that should not have been there."""
        if self.stream is not None and self.stream.counts:
            self.state.epoch = self.stream.passes
            logs = {**logs, **self.stream.figures()}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the student as a standard checkpoint, with its record and card beside it.

        Trainer calls it too, as the first step of saving a checkpoint.
        """
        if _internal_call:
            self.begin_checkpoint()
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
            ValueError: If something else is asked for: a student is uploaded whole, before this returns.
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

    # Overrides of Trainer: private methods, each because no public one is called at that place

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """
        Find the place in the data, which Trainer derives from the step count of the whole run.

        It counts from the round's first step, or from the run's if the data continue; a stream's loader begins there
        by itself. With DeepSpeed, step count and log of a staged folder are read too. The log of a round begins with
        what its student was before it was trained.
        """
        super()._init_training_state(
            max_steps, num_update_steps_per_epoch, epochs, checkpoint or self._staged_folder, trial
        )
        state: Any = self.state
        state.compute_steps(self.args, max_steps)  # read with the state, they would be those of before
        for item in (*self.callback_handler.callbacks, self.control):  # of those that the state's file does not know
            if isinstance(item, ExportableState):
                state.stateful_callbacks.setdefault(type(item).__name__, item.state())
        if self.run.start is not None and self.state.global_step == self.run.start_step:
            self.state.log_history.append({**self.figures(self.run.start, "start"), "step": self.run.start_step})
        if self.stream is not None:
            return 0, 0
        done = self.state.global_step - (0 if self.inheritune_config.continues_data else self.run.start_step)
        epochs, steps = divmod(done, num_update_steps_per_epoch)
        return epochs, steps * self.args.gradient_accumulation_steps

    def _run_epoch(self, *args: Any, **settings: Any) -> None:
        """With DeepSpeed, take the random state of a staged folder, from which its engine cannot resume."""
        settings["resume_from_checkpoint"] = settings["resume_from_checkpoint"] or self._staged_folder
        super()._run_epoch(*args, **settings)  # type: ignore[no-untyped-call]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Do nothing: the model was built from this very folder, and would be read a second time."""


@dataclass
class RoundCounts:
    """What is counted while a round is trained, and sealed with its checkpoints."""

    began: float = 0.0  # when this process began to train it, by the monotonic clock
    tokens: int = 0  # that this process has trained on since
    tokens_before: int = 0  # of all processes
    seconds_before: float = 0.0
    validated_at: int | None = None  # step of the last evaluation
    match: Match | None = None  # how that evaluation compared with the target
    confirmed: bool = False  # two evaluations in a row matched, which ends the round
    abandoned: bool = False  # it was forecast to miss, which does so too


def advise_start(recipe: InherituneConfig, layers: int) -> str:
    """Return what makes a student of so many layers begin lower."""
    if recipe.inherited_parts != PARTS:
        return "parts of it are random; inherit='all' leaves none so"
    if str(recipe.keep_layers).startswith("loss:"):
        return "more layers begin lower"
    return f"keep_layers='loss:{layers}' chooses as many by the loss without the others, and grows along that order"
