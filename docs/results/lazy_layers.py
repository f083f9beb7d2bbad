"""
Draw the pictures of docs/explanation/lazy-layers.md: a reference that was trained here, and one that was made lazy.

    python docs/results/lazy_layers.py REFERENCE

REFERENCE is the folder of the embedded reference, which `inheritune train` (without a reference) keeps below
`HF_HOME/inheritune_hf/`. The second model is that reference with the heads of its last three layers forced to the first
token: their queries and keys are rewritten, and one number of the first position's embedding.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inheritune_hf.analysis import compare_laziness, default_sequences, measure_collapse, recommend_layers
from inheritune_hf.analysis.plots import draw_report
from inheritune_hf.records import encode, write_json

HERE = Path(__file__).parent
FORCED = (5, 6, 7)


def force_one_column(model: torch.nn.Module, layers: tuple[int, ...]) -> None:
    """
    Let every head of some layers of a GPT-2 look at the first token alone.

    The first token's position embedding is made long in a direction of its own, which the norms keep; queries are the
    same for every token, and only that direction answers them.
    """
    size = model.config.n_embd
    width = size // model.config.n_head
    with torch.no_grad():
        positions, tokens = model.transformer.wpe.weight, model.transformer.wte.weight
        free = int((positions.std(0) + tokens.std(0)).argmin())
        positions[0, free] = 1e3
        for layer in layers:
            block = model.transformer.h[layer]
            attention = block.attn.c_attn
            attention.weight[:, : 2 * size] = 0
            attention.bias[: 2 * size] = 0
            attention.bias[:size:width] = 40.0
            attention.weight[free, size : 2 * size : width] = 40.0 * block.ln_1.weight[free].sign()


def main(reference: str) -> None:
    """Measure both models on the same sequences, draw them, and write down the figures that the page quotes."""
    torch.set_num_threads(1)
    sequences = default_sequences(AutoTokenizer.from_pretrained(reference))
    trained = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    trained.name_or_path = "trained here"
    forced = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    forced.name_or_path = "forced"
    force_one_column(forced, FORCED)
    reports = {"trained": measure_collapse(trained, sequences), "forced": measure_collapse(forced, sequences)}
    for name, report in reports.items():
        draw_report(report, HERE / f"lazy-{name}")
    figures = {
        name: {
            "max_ranks": [round(value, 2) for value in report.max_ranks() if value is not None],
            "random": [round(value, 2) for value in report.max_ranks(random=True) if value is not None],
            "avg_masses": [round(value, 1) for value in report.avg_masses() if value is not None],
            "loss": round(report.blocks.loss, 3) if report.blocks else None,
            "recommendation": encode(recommend_layers(report)),
        }
        for name, report in reports.items()
    }
    comparison = compare_laziness(reports["trained"], reports["forced"]).sentence
    write_json(HERE / "lazy-layers.json", {**figures, "comparison": comparison})


if __name__ == "__main__":
    main(*sys.argv[1:])
