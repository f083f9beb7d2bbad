"""The record of an evaluation: what a student came to beside its reference."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..records import Match

FIRST_TOKEN = "time to first token"
TOKENS_PER_SECOND = "tokens per second"


@dataclass(frozen=True)
class Figures:
    """
    What one model came to on a corpus.

    Args:
        loss (`float`): Nats per token.
        perplexity (`float`): Exponential of the loss.
        accuracy (`float`): Share of tokens that the model ranked first.
    """

    loss: float
    perplexity: float
    accuracy: float


@dataclass(frozen=True)
class CorpusComparison:
    """
    Student and reference on one corpus.

    Args:
        corpus (`str`): Its name.
        fingerprint (`str`): sha256 of its content.
        documents (`int`): Documents with tokens that count.
        tokens (`int`): Tokens that count.
        student (`Figures`): The student's figures.
        reference (`Figures`): The reference's figures.
        match (`Match`): The paired difference in loss, its bounds and the verdict.
        accuracy_difference (`float`): Student's accuracy minus reference's.
        accuracy_lower (`float`, *optional*): One-sided lower bound; None with too few documents.
        accuracy_upper (`float`, *optional*): One-sided upper bound.
    """

    corpus: str
    fingerprint: str
    documents: int
    tokens: int
    student: Figures
    reference: Figures
    match: Match
    accuracy_difference: float
    accuracy_lower: float | None
    accuracy_upper: float | None


@dataclass(frozen=True)
class Spread:
    """
    A figure that was measured several times.

    Args:
        median (`float`): Median.
        low (`float`): Smallest.
        high (`float`): Largest.
        repeats (`int`): How often it was measured.
    """

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of `values`."""
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Size:
    """
    What one model takes.

    Args:
        layers (`int`): Depth.
        parameters (`int`): Parameters, tied ones counted once.
        bytes_on_disk (`int`): Bytes of its weight files.
        peak_memory (`int`, *optional*): Peak bytes of loading it and generating one sequence; None where the system
            does not tell.
        flops_per_token (`float`): Floating-point operations of a forward pass, counted, divided by its tokens.
    """

    layers: int
    parameters: int
    bytes_on_disk: int
    peak_memory: int | None
    flops_per_token: float


@dataclass(frozen=True)
class Speed:
    """
    One figure of speed, of both models.

    Args:
        setting (`str`): One of `SETTINGS`.
        quantity (`str`): `time to first token` in seconds, or `tokens per second` of whole calls of `generate`.
        batch (`int`): Sequences at a time.
        student (`Spread`): The student's.
        reference (`Spread`): The reference's.
        gain (`Spread`): How many times faster the student is, repeat by repeat.
    """

    setting: str
    quantity: str
    batch: int
    student: Spread
    reference: Spread
    gain: Spread


@dataclass(frozen=True)
class Efficiency:
    """
    Size and speed of a student and its reference.

    Args:
        device (`str`): Device and, on a CPU, the number of threads.
        dtype (`str`): Type of the weights in use.
        prompt_tokens (`int`): Tokens of each prompt, and of the forward pass whose operations were counted.
        new_tokens (`int`): Tokens generated for each prompt.
        student (`Size`): The student's.
        reference (`Size`): The reference's.
        speeds (`tuple[Speed, ...]`): Figures by setting, quantity and batch size.
    """

    device: str
    dtype: str
    prompt_tokens: int
    new_tokens: int
    student: Size
    reference: Size
    speeds: tuple[Speed, ...]


@dataclass(frozen=True)
class Draft:
    """
    What the student is worth as the draft model of its reference, in Transformers' assisted generation.

    Args:
        mode (`str`): `greedy` or `sampling`.
        draft_tokens (`int`): Tokens that the student drafts before the reference checks them.
        prompts (`int`): Prompts.
        new_tokens (`int`): Tokens generated for each.
        drafted (`int`): Tokens that the student drafted, all prompts together.
        accepted (`int`): Drafted tokens that the reference accepted.
        alone (`Spread`): The reference's tokens per second by itself.
        assisted (`Spread`): Its tokens per second with the draft.
        speed_up (`Spread`): How many times faster it is with the draft, repeat by repeat.
        equal (`bool`, *optional*): Whether both gave the same tokens for every prompt; None when sampling.
    """

    mode: str
    draft_tokens: int
    prompts: int
    new_tokens: int
    drafted: int
    accepted: int
    alone: Spread
    assisted: Spread
    speed_up: Spread
    equal: bool | None

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that the reference accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass(frozen=True)
class TaskComparison:
    """
    Student and reference by one metric of one task.

    Args:
        task (`str`): Name.
        metric (`str`): Name of the metric.
        rows (`int`): Rows of the task.
        student (`float`): The student's value.
        student_error (`float`, *optional*): Its standard error.
        reference (`float`): The reference's value.
        reference_error (`float`, *optional*): Its standard error.
        difference (`float`, *optional*): Student's value minus the reference's, by the same rows; None where the metric
            is neither a mean over rows nor made of their log-likelihoods.
        difference_error (`float`, *optional*): Its standard error: of the mean of the rows' differences, or, where the
            metric is no mean, by leaving out one row at a time.
        p_value (`float`, *optional*): Two-sided: of the exact McNemar test on the rows that differ, or, where the
            metric is no mean, of exchanging student and reference row by row.
    """

    task: str
    metric: str
    rows: int
    student: float
    student_error: float | None
    reference: float
    reference_error: float | None
    difference: float | None
    difference_error: float | None
    p_value: float | None


