"""Run the embedded default: the whole loop on real text, without a download, in minutes on two cores."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils import WeakFileLock
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from ..config import DataConfig, InherituneConfig, RunConfig
from ..data import DataSplits, Document, split_standard_library, splits_from_documents, standard_library_documents
from ..publishing import ResultRow
from ..records import cache_folder, digest_of
from ..students import open_reference, student_skeleton
from ..training import InherituneTrainer, hold_output_dir, numeric_arguments, on_main_process
from .arm_models import random_model
from .assessment import continue_text
from .results import TRAINED_FURTHER
from .runs import (
    Control,
    PreparedRun,
    RunResult,
    conclude_run,
    finish_run,
    refuse_early,
    run_settings,
    train_control,
    train_student,
    with_changes,
)

_END_OF_TEXT = "<|endoftext|>"
_PROMPT = "def __init__(self, name"


@dataclass(frozen=True)
class EmbeddedShape:
    """Sizes of the embedded reference and its data."""

    vocabulary: int = 4096  # entries of the byte-level BPE
    width: int = 128  # hidden size
    heads: int = 4
    layers: int = 8
    block_size: int = 128  # tokens
    steps: int = 500  # of pre-training
    sequences_per_document: int = 8  # in the selection and test sets


_REFERENCE_LEARNING_RATE = 2e-3
# Added to the run's data seed, so that no run or comparison uses the same one.
_REFERENCE_DATA_SEED = 1_000_003


def run_embedded(
    run: RunConfig,
    recipe: InherituneConfig,
    data: DataConfig,
    args: TrainingArguments,
    console: Console,
    shape: EmbeddedShape | None = None,
) -> RunResult:
    """
    Train a tokenizer and a reference on the running interpreter's standard library, then run the recipe on them.

    The reference is cached. Beside the student two controls are trained on the same data: a model of the student's
    shape from random weights, and the reference, trained further, each for the student's total steps. All of them have
    checkpoints, and what is finished is not trained again.

    Raises:
        KeyboardInterrupt: If the reference or a control was interrupted; the same call resumes it.
        ValueError: If settings do not fit together, or name a reference's revision or data.
        BlockingIOError: If another process runs in `output_dir`.
    """
    if run.where:
        raise ValueError(f"{', '.join(run.where)} came without a reference: give its Hub id or path by --reference.")
    shape = shape or EmbeddedShape()
    with hold_output_dir(args):
        ready = prepare_embedded(recipe, data, args, console, shape)
        console.rule("inherit, train, compare, grow")
        trainer = train_student(ready, run, recipe, args, run_settings(run, recipe, data, args))
        if trainer.outcome == "interrupted":
            return RunResult("interrupted", trainer.output_dir, conclude_run(trainer))
        console.rule("controls and test")
        return finish_run(
            trainer,
            ready.splits,
            console,
            train_controls=lambda: _controls(trainer, ready),
            reference_steps=shape.steps,
            remarks=lambda rows: _remarks(trainer, rows, ready),
        )


def prepare_embedded(
    recipe: InherituneConfig,
    data: DataConfig,
    args: TrainingArguments,
    console: Console,
    shape: EmbeddedShape | None = None,
) -> PreparedRun:
    """
    Make the embedded default's tokenizer, reference and data, or find them in the cache.

    Raises:
        KeyboardInterrupt: If the reference's training was interrupted; the same call resumes it.
        ValueError: If settings do not fit together, or `data` is not the default: the embedded run brings its own.
    """
    shape = shape or EmbeddedShape()
    _refuse_data(data)
    refuse_early(recipe, args, _reference_config(shape, 0))
    documents = standard_library_documents()
    train, selection, test = split_standard_library(documents)
    folder = embedded_folder(shape, args, documents)
    with _hold_cache(folder, args, console):
        console.rule("text and tokenizer")
        with args.main_process_first(desc="training the tokenizer"):
            tokenizer = _tokenizer(folder / "tokenizer", train, shape, progress=not args.disable_tqdm)
        splits = splits_from_documents(
            train,
            selection,
            test,
            tokenizer,
            block_size=shape.block_size,
            max_sequences_per_document=shape.sequences_per_document,
        )
        facts = splits.facts
        console.print(
            f"{len(documents)} files of the Python standard library: {facts.train.documents} to train on, "
            f"{facts.selection.documents} for selection, {facts.test.documents} for the test; "
            f"{facts.train.tokens:,} tokens to train on."
        )
        console.rule(f"reference of {shape.layers} layers")
        reference = folder / "reference"
        if on_main_process((reference / "config.json").is_file()):
            console.print(f"found in {reference}")
        else:
            _train_reference(reference, tokenizer, splits, args, shape)
    return PreparedRun(open_reference(reference), tokenizer, splits)


def embedded_folder(shape: EmbeddedShape, args: TrainingArguments, documents: list[Document]) -> Path:
    """Return the cache folder of the embedded tokenizer and reference for these sizes, settings, versions and text."""
    text = hashlib.sha256()
    for document in documents:
        text.update(document.name.encode())
        text.update(document.text.encode("utf-8", "surrogatepass"))
    key = {
        "shape": asdict(shape),
        "settings": numeric_arguments(_reference_settings(args, shape)),
        "text": text.hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return cache_folder(f"embedded-{digest_of(key)}")


@contextlib.contextmanager
def _hold_cache(folder: Path, args: TrainingArguments, console: Console) -> Iterator[None]:
    """Let one run at a time fill `folder`; others wait, and find it filled."""
    with contextlib.ExitStack() as held:
        if args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(WeakFileLock(folder / ".lock", timeout=1.0))
            except TimeoutError:
                console.print("Another run is making the same reference; this one waits for it.")
                held.enter_context(WeakFileLock(folder / ".lock"))
        with args.main_process_first():
            pass  # the other processes wait with the main one
        yield


def _refuse_data(data: DataConfig) -> None:
    plain = DataConfig()
    given = [item.name for item in fields(data) if getattr(data, item.name) != getattr(plain, item.name)]
    if given:
        raise ValueError(
            f"{' and '.join(given)} came without a reference: give the reference's Hub id or path by --reference, or "
            "leave the data out to run the embedded default."
        )


def _tokenizer(folder: Path, train: list[Document], shape: EmbeddedShape, progress: bool) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE on the training documents, or load it from the cache."""
    if not (folder / "tokenizer.json").is_file():
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        core.train_from_iterator(
            (document.text for document in train),
            trainers.BpeTrainer(
                vocab_size=shape.vocabulary,
                special_tokens=[_END_OF_TEXT],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=progress,
            ),
        )
        fast: Any = PreTrainedTokenizerFast
        fresh = fast(
            tokenizer_object=core, bos_token=_END_OF_TEXT, eos_token=_END_OF_TEXT, model_max_length=shape.block_size
        )
        _save_whole(folder, fresh.save_pretrained)
    loaded: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


