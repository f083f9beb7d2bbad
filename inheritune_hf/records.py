"""Records of runs and students, and how every file of facts is written, read and checked."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import math
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TextIO, TypeVar

from safetensors import SafetensorError

from .annotations import Within, annotations_of, conform
from .config import PARTS, InherituneConfig, reference_options
from .foreign_text import parse_json
from .layers import describe
from .measures import MEASURES
from .tabular import Table, Tabular

logger = logging.getLogger(__name__)

Record = TypeVar("Record")
Digest = TypeVar("Digest")

#: A number that counts something.
Count = Annotated[int, Within(0, 1 << 53)]

#: A layer, 0-based, and a depth.
Layer = Annotated[int, Within(0, 99_999)]
Depth = Annotated[int, Within(1, 100_000)]

#: Largest file of facts, in bytes.
MAX_BYTES = 1 << 29

Outcome = Literal["matched", "no_more_layers", "budget_exhausted", "interrupted", "adapted"]

# Nanoseconds after which a file's time of change tells it from what it was before: a clock of files may stand still.
_SETTLED = 50_000_000

#: Beside a student's weights: the recipe, where the student comes from, and its rounds.
RECORD_FILE = "inheritune_config.json"

#: Exit status of `inheritune train` for each outcome.
EXIT_STATUS: dict[str, int] = {"matched": 0, "no_more_layers": 3, "budget_exhausted": 4, "interrupted": 75}


@dataclass(frozen=True)
class LayerOrder:
    """
    The order in which students have the layers of their reference, by an importance measure: they are nested.

    Args:
        measure (`str`): Name of the measure, or `auto`.
        layers (`tuple[int, ...]`): All layers, the most important first: a student of n layers has the first n.
        first (`int`): Layers of the first student; a measure that removes layers one by one does not order these.
        sequences (`int`): Training sequences that it was measured on.
        tokens (`int`): Tokens of each.
        data (`str`): Fingerprint of these sequences.
    """

    measure: str
    layers: tuple[Layer, ...]
    first: Depth
    sequences: Count = 0
    tokens: Count = 0
    data: str = ""

    @property
    def sentence(self) -> str:
        """How the layers were chosen, in which order, and on what."""
        known = MEASURES.get(self.measure)
        what = f"{self.measure} ({known.keeps}; {known.source})" if known else self.measure
        first, others = describe(sorted(self.layers[: self.first])), self.layers[self.first :]
        return (
            f"Layers are chosen by {what}, on {self.sequences} sequences of {self.tokens} tokens: {first}, "
            f"then {', '.join(map(str, others)) or 'no more'}."
        )


@dataclass(frozen=True)
class Lineage:
    """
    Where a student's parts come from; travels in `student.config.inheritune`.

    Args:
        reference (`str`): Id or path of the reference, as it was given.
        revision (`str`, *optional*): Resolved commit of the reference, if it came from the Hub.
        reference_layers (`int`): Depth of the reference, in layers.
        kept_layers (`tuple[int, ...]`): Layers of the reference that the student holds, 0-based, in order.
        versions (`dict[str, str]`): Versions of the libraries that built the student.
        inherited (`tuple[str, ...]`): Inherited parts, as in `PARTS`; the others began random.
        seed (`int`, *optional*): Seed of the parts that began random; None if there are none.
        query_scales (`tuple[float, ...]`): What each block's queries were multiplied by to compute at a new position
            what they computed at the old one; empty where none was.
        unknown_tensors (`tuple[str, ...]`): Tensors of what is kept in the reference's files that its architecture does
            not know, `*` in place of the layer: the student has nothing of them.
        text_model (`bool`): Whether it was the text model inside a multimodal reference.
        gguf_file (`str`, *optional*): The GGUF file of the reference that was dequantized; None for plain weights.
        prediction_layers (`int`): Layers of multi-token prediction that the reference has beside its others: the
            student has none.
        data (`dict[str, str]`): Fingerprints of the sets it was trained and selected on (`train`, `selection`).
        order (`LayerOrder`, *optional*): How its layers were chosen, if a measure chose them in a run.
    """

    reference: str
    revision: str | None
    reference_layers: Depth
    kept_layers: tuple[Layer, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    inherited: tuple[str, ...] = PARTS
    seed: int | None = None
    query_scales: tuple[float, ...] = ()
    unknown_tensors: tuple[str, ...] = ()
    text_model: bool = False
    gguf_file: str | None = None
    prediction_layers: int = 0
    data: Mapping[str, str | None] = field(default_factory=dict)
    order: LayerOrder | None = None

    @property
    def base_model(self) -> str | None:
        """Id of the reference on the Hub, or None if it was a folder or a model in memory: then it has no commit."""
        is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", self.reference, flags=re.ASCII)
        return self.reference if is_id and self.revision is not None else None

    @property
    def reference_name(self) -> str:
        """What the reference may be called in public: its id on the Hub, or the last part of its path."""
        return self.base_model or re.split(r"[/\\]", self.reference.rstrip("/\\"))[-1]

    @property
    def where(self) -> dict[str, Any]:
        """What opening the same reference takes beside its name."""
        return reference_options(self)

    @property
    def options(self) -> list[str]:
        """The same as words of a command line."""
        words = ((f"--{name.replace('_', '-')}", value) for name, value in self.where.items())
        return [word for option, value in words for word in ([option] if value is True else [option, value])]

    def published(self) -> Lineage:
        """Return the lineage as others may read it: no path of a machine is in it."""
        return dataclasses.replace(self, reference=self.reference_name)


@dataclass(frozen=True)
class Validation:
    """
    A model's loss on one set of sequences, as sums per document.

    Args:
        documents (`tuple[int, ...]`): The documents, ascending.
        loss_sums (`tuple[float, ...]`): Summed loss of each document's counted tokens, in nats.
        tokens (`tuple[int, ...]`): Counted tokens of each document.
        correct (`tuple[int, ...]`): Tokens of each document that the model ranked first.
        grouped (`bool`): Whether it is known which sequences are of one document; else each counts as one.
    """

    documents: tuple[int, ...]
    loss_sums: tuple[float, ...]
    tokens: tuple[int, ...]
    correct: tuple[int, ...]
    grouped: bool = True

    def __post_init__(self) -> None:
        lengths = {len(self.documents), len(self.loss_sums), len(self.tokens), len(self.correct)}
        if len(lengths) != 1 or not self.tokens or min(self.tokens) < 1:
            raise ValueError("a validation needs documents, and for each a loss, tokens of 1 or more, and hits.")

    @property
    def loss(self) -> float:
        """Mean loss over all tokens, in nats per token."""
        return sum(self.loss_sums) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        """Exponential of the loss."""
        return perplexity(self.loss)

    @property
    def accuracy(self) -> float:
        """Share of tokens that the model ranked first."""
        return sum(self.correct) / sum(self.tokens)


@dataclass(frozen=True)
class Match:
    """
    How a student's loss compares with its target, and whether it is good enough.

    Args:
        matched (`bool`): The verdict under the recipe's tolerance and confidence.
        matched_paper (`bool`): The verdict of the paper's rule: the student's mean loss is not above the target.
        difference (`float`): Student's loss minus target, in nats per token.
        lower (`float`, *optional*): One-sided lower bound of the difference, in nats per token.
        upper (`float`, *optional*): One-sided upper bound of the difference, in nats per token.
        documents (`int`): Documents that the comparison rests on.
        note (`str`): What weakens the interval, or why there is none; empty if there is nothing to say.
        decided (`bool`): False if the documents are too few to decide at a confidence; then it is not matched.
        confidence (`float`, *optional*): One-sided confidence of each bound.
        influential (`int`, *optional*): The document without which the difference would change most.
        without_influential (`float`, *optional*): The difference without it, in nats per token.
        power (`float`, *optional*): Probability that a student of exactly the target's loss, whose differences spread
            alike, would match at this tolerance; None where means are compared, or nothing is decided.
    """

    matched: bool
    matched_paper: bool
    difference: float
    lower: float | None
    upper: float | None
    documents: Count
    note: str = ""
    decided: bool = True
    confidence: float | None = None
    influential: int | None = None
    without_influential: float | None = None
    power: float | None = None


@dataclass(frozen=True)
class Round:
    """
    One round of the loop: inherit, train, compare.

    Args:
        index (`int`): Number of the round, from 1.
        kept_layers (`tuple[int, ...]`): Layers of the reference that the student started from.
        start_step (`int`): Optimizer step at which the round began, counted over all rounds.
        end_step (`int`): Optimizer step at which it was judged, counted over all rounds.
        tokens (`int`): Tokens trained on in this round.
        flops (`float`): Floating-point operations of this round's training, by Transformers' own estimate.
        seconds (`float`): Wall time of this round's training and evaluation; of a session that was killed, until
            its last checkpoint.
        loss (`float`): The student's loss on the selection set, in nats per token.
        target (`float`): The loss it had to reach, in nats per token.
        match (`Match`): The comparison.
        epochs (`float`): Passes over the training set when it was judged; whole ones of a stream.
        start_loss (`float`, *optional*): The student's loss before it was trained in this round, in nats per token.
        abandoned (`bool`): Whether it ended before its last step because it was forecast to miss.
    """

    index: Count
    kept_layers: tuple[Layer, ...]
    start_step: Count
    end_step: Count
    tokens: Count
    flops: float
    seconds: float
    loss: float
    target: float
    match: Match
    epochs: float = 0.0
    start_loss: float | None = None
    abandoned: bool = False

    @property
    def layers(self) -> int:
        """Depth of this round's student, in layers."""
        return len(self.kept_layers)


