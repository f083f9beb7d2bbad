"""Records that show themselves as tables, in terminals and notebooks."""

from inheritune_hf.records import Match, Round, Rounds
from inheritune_hf.students import Verification
from inheritune_hf.students.verification import Check

FOUND = Verification("<out>", True, (Check("lineage", True, "layers 0:2"), Check("reload", None, "a\nb \x1b[31m")))


def test_a_table_in_a_terminal():
    """Columns are as wide as their cells, a cell is one line, and what others wrote stays text."""
    assert repr(FOUND).splitlines() == [
        "<out>: trained student, ok",
        "check    result   detail",
        "lineage  ok       layers 0:2",
        "reload   skipped  a b \\u001b[31m",
    ]
    assert str(FOUND) == repr(FOUND)


def test_a_table_in_a_notebook():
    """The same cells as HTML, in which nothing that others wrote is a tag."""
    assert FOUND._repr_html_() == (
        "<table><caption>&lt;out&gt;: trained student, ok</caption>"
        "<tr><th>check</th><th>result</th><th>detail</th></tr>"
        "<tr><td>lineage</td><td>ok</td><td>layers 0:2</td></tr>"
        "<tr><td>reload</td><td>skipped</td><td>a b \\u001b[31m</td></tr></table>"
    )


def test_rounds_are_a_tuple_and_a_table():
    """The rounds of a trainer compare as a tuple does, and show one line each."""
    one = Round(1, (0, 1), 0, 1_000, 64_000, 1e9, 2.0, 3.5, 3.0, Match(False, False, 0.5, None, None, 12))
    rounds = Rounds((one,))
    assert rounds == (one,)
    assert repr(rounds).splitlines() == [
        "1 round, losses in nats per token",
        "round  layers  steps  tokens  loss    perplexity  target  difference  matched",
        "1      2       1,000  64,000  3.5000  33.12       3.0000  +0.5000     no",
    ]
    assert repr(Rounds()).startswith("0 rounds, losses in nats per token\nround  layers")
