"""
Draw the pictures of docs/explanation/lazy-layers.md: a reference that was trained here, and one that was made lazy.

    python docs/results/lazy_layers.py

The first is the embedded reference. The second is that reference with the heads of its last three layers forced to the
first token: their queries and keys are rewritten, and one number of the first position's embedding.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from inheritune_hf.analysis import compare_laziness, default_sequences, measure_collapse, recommend_layers
from inheritune_hf.analysis.plots import draw_report
from inheritune_hf.data.embedded import embedded_reference
from inheritune_hf.records import encode, write_json

HERE = Path(__file__).parent
FORCED = (9, 10, 11)


def force_one_column(model: torch.nn.Module, layers: tuple[int, ...], sequences: torch.Tensor) -> None:
    """
    Let every head of some layers of a GPT-2 look at the first token alone.

    The first token's position embedding gets a value that no token has in these layers, in the direction in which they
    have the least; queries are the same for every token, and only that direction answers them.
    """
    size = model.config.n_embd
    width = size // model.config.n_head
    with torch.no_grad():
        states = model(input_ids=sequences, output_hidden_states=True).hidden_states
        seen = torch.cat([nn.functional.layer_norm(states[layer], (size,))[:, 1:].flatten(0, 1) for layer in layers])
        high, low = seen.amax(0), -seen.amin(0)
        free = int(torch.minimum(high, low).argmin())
        sign = 1.0 if high[free] < low[free] else -1.0
        model.transformer.wpe.weight[0, free] = 12.0 * sign
        for layer in layers:
            block = model.transformer.h[layer]
            attention = block.attn.c_attn
            attention.weight[:, : 2 * size] = 0
            attention.bias[: 2 * size] = 0
            attention.bias[:size:width] = 40.0 * (layer + 1)  # this reference divides scores by the layer's number
            attention.weight[free, size : 2 * size : width] = 40.0 * sign * block.ln_1.weight[free].sign()


def main() -> None:
    """Measure both models on the same sequences, draw them, and write down the figures that the page quotes."""
    torch.set_num_threads(1)
    reference = embedded_reference()
    sequences = default_sequences(AutoTokenizer.from_pretrained(reference))
    trained = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    trained.name_or_path = "trained here"
    forced = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    forced.name_or_path = "forced"
    force_one_column(forced, FORCED, sequences)
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
    main()
