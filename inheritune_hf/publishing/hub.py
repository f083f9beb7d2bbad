"""Standard checkpoints, on disk and on the Hub: weights, config, tokenizer, record and card, and nothing else."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import InherituneConfig
from ..figures import layer_panel, save_panels
from ..foreign_text import first_line
from ..records import RECORD_FILE, LayerOrder, Lineage, RunRecord, decode, encode, saving, write_record, write_text
from ..students import (
    DEFAULT_SEED,
    InheritancePlan,
    Reference,
    from_pretrained_inherited,
    open_reference,
    plan_inheritance,
)
from ..students.checkpoints import SOURCE_ARGUMENTS
from ..students.download import CONNECTION_ERRORS
from .bundle import PUBLISHED, exclusion_reason, find_private, mentions_user, read_record, stage, try_out
from .card import CardFacts, gather_facts, obligation, render_card, update_card

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """
    What is, or would be, uploaded.

    Args:
        repo_id (`str`): The repository.
        files (`dict[str, int]`): Bytes of each file, by name.
        left_out (`dict[str, str]`): What stays behind, by name, with the reason.
        notes (`tuple[str, ...]`): What is worth knowing before: sentences.
        card (`str`): The model card.
        url (`str`, *optional*): Address of the commit; None if nothing was pushed.
    """

    repo_id: str
    files: dict[str, int]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    card: str
    url: str | None = None


def save_student(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    record: RunRecord,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str | None = None,
) -> None:
    """Save a student as a standard checkpoint, with its record and a card that calls it `name`, or like the folder."""
    folder = Path(folder)
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    write_record(folder / RECORD_FILE, record)
    _write_card(folder / "README.md", render_card(record, name or folder.resolve().name))
    _share_as_usual(folder)


def save_inherited(
    reference: Reference,
    keep_layers: int | str,
    folder: str | os.PathLike[str],
    inherit: str = "all",
    seed: int = DEFAULT_SEED,
    attention_scale: str = "keep",
    show: Callable[[InheritancePlan], None] | None = None,
    order: LayerOrder | None = None,
    **kwargs: Any,
) -> InheritancePlan:
    """
    Build a student of a reference's layers and save it in an empty folder, with the reference's tokenizer if any.

    The layers and parts are those of the recipe; `show` is called with the plan before any weight is read; `order` is
    kept in the lineage if a measure chose the layers; `kwargs` are passed on to `from_pretrained`. If the layers or the
    reference cannot be used, nothing is written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; choose another one, so that nothing is overwritten.")
    source = {name: kwargs.pop(name) for name in (*SOURCE_ARGUMENTS, "text_model") if name in kwargs}
    opened = open_reference(reference, **source)
    recipe = InherituneConfig(keep_layers=keep_layers, inherit=inherit, attention_scale=cast(Any, attention_scale))
    plan = plan_inheritance(opened, keep_layers, inherit, attention_scale)
    if show is not None:
        show(plan)
    student = from_pretrained_inherited(opened, recipe, seed=seed, **kwargs)
    if order is not None:
        student.config.inheritune["order"] = encode(order)
    record = RunRecord(recipe.to_dict(), decode(Lineage, student.config.inheritune, "the student's config.inheritune"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
        made = Path(unfinished) / "student"
        save_student(student, made, record, name=folder.resolve().name)
        # Last: a student is worth having without the tokenizer that could not be read.
        try:
            opened.tokenizer.save_pretrained(made)
        except ValueError as error:
            logger.warning("The student is saved without a tokenizer. %s", error)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return plan


def push_student(
    model: PreTrainedModel,
    record: RunRecord,
    tokenizer: PreTrainedTokenizerBase | None,
    repo_id: str,
    run_folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> str:
    """
    Publish a student that is in memory as a standard checkpoint; makes the repository if it is not there.

    Args:
        model (`PreTrainedModel`): The student.
        record (`RunRecord`): Its record.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The reference's tokenizer.
        repo_id (`str`): The repository, `owner/name`; your own if there is no owner.
        run_folder (`str` or `os.PathLike`, *optional*): Output folder of the run, for its results and picture.
        options: Passed on to `publish_student`.

    Returns:
        `str`: Address of the commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_student(model, folder, record, tokenizer, name=repo_id)
        return str(publish_student(folder, repo_id, push=True, run_folder=run_folder, **options).url)


def publish_student(
    folder: str | os.PathLike[str],
    repo_id: str,
    push: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Publish a student",
    run_folder: str | os.PathLike[str] | None = None,
    license: str | None = None,
    language: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> Publication:
    """
    Publish a saved student on the Hub, or find out what would be uploaded.

    A copy is made of what may be published. It is looked through for paths and tokens, loaded in a fresh process
    without this package, run and generated from; only then it is uploaded, in one commit. The folder is never changed,
    and a push that failed can be made again.

    Args:
        folder (`str` or `os.PathLike`): The student, from `save_student`, `inheritune inherit` or `inheritune train`.
        repo_id (`str`): The repository, `owner/name`; your own if there is no owner.
        push (`bool`, *optional*, defaults to `False`): Upload; without it nothing leaves this machine.
        private (`bool`, *optional*): Whether the repository is private if it is made now.
        revision (`str`, *optional*): Branch to commit to, created if it is missing; `main` if not given.
        token (`str`, *optional*): Token that may write; that of the login if not given.
        commit_message (`str`, *optional*): Message of the commit.
        run_folder (`str` or `os.PathLike`, *optional*): Output folder of the run; `folder` if not given.
        license (`str`, *optional*): Licence, as the Hub calls it; the reference's if not given.
        language (sequence of `str`): Languages, as the Hub calls them; the reference's if not given.
        datasets (sequence of `str`): Data sets of the Hub that it was trained on.

    Returns:
        `Publication`: Files, what stays behind, the card and, after a push, the address of the commit.

    Raises:
        FileNotFoundError: If there is no student in `folder`.
        ValueError: If it holds something private, or needs code of its own.
        RuntimeError: If it does not work in a fresh process.
        OSError: If the Hub does not take it; nothing was changed there then.
    """
    folder, run_folder = Path(folder), Path(run_folder or folder)
    record = read_record(folder)
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary)
        left_out = stage(folder, target)
        if exclusion_reason(run_folder / "losses.png") is None:
            shutil.copyfile(run_folder / "losses.png", target / "losses.png")
        kept = [("kept", record.lineage.kept_layers)]
        save_panels(target / "layers.png", [layer_panel(kept, record.lineage.reference_layers)])
        pictures = sorted(path.name for path in target.glob("*.png"))
        facts = gather_facts(folder, record, run_folder, token, license, language, datasets, pictures)
        _write_card(target / "README.md", render_card(record, repo_id, facts), facts.chosen)
        private_things = find_private(target, (token, str(folder.resolve())))
        if private_things:
            raise ValueError("Nothing is published: " + " ".join(private_things))
        try_out(target)
        url = None
        if push:
            repo_id, url = _upload(target, record, facts, repo_id, private, revision, token, commit_message)
        return Publication(
            repo_id=repo_id,
            files={
                path.relative_to(target).as_posix(): path.stat().st_size
                for path in sorted(target.rglob("*"))
                if path.is_file()
            },
            left_out=left_out,
            notes=tuple(_notes(target, repo_id, facts)),
            card=(target / "README.md").read_text(encoding="utf-8"),
            url=url,
        )


def _upload(
    target: Path,
    record: RunRecord,
    facts: CardFacts,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    token: str | None,
    commit_message: str,
) -> tuple[str, str]:
    """Upload a staged student in one commit; returns the repository's whole name and the commit's address."""
    api, card = HfApi(token=token), target / "README.md"
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision not in (None, "main"):
            api.create_branch(repo_id, branch=str(revision), exist_ok=True)
        _write_card(card, render_card(record, repo_id, facts), facts.chosen)
        with tempfile.TemporaryDirectory() as there:
            try:
                theirs = Path(api.hf_hub_download(repo_id, "README.md", revision=revision, local_dir=there))
            except LocalEntryNotFoundError:
                raise  # the Hub was not reached: there may be a card
            except EntryNotFoundError:
                pass
            else:
                write_text(card, update_card(theirs.read_text("utf-8"), card.read_text("utf-8"), facts.chosen))
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=target,
            allow_patterns=PUBLISHED,
            delete_patterns=[name for name in PUBLISHED if name != "README.md"],  # of the student before this one
            revision=revision,
            commit_message=commit_message,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, RuntimeError, *CONNECTION_ERRORS) as error:
        raise OSError(
            f"The push to {repo_id} failed: {first_line(error)} The student on this machine is as it was; what was "
            "uploaded is not uploaded again. Push again."
        ) from None  # its address may be a signed one
    return repo_id, str(commit.commit_url)


def _notes(target: Path, repo_id: str, facts: CardFacts) -> Iterator[str]:
    if facts.license is None:
        yield "The licence of the reference is not known; name it if you know it: it applies to the student."
    if facts.reference_license not in (None, facts.license, facts.license_name):
        yield f"The reference's licence is {facts.reference_license}; it applies to its weights in the student."
    asked = obligation(facts.license, facts.license_name, facts.reference_license)
    if asked is not None:
        yield f"The reference's licence is {asked}."
    for name in mentions_user(target, repo_id):
        yield f"{name} names this machine's user."
    if facts.reference_parameters is None:
        yield "The reference could not be reached, so the card says less of it."


def _write_card(path: Path, card: str, chosen: Sequence[str] = ()) -> None:
    """Write a card; one that is there already is updated, so that its author's words stay."""
    write_text(path, update_card(path.read_text(encoding="utf-8"), card, chosen) if path.is_file() else card)


def _share_as_usual(folder: Path) -> None:
    """Give files the permissions that new files get: safetensors makes them readable for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~mask)
