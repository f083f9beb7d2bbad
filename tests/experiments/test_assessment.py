"""A student beside its reference, as one record."""

import html
import json
import shlex
import shutil
from dataclasses import replace

import pytest
import torch
from documentation import build_workspace
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM

import inheritune_hf.experiments.assessment as assessment
from inheritune_hf.cli import main
from inheritune_hf.evaluation import StudentEvaluation, TaskSettings, read_corpus
from inheritune_hf.experiments import evaluate_student
from inheritune_hf.experiments.assessment import named_reference
from inheritune_hf.publishing import save_inherited
from inheritune_hf.records import RECORD_FILE, RecordError, RunRecord, encode, read_record, write_record
from inheritune_hf.run_folder import EVALUATION_FILE


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folders of a tiny reference with a byte tokenizer, of a student of it, and of a few texts."""
    folder = tmp_path_factory.mktemp("pair")
    build_workspace(folder)
    config = json.loads((folder / "gpt2-xl" / "config.json").read_text())
    assert config["n_layer"] == 48
    save_inherited(str(folder / "gpt2-xl"), "first:4", folder / "reference")
    # The reference is a model of its own here: it says nothing of where it comes from.
    config = json.loads((folder / "reference" / "config.json").read_text())
    del config["inheritune"]
    (folder / "reference" / "config.json").write_text(json.dumps(config))
    save_inherited(str(folder / "reference"), 2, folder / "student")
    return folder


def corpus_of(pair, pattern="*", block=64):
    tokenizer = AutoTokenizer.from_pretrained(pair / "reference")
    return read_corpus([str(pair / "text" / f"{pattern}.txt")], tokenizer, len(tokenizer), block), tokenizer


def test_everything_is_measured_and_kept(pair, tmp_path, monkeypatch):
    """Every part is there, survives its file, and is kept when another part is measured again."""
    # Two more processes would be started; the memory they measure has its own test.
    monkeypatch.setattr("inheritune_hf.evaluation.speed.peak_memory", lambda *words, **options: 1_000_000)
    corpus, tokenizer = corpus_of(pair, "0*")
    small = {"batch_sizes": (1,), "new_tokens": 2, "repeats": 1}
    output = tmp_path / EVALUATION_FILE
    found = evaluate_student(str(pair / "student"), None, [corpus], tokenizer, output=output, efficiency=small)
    assert found.reference == str(pair / "reference")
    assert found.layers == {"student": 2, "reference": 4}
    assert found.efficiency.student.layers == 2
    assert [draft.mode for draft in found.drafts] == ["greedy", "sampling"]
    assert found.drafts[0].equal
    assert (len(found.laziness.student), len(found.laziness.reference)) == (2, 4)
    assert len(found.samples) == 4
    assert found.samples[0].prompt.startswith("Text number 0.")
    assert read_record(StudentEvaluation, output) == found
    again = evaluate_student(
        str(pair / "student"), None, [corpus], tokenizer, parts=["loss"], output=output, tolerance=5.0
    )
    assert again.tolerance == 5.0
    assert (again.drafts, again.efficiency, again.samples) == (found.drafts, found.efficiency, found.samples)
    assert again.corpora[0].match.difference == found.corpora[0].match.difference


def test_a_verdict_that_is_kept_says_what_it_was_judged_by(pair, tmp_path):
    """Measuring another part changes neither a verdict nor the tolerance and confidence that it was judged by."""
    corpus, tokenizer = corpus_of(pair, "0*")
    words = (str(pair / "student"), None, [corpus], tokenizer)
    output = tmp_path / EVALUATION_FILE
    wide = evaluate_student(*words, parts=["loss"], output=output, tolerance=20.0, confidence=None)
    assert wide.corpora[0].match.matched
    kept = evaluate_student(*words, parts=["samples"], output=output)
    assert (kept.tolerance, kept.confidence, kept.corpora) == (20.0, None, wide.corpora)
    again = evaluate_student(*words, parts=["loss"], output=output)
    assert (again.tolerance, again.confidence) == (0.01, 0.95)


def test_the_tolerance_is_that_of_the_run(pair, tmp_path):
    """A student is judged as its run judged it, unless another tolerance is given."""
    student = shutil.copytree(pair / "student", tmp_path / "student")
    record = read_record(RunRecord, student / RECORD_FILE)
    write_record(student / RECORD_FILE, replace(record, recipe={**record.recipe, "tolerance": 0.3}))
    corpus, tokenizer = corpus_of(pair, "0*")
    found = evaluate_student(str(student), None, [corpus], tokenizer, parts=["loss"])
    assert found.tolerance == 0.3
    assert "within 0.3 nats per token" in found.verdict()


@pytest.fixture(scope="module")
def adapted(pair):
    """The reference with other weights, as training further leaves it."""
    model = AutoModelForCausalLM.from_pretrained(pair / "reference")
    for parameter in model.parameters():
        parameter.data.mul_(0.9)
    model.save_pretrained(pair / "adapted")
    return str(pair / "adapted")


def test_the_adapted_reference_is_measured_too(pair, adapted, tmp_path):
    """Losses and tasks of three models, each paired with the student's; other parts leave them as they were."""
    pytest.importorskip("lm_eval")
    corpus, tokenizer = corpus_of(pair, "0*")
    rows = [{"query": f"What is {n}?", "choices": [f"{n}", "no"], "gold": n % 2} for n in range(4)]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output, student = tmp_path / EVALUATION_FILE, str(pair / "student")
    task = {"tasks": [str(tmp_path / "choices.jsonl")], "task_settings": TaskSettings(num_fewshot=0)}
    words = (student, None, [corpus], tokenizer)
    found = evaluate_student(*words, parts=["loss", "tasks"], output=output, adapted=adapted, **task)
    other = evaluate_student(student, adapted, [corpus], tokenizer, parts=["loss", "tasks"], **task)
    assert (found.adapted_corpora, found.adapted_tasks) == (other.corpora, other.tasks)
    assert found.corpora[0].student == found.adapted_corpora[0].student
    assert found.corpora[0].reference != found.adapted_corpora[0].reference
    assert (found.adapted, found.layers["adapted"]) == (adapted, 4)
    assert found.verdict().count("trained further") == 1
    assert read_record(StudentEvaluation, output) == found
    kept = evaluate_student(*words, parts=["samples"], output=output)
    assert (kept.adapted_corpora, kept.adapted_tasks) == (found.adapted_corpora, found.adapted_tasks)
    again = evaluate_student(*words, parts=["loss"], output=output)
    assert (again.adapted_corpora, again.adapted_tasks) == ((), found.adapted_tasks)
    changed = {**json.loads(output.read_text()), "adapted_tasks": encode(found.adapted_tasks[:1])}
    output.write_text(json.dumps(changed))
    with pytest.raises(RecordError, match="adapted_tasks must be as many as tasks, 2, got 1"):
        read_record(StudentEvaluation, output)
    with pytest.raises(ValueError, match="has the reference's own weights: name the one that it started from"):
        evaluate_student(*words, parts=["loss"], adapted=str(pair / "reference"))
    with pytest.raises(ValueError, match=r"trained further, of 4 layers, and .*student has 2: make one by"):
        evaluate_student(*words, parts=["loss"], adapted=student)


