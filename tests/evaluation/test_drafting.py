"""The student as a draft for its own reference."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from inheritune_hf.evaluation import Draft, measure_draft


@pytest.fixture
def prompts():
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(1, 250, (1, length), generator=draw) for length in (5, 9)]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_greedy_tokens_are_the_same(pair, prompts):
    """With a draft the reference writes the very tokens that it writes alone, and the counts add up."""
    student, reference = load(pair.student), load(pair.reference)
    greedy, sampling = measure_draft(student, reference, prompts, new_tokens=24, draft_tokens=4, repeats=1)
    assert greedy.equal is True
    assert sampling.equal is None
    for item in (greedy, sampling):
        assert 0 <= item.accepted <= item.drafted
        assert 0 <= item.acceptance <= 1
        # Every look of the reference gives one token more than it accepts.
        assert item.accepted <= 2 * 24
        assert Draft.from_dict(item.to_dict()) == item


def test_a_draft_that_is_the_reference_is_always_accepted(pair, prompts):
    """A student of full depth has every token accepted: of 24 tokens each fifth is the reference's own."""
    (greedy,) = measure_draft(
        load(pair.whole), load(pair.reference), prompts, new_tokens=24, draft_tokens=4, repeats=1, modes=("greedy",)
    )
    assert greedy.acceptance == 1
    # Four drafted and one of its own, four times; then three drafted and one of its own.
    assert (greedy.drafted, greedy.accepted) == (2 * 19, 2 * 19)
    assert greedy.equal


def test_acceptance_is_what_the_reference_would_have_written(pair, prompts):
    """The accepted tokens are those in which the draft, continued greedily, agrees with the reference."""
    student, reference = load(pair.student), load(pair.reference)
    (found,) = measure_draft(student, reference, prompts, new_tokens=12, draft_tokens=3, repeats=1, modes=("greedy",))
    accepted = drafted = 0
    for prompt in prompts:
        text, end = prompt, prompt.shape[1] + 12
        while text.shape[1] < end:
            count = min(3, end - text.shape[1] - 1)
            guess = text
            for _ in range(count):
                guess = torch.cat([guess, student(guess).logits[:, -1:].argmax(-1)], dim=1)
            drafted += count
            for place in range(text.shape[1], guess.shape[1] + 1):
                right = reference(text).logits[:, -1:].argmax(-1)
                text = torch.cat([text, right], dim=1)
                if place == guess.shape[1] or guess[0, place] != right[0, 0]:
                    break
                accepted += 1
    assert (found.drafted, found.accepted) == (drafted, accepted)


def test_drafting_leaves_no_trace(pair, prompts):
    """Generation settings, modes, hooks and the random state are as before."""
    student, reference = load(pair.student).train(), load(pair.reference)
    before = student.generation_config.to_dict()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure_draft(student, reference, prompts, new_tokens=6, repeats=1)
    assert torch.rand(1) == expected
    assert student.generation_config.to_dict() == before
    assert student.training
    assert not student._forward_hooks
    with pytest.raises(ValueError, match="There is no prompt"):
        measure_draft(student, reference, [])
