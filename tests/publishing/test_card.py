"""The card: records in, text out."""

import json
import math
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from recorded_runs import beside_adapted, full_evaluation

from inheritune_hf.evaluation.abilities import ABILITIES
from inheritune_hf.publishing import FinishedRun, ResultRow
from inheritune_hf.publishing.card import CardFacts, _test_results, read_reference_card, render_card, update_card
from inheritune_hf.records import Lineage, Match, RecordError, Round, RunRecord, write_record

LINEAGE = Lineage("gpt2-medium", "abc", 24, tuple(range(14)), {"torch": "2.13"})
ROUNDS = (
    Round(1, tuple(range(12)), 0, 100, 6400, 1e9, 1.0, 2.87, 2.81, Match(False, False, 0.06, 0.05, 0.07, 40)),
    Round(2, tuple(range(14)), 100, 200, 6400, 1e9, 1.0, 2.80, 2.81, Match(True, True, -0.01, -0.02, 0.0, 40)),
)


def card(outcome="matched", lineage=LINEAGE, rounds=ROUNDS, training=None, **facts):
    recipe = {"keep_layers": "half", "tolerance": 0.01, "confidence": 0.95, "steps_per_round": 100}
    record = RunRecord(recipe, lineage, rounds, outcome, 2.81, training or {})
    return render_card(record, "me/student", CardFacts(**facts))


def test_metadata_is_valid():
    """Hugging Face's own class reads the card: base model and its relation, tags, library, task, licence, languages."""
    data = ModelCard(card(license="mit", language=("en", "de"), datasets=("org/text",))).data
    assert data.base_model == "gpt2-medium"
    assert data.base_model_relation == "finetune"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["inheritune", "generated_from_trainer", "arxiv:2404.08634"]
    assert data.license == "mit"
    assert data.language == ["en", "de"]
    assert data.datasets == ["org/text"]
    assert "generated_from_trainer" not in ModelCard(card(None, rounds=())).data.tags


def test_results_are_of_student_and_reference():
    """The model index holds loss and perplexity of both, on the selection set and on the test set if it was opened."""
    data = ModelCard(card(test_loss=2.9, reference_test_loss=2.95)).data
    assert data.model_name == "student"
    found = {(item.dataset_split, item.metric_name): item.metric_value for item in data.eval_results}
    assert found == {
        ("selection", "loss (nats per token)"): 2.8,
        ("selection", "perplexity"): round(math.exp(2.8), 4),
        ("selection", "loss of the reference (nats per token)"): 2.81,
        ("selection", "perplexity of the reference"): round(math.exp(2.81), 4),
        ("test", "loss (nats per token)"): 2.9,
        ("test", "perplexity"): round(math.exp(2.9), 4),
        ("test", "loss of the reference (nats per token)"): 2.95,
        ("test", "perplexity of the reference"): round(math.exp(2.95), 4),
    }
    assert ModelCard(card(None, rounds=())).data.eval_results is None
    assert "| selection | 2.8000 | 16.44 | 2.8100 | 16.61 |" in card()
    by_number = RunRecord({"target": 2.81}, LINEAGE, ROUNDS, "matched", 2.81)
    assert "| selection | 2.8000 | 16.44 |  |  |" in render_card(by_number, "me/student")


def test_the_same_record_gives_the_same_card():
    """A card is a pure function of its record: the same text each time."""
    assert card(license="mit", parameters=5) == card(license="mit", parameters=5)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("matched", "**A student of 14 of 24 layers matched its starting reference.**"),
        ("no_more_layers", "**No student matched its starting reference, up to 14 of 24 layers: there were no more"),
        ("budget_exhausted", "up to 14 of 24 layers: the step budget was used up.**"),
        ("interrupted", "**The run was interrupted: whether its student"),
        (None, "The student of round 2 **missed** its target; the run continued with more layers."),
    ],
)
def test_every_outcome_is_said(outcome, words):
    """A miss is stated as plainly as a match."""
    assert words in card(outcome)


