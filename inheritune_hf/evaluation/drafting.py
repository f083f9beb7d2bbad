"""The student as a draft for its own reference, in Transformers' assisted generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .isolation import undisturbed
from .memory import fixed_generation
from .timing import Spread, interleaved, ratios

_SEED = 0


@dataclass(frozen=True)
class Draft:
    """
    What a draft brings.

    Args:
        mode (`str`): `greedy` or `sampling`.
        draft_tokens (`int`): Tokens that the student drafts before the reference looks at them.
        prompts (`int`): Prompts.
        new_tokens (`int`): Tokens generated for each.
        drafted (`int`): Tokens that the student drafted, all prompts together.
        accepted (`int`): Tokens of these that the reference took.
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
        """Share of the drafted tokens that the reference took."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Draft:
        """Rebuild the figures from what `to_dict` returned."""
        spreads = {name: Spread(**values[name]) for name in ("alone", "assisted", "speed_up")}
        return cls(**{**values, **spreads})


def measure_draft(
    student: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[Tensor],
    *,
    new_tokens: int = 48,
    draft_tokens: int = 4,
    repeats: int = 5,
    modes: Sequence[str] = ("greedy", "sampling"),
) -> tuple[Draft, ...]:
    """
    Let the student draft for its reference and measure how much is accepted and what it saves.

    Both models are left as they were, and so are random states.

    Args:
        student (`PreTrainedModel`): The draft.
        reference (`PreTrainedModel`): The model whose tokens are wanted.
        prompts (sequence of `torch.Tensor` of shape `(1, tokens)`): Prompts; one sequence is generated at a time.
        new_tokens (`int`, *optional*, defaults to `48`): Tokens to generate for each prompt.
        draft_tokens (`int`, *optional*, defaults to `4`): Tokens to draft at a time.
        repeats (`int`, *optional*, defaults to `5`): Times each way is timed.
        modes (sequence of `str`, *optional*): `greedy` and `sampling`.

    Returns:
        `tuple[Draft, ...]`: One for each mode.

    Raises:
        ValueError: If there is no prompt.
    """
    if not prompts:
        raise ValueError("There is no prompt to continue; give at least one.")
    with undisturbed(student, reference), _drafting(student, draft_tokens):
        student.train(False)
        reference.train(False)
        return tuple(_measure(student, reference, prompts, new_tokens, draft_tokens, repeats, mode) for mode in modes)


def _measure(
    student: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[Tensor],
    new_tokens: int,
    draft_tokens: int,
    repeats: int,
    mode: str,
) -> Draft:
    options = {**fixed_generation(new_tokens), "do_sample": mode == "sampling"}

    def generate(assistant: PreTrainedModel | None) -> list[Tensor]:
        torch.manual_seed(_SEED)
        model: Any = reference
        with torch.no_grad():
            return [
                model.generate(prompt, attention_mask=torch.ones_like(prompt), assistant_model=assistant, **options)
                for prompt in prompts
            ]

    with _calls(student) as drafts, _calls(reference) as checks:
        assisted = generate(student)
    made = sum(tokens.shape[1] - prompt.shape[1] for tokens, prompt in zip(assisted, prompts, strict=True))
    alone = generate(None) if mode == "greedy" else []
    seconds = interleaved(
        {"alone": lambda: generate(None), "assisted": lambda: generate(student)}, repeats, reference.device, warm_up=1
    )
    rates = {name: Spread.of([made / value for value in times]) for name, times in seconds.items()}
    return Draft(
        mode=mode,
        draft_tokens=draft_tokens,
        prompts=len(prompts),
        new_tokens=new_tokens,
        drafted=len(drafts),
        # Each look of the reference gives one token of its own, besides those of the draft that it takes.
        accepted=made - len(checks),
        alone=rates["alone"],
        assisted=rates["assisted"],
        speed_up=ratios(seconds["alone"], seconds["assisted"]),
        equal=all(torch.equal(one, other) for one, other in zip(alone, assisted, strict=True)) if alone else None,
    )


@contextmanager
def _calls(model: PreTrainedModel) -> Iterator[list[None]]:
    """Count the forward passes of a model, as the length of a list."""
    seen: list[None] = []
    hook = model.register_forward_hook(lambda *_: seen.append(None))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def _drafting(student: PreTrainedModel, tokens: int) -> Iterator[None]:
    """Let the student draft a fixed number of tokens, sure of them or not."""
    config: Any = student.generation_config
    wanted = {
        "num_assistant_tokens": tokens,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    before = {name: getattr(config, name, None) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