def test_a_loss_that_was_measured_is_not_measured_again(pair, tmp_path, monkeypatch):
    """The reference is measured once for all its students; other weights, text or precision are measured again."""
    measured = []
    validate = assessment.validate

    def counted(model, corpus, *rest):
        measured.append(model.config.num_hidden_layers)
        return validate(model, corpus, *rest)

    monkeypatch.setattr(assessment, "validate", counted)
    corpus, tokenizer = corpus_of(pair, "0*")
    other, _ = corpus_of(pair, "1*")
    save_inherited(str(pair / "reference"), "last:2", tmp_path / "second")

    def evaluate(student, on=corpus, **more):
        measured.clear()
        given = {"parts": ["loss"], "cache_dir": tmp_path / "cache", **more}
        return evaluate_student(str(student), None, [on], tokenizer, **given).corpora[0], list(measured)

    first, depths = evaluate(pair / "student")
    assert depths == [2, 4]
    assert evaluate(pair / "student") == (first, [])
    second, depths = evaluate(tmp_path / "second")
    assert depths == [2]
    assert second.reference == first.reference
    assert second.student != first.student
    assert evaluate(pair / "student", other)[1] == [2, 4]
    assert evaluate(pair / "student", dtype="bfloat16")[1] == [2, 4]
    assert evaluate(pair / "student", cache_dir=None) == (first, [2, 4])


