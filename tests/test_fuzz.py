"""Seeded random damage to everything that comes in: a command answers, or says in one line what is wrong."""

import io
import json
import logging
import random
import shutil
import signal
import sys
import traceback
import warnings
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from recorded_runs import write_comparison, write_run
from tiny_reference import save_reference

from inheritune_hf import experiments
from inheritune_hf.cli import main
from inheritune_hf.config import CompareConfig, DataConfig, InherituneConfig, RunConfig
from inheritune_hf.publishing import hub
from inheritune_hf.reporting import page
from inheritune_hf.training import checkpoints

#: Seconds that an answer may take.
PATIENCE = 30

#: What takes the place of a value.
VALUES = (
    *(None, True, False, 0, 1, -1, 3, 0.5, 1e308, 10**9, 10**30, -(2**63), float("nan"), float("inf")),
    *("", "x", "12", "none", "half", "first:99", "../../x", "a\0b", "\x1b[31m", "[/red]", "é" * 3000, "\ud800"),
    *([], {}, [None], [[]], ["x", 1], {"a": {"b": [1]}}, [0] * 2000),
)
DEEP = "[" * 50_000


class Late(BaseException):
    """There was no answer in time."""


# Damage


def damage_values(chance, values):
    """Return JSON values with one to three of them replaced, left out, added or wrapped."""
    values = json.loads(json.dumps(values))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = [(values, key) for key in values]
        for holder, key in places:
            inner = holder[key]
            if isinstance(inner, dict) or (isinstance(inner, list) and len(inner) < 50):
                places += [(inner, part) for part in (inner if isinstance(inner, dict) else range(len(inner)))]
        if not places:
            break
        holder, key = chance.choice(places)
        how = chance.choice(("replace", "replace", "replace", "drop", "add", "wrap", "text"))
        if how == "replace":
            holder[key] = chance.choice(VALUES)
        elif how == "drop":
            del holder[key]
        elif how == "wrap":
            holder[key] = chance.choice(([holder[key]], {"value": holder[key]}))
        elif how == "text":
            holder[key] = str(holder[key])
        elif isinstance(holder, dict):
            holder[chance.choice(("new", "", "format", "a\nb"))] = chance.choice(VALUES)
        else:
            holder.append(chance.choice(VALUES))
    return values


def damage_bytes(chance, content):
    """Return bytes that are cut off, changed, doubled, emptied, or nested without end."""
    how = chance.choice(("cut", "flip", "insert", "double", "empty", "deep"))
    place = chance.randrange(len(content) + 1)
    if how == "cut":
        return content[:place]
    if how == "flip":
        return content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]
    if how == "insert":
        return content[:place] + chance.randbytes(chance.randint(1, 9)) + content[place:]
    return {"double": content + content, "empty": b"", "deep": content[:place] + DEEP.encode()}[how]


def damage_file(chance, path):
    """Damage a file: its values if it is JSON, or its bytes."""
    if path.suffix == ".json" and chance.random() < 0.8:
        path.write_text(json.dumps(damage_values(chance, json.loads(path.read_text()))))
    else:
        path.write_bytes(damage_bytes(chance, path.read_bytes()))


# What is damaged, and the command that it is given to: each returns the command line, or does the work itself


def recipe(chance, made, folder):
    """A file of settings for `train`, `compare` or `plan`."""
    settings = {
        "reference": str(made / "reference"),
        "train_files": ["a.txt"],
        "keep_layers": 2,
        "schedule": [],
        "steps_per_round": 5,
        "target": 3.5,
        "confidence": None,
        "distillation": None,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "output_dir": str(folder / "out"),
        "report_to": "none",
        "use_cpu": True,
    }
    verb = chance.choice(("train", "compare", "plan"))
    kinds = (RunConfig, InherituneConfig, DataConfig, *((CompareConfig,) if verb == "compare" else ()))
    fields = [name for kind in kinds for name in kind.__dataclass_fields__]
    for name in chance.sample(fields, chance.choice((0, 1, 2))):
        settings[name] = chance.choice(VALUES)
    path = folder / chance.choice(("recipe.yaml", "recipe.json"))
    settings = damage_values(chance, settings)
    path.write_text(json.dumps(settings) if path.suffix == ".json" else yaml.safe_dump(settings))
    if chance.random() < 0.3:
        path.write_bytes(damage_bytes(chance, path.read_bytes()))
    return [verb, "--config", str(path)]


