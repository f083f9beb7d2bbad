"""The verbs that measure models: `analyze` one, or `evaluate` a student beside its reference."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import reference_options
from ..data.embedded import SEQUENCES
from ..foreign_text import file_names
from ..records import cache_folder, encode, write_json
from .parsing import VerbParser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..evaluation import Corpus


def analyze(argv: Sequence[str], prog: str) -> int:
    """Measure a model, print a table and a recommendation, and write JSON, CSV and pictures."""
    parser = VerbParser(prog, "See which layers of a model are lazy.")
    add = parser.add_argument
    add("reference", help="Hub id or path of a reference or a student.")
    add("--output", help="Folder for JSON, CSV and pictures (default: analysis-NAME).")
    add("--files", nargs="+", default=[], help="Text, JSONL or Parquet files to measure on.")
    add("--sequences", type=int, default=100, help="Sequences (default: 100, as in the paper).")
    add("--tokens", type=int, help="Tokens of each (default: 100, as in the paper).")
    add("--tau", type=float, default=0.9, help="Share of the squared spectrum (default: 0.9).")
    add(
        "--heads",
        nargs="+",
        type=_layer_and_head,
        metavar="LAYER:HEAD",
        help="Heads to draw (default: four of all ranks).",
    )
    parser.add_shared("--revision", "--text-model", "--gguf-file")
    add("--dtype", default="auto", help="Precision to load in (default: as saved).")
    add("--device-map", help="Where to load it, such as auto, cuda or cpu.")
    add("--no-controls", action="store_true", help="Leave out the randomly initialised twin.")
    add("--no-blocks", action="store_true", help="Leave out influence and losses of blocks.")
    add(
        "--untrained",
        action="store_true",
        help="Show losses of students before training, by first layers and by every measure.",
    )
    add("--no-cache", action="store_true", help="Measure again, and keep no scores.")
    options = parser.parse_args(argv)

    from ..analysis import (
        SHARES,
        default_sequences,
        measure_collapse,
        measure_untrained,
        paper_tokens,
        recommend_layers,
        scores_folder,
    )
    from ..analysis.plots import draw_report, layer_table
    from ..students import open_reference
    from .tables import show_untrained
    from .terminal import Terminal, log_to_terminal, quiet_transformers

    log_to_terminal()
    quiet_transformers(warnings=True)
    placed = {} if options.device_map is None else {"device_map": options.device_map}
    model = open_reference(options.reference, **reference_options(options))
    tokens = options.tokens or paper_tokens(model)
    sequences = default_sequences(model.tokenizer, options.sequences, tokens, options.files)
    how = {
        "cache_dir": None if options.no_cache else scores_folder(),
        "progress": True,
        "dtype": options.dtype,
        **placed,
    }
    report = measure_collapse(
        model,
        sequences,
        shares=(*SHARES, options.tau),
        controls=not options.no_controls,
        blocks=not options.no_blocks,
        heads=options.heads,
        **how,
    )
    folder = Path(options.output or f"analysis-{Path(options.reference).name}")
    pictures = draw_report(report, folder, options.tau)
    report.to_json(folder / "collapse.json")
    report.to_pandas().to_csv(folder / "collapse.csv", index=False)
    terminal = Terminal()
    terminal.print(layer_table(report, options.tau))
    try:
        advice = recommend_layers(report, tau=options.tau)
    except ValueError as error:  # there is no attention to go by
        terminal.print(f"· {error}")
    else:
        write_json(folder / "recommendation.json", encode(advice))
        for line in (*advice.evidence, *advice.disagreements):
            terminal.print(f"· {line}")
        terminal.print(f"keep_layers: {len(advice.layers)} of {advice.depth} (experimental; basis: {advice.basis})")
    names = ["collapse.json", "collapse.csv", *(path.name for path in pictures)]
    if options.untrained:
        found = measure_untrained(model, sequences, **how)
        write_json(folder / "untrained.json", encode(found))
        names.append("untrained.json")
        show_untrained(terminal, found)
    terminal.print_facts([("saved in", f"{folder}: {', '.join(names)}")])
    return 0


def _layer_and_head(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"a head is LAYER:HEAD, both counted from 0, such as 4:2; got {text!r}.")
    return int(match[1]), int(match[2])


def evaluate(argv: Sequence[str], prog: str) -> int:
    """Measure a student beside its reference, print tables and write `evaluation.json`."""
    options = _evaluation_parser(prog).parse_args(argv)

    from ..evaluation import TaskSettings
    from ..experiments import evaluate_student
    from ..run_folder import EVALUATION_FILE
    from ..students import load_tokenizer
    from .tables import show_evaluation
    from .terminal import Terminal, log_to_terminal, quiet_transformers

    log_to_terminal(logging.INFO)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    quiet_transformers(warnings=True)
    student = Path(options.student)
    output = Path(options.output) if options.output else (student if student.is_dir() else Path()) / EVALUATION_FILE
    tasks = [*options.tasks, *options.task_files]
    tokenizer = load_tokenizer(options.student)
    found = evaluate_student(
        options.student,
        options.reference,
        _corpora(options, tokenizer, prog),
        tokenizer,
        parts=[*options.parts, *(["tasks"] if tasks else [])],
        output=output,
        tolerance=options.tolerance,
        confidence=options.confidence,
        batch_size=options.batch_size,
        dtype=options.dtype,
        adapted=options.adapted,
        tasks=tasks,
        task_settings=TaskSettings(options.num_fewshot, options.apply_chat_template, options.max_gen_toks),
        task_limit=options.task_limit,
        cache_dir=cache_folder("evaluation"),
        efficiency={
            "batch_sizes": options.generation_batches,
            "settings": options.settings,
            "new_tokens": options.new_tokens,
            "repeats": options.repeats,
        },
        reference_kwargs=reference_options(options),
        command=shlex.join([*prog.split(), *argv]),
    )
    terminal = Terminal()
    show_evaluation(terminal, found)
    terminal.print_facts([("saved in", output)])
    return 0


def _evaluation_parser(prog: str) -> VerbParser:
    parser = VerbParser(prog, "Measure a student beside its reference.")
    add = parser.add_argument
    add("student", help="Folder or Hub id of the student.")
    add("--reference", help="Folder or Hub id of the reference (default: what the student's lineage names).")
    parser.add_shared("--revision", "--text-model", "--gguf-file")
    add(
        "--adapted",
        help="The reference trained further on the same text, by inheritune adapt: a third model beside them.",
    )
    add("--files", nargs="+", default=[], help="Text to evaluate on (default: test passages of the package's novels).")
    add("--config", metavar="FILE", help="Recipe of the run: its own test set is evaluated on.")
    add(
        "--second-files",
        nargs="+",
        action="append",
        default=[],
        help="A further corpus to check the verdict on; may be given several times.",
    )
    add("--text-column", default="text", help="Column that holds a document (default: text).")
    add("--block-size", type=int, help="Tokens of a sequence (default: the context, at most 1024).")
    add(
        "--max-sequences",
        type=int,
        help=f"Sequences kept of each document (default: {SEQUENCES} of the package's novels, all of files).",
    )
    add("--tolerance", type=float, help="Nats per token that still match (default: the run's own, or 0.01).")
    add("--confidence", type=_confidence, default=0.95, help="One-sided; none compares means (default: 0.95).")
    add("--batch-size", type=int, default=8, help="Sequences at a time (default: 8).")
    add("--dtype", default="float32", help="Type of both models' weights (default: float32).")
    parts = ("loss", "efficiency", "draft", "layers", "samples")
    add("--parts", nargs="+", choices=parts, default=list(parts), help="What to measure (default: everything).")
    add("--tasks", nargs="+", default=[], help="Tasks of lm-evaluation-harness, by name.")
    add("--task-files", nargs="+", default=[], help="Tasks in JSONL files.")
    add("--num-fewshot", type=int, help="Examples before each question (default: the task's own number, or none).")
    add("--apply-chat-template", action="store_true", help="Ask in turns of a conversation, by the chat template.")
    add("--max-gen-toks", type=int, help="Most tokens of a generated answer (default: the task's own number, or 256).")
    add("--task-limit", type=int, help="Rows of each task (default: all).")
    add("--settings", nargs="+", help="Attention to time: sdpa, eager, sdpa+compile, eager+compile.")
    add(
        "--generation-batches",
        nargs="+",
        type=int,
        default=[1, 8],
        help="Sequences generated at a time when timing (default: 1 8).",
    )
    add("--new-tokens", type=int, default=32, help="Tokens to generate when timing (default: 32).")
    add("--repeats", type=int, default=7, help="Times each figure is timed (default: 7).")
    add("--output", help="File to write (default: evaluation.json in the student's folder).")
    return parser


def _confidence(text: str) -> float | None:
    from ..config import one_sided

    try:
        return one_sided(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _corpora(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, prog: str) -> list[Corpus]:
    """Return the test set, then the further corpora to check the verdict on."""
    from ..data import load_data_splits, set_fingerprint
    from ..evaluation import Corpus, read_corpus
    from ..students import open_reference
    from .settings import parse_plan

    text = open_reference(options.student).text_config
    block = options.block_size or min(getattr(text, "max_position_embeddings", None) or 1024, 1024)

    def read(files: Sequence[str], most: int | None) -> Corpus:
        corpus = read_corpus(files, tokenizer, text.vocab_size, block, most, options.text_column)
        return dataclasses.replace(corpus, name=file_names(files) or corpus.name)

    if options.config and options.files:
        raise ValueError("Give --config or --files, not both.")
    if options.config:
        # Only its data and its seed are of use here: the run may be of a machine with other hardware.
        run, _ = parse_plan(["--config", options.config], lambda parser: parser.add_argument("source", nargs="?"), prog)
        known = {"vocab_size": text.vocab_size, "context_length": getattr(text, "max_position_embeddings", None)}
        most = options.max_sequences or run.data.max_sequences_per_document
        data = dataclasses.replace(run.data, max_sequences_per_document=most)
        splits = load_data_splits(data, tokenizer, block_size=options.block_size, seed=run.args.seed, **known)
        first = Corpus(f"test set of {Path(options.config).name}", splits.test, set_fingerprint(splits.test))
    else:
        first = read(options.files, options.max_sequences or (None if options.files else SEQUENCES))
    return [first, *(read(files, options.max_sequences) for files in options.second_files)]
