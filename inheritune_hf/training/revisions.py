"""Every round of a run as a student of its own, to be published beside the last one."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..publishing import RECORD_FILE
from ..publishing.bundle import PUBLISHED, read_record
from ..records import Lineage, Round, RunRecord, decode, write_json, write_record
from .staging import last_checkpoint

# Taken from the run's own folder, where the last student is: they are the same for every round.
_SHARED = [
    name for name in PUBLISHED if re.match(r"tokenizer|vocab|merges|special_tokens|added_tokens|chat_template", name)
]


def round_students(output_dir: Path) -> Iterator[tuple[int, Path]]:
    """
    Yield every round's number and a folder with its student, which is there until the next one is asked for.

    The student of a round is the checkpoint that ended it; its record tells the rounds up to it.

    Args:
        output_dir (`Path`): Output folder of a finished run, with its checkpoints.

    Raises:
        FileNotFoundError: If the folder holds no student, or a round's last checkpoint is not there any more.
    """
    record = read_record(output_dir)
    for item in record.rounds:
        found = last_checkpoint(output_dir, item.index)
        if found is None or found[1].step != item.end_step:
            raise FileNotFoundError(
                f"The checkpoint that ended round {item.index} is not in {output_dir}: run without save_total_limit to "
                "keep it, or publish without the rounds."
            )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            _write_round(output_dir, found[0], record, item, folder)
            yield item.index, folder


def _write_round(output_dir: Path, checkpoint: Path, record: RunRecord, item: Round, folder: Path) -> None:
    for name in (*(path.name for path in checkpoint.glob("model*.safetensors*")), "generation_config.json"):
        if (checkpoint / name).is_file():
            (folder / name).symlink_to((checkpoint / name).resolve())
    for name in _SHARED:
        if (output_dir / name).is_file():
            shutil.copyfile(output_dir / name, folder / name)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    last = json.loads((output_dir / "config.json").read_text(encoding="utf-8"))
    config["use_cache"] = last.get("use_cache", True)  # off while it was trained
    write_json(folder / "config.json", config)
    last_one = item.index == len(record.rounds)
    told = dataclasses.replace(
        record,
        lineage=decode(Lineage, config["inheritune"], f"{checkpoint / 'config.json'}: inheritune"),
        rounds=record.rounds[: item.index],
        outcome=record.outcome if last_one else None,
    )
    write_record(folder / RECORD_FILE, told)
