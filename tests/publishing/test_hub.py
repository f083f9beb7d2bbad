"""Standard checkpoints on disk and on the Hub."""

import json
import stat
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from recorded_runs import full_evaluation
from safetensors.torch import load_file, save_file
from tiny_reference import save_reference
from transformers import AutoModelForCausalLM, AutoTokenizer

from inheritune_hf import from_pretrained_inherited
from inheritune_hf.publishing import bundle, hub, publish_student, push_student, save_inherited, save_student
from inheritune_hf.records import Lineage, RunRecord, decode, write_record
from inheritune_hf.run_folder import EVALUATION_FILE
from inheritune_hf.students import open_reference


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "tiny"
    save_reference(folder, positions=64, width=8)
    (folder / "README.md").write_text("---\nlicense: gemma\nlanguage: en\n---\n# The reference\n")
    return str(folder)


@pytest.fixture
def saved(reference, tmp_path):
    """A student in a folder, with things beside it that are nobody's business."""
    save_inherited(reference, 2, tmp_path / "student")
    (tmp_path / "student" / "training_args.bin").write_bytes(b"pickle")
    (tmp_path / "student" / "notes.md").write_text("to myself")
    (tmp_path / "student" / "checkpoint-10").mkdir()
    return tmp_path / "student"


@pytest.fixture
def not_tried(monkeypatch):
    """Leave the trial in a fresh process out: other tests are about it, and it takes seconds."""
    monkeypatch.setattr(hub, "try_out", lambda _: None)


def publish(folder, repo_id, **options):
    """Publish in a client process; returns the publication, or the error's text."""
    try:
        return publish_student(folder, repo_id, **options)
    except (OSError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def publish_untried(folder, repo_id, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "try_out", lambda _: None)
        return publish(folder, repo_id, **options)


def push(folder, repo_id, token, **options):
    """Push a loaded student, as the trainer does."""
    student = AutoModelForCausalLM.from_pretrained(folder)
    record = bundle.read_record(Path(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "try_out", lambda _: None)
        return push_student(student, record, None, repo_id, token=token, **options)


def use(repo_id):
    """Load a published student as anybody does; returns some of what it is and says."""
    from transformers import pipeline

    model = AutoModelForCausalLM.from_pretrained(repo_id)
    said = pipeline("text-generation", model=repo_id)("Once upon", max_new_tokens=4, do_sample=False)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}, said[0]["generated_text"]


def hub_files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


@pytest.fixture
def student(reference):
    return from_pretrained_inherited(reference)


def record(student):
    return RunRecord({"keep_layers": "half"}, decode(Lineage, student.config.inheritune, "config"))


def test_saved_student_is_readable_by_others(student, tmp_path):
    """Weights have the permissions that new files get, and the record is beside them."""
    save_student(student, tmp_path / "a", record(student))
    (tmp_path / "plain").write_text("")
    mode = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "a" / "model.safetensors").stat().st_mode) == mode
    assert json.loads((tmp_path / "a" / "inheritune_config.json").read_text())["lineage"]["kept_layers"] == [0, 1]
    assert "# a" in (tmp_path / "a" / "README.md").read_text()


def test_save_inherited(reference, tmp_path):
    """A student is cut and saved in one call, with what was kept and dropped."""
    plan = save_inherited(reference, "first:3", tmp_path / "student")
    assert plan.kept_layers == (0, 1, 2)
    assert plan.dropped_layers == (3,)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert saved.num_parameters() == plan.parameters_after
    assert saved.config.n_layer == 3


def test_save_inherited_of_a_revision(reference, tmp_path):
    """Where the reference comes from is given with it; what is loaded already comes from nowhere else."""
    assert save_inherited(reference, 1, tmp_path / "student", token=False).kept_layers == (0,)
    with pytest.raises(ValueError, match="leave out revision"):
        save_inherited(open_reference(reference), 1, tmp_path / "other", revision="main")


