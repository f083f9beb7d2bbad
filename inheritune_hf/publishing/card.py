"""The model card: records in, text out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration import InherituneConfig
from ..records import Round, RunRecord
from .licences import licence_section

_OUTCOMES = {
    "matched": "The student **matched** its target.",
    "no_more_layers": "The student **missed** its target: there were no more layers to grow by.",
    "budget_exhausted": "The student **missed** its target: the step budget was used up.",
    "interrupted": "The run was **interrupted** before it was decided whether the student matches its target.",
    None: "The student was cut out of its reference and **not trained**: expect it to be much worse.",
}

_TAGS = ["inheritune", "generated_from_trainer", "arxiv:2404.08634"]
# What the run says; everything else in the metadata is the author's once a card is there.
_MANAGED = ("base_model", "base_model_relation", "library_name", "pipeline_tag", "model-index")
_BEGIN, _END = "<!-- inheritune: begin -->", "<!-- inheritune: end -->"

_CITATION = """```bibtex
@article{sanyal2024inheritune,
  title   = {When Attention Collapses: How Degenerate Layers in LLMs Enable Smaller, Stronger Models},
  author  = {Sanyal, Sunny and Shwartz-Ziv, Ravid and Dimakis, Alexandros G. and Sanghavi, Sujay},
  journal = {arXiv preprint arXiv:2404.08634},
  year    = {2024}
}
```"""


@dataclass(frozen=True)
class CardFacts:
    """
    What a card tells that is not in the run's record; what is not known is left out of it.

    Args:
        license (`str`, *optional*): Licence of the reference, as the Hub calls it.
        license_name (`str`, *optional*): Its name, where `license` is `other`.
        license_link (`str`, *optional*): Where its text is.
        language (`tuple[str, ...]`): Languages, as the Hub calls them.
        datasets (`tuple[str, ...]`): Data sets of the Hub that the student was trained on.
        parameters (`int`, *optional*): Parameters of the student; shared ones count once.
        reference_parameters (`int`, *optional*): Parameters of the reference.
        operations (`float`, *optional*): Floating-point operations of one training token.
        reference_operations (`float`, *optional*): The same of the reference.
        test_loss (`float`, *optional*): The student's loss on the test set, in nats per token.
        reference_test_loss (`float`, *optional*): The reference's, on the same sequences.
        pictures (`tuple[str, ...]`): Names of pictures beside the card.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    parameters: int | None = None
    reference_parameters: int | None = None
    operations: float | None = None
    reference_operations: float | None = None
    test_loss: float | None = None
    reference_test_loss: float | None = None
    pictures: tuple[str, ...] = ()


def render_card(record: RunRecord, name: str, facts: CardFacts | None = None) -> str:
    """
    Return a model card, with metadata that `huggingface_hub.ModelCard` accepts.

    Args:
        record (`RunRecord`): Recipe, lineage, rounds and outcome.
        name (`str`): Name of the model, on the Hub or of its folder.
        facts (`CardFacts`, *optional*): What is known besides.
    """
    facts = facts or CardFacts()
    lineage = record.lineage
    reference = f"`{lineage.reference_name}`"
    layers = len(lineage.kept_layers)
    intro = (
        f"{layers} of the {lineage.reference_layers} layers of {reference}, and everything outside its blocks, by "
        "[Inheritune](https://arxiv.org/abs/2404.08634): inherit the first layers, train, compare, grow until the "
        "reference's loss is matched. It is an ordinary Transformers checkpoint: nothing else is needed to load it."
    )
    sections = {
        "": [f"# {name}", "", intro, "", _verdict(record)],
        "How to load it": _loading(name),
        "Layers": _layers(record, facts),
        "Rounds": [*_rounds_table(record.rounds), "", _rule(record), *_curve(facts)] if record.rounds else [],
        "Evaluation": _evaluation(record, facts),
        "Size and speed": _size(record, facts),
        "Data and budget": _budget(record, facts),
        "Limits": _limits(record),
        "Licence": licence_section(facts.license, facts.license_name, facts.license_link, lineage.reference_name),
        "How to reproduce": _reproduction(record),
        "Citation": [_CITATION],
    }
    body = ["\n".join(([f"## {title}", ""] if title else []) + lines) for title, lines in sections.items() if lines]
    metadata = ModelCardData(**_metadata(record, name, facts))
    return "\n".join(["---", str(metadata), "---", "", _BEGIN, "\n\n".join(body), _END, ""])