def command_line(chance, made, folder):
    """The words of a command."""
    reference = str(made / "reference")
    commands = {
        "train": ["--reference", reference, "--keep_layers", "2", "--target", "3", "--use_cpu", "--sources", "{}"],
        "compare": ["--reference", reference, "--arms", "random", "--seeds", "1", "--budget", "flops", "--use_cpu"],
        "plan": [reference, "--steps-per-round", "5", "--batch-size", "2", "--dtype", "bfloat16"],
        "doctor": [reference, "--keep-layers", "first:2", "--inherit", "paper", "--attention-scale", "keep"],
        "inherit": [reference, "--keep-layers", "2", "--seed", "3", "--dtype", "float32", "--output", "out"],
        "data": ["prepare", "--tokenizer", reference, "--output", "out", "--train_files", "a.txt", "--block_size", "9"],
        "report": [str(made / "run"), "--output", "out"],
        "verify": [str(made / "nothing"), "--reference", reference],
        "publish": [str(made / "nothing"), "--repo-id", "me/student", "--license", "mit"],
        "evaluate": [str(made / "nothing"), "--parts", "loss", "--confidence", "0.9", "--repeats", "3"],
        "analyze": [str(made / "nothing"), "--tau", "0.9", "--heads", "1:0"],
    }
    verb, words = chance.choice(list(commands.items()))
    texts = [value for value in map(str, VALUES) if "\ud800" not in value and len(value) < 2000]
    texts += [
        "--",
        "--config",
        "--keep-layers",
        "--output",
        "--json",
        "-1",
        "0:99999999999",
        "every:0",
        "ends:1+",
        DEEP[:5000],
    ]
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = chance.randrange(len(words))
        words[place : place + chance.choice((0, 1))] = [chance.choice(texts)]
    return [verb, *(str(folder / "out") if word == "out" else word for word in words)]


def damaged_copy(chance, made, folder, names):
    """Return a copy of the reference with one of its files damaged."""
    copy = folder / "reference"
    shutil.copytree(made / "reference", copy)
    damage_file(chance, copy / chance.choice(names))
    return str(copy)


def config(chance, made, folder):
    """The config.json of a reference."""
    copy = damaged_copy(chance, made, folder, ["config.json"])
    return ["doctor", copy] if chance.random() < 0.7 else ["inherit", copy, "--output", str(folder / "out")]


def weights(chance, made, folder):
    """The index of weights in several files, or the header of one of them."""
    copy = Path(damaged_copy(chance, made, folder, ["README.md"]))
    index, shard = copy / "model.safetensors.index.json", copy / "model-00001-of-00002.safetensors"
    if chance.random() < 0.4:
        damage_file(chance, index)
    else:
        content = shard.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.dumps(damage_values(chance, json.loads(content[8 : 8 + length]))).encode()
        if chance.random() < 0.3:
            header = damage_bytes(chance, header)
        length = chance.choice((len(header), len(header), len(header), 0, 10**9, 2**63))
        shard.write_bytes(length.to_bytes(8, "little") + header + content[8 + length :])
    return chance.choice((["doctor", str(copy)], ["inherit", str(copy), "--output", str(folder / "out")]))


def generation(chance, made, folder):
    """The generation config of a reference, which its student takes over."""
    copy = damaged_copy(chance, made, folder, ["generation_config.json"])
    return ["inherit", copy, "--output", str(folder / "out")]


def tokenizer(chance, made, folder):
    """The files of a tokenizer."""
    copy = damaged_copy(chance, made, folder, ["tokenizer.json", "tokenizer_config.json"])
    (folder / "a.txt").write_text("some words\n" * 30)
    words = ["data", "prepare", "--tokenizer", copy, "--output", str(folder / "out"), "--block_size", "8"]
    if chance.random() < 0.3:
        return [*words, "--train_files", str(folder / "a.txt"), "--near_duplicates", "ignore"]
    return ["inherit", copy, "--output", str(folder / "out")]


def run_files(chance, made, folder):
    """What a run or a comparison left in its folder."""
    kind = chance.choice(("run", "unfinished", "comparison", "student"))
    copy = folder / kind
    shutil.copytree(made / kind, copy)
    damage_file(chance, chance.choice([path for path in sorted(copy.rglob("*.json")) if path.name != "config.json"]))
    return ["report", str(copy), "--output", str(folder / "out")]


def published(chance, made, folder):
    """The files of a student that is published, and the card of its reference."""
    copy = folder / "student"
    shutil.copytree(made / "student", copy)
    names = ["config.json", "generation_config.json", "inheritune_config.json", "README.md", "tokenizer_config.json"]
    damage_file(chance, copy / chance.choice(names))
    return ["publish", str(copy), "--repo-id", "me/student"]


