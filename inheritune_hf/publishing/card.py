"""The model card: records in, text out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ..records import Round, RunRecord

_OUTCOMES = {
    "matched": "The student **matched** its target.",
    "no_more_layers": "The student **missed** its target: there were no more layers to grow by.",
    "budget_exhausted": "The student **missed** its target: the step budget was used up.",
    "interrupted": "The run was **interrupted** before it was decided whether the student matches its target.",
    None: "The student was cut out of its reference and **not trained**.",
}


def render_card(record: RunRecord, name: str, facts: Mapping[str, Any] | None = None) -> str:
    """
    Return a model card, with metadata that `huggingface_hub.ModelCard` accepts.

    Args:
        record (`RunRecord`): Recipe, lineage, rounds and outcome.
        name (`str`): Name of the model.
        facts (`Mapping[str, Any]`, *optional*): Further card metadata, such as `license`, `language` or `datasets`.
    """
    lineage = record.lineage
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["inheritune", "generated_from_trainer", "arxiv:2404.08634"],
    }
    # A path on somebody's machine is no model on the Hub, and nobody's business.
    local = Path(lineage.reference).is_absolute() or Path(lineage.reference).exists()
    if not local:
        metadata["base_model"] = lineage.reference
    reference = Path(lineage.reference).name if local else lineage.reference
    metadata.update(facts or {})
    layers = len(lineage.kept_layers)
    lines = [
        "---",
        str(ModelCardData(**metadata)),
        "---",
        "",
        f"# {name}",
        "",
        f"This model inherits {layers} of the {lineage.reference_layers} layers of `{reference}`, and everything "
        "outside its blocks, by Inheritune (arXiv 2404.08634). It is an ordinary Transformers checkpoint.",
        "",
        _OUTCOMES[record.outcome],
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        "```",
        "",
        "## Layers",
        "",
        "".join("█" if layer in lineage.kept_layers else "░" for layer in range(lineage.reference_layers)),
        "",
        f"Kept (█): {', '.join(map(str, lineage.kept_layers))} (0-based).",
        "",
    ]
    if record.rounds:
        lines += ["## Rounds", "", *_rounds_table(record.rounds), "", _rule(record), ""]
    if "license" not in metadata:
        lines += ["## Licence", "", "The licence of the reference is not known here; it applies to this model too.", ""]
    lines += ["## Recipe", "", "```json", json.dumps(dict(record.recipe), indent=1), "```", ""]
    return "\n".join(lines)


def _rule(record: RunRecord) -> str:
    """Return how rounds were judged, and what weakens the judgement."""
    tolerance, confidence = record.recipe.get("tolerance"), record.recipe.get("confidence")
    if confidence is None:
        rule = f"A round matches if its loss is at most {tolerance} nats per token above the target."
    else:
        rule = (
            f'A round matches if the one-sided {confidence:.0%} upper bound of its difference ("up to") is at most '
            f"{tolerance} nats per token; bounds cluster by document."
        )
    notes = sorted({item.match.note for item in record.rounds if item.match.note})
    return " ".join([rule, *(f"Note: {note}." for note in notes)])


def _rounds_table(rounds: tuple[Round, ...]) -> list[str]:
    rows = [
        "| round | layers | steps | tokens | loss (nats per token) | target | difference | matched |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in rounds:
        verdict = "yes" if item.match.matched else "no"
        interval = "" if item.match.upper is None else f" (up to {item.match.upper:+.4f})"
        rows.append(
            f"| {item.index} | {item.layers} | {item.end_step - item.start_step:,} | {item.tokens:,} | "
            f"{item.loss:.4f} | {item.target:.4f} | {item.match.difference:+.4f}{interval} | {verdict} |"
        )
    return rows
