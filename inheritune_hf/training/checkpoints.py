"""Keep a run so that it survives a kill: its state, staged rounds and sealed checkpoints, each whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..publishing import RECORD_FILE
from ..publishing.bundle import PUBLISHED, TEMPLATES_FOLDER
from ..publishing.bundle import read_record as read_run_record
from ..records import (
    Count,
    Lineage,
    RecordError,
    Round,
    RunRecord,
    Validation,
    decode,
    digest_file,
    digest_of,
    encode,
    read_json,
    saving,
    write_json,
    write_record,
)
from ..run_folder import RUN_FOLDER, read_state

logger = logging.getLogger(__name__)

_SEAL = "inheritune_state.json"


@dataclass(frozen=True)
class Seal:
    """What a complete checkpoint says of itself; written last, so that a checkpoint without it is not used."""

    run: str  # digest of the identity of the run that wrote it
    round_index: Count
    step: Count  # counted over all rounds
    tokens: Count  # trained on in the round so far
    seconds: float  # of the round so far
    validation: Validation | None = None  # the student's loss when it was last measured in this round
    validated_at: int | None = None  # step at which that was
    confirmed: bool = False  # two evaluations in a row matched, which ends a round early
    abandoned: bool = False  # it was forecast to miss, which does so too
    epochs: float = 0.0  # passes over the training set so far; whole ones of a stream


@dataclass(frozen=True)
class _SealedFile:
    bytes: Count
    crc32: Count


def check_identity(output_dir: Path, there: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """
    Raise a `ValueError` that names every difference if `output_dir` holds another run (`there`) than `identity`.

    Both sides are compared as JSON, since one of them has been through a file. Where the reference has the same
    weights, it does not matter by which path or revision it is named.
    """
    here = json.loads(json.dumps(identity))
    weights = "reference.weights"
    named = ("reference", "reference.revision") if here.get(weights) and here[weights] == there.get(weights) else ()
    different = [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} now"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name) and name not in named
    ]
    if different:
        raise ValueError(
            f"{output_dir} holds another run:\n- " + "\n- ".join(different) + "\nChoose another output_dir, or go back "
            "to the settings of that run."
        )


def write_losses(output_dir: Path, round_index: int, losses: Validation) -> None:
    """Keep the losses per document with which a round was judged: its checkpoint may go."""
    write_json(output_dir / RUN_FOLDER / f"losses-{round_index:02d}.json", encode(losses))


def round_folder(output_dir: Path, round_index: int) -> Path:
    """Return the folder of a round's starting point."""
    return output_dir / RUN_FOLDER / f"round-{round_index:02d}"


def round_end_folder(output_dir: Path, round_index: int, start_step: int, end_step: int) -> Path:
    """Return the checkpoint that ended a round, or its starting point if it matched there, untrained."""
    if end_step == start_step:
        return round_folder(output_dir, round_index)
    return output_dir / f"{PREFIX_CHECKPOINT_DIR}-{end_step}"


