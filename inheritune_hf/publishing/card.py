"""The model card: what is known about a student, as a text that the Hub understands."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markupsafe import Markup

from ..config import PARTS, InherituneConfig
from ..evaluation.abilities import unmeasured_abilities
from ..evaluation.facts import StudentEvaluation
from ..foreign_text import parse_yaml
from ..outcomes import conclude_record, describe_evidence, describe_rule, matched_word, student_depth
from ..records import Match, RunRecord, perplexity, read_record
from ..run_folder import EVALUATION_FILE
from ..students import open_reference
from ..students.estimates import operations_per_token
from .tables import ADAPTED, FinishedRun, ResultRow, corpus_headers, corpus_rows, task_headers, task_rows
from .templates import render

logger = logging.getLogger(__name__)

_TAGS = ["inheritune", "generated_from_trainer", "arxiv:2404.08634"]
# What the run says; everything else in the metadata is the author's once a card is there.
_MANAGED = ("base_model", "base_model_relation", "library_name", "pipeline_tag", "model-index")
_LICENCE = ("license", "license_name", "license_link")
_REFERENCE = re.compile(r"^The reference was (`.+?`)[ ,.]", re.MULTILINE)  # in the text of a card
_BEGIN, _END = "<!-- inheritune: begin -->", "<!-- inheritune: end -->"

# Tokens of a sequence for which operations are counted, unless the model takes fewer.
_BLOCK_SIZE = 1024

# Bounds of a card that others wrote: characters, and those of a name in its front matter.
_MAX_CARD, _MAX_WORD = 4_000_000, 200

_DEFAULTS = InherituneConfig().to_dict()
# Licences that ask for something in a published derivative: what they are called, and what they ask for.
_OBLIGATIONS = (
    (
        r"llama[-_ ]?(3|4)",
        "the Llama community licence: pass a copy of it on, display 'Built with Llama', let the model's name begin "
        "with 'Llama', and follow its acceptable use policy",
    ),
    (
        r"llama[-_ ]?2",
        "the Llama 2 community licence: pass a copy of it on with its notice, and follow its acceptable use policy",
    ),
    (
        r"gemma",
        "the Gemma terms of use: pass a copy of them on, state that files were changed, and pass the restrictions of "
        "use on to whoever gets the model",
    ),
)


@dataclass(frozen=True)
class CardFacts:
    """What a card tells that is not in the run's record; what is not known is left out of it."""

    license: str | None = None  # of the reference, or the one given, as the Hub calls it
    license_name: str | None = None  # where `license` is `other`
    license_link: str | None = None  # where its text is
    language: tuple[str, ...] = ()  # as the Hub calls them
    datasets: tuple[str, ...] = ()  # of the Hub, that the student was trained on
    parameters: int | None = None  # of the student; shared ones count once
    reference_parameters: int | None = None
    operations: float | None = None  # floating-point ones of one training token
    reference_operations: float | None = None
    test_loss: float | None = None  # the student's on the test set, in nats per token
    reference_test_loss: float | None = None  # on the same sequences
    test_match: Match | None = None  # how the two compare
    pictures: tuple[str, ...] = ()  # names of those beside the card
    evaluation: StudentEvaluation | None = None  # what `inheritune evaluate` measured on this very student
    chosen: tuple[str, ...] = ()  # fields of the metadata given for this publication, which win over a card's
    reference_license: str | None = None  # by its name, if it is known


def gather_facts(
    folder: Path,
    record: RunRecord,
    run_folder: Path,
    token: str | None,
    license: str | None,
    language: Sequence[str],
    datasets: Sequence[str],
    pictures: Sequence[str],
) -> CardFacts:
    """Return what is known for a student's card; a reference that cannot be reached leaves its facts out."""
    mine = open_reference(folder)
    said, theirs = CardFacts(), None
    try:
        theirs = open_reference(record.lineage.reference, token=token, **record.lineage.where)
        path = theirs.source.find("README.md") if theirs.source is not None else None
        said = said if path is None else read_reference_card(path)
    except (OSError, ValueError) as error:
        logger.info("The card says less of the reference: %s", error)
    test = _test_results(run_folder, record)
    mine_on_test = test.get(ADAPTED if record.outcome == "adapted" else "student")
    block = min(mine.context_length or _BLOCK_SIZE, _BLOCK_SIZE)
    reference_license = said.license_name or said.license
    if license and license != said.license:
        said = CardFacts(license, language=said.language)
    return replace(
        said,
        language=tuple(language) or said.language,
        datasets=tuple(datasets),
        parameters=mine.architecture.parameter_count,
        reference_parameters=None if theirs is None else theirs.architecture.parameter_count,
        operations=operations_per_token(mine.config, block),
        reference_operations=None if theirs is None else operations_per_token(theirs.config, block),
        test_loss=None if mine_on_test is None else mine_on_test.loss,
        reference_test_loss=test["reference"].loss if "reference" in test else None,
        test_match=None if mine_on_test is None else mine_on_test.match,
        pictures=tuple(pictures),
        evaluation=_evaluation_of(mine.fingerprint(), run_folder),
        reference_license=reference_license,
        chosen=tuple(name for name, given in (("license", license), ("language", language)) if given),
    )