def test_a_cut_that_was_not_trained_says_so():
    """Without rounds there are no losses, and the command that made the cut is told."""
    text = card(None, rounds=())
    assert "**not trained**" in text
    assert "inheritune inherit gpt2-medium --keep-layers half --revision abc --output student" in text
    assert "## Rounds" not in text
    assert "## Evaluation" not in text


def test_layers_and_rounds_are_shown():
    """The kept layers are drawn and the rounds tabulated with their differences."""
    text = card()
    assert "█" * 14 + "░" * 10 in text
    assert "of 24, counted from 0.\n\n" in text
    assert "counted from 0. The reference has layers of" in card(lineage=replace(LINEAGE, prediction_layers=1))
    assert "| 1 | 12 |  | 100 | 6,400 | 2.8700 | 2.8100 | +0.0600 (up to +0.0700) | no |" in text
    assert "| 2 | 14 |  | 100 | 6,400 | 2.8000 | 2.8100 | -0.0100 (up to +0.0000) | yes |" in text


def test_rule_and_its_weakness_are_said():
    """The card says how rounds were judged, and when there were too few documents for an interval."""
    recipe = {"keep_layers": "half", "tolerance": 0.01, "confidence": 0.95}
    few = Round(1, (0,), 0, 9, 64, 1e9, 1.0, 2.8, 2.81, Match(True, True, -0.01, None, None, 4, "no interval: few"))
    text = render_card(RunRecord(recipe, LINEAGE, (few,), "matched", 2.81), "me/student")
    assert "one-sided 95% upper bound of its difference" in text
    assert "Note: no interval: few." in text
    means = render_card(RunRecord({**recipe, "confidence": None}, LINEAGE, (few,), "matched", 2.81), "me/student")
    assert "if its loss is at most 0.01 nats per token above the loss to reach" in means
    known = replace(few.match, confidence=0.99, influential=7, without_influential=-0.02, power=0.381)
    spread = render_card(RunRecord(recipe, LINEAGE, (replace(few, match=known),), "matched", 2.81), "me/student")
    assert "one-sided 99% upper bound of its difference (95% over all looks at the selection set together)" in spread
    assert "Document 7 of the selection set moves the difference most: without it, it would be -0.0200." in spread
    assert "A student exactly as good as its target would match in 38% of such comparisons." in spread


def test_a_match_at_full_depth_is_no_reduction():
    """A student as deep as its reference made nothing smaller; the text and the table say so."""
    whole = replace(LINEAGE, kept_layers=tuple(range(24)))
    rounds = (*ROUNDS, replace(ROUNDS[1], index=3, kept_layers=whole.kept_layers))
    text = card(lineage=whole, rounds=rounds)
    assert "**Only the full depth of 24 layers matched its starting reference: no reduction.**" in text
    assert "| 2 | 14 |  | 100 | 6,400 | 2.8000 | 2.8100 | -0.0100 (up to +0.0000) | yes |" in text
    assert "| 3 | 24 |  | 100 | 6,400 | 2.8000 | 2.8100 | -0.0100 (up to +0.0000) | yes, no reduction |" in text


def test_a_match_that_the_test_set_does_not_confirm():
    """A match on the selection set alone is called so."""
    missed = replace(ROUNDS[1].match, matched=False)
    assert "**A student of 14 of 24 layers matched its starting reference.**" in card(test_match=ROUNDS[1].match)
    text = card(test_match=missed)
    assert "matched its starting reference on the selection set, but the test set does not confirm it.**" in text


def test_test_results_are_those_of_the_run(tmp_path):
    """They come from the record that ended with this student, not from an earlier one's; a damaged one is an error."""
    rows = (ResultRow("reference", 24, 5, 0, 0, 2.9), ResultRow("student", 14, 3, 9, 99, 2.91, ROUNDS[1].match))
    finished = FinishedRun({}, LINEAGE, ROUNDS, "matched", results=rows)
    write_record(tmp_path / "rounds.json", finished)
    assert _test_results(tmp_path, finished) == {row.model: row for row in rows}
    for student in (replace(finished, rounds=ROUNDS[:1]), replace(finished, outcome="budget_exhausted")):
        assert _test_results(tmp_path, student) == {}
    values = json.loads((tmp_path / "rounds.json").read_text())
    values["results"][1]["loss"] = "low"
    (tmp_path / "rounds.json").write_text(json.dumps(values))
    with pytest.raises(RecordError, match=r"rounds\.json: results\[1\]\.loss must be a finite number, got 'low'"):
        _test_results(tmp_path, finished)