def stage_round(
    output_dir: Path,
    round_index: int,
    student: PreTrainedModel,
    trainer_state: TrainerState,
    carried: Mapping[str, Any],
    copied: Sequence[Path],
) -> None:
    """
    Put a round's starting point on disk: the student's weights, and the step count and log so far.

    `carried` are state dictionaries by file name; without those of optimizer and scheduler `Trainer` begins both
    afresh, as the paper does for each round. `copied` are files of the last checkpoint.
    """
    folder = round_folder(output_dir, round_index)
    shutil.rmtree(folder, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with saving(folder):
        temporary.mkdir(parents=True)
        student.save_pretrained(temporary)
        trainer_state.save_to_json(str(temporary / TRAINER_STATE_NAME))
        for name, values in carried.items():
            torch.save(values, temporary / name)
        for file in copied:
            shutil.copyfile(file, temporary / file.name)
        temporary.rename(folder)
    for older in range(1, round_index):
        shutil.rmtree(round_folder(output_dir, older), ignore_errors=True)


def read_trainer_state(checkpoint: Path) -> TrainerState:
    """Return the step count and log of a checkpoint."""
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    return state


def seal_checkpoint(checkpoint: Path, seal: Seal) -> None:
    """Declare a checkpoint complete, with the size and checksum of each file; nothing is written to it afterwards."""
    write_json(
        checkpoint / _SEAL,
        {
            "files": {
                file.relative_to(checkpoint).as_posix(): _checksum(file)
                for file in sorted(checkpoint.rglob("*"))
                if file.is_file() and file.name != _SEAL
            },
            **encode(seal),
        },
    )


def unseal_checkpoint(checkpoint: Path) -> None:
    """Declare a checkpoint incomplete before it is written again; what a kill left of a seal goes too."""
    for name in (_SEAL, f".{_SEAL}.tmp"):
        (checkpoint / name).unlink(missing_ok=True)


def rotate_checkpoints(output_dir: Path, step: int, most: int | None) -> None:
    """
    Let all but the last `most` checkpoints go, after that of `step` was sealed; none if there is no limit.

    Those of higher steps go first: a kill left them half written, or they are damaged, or they would have been used.
    """
    found = {path: path.name.rpartition("-")[2] for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    steps = {path: int(number) for path, number in found.items() if number.isdecimal()}
    for path in sorted(steps, key=lambda path: (steps[path] <= step, steps[path]))[: -most if most and most > 0 else 0]:
        shutil.rmtree(path)


def read_seal(checkpoint: Path) -> Seal | None:
    """Return what a checkpoint says of itself, or None if it is not complete or its seal is damaged."""
    try:
        values = read_json(checkpoint / _SEAL)
        decode(dict[str, _SealedFile], values.pop("files"), f"{checkpoint / _SEAL}: files")
        return decode(Seal, values, str(checkpoint / _SEAL))
    except (FileNotFoundError, NotADirectoryError, KeyError, RecordError):
        return None


def last_checkpoint(output_dir: Path, round_index: int, run: str) -> tuple[Path, Seal] | None:
    """
    Return the last complete and undamaged checkpoint of a round, or None.

    Those that are damaged or of another run than `run`, the digest of its identity, are named in a warning.
    """
    found = []
    for checkpoint in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        seal = read_seal(checkpoint)
        if seal is not None and seal.run != run:
            logger.warning("%s belongs to another run and is not used.", checkpoint)
        elif seal is not None and seal.round_index == round_index:
            found.append((seal.step, checkpoint, seal))
    for _, checkpoint, seal in sorted(found, key=lambda item: item[0], reverse=True):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint, seal
        logger.warning("%s is damaged (%s); the checkpoint before it is used.", checkpoint, damage)
    return None


def find_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a sealed checkpoint's files, or None if they are what was sealed."""
    files = json.loads((checkpoint / _SEAL).read_text(encoding="utf-8"))["files"]
    for name, sealed in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != sealed["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, not {sealed['bytes']}"
        if _checksum(file) != sealed:
            return f"{name} has been changed"
    return None


def _checksum(file: Path) -> dict[str, int]:
    return {"bytes": file.stat().st_size, "crc32": digest_file(file, _crc32)}


def _crc32(file: Path) -> int:
    total = 0
    with file.open("rb") as stream:
        while part := stream.read(1 << 24):
            total = zlib.crc32(part, total)
    return total


# Taken from the run's own folder, where the last student is: they are the same for every round.
_SHARED = [
    name for name in PUBLISHED if re.match(r"tokenizer|vocab|merges|special_tokens|added_tokens|chat_template", name)
]


def round_students(output_dir: Path) -> Iterator[tuple[int, Path]]:
    """
    Yield every round's number and a folder with its student, which is there until the next one is asked for.

    The student of a round is the checkpoint that ended it; its record holds the rounds up to it.

    Args:
        output_dir (`Path`): Output folder of a finished run, with its checkpoints.

    Raises:
        FileNotFoundError: If the folder holds no student, or a round's last checkpoint is not there any more.
    """
    record, state = read_run_record(output_dir), read_state(output_dir)
    for item in record.rounds:
        found = last_checkpoint(output_dir, item.index, digest_of(state.identity)) if state else None
        ended = round_end_folder(output_dir, item.index, item.start_step, item.end_step)
        if (found is None or found[0] != ended) and not (item.end_step == item.start_step and ended.is_dir()):
            raise FileNotFoundError(
                f"The checkpoint that ended round {item.index} is not in {output_dir}: run without save_total_limit to "
                "keep it, or publish without the rounds."
            )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            _write_round(output_dir, ended, record, item, folder)
            yield item.index, folder


def _write_round(output_dir: Path, checkpoint: Path, record: RunRecord, item: Round, folder: Path) -> None:
    for path in checkpoint.glob("model*.safetensors"):
        try:
            (folder / path.name).symlink_to(path.resolve())
        except OSError:  # Windows lets few users make links
            shutil.copyfile(path, folder / path.name)
    # Of links out of a folder only weights are published.
    own = [checkpoint / name for name in ("model.safetensors.index.json", "generation_config.json")]
    for path in (*own, *(output_dir / name for name in _SHARED)):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    templates = output_dir / TEMPLATES_FOLDER
    if templates.is_dir() and not templates.is_symlink():
        shutil.copytree(templates, folder / TEMPLATES_FOLDER, symlinks=True)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    last = json.loads((output_dir / "config.json").read_text(encoding="utf-8"))
    config["use_cache"] = last.get("use_cache", True)  # off while it was trained
    write_json(folder / "config.json", config)
    last_one = item.index == len(record.rounds)
    published = dataclasses.replace(
        record,
        lineage=decode(Lineage, config["inheritune"], f"{checkpoint / 'config.json'}: inheritune"),
        rounds=record.rounds[: item.index],
        outcome=record.outcome if last_one else None,
    )
    write_record(folder / RECORD_FILE, published)
