"""Compare a student with its reference, the teacher, while it is trained."""

from __future__ import annotations

import contextlib
import hashlib
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, TrainingArguments
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

from .. import __version__
from ..config import InherituneConfig
from ..distillation_losses import DISTILLATION_LOSSES, losses_of_kind
from ..foreign_text import first_line
from ..records import cache_folder, digest_of
from ..students import OpenedReference, find_blocks
from ..students.losses import IGNORED, Head, chunk_tokens, computes_from_hidden, loss_of_hidden, loss_of_logits

#: Sums the loss of tokens: the student's logits `(tokens, vocab)`, the targets `(tokens,)`, the teacher's outputs.
Compare = Callable[..., Tensor]


def weighted_sum(
    student: Tensor, teacher: Tensor, targets: Tensor, weights: Mapping[str, float], temperature: float = 1.0
) -> Tensor:
    """
    Sum the weighted losses of tokens, in nats.

    With a temperature T each loss on distributions is of the softened ones and times T², so that gradients keep their
    size (Hinton et al., arXiv 1503.02531). `cross_entropy` is of the student alone, at temperature 1. Losses on states
    are ignored. `student` and `teacher` are logits `(tokens, vocab)`; `targets` `(tokens,)` are the tokens that follow,
    -100 where one does not count.
    """

    def both(log_p: Tensor) -> tuple[Tensor, Tensor]:
        return log_p, nn.functional.log_softmax(teacher / temperature, -1)

    return _weighted(student, targets, weights, temperature, both)


def _weighted(
    scores: Tensor,
    targets: Tensor,
    weights: Mapping[str, float],
    temperature: float,
    both: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """Sum the weighted losses; `both` turns the student's log-probabilities into the two distributions to compare."""
    total = scores.new_zeros(())
    if weights.get("cross_entropy"):
        entropy = nn.functional.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
        total = total + weights["cross_entropy"] * entropy
    wanted = weighted_losses("logits", weights)
    if not wanted:
        return total
    log_p, log_q = both(nn.functional.log_softmax(scores / temperature, -1))
    for weight, loss in wanted:
        total = total + weight * temperature**2 * loss(log_p, log_q).masked_fill(targets == IGNORED, 0.0).sum()
    return total


def weighted_losses(kind: str, weights: Mapping[str, float]) -> list[tuple[float, Callable[[Tensor, Tensor], Tensor]]]:
    """Return the weight and the function of each loss of a kind that has a weight, in the registry's order."""
    return [
        (weights[name], loss.function)
        for name, loss in DISTILLATION_LOSSES.items()
        if loss.kind == kind and loss.function is not None and weights.get(name)
    ]


def chunked_sum(head: Head, hidden: Tensor, targets: Tensor, given: Sequence[Tensor], compare: Compare) -> Tensor:
    """
    Sum a loss of tokens, holding the student's logits of a few tokens at once, in both passes.

    `hidden` `(tokens, width)` are the student's last states, `given` the teacher's outputs for each token.
    """

    def part(states: Tensor, wanted: Tensor, *taught: Tensor) -> Tensor:
        return compare(head.logits(states).float(), wanted, *taught)

    rows = chunk_tokens(head.weight.shape[0])
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(hidden), rows):
        chunk = (item[start : start + rows] for item in (hidden, targets, *given))
        total = total + checkpoint(part, *chunk, use_reentrant=False)
    return total


def top_k_sum(
    scores: Tensor,
    tokens: Tensor,
    log_q: Tensor,
    targets: Tensor,
    weights: Mapping[str, float],
    temperature: float = 1.0,
) -> Tensor:
    """
    Sum the weighted losses of tokens where only the teacher's k likeliest tokens are known.

    What is left of both distributions is one class of its own, so that probabilities still add up to one. `scores`
    `(tokens, vocab)` are the student's logits; `tokens` and `log_q` `(tokens, k)` are the teacher's likeliest tokens
    and their log-probabilities at this temperature; the rest is as for `weighted_sum`.
    """

    def both(log_p: Tensor) -> tuple[Tensor, Tensor]:
        return with_rest(log_p.gather(-1, tokens)), with_rest(log_q)

    return _weighted(scores, targets, weights, temperature, both)


