"""What makes a run this very run: recipe, arguments that change numbers, reference and data, each by its content."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from transformers import PreTrainedModel, TrainingArguments

from ..configuration import InherituneConfig
from ..data import set_fingerprint
from ..data.stream import PackedStream
from ..measures import is_measured
from ..students import Reference, open_reference
from ..students.checkpoints import SOURCE_ARGUMENTS, TRANSPORT_ARGUMENTS, commit_of, find_weights
from ..students.reference import find_config, locate
from .callbacks import on_main_process
from .staging import SETTLED, check_identity, read_state

if TYPE_CHECKING:
    from .trainer import InherituneTrainer

#: Arguments that change the numbers of a run.
NUMERIC_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "use_cache",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "average_tokens_across_devices",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "world_size",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
)


def run_identity(args: TrainingArguments, config: InherituneConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """
    Return what makes a run this very run: an output folder that holds another one is refused.

    What may change when a run goes on (`max_layers`, `max_steps`, how often it logs, evaluates and saves, where it
    runs) is not part of it.
    """
    recipe = {f"recipe.{name}": value for name, value in config.to_dict().items() if name != "max_layers"}
    return {**recipe, **{f"args.{name}": value for name, value in numeric_arguments(args).items()}, **facts}


def numeric_arguments(args: TrainingArguments) -> dict[str, Any]:
    """Return the training arguments that change the numbers of a run."""
    return {name: _plain(getattr(args, name)) for name in NUMERIC_ARGUMENTS}


def check_output_dir(args: TrainingArguments, config: InherituneConfig) -> None:
    """
    Refuse an output folder that holds a run of other settings, as far as that can be told without reference and data.

    Raises:
        ValueError: If it does; every difference is named.
    """
    folder = Path(args.output_dir or "trainer_output")
    found = read_state(folder) if args.should_save else None
    if found is not None:
        mine = run_identity(args, config, {})
        if is_measured(config.keep_layers):
            del mine["recipe.keep_layers"]  # which layers they are is known later
        check_identity(folder, {name: value for name, value in found.identity.items() if name in mine}, mine)


def dataset_fingerprint(dataset: Any) -> str | None:
    """
    Return what tells one data set from another: its content, or some of its rows if it is no `datasets.Dataset`.

    A data set without a length has no fingerprint, unless it says one.
    """
    if isinstance(dataset, PackedStream):
        return dataset.fingerprint
    if isinstance(dataset, datasets.Dataset):
        return set_fingerprint(dataset)
    if not hasattr(dataset, "__len__"):
        return None
    count = len(dataset)
    digest = hashlib.sha256(str(count).encode())
    for index in range(0, count, max(1, count // 64)):
        row = dataset[index]
        digest.update(json.dumps([int(item) for item in row["input_ids"]]).encode())
    return digest.hexdigest()


def content_fingerprint(reference: Reference, **kwargs: Any) -> str:
    """
    Return a sha256 that changes whenever the reference's weights or config do.

    Args:
        reference (`str`, `os.PathLike` or `PreTrainedModel`):
            Of a loaded model the tensors are read, of a repository of the Hub its commit, of a folder the files
            (about a second for each gigabyte).
        kwargs: How it is loaded.
    """
    if isinstance(reference, PreTrainedModel):
        return open_reference(reference).fingerprint()
    source = locate(reference, dict(kwargs))
    config = find_config(source)
    options = {name: str(value) for name, value in sorted(kwargs.items()) if name not in TRANSPORT_ARGUMENTS}
    digest = hashlib.sha256(config.read_bytes() + json.dumps(options).encode())
    commit = commit_of(config)
    if commit is not None:
        digest.update(f"{reference} {commit}".encode())  # which never changes
        return digest.hexdigest()
    weights = find_weights(source)
    for path in sorted({weights.path, *(weights.path.with_name(shard) for shard in weights.files.values())}):
        now = path.stat()
        # A clock of files may stand still for some milliseconds: what was written just now may yet change unseen.
        read = _sha256 if time.time_ns() - now.st_mtime_ns > SETTLED else _sha256.__wrapped__
        digest.update(path.name.encode() + read(path, now.st_size, now.st_mtime_ns, now.st_ino))
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _sha256(file: Path, size: int, changed: int, node: int) -> bytes:
    """Read a file once: as long as size, time of change and place on the disk stay, its content does."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def run_facts(trainer: InherituneTrainer) -> dict[str, Any]:
    """Return what a run's identity says of its reference, its data and its devices."""
    reference, kwargs = trainer.reference, trainer.reference_kwargs
    # Weights, not names: a folder's may be replaced, a branch may move, and a loaded model has no name.
    options = {name: value for name, value in kwargs.items() if name in ("dtype", *SOURCE_ARGUMENTS)}
    weights = content_fingerprint(reference, **options) if trainer.args.process_index == 0 else None
    return {
        **trainer.stream_facts(),
        "sharding": trainer.sharding,
        "reference": reference.name_or_path if isinstance(reference, PreTrainedModel) else str(reference),
        "reference.revision": kwargs.get("revision"),
        "reference.layers": trainer.reference_depth,
        "reference.weights": on_main_process(weights),
        "train_dataset": dataset_fingerprint(trainer.train_dataset),
        "eval_dataset": dataset_fingerprint(trainer.eval_dataset),
        "document_boundaries": getattr(trainer.data_collator, "end_token_id", None) is not None,
    }


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
