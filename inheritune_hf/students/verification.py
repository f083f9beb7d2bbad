"""Check that a saved student is what its record says: lineage, shapes, tensors, and that it generates."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..layers import describe
from ..records import RECORD_FILE, Lineage, decode, read_json
from ..tabular import Table, Tabular
from .architectures import Architecture, inspect_architecture, join_sources, kept_names, sliced_config, sources_of
from .checkpoints import LazyTensor, Source, find_weights, open_tensors
from .inherit import query_rows
from .reference import OpenedReference, Reference, open_reference

_NEW_TOKENS = 8
# What tables call a check that passed, failed, or could not be made.
_WORDS = {True: "ok", False: "FAILED", None: "skipped"}


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `passed` is None if it could not be."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True, repr=False)
class Verification(Tabular):
    """What checking a student came to; `trained` if its record holds rounds of training."""

    student: str
    trained: bool
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing that was checked failed."""
        return all(check.passed is not False for check in self.checks)

    @property
    def verdict(self) -> str:
        """What the checks came to, in words."""
        return f"{self.student}: {'trained' if self.trained else 'untrained'} student, {_WORDS[self.passed]}"

    def table(self) -> Table:
        """Return a row for each check."""
        rows = [(check.name, _WORDS[check.passed], check.detail) for check in self.checks]
        return Table(self.verdict, ("check", "result", "detail"), rows)


def verify_student(student: str | os.PathLike[str], reference: Reference | None = None, **kwargs: Any) -> Verification:
    """
    Check a saved student: lineage, shapes and, if it was not trained, identity with the reference's tensors.

    Then it is loaded as anyone loads it, by `AutoModelForCausalLM`, and generates with and without cache. Tensors are
    compared one at a time, whether they lie one for each expert or joined.

    Args:
        student (`str` or `os.PathLike`):
            Folder of the student.
        reference (`str`, `os.PathLike` or `PreTrainedModel`, *optional*):
            The reference; what the lineage names if not given. If it cannot be reached, that is said, and the checks
            that need it are left out.
        kwargs:
            Where the reference's files come from (`revision`, `token`, ...).

    Returns:
        `Verification`: The checks.

    Raises:
        OSError: If there is no model in the folder, or one of its files is missing or incomplete.
    """
    folder = Path(student)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"There is no student at {str(student)!r}: give a folder with config.json.")
    config = AutoConfig.from_pretrained(folder)
    stored = open_tensors(find_weights(Source(str(folder))))
    trained = _is_trained(folder)
    lineage = getattr(config, "inheritune", None)
    if not isinstance(lineage, dict):
        checks = [Check("lineage", False, "config.json has no lineage (field `inheritune`)")]
    else:
        found = decode(Lineage, lineage, "config.inheritune")
        checks = _against_reference(stored, config, found, trained, reference, kwargs)
    checks.extend(_in_use(folder))
    return Verification(str(student), trained, tuple(checks))


def _is_trained(folder: Path) -> bool:
    record = folder / RECORD_FILE
    return record.is_file() and bool(read_json(record).get("rounds"))


def _against_reference(
    stored: Mapping[str, LazyTensor],
    config: PreTrainedConfig,
    lineage: Lineage,
    trained: bool,
    reference: Reference | None,
    options: Mapping[str, Any],
) -> list[Check]:
    where = {} if isinstance(reference, PreTrainedModel | OpenedReference) else lineage.where
    if reference is not None:
        where.pop("revision", None)
    try:
        opened = open_reference(lineage.reference if reference is None else reference, **{**where, **options})
    except OSError as error:
        return [Check("lineage", None, f"the reference cannot be reached: {error}")]
    depth = int(opened.config.num_hidden_layers)
    fits = (
        depth == lineage.reference_layers
        and len(lineage.kept_layers) == config.num_hidden_layers
        and all(0 <= layer < depth for layer in lineage.kept_layers)
        and config.model_type == opened.config.model_type
    )
    detail = f"layers {describe(lineage.kept_layers)} of {depth} of {opened.name}"
    checks = [Check("lineage", fits, detail)]
    if not fits:
        return checks
    blank = inspect_architecture(sliced_config(opened.config, lineage.kept_layers))
    checks.append(_shapes(inspect_architecture(config), blank))
    if trained:
        checks.append(Check("identity", None, "the student was trained, so its tensors are its own"))
    else:
        checks.append(_identity(opened, blank, lineage, stored))
    return checks


def _shapes(student: Architecture, expected: Architecture) -> Check:
    wrong = [name for name, shape in expected.parameters.items() if student.parameters.get(name) != shape]
    if wrong:
        return Check("shapes", False, f"{len(wrong)} tensors differ from what the reference gives, such as {wrong[0]}")
    return Check("shapes", True, f"{len(expected.parameters)} tensors have the shapes that the reference gives")


def _identity(
    opened: OpenedReference, blank: Architecture, lineage: Lineage, stored: Mapping[str, LazyTensor]
) -> Check:
    before = opened.architecture
    theirs, _ = opened.open_tensors(partial(kept_names, before, lineage.kept_layers, parts=lineage.inherited))
    inherited = kept_names(blank, range(blank.depth), stored, lineage.inherited)
    mine = {given: stored[name] for name, given in inherited.items()}
    compared, different = 0, []
    for name, found, expected in _pairs(opened.config, blank, mine, theirs):
        compared += 1
        if expected is not None and lineage.query_scales:
            rows = query_rows(before, name)
            if rows is not None:
                position, width = rows
                expected = expected.to(found, copy=True)
                expected[..., :width] *= lineage.query_scales[position]
        if expected is None or not torch.equal(found, expected.to(found)):
            different.append(name)
    if different:
        return Check("identity", False, f"{len(different)} of {compared} tensors differ, such as {different[0]}")
    if compared == 0:
        return Check("identity", False, "no tensor of the student is one of the reference")
    return Check("identity", True, f"{compared} tensors are the reference's, bit for bit")


def _pairs(
    config: PreTrainedConfig, blank: Architecture, mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """Yield every tensor of the student with what the reference has for it, joined where only one of them is."""
    given = sources_of(blank, theirs)
    for name, sources in sources_of(blank, mine).items():
        others = next((given[item] for item in blank.sharing(name) if item in given), None)
        if others is not None and set(others) == set(sources):
            for item in sources:
                yield item, mine[item][...], theirs[item][...]
            continue
        found = join_sources(config, blank, {item: mine[item] for item in sources})
        expected = None if others is None else join_sources(config, blank, {item: theirs[item] for item in others})
        yield name, found, expected


def _in_use(folder: Path) -> list[Check]:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    problems = [
        f"{kind.replace('_', ' ')}: {', '.join(map(str, sorted(info[kind])[:3]))}"
        for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")
        if info[kind]
    ]
    reload = Check("reload", not problems, "; ".join(problems) or f"AutoModelForCausalLM: {type(model).__name__}")
    prompt = torch.arange(1, 5)[None] % int(model.config.get_text_config(decoder=True).vocab_size)
    options = {"max_new_tokens": _NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        runs = [model.generate(prompt, use_cache=cached, **options) for cached in (True, False)]
    same = torch.equal(*runs)
    detail = f"{_NEW_TOKENS} tokens, {'the same' if same else 'others'} with and without cache"
    return [reload, Check("generate", same, detail)]