def perplexity(loss: float) -> float:
    """Return the exponential of a loss in nats per token; of one that has diverged beyond any float, infinity."""
    return math.exp(loss) if loss < math.log(sys.float_info.max) else math.inf


def loss_text(loss: float) -> str:
    """Return a loss as logs show it: in nats per token, with its perplexity."""
    return f"{loss:.4f} nats/token (perplexity {perplexity(loss):.4g})"


class Rounds(Tabular, tuple[Round, ...]):
    """The rounds of a run, which show themselves as a table; losses and targets are in nats per token."""

    def table(self) -> Table:
        """Return a row for each round."""
        headers = ("round", "layers", "steps", "tokens", "loss", "perplexity", "target", "difference", "matched")
        rows = [
            (
                str(item.index),
                str(item.layers),
                f"{item.end_step - item.start_step:,}",
                f"{item.tokens:,}",
                f"{item.loss:.4f}",
                f"{perplexity(item.loss):.4g}",
                f"{item.target:.4f}",
                f"{item.match.difference:+.4f}",
                "yes" if item.match.matched else "no" if item.match.decided else "undecided",
            )
            for item in self
        ]
        return Table(f"{len(rows)} round{'s' * (len(rows) != 1)}, losses in nats per token", headers, rows)


@dataclass(frozen=True)
class RunState:
    """Where a run stands, as its state file says."""

    identity: Mapping[str, Any]  # what makes it this very run
    layers: tuple[Layer, ...]  # of the student that is being trained
    reference: Validation | None = None  # None before it is measured, or if the target is a number
    start_step: Count = 0  # at which the round in progress began, counted over all rounds
    staged: bool = False  # whether that round's starting point is on disk
    rounds: tuple[Round, ...] = ()
    outcome: Outcome | None = None
    order: LayerOrder | None = None  # None if the recipe says which layers, and before it is measured
    start: Validation | None = None  # of the round in progress, before it was trained

    @property
    def round_index(self) -> int:
        """Number of the round that is being trained, from 1."""
        return len(self.rounds) + 1

    @property
    def training(self) -> dict[str, Any]:
        """Training arguments that change the numbers of the run."""
        given = self.identity.items()
        return {name.removeprefix("args."): value for name, value in given if name.startswith("args.")}