def test_paths_of_a_machine_stay_there(tmp_path):
    """A reference that is a folder is no base model on the Hub, and its path is not told."""
    text = card(lineage=Lineage(str(tmp_path / "secret" / "model"), None, 24, (0, 1)))
    assert str(tmp_path) not in text
    assert ModelCard(text).data.base_model is None


def test_unknown_licence_is_said():
    """Without a licence the card says that the reference's applies."""
    assert "The licence of the reference, `gpt2-medium`, is not known here." in card()
    assert "is not known here" not in card(license="mit")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"license": "llama3.2"}, "display 'Built with Llama'"),
        ({"license": "other", "license_name": "llama-4-community"}, "display 'Built with Llama'"),
        ({"license": "llama2"}, "the Llama 2 community licence"),
        ({"license": "gemma"}, "the Gemma terms of use"),
    ],
    ids=str,
)
def test_restricted_licences_are_carried_with_their_names(given, words):
    """What Llama's and Gemma's licences ask for is in the card, with their names and links in the metadata."""
    text = card(**given, license_link="https://example.org/licence")
    assert words in text
    data = ModelCard(text).data
    assert data.license == given["license"]
    assert data.license_name == given.get("license_name")
    assert data.license_link == "https://example.org/licence"
    assert f"[{given.get('license_name', given['license'])}](https://example.org/licence)" in text
    assert "Built with Llama" not in card(license="apache-2.0")


def test_size_budget_and_pictures_are_shown():
    """Size against the reference, the budget of all rounds and the pictures are there if they are known."""
    text = card(
        parameters=60, reference_parameters=100, operations=3e2, reference_operations=5e2, pictures=("layers.png",)
    )
    assert "| layers | 14 | 24 | 58.3% |" in text
    assert "| parameters | 60 | 100 | 60.0% |" in text
    assert "| training FLOPs for each token | 300 | 500 | 60.0% |" in text
    assert "200 optimizer steps, 12,800 tokens, 2e+09 floating-point operations" in text
    assert "(layers.png)" in text
    assert "(losses.png)" not in text
    assert "| parameters | 60 |  | |" in card(parameters=60)


EVIL = "<script>alert(1)</script>\n## [x](y) | `b` ``` {{ 7 * 7 }} --> <!-- inheritune: end -->"


def test_foreign_text_is_escaped():
    """What a stranger chose (names, versions, notes, licences) is no markup, in words, tables, code and links."""
    lineage = Lineage(EVIL, "abc`", 24, (0, 1), {EVIL: EVIL}, data={EVIL: EVIL})
    round_ = replace(ROUNDS[1], match=Match(True, True, -0.01, None, None, 4, EVIL))
    recipe = {"keep_layers": "half", "tolerance": 0.01, "confidence": 0.95, "notes": EVIL}
    facts = CardFacts(license="other", license_name=EVIL, license_link="javascript:alert(1)", datasets=(EVIL,))
    text = render_card(RunRecord(recipe, lineage, (round_,), "matched", 2.81), EVIL, facts)
    body = ModelCard(text).text
    outside = re.sub(r"^(`{3,})\w+\n.*?\n\1$", "", body, flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"(?<![`\\])(`+) ?(?!`).*?(?<!`)\1(?!`)", "", outside)
    assert "<script" not in outside
    assert "[x](y)" not in outside
    assert "javascript:" not in text
    assert len(re.findall(r"^<!-- inheritune: end -->$", body, re.MULTILINE)) == 1
    assert update_card(text, text) == text
    assert "http://" not in card(license="mit", license_link="http://example.org")


