"""`inheritune analyze`: see which layers of a model are lazy, and how many are worth keeping."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..records import write_json


def analyze(argv: Sequence[str], prog: str = "inheritune analyze") -> int:
    """
    Measure a model, print a table and a recommendation, and write JSON, CSV and pictures.

    Returns:
        `int`: Exit status, 0 or 1.
    """
    parser = argparse.ArgumentParser(prog=prog, description="See which layers of a model are lazy.")
    parser.add_argument("reference", help="Hub id or path of a reference or a student.")
    parser.add_argument("--output", help="Folder for JSON, CSV and pictures (default: analysis-NAME).")
    parser.add_argument("--files", nargs="+", default=[], help="Text, JSONL or Parquet files to measure on.")
    parser.add_argument("--sequences", type=int, default=100, help="Sequences (default: 100, as in the paper).")
    parser.add_argument("--tokens", type=int, help="Tokens of each (default: 100, as in the paper).")
    parser.add_argument("--tau", type=float, default=0.9, help="Share of the squared spectrum (default: 0.9).")
    parser.add_argument(
        "--heads",
        nargs="+",
        type=_layer_and_head,
        metavar="LAYER:HEAD",
        help="Heads to draw (default: four of all ranks).",
    )
    parser.add_argument("--revision", help="Branch, tag or commit on the Hub.")
    parser.add_argument("--dtype", default="auto", help="Precision to load in (default: as saved).")
    parser.add_argument("--device-map", "--device_map", help="Where to load it, such as auto, cuda or cpu.")
    parser.add_argument("--no-controls", action="store_true", help="Leave out the randomly initialised twin.")
    parser.add_argument("--no-blocks", action="store_true", help="Leave out influence and losses of blocks.")
    parser.add_argument("--no-cache", action="store_true", help="Measure anew, and keep no scores.")
    options = parser.parse_args(argv)

    from rich.console import Console
    from transformers.utils import logging as transformers_output

    from ..analysis import (
        SHARES,
        default_sequences,
        measure_collapse,
        paper_tokens,
        recommend_layers,
        scores_folder,
    )
    from ..analysis.plots import draw_report, layer_table
    from ..students import load_tokenizer

    transformers_output.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = {} if options.revision is None else {"revision": options.revision}
    placed = {} if options.device_map is None else {"device_map": options.device_map}
    try:
        tokenizer = load_tokenizer(options.reference, **source)
        tokens = options.tokens or paper_tokens(options.reference, **source)
        sequences = default_sequences(tokenizer, options.sequences, tokens, options.files)
        report = measure_collapse(
            options.reference,
            sequences,
            shares=(*SHARES, options.tau),
            controls=not options.no_controls,
            blocks=not options.no_blocks,
            heads=options.heads,
            cache_dir=None if options.no_cache else scores_folder(),
            progress=True,
            dtype=options.dtype,
            **source,
            **placed,
        )
        advice = recommend_layers(report, tau=options.tau)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    folder = Path(options.output or f"analysis-{Path(options.reference).name}")
    pictures = draw_report(report, folder, options.tau)
    report.to_json(folder / "collapse.json")
    report.to_pandas().to_csv(folder / "collapse.csv", index=False)
    write_json(folder / "recommendation.json", advice.to_dict())
    console = Console()
    console.print(layer_table(report, options.tau))
    for line in (*advice.evidence, *advice.disagreements):
        console.print(f"· {line}", highlight=False)
    console.print(f"keep_layers: {len(advice.layers)} of {advice.depth} (experimental; basis: {advice.basis})")
    console.print(f"saved in {folder}: collapse.json, collapse.csv, " + ", ".join(path.name for path in pictures))
    return 0


def _layer_and_head(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"a head is LAYER:HEAD, both counted from 0, such as 4:2; got {text!r}.")
    return int(match[1]), int(match[2])
