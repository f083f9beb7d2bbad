"""`inheritune data prepare`: tokenize and pack ahead of time."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence


def data(argv: Sequence[str], prog: str) -> int:
    """Prepare a folder of sequences from what the command line and its `--config` say, and print what it holds."""
    if not argv or argv[0] != "prepare":
        shown = argv and argv[0] in {"-h", "--help"}
        print(
            f"usage: {prog} prepare --tokenizer ID --output FOLDER [OPTIONS]", file=sys.stdout if shown else sys.stderr
        )
        return 0 if shown else 2
    from .settings import parse_data_settings

    options, config = parse_data_settings(argv[1:], f"{prog} prepare", _add_options)

    from ..data import check_tokenizer, prepare_data
    from ..students import load_tokenizer, open_reference
    from .tables import show_facts
    from .terminal import Terminal, log_to_terminal

    log_to_terminal()
    inside = {} if options.gguf_file is None else {"gguf_file": options.gguf_file}
    tokenizer = load_tokenizer(options.tokenizer, **inside)
    try:
        reference = open_reference(options.tokenizer, **inside).text_config
    except (OSError, ValueError):  # a tokenizer alone, or beside a model that no student is made of
        reference = None
    if reference is not None:
        check_tokenizer(tokenizer, reference.vocab_size, getattr(reference, "eos_token_id", None))
    facts = prepare_data(
        config,
        tokenizer,
        options.output,
        seed=options.seed,
        vocab_size=getattr(reference, "vocab_size", None),
        context_length=getattr(reference, "max_position_embeddings", None),
        progress=_progress(),
    )
    show_facts(Terminal(), facts, options.output)
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer", required=True, metavar="ID", help="Hub id or folder of the reference, or of its tokenizer alone."
    )
    parser.add_argument("--gguf-file", metavar="FILE", help="GGUF file of the reference, which holds the tokenizer.")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="Folder to save the sequences in.")
    parser.add_argument(
        "--seed", type=int, default=42, metavar="N", help="Seed by which documents are held out (default: 42)."
    )


def _progress() -> Callable[[int, int], None]:
    began: list[tuple[float, int]] = []

    def show(done: int, total: int) -> None:
        # What an earlier call had finished passes in an instant: the time left is told from the parts after the first.
        began.append((time.monotonic(), done))
        (then, before), (now, _) = began[0], began[-1]
        left = "" if done == before else f" · {(now - then) / (done - before) * (total - done) / 60:.0f} min left"
        print(f"tokenized {done:,} of {total:,} documents{left}", file=sys.stderr)

    return show