def _evaluation_of(fingerprint: str, folder: Path) -> StudentEvaluation | None:
    """Return the evaluation in a folder if it is of the student with these weights."""
    path = folder / EVALUATION_FILE
    found = read_record(StudentEvaluation, path) if path.is_file() else None
    return found if found is not None and found.fingerprints.get("student") == fingerprint else None


def read_reference_card(path: Path) -> CardFacts:
    """Read licence and languages of a reference's card; what is not a short text is left out."""
    front = front_matter(path.read_text(encoding="utf-8", errors="replace")[:_MAX_CARD], str(path))

    def text(name: str) -> str | None:
        value = front.get(name)
        return value if isinstance(value, str) and 0 < len(value) <= _MAX_WORD and value.isprintable() else None

    spoken = front.get("language")
    languages = [spoken] if isinstance(spoken, str) else spoken if isinstance(spoken, list) else []
    return CardFacts(
        text("license"),
        text("license_name"),
        _safe_link(text("license_link")),
        tuple(word for word in languages if isinstance(word, str) and re.fullmatch(r"[A-Za-z-]{2,16}", word)),
    )


def front_matter(card: str, where: str) -> dict[str, Any]:
    """Return the metadata above a card's text; `where` is named in the error if it is not YAML, or unbounded."""
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---", card, re.DOTALL)
    if found is None:
        return {}
    values = parse_yaml(found[1], f"{where}: its front matter")
    return values if isinstance(values, dict) else {}


def _test_results(run_folder: Path, record: RunRecord) -> dict[str, ResultRow]:
    """Return what was found on the test set by model, from the results of a run that ended with this very student."""
    path = run_folder / "rounds.json"
    found = read_record(FinishedRun, path) if path.is_file() else None
    if found is None or (found.rounds, found.outcome) != (record.rounds, record.outcome):
        return {}
    return {row.model: row for row in found.results}


def render_card(record: RunRecord, name: str, facts: CardFacts | None = None) -> str:
    """Return the card of the model that is called `name`, with metadata that `huggingface_hub.ModelCard` accepts."""
    facts = facts or CardFacts()
    return render(
        "publishing/card.md.jinja",
        record=record,
        name=name,
        facts=facts,
        metadata=Markup(ModelCardData(**_metadata(record, name, facts))),
        begin=Markup(_BEGIN),
        end=Markup(_END),
        conclusion=conclude_record(record, facts.test_match),
        rule=describe_rule(record),
        evidence=describe_evidence(record.rounds[-1].match) if record.rounds else "",
        matched_word=matched_word,
        losses=_losses(record, facts),
        tables=[] if facts.evaluation is None else _evaluation_tables(facts.evaluation),
        unmeasured=unmeasured_abilities(facts.evaluation),
        measured_beside=_measured_beside(record, facts.evaluation),
        notes=sorted({item.match.note for item in record.rounds if item.match.note}),
        fingerprints={kind: value for kind, value in record.lineage.data.items() if value},
        obligation=obligation(facts.license, facts.license_name, facts.reference_license),
        link=_safe_link(facts.license_link),
        recipe=_recipe(record),
        depth=student_depth(record),
        command=record.inherit_command(record.lineage.reference_name, "student"),
        at_random=[part for part in PARTS if part not in record.lineage.inherited],
        number=lambda value: f"{value:,}" if isinstance(value, int) else f"{value:.3g}",
        exp=perplexity,
    )