@dataclass(frozen=True)
class RunRecord:
    """
    What a published student carries beside its weights, in `inheritune_config.json`.

    Args:
        recipe (`dict`): The `InherituneConfig` as a dictionary.
        lineage (`Lineage`): Where the student's parts come from.
        rounds (`tuple[Round, ...]`): All rounds, failed ones included.
        outcome (`str`, *optional*): `matched`, `no_more_layers`, `budget_exhausted` or `interrupted`; `adapted` of a
            whole reference that was trained further; None if the student was not trained.
        target (`float`, *optional*): The loss to reach, in nats per token.
        training (`dict`): Training arguments that change the numbers of a run, seeds among them.
        uniform_loss (`float`, *optional*): Loss of a uniform guess over the vocabulary, in nats per token.
    """

    recipe: Mapping[str, Any]
    lineage: Lineage
    rounds: tuple[Round, ...] = ()
    outcome: Outcome | None = None
    target: float | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    uniform_loss: float | None = None

    def inherit_command(self, reference: str, output: str) -> str:
        """Return the command that builds the student from `reference` as it was before training, in `output`."""
        layers = self.recipe.get("keep_layers", InherituneConfig.keep_layers)
        words = ["inheritune", "inherit", reference]
        words += ["--keep-layers", str(layers) if isinstance(layers, int | str) else describe(layers)]
        for name in ("inherit", "attention_scale"):
            default = getattr(InherituneConfig, name)
            if self.recipe.get(name, default) != default:
                words += [f"--{name.replace('_', '-')}", str(self.recipe[name])]
        words += [] if self.lineage.seed is None else ["--seed", str(self.lineage.seed)]
        return shlex.join([*words, *self.lineage.options, "--output", output])

    def published(self) -> RunRecord:
        """Return the record as others may read it: no path of a machine is in it."""
        return dataclasses.replace(self, lineage=self.lineage.published())


