"""The measures on matrices whose answer is known, and the bounds of theorem H.1."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune_hf.analysis import collapse
from inheritune_hf.analysis.collapse import (
    approximate_rank,
    attention_entropy,
    column_mass,
    max_rank,
    resampled_max_ranks,
    score_attention,
    sink_share,
    uniform_attention,
)

TAUS = (0.8, 0.85, 0.9, 0.95)


def by_svd(matrices, taus):
    """The definition, word for word: singular values in float64, the same tolerance at the threshold."""
    energies = torch.linalg.svdvals(matrices.double()).square()
    sums, total = energies.cumsum(-1), energies.sum(-1, keepdim=True)
    return torch.stack([(sums < tau * total * (1 - 1e-9)).sum(-1) + 1 for tau in taus], dim=-1)


def causal(logits):
    tokens = logits.shape[-1]
    return torch.softmax(logits + torch.full((tokens, tokens), -torch.inf).triu(1), dim=-1)


@pytest.mark.parametrize(
    ("tokens", "ranks", "mass"), [(100, (3, 4, 5, 8), 30), (40, (3, 3, 4, 6), 14), (1024, (4, 5, 7, 12), 221)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_null_values_of_uniform_attention(tokens, ranks, mass, dtype):
    """Uniform causal attention has rank 5 and mass 30 at 100 tokens, 4 and 14 at 40, 7 and 221 at 1,024."""
    attention = uniform_attention(tokens).to(dtype)
    assert tuple(int(approximate_rank(attention, tau)) for tau in TAUS) == ranks
    assert int(column_mass(attention)) == mass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_null_values_of_columns_and_identity(dtype):
    """One column has rank and mass 1, also under a tenth of noise; identity has 90 of 100 in both."""
    column = torch.zeros(100, 100, dtype=dtype)
    column[:, 0] = 1
    for attention in (column, 0.9 * column + 0.1 * uniform_attention(100).to(dtype)):
        assert (int(approximate_rank(attention)), int(column_mass(attention))) == (1, 1)
    identity = torch.eye(100, dtype=dtype)
    assert int(approximate_rank(identity)) == int(column_mass(identity)) == 90


def test_null_values_of_random_attention():
    """Softmax of normal causal logits at 100 tokens has a mean rank of 20.9 and a mean mass of 34.5."""
    attention = causal(torch.randn(200, 100, 100, generator=torch.Generator().manual_seed(0)))
    assert float(approximate_rank(attention).double().mean()) == pytest.approx(20.9, abs=0.2)
    assert float(column_mass(attention).double().mean()) == pytest.approx(34.5, abs=0.3)


def of_spectrum(energies, generator):
    """A matrix of given squared singular values in random directions."""
    size = (len(energies), len(energies))
    left, right = (torch.linalg.qr(torch.randn(size, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    return (left @ torch.diag(energies.double().sqrt()) @ right).float()


def hard(index, tokens, generator):
    """One of a dozen kinds of matrices: attention, ties at the threshold, flat and steep spectra, denormal entries."""
    normal = torch.randn(tokens, tokens, generator=generator)
    place = torch.arange(tokens)
    drawn = torch.randint(tokens, (tokens,), generator=generator)
    turn, ones, one_hot = index // 12, torch.ones(tokens), torch.zeros(tokens, tokens)
    one_hot[place, drawn] = 1
    share = (0.9, 0.95, 0.9 + 1e-6, 0.9 - 1e-6)[turn % 4]  # of the first value: at the threshold, or just beside it
    peaked = torch.cat([torch.tensor([share]), (1 - share) / (tokens - 1) * ones[1:]])
    sink = normal + (place == drawn[0]) * (turn % 11)
    return (
        lambda: causal(normal * (turn % 7)),
        lambda: causal(normal[:, :8] @ normal[:8]),
        lambda: causal(sink),
        lambda: torch.eye(tokens)[torch.randperm(tokens, generator=generator)],  # all energies tie
        lambda: of_spectrum(ones, generator),
        lambda: of_spectrum((place < 10).float(), generator),  # nine of ten equal values are just the share
        lambda: of_spectrum(peaked, generator),
        lambda: of_spectrum(1 / (1.0 + place), generator),
        lambda: causal(-(0.1 + turn % 5) * (place[:, None] - place).abs().float()),  # local
        lambda: uniform_attention(tokens, window=1 + index % tokens).float(),
        lambda: one_hot,
        lambda: 0.5 * torch.eye(tokens) + 0.5 * uniform_attention(tokens).float(),
    )[index % 12]()


def require_ranks_of_svd(tokens, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, 24):
        part = torch.stack([hard(index, tokens, generator) for index in range(start, min(count, start + 24))])
        assert torch.equal(collapse.ranks(part, TAUS), by_svd(part, TAUS)), f"matrices from {start}"
        assert torch.equal(collapse._masses(part, TAUS), collapse._masses(part.double(), TAUS))


@pytest.mark.parametrize(("tokens", "count"), [(12, 240), (64, 480), (100, 240), (160, 48), (224, 24)])
def test_rank_is_that_of_a_float64_svd(tokens, count):
    """On a thousand random and adversarial matrices, ties included, every rank is the float64 SVD's."""
    require_ranks_of_svd(tokens, count, seed=tokens)


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "count"), [(50, 2400), (100, 2400), (256, 480), (700, 48), (1024, 24)])
def test_rank_is_that_of_a_float64_svd_on_thousands(tokens, count):
    """So it is on five thousand others, up to the longest sequences that the paper's models read."""
    require_ranks_of_svd(tokens, count, seed=1)


