"""The page on how often the match rule errs is what its command writes."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from inheritune_hf.evaluation import difference_bounds
from inheritune_hf.evaluation.matching import _effective_documents

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def simulation():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs" / "results")
        return importlib.import_module("simulate_match")


def rows(text, first):
    """The cells of the rows of a table, found by the first words of its heading."""
    table = text[text.index(first) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_populations_are_what_they_say(simulation):
    """Over all tokens of a population the difference is 0, and its spread is the one that the page gives."""
    for population in simulation.POPULATIONS:
        draw = np.random.default_rng(5)
        tokens = population.tokens(draw, (1_000_000,))
        noise = population.noise(draw, tokens.shape)
        assert (tokens * population.trend(tokens)).sum() / tokens.sum() == pytest.approx(0, abs=5e-4)
        assert noise.mean() == pytest.approx(0, abs=5e-3)
        assert noise.std() == pytest.approx(1, abs=0.05)


def test_the_rule_that_is_tried_is_the_package_s(simulation):
    """The simulated bounds are those of `difference_bounds`, on the documents that were drawn."""
    population, draw = simulation.POPULATIONS[1], np.random.default_rng([10, 1])
    tokens = population.tokens(draw, (20, 10))
    excess = tokens * (population.spread * population.noise(draw, tokens.shape) + population.trend(tokens))
    _, weights, bounds = simulation.bounds_of_draws(population, 10, 20)
    found = difference_bounds(excess, tokens, simulation.CONFIDENCE)
    assert np.array_equal(found[0], bounds["widest"][0])
    assert np.array_equal(found[1], bounds["widest"][1])
    assert np.array_equal(weights, _effective_documents(tokens))


def test_a_page_is_made_of_tables(simulation, tmp_path):
    """Each population and number of documents has its row, and nothing is left unfilled."""
    simulation.main(8, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "{" not in text
    cases = len(simulation.POPULATIONS) * len(simulation.DOCUMENTS)
    assert len(rows(text, "| population | documents | upper")) == cases
    assert len(rows(text, "| population | documents | the rule at")) == cases
    assert len(rows(text, "| population | documents | shared")) == len(simulation.POPULATIONS) * 2 * 2
    assert len(rows(text, "| population | documents | rounds")) == len(simulation.POPULATIONS) * 3 * 2 * 2


@pytest.mark.parametrize("documents", [5, 30])
def test_the_page_says_what_the_rule_does(simulation, documents):
    """The figures of two rows, simulated again, are those on the page."""
    page = (ROOT / "docs" / "results" / "match-rule.md").read_text()
    draws = int(re.search(r"It draws ([\d,]+)", page)[1].replace(",", ""))
    _, _, bounds = simulation.bounds_of_draws(simulation.POPULATIONS[0], documents, draws)
    lower, upper = bounds["widest"]
    alone = [bounds[name][1] for name in ("percentile", "jackknife", "studentised")]
    row = next(row for row in rows(page, "| population | documents | upper") if row[:2] == ["even", str(documents)])
    simulated = [100 * np.mean(held) for held in (upper >= 0, lower <= 0, *(bound >= 0 for bound in alone))]
    assert [float(cell.rstrip(" %")) for cell in row[2:7]] == pytest.approx(simulated, abs=0.1)


def test_the_page_bears_out_what_it_claims(simulation):
    """The sentences around the tables are true of their figures."""
    page = (ROOT / "docs" / "results" / "match-rule.md").read_text()
    even = [row for row in rows(page, "| population | documents | the rule at") if row[0] == "even"]
    share = lambda cell: float(cell.rstrip(" %"))  # noqa: E731
    assert all(45 < share(row[7]) < 55 for row in even)  # the paper's rule at equal losses: half
    assert all(share(row[4]) <= 6.5 for row in even)  # a false match at the tolerance
    bounds = rows(page, "| population | documents | upper")
    assert all(share(row[2]) >= 93 for row in bounds if row[0] == "skewed" and int(row[1]) >= 5)
    runs = rows(page, "| population | documents | rounds")
    assert all(
        share(row[5]) <= 5 for row in runs if row[0] in {"even", "heavy"} or (row[0], row[3]) == ("skewed", "90%")
    )
    assert all(share(row[6]) <= 5 for row in runs)  # by a test set
    growing = [row for row in runs if row[0] != "contaminated" and row[2] == "7"]
    assert all(share(row[11]) > share(row[12]) for row in growing)  # spread against a test set
    repeated = rows(page, "| population | documents | shared")
    for row in repeated:
        last, any_of_them, twice = (share(cell) for cell in row[3:6])
        assert last <= twice <= any_of_them
        assert share(row[6]) <= twice  # at the confidence of two looks
    half = [row for row in repeated if row[2] == "50%" and row[0] != "contaminated"]
    assert all(share(row[4]) - share(row[5]) > share(row[5]) - share(row[3]) for row in half)