def update_card(existing: str, new: str, chosen: Sequence[str] = ()) -> str:
    """
    Return an existing card with what a new one says: the author's words and metadata stay.

    Of the metadata the run's own fields (base model, library, task, results) and those of `chosen` are renewed, tags
    and data sets are added to, and anything else is kept; licence and languages are renewed, and an old base model
    goes, if the card was of a student of another reference. The text that was generated before is replaced; a card
    without one gets it below its own text.
    """
    front_matter(existing, "The card that is there already")
    old: Any = ModelCard(existing, ignore_metadata_errors=True)
    fresh: Any = ModelCard(new)
    before, now = old.data.to_dict(), fresh.data.to_dict()
    generated, text = fresh.text.strip(), old.text.strip()
    of_before, of_now = map(_REFERENCE.search, (text, generated))
    renewed = {"model-index", *chosen}
    if of_before is not None and of_now is not None and of_before[1] != of_now[1]:
        renewed |= {*_MANAGED, "license", "language"}
    if "license" in renewed:
        renewed |= set(_LICENCE)
    elif "license" in before:  # name and link belong to it
        now = {name: value for name, value in now.items() if name not in _LICENCE}
    before = {name: value for name, value in before.items() if name not in renewed}
    metadata = {**now, **before, **{name: now[name] for name in _MANAGED if name in now}}
    for name in ("tags", "datasets"):
        both = [*_as_list(before.get(name)), *_as_list(now.get(name))]
        if both:
            metadata[name] = list(dict.fromkeys(both))
    # Marks are lines of their own: within a line they are somebody's text.
    own = re.compile(f"^{re.escape(_BEGIN)}$.*?^{re.escape(_END)}$", re.DOTALL | re.MULTILINE)
    text = own.sub(lambda _: generated, text, count=1) if own.search(text) else f"{text}\n\n{generated}"
    return f"---\n{ModelCardData(**metadata)}\n---\n\n{text.strip()}\n"


def obligation(*licences: str | None) -> str | None:
    """Return what the first of some licences, by id or name, that is known to ask something of publishers asks."""
    text = " ".join(name or "" for name in licences).lower()
    return next((asked for pattern, asked in _OBLIGATIONS if re.search(pattern, text)), None)


def _recipe(record: RunRecord) -> str:
    """Return what differs from the defaults, as YAML for `inheritune train --config`."""
    lineage = record.lineage
    values = {
        "reference": lineage.reference_name,
        **lineage.where,
        **{name: value for name, value in record.recipe.items() if value != _DEFAULTS.get(name, _DEFAULTS)},
        **{name: value for name, value in record.training.items() if name != "world_size" and value is not None},
    }
    return yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False).strip()


def _measured_beside(record: RunRecord, found: StudentEvaluation | None) -> str:
    """Return the public name of the model that an evaluation calls the reference: another one may have been given."""
    if found is None or found.reference == record.lineage.reference:
        return record.lineage.reference_name
    return Path(found.reference).name


def _evaluation_tables(found: StudentEvaluation) -> list[list[tuple[str, ...]]]:
    """Return the tables of losses and tasks, headers first; of files only names, for folders are of one machine."""
    losses = [
        (re.sub(r"[^\s(]*/", "", item.corpus) if place == 0 else "", *row)
        for item, rows in corpus_rows(found)
        for place, row in enumerate(rows)
    ]
    tables = [[("text", *corpus_headers(found)), *losses], [task_headers(found), *task_rows(found)]]
    return [rows for rows in tables if len(rows) > 1]


def _safe_link(link: str | None) -> str | None:
    """Return a link to a page of the web that is encrypted, with nothing in it that would end the link."""
    return link if link and re.fullmatch(r"https://[^\s()<>\"'\\]+", link) else None


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _metadata(record: RunRecord, name: str, facts: CardFacts) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(_TAGS if record.rounds else [tag for tag in _TAGS if tag != "generated_from_trainer"]),
        "license": facts.license,
        "license_name": facts.license_name,
        "license_link": _safe_link(facts.license_link),
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
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=facts.datasets[0] if facts.datasets else "held-out documents",
            dataset_name=f"{split} set",
            dataset_split=split,
            metric_type=kind,
            metric_name=f"{kind}{whose}{unit}",
            metric_value=round(value, 4),
        )
        for split, student, reference in _losses(record, facts)
        for whose, loss in (("", student), (" of the reference", reference))
        if loss is not None
        for kind, value, unit in (("loss", loss, " (nats per token)"), ("perplexity", perplexity(loss), ""))
    ]