@dataclass(frozen=True)
class LazinessComparison:
    """
    The paper's question: has the student fewer lazy layers than its reference?

    Args:
        reference (`int`): Lazy layers of the reference.
        reference_layers (`int`): Its layers with softmax attention.
        student (`int`): Lazy layers of the student.
        student_layers (`int`): Its layers with softmax attention.
        tolerance (`float`): MaxRank above 1 that still counted as lazy.
        sentence (`str`): The answer.
    """

    reference: int
    reference_layers: int
    student: int
    student_layers: int
    tolerance: float
    sentence: str


@dataclass(frozen=True)
class Laziness:
    """
    Lazy layers before and after.

    Args:
        tau (`float`): Share of the squared spectrum.
        reference (`tuple[float | None, ...]`): MaxRank of the reference's layers; None without softmax attention.
        student (`tuple[float | None, ...]`): MaxRank of the student's layers.
        comparison (`LazinessComparison`): Counts and one sentence.
    """

    tau: float
    reference: tuple[float | None, ...]
    student: tuple[float | None, ...]
    comparison: LazinessComparison


@dataclass(frozen=True)
class Sample:
    """
    The same beginning continued by both models, greedily with a repetition penalty of 1.2.

    Args:
        prompt (`str`): The beginning of a document.
        student (`str`): The student's continuation.
        reference (`str`): The reference's continuation.
    """

    prompt: str
    student: str
    reference: str


@dataclass(frozen=True)
class StudentEvaluation:
    """
    What a student came to beside its reference. Parts that were not measured are empty or None.

    Args:
        student (`str`): Folder or id of the student.
        reference (`str`): Folder or id of the reference.
        fingerprints (`dict[str, str]`): Of the weights of both, see `OpenedReference.fingerprint`.
        layers (`dict[str, int]`): Depth of both.
        tolerance (`float`): Nats per token above the reference that still match.
        confidence (`float`, *optional*): One-sided confidence of the bounds; None compares means.
        corpora (`tuple[CorpusComparison, ...]`): The test set first, then the corpora that it is judged on again.
        own_test_set (`bool`): Whether the first is the very test set of the run that made the student.
        efficiency (`Efficiency`, *optional*): Size and speed.
        drafts (`tuple[Draft, ...]`): The student as a draft.
        tasks (`tuple[TaskComparison, ...]`): Zero-shot tasks.
        laziness (`Laziness`, *optional*): Lazy layers of both.
        samples (`tuple[Sample, ...]`): Text of both.
        versions (`dict[str, str]`): Versions of the libraries that measured.
        commands (`tuple[str, ...]`): The commands that measured it, in their order.
    """

    student: str
    reference: str
    fingerprints: Mapping[str, str]
    layers: Mapping[str, int]
    tolerance: float
    confidence: float | None
    corpora: tuple[CorpusComparison, ...] = ()
    own_test_set: bool = False
    efficiency: Efficiency | None = None
    drafts: tuple[Draft, ...] = ()
    tasks: tuple[TaskComparison, ...] = ()
    laziness: Laziness | None = None
    samples: tuple[Sample, ...] = ()
    versions: Mapping[str, str] | None = None
    commands: tuple[str, ...] = ()

    def verdict(self) -> str:
        """Return one sentence on what the losses say, on the first corpus and on those it was judged on again."""
        if not self.corpora:
            return "No loss was measured."
        first, *others = self.corpora
        word = "matches" if first.match.matched else "does not match"
        sentence = (
            f"On {first.corpus} the student {word} its reference: {first.match.difference:+.4f} nats per token"
            f"{_up_to(first)}."
        )
        for other in others:
            if first.match.matched:
                kept = "The match holds" if other.match.matched else "The match does not hold"
            else:
                kept = "It matches" if other.match.matched else "Neither does it match"
            sentence += f" {kept} on {other.corpus}: {other.match.difference:+.4f}{_up_to(other)}."
        return sentence


def _up_to(item: CorpusComparison) -> str:
    return "" if item.match.upper is None else f" (up to {item.match.upper:+.4f})"