@pytest.mark.parametrize(
    ("front", "complaint"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nlicense: *b", r"has the alias \*a: write out what it stands for"),
        ("license: " + "[" * 150 + "]" * 150, "nests deeper than 100 levels"),
        ("license: !!int x", "has the tag tag:yaml.org,2002:int: write the value without it"),
        ("license: {", "is not valid YAML"),
    ],
    ids=["bomb", "nested", "tag", "damaged"],
)
def test_front_matter_is_bounded(tmp_path, front, complaint):
    """A card of a reference, or one that is there already, whose metadata stand for more than they say is refused."""
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Title\n")
    with pytest.raises(ValueError, match=complaint):
        read_reference_card(tmp_path / "README.md")
    with pytest.raises(ValueError, match=f"The card that is there already: its front matter {complaint}"):
        update_card((tmp_path / "README.md").read_text(), card())


def test_values_of_a_references_card_are_checked(tmp_path):
    """A licence or a language of another type is left out; so is a link that is not https."""
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: [mit]\nlicense_link: http://x.org\nlanguage: [en, 5, <b>]\nlicense_name: 3\n---\n")
    assert read_reference_card(path) == CardFacts(language=("en",))
    path.write_text("---\nlicense: other\nlicense_name: own\nlicense_link: https://x.org/a\nlanguage: en\n---\n")
    assert read_reference_card(path) == CardFacts("other", "own", "https://x.org/a", ("en",))
    path.write_text("No front matter.\n")
    assert read_reference_card(path) == CardFacts()


def test_a_run_can_be_made_again():
    """What differs from the defaults is a recipe, with commit, seed and versions."""
    text = card(training={"seed": 7, "learning_rate": 0.001, "neftune_noise_alpha": None})
    found = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    expected = {"reference": "gpt2-medium", "revision": "abc", "steps_per_round": 100}
    assert found == {**expected, "learning_rate": 0.001, "seed": 7}
    assert "torch 2.13" in text
    assert "inheritune train --config recipe.yaml" in text


def test_an_existing_card_is_updated():
    """The author's words, title and metadata stay; the run's own fields and text are renewed."""
    mine = "---\nlicense: mit\ntags:\n- mine\nbase_model: other\n---\n# Mine\n\nMy words.\n"
    once = update_card(mine, card())
    data = ModelCard(once).data
    assert data.license == "mit"
    assert data.base_model == "gpt2-medium"
    assert data.tags == ["mine", "inheritune", "generated_from_trainer", "arxiv:2404.08634"]
    assert "My words." in once
    assert once.index("My words.") < once.index("# me/student")
    assert update_card(once, card()) == once
    missed = update_card(once.replace("My words.", "Other words."), card("budget_exhausted"))
    assert "Other words." in missed
    assert "the step budget was used up" in missed
    assert "matched its starting reference.**" not in missed
    assert update_card(card(), card()) == card()


def test_a_student_of_another_reference_takes_no_licence_over():
    """Licence, languages and base model are those of the reference whose weights are there, or of the author."""
    apache = card(license="apache-2.0", language=("en",))
    custom = {"license": "other", "license_name": "llama-x", "license_link": "https://x.org/a"}
    found = ModelCard(update_card(apache, card(lineage=replace(LINEAGE, reference="org/llama-x"), **custom))).data
    assert {name: getattr(found, name) for name in custom} == custom
    assert (found.base_model, found.language) == ("org/llama-x", None)
    found = ModelCard(update_card(apache, card(lineage=replace(LINEAGE, reference="/home/me/own", revision=None)))).data
    assert (found.license, found.base_model) == (None, None)
    mine = apache.replace("license: apache-2.0", "license: mit")
    found = ModelCard(update_card(mine, card(**custom))).data  # of the same reference: the author changed it
    assert (found.license, found.license_name, found.license_link) == ("mit", None, None)


def test_results_of_an_earlier_student_go():
    """A student that was not trained does not keep the results of the trained one that was there."""
    assert ModelCard(card()).data.eval_results
    assert ModelCard(update_card(card(), card(None, rounds=()))).data.eval_results is None