def with_rest(log_probabilities: Tensor) -> Tensor:
    """Return the log-probabilities and, as one more class, that of everything else."""
    rest = torch.log1p(-log_probabilities.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    return torch.cat([log_probabilities, rest], -1)


def states_sum(student: list[Tensor], teacher: list[Tensor], targets: Tensor, weights: Mapping[str, float]) -> Tensor:
    """
    Sum the weighted losses on hidden states over tokens: the mean over pairs of blocks, and over channels.

    `student` holds the states `(tokens, width)` after each of its blocks, `teacher` those after the blocks that they
    stand for; `targets` is -100 where a token does not count.
    """
    total = torch.zeros((), device=targets.device)
    counts = targets != IGNORED
    for own, given in zip(student, teacher, strict=True):
        for weight, loss in weighted_losses("states", weights):
            total = total + weight * (loss(own.float(), given.float()) * counts).sum()
    return total / max(1, len(student))


def block_map(kept: tuple[int, ...], blocks: int, depth: int) -> tuple[int, ...]:
    """
    Return for each of a student's blocks the teacher's layer that it stands for.

    That is the layer it was inherited from, or, if it was not, the one at the same share of the depth.
    """
    if len(kept) == blocks:
        return kept
    return tuple((place + 1) * depth // blocks - 1 for place in range(blocks))


def compares_states(recipe: InherituneConfig) -> bool:
    """Return whether the recipe's distillation compares hidden states."""
    return bool(weighted_losses("states", recipe.distillation_weights))


class Teacher:
    """
    The reference beside a student in training: its outputs for each batch, and the losses that compare with them.

    `kept` are the layers that the student's blocks were inherited from. With a `store`, in which the teacher's
    likeliest tokens are kept, only those are compared.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        weights: Mapping[str, float],
        temperature: float = 1.0,
        kept: tuple[int, ...] = (),
        store: TopKStore | None = None,
    ) -> None:
        model.train(False)
        model.requires_grad_(False)
        self.model, self.weights, self.temperature, self.kept, self.store = model, weights, temperature, kept, store
        self.from_hidden = computes_from_hidden(model)
        self.compares_states = bool(weighted_losses("states", weights))

    @contextlib.contextmanager
    def teaching(self, student: PreTrainedModel, inputs: Mapping[str, Any], whole: bool) -> Iterator[None]:
        """
        Let `student`, called with these inputs within this context, take its loss from the comparison.

        `whole` says whether the student must compute all its logits itself.
        """
        blocks = len(find_blocks(student))
        states: list[Tensor] = []
        given: list[Tensor] = []
        taught: tuple[Tensor, ...]
        if self.store is None:
            layers = block_map(self.kept, blocks, len(find_blocks(self.model)))
            head, rows = self._run(inputs, layers, given)
            compare, taught = self._compare_with(head), (rows,)
        else:
            compare = self._compare_top
            taught = self._likeliest(inputs, self.store)

        def finish(total: Tensor, targets: Tensor, items: Any) -> Tensor:
            if self.compares_states:
                total = total + states_sum(states, given, targets, self.weights)
            items = (targets != IGNORED).sum().clamp(min=1) if items is None else items
            return total / (items.to(total.device) if isinstance(items, Tensor) else items)

        def of_logits(logits: Tensor, targets: Tensor, items: Any) -> Tensor:
            flat = targets.reshape(-1)
            return finish(compare(logits.reshape(-1, logits.shape[-1]).float(), flat, *taught), flat, items)

        def of_hidden(own: Head, hidden: Tensor, targets: Tensor, items: Any) -> Tensor:
            flat, rows = targets.reshape(-1), hidden.reshape(-1, hidden.shape[-1])
            return finish(chunked_sum(own, rows, flat, taught, compare), flat, items)

        with contextlib.ExitStack() as stack:
            if self.compares_states:
                stack.enter_context(_keeping_states(student, range(blocks), states))
            stack.enter_context(loss_of_logits(student, of_logits) if whole else loss_of_hidden(student, of_hidden))
            yield

    def _run(
        self, inputs: Mapping[str, Any], layers: Sequence[int], states: list[Tensor]
    ) -> tuple[Head | None, Tensor]:
        """Return what makes the teacher's logits and of what, or None and the logits; append the states of layers."""
        taken: list[tuple[Head, Tensor]] = []

        def take(head: Head, hidden: Tensor, _targets: Tensor, _items: Any) -> Tensor:
            taken.append((head, hidden.reshape(-1, hidden.shape[-1])))
            return hidden.new_zeros(())

        with torch.no_grad(), contextlib.ExitStack() as stack:
            if self.compares_states:
                stack.enter_context(_keeping_states(self.model, layers, states))
            if self.from_hidden:
                stack.enter_context(loss_of_hidden(self.model, take))
                self.model(**inputs, use_cache=False)
                return taken[0]
            batch = {name: value for name, value in inputs.items() if name != "labels"}
            logits: Tensor = self.model(**batch, use_cache=False).logits
            return None, logits.reshape(-1, logits.shape[-1])

    def _compare_with(self, head: Head | None) -> Compare:
        def compare(scores: Tensor, targets: Tensor, *taught: Tensor) -> Tensor:
            # As its body, the teacher's head is computed in the teacher's own precision, whatever the student's is.
            with torch.no_grad(), torch.autocast(taught[0].device.type, enabled=False):
                logits = (taught[0] if head is None else head.logits(taught[0].to(head.weight.dtype))).float()
            return weighted_sum(scores, logits, targets, self.weights, self.temperature)

        return compare

    def _likeliest(self, inputs: Mapping[str, Any], store: TopKStore) -> tuple[Tensor, Tensor]:
        """Return the teacher's likeliest tokens after each token; it runs for rows that are not in the store."""
        others = sorted(set(inputs) - {"input_ids", "labels", "attention_mask"})
        if others:
            raise ValueError(
                f"distillation_top_k finds a sequence by its tokens alone, and these have {', '.join(others)} too: "
                "leave document_boundaries or distillation_top_k out."
            )
        tokens: Tensor = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        lengths = [tokens.shape[1]] * len(tokens) if mask is None else mask.sum(1).tolist()
        rows = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        shape = (*tokens.shape, store.k)
        places, logs = torch.zeros(shape, dtype=torch.long), torch.full(shape, -math.log(2 * store.k))
        for place, row in enumerate(rows):
            kept = store.find(row)
            if kept is None:
                kept = self._top(row, store.k)
                store.keep(row, *kept)
            places[place, : len(row)], logs[place, : len(row)] = kept
        return places.flatten(0, 1).to(tokens.device), logs.flatten(0, 1).to(tokens.device)

    def _top(self, row: Tensor, k: int) -> tuple[Tensor, Tensor]:
        head, output = self._run({"input_ids": row[None], "labels": row[None]}, (), [])
        found = []
        with torch.no_grad():
            rows = chunk_tokens(self.model.config.get_text_config(decoder=True).vocab_size)
            for start in range(0, len(output), rows):
                part = output[start : start + rows]
                logits = (part if head is None else head.logits(part)).float()
                found.append(nn.functional.log_softmax(logits / self.temperature, -1).topk(k))
        return torch.cat([item.indices for item in found]), torch.cat([item.values for item in found])

    def _compare_top(self, scores: Tensor, targets: Tensor, *taught: Tensor) -> Tensor:
        return top_k_sum(scores, taught[0], taught[1], targets, self.weights, self.temperature)


def open_teacher(
    reference: OpenedReference,
    student: PreTrainedModel,
    recipe: InherituneConfig,
    args: TrainingArguments,
    precision: str,
    block_size: int,
) -> Teacher | None:
    """
    Load the reference beside a student that it is to teach; None if the recipe has no distillation.

    Raises:
        ValueError: If states of different width are to be compared.
    """
    weights = recipe.distillation_weights
    if not weights:
        return None
    options: dict[str, Any] = {"dtype": getattr(torch, recipe.distillation_dtype)}
    if recipe.quantization_config is not None:
        options["quantization_config"] = AutoQuantizationConfig.from_dict(recipe.quantization_config)
        options["device_map"] = {"": args.device}  # quantized weights may not move
    model: Any = reference.load(**options)
    if compares_states(recipe):
        _check_width(student, model)
    kept = tuple(student.config.inheritune["kept_layers"])
    if recipe.quantization_config is None:
        model.to(args.device)
    store = None
    if recipe.distillation_top_k is not None:
        k, temperature = recipe.distillation_top_k, recipe.distillation_temperature
        facts = [reference.fingerprint(), recipe.distillation_dtype, temperature, k, block_size, precision, __version__]
        facts += [] if recipe.quantization_config is None else [recipe.quantization_config]
        store = TopKStore(cache_folder("teacher-tokens") / digest_of(facts), block_size, k, args.process_index)
    return Teacher(model, weights, recipe.distillation_temperature, kept, store)


def check_quantization(recipe: InherituneConfig, device: torch.device) -> None:
    """Raise a `ValueError` if the teacher cannot be quantized here as the recipe says, such as without the package."""
    config = recipe.quantization_config
    if config is None or not recipe.distillation_weights:
        return
    try:
        quantizer = AutoHfQuantizer.from_config(AutoQuantizationConfig.from_dict(config), pre_quantized=False)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except Exception as error:  # whatever the packages of others raise
        raise ValueError(
            f"distillation_quantization={recipe.distillation_quantization!r} cannot be used here: {first_line(error)}"
        ) from error


def _check_width(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    own, taught = (item.config.get_text_config(decoder=True).hidden_size for item in (student, teacher))
    if own != taught:
        names = " and ".join(losses_of_kind("states"))
        raise ValueError(
            f"{names} compare states of one width, and the student's have {own} channels, the teacher's {taught}: "
            "leave them out of distillation."
        )


@contextlib.contextmanager
def _keeping_states(model: PreTrainedModel, layers: Sequence[int], states: list[Tensor]) -> Iterator[None]:
    """Append to `states` what each of the blocks returns, as rows."""

    def keep(_block: nn.Module, _inputs: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        states.append(state.reshape(-1, state.shape[-1]))

    blocks = find_blocks(model)
    handles = [blocks[layer].register_forward_hook(keep) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# The teacher's likeliest tokens on disk, so that it runs once over each sequence however often it is trained on

_DIGEST = 16


class TopKStore:
    """
    Log-probabilities of the likeliest tokens after each token of a sequence, found again by the sequence's tokens.

    A folder holds two files for each process of each run: sequences' digests, and records of one size, in the same
    order. A record is written before its digest, so that what a killed process left half written is never read. The
    folder is of one teacher, one temperature, one k and one size; sequences shorter than `tokens` are padded in their
    record.
    """

    def __init__(self, folder: Path, tokens: int, k: int, process: int = 0) -> None:
        self.folder, self.tokens, self.k = folder, tokens, k
        self._type = np.dtype([("token", "<i4", (tokens, k)), ("log_probability", "<f4", (tokens, k))])
        folder.mkdir(parents=True, exist_ok=True)
        self._places: dict[bytes, tuple[Path, int]] = {}
        for index in sorted(folder.glob("*.digests")):
            names, records = index.read_bytes(), index.with_suffix(".records")
            size = records.stat().st_size if records.is_file() else 0
            for number in range(min(len(names) // _DIGEST, size // self._type.itemsize)):
                self._places[names[number * _DIGEST : (number + 1) * _DIGEST]] = (records, number)
        # Of this object alone: several runs with one teacher keep records in one folder at once.
        self._own, self._count = folder / f"{process:05d}-{secrets.token_hex(8)}", 0

    def __len__(self) -> int:
        """Return the number of sequences that can be found."""
        return len(self._places)

    def find(self, row: Tensor) -> tuple[Tensor, Tensor] | None:
        """
        Return what is kept of a row of token ids, or None.

        It is a pair of tensors of shape `(tokens, k)`: tokens, and their log-probabilities in float32.
        """
        place = self._places.get(digest(row))
        if place is None:
            return None
        path, number = place
        with path.open("rb") as file:
            file.seek(number * self._type.itemsize)
            record = np.frombuffer(file.read(self._type.itemsize), self._type)[0]
        tokens = record["token"][: len(row)].astype(np.int64)
        return torch.from_numpy(tokens), torch.from_numpy(record["log_probability"][: len(row)].copy())

    def keep(self, row: Tensor, tokens: Tensor, log_probabilities: Tensor) -> None:
        """
        Keep the likeliest tokens after each token of a row, and their log-probabilities, both of shape `(length, k)`.

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


def digest(row: Tensor) -> bytes:
    """Return what a row of token ids is found by."""
    return hashlib.sha256(row.to(torch.int64).cpu().numpy().tobytes()).digest()[:_DIGEST]