def _train_reference(
    folder: Path, tokenizer: PreTrainedTokenizerBase, splits: DataSplits, args: TrainingArguments, shape: EmbeddedShape
) -> None:
    """Pre-train the reference and cache it."""
    model = random_model(_reference_config(shape, tokenizer.eos_token_id), args.seed)
    settings, work = _reference_settings(args, shape), folder.parent / "work"
    control = train_control(model, settings, splits, shape.steps, "reference", work)
    if args.should_save:
        _save_whole(folder, control.model.save_pretrained, tokenizer.save_pretrained)
        shutil.rmtree(work)
    with args.main_process_first():
        pass  # the other processes wait until the reference is on disk


def _reference_config(shape: EmbeddedShape, end_of_text: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.block_size,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )


def _reference_settings(args: TrainingArguments, shape: EmbeddedShape) -> TrainingArguments:
    # Another data order: students and controls do not repeat the reference's batches.
    data_seed = (args.seed if args.data_seed is None else args.data_seed) + _REFERENCE_DATA_SEED
    return with_changes(args, learning_rate=_REFERENCE_LEARNING_RATE, eval_steps=shape.steps // 2, data_seed=data_seed)


def _controls(trainer: InherituneTrainer, ready: PreparedRun) -> Mapping[str, Control]:
    """Train random weights of the student's shape, and the reference further, for the student's total steps."""
    last = trainer.rounds[-1]
    steps = max(1, last.end_step)  # none if the whole reference was inherited, which matches untrained
    work = trainer.output_dir / "controls"
    settings = with_changes(trainer.args, eval_steps=max(1, steps // 4))
    shape = student_skeleton(ready.reference.config, range(last.layers)).config
    models: dict[str, str | PreTrainedModel] = {
        "random weights": random_model(shape, trainer.args.seed),
        TRAINED_FURTHER: ready.reference.name,
    }
    return {
        name: train_control(model, settings, ready.splits, steps, name, work / f"{number}-{steps}-steps")
        for number, (name, model) in enumerate(models.items(), 1)
    }


def _remarks(trainer: InherituneTrainer, rows: list[ResultRow], ready: PreparedRun) -> str:
    """Return a sample of generated text, and a paragraph on what the run shows and what it does not."""
    original, student, random, continued = rows
    ahead = "ahead of" if continued.loss < student.loss else "not ahead of"
    inherited = "better" if student.loss < random.loss else "no better"
    sample = _sample(trainer.student, ready.tokenizer)
    whole = _sample(ready.reference.load(dtype=torch.float32), ready.tokenizer)
    return (
        f"Sample, student:\n{sample}\n\nSample, reference:\n{whole}\n\n"
        f"What this shows: {conclude_run(trainer, rows).sentence}. On the test set the student is {inherited} than a "
        f"model of the same shape from random weights given the same {student.steps} steps ({student.loss:.3f} against "
        f"{random.loss:.3f} nats per token). The starting reference is what it was compared with; the reference, "
        f"trained further for those steps, is {ahead} the student ({continued.loss:.3f}). What it does not show: the "
        f"reference has {original.parameters:,} parameters and is far from converged, so part of the gain is more "
        "training, not inheritance; one seed and one small "
        "corpus of program text say nothing about the sizes in the paper."
    )


def _sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    text = _PROMPT + continue_text(model, tokenizer(_PROMPT)["input_ids"], tokenizer)
    return "    " + text.replace("\n", "\n    ")


def _save_whole(folder: Path, *savers: Any) -> None:
    """Let `savers` fill a folder that appears when it is complete."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for save in savers:
        save(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