def test_a_licence_that_is_given_is_not_the_references():
    """A card says who chose it, and what the reference's asks for; one that the reference has too is taken over."""
    text = card(license="mit", reference_license="llama3.2", chosen=("license",))
    assert "`mit`, given by who published it. It holds weights of the reference `gpt2-medium`, whose licence" in text
    assert "`llama3.2` and applies to them." in text
    assert "The reference's is the Llama community licence" in text
    assert "taken over from" not in text
    assert "`mit`, given by who published it. It holds weights of" in card(license="mit", chosen=("license",))
    assert "`mit`, taken over from the reference" in card(license="mit")


def test_a_licence_that_is_given_wins():
    """A licence or a language that is given for a publication takes the place of the card's, with name and link."""
    mine = "---\nlicense: other\nlicense_name: own\nlicense_link: https://x.org/a\nlanguage: de\n---\nWords.\n"
    new = card(license="mit", language=("en",))
    assert ModelCard(update_card(mine, new)).data.license == "other"
    data = ModelCard(update_card(mine, new, ("license", "language"))).data
    assert (data.license, data.language) == ("mit", ["en"])
    assert (data.license_name, data.license_link) == (None, None)


def test_what_began_at_random_is_said():
    """A card claims no part that the student did not inherit, and its command builds the same parts with their seed."""
    inherited = ("attention", "mlp", "norms", "lm_head")
    recipe = {"keep_layers": 14, "inherit": "released-code", "attention_scale": "position"}
    text = render_card(RunRecord(recipe, replace(LINEAGE, inherited=inherited, seed=7)), "me/student")
    assert "14 of the 24 layers of `gpt2-medium`, but not its embeddings, positions, final norm, which began at" in text
    assert "inheritune inherit gpt2-medium --keep-layers 14 --inherit released-code --attention-scale position " in text
    assert "--seed 7 --revision abc --output student" in text
    assert "`gpt2-medium`, and everything outside its blocks, by" in card()
    nothing = replace(LINEAGE, kept_layers=(), inherited=(), seed=7)
    assert "A model of random weights in the shape of `gpt2-medium`, by" in card(lineage=nothing)


def test_a_card_without_metadata_is_updated():
    """A plain text is a card too."""
    assert "Plain." in update_card("Plain.\n", card())
    assert ModelCard(update_card("Plain.\n", card())).data.library_name == "transformers"


def test_what_was_not_measured_is_said():
    """Every card names the abilities that no task was about, with an evaluation and without, trained or not."""
    everything = f"Not measured: {', '.join(ABILITIES)}."
    for text in (card(), card(None, rounds=()), card("adapted")):
        assert everything in text.replace("\\", "")
    text = card(evaluation=full_evaluation()).replace("\\", "")
    assert "Not measured: generation and following instructions, arithmetic and reasoning, long context" in text


def test_an_evaluation_is_shown_beside_both_references():
    """Losses and tasks of the three models are on the card, with how each task was asked, and no folder's name."""
    found = full_evaluation()
    elsewhere = replace(found, corpora=(replace(found.corpora[0], corpus="9 files (/home/me/text/*.txt)"),))
    text = card(evaluation=elsewhere).replace("\\", "")
    assert "| 9 files (*.txt) | loss, nats per token | 5.1425 | 5.1484 |" in text
    assert "| arc_easy | 5-shot | acc | 100 | 0.2700 ± 0.0446 | 0.2500 ± 0.0435 | +0.0200 ± 0.0345 | 0.774 |" in text
    assert "not with a reference trained further" in text
    text = card(evaluation=beside_adapted(found)).replace("\\", "")
    assert (
        "| arc_easy | 5-shot | acc | 100 | 0.2700 ± 0.0446 | 0.2500 ± 0.0435 | +0.0200 ± 0.0345 | 0.774 | 0.3100"
        in text
    )
    assert "| 4.9000 | +0.2425 |" in text
    assert "on `reference`, the *reference*; *adapted* is that one trained further on the same text" in text
    own = card(evaluation=replace(found, reference="gpt2-medium"))
    assert "and on `gpt2-medium`, the *reference*. Differences" in own
    assert "not with a reference trained further" not in text