def update_card(existing: str, new: str) -> str:
    """
    Return an existing card with what a new one says: the author's words and metadata stay.

    Of the metadata the run's own fields (base model, library, task, results) are renewed, tags and data sets are
    added to, and anything else is kept. The text that was generated before is replaced; a card without one gets it
    below its own text.
    """
    old: Any = ModelCard(existing, ignore_metadata_errors=True)
    fresh: Any = ModelCard(new)
    before, now = old.data.to_dict(), fresh.data.to_dict()
    metadata = {**now, **before, **{name: now[name] for name in _MANAGED if name in now}}
    for name in ("tags", "datasets"):
        both = [*_as_list(before.get(name)), *_as_list(now.get(name))]
        if both:
            metadata[name] = list(dict.fromkeys(both))
    generated = fresh.text.strip()
    own = re.escape(_BEGIN) + r".*?" + re.escape(_END)
    text = old.text.strip()
    text = (
        re.sub(own, lambda _: generated, text, count=1, flags=re.DOTALL)
        if re.search(own, text, re.DOTALL)
        else (f"{text}\n\n{generated}")
    )
    return f"---\n{ModelCardData(**metadata)}\n---\n\n{text.strip()}\n"


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _metadata(record: RunRecord, name: str, facts: CardFacts) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(_TAGS if record.rounds else [tag for tag in _TAGS if tag != "generated_from_trainer"]),
        "license": facts.license,
        "license_name": facts.license_name,
        "license_link": facts.license_link,
        "language": list(facts.language) or None,
        "datasets": list(facts.datasets) or None,
    }
    if record.lineage.base_model is not None:
        metadata |= {"base_model": record.lineage.base_model, "base_model_relation": "finetune"}
    results = _results(record, facts)
    if results:
        metadata |= {"model_name": name.rpartition("/")[2], "eval_results": results}
    return metadata


def _losses(record: RunRecord, facts: CardFacts) -> list[tuple[str, float, float | None]]:
    """Return the sets that were measured on: name, the student's loss and the reference's, in nats per token."""
    found: list[tuple[str, float, float | None]] = []
    if record.rounds:
        last = record.rounds[-1]
        by_reference = record.recipe.get("target", "reference") == "reference"
        found.append(("selection", last.loss, last.target if by_reference else None))
    if facts.test_loss is not None:
        found.append(("test", facts.test_loss, facts.reference_test_loss))
    return found


def _results(record: RunRecord, facts: CardFacts) -> list[EvalResult]:
    results = []
    for split, student, reference in _losses(record, facts):
        for whose, loss in (("", student), (" of the reference", reference)):
            if loss is None:
                continue
            for kind, value, unit in (("loss", loss, " (nats per token)"), ("perplexity", math.exp(loss), "")):
                results.append(
                    EvalResult(
                        task_type="text-generation",
                        dataset_type=facts.datasets[0] if facts.datasets else "held-out documents",
                        dataset_name=f"{split} set",
                        dataset_split=split,
                        metric_type=kind,
                        metric_name=f"{kind}{whose}{unit}",
                        metric_value=round(value, 4),
                    )
                )
    return results


def _verdict(record: RunRecord) -> str:
    if record.outcome is None and record.rounds:
        return f"The student of round {len(record.rounds)} **missed** its target; the run went on with more layers."
    return _OUTCOMES[record.outcome]


def _loading(name: str) -> list[str]:
    return [
        "```python",
        "from transformers import pipeline",
        "",
        f'generate = pipeline("text-generation", model="{name}")',
        'print(generate("Once upon a time", max_new_tokens=40)[0]["generated_text"])',
        "```",
    ]


def _layers(record: RunRecord, facts: CardFacts) -> list[str]:
    lineage = record.lineage
    if "layers.png" in facts.pictures:
        drawn = ["![The layers of the reference, and which of them this model holds](layers.png)"]
    else:
        marks = ("\u2588" if layer in lineage.kept_layers else "\u2591" for layer in range(lineage.reference_layers))
        drawn = ["```text", "".join(marks), "```"]
    kept = ", ".join(map(str, lineage.kept_layers))
    return [*drawn, "", f"Inherited: layers {kept} of {lineage.reference_layers}, counted from 0."]


def _curve(facts: CardFacts) -> list[str]:
    if "losses.png" not in facts.pictures:
        return []
    return ["", "![Selection loss against steps, with the reference's loss as a line](losses.png)"]


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


