"""Evaluate a student beside its reference: losses, efficiency, drafting, lazy layers, text and tasks in one record."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import __version__
from ..analysis import SHARE, compare_laziness, measure_collapse, sample_sequences
from ..config import InherituneConfig
from ..data import end_of_text
from ..evaluation import (
    Corpus,
    StudentEvaluation,
    TaskSettings,
    compare_on,
    compare_tasks,
    evaluate_tasks,
    measure_draft,
    measure_efficiency,
    preserve_state,
    validate,
)
from ..evaluation.facts import Draft, Laziness, Sample
from ..evaluation.speed import context_of, fixed_generation
from ..evaluation.tasks import check_tasks
from ..records import (
    RECORD_FILE,
    Cache,
    DataFacts,
    Lineage,
    RecordError,
    RunRecord,
    Validation,
    decode,
    read_json,
    read_record,
    write_record,
)
from ..students import OpenedReference, open_reference

logger = logging.getLogger(__name__)

PARTS = ("loss", "efficiency", "draft", "layers", "samples", "tasks")

_PROMPTS = 4
_PROMPT_TOKENS = 32
_SAMPLE_TOKENS = 48
_REPETITION_PENALTY = 1.2


def evaluate_student(
    student: str,
    reference: str | None,
    corpora: Sequence[Corpus],
    tokenizer: PreTrainedTokenizerBase,
    *,
    parts: Sequence[str] = PARTS[:-1],
    output: Path | None = None,
    tolerance: float | None = None,
    confidence: float | None = 0.95,
    batch_size: int = 8,
    dtype: str = "float32",
    adapted: str | None = None,
    tasks: Sequence[str] = (),
    task_settings: TaskSettings | None = None,
    task_limit: int | None = None,
    cache_dir: Path | None = None,
    efficiency: Mapping[str, Any] | None = None,
    reference_kwargs: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> StudentEvaluation:
    """
    Evaluate a student beside its reference, and beside its reference trained further, and write the record.

    Models are loaded one after the other; only drafting and timing hold both. Each part is written when it is finished.
    What an earlier evaluation of the same weights left in `output` is kept where its part is not measured again.

    Args:
        student (`str`): Folder or Hub id.
        reference (`str`, *optional*): Folder or Hub id; what the student's lineage names if not given.
        corpora (sequence of `Corpus`): The test set, then others on which the match is checked again.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of both.
        parts (sequence of `str`, *optional*): Of `PARTS`; all but `tasks` if not given.
        output (`Path`, *optional*): File to write, and to take finished parts from.
        tolerance (`float`, *optional*): Nats per token above the reference that still match; that of the run that
            trained the student if not given, or 0.01 if its folder does not say. Like `confidence` it applies to
            losses that are measured now; a verdict that is kept stays as it is.
        confidence (`float`, *optional*, defaults to `0.95`): One-sided confidence of the bounds; `None` compares means.
        batch_size (`int`, *optional*, defaults to `8`): Sequences at a time; losses do not depend on it.
        dtype (`str`, *optional*, defaults to `"float32"`): Type of both models' weights.
        adapted (`str`, *optional*): Folder or Hub id of the reference, trained further on the same text
            (`adapt_reference`); its losses and tasks are measured, and the student is compared with both.
        tasks (sequence of `str`, *optional*): Tasks, see `evaluate_tasks`.
        task_settings (`TaskSettings`, *optional*): How tasks are asked.
        task_limit (`int`, *optional*): Rows of each task; all if not given.
        cache_dir (`Path`, *optional*): Folder in which losses and finished tasks are kept: those of a reference are
            measured once for all its students. Nothing is kept without it.
        efficiency (`Mapping`, *optional*): Settings of `measure_efficiency`.
        reference_kwargs (`Mapping`, *optional*): Where the reference comes from, such as `revision`.
        command (`str`, *optional*): The command line, kept so that it can be run again.

    Returns:
        `StudentEvaluation`: Everything that was measured, now or before.

    Raises:
        ValueError: If a part is unknown, there is no corpus, nothing says which reference is meant, or `adapted` is
            not the reference trained further.
        ImportError: If tasks are asked for and lm-eval is not installed.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"parts must be of {', '.join(PARTS)}, got {', '.join(unknown)}.")
    if not corpora:
        raise ValueError("There is nothing to evaluate on; give at least one corpus.")
    if tasks:
        check_tasks(tasks, tokenizer, task_settings or TaskSettings())
    reference, where = named_reference(student, reference, reference_kwargs or {})
    opened = {"student": open_reference(student), "reference": open_reference(reference, **where)}
    if adapted is not None:
        opened["adapted"] = open_reference(adapted)
    allowed = _recipe_tolerance(student) if tolerance is None else tolerance
    found = _earlier(opened, allowed, confidence, output, parts)
    if command is not None:
        found = replace(found, commands=(*(item for item in found.commands if item != command), command))

    def keep(**changes: Any) -> None:
        nonlocal found
        found = replace(found, **changes)
        if output is not None:
            write_record(output, found)

    kept_losses = None if cache_dir is None else Cache(cache_dir / "losses", Validation)
    keep(**_measure_in_turn(opened, corpora, tokenizer, parts, batch_size, dtype, found, kept_losses))
    if "draft" in parts:
        keep(drafts=_measure_drafts(opened, corpora[0], dtype))
        gc.collect()
    if "efficiency" in parts:
        logger.info("efficiency")
        settings = {"dtype": dtype, "reference_kwargs": where, **(efficiency or {})}
        keep(efficiency=measure_efficiency(student, reference, **settings))
    if "tasks" in parts and tasks:
        scores = []
        for name, model in opened.items():
            logger.info("tasks of the %s", name)
            kept: dict[str, Any] = {"cache_dir": cache_dir and cache_dir / "tasks", "weights": found.fingerprints[name]}
            asked: dict[str, Any] = {"settings": task_settings, "limit": task_limit}
            scores.append(evaluate_tasks(_load(model, dtype), tokenizer, tasks, **asked, **kept))
            gc.collect()
        mine, *others = (compare_tasks(scores[0], one) for one in scores[1:])
        keep(tasks=mine, adapted_tasks=others[0] if others else ())
    return found


