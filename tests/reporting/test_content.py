"""What a report says, and that every figure is a record's."""

import json
from dataclasses import replace

from recorded_runs import FEW, LINEAGE, MISS, RECIPE, RESULTS, ROUNDS, beside_adapted, full_evaluation, write_run

from inheritune_hf.forecast import Forecast
from inheritune_hf.records import RunRecord, encode, write_json
from inheritune_hf.reporting import read_run
from inheritune_hf.reporting.content import Chart, Paragraph, Table, Texts, _data, build_report


def blocks_of(report, anchor):
    return next(section.blocks for section in report.sections if section.anchor == anchor)


def test_verdict_says_which_reference_was_matched(run):
    """The starting reference and the one trained further are two claims, and both are answered."""
    report = build_report(read_run(run))
    assert (report.outcome, report.good) == ("matched", True)
    assert report.verdict == (
        "A student of 6 of 8 layers matched its starting reference. Its loss is 5.1857 against 5.1951 nats per token "
        "on the selection set, after 2 rounds and 240 steps. It does not match the reference, trained further for "
        "240 steps: 5.1425 against 4.9745 nats per token on the test set."
    )


def test_verdict_without_the_continued_reference_says_so(tmp_path):
    """What was not measured is not claimed; a continued reference that is matched is said to be."""
    report = build_report(read_run(write_run(tmp_path / "a", results=encode(RESULTS[:2]))))
    assert "trained further for as many steps, was not measured" in report.verdict
    level = [*RESULTS[:3], replace(RESULTS[3], loss=5.14)]
    report = build_report(read_run(write_run(tmp_path / "b", results=encode(level))))
    assert (
        "It also matches, by the mean, the reference, trained further for 240 steps: 5.1425 against 5.1400"
        in report.verdict
    )


def test_a_miss_is_said(tmp_path):
    """Both ways to miss are told, with what was missing and by how much."""
    for outcome, why in (
        ("no_more_layers", "there were no more layers to add"),
        ("budget_exhausted", "the step budget was used up"),
    ):
        record = RunRecord(RECIPE, replace(LINEAGE, kept_layers=(0, 1, 2, 3)), ROUNDS[:1], outcome, 5.1951)
        folder = write_run(tmp_path / outcome, **encode(record))
        report = build_report(read_run(folder))
        assert (report.outcome, report.good) == ("missed", False)
        assert report.verdict.startswith(
            f"No student matched its starting reference, up to 4 of 8 layers: {why}. Its loss is 5.2219 against"
        )
        assert "The last student does not match the reference, trained further for 240 steps" in report.verdict
        level = [*RESULTS[:3], replace(RESULTS[3], loss=5.14)]
        write_run(folder, **encode(record), results=encode(level))
        assert "The last student matches, by the mean, the reference" in build_report(read_run(folder)).verdict
        table = next(block for block in blocks_of(report, "losses") if isinstance(block, Table))
        bounds = "+0.0140 to +0.0404"
        assert table.rows == (("1", "4", "", "120", "245,760", "5.2219", "5.1951", "+0.0267", bounds, "no"),)


def test_forecasts_are_shown_beside_what_came(interrupted):
    """Of a round the one made half way, beside its end; of the round in progress the last, with nothing beside it."""
    made = [
        Forecast(at, end, loss, 5.1, 5.3, 0.1) for at, end, loss in ((50, 120, 5.31), (60, 120, 5.23), (90, 120, 5.22))
    ]
    log = [{"step": item.at_step, **item.logged()} for item in (*made, Forecast(180, 240, 5.19, 5.15, 5.25))]
    for name in ("checkpoint-190", "checkpoint-190-backup"):
        write_json(interrupted / name / "trainer_state.json", {"global_step": 190, "log_history": log})
    blocks = blocks_of(build_report(read_run(interrupted)), "losses")
    table = next(item for item in blocks if getattr(item, "caption", "").startswith("Forecasts"))
    assert table.rows == (
        ("1", "60", "120", "5.2300", "5.1000 to 5.3000", "0.10", "5.2219"),
        ("2", "180", "240", "5.1900", "5.1500 to 5.2500", "", ""),
    )