@dataclass(frozen=True)
class SetFacts:
    """What one set holds; of a stream there are no counts."""

    documents: Count | None  # with text
    tokens: Count | None  # in the sequences, end-of-text tokens included
    sequences: Count | None
    fingerprint: str  # sha256 of the content, see `set_fingerprint`; of `sources_fingerprint`, for a stream

    def __str__(self) -> str:
        counts = ((name, getattr(self, name)) for name in ("documents", "tokens", "sequences"))
        return ", ".join(f"{count:,} {name}" for name, count in counts if count is not None) or "a stream"


@dataclass(frozen=True)
class SourceFacts:
    """What one training source contributes; a stream's documents, tokens and passes are not known."""

    name: str  # or its files
    documents: Count | None = None
    tokens: Count | None = None
    bytes: Count | None = None  # of text
    weight: float | None = None  # in a mixture
    passes: float | None = None  # over the source in one pass over the training set


@dataclass(frozen=True)
class DataFacts:
    """What a run is trained, selected and tested on."""

    source: str
    block_size: Count
    train: SetFacts
    selection: SetFacts
    test: SetFacts
    dropped_tokens: Count = 0  # of the last, partial training sequence of each source
    skipped_documents: Count = 0  # null or blank
    shared_documents: Count = 0  # of the selection or test set, whose very text is in another set as well
    # Training documents nearly the same as one of the selection or test set, and selection documents nearly the same
    # as one of the test set; None if they were not looked for. Those of a stream are counted as they come.
    near_duplicates: Count | None = None
    removed_documents: Count = 0  # because they are in another set too
    damaged_rows: Count = 0  # that could not be read and were skipped
    longest_document: Count = 0  # tokens of the longest training document
    sources: tuple[SourceFacts, ...] = ()

    def __str__(self) -> str:
        return " · ".join([self.source, *(f"{name}: {getattr(self, name)}" for name in ("train", "selection", "test"))])

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of training text for each of its tokens; None if there is no text."""
        size, tokens = (sum(getattr(source, name) or 0 for source in self.sources) for name in ("bytes", "tokens"))
        return size / tokens if size and tokens else None


class RecordError(ValueError):
    """A file that cannot be used: damaged, of another kind, or written by a later version; names file and field."""


def encode(record: Any) -> Any:
    """Return a record as the dictionary that JSON can hold and `decode` reads."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {item.name: encode(getattr(record, item.name)) for item in dataclasses.fields(record) if item.init}
    if isinstance(record, Mapping):
        return {name: encode(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [encode(value) for value in record]
    return record


def decode(kind: type[Record], values: Any, where: str, only_known: bool = True) -> Record:
    """
    Rebuild a record from what `encode` returned, each field checked against its annotation.

    Args:
        kind (`type`): A dataclass, or any annotation of what JSON can hold.
        values: What was read.
        where (`str`): File or place that an error names.
        only_known (`bool`, *optional*, defaults to `True`): Whether fields that the record does not have are an error;
            else they belong to others that share the file, and are left out.

    Raises:
        RecordError: If a field is missing, unknown, of another type, not finite or out of range.
    """
    untyped: Any = kind
    if not only_known and isinstance(values, Mapping):
        values = {name: values[name] for name in annotations_of(untyped) if name in values}
    try:
        found: Record = conform(untyped, values, "")
    except ValueError as error:
        raise RecordError(f"{where}: {str(error).lstrip(': .')}") from error
    return found


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Read a JSON file that holds one mapping.

    Raises:
        OSError: If the file is not there or cannot be read.
        RecordError: If it is too large, is not JSON, nests too deep, or holds something else than a mapping.
    """
    path = Path(path)
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise RecordError(f"{path} is larger than {MAX_BYTES:,} bytes: it is not one of this package's files.")
    try:
        values = parse_json(content, f"{path} is damaged: it")
    except ValueError as error:
        raise RecordError(str(error)) from error
    if not isinstance(values, dict):
        raise RecordError(f"{path} must hold a mapping, got a {type(values).__name__}.")
    return values


def read_record(kind: type[Record], path: str | os.PathLike[str]) -> Record:
    """
    Read a record from a file that `write_record` wrote.

    Raises:
        OSError: If the file is not there or cannot be read.
        RecordError: If the file is damaged, its format is later than this version's, or a field cannot be used.
    """
    values = read_json(path)
    known, found = getattr(kind, "FORMAT", 1), values.pop("format", 1)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise RecordError(f"{path}: format must be a whole number of 1 or more, got {found!r}.")
    if found > known:
        raise RecordError(
            f"{path} was written by a later version of inheritune-hf (format {found}, this one reads up to {known}); "
            "update inheritune-hf."
        )
    return decode(kind, values, str(path))


def write_record(path: str | os.PathLike[str], record: Any) -> None:
    """Write a record to `path`, with its format's number, so that a reader finds the old file or the new one."""
    write_json(path, {"format": getattr(record, "FORMAT", 1), **encode(record)})


def write_json(path: str | os.PathLike[str], values: Mapping[str, Any], shared: bool = False) -> None:
    """Write `values` to `path` as JSON, as `write_text` writes text."""
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n", shared)


def write_text(path: str | os.PathLike[str], text: str, shared: bool = False) -> None:
    """
    Write `text` to `path` so that a reader finds the old file or the new one, never a part.

    With `shared` other processes may write it at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


#: What libraries raise where a file cannot be written.
SAVE_ERRORS = (OSError, RuntimeError, SafetensorError)


@contextlib.contextmanager
def saving(target: str | os.PathLike[str]) -> Iterator[None]:
    """
    Save something within this context, by any library.

    Raises:
        OSError: If it cannot be written; the message names it and the reason, in one line.
    """
    try:
        yield
    except SAVE_ERRORS as error:
        raise OSError(
            f"{target} could not be saved ({error}); make room or choose another place, then try again."
        ) from error


#: Lock files of the folders that this process holds.
_held: dict[Path, TextIO] = {}

#: What a file system says that has no locks.
_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
# Where a file is locked on Windows: far behind what is written, since a locked byte cannot be read.
_LOCKED_BYTE = 1 << 30


@contextlib.contextmanager
def hold_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """
    Hold a folder that only one process may write to; the system releases it when the process ends, however it ends.

    A process may hold a folder again that it holds already. The folder is made if it is not there.

    Raises:
        BlockingIOError: If another process holds it; the message names process, machine and time.
        OSError: If the folder cannot be made or written to.
    """
    path = Path(folder).resolve() / ".lock"
    if path in _held:
        yield
        return
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    _release_in_children()
    _held[path] = _lock(path)
    try:
        yield
    finally:
        file = _held.pop(path, None)
        if file is not None:  # else this is a forked child, which holds nothing
            if sys.platform == "win32":
                file.close()  # an open file cannot be removed
            path.unlink(missing_ok=True)
            file.close()
            if made:
                with contextlib.suppress(OSError):
                    path.parent.rmdir()  # if nothing came of it


def _lock(path: Path) -> TextIO:
    """Open and lock a file, and write into it who holds it."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _take(file)
            current = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise BlockingIOError(
                f"{path.parent} is in use by {holder}; wait until it has ended, or choose another folder."
            ) from error
        except FileNotFoundError:
            current = False
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                file.close()
                raise
            logger.warning("%s: this file system has no locks (%s); run one process there at a time.", path, error)
            current = True
        if current:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}")
            file.flush()
            return file
        file.close()  # the process that held it has removed it in between


def _take(file: TextIO) -> None:
    """Lock a file that nobody else has locked; a `BlockingIOError` if somebody has."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@functools.cache
def _release_in_children() -> None:
    """Let forked children close their copies of lock files: they would hold the folders for as long as they live."""

    def close() -> None:
        while _held:
            _held.popitem()[1].close()

    if hasattr(os, "register_at_fork"):  # Windows does not fork
        os.register_at_fork(after_in_child=close)


def cache_folder(name: str) -> Path:
    """Return the folder below `HF_HOME` in which something that was measured or made is kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "inheritune_hf" / name


def digest_of(key: Any) -> str:
    """Return a digest of a key, of what JSON can hold: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(encode(key), sort_keys=True).encode()).hexdigest()[:32]


def digest_file(file: Path, read: Callable[[Path], Digest]) -> Digest:
    """
    Return `read(file)`, a digest of the file's content; a file that has not changed is read once in a process.

    It has not changed while its size, time of change and place on the disk are the same; a file that was written just
    now may yet change unseen, and is read again.
    """
    now = file.stat()
    changed = max(now.st_mtime_ns, now.st_ctime_ns)  # the first can be set back, the second cannot
    remembered: Any = _read_once if time.time_ns() - changed > _SETTLED else _read_once.__wrapped__
    found: Digest = remembered(read, file, now.st_size, changed, now.st_ino)
    return found


@functools.lru_cache(maxsize=512)
def _read_once(read: Callable[[Path], Any], file: Path, size: int, changed: int, node: int) -> Any:
    return read(file)


class Cache(Generic[Record]):
    """
    Records by key in a folder, one file each: what was measured before is not measured again.

    An entry that is damaged, of another key, or of another user is named in a warning, dropped, and made again. Where
    the folder cannot be written to, a warning says so and nothing is kept.

    Args:
        folder (`str` or `os.PathLike`): Folder; made when the first entry is written. See `cache_folder`.
        kind (`type`): What an entry is: a dataclass, or any annotation of what JSON can hold.
    """

    def __init__(self, folder: str | os.PathLike[str], kind: type[Record]) -> None:
        self.folder, self.kind = Path(folder), kind

    def path(self, key: Any) -> Path:
        """Return the file of an entry."""
        return self.folder / f"{digest_of(key)}.json"

    def read(self, key: Any) -> Record | None:
        """Return the entry of `key`, of what JSON can hold, or None if there is none that can be used."""
        path = self.path(key)
        try:
            if hasattr(os, "geteuid") and path.stat().st_uid != os.geteuid():
                raise RecordError(f"{path} belongs to another user.")
            values = read_json(path)
            if values.get("key") != json.loads(json.dumps(encode(key))):
                raise RecordError(f"{path} is of another key than its name.")
            return decode(self.kind, values.get("value"), str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, RecordError) as error:
            logger.warning("%s It is dropped and made again.", error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def write(self, key: Any, record: Record) -> None:
        """Keep `record` under `key`; processes may do so at once."""
        path = self.path(key)
        try:
            text = json.dumps({"key": encode(key), "value": encode(record)}, ensure_ascii=False)
            write_text(path, text + "\n", shared=True)
        except OSError as error:
            logger.warning("%s cannot be written (%s); it is not kept.", path, error)