def test_the_command_asks_as_it_is_told(pair, adapted, capsys, monkeypatch):
    """Examples, length of answers and a third model are options; the tables say how tasks were asked."""
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(pair)
    rows = [{"question": f"What is {n} and {n}?", "answer": 2 * n} for n in range(4)]
    (pair / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", "student", "--files", "text/0*.txt", "--parts", "loss", "--adapted", "adapted"]
    words += ["--task-files", "sums.jsonl", "--num-fewshot", "2", "--max-gen-toks", "4", "--output", "tasks.json"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    asked = {item.asked for item in read_record(StudentEvaluation, pair / "tasks.json").tasks}
    assert asked == {"2-shot, at most 4 new tokens, prompts cut: 4"}
    # Cells may be folded, whatever the width.
    assert all(word in printed for word in ("2-shot", "exact_match", "from it"))
    assert "Not measured: knowledge (multiple choice), reading and continuation, generation" in " ".join(
        printed.split()
    )
    found = json.loads((pair / "tasks.json").read_text())
    assert [(item["metric"], item["filter"]) for item in found["adapted_tasks"]] == [
        ("exact_match", "strict-match"),
        ("exact_match", "flexible-extract"),
    ]
    assert main([*words, "--apply-chat-template"]) == 1
    assert "apply_chat_template needs a tokenizer with a chat template" in capsys.readouterr().err


def test_means_are_compared_when_confidence_is_none(pair, capsys, monkeypatch):
    """The command says it as a recipe does: none compares means; no confidence is refused; many files are a count."""
    monkeypatch.chdir(pair)
    files = [f"text/{path.name}" for path in sorted((pair / "text").glob("0*.txt"))]
    words = ["evaluate", "student", "--files", *files, "--parts", "loss", "--output", "means.json"]
    assert main([*words, "--confidence", "none"]) == 0
    found = json.loads((pair / "means.json").read_text())
    assert found["confidence"] is None
    assert found["corpora"][0]["corpus"] == f"{len(files)} files (text/*.txt)"
    for wrong in ("0", "1", "high"):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--confidence", wrong])
        assert ended.value.code == 2
        assert "must be in [0.5, 1), or none to compare means" in capsys.readouterr().err


def test_full_depth_student_is_its_reference(pair, tmp_path):
    """A student of full depth has exactly its reference's figures, on the corpus it is judged on again too."""
    save_inherited(str(pair / "reference"), 4, tmp_path / "whole")
    corpus, tokenizer = corpus_of(pair)
    found = evaluate_student(str(tmp_path / "whole"), None, [corpus, corpus], tokenizer, parts=["loss", "layers"])
    for item in found.corpora:
        assert item.student == item.reference
        assert (item.match.matched, item.match.difference, item.match.upper) == (True, 0, 0)
    assert found.laziness.student == found.laziness.reference
    assert "The match holds on" in found.verdict()


def test_models_that_keep_a_state_do_not_draft(pair, tmp_path):
    """Transformers has no drafting for them: that part is left out, and the others are measured."""
    torch.manual_seed(0)
    corpus, tokenizer = corpus_of(pair, "0*")
    last = tokenizer.eos_token_id
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8, "state_size": 2, "num_hidden_layers": 2}
    MambaForCausalLM(MambaConfig(**sizes, bos_token_id=last, eos_token_id=last, pad_token_id=last)).save_pretrained(
        tmp_path / "reference"
    )
    save_inherited(str(tmp_path / "reference"), 1, tmp_path / "student")
    found = evaluate_student(str(tmp_path / "student"), None, [corpus], tokenizer, parts=["loss", "draft"])
    assert found.drafts == ()
    assert found.corpora


def test_a_further_corpus_may_leave_it_open(pair, tmp_path):
    """One document decides nothing, which is another answer than no."""
    save_inherited(str(pair / "reference"), 4, tmp_path / "whole")
    (tmp_path / "one.txt").write_text("Text number 0. " * 40)
    corpus, tokenizer = corpus_of(pair)
    one = read_corpus([str(tmp_path / "one.txt")], tokenizer, len(tokenizer), 64)
    student, reference = str(tmp_path / "whole"), str(pair / "reference")
    found = evaluate_student(student, reference, [corpus, one], tokenizer, parts=["loss"], tolerance=0.0)
    first, other = found.corpora
    assert not other.match.decided
    for matched in (True, False):
        judged = replace(first, match=replace(first.match, matched=matched))
        open_one = replace(other, match=replace(other.match, matched=False))
        verdict = replace(found, corpora=(judged, open_one)).verdict()
        assert "There are too few documents to decide whether it matches on" in verdict
        assert "Neither" not in verdict


def test_what_cannot_be_measured_is_refused(pair, monkeypatch):
    """Unknown parts, no corpus, a student without lineage and missing lm-eval are said before anything is loaded."""
    corpus, tokenizer = corpus_of(pair, "0*")
    monkeypatch.setattr(assessment, "_load", None)
    student = str(pair / "student")
    with pytest.raises(ValueError, match="parts must be of loss, efficiency"):
        evaluate_student(student, None, [corpus], tokenizer, parts=["speed"])
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        evaluate_student(student, None, [], tokenizer)
    with pytest.raises(ValueError, match="does not name its reference"):
        named_reference(str(pair / "reference"), None, {})
    monkeypatch.setattr("inheritune_hf.evaluation.tasks.metadata.version", _missing)
    with pytest.raises(ImportError, match=r"inheritune-hf\[eval\]"):
        evaluate_student(student, None, [corpus], tokenizer, tasks=["piqa"])


def _missing(name):
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


def test_reference_is_taken_at_its_commit(pair, tmp_path):
    """The commit in the lineage is used unless another revision is asked for."""
    config = AutoConfig.from_pretrained(pair / "student")
    config.inheritune = {**config.inheritune, "reference": "some/model", "revision": "abc"}
    config.save_pretrained(tmp_path)
    assert named_reference(str(tmp_path), None, {}) == ("some/model", {"revision": "abc"})
    assert named_reference(str(tmp_path), None, {"revision": "main"}) == ("some/model", {"revision": "main"})
    assert named_reference(str(tmp_path), "other", {}) == ("other", {})


def test_command_evaluates_and_reports(pair, capsys, monkeypatch):
    """`inheritune evaluate` prints tables and a verdict, judges again on a second corpus, and fills the report."""
    monkeypatch.chdir(pair)
    words = ["evaluate", "student", "--files", "text/*.txt", "--second-files", "text/0*.txt", "--parts", "loss"]
    assert main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "On text/*.txt the student" in printed
    assert "saved in student/evaluation.json" in printed
    assert main(["report", "student"]) == 0
    page = (pair / "student" / "report.html").read_text()
    figures = json.loads((pair / "student" / "evaluation.json").read_text())["corpora"]
    assert [item["documents"] for item in figures] == [40, 10]
    assert f"inheritune {shlex.join(words)}" in html.unescape(page)
    for item in figures:
        assert f"{item['student']['loss']:.4f}" in page
    assert main(["evaluate", "student", "--files", "none/*.txt"]) == 1
    assert "inheritune evaluate: error:" in capsys.readouterr().err
    assert main(["evaluate", "student", "--files", "text/*.txt", "--config", "x.yaml"]) == 1
    assert "--config or --files, not both" in capsys.readouterr().err


def test_runs_own_test_set_is_recognised(pair, caplog, tmp_path):
    """With a run's recipe, of a machine with other hardware, its test set is made again, and the evaluation says so."""
    from inheritune_hf import DataConfig, load_data_splits

    recipe = {"reference": str(pair / "reference"), "train_files": [str(pair / "text" / "*.txt")], "tf32": True}
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe, "output_dir": str(tmp_path / "out"), "block_size": 32}))
    tokenizer = AutoTokenizer.from_pretrained(pair / "reference")
    splits = load_data_splits(DataConfig(train_files=recipe["train_files"]), tokenizer, block_size=32, seed=42)
    save_inherited(str(pair / "reference"), 2, tmp_path / "student")
    facts = {"data": encode(splits.facts)}
    (tmp_path / "student" / "rounds.json").write_text(json.dumps(facts))
    words = ["evaluate", str(tmp_path / "student"), "--config", str(tmp_path / "recipe.json"), "--parts", "loss"]
    assert main(words) == 0
    found = json.loads((tmp_path / "student" / EVALUATION_FILE).read_text())
    assert found["own_test_set"] is True
    assert found["corpora"][0]["fingerprint"] == splits.facts.test.fingerprint
    (tmp_path / "student").rename(tmp_path / "renamed")
    words[1] = str(tmp_path / "renamed")
    assert main(words) == 0
    assert json.loads((tmp_path / "renamed" / EVALUATION_FILE).read_text())["own_test_set"] is True
    (tmp_path / "renamed" / "rounds.json").write_text('{"data": [1]}')
    assert main(words) == 0
    assert json.loads((tmp_path / "renamed" / EVALUATION_FILE).read_text())["own_test_set"] is False
    assert "renamed/rounds.json: data" in caplog.text


