"""`inheritune evaluate`: a student beside its reference."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..evaluation import Corpus


def evaluate(argv: Sequence[str], prog: str = "inheritune evaluate") -> int:
    """
    Measure a student beside its reference, print tables and write `evaluation.json`.

    Returns:
        `int`: Exit status, 0 or 1; wrong usage ends with 2.
    """
    options = _parser(prog).parse_args(argv)

    from huggingface_hub.constants import HF_HOME
    from rich.console import Console
    from transformers.utils import logging as transformers_output

    from ..experiments import EVALUATION_FILE, evaluate_student
    from ..students import load_tokenizer
    from .tables import show_evaluation

    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("inheritune_hf").setLevel(logging.INFO)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    transformers_output.disable_progress_bar()  # type: ignore[no-untyped-call]
    student = Path(options.student)
    output = Path(options.output) if options.output else (student if student.is_dir() else Path()) / EVALUATION_FILE
    tasks = [*options.tasks, *options.task_files]
    where = {} if options.revision is None else {"revision": options.revision}
    try:
        tokenizer = load_tokenizer(options.student)
        found = evaluate_student(
            options.student,
            options.reference,
            _corpora(options, tokenizer),
            tokenizer,
            parts=[*options.parts, *(["tasks"] if tasks else [])],
            output=output,
            tolerance=options.tolerance,
            confidence=options.confidence,
            batch_size=options.batch_size,
            dtype=options.dtype,
            tasks=tasks,
            task_limit=options.task_limit,
            task_cache=Path(HF_HOME) / "inheritune_hf" / "tasks",
            efficiency={
                "batch_sizes": options.generation_batches,
                "settings": options.settings,
                "new_tokens": options.new_tokens,
                "repeats": options.repeats,
            },
            reference_kwargs=where,
            command=shlex.join([*prog.split(), *argv]),
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    show_evaluation(Console(highlight=False), found)
    print(f"saved in    {output}")
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Measure a student beside its reference.")
    add = parser.add_argument
    add("student", help="Folder or Hub id of the student.")
    add("--reference", help="Folder or Hub id of the reference (default: what the student's lineage names).")
    add("--revision", help="Branch, tag or commit of the reference on the Hub.")
    add("--files", nargs="+", default=[], help="Text to evaluate on (default: test modules of the embedded text).")
    add("--config", metavar="FILE", help="Recipe of the run: its own test set is evaluated on.")
    add(
        "--second-files",
        "--second_files",
        nargs="+",
        action="append",
        default=[],
        help="Another corpus on which the verdict is looked at again; may be given several times.",
    )
    add("--text-column", "--text_column", default="text", help="Column that holds a document (default: text).")
    add("--block-size", "--block_size", type=int, help="Tokens of a sequence (default: the context, at most 1024).")
    add(
        "--max-sequences",
        "--max_sequences",
        type=int,
        help="Sequences kept of each document (default: 8 of the embedded text, all of files).",
    )
    add("--tolerance", type=float, default=0.01, help="Nats per token that still match (default: 0.01).")
    add("--confidence", type=_confidence, default=0.95, help="One-sided; none compares means (default: 0.95).")
    add("--batch-size", "--batch_size", type=int, default=8, help="Sequences at a time (default: 8).")
    add("--dtype", default="float32", help="Type of both models' weights (default: float32).")
    parts = ("loss", "efficiency", "draft", "layers", "samples")
    add("--parts", nargs="+", choices=parts, default=list(parts), help="What to measure (default: everything).")
    add("--tasks", nargs="+", default=[], help="Zero-shot tasks of lm-evaluation-harness, by name.")
    add("--task-files", "--task_files", nargs="+", default=[], help="Zero-shot tasks in JSONL files.")
    add("--task-limit", "--task_limit", type=int, help="Rows of each task (default: all).")
    add("--settings", nargs="+", default=["sdpa"], help="Attention to time: sdpa, eager, sdpa+compile, eager+compile.")
    add(
        "--generation-batches",
        "--generation_batches",
        nargs="+",
        type=int,
        default=[1, 8],
        help="Sequences generated at a time when timing (default: 1 8).",
    )
    add("--new-tokens", "--new_tokens", type=int, default=32, help="Tokens to generate when timing (default: 32).")
    add("--repeats", type=int, default=7, help="Times each figure is timed (default: 7).")
    add("--output", help="File to write (default: evaluation.json in the student's folder).")
    return parser


def _confidence(text: str) -> float | None:
    from ..configuration.reading import one_sided

    try:
        return one_sided(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _corpora(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> list[Corpus]:
    """Return the test set, then the corpora that the verdict is looked at on again."""
    from ..data import load_data_splits, set_fingerprint
    from ..evaluation import Corpus, read_corpus
    from ..students import load_reference_config
    from .settings import parse_settings

    text = load_reference_config(options.student).get_text_config(decoder=True)
    block = options.block_size or min(getattr(text, "max_position_embeddings", None) or 1024, 1024)

    def read(files: Sequence[str], most: int | None) -> Corpus:
        return read_corpus(files, tokenizer, text.vocab_size, block, most, options.text_column)

    if options.config and options.files:
        raise ValueError("Give --config or --files, not both.")
    if options.config:
        run = parse_settings(["--config", options.config])
        size = options.block_size or run.data.block_size or block
        splits = load_data_splits(run.data, tokenizer, block_size=size, seed=run.args.seed, vocab_size=text.vocab_size)
        first = Corpus(f"test set of {Path(options.config).name}", splits.test, set_fingerprint(splits.test))
    else:
        first = read(options.files, options.max_sequences or (None if options.files else 8))
    return [first, *(read(files, options.max_sequences) for files in options.second_files)]
