"""Standard checkpoints, on disk and on the Hub: weights, config, tokenizer, record and card, and nothing else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration import InherituneConfig
from ..records import RECORD_FILE, Lineage, RunRecord, write_json, write_text
from ..students import DEFAULT_SEED, InheritancePlan, from_pretrained_inherited, plan_inheritance
from .card import render_card

#: What may be published; anything else in a folder stays where it is.
PUBLISHED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    RECORD_FILE,
    "README.md",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "added_tokens.json",
    "chat_template.jinja",
]


def save_student(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    record: RunRecord,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str | None = None,
) -> None:
    """
    Save a student as a standard checkpoint that `AutoModelForCausalLM` loads without this package.

    Args:
        model (`PreTrainedModel`): The student.
        folder (`str` or `os.PathLike`): Where to; made if it is not there.
        record (`RunRecord`): Saved as `inheritune_config.json`, and told in the card.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The reference's tokenizer.
        name (`str`, *optional*): Name on the card; the folder's if not given.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_json(folder / RECORD_FILE, record.to_dict())
    write_text(folder / "README.md", render_card(record, name or folder.resolve().name))
    _share_as_usual(folder)


def save_inherited(
    reference: str,
    keep_layers: int | str,
    folder: str | os.PathLike[str],
    revision: str | None = None,
    inherit: str = "all",
    seed: int = DEFAULT_SEED,
    attention_scale: str = "keep",
    show: Callable[[InheritancePlan], None] | None = None,
    **kwargs: Any,
) -> InheritancePlan:
    """
    Cut a student out of a reference and save it with the reference's tokenizer, if there is one.

    Args:
        reference (`str`): Hub id or path.
        keep_layers (`int` or `str`): As in the recipe.
        folder (`str` or `os.PathLike`): Where to; a folder that holds something else is refused.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        inherit (`str`, *optional*, defaults to `"all"`): Parts that come along, as in the recipe.
        seed (`int`, *optional*, defaults to `42`): Seed of the parts that do not come along.
        attention_scale (`str`, *optional*, defaults to `"keep"`): Whether moved blocks keep their attention scale.
        show (`Callable`, *optional*): Called with the plan before any weight is read.
        kwargs: Passed on to `from_pretrained`.

    Returns:
        `InheritancePlan`: Kept and dropped layers, parameters before and after.

    Raises:
        FileExistsError: If `folder` is not empty.
        ValueError: If the layers or the reference cannot be used; nothing is written then.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; choose another one, so that nothing is overwritten.")
    source: dict[str, Any] = {} if revision is None else {"revision": revision}
    recipe = InherituneConfig(keep_layers=keep_layers, inherit=inherit, attention_scale=cast(Any, attention_scale))
    plan = plan_inheritance(reference, keep_layers, inherit, attention_scale, **source)
    if show is not None:
        show(plan)
    student = from_pretrained_inherited(reference, recipe, seed=seed, **source, **kwargs)
    try:
        tokenizer = AutoTokenizer.from_pretrained(reference, **source)
    except (OSError, ValueError):
        tokenizer = None  # a reference without a tokenizer gives a student without one
    record = RunRecord(recipe.to_dict(), Lineage.from_dict(student.config.inheritune))
    save_student(student, folder, record, tokenizer)
    return plan


def push_student(
    model: PreTrainedModel,
    record: RunRecord,
    tokenizer: PreTrainedTokenizerBase | None,
    repo_id: str,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "End of training",
) -> str:
    """
    Publish a student on the Hub as a standard checkpoint; makes the repository if it is not there.

    Returns:
        `str`: Address of the commit.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save_student(model, folder, record, tokenizer, name=repo_id)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=PUBLISHED,
            revision=revision,
            commit_message=commit_message,
        )
    return str(commit.commit_url)


def _share_as_usual(folder: Path) -> None:
    """Give files the permissions that new files get: safetensors makes them readable for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~mask)