def test_a_run_on_prepared_data_is_evaluated_on_them(pair, tmp_path):
    """The test set of prepared data has the block size that they were prepared with."""
    text, prepared = str(pair / "text" / "*.txt"), str(tmp_path / "prepared")
    cut = ["--block-size", "16", "--selection-fraction", "0.3", "--test-fraction", "0.3"]
    words = ["data", "prepare", "--tokenizer", str(pair / "reference"), "--output", prepared, "--train-files", text]
    assert main([*words, *cut]) == 0
    recipe = {"reference": str(pair / "reference"), "dataset_name": prepared, "output_dir": str(tmp_path / "out")}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    student = str(tmp_path / "student")
    save_inherited(str(pair / "reference"), 2, student)
    assert main(["evaluate", student, "--config", str(tmp_path / "recipe.json"), "--parts", "loss"]) == 0


def test_the_test_set_of_a_recipe_is_measured(pair, monkeypatch):
    """With `--config` the test set of a run is measured, by so many sequences of each document as are asked for."""
    monkeypatch.chdir(pair)
    (pair / "run.yaml").write_text("reference: reference\ntrain_files: [text/*.txt]\nblock_size: 8\noutput_dir: out\n")
    words = ["evaluate", "student", "--config", "run.yaml", "--block-size", "8", "--parts", "loss", "--output"]
    assert main([*words, "whole.json"]) == 0
    assert main([*words, "one.json", "--max-sequences", "1"]) == 0
    whole, one = (read_record(StudentEvaluation, pair / f"{name}.json").corpora[0] for name in ("whole", "one"))
    assert whole.documents == one.documents > 0
    assert whole.tokens > one.tokens == 7 * one.documents