def _evaluation(record: RunRecord, facts: CardFacts) -> list[str]:
    losses = _losses(record, facts)
    if not losses:
        return []
    rows = ["| set | loss | perplexity | loss of the reference | its perplexity |", "|---|---|---|---|---|"]
    for split, student, reference in losses:
        theirs = " | " if reference is None else f"{reference:.4f} | {math.exp(reference):.2f}"
        rows.append(f"| {split} | {student:.4f} | {math.exp(student):.2f} | {theirs} |")
    return [
        *rows,
        "",
        "Losses are nats per token: the sum over all tokens divided by their number. Every decision of the run was "
        "made on the selection set; the test set, where there is one, was opened once, after the run. Sets that "
        "`load_data_splits` makes share no document with the training set.",
    ]


def _size(record: RunRecord, facts: CardFacts) -> list[str]:
    lineage = record.lineage
    rows = [
        "| | this model | the reference | of the reference |",
        "|---|---|---|---|",
        _share("layers", len(lineage.kept_layers), lineage.reference_layers),
    ]
    if facts.parameters is not None:
        rows.append(_share("parameters", facts.parameters, facts.reference_parameters))
    if facts.operations is not None:
        rows.append(_share("operations for each token", facts.operations, facts.reference_operations))
    note = "Operations are counted from the shapes, not timed: what they save in seconds depends on the machine."
    return [*rows, *(["", note] if facts.operations is not None else [])]


def _share(what: str, mine: float, theirs: float | None) -> str:
    def shown(value: float) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"

    return f"| {what} | {shown(mine)} | " + (" | |" if not theirs else f"{shown(theirs)} | {mine / theirs:.1%} |")


def _budget(record: RunRecord, facts: CardFacts) -> list[str]:
    if not record.rounds:
        return []
    steps = record.rounds[-1].end_step
    tokens, flops = sum(item.tokens for item in record.rounds), sum(item.flops for item in record.rounds)
    sources = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in facts.datasets)
    lines = [
        f"All rounds together, failed ones included: {steps:,} optimizer steps, {tokens:,} tokens, {flops:.3g} "
        "floating-point operations.",
        "",
        f"Trained on {sources}." if sources else "The training data are not named.",
    ]
    prints = [f"`{kind}` {value[:16]}" for kind, value in record.lineage.data.items() if value]
    return [*lines, *(["", f"Fingerprints of the sets: {', '.join(prints)}."] if prints else [])]


def _limits(record: RunRecord) -> list[str]:
    name = record.lineage.reference_name
    lines = [
        f"- It has the reference's biases and blind spots, and knows less: what `{name}` should not be used for, this "
        "model should not be used for either.",
    ]
    if record.rounds:
        lines += [
            "- *Matched* and *missed* speak of the mean loss on one selection set. They say nothing about other text, "
            "other languages, or tasks, none of which was measured here.",
            "- It is compared with the reference as it was, not with a reference trained further on the same data.",
        ]
    else:
        lines.append("- It was not trained after the cut. It is a starting point for training, not a model to use.")
    return lines


def _reproduction(record: RunRecord) -> list[str]:
    lineage = record.lineage
    recipe = {name: value for name, value in record.recipe.items() if value != _DEFAULTS.get(name, _DEFAULTS)}
    source = ", which is not on the Hub" if lineage.base_model is None else f" at commit `{lineage.revision}`"
    versions = ", ".join(f"{name} {version}" for name, version in lineage.versions.items())
    lines = [
        f"The reference was `{lineage.reference_name}`{source}." + (f" Built with {versions}." if versions else "")
    ]
    if not record.rounds:
        layers = record.recipe.get("keep_layers", "half")
        layers = layers if isinstance(layers, int | str) else ",".join(map(str, layers))
        revision = f" --revision {lineage.revision}" if lineage.revision else ""
        command = f"inheritune inherit {lineage.reference_name} --keep-layers {layers}{revision} --output student"
        return [*lines, "", "```bash", command, "```"]
    values: Mapping[str, Any] = {
        "reference": lineage.reference_name,
        **({"revision": lineage.revision} if lineage.revision else {}),
        **recipe,
        **{name: value for name, value in record.training.items() if name in _SHOWN_ARGUMENTS and value is not None},
    }
    text = yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False).strip()
    return [
        *lines,
        "",
        "```yaml",
        text,
        "```",
        "",
        "Saved as `recipe.yaml`, with the data added, this is the run: `inheritune train --config recipe.yaml`. "
        "`inheritune_config.json` beside the weights holds the whole record, seeds among it.",
    ]


_DEFAULTS = InherituneConfig().to_dict()
_SHOWN_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
)
