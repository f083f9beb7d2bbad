"""Records of an evaluation: a student measured beside its reference."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..records import Match

FIRST_TOKEN = "time to first token"
TOKENS_PER_SECOND = "tokens per second"


@dataclass(frozen=True)
class Metrics:
    """One model's metrics on a corpus."""

    loss: float  # nats per token
    perplexity: float
    accuracy: float  # share of tokens that the model ranked first


@dataclass(frozen=True)
class CorpusComparison:
    """Student and reference on one corpus, with bounds that cluster by document."""

    corpus: str
    fingerprint: str  # sha256 of its content
    documents: int  # with tokens that count
    tokens: int  # that count
    student: Metrics
    reference: Metrics
    match: Match
    accuracy_difference: float  # student's minus reference's
    accuracy_lower: float | None  # one-sided bounds; None with one document
    accuracy_upper: float | None


@dataclass(frozen=True)
class Spread:
    """Median and range of repeated measurements."""

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
    """Depth, parameters, bytes and operations of one model."""

    layers: int
    parameters: int  # tied ones counted once
    bytes_on_disk: int
    peak_memory: int | None  # bytes to load it and generate one sequence; None where the system does not report it
    flops_per_token: float  # of a forward pass


@dataclass(frozen=True)
class Speed:
    """One measure of speed, for both models."""

    setting: str  # one of `SETTINGS`
    quantity: str  # `FIRST_TOKEN`, in seconds, or `TOKENS_PER_SECOND` of whole calls of `generate`
    batch: int  # sequences
    student: Spread
    reference: Spread
    gain: Spread  # how many times faster the student is, repeat by repeat


@dataclass(frozen=True)
class Efficiency:
    """Size and speed of a student and its reference."""

    device: str
    dtype: str
    prompt_tokens: int  # of each prompt, and of the forward pass whose operations were counted
    new_tokens: int  # generated for each prompt
    student: Size
    reference: Size
    speeds: tuple[Speed, ...]


@dataclass(frozen=True)
class Draft:
    """The student as the draft model of its reference, in Transformers' assisted generation."""

    mode: str  # `greedy` or `sampling`
    draft_tokens: int  # drafted before the reference checks them
    prompts: int
    new_tokens: int  # generated for each prompt
    drafted: int  # over all prompts
    accepted: int
    alone: Spread  # the reference's tokens per second without a draft
    assisted: Spread  # with the draft
    speed_up: Spread  # repeat by repeat
    equal: bool | None  # whether both gave the same tokens for every prompt; None when sampling

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that the reference accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass(frozen=True)
class TaskSettings:
    """
    How tasks are asked; in a result, how one was asked.

    Args:
        num_fewshot (`int`, *optional*): Examples before each question; what the task itself says if not given, or 0.
        apply_chat_template (`bool`, *optional*, defaults to `False`): Whether prompts are turns of a conversation, by
            the tokenizer's chat template.
        max_gen_toks (`int`, *optional*): Most tokens that are generated for an answer; what the task itself says if not
            given, or 256.

    Raises:
        ValueError: If a number is out of range.
    """

    num_fewshot: int | None = None
    apply_chat_template: bool = False
    max_gen_toks: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_fewshot", 0), ("max_gen_toks", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}.")

    def __str__(self) -> str:
        """Return it in words, such as `5-shot, chat template, at most 256 new tokens`."""
        words = [] if self.num_fewshot is None else [f"{self.num_fewshot}-shot"]
        words += ["chat template"] if self.apply_chat_template else []
        words += [] if self.max_gen_toks is None else [f"at most {self.max_gen_toks} new tokens"]
        return ", ".join(words)


@dataclass(frozen=True)
class TaskComparison:
    """Student and reference by one metric of one task; errors are standard errors."""

    task: str
    metric: str
    rows: int
    student: float
    student_error: float | None
    reference: float
    reference_error: float | None
    difference: float | None  # paired by row; None if the metric is neither a mean nor made of log-likelihoods
    difference_error: float | None  # of the mean of the rows' differences, or by the jackknife
    p_value: float | None  # two-sided, of McNemar's exact test, or of exchanging both models row by row
    filter: str = ""  # by which the answer was extracted, of a task that has several
    settings: TaskSettings = TaskSettings()
    cut: int = 0  # prompts whose beginning was cut off, examples with it, to fit the context

    @property
    def asked(self) -> str:
        """How it was asked, in words."""
        return ", ".join(filter(None, (str(self.settings), f"prompts cut: {self.cut:,}" if self.cut else "")))

    @property
    def label(self) -> str:
        """The metric, with the filter where there are several."""
        return f"{self.metric} ({self.filter})" if self.filter else self.metric