def test_unfinished_runs_and_cut_students_have_reports(interrupted, tmp_path):
    """An interrupted run claims nothing; a student that was only cut out says that it was."""
    report = build_report(read_run(interrupted))
    assert (report.outcome, report.good) == ("interrupted", None)
    assert report.verdict.startswith("The run was interrupted: whether its student of ")
    assert report.verdict.endswith("is not decided. It was last saved at step 190; the same command resumes it.")
    write_json(tmp_path / "cut" / "inheritune_config.json", encode(RunRecord(RECIPE, LINEAGE)))
    report = build_report(read_run(tmp_path / "cut"))
    assert (report.outcome, report.good) == ("not trained", None)
    assert report.verdict == "A student of 6 of 8 layers was inherited from some/reference and not trained."


def test_a_match_at_full_depth_is_no_reduction(tmp_path):
    """A run whose student became as deep as its reference is no success: nothing was made smaller."""
    whole = tuple(range(8))
    rounds = (ROUNDS[0], replace(ROUNDS[1], kept_layers=whole))
    record = RunRecord(RECIPE, replace(LINEAGE, kept_layers=whole), rounds, "matched", 5.1951)
    report = build_report(read_run(write_run(tmp_path / "run", **encode(record))))
    assert (report.outcome, report.good) == ("no reduction", None)
    assert report.verdict.startswith("Only the full depth of 8 layers matched its starting reference: no reduction.")
    table = next(block for block in blocks_of(report, "losses") if isinstance(block, Table))
    assert [row[-1] for row in table.rows] == ["no", "yes, no reduction"]


def test_a_model_of_other_layers_is_reported_as_it_is(tmp_path):
    """The model of an arm has a round of so many layers, and holds those that its lineage says, or random ones."""
    rounds = (replace(ROUNDS[1], index=1, kept_layers=(0, 1, 2, 3)),)
    for kept, words in (((4, 5, 6, 7), "round 1: 4 layers, 4:8 (0-based"), ((), "round 1: 0 layers,")):
        record = RunRecord(RECIPE, replace(LINEAGE, kept_layers=kept), rounds, "no_more_layers", 5.1951)
        report = build_report(read_run(write_run(tmp_path / str(len(kept)), **encode(record))))
        assert "up to 4 of 8 layers" in report.verdict
        chart = next(block for block in blocks_of(report, "layers") if isinstance(block, Chart))
        assert chart.description.startswith(words)


def test_a_match_that_the_test_set_does_not_confirm_is_said(tmp_path):
    """The outcome is the selection set's; what the test set said of it stands in the headline."""
    record = json.loads((write_run(tmp_path / "run") / "rounds.json").read_text())
    row = next(row for row in record["results"] if row["model"] == "student")
    row["match"]["matched"] = False
    report = build_report(read_run(write_run(tmp_path / "missed", **record)))
    assert (report.outcome, report.good) == ("not confirmed", None)
    assert report.verdict.startswith("A student of 6 of 8 layers matched its starting reference on the selection set, ")
    assert "but the test set does not confirm it." in report.verdict


def test_too_few_documents_are_undecided(tmp_path):
    """Where no round could be decided, neither a match nor a miss is claimed."""
    undecided = replace(ROUNDS[0], match=replace(ROUNDS[0].match, decided=False))
    record = RunRecord(RECIPE, replace(LINEAGE, kept_layers=(0, 1, 2, 3)), (undecided,), "no_more_layers", 5.1951)
    report = build_report(read_run(write_run(tmp_path / "run", **encode(record))))
    assert (report.outcome, report.good) == ("undecided", None)
    assert report.verdict.startswith(
        "Whether a student matches its starting reference, up to 4 of 8 layers, is undecided: the selection set has "
        "too few documents."
    )


def test_a_number_as_target_is_no_reference(tmp_path):
    """A run towards a number does not claim to have matched a reference."""
    report = build_report(read_run(write_run(tmp_path / "run", recipe={**RECIPE, "target": 5.2})))
    assert "matched the target loss" in report.verdict
    assert "Differences are from the loss to reach." in str(blocks_of(report, "test"))


def test_every_figure_is_a_records(run):
    """The tables hold the records' figures, rounded, and no others."""
    report = build_report(read_run(run))
    cells = {
        cell
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Table)
        for row in block.rows
        for cell in row
    }
    for figure in (
        "5.2219", "-0.0094", "-0.0213 to +0.0027", "1,730,560", "491,520", "+0.5803",  # rounds and test set
        "5.1425", "171.140", "21.13%", "+0.15%", "-0.07% to +0.36%", "7.3021", "-0.51% to +0.02%",  # corpora
        "0.2700 ± 0.0446", "+0.0200 ± 0.0345", "0.774", "48211.1000 ± 2210.5000", "51033.9000",  # tasks
        "6.9", "21.3", "3.56", "81.0%", "8.1 (7.3 to 10.1)", "118.9 (107.0 to 148.6)", "1.31 (1.18 to 1.64)",
        "62.1%", "19.7%", "1.14 (1.03 to 1.43)", "yes", "42,933", "ea33e9b29185b614", "2.13.0",
    ):  # fmt: skip
        assert figure in cells, figure
    assert FEW.note in cells