def seal(chance, made, folder):
    """The seal of a checkpoint: a damaged one is as good as none, but never an error."""
    checkpoint = folder / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "state").write_text("state")
    checkpoints.seal_checkpoint(checkpoint, checkpoints.Seal("run", 1, 4, 640, 1.5))
    damage_file(chance, checkpoint / "inheritune_state.json")
    checkpoints.last_checkpoint(folder, 1, "run")


KINDS = [recipe, command_line, config, weights, generation, tokenizer, run_files, published, seal]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A reference in two files of weights with its tokenizer, a student of it, a run and a comparison."""
    folder = tmp_path_factory.mktemp("made")
    save_reference(folder / "reference", positions=16, width=8, max_shard_size="12KB")
    (folder / "reference" / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n# The reference\n")
    hub.save_inherited(str(folder / "reference"), 2, folder / "student")
    write_run(folder / "run")
    write_comparison(folder / "comparison")
    (folder / "unfinished" / "_inheritune").mkdir(parents=True)
    identity = {"recipe.target": 3.0, "recipe.keep_layers": 2, "reference": "me/reference", "reference.layers": 4}
    state = {"format": 1, "identity": identity, "layers": [0, 1], "start_step": 0, "staged": True, "rounds": []}
    (folder / "unfinished" / "_inheritune" / "state.json").write_text(json.dumps(state))
    (folder / "unfinished" / "checkpoint-4").mkdir()
    log = {"global_step": 4, "log_history": [{"step": 2, "loss": 4.1}, {"step": 4, "eval_loss": 3.9}]}
    (folder / "unfinished" / "checkpoint-4" / "trainer_state.json").write_text(json.dumps(log))
    return folder


@contextmanager
def without_work(patch):
    """Leave out what takes long and is not what comes in: training, the trial of a student, and pictures."""
    conclusion = SimpleNamespace(good=True, sentence="yes")
    matched = {"outcome": "matched", "output_dir": Path("run"), "conclusion": conclusion}
    for name in ("run_recipe", "run_embedded"):
        patch.setattr(experiments, name, lambda *_, **__: SimpleNamespace(**matched))
    patch.setattr(experiments, "run_comparison", lambda *_, **__: SimpleNamespace(complete=True))
    patch.setattr(hub, "try_out", lambda _: None)
    patch.setattr(hub, "save_panels", lambda path, _: Path(path).touch())
    patch.setattr(page, "save_panels", lambda path, *_: Path(path).touch())
    patch.setattr(page, "render_svg", lambda *_: "")

    def late(*_):
        raise Late(f"no answer in {PATIENCE} s")

    patch.setattr(sys, "stdin", io.StringIO())
    before = signal.signal(signal.SIGALRM, late)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Transformers, about values that it does not know
            yield
    finally:
        logging.disable(logging.NOTSET)
        signal.signal(signal.SIGALRM, before)


def answer_to(kind, number, made, folder):
    """Return the exit status of one case, and what is wrong with its answer, if anything."""
    chance = random.Random(f"{kind.__name__} {number}")
    printed = io.StringIO()
    folder.mkdir()
    words, status = None, 0
    signal.alarm(PATIENCE)
    try:
        words = kind(chance, made, folder)
        (folder / "a" / "b").mkdir(parents=True)
        with chdir(folder / "a" / "b"), redirect_stdout(printed), redirect_stderr(printed):
            status = main(words) if words else 0
    except SystemExit as end:
        status = end.code
    except BaseException as error:  # noqa: BLE001 (what is not documented is what is looked for)
        return 1, f"{kind.__name__} {number}: {words}\n{''.join(traceback.format_exception(error)[-3:])}"
    finally:
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)
    said = printed.getvalue()
    if status not in (0, 1, 2) or (status and "error: " not in said and "usage: " not in said):
        return status, f"{kind.__name__} {number}: {words}\nstatus {status}: {said[-300:]}"
    return status, None


def check(kind, numbers, made, folder):
    with pytest.MonkeyPatch.context() as patch, without_work(patch):
        answers = [answer_to(kind, number, made, folder / str(number)) for number in numbers]
    complaints = [complaint for _, complaint in answers if complaint]
    assert not complaints, f"{len(complaints)} of {len(numbers)}:\n" + "\n".join(complaints[:8])
    taken = sum(status == 0 for status, _ in answers)
    assert taken, "all cases were refused: the damage is not what is refused"
    assert kind is seal or taken < len(answers), "no case was refused"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damage_is_answered_by_one_line(kind, made, tmp_path):
    """Of 300 damaged inputs each is taken, or refused by a documented error."""
    check(kind, range(34), made, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_much_damage_is_answered_by_one_line(kind, made, tmp_path):
    """Of 5,000 more each is taken, or refused by a documented error."""
    check(kind, range(1000, 1560), made, tmp_path)