def test_full_folder_is_refused(reference, tmp_path):
    """A folder with something in it is left as it is."""
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not an empty folder; choose another one"):
        save_inherited(reference, 2, tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.usefixtures("not_tried")
def test_a_dry_run_says_what_would_go_up(saved):
    """Without a push nothing leaves the machine, and every file is named with where it would stay or go."""
    before = hub_files(saved)
    found = publish_student(saved, "me/student")
    assert found.url is None
    assert set(found.files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "inheritune_config.json",
        "layers.png",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert found.left_out == {
        "checkpoint-10/": "folders are never published",
        "notes.md": "not part of a student",
        "training_args.bin": "pickled files are never published",
    }
    assert "The reference's licence is the Gemma terms of use" in found.notes[0]
    assert hub_files(saved) == before


def test_a_dry_run_shows_what_was_chosen_for_the_card(saved):
    """A licence and languages given for a publication win over those of the card in the folder, as in a push."""
    given = {"license": "mit", "language": ["de"]}
    (Path(saved) / "README.md").write_text("---\nlicense: gemma\nlanguage: en\n---\n# Mine\n")
    assert ModelCard(publish_student(saved, "me/student").card).data.license == "gemma"
    found = publish_student(saved, "me/student", **given)
    shown = ModelCard(found.card).data
    assert (shown.license, shown.language) == ("mit", ["de"])
    assert "The reference's licence is gemma; it applies to its weights in the student." in found.notes
    assert "The reference's licence is the Gemma terms of use" in " ".join(found.notes)
    assert "`gemma`, taken over" in publish_student(saved, "me/student", license="gemma").card


def test_a_published_student_is_anybodys(hub, on_hub, saved, reference):
    """It goes up over the real protocol and comes back by AutoModelForCausalLM and pipeline, bit for bit."""
    before = hub_files(saved)
    found = on_hub(publish, saved, "me/round-trip", push=True, token="hf_writer")
    assert found.url.startswith(f"{hub.endpoint}/me/round-trip/commit/")
    files = hub.files("me/round-trip")
    assert set(found.files) == set(files) - {".gitattributes"}
    assert all(len(content) == found.files[name] for name, content in files.items() if name in found.files)
    tensors, said = on_hub(use, "me/round-trip")
    expected = AutoModelForCausalLM.from_pretrained(saved).state_dict()
    assert all(torch.equal(torch.from_numpy(tensors[name]), tensor) for name, tensor in expected.items())
    assert said.startswith("Once upon")
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "gemma"
    assert card.data.language == ["en"]
    assert "# me/round-trip" in card.text
    assert "the Gemma terms of use" in card.text
    for name, content in files.items():
        for secret in (str(Path(reference).parent), str(saved), "hf_writer"):
            assert secret.encode() not in content, name
    lineage = json.loads(files["config.json"])["inheritune"]
    assert lineage["reference"] == "tiny"
    assert hub_files(saved) == before
    assert not any(entry["authorization"] for entry in hub.log if entry["server"] == "storage")


def test_a_loaded_student_goes_up(hub, on_hub, saved):
    """A student in memory is pushed to the owner of the token if no owner is named; again it is no new commit."""
    url = on_hub(push, saved, "no-owner", "hf_writer", revision="v2", private=True)
    assert "/me/no-owner/commit/" in url
    assert "# me/no-owner" in hub.files("me/no-owner", "v2")["README.md"].decode()
    assert set(hub.files("me/no-owner")) == {".gitattributes"}
    assert on_hub(push, saved, "no-owner", "hf_writer", revision="v2") == url


def test_a_push_that_fails_can_be_made_again(hub, on_hub, reference, tmp_path):
    """A push that breaks half way leaves the student and the repository whole; the next one goes on from there."""
    saved = tmp_path / "deeper"
    save_inherited(reference, "0,2,3", saved)  # no other test has put the picture of these layers on this Hub
    before = hub_files(saved)
    hub.break_by({"server": "hub", "path": "/commit/", "kind": "status", "status": 500, "times": 1})
    message = on_hub(publish_untried, saved, "me/half-way", push=True, token="hf_writer")
    assert message.startswith("OSError: The push to me/half-way failed: ")
    assert "The student on this machine is as it was; what was uploaded is not uploaded again. Push again." in message
    assert set(hub.files("me/half-way")) == {".gitattributes"}
    assert hub_files(saved) == before
    uploaded = [entry["path"] for entry in hub.log if entry["method"] == "PUT"]
    hub.clear()
    assert on_hub(publish_untried, saved, "me/half-way", push=True, token="hf_writer").url
    assert len(uploaded) == 2  # weights and picture
    assert not [entry for entry in hub.log if entry["method"] == "PUT"]
    assert set(hub.files("me/half-way")) > {"model.safetensors", "README.md"}


def test_a_card_that_could_not_be_read_is_not_replaced(hub, on_hub, saved, tmp_path):
    """If the Hub does not say what is on it, nothing is uploaded: there may be a card with an author's words."""
    folder = tmp_path / "before"
    folder.mkdir()
    (folder / "README.md").write_text("# Mine\n")
    hub.add("me/kept", folder)
    hub.break_by({"server": "hub", "path": "README.md", "kind": "status", "status": 503, "times": 100})
    message = on_hub(publish_untried, saved, "me/kept", push=True, token="hf_writer")
    hub.clear()
    assert message.startswith("OSError: The push to me/kept failed: ")
    assert hub.files("me/kept")["README.md"] == b"# Mine\n"


@pytest.mark.parametrize(("token", "words"), [("hf_reader", "403"), ("hf_wrong", "401"), (False, "401")])
def test_who_may_not_write_is_told(hub, on_hub, saved, token, words):
    """A token that may not write, or none, ends in an error that names the repository."""
    message = on_hub(publish_untried, saved, "me/denied", push=True, token=token)
    assert message.startswith("OSError: The push to me/denied failed: ")
    assert words in message


def test_a_card_on_the_hub_is_updated(hub, on_hub, saved, tmp_path):
    """What an author wrote on the Hub stays; files of an earlier student go, and others are left alone."""
    folder = tmp_path / "before"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\n# My title\n\nMy words.\n")
    (folder / "model-00001-of-00002.safetensors").write_text("stale")
    (folder / "plot.svg").write_text("mine")
    (folder / "chat_template.jinja").write_text("stale")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_text("mine")
    hub.add("me/authored", folder)
    assert on_hub(publish_untried, saved, "me/authored", push=True, token="hf_writer").url
    files = hub.files("me/authored")
    card = ModelCard(files["README.md"].decode())
    assert card.text.strip().startswith("# My title\n\nMy words.")
    assert "2 of the 4 layers of `tiny`" in card.text
    assert card.data.license == "mit"
    assert card.data.tags[0] == "mine"
    assert "inheritune" in card.data.tags
    assert "plot.svg" in files
    assert "adapter/adapter_model.safetensors" in files
    assert not {"model-00001-of-00002.safetensors", "chat_template.jinja"} & set(files)
    again = on_hub(publish_untried, saved, "me/authored", push=True, token="hf_writer")
    assert hub.files("me/authored")["README.md"] == files["README.md"]
    assert again.card.count("inheritune: begin") == 1


@pytest.mark.parametrize("kind", ["weights", "nan", pytest.param("class", marks=pytest.mark.slow)])
def test_what_does_not_work_is_not_published(saved, kind):
    """A student that does not load, run or generate where this package is not stops before anything goes up."""
    if kind == "weights":
        (saved / "model.safetensors").write_bytes(b"no weights")
        expected = "The student does not load in a fresh process, so nothing is published"
    elif kind == "nan":
        model = AutoModelForCausalLM.from_pretrained(saved)
        model.transformer.wte.weight.data[0] = float("nan")
        model.save_pretrained(saved)
        expected = "The student does not work in a fresh process, so nothing is published: not finite"
    else:
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
        expected = "does not work in a fresh process, so nothing is published: missing_keys"
    with pytest.raises(RuntimeError, match=expected):
        publish_student(saved, "me/student")


@pytest.mark.usefixtures("not_tried")
@pytest.mark.parametrize(
    ("file", "field", "value", "complaint"),
    [
        ("tokenizer_config.json", "vocab_file", "/home/somebody/vocab.json", "tokenizer_config.json holds a path"),
        ("generation_config.json", "origin", "C:\\\\Users\\\\x", "generation_config.json holds a path"),
        ("config.json", "note", "hf_" + "a1" * 12, "config.json holds a token"),
        ("config.json", "/home/somebody/my data", 1, "config.json holds a path: /home/somebody/my data"),
        ("config.json", "note", "read from /home/somebody/x.txt there", "config.json holds a path: /home/somebody/x"),
        ("config.json", "proxy", "http://me:secret@host/", "config.json holds an address with a password"),
        ("tokenizer.json", "note", "ghp_" + "a1" * 18, "tokenizer.json holds a token"),
    ],
    ids=["path", "windows", "token", "spaces in a key", "within", "password", "vocabulary"],
)
def test_private_things_stop_a_publication(saved, file, field, value, complaint):
    """A path of a machine, a token or a password in any file is named, and nothing is published."""
    values = json.loads((saved / file).read_text())
    value = value.replace("\\\\", "\\") if isinstance(value, str) else value
    (saved / file).write_text(json.dumps({**values, field: value}))
    with pytest.raises(ValueError, match=f"Nothing is published: {complaint}"):
        publish_student(saved, "me/student")


@pytest.mark.usefixtures("not_tried")
def test_metadata_of_weights_are_looked_through(saved):
    """A token in the header of the weights stops a publication."""
    tensors = load_file(saved / "model.safetensors")
    save_file(tensors, saved / "model.safetensors", {"format": "pt", "note": "hf_" + "a1" * 12})
    with pytest.raises(ValueError, match=r"Nothing is published: model\.safetensors holds a token"):
        publish_student(saved, "me/student")


@pytest.mark.usefixtures("not_tried")
def test_links_out_of_the_folder_stay_here(saved, tmp_path):
    """What a link leads to outside of the folder is not published, except for weights; links within it are."""
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    for name in ("merges.txt", "losses.png"):
        (saved / name).symlink_to(tmp_path / "id_rsa")
    (saved / "model.safetensors").rename(tmp_path / "weights")
    (saved / "model.safetensors").symlink_to(tmp_path / "weights")
    (saved / "chat_template.jinja").symlink_to("README.md")
    found = publish_student(saved, "me/student")
    assert found.left_out["merges.txt"] == found.left_out["losses.png"] == "is a link out of the folder"
    assert {"model.safetensors", "chat_template.jinja"} < set(found.files)
    (saved / "config.json").rename(tmp_path / "config.json")
    (saved / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json of .* stays behind: it is a link out of the folder"):
        publish_student(saved, "me/student")


@pytest.mark.usefixtures("not_tried")
def test_all_chat_templates_are_published(reference, tmp_path):
    """A student has every template of its reference; links among them, and other files beside them, stay here."""
    tokenizer = AutoTokenizer.from_pretrained(reference)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    AutoModelForCausalLM.from_pretrained(reference).save_pretrained(tmp_path / "reference")
    tokenizer.save_pretrained(tmp_path / "reference")
    saved = tmp_path / "student"
    save_inherited(str(tmp_path / "reference"), 2, saved)
    assert AutoTokenizer.from_pretrained(saved).chat_template == tokenizer.chat_template
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    templates = saved / "additional_chat_templates"
    (templates / "key.jinja").symlink_to(tmp_path / "id_rsa")
    (templates / "notes.md").write_text("to myself")
    found = publish_student(saved, "me/student")
    assert {"chat_template.jinja", "additional_chat_templates/tool_use.jinja"} < set(found.files)
    assert found.left_out["additional_chat_templates/key.jinja"] == "is a link out of the folder"
    assert found.left_out["additional_chat_templates/notes.md"] == "not part of a student"
    (templates / "tool_use.jinja").write_text("see /home/somebody/templates/tools.jinja")
    with pytest.raises(ValueError, match=r"tool_use\.jinja holds a path: /home/somebody"):
        publish_student(saved, "me/student")
    templates.rename(tmp_path / "elsewhere")
    templates.symlink_to(tmp_path / "elsewhere")
    assert not [name for name in publish_student(saved, "me/student").files if "additional" in name]


@pytest.mark.usefixtures("not_tried")
def test_an_evaluation_of_this_student_is_on_its_card(saved, monkeypatch):
    """The card shows `evaluation.json` if it is of these weights; another student's figures are left out."""
    path, words = saved / EVALUATION_FILE, "| arc_easy | 5-shot | acc | 100 |"
    cards = []
    for fingerprint in (open_reference(saved).fingerprint(), "of another"):
        write_record(path, full_evaluation(fingerprints={"student": fingerprint, "reference": "b"}))
        cards.append(publish_student(saved, "me/student").card.replace("\\", ""))
    assert [words in card for card in cards] == [True, False]
    assert "Not measured: generation and following instructions" in cards[0]
    assert "Not measured: knowledge (multiple choice)" in cards[1]


@pytest.mark.usefixtures("not_tried")
def test_code_that_is_not_needed_goes(saved, monkeypatch):
    """A model that Transformers knows is published without the code its repository brought along."""
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "code.Model"}}))
    staged = {}
    monkeypatch.setattr(hub, "try_out", lambda folder: staged.update(json.loads((folder / "config.json").read_text())))
    publish_student(saved, "me/student")
    assert "auto_map" not in staged
    assert staged["model_type"] == "gpt2"