def test_the_first_screen_says_what_matters(run, tmp_path):
    """What was kept, beside what, size, loss, perplexity and speed stand below the verdict, and what is not known."""
    report = build_report(read_run(run))
    assert dict(report.facts) == {
        "layers kept": "6 of 8, layers 0:6",
        "compared with": "some/reference",
        "parameters": "1,730,560, 81.4% of the reference's",
        "loss, test set": "5.1425 against 5.1484 nats per token",
        "difference": "-0.0094 (-0.0213 to +0.0027)",
        "perplexity": "171.14 against 172.16",
        "generation": "1.27 × as fast (batch 1)",
        "training": "240 steps, 2.9e+12 FLOPs",
    }
    assert report.note.startswith("Not measured: generation and following instructions, arithmetic")
    write_json(tmp_path / "cut" / "inheritune_config.json", encode(RunRecord(RECIPE, LINEAGE)))
    report = build_report(read_run(tmp_path / "cut"))
    assert dict(report.facts) == {
        "layers kept": "6 of 8, layers 0:6",
        "compared with": "some/reference",
        "generation": "not measured",
    }
    assert report.note.startswith("Not measured: knowledge (multiple choice), reading and continuation, generation")


def test_the_adapted_reference_is_a_third_column(run):
    """Losses and tasks are shown for the three models, and the verdict names the third."""
    write_json(run / "evaluation.json", encode(beside_adapted(full_evaluation())))
    report = build_report(read_run(run))
    words, table, *_ = blocks_of(report, "evaluation")
    assert (
        "On test.jsonl it does not match the reference, trained further, within 0.01 nats per token: +0.2425"
        in words.text
    )
    assert table.headers[-3:] == ("adapted", "difference from it", "its interval")
    assert table.rows[0][1:4] == ("5.1425", "5.1484", "-0.0094")
    assert table.rows[0][5:7] == ("4.9000", "+0.2425")
    tasks = blocks_of(report, "tasks")[0]
    assert tasks.rows[0][1] == "5-shot"
    assert tasks.rows[0][4:] == (
        "0.2700 ± 0.0446", "0.2500 ± 0.0435", "+0.0200 ± 0.0345", "0.774", "0.3100 ± 0.0465", "+0.0200 ± 0.0345",
        "0.289",
    )  # fmt: skip
    assert dict(report.facts)["compared with"] == "some/reference, and it trained further"


def test_settings_are_folded(run):
    """What nobody reads is folded on the page; the figures, and the commands that give them again, are not."""
    write_json(run / "settings.json", {"reference": "some/reference", "train_files": ["a.txt"]})
    report = build_report(read_run(run))
    blocks = [block for section in report.sections for block in section.blocks if isinstance(block, Table | Texts)]
    folded = [block.caption if isinstance(block, Table) else block.texts[0][0] for block in blocks if block.folded]
    assert folded == ["Data settings", "Training settings", "Versions", "The recipe, as JSON"]


def texts_of(report, anchor):
    return dict(text for block in blocks_of(report, anchor) if isinstance(block, Texts) for text in block.texts)