@pytest.mark.parametrize(("tokens", "count"), [(100, 120), (256, 24)])
def test_float32_sums_are_within_half_of_the_slack(tokens, count):
    """The error of sums of leading energies in float32 is less than half of what ranks allow for."""
    generator = torch.Generator().manual_seed(7)
    matrices = torch.stack([hard(index, tokens, generator) for index in range(count)])
    gram = collapse._gram(matrices)
    assert torch.equal(gram, gram.mT)
    exact = torch.linalg.eigvalsh(matrices.double().mT @ matrices.double()).flip(-1)
    found = collapse._energies(gram)
    off = (found.cumsum(-1) - exact.cumsum(-1)).abs().amax(-1)
    slack = collapse._slack(exact.sum(-1), found.norm(dim=-1), tokens)
    assert float((off / slack).max()) < 0.5
    assert float(off.max()) > 0


def test_threads_change_nothing(one_thread, monkeypatch):
    """More threads give the same scores, and leave torch with as many threads as it had, also after an error."""
    monkeypatch.setattr(collapse, "_THREAD_GROUP", 1)
    attention = causal(torch.randn(3, 5, 60, 60, generator=torch.Generator().manual_seed(0)))
    alone = score_attention(attention, TAUS)
    torch.set_num_threads(3)
    together = score_attention(attention, TAUS)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
    names = set()
    collapse.by_groups(lambda part: names.add((threading.get_ident(), torch.get_num_threads())), attention[0])
    assert all(threads == 1 for _, threads in names)
    assert threading.get_ident() not in {thread for thread, _ in names}
    with pytest.raises(ZeroDivisionError):
        collapse.by_groups(lambda part: 1 // 0, attention[0])
    assert torch.get_num_threads() == 3


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_products_of_fewer_bits_are_not_relied_on(monkeypatch):
    """Where a user lets float32 products have fewer bits (TF32), ranks are those of float64 all the same."""
    assert collapse._multiplies_float32(torch.device("cpu"))
    identity = torch.eye
    monkeypatch.setattr(torch, "eye", lambda *x, **y: identity(*x, **y) * (1 + 2.0**-12))
    assert not collapse._multiplies_float32(torch.device("cpu"))
    monkeypatch.undo()
    attention = causal(torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(collapse, "_multiplies_float32", lambda device: False)
    monkeypatch.setattr(collapse, "_gram_ranks", None)
    assert torch.equal(collapse.ranks(attention, TAUS), by_svd(attention, TAUS))


def test_rank_of_float64_and_of_rectangles():
    """Matrices in float64, wide and tall ones, and every share up to 1 are counted as an SVD counts them."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((4, 70, 90), (4, 90, 70), (4, 80, 80), (3, 5, 9)):
        matrices = torch.rand(shape, generator=generator, dtype=torch.float64)
        for tau in (0.3, 0.99, 1.0):
            assert torch.equal(approximate_rank(matrices, tau), by_svd(matrices, (tau,))[:, 0])
            assert torch.equal(approximate_rank(matrices.float(), tau), by_svd(matrices.float(), (tau,))[:, 0])


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_shares_are_checked(share):
    """A share outside (0, 1] is refused."""
    with pytest.raises(ValueError, match=r"tau must be above 0 and at most 1, got"):
        approximate_rank(torch.eye(3), share)
    with pytest.raises(ValueError, match=r"eta must be above 0 and at most 1, got"):
        column_mass(torch.eye(3), share)
    with pytest.raises(ValueError, match=r"tau must be above 0 and at most 1, got"):
        score_attention(torch.eye(3)[None, None], (0.9, share))


def test_what_is_no_attention_is_refused():
    """A vector, an empty matrix and numbers that are not finite are refused; integers and zeros are counted."""
    for attention in (torch.ones(3), torch.ones(3, 0)):
        with pytest.raises(ValueError, match=r"Attention must be of shape \(..., query, key\), got"):
            approximate_rank(attention)
    with pytest.raises(ValueError, match="Attention holds numbers that are not finite"):
        column_mass(torch.full((3, 3), torch.nan))
    assert int(column_mass(torch.eye(10, dtype=torch.long))) == 9
    assert int(approximate_rank(torch.zeros(3, 3))) == int(column_mass(torch.zeros(3, 3))) == 1


def test_entropy_and_sink_share():
    """Uniform rows over n keys have entropy log n; a sink takes all attention but the first query's does not count."""
    assert float(attention_entropy(torch.full((4, 8), 1 / 8))) == pytest.approx(np.log(8))
    assert float(attention_entropy(torch.eye(5))) == 0
    column = torch.zeros(2, 5, 5)
    column[..., 0] = 1
    assert sink_share(column).tolist() == [1, 1]
    assert float(sink_share(torch.eye(5))) == 0


def test_uniform_attention_within_a_window():
    """Each query looks alike at the tokens in its window, and at no other."""
    attention = uniform_attention(5, window=2)
    assert attention.sum(-1).tolist() == [1] * 5
    assert attention[3].tolist() == [0, 0, 0.5, 0.5, 0]


def test_scores_are_those_of_the_measures():
    """A layer's scores are the single measures, by share, sequence and head; the attention is left as it was."""
    attention = causal(torch.randn(2, 3, 60, 60, generator=torch.Generator().manual_seed(0)))
    before = attention.clone()
    ranks, masses, entropy, sink = score_attention(attention, TAUS)
    assert torch.equal(attention, before)
    assert ranks.shape == masses.shape == (4, 2, 3)
    for place, share in enumerate(TAUS):
        assert torch.equal(ranks[place], approximate_rank(attention, share))
        assert torch.equal(masses[place], column_mass(attention, share))
    assert torch.equal(entropy, attention_entropy(attention))
    assert torch.equal(sink, sink_share(attention))


def test_aggregation_is_the_papers():
    """Rank is a mean over sequences, MaxRank the largest over heads."""
    assert max_rank([[1, 3], [1, 6]]) == 4.5  # two sequences, two heads


def test_resamples_of_the_sequences():
    """Ranks that vary give resamples around MaxRank, constant ones a point, few sequences none."""
    ranks = np.random.default_rng(0).integers(1, 9, size=(100, 4))
    lower, upper = np.quantile(resampled_max_ranks(ranks), [0.025, 0.975])
    assert lower < max_rank(ranks) < upper
    assert set(resampled_max_ranks(np.ones((30, 2)))) == {1.0}
    assert resampled_max_ranks(np.ones((29, 2))) is None


# Theorem H.1: attention that is eps-sink-collapsed to one key.


def sink_logits(tokens, strength, generator):
    logits = torch.randn(tokens, tokens, generator=generator, dtype=torch.float64)
    logits[:, 0] += strength
    return logits


@given(seed=st.integers(0, 10_000), tokens=st.integers(2, 24), strength=st.floats(0, 12))
@settings(max_examples=40, deadline=None)
def test_theorem_h1_distance_and_second_singular_value(seed, tokens, strength):
    """(i) Attention with eps outside one column is within eps sqrt(2T) of that column, and so is its second value."""
    logits = sink_logits(tokens, strength, torch.Generator().manual_seed(seed))
    attention = causal(logits)
    eps = float(attention[:, 1:].sum(-1).max())
    column = torch.zeros_like(attention)
    column[:, 0] = 1
    bound = eps * (2 * tokens) ** 0.5 + 1e-12
    assert float(torch.linalg.matrix_norm(attention - column)) <= bound
    assert float(torch.linalg.svdvals(attention)[1]) <= bound
    if bound**2 * 10 <= float(attention.square().sum()):
        assert int(column_mass(attention)) == 1


@given(seed=st.integers(0, 10_000), tokens=st.integers(2, 16), width=st.integers(1, 8), strength=st.floats(0, 12))
@settings(max_examples=40, deadline=None)
def test_theorem_h1_gradients_vanish(seed, tokens, width, strength):
    """(ii), (iii) Gradients of a collapsed head's logits and of its query and key weights vanish with eps."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states, direction = normal(tokens, width), normal(tokens, tokens)
    query, key = normal(width, width).requires_grad_(), normal(width, width).requires_grad_()
    logits = (states @ query) @ (states @ key).T / width**0.5
    logits = logits + torch.tensor([strength] + [0.0] * (tokens - 1), dtype=torch.float64)
    logits.retain_grad()
    attention = causal(logits)
    attention.retain_grad()
    (attention * direction).sum().backward()
    eps = float(attention.detach()[:, 1:].sum(-1).max())
    rows, bounds = logits.grad.norm(dim=-1), 2 * eps * attention.grad.norm(dim=-1)
    assert bool((rows <= bounds + 1e-12).all())
    spectral = torch.linalg.matrix_norm
    whole = 2 * eps / width**0.5 * spectral(states, 2) * torch.linalg.matrix_norm(attention.grad)
    assert float(query.grad.norm()) <= float(whole * spectral(states @ key.detach(), 2)) + 1e-12
    assert float(key.grad.norm()) <= float(whole * spectral(states @ query.detach(), 2)) + 1e-12