@dataclass(frozen=True)
class LazinessComparison:
    """Whether the student has fewer lazy layers than its reference, the paper's question."""

    reference: int  # lazy layers
    reference_layers: int  # layers with softmax attention
    student: int
    student_layers: int
    tolerance: float  # MaxRank above 1 that still counts as lazy
    sentence: str  # the answer


@dataclass(frozen=True)
class Laziness:
    """MaxRank of the layers of both models; None for a layer without softmax attention."""

    tau: float  # share of the squared spectrum
    reference: tuple[float | None, ...]
    student: tuple[float | None, ...]
    comparison: LazinessComparison


@dataclass(frozen=True)
class Sample:
    """The same beginning of a document continued by both models, greedily with a repetition penalty of 1.2."""

    prompt: str
    student: str
    reference: str


@dataclass(frozen=True)
class StudentEvaluation:
    """
    A student measured beside its reference, and beside that one trained further. Parts not measured are empty or None.

    Args:
        student (`str`): Folder or id of the student.
        reference (`str`): Folder or id of the reference.
        fingerprints (`dict[str, str]`): Of the weights of each model, see `OpenedReference.fingerprint`.
        layers (`dict[str, int]`): Depth of each.
        tolerance (`float`): Nats per token above the reference that still match.
        confidence (`float`, *optional*): One-sided confidence of the bounds; None compares means.
        corpora (`tuple[CorpusComparison, ...]`): The test set first, then the corpora on which the match is checked
            again.
        own_test_set (`bool`): Whether the first is the test set of the run that trained the student.
        efficiency (`Efficiency`, *optional*): Size and speed.
        drafts (`tuple[Draft, ...]`): The student as a draft.
        tasks (`tuple[TaskComparison, ...]`): Tasks.
        laziness (`Laziness`, *optional*): Lazy layers of both.
        samples (`tuple[Sample, ...]`): Text of both.
        versions (`dict[str, str]`): Versions of the libraries that measured.
        commands (`tuple[str, ...]`): The commands that measured it, in their order.
        adapted (`str`, *optional*): Folder or id of the reference, trained further on the same text.
        adapted_corpora (`tuple[CorpusComparison, ...]`): `corpora` with that one in the place of the reference.
        adapted_tasks (`tuple[TaskComparison, ...]`): `tasks` with that one in the place of the reference.
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
    adapted: str | None = None
    adapted_corpora: tuple[CorpusComparison, ...] = ()
    adapted_tasks: tuple[TaskComparison, ...] = ()

    def __post_init__(self) -> None:
        for name in ("corpora", "tasks"):
            ours, theirs = getattr(self, name), getattr(self, f"adapted_{name}")
            if theirs and len(theirs) != len(ours):
                raise ValueError(f"adapted_{name} must be as many as {name}, {len(ours)}, got {len(theirs)}.")

    def verdict(self) -> str:
        """Return whether the losses match, on the first corpus and on each other one, and beside the adapted one."""
        if not self.corpora:
            return "No loss was measured."
        first, *others = self.corpora
        sentence = f"On {first.corpus} the student {_matches(first, 'its reference', self.tolerance)}."
        for other in others:
            if not (other.match.decided or other.match.matched):
                kept = "There are too few documents to decide whether it matches"
            elif first.match.matched:
                kept = "The match holds" if other.match.matched else "The match does not hold"
            else:
                kept = "It matches" if other.match.matched else "Neither does it match"
            sentence += f" {kept} on {other.corpus}: {other.match.difference:+.4f}{_up_to(other)}."
        if self.adapted_corpora:
            adapted = self.adapted_corpora[0]
            words = _matches(adapted, "the reference, trained further,", self.tolerance)
            sentence += f" On {adapted.corpus} it {words}."
        return sentence


def _matches(item: CorpusComparison, what: str, tolerance: float) -> str:
    word = "matches" if item.match.matched else "does not match" if item.match.decided else "may or may not match"
    few = "" if item.match.decided else " (too few documents to decide)"
    return f"{word} {what} within {tolerance:g} nats per token{few}: {item.match.difference:+.4f}{_up_to(item)}"


def _up_to(item: CorpusComparison) -> str:
    return "" if item.match.upper is None else f" (up to {item.match.upper:+.4f})"