@pytest.mark.usefixtures("not_tried")
def test_what_is_no_student_is_named(saved, tmp_path):
    """A folder without a record, with a damaged one, without weights or with code of its own is refused."""
    with pytest.raises(FileNotFoundError, match="There is no student in"):
        publish_student(tmp_path, "me/student")
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(
        json.dumps({**config, "model_type": "own", "auto_map": {"AutoModel": "code.Model"}})
    )
    with pytest.raises(ValueError, match="needs code of its own"):
        publish_student(saved, "me/student")
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "model.safetensors").rename(saved / "model.bin")
    with pytest.raises(ValueError, match="There are no weights as safetensors"):
        publish_student(saved, "me/student")
    (saved / "inheritune_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"lacks the field 'recipe'. Save the student again"):
        publish_student(saved, "me/student")


@pytest.mark.usefixtures("not_tried")
def test_a_users_name_is_noted(saved, monkeypatch):
    """If a card names the machine's user that is said, unless the repository is theirs."""
    monkeypatch.setattr(bundle.getpass, "getuser", lambda: "somebody")
    readme = saved / "README.md"
    readme.write_text(readme.read_text() + "\nTrained by somebody.\n")
    assert "README.md names this machine's user." in publish_student(saved, "me/student").notes
    assert "README.md names this machine's user." not in publish_student(saved, "somebody/student").notes

    def nobody():
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(bundle.getpass, "getuser", nobody)
    assert publish_student(saved, "me/student").files


def test_a_card_in_a_folder_is_updated(student, tmp_path):
    """Saving a student again keeps what was written into its card."""
    save_student(student, tmp_path / "a", record(student))
    card = tmp_path / "a" / "README.md"
    card.write_text(card.read_text() + "\nMy own remark.\n")
    save_student(student, tmp_path / "a", record(student), name="me/renamed")
    assert "My own remark." in card.read_text()
    assert "# me/renamed" in card.read_text()
    assert "# a\n" not in card.read_text()