def test_a_run_can_be_done_again(run):
    """The recipe names reference, commit and training arguments; the evaluation's commands are those given."""
    report = build_report(read_run(run))
    found = texts_of(report, "reproduce")
    recipe = json.loads(found["The recipe, as JSON"])
    assert (recipe["reference"], recipe["revision"], recipe["learning_rate"]) == ("some/reference", "0123abc", 0.002)
    assert "world_size" not in recipe
    words = [block.text for block in blocks_of(report, "reproduce") if isinstance(block, Paragraph)]
    assert words[0] == "Reference: some/reference at commit 0123abc, seed 42, 2 processes."
    assert "Its data settings were not kept" in words[1]
    assert found["Commands"].splitlines() == [
        "inheritune train --config recipe.json",
        "inheritune evaluate run --files test.jsonl --second-files other.txt",
        "inheritune report run",
    ]
    write_json(run / "settings.json", {"reference": "some/reference", "train_files": ["a.txt"], "eval_steps": 60})
    report = build_report(read_run(run))
    recipe = json.loads(texts_of(report, "reproduce")["The recipe, as JSON"])
    assert (recipe["train_files"], recipe["revision"]) == (["a.txt"], "0123abc")
    tables = {block.caption: block.rows for block in blocks_of(report, "data") if isinstance(block, Table)}
    assert tables["Data settings"] == (("train_files", "a.txt"),)
    assert ("learning_rate", "0.002") in tables["Training settings"]
    assert ("eval_steps", "60") in tables["Training settings"]
    write_json(run / "settings.json", {"eval_steps": 60})  # the embedded run names none
    words = [
        block.text for block in blocks_of(build_report(read_run(run)), "reproduce") if isinstance(block, Paragraph)
    ]
    assert words[0] == "Reference: the one that the package brings, seed 42, 2 processes."


def test_a_cut_can_be_done_again(tmp_path):
    """A student that was only cut out is cut by a command of its own."""
    write_json(tmp_path / "cut" / "inheritune_config.json", encode(RunRecord(RECIPE, LINEAGE)))
    found = texts_of(build_report(read_run(tmp_path / "cut")), "reproduce")
    assert found["Commands"].splitlines() == [
        "inheritune inherit some/reference --keep-layers half --revision 0123abc --output cut",
        "inheritune report cut",
    ]


def test_an_evaluation_of_another_student_is_left_out(run):
    """Figures of a student that is no longer there are not shown below the new one's verdict, and that is said."""
    (run / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    (run / "model.safetensors").write_text("other")
    report = build_report(read_run(run))
    assert blocks_of(report, "evaluation") == (
        Paragraph(
            "Left out: evaluation.json is of another student than the one in this folder; measure this one by: "
            "inheritune evaluate run"
        ),
    )
    assert {"tasks", "efficiency", "text"}.isdisjoint(section.anchor for section in report.sections)


def test_lazy_layers_are_shown_before_and_after(run):
    """The chart's words give every layer's rank; without an evaluation the run's own sentence is there."""
    report = build_report(read_run(run))
    charts = [block for block in blocks_of(report, "layers") if isinstance(block, Chart)]
    assert "Reference, from layer 0: 9.1, 12.3" in charts[1].description
    assert "Student, from layer 0: 9.3, 13.1, 8.0, 6.1, 4.4, none." in charts[1].description
    write_json(run / "evaluation.json", encode(full_evaluation(laziness=None)))
    assert not any("lazy" in str(block) for block in blocks_of(build_report(read_run(run)), "layers"))
    lazy = full_evaluation().laziness.comparison
    write_run(run, lazy_layers=encode(lazy))
    assert Paragraph(lazy.sentence) in blocks_of(build_report(read_run(run)), "layers")


def test_second_corpus_judges_again(run):
    """A match on the test set that does not hold elsewhere is told."""
    report = build_report(read_run(run))
    verdict = blocks_of(report, "evaluation")[0].text
    assert verdict == (
        "On test.jsonl the student matches its reference within 0.01 nats per token: -0.0094 (up to +0.0027). The "
        "match does not hold on other.txt: +0.0267 (up to +0.0404)."
    )
    first, second = full_evaluation().corpora
    assert "Neither does it match on" in full_evaluation(corpora=(second, second)).verdict()
    few = replace(second, match=replace(second.match, decided=False))
    assert full_evaluation(corpora=(few,)).verdict() == (
        "On other.txt the student may or may not match its reference within 0.01 nats per token (too few documents to "
        "decide): +0.0267 (up to +0.0404)."
    )
    assert "It matches on test.jsonl" in full_evaluation(corpora=(second, first)).verdict()
    assert "The match holds on test.jsonl" in full_evaluation(corpora=(first, first)).verdict()
    assert full_evaluation(corpora=()).verdict() == "No loss was measured."
    assert MISS.upper == 0.0404


def test_many_files_are_a_count_and_a_pattern():
    """The table of data settings names hundreds of files by how many they are, where they are and how they end."""
    settings = {
        "train_files": [f"text/{number}.txt" for number in range(168)],
        "test_files": ["a.txt"],
        "block_size": 8,
    }
    (table,) = _data(None, settings, {})
    assert dict(table.rows) == {"train_files": "168 files (text/*.txt)", "test_files": "a.txt", "block_size": "8"}
