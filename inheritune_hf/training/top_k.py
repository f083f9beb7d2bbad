"""A teacher's likeliest tokens on disk, so that it runs once over each sequence however often it is trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..records import write_json

_DIGEST = 16


class TopKStore:
    """
    Log-probabilities of the likeliest tokens after each token of a sequence, found again by the sequence's tokens.

    A folder holds two files for each process: sequences' digests, and records of one size, in the same order. A record
    is written before its digest, so that what a killed process left half written is never read.

    Args:
        folder (`str` or `os.PathLike`): Of one teacher, one temperature, and one k.
        tokens (`int`): Tokens of a sequence; shorter ones are padded in the record.
        k (`int`): Tokens kept after each token.
        process (`int`, *optional*, defaults to `0`): Number of this process, which writes files of its own.

    Raises:
        ValueError: If the folder holds records of another size.
    """

    def __init__(self, folder: Path, tokens: int, k: int, process: int = 0) -> None:
        self.folder, self.tokens, self.k = folder, tokens, k
        self._type = np.dtype([("token", "<i4", (tokens, k)), ("log_probability", "<f4", (tokens, k))])
        folder.mkdir(parents=True, exist_ok=True)
        self._check_shape()
        self._places: dict[bytes, tuple[Path, int]] = {}
        for index in sorted(folder.glob("*.digests")):
            self._read(index)
        self._own = folder / f"{process:05d}"
        self._cut_own()

    def __len__(self) -> int:
        """Return the number of sequences that can be found."""
        return len(self._places)

    def find(self, rows: Sequence[Tensor]) -> list[tuple[Tensor, Tensor] | None]:
        """
        Return, for each row of token ids, what is kept of it, or None.

        Each is a pair of tensors of shape `(tokens, k)`: tokens, and their log-probabilities in float32.
        """
        found: list[tuple[Tensor, Tensor] | None] = []
        for row in rows:
            place = self._places.get(digest(row))
            if place is None:
                found.append(None)
                continue
            path, number = place
            with path.open("rb") as file:
                file.seek(number * self._type.itemsize)
                record = np.frombuffer(file.read(self._type.itemsize), self._type)[0]
            length = len(row)
            found.append(
                (
                    torch.from_numpy(record["token"][:length].astype(np.int64)),
                    torch.from_numpy(record["log_probability"][:length].copy()),
                )
            )
        return found

    def keep(self, row: Tensor, tokens: Tensor, log_probabilities: Tensor) -> None:
        """
        Keep what a teacher says after each token of a row.

        Args:
            row (`torch.Tensor` of shape `(length,)`): Token ids, no more than a record holds.
            tokens (`torch.Tensor` of shape `(length, k)`): The likeliest tokens.
            log_probabilities (`torch.Tensor` of shape `(length, k)`): Their log-probabilities.

        Raises:
            ValueError: If the row is longer than a record.
        """
        name = digest(row)
        if name in self._places:
            return
        if len(row) > self.tokens:
            raise ValueError(
                f"The store holds sequences of up to {self.tokens} tokens, got one of {len(row)}; give sequences "
                "of one length, or leave distillation_top_k out."
            )
        record = np.zeros((), self._type)
        record["token"][: len(row)] = tokens.cpu().numpy()
        record["log_probability"][: len(row)] = log_probabilities.float().cpu().numpy()
        with self._own.with_suffix(".records").open("ab") as file:
            file.write(record.tobytes())
        with self._own.with_suffix(".digests").open("ab") as file:
            file.write(name)
        self._places[name] = (self._own.with_suffix(".records"), self._count)
        self._count += 1

    def _check_shape(self) -> None:
        path, shape = self.folder / "shape.json", {"tokens": self.tokens, "k": self.k}
        if not path.is_file():
            write_json(path, shape)
        elif json.loads(path.read_text(encoding="utf-8")) != shape:
            raise ValueError(f"{self.folder} holds records of another size than {shape}; remove the folder.")

    def _read(self, index: Path) -> None:
        names, records = index.read_bytes(), index.with_suffix(".records")
        whole = min(len(names) // _DIGEST, records.stat().st_size // self._type.itemsize if records.is_file() else 0)
        for number in range(whole):
            self._places[names[number * _DIGEST : (number + 1) * _DIGEST]] = (records, number)

    def _cut_own(self) -> None:
        """Forget what a process killed while writing left at the end of this process's files."""
        digests, records = self._own.with_suffix(".digests"), self._own.with_suffix(".records")
        for path in (digests, records):
            path.touch()
        self._count = min(digests.stat().st_size // _DIGEST, records.stat().st_size // self._type.itemsize)
        with digests.open("r+b") as file:
            file.truncate(self._count * _DIGEST)
        with records.open("r+b") as file:
            file.truncate(self._count * self._type.itemsize)


def digest(row: Tensor) -> bytes:
    """Return what a row of token ids is found by."""
    return hashlib.sha256(row.to(torch.int64).cpu().numpy().tobytes()).digest()[:_DIGEST]