def named_reference(student: str, reference: str | None, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the reference and where it comes from, by default what the student's lineage names, at its commit."""
    if reference is not None:
        return reference, dict(options)
    lineage = getattr(open_reference(student).config, "inheritune", None)
    if not isinstance(lineage, dict):
        raise ValueError(
            f"{student} does not name its reference (no field `inheritune` in its config.json); give --reference."
        )
    known = decode(Lineage, lineage, "config.inheritune")
    return known.reference, {**known.where, **options}


def _earlier(
    opened: Mapping[str, OpenedReference],
    tolerance: float,
    confidence: float | None,
    output: Path | None,
    parts: Sequence[str],
) -> StudentEvaluation:
    """Return what an earlier evaluation of these weights left, or an empty one."""
    fingerprints = {name: model.fingerprint() for name, model in opened.items()}
    facts: dict[str, Any] = {name: model.name for name, model in opened.items()}
    facts |= {"fingerprints": fingerprints, "layers": {name: model.depth for name, model in opened.items()}}
    if "adapted" in opened:
        _check_adapted(opened, fingerprints)
    if output is not None and output.is_file():
        before = read_record(StudentEvaluation, output)
        if all(before.fingerprints.get(name) == fingerprints[name] for name in ("student", "reference")):
            if "adapted" in opened:
                if before.fingerprints.get("adapted") != fingerprints["adapted"]:
                    facts |= {"adapted_corpora": (), "adapted_tasks": ()}
                before = replace(before, **facts)
            # A verdict that is kept keeps the tolerance and confidence that it was reached by.
            kept = before.corpora and "loss" not in parts
            return before if kept else replace(before, tolerance=tolerance, confidence=confidence)
    return StudentEvaluation(tolerance=tolerance, confidence=confidence, **facts)


def _check_adapted(opened: Mapping[str, OpenedReference], fingerprints: Mapping[str, str]) -> None:
    """Raise if the adapted reference is the reference itself, or one of another shape."""
    adapted, reference = opened["adapted"], opened["reference"]
    if fingerprints["adapted"] == fingerprints["reference"]:
        raise ValueError(
            f"adapted must be the reference trained further, and {adapted.name} has the reference's own weights: "
            "name the one that it started from as the reference."
        )
    if adapted.depth != reference.depth:
        raise ValueError(
            f"adapted must be the reference trained further, of {reference.depth} layers, and {adapted.name} has "
            f"{adapted.depth}: make one by inheritune adapt."
        )


def _measure_in_turn(
    opened: Mapping[str, OpenedReference],
    corpora: Sequence[Corpus],
    tokenizer: PreTrainedTokenizerBase,
    parts: Sequence[str],
    batch_size: int,
    dtype: str,
    found: StudentEvaluation,
    cache: Cache[Validation] | None,
) -> dict[str, Any]:
    """Return the parts that need one model at a time: losses, samples and lazy layers."""
    prompts, pad = _prompts(corpora[0]), end_of_text(tokenizer)
    losses, texts, collapses = [], [], []
    versions = {module.__name__: module.__version__ for module in (torch, transformers, accelerate)}
    for name, model in opened.items():
        # The adapted one is measured on loss and tasks alone.
        asked = {*parts} & ({"loss"} if name == "adapted" else {"loss", "samples", "layers"})
        if not asked:
            continue
        logger.info("%s: %s", name, model.name)
        loaded = _load(model, dtype)
        if "loss" in asked:
            computed = [dtype, loaded.device.type, loaded.config._attn_implementation, __version__, versions]
            facts = [found.fingerprints[name], *computed]
            losses.append([_measure_loss(loaded, corpus, batch_size, pad, facts, cache) for corpus in corpora])
        if "samples" in asked:
            texts.append([continue_text(loaded, row, tokenizer) for row in prompts])
        if "layers" in asked:
            sequences = sample_sequences(corpora[0].sequences)
            collapses.append(measure_collapse(loaded, sequences, controls=False, blocks=False))
        del loaded
        gc.collect()
    changes: dict[str, Any] = {"versions": versions}
    if losses:
        changes["adapted_corpora"] = ()
        for name, others in zip(("corpora", "adapted_corpora"), losses[1:], strict=False):
            changes[name] = tuple(
                compare_on(corpus, student, other, found.tolerance, found.confidence)
                for corpus, student, other in zip(corpora, losses[0], others, strict=True)
            )
        changes["own_test_set"] = corpora[0].fingerprint == _test_fingerprint(opened["student"].name)
    if texts:
        begun = [str(tokenizer.decode(row)) for row in prompts]
        changes["samples"] = tuple(Sample(*item) for item in zip(begun, *texts, strict=True))
    if collapses:
        mine, theirs = (tuple(report.max_ranks(SHARE)) for report in collapses)
        changes["laziness"] = Laziness(SHARE, theirs, mine, compare_laziness(collapses[0], collapses[1]))
    return changes


def _measure_drafts(opened: Mapping[str, OpenedReference], corpus: Corpus, dtype: str) -> tuple[Draft, ...]:
    """Return how the student drafts for its reference; nothing for models that Transformers does not assist."""
    logger.info("drafting")
    both = [opened[name] for name in ("student", "reference")]
    if any(one.architecture.model_class._is_stateful for one in both):
        logger.warning("drafting is left out: Transformers drafts for no model that keeps a state, as these do")
        return ()
    draft, target = (_load(one, dtype) for one in both)
    prompts = [torch.tensor([row], device=target.device) for row in _prompts(corpus)]
    return measure_draft(draft, target, prompts, new_tokens=_new_tokens(target, prompts))


def _measure_loss(
    model: PreTrainedModel, corpus: Corpus, batch_size: int, pad: int, facts: list[Any], cache: Cache[Validation] | None
) -> Validation:
    """Return a model's loss on a corpus, from the cache if it was measured before; `facts` are what it depends on."""
    key = [corpus.fingerprint, *facts]
    found = None if cache is None else cache.read(key)
    if found is None:
        found = validate(model, corpus, batch_size, pad)
        if cache is not None:
            cache.write(key, found)
    return found


def _load(opened: OpenedReference, dtype: str) -> PreTrainedModel:
    model: Any = opened.load(dtype=dtype)
    loaded: PreTrainedModel = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return loaded


def _prompts(corpus: Corpus) -> list[list[int]]:
    """Return the beginnings of the first documents that are long enough, one for each."""
    beginnings: dict[int, list[int]] = {}
    for row in corpus.sequences:
        if len(row["input_ids"]) > 2 and row["document"] not in beginnings:
            beginnings[row["document"]] = row["input_ids"][: min(_PROMPT_TOKENS, len(row["input_ids"]) // 2)]
        if len(beginnings) == _PROMPTS:
            break
    return list(beginnings.values())


def _new_tokens(model: PreTrainedModel, prompts: Sequence[torch.Tensor]) -> int:
    """Return how many tokens to generate after each of the prompts, so that the context holds them."""
    return min(_SAMPLE_TOKENS, context_of(model) - max(prompt.shape[1] for prompt in prompts))


def continue_text(model: Any, prompt: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return up to 48 tokens of text that a model writes after a prompt, greedily with a repetition penalty of 1.2."""
    tokens = torch.tensor([list(prompt)], device=model.device)
    options = {**fixed_generation(_new_tokens(model, [tokens])), "repetition_penalty": _REPETITION_PENALTY}
    with preserve_state(model), torch.no_grad():
        made = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    return str(tokenizer.decode(made[0, len(prompt) :]))


def _recipe_tolerance(student: str) -> float:
    """Return the tolerance of the run that trained the student, or the default if its folder does not say."""
    path = Path(student) / RECORD_FILE
    recipe = read_record(RunRecord, path).recipe if path.is_file() else {}
    return float(recipe.get("tolerance", InherituneConfig.tolerance))


def _test_fingerprint(student: str) -> str | None:
    """Return the fingerprint of the test set of the run that trained the student, if its folder says."""
    path = Path(student) / "rounds.json"
    if not path.is_file() or not (Path(student) / RECORD_FILE).is_file():
        return None
    try:
        facts = read_json(path).get("data")
        return None if facts is None else decode(DataFacts, facts, f"{path}: data").test.fingerprint
    except RecordError as error:
        logger.warning("whether this is the test set of the run that trained the student is not known: %s", error)
        return None
