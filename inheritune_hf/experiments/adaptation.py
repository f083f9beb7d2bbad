"""Train a reference further on the data of a run: the corrected teacher, and the harder target, of a later run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import TrainingArguments

from ..config import DataConfig, InherituneConfig, RunConfig
from ..growth import GrowthRule, follow
from ..publishing import FinishedRun, publish_student, save_student
from ..publishing.tables import ADAPTED
from ..records import Match, write_record
from ..training import Baseline, hold_output_dir
from .runs import measure_test, prepare_run, result_rows, run_settings, train_student, with_changes

# Added to the data seed: a student that is trained on the same data does not repeat the batches of its reference.
_DATA_SEED = 2_000_003


@dataclass(frozen=True)
class Adaptation:
    """What training a reference further came to; losses are in nats per token, differences after minus before."""

    folder: Path  # with the model, its tokenizer and its record
    steps: int
    tokens: int
    before: dict[str, float]  # loss on each set, `selection` and `test`
    after: dict[str, float]
    differences: dict[str, Match]


def adapt_reference(run: RunConfig, recipe: InherituneConfig, data: DataConfig, args: TrainingArguments) -> Adaptation:
    """
    Train the whole reference for `steps_per_round` steps on a run's data, and save it: `inheritune adapt`.

    The result is an ordinary checkpoint in `output_dir`, to be the `reference` of a run on the same data with the same
    seed, so that the same documents are held out. What the reference would gain by seeing the data at all, a student
    cannot claim then (a corrected teacher, arXiv 2408.11796). Batches come in another order than those of such a run.
    If `output_dir` holds this very training it resumes from its last checkpoint.

    Args:
        run (`RunConfig`): The reference.
        recipe (`InherituneConfig`): Its `steps_per_round` and `loss`; nothing else of it is read.
        data (`DataConfig`): The data, as for a run.
        args (`TrainingArguments`): As for a run; `max_steps` above 0 caps the steps.

    Raises:
        ValueError: If settings, data and reference do not fit together; nothing has been trained then.
        BlockingIOError: If another process runs in `output_dir`.
        KeyboardInterrupt: If it was interrupted; the same call resumes it.
    """
    folder = Path(args.output_dir or "trainer_output").resolve()
    if run.reference is not None and Path(run.reference).resolve() == folder:
        raise ValueError(
            f"output_dir is the reference's own folder, {folder}: choose another one to save the result in."
        )
    # Of the student's run, which may follow with the same ones, and this ordinary folder as its reference.
    there = replace(run, revision=None, text_model=False, gguf_file=None)
    settings = run_settings(there, recipe, data, args)
    recipe = InherituneConfig(keep_layers="every:1", steps_per_round=recipe.steps_per_round, loss=recipe.loss)
    own = with_changes(args, data_seed=(args.seed if args.data_seed is None else args.data_seed) + _DATA_SEED)
    with hold_output_dir(args):
        ready = prepare_run(run, recipe, data, own)
        layers = tuple(range(ready.reference.depth))
        rule = GrowthRule(layers, follow([]), recipe.steps_per_round or 0, match="never")
        baseline = Baseline({"adaptation": True}, growth_rule=rule, description="reference")
        trainer = train_student(ready, run, recipe, own, settings, baseline)
        if trainer.outcome == "interrupted":
            raise KeyboardInterrupt("the reference was interrupted")
        adapted, last = measure_test(trainer, ready.splits), trainer.rounds[-1]
        before = trainer.measure_reference(ready.splits.test, metric_key_prefix="reference_test")
        rows = result_rows(trainer, before, {ADAPTED: adapted})
        match = next(row.match for row in rows if row.match is not None)
        training = {**trainer.run_record.training, "data_seed": args.data_seed}
        record = replace(trainer.run_record, outcome="adapted", training=training)
        if args.should_save:
            save_student(trainer.student, trainer.output_dir, record, ready.tokenizer)
            finished = FinishedRun(
                **vars(record),
                results=tuple(rows),
                curves={ADAPTED: tuple(adapted.curve)},
                data=ready.splits.facts,
                seed=args.seed,
            )
            write_record(trainer.output_dir / "rounds.json", finished)
            if args.push_to_hub:
                publish_student(
                    trainer.output_dir,
                    args.hub_model_id or trainer.output_dir.resolve().name,
                    push=True,
                    private=args.hub_private_repo,
                    revision=args.hub_revision,
                    token=args.hub_token,
                )
        return Adaptation(
            folder=trainer.output_dir,
            steps=last.end_step,
            tokens=last.tokens,
            before={"selection": last.target, "test": before.loss},
            after={"selection": last.loss, "test": adapted.test.loss},
            differences={"selection": last.match, "test": match},
        )
