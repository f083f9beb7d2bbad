"""
Record what small seeded runs come to, to the bit, and compare it with what they come to now.

    python -m tests.net record FILE [--only NAME ...]
    python -m tests.net compare FILE [--only NAME ...]
    python -m tests.net list

Everything goes through the package's public names, its command line and the files that it leaves, so that the code
below may move. A recording holds on the machine and with the library versions that made it. NAME may be the beginning
of several names (`continue`). What a file's keys are called is written in the `*_facts` functions alone.
"""

# ruff: noqa: E402 (the environment is set before libraries read it)
from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from pathlib import Path

_HOME = tempfile.TemporaryDirectory(prefix="net-")
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
if "fetch" not in sys.argv:  # that process has a Hub
    os.environ.update(HF_HOME=str(Path(_HOME.name) / "home"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import datasets
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
)

from inheritune_hf import (
    DataConfig,
    InheritedGPT2,
    InherituneConfig,
    InherituneTrainer,
    from_pretrained_inherited,
    load_data_splits,
)

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY, TOKENS = 64, 16
WORDS = [f"w{place}" for place in range(VOCABULARY - 1)]


# Material


def sequences(count, seed, lengths=(TOKENS,)):
    """Sequences that can be learned: each token is the one before plus a step that the sequence keeps."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        start, step = torch.randint(1, VOCABULARY, (2,), generator=draw).tolist()
        length = lengths[index % len(lengths)]
        rows.append([(start + step % 5 * place) % VOCABULARY for place in range(length)])
    return rows


def tokenizer():
    words = {"<end>": 0, **{word: place + 1 for place, word in enumerate(WORDS)}}
    core = Tokenizer(models.WordLevel(words, "<end>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", unk_token="<end>")


def gpt2(layers=4, **changes):
    shape = {"vocab_size": VOCABULARY, "n_positions": TOKENS, "n_embd": 16, "n_head": 2, "n_layer": layers}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, **changes))


def llama(layers=4, **changes):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            **changes,
        )
    )


def gemma3(layers=6):
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=TOKENS,
            sliding_window=8,
            sliding_window_pattern=3,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def write_reference(name, make, steps=150, **changes):
    """Train a model for some steps and save it with the tokenizer, once; returns its folder."""
    folder = Path(_HOME.name) / "references" / name
    if folder.is_dir():
        return str(folder)
    torch.manual_seed(0)
    model = make(**changes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        tokens = torch.tensor(sequences(16, seed=100 + step))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def write_texts(folder, count=120):
    """Documents of words in a row, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, row in enumerate(sequences(count, seed=3, lengths=(24, 31, 40))):
        (folder / f"{place:03d}.txt").write_text(" ".join(WORDS[token % len(WORDS)] for token in row))
    return str(folder / "*.txt")


def training_set(count=80):
    return datasets.Dataset.from_dict({"input_ids": sequences(count, seed=1)})


def selection_set(count=36):
    rows = sequences(count, seed=2, lengths=(TOKENS, 9, 5))
    return datasets.Dataset.from_dict({"input_ids": rows, "document": [index // 3 for index in range(count)]})


ARGUMENTS = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "lr_scheduler_type": "cosine",
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_steps": 3,
    "logging_steps": 2,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 7,
}
RECIPE = {
    "keep_layers": 1,
    "grow_by": 1,
    "steps_per_round": 8,
    "max_layers": 3,
    "target": 0.01,
    "tolerance": 0.0,
    "confidence": None,
}
TOWARDS_REFERENCE = {"target": "reference", "tolerance": 0.01, "confidence": 0.95, "max_layers": 2}


# Facts: the one place that knows how attributes and keys are called


def weights(tensors):
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + raw)
    return digest.hexdigest()


def optimizer_facts(checkpoint):
    """The moments in a checkpoint of Transformers."""
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    return weights({f"{place}.{name}": torch.as_tensor(v) for place, item in state.items() for name, v in item.items()})


def round_facts(item):
    match = item.match
    return {
        "layers": list(item.kept_layers),
        "steps": [item.start_step, item.end_step],
        "tokens": item.tokens,
        "flops": item.flops,
        "epochs": item.epochs,
        "loss": item.loss,
        "target": item.target,
        "matched": match.matched,
        "matched_paper": match.matched_paper,
        "difference": match.difference,
        "bounds": [match.lower, match.upper],
        "documents": match.documents,
    }


def trainer_facts(trainer):
    step = trainer.state.global_step
    told = ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss")
    # The log of the last checkpoint: the one in memory ends with figures of one process alone.
    checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{step}"
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    reference = trainer.reference_validation
    return {
        "outcome": trainer.outcome,
        "steps": step,
        "reference": None if reference is None else validation_facts(reference),
        "rounds": [round_facts(item) for item in trainer.rounds],
        "weights": weights(trainer.model.state_dict()),
        "optimizer": optimizer_facts(checkpoint),
        "log": [{name: row[name] for name in told if name in row} for row in log],
        "lineage": list(trainer.model.config.inheritune["kept_layers"]),
    }


def validation_facts(found):
    read = found.get if isinstance(found, dict) else lambda name: getattr(found, name)
    return {name: list(read(name)) for name in ("documents", "loss_sums", "tokens", "correct")}


def run_folder_facts(folder):
    """What a run of the command line leaves: rounds.json, and an ordinary checkpoint beside it."""
    records = json.loads((folder / "rounds.json").read_text())
    kept = ("kept_layers", "start_step", "end_step", "tokens", "flops", "epochs", "loss", "target")
    rounds = [{name: item[name] for name in kept} | {"matched": item["match"]["matched"]} for item in records["rounds"]]
    student = json.loads((folder / "inheritune_config.json").read_text())
    return {
        "outcome": records["outcome"],
        "rounds": rounds,
        "weights": weights(load_file(folder / "model.safetensors")),
        "lineage": student["lineage"]["kept_layers"],
        "recorded": [item["loss"] for item in student["rounds"]],
    }


def comparison_facts(folder):
    told = ("layers", "parameters", "steps", "tokens", "flops", "epochs", "outcome", "curve", "reference_loss")
    facts = {}
    for cell in json.loads((folder / "comparison.json").read_text())["cells"]:
        test = cell["test"]
        facts[cell["arm"]] = {
            **{name: cell[name] for name in told},
            "selection": validation_facts(cell["selection"]),
            "test": None if test is None else validation_facts(test),
            "weights": weights(load_file(folder / cell["folder"] / "model" / "model.safetensors")),
        }
    return facts


def analysis_facts(folder):
    with (folder / "collapse.csv").open() as file:
        table = list(csv.DictReader(file))
    advice = json.loads((folder / "recommendation.json").read_text())
    return {"table": table, **{name: advice[name] for name in ("layers", "depth", "basis", "by_measure", "by_depth")}}


def plan_facts(values):
    told = ("layers", "parameters", "tokens", "flops")
    return [{name: item[name] for name in told} for item in values["rounds"]]


# Programs


def train(folder, reference, recipe=None, args=None, train_data=None, callbacks=None, **settings):
    trainer = InherituneTrainer(
        reference,
        InherituneConfig(**{**RECIPE, **(recipe or {})}),
        TrainingArguments(str(folder), **{**ARGUMENTS, **(args or {})}),
        train_dataset=training_set() if train_data is None else train_data,
        eval_dataset=selection_set(),
        callbacks=callbacks,
        reference_cache=False,
        **settings,
    )
    trainer.train()
    return trainer


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def program(text):
    """A run in a process of its own: torchrun starts two of them, and one can be killed."""
    settings = json.loads(text)
    callbacks = [Kill(settings["kill_at"])] if "kill_at" in settings else []
    trainer = train(
        settings["folder"], settings["reference"], settings.get("recipe"), settings.get("args"), callbacks=callbacks
    )
    if trainer.args.process_index == 0:
        facts = {"world_size": trainer.args.world_size, **trainer_facts(trainer)}
        Path(settings["result"]).write_text(json.dumps(facts))


def start_program(folder, processes=1, killed=False, **settings):
    result = folder / "result.json"
    settings = {"folder": str(folder / "run"), "result": str(result), **settings}
    words = [sys.executable]
    if processes > 1:
        words += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*words, __file__, "program", json.dumps(settings)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    if killed:
        if done.returncode != -signal.SIGKILL:
            raise RuntimeError(f"not killed: {done.stderr[-2000:]}")
        return None
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(result.read_text())


def inheritune(*words, statuses=(0,)):
    """Run a verb of the command line in this process; returns what it printed."""
    from inheritune_hf.cli import main

    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        status = main([str(word) for word in words])
    if status not in statuses:
        raise RuntimeError(f"inheritune {words[0]} ended with {status}: {told.getvalue()[-2000:]}")
    return printed.getvalue()


# Cases


def reference():
    return write_reference("gpt2", gpt2)


def run_case(recipe=None, args=None, make=reference, **settings):
    def case(folder):
        return trainer_facts(train(folder / "run", make(), recipe, args, **settings))

    return case


def llama_case(folder):
    """Untied Llama from a loaded model, whose weights must not change; the target is confirmed at an evaluation."""
    model = AutoModelForCausalLM.from_pretrained(write_reference("llama", llama))
    before = weights(model.state_dict())
    recipe = {**TOWARDS_REFERENCE, "tolerance": 2.5, "match_at": "evaluation", "inherit": "paper"}
    facts = trainer_facts(train(folder / "run", model, recipe))
    return {**facts, "reference_unchanged": weights(model.state_dict()) == before}


def stream_case(folder):
    """A packed stream of text files, shuffled, with held-out selection documents; rounds continue in the data."""
    reads = DataConfig(
        train_files=[write_texts(folder / "texts")],
        selection_fraction=0.2,
        test_fraction=0.2,
        streaming=True,
        block_size=TOKENS,
        shuffle_documents=20,
        near_duplicates="ignore",
    )
    splits = load_data_splits(reads, tokenizer(), seed=5, cache_dir=folder / "cache")
    facts = {}
    for name, recipe in (("restart", {}), ("continue", {"growth": "continue", "data_order": "continue"})):
        trainer = train(folder / name, reference(), recipe, train_data=splits.train)
        facts[name] = trainer_facts(trainer)
    return facts


def data_case(folder):
    """Rows, labels and documents of the three sets from text files, with and without document boundaries."""
    texts = write_texts(folder / "texts")
    facts = {}
    for boundaries in (False, True):
        reads = DataConfig(
            train_files=[texts],
            selection_fraction=0.2,
            test_fraction=0.2,
            block_size=TOKENS,
            document_boundaries=boundaries,
            max_sequences_per_document=2,
            near_duplicates="report",
        )
        splits = load_data_splits(reads, tokenizer(), seed=5, cache_dir=folder / "cache")
        for name in ("train", "selection", "test"):
            rows = getattr(splits, name).with_format(None)
            text = json.dumps({column: rows[column][:] for column in sorted(rows.column_names)})
            facts[f"{name} {boundaries}"] = {"rows": len(rows), "hash": hashlib.sha256(text.encode()).hexdigest()}
    return facts


def processes_case(folder):
    facts = start_program(folder, processes=2, reference=reference(), recipe={"growth": "continue"})
    if facts["world_size"] != 2:
        raise RuntimeError(f"world_size is {facts['world_size']}, not 2")
    return facts


def killed_case(folder):
    """Killed in the first and in the second round; the bits are those of a whole run."""
    settings = {"reference": reference(), "recipe": {"growth": "continue", "optimizer_state": "keep", "max_layers": 2}}
    for kill_at in (5, 14):
        start_program(folder, killed=True, kill_at=kill_at, **settings)
    facts = start_program(folder, **settings)
    whole = trainer_facts(train(folder / "whole", settings["reference"], settings["recipe"]))
    facts["as_a_whole_run"] = {name: facts[name] for name in whole} == json.loads(json.dumps(whole))
    return facts


def text_settings(folder, **changes):
    values = {
        **{name: value for name, value in ARGUMENTS.items() if name != "disable_tqdm"},
        "reference": reference(),
        "train_files": [write_texts(folder / "texts")],
        "selection_fraction": 0.2,
        "test_fraction": 0.2,
        "block_size": TOKENS,
        "near_duplicates": "ignore",
        "document_boundaries": True,
        "keep_layers": 1,
        "grow_by": 1,
        "max_layers": 2,
        "steps_per_round": 4,
        "reference_cache": False,
        "output_dir": str(folder / "run"),
        **changes,
    }
    path = folder / "recipe.json"
    path.write_text(json.dumps(values))
    return path


def command_case(folder):
    inheritune("train", "--config", text_settings(folder), statuses=(0, 3))
    return run_folder_facts(folder / "run")


def comparison_case(folder):
    """The loop, arms of several stages and kinds, distillation, a measure, and the controls."""
    arms = ["inheritune", "stacking", "middle", "expansion", "loss", "inherited/kd", "half-width", "continued"]
    settings = text_settings(
        folder,
        output_dir=str(folder / "comparison"),
        arms=arms,
        seeds=[1],
        learning_rates=[1.0],
        controls=True,
        reference_steps=5,
        keep_layers=2,
        data_order="restart",  # as it was without a setting when the net was first recorded
    )
    inheritune("compare", "--config", settings)
    return comparison_facts(folder / "comparison")


FORMS = [5, "half", "first:5", "last:3", "ends:2+1", "every:3", "spaced:4", "0:2,5", [0, 2, 7], "params:40k", "8", "1"]
WRONG = [0, 9, "first:0", "third", [2, 0], [0, 8], "ends:8+8", "params:1", "spaced:9"]


def layers_case(folder):
    """The layers and weights that each form of keep_layers gives; of other architectures, what becomes of a config."""
    path = write_reference("gpt2-8", gpt2, steps=2, layers=8)
    facts = {}
    for form in FORMS:
        student = from_pretrained_inherited(path, InherituneConfig(keep_layers=form))
        facts[str(form)] = [student.config.inheritune["kept_layers"], weights(student.state_dict())]
    for form in WRONG:
        try:
            from_pretrained_inherited(path, InherituneConfig(keep_layers=form))
            facts[str(form)] = "no error"
        except ValueError:
            facts[str(form)] = "ValueError"
    for name, make in (("llama", llama), ("gemma3", gemma3)):
        path = write_reference(name, make)
        student = from_pretrained_inherited(path, InherituneConfig(keep_layers=[0, 3], inherit="released-code"), seed=3)
        config = student.config
        facts[name] = [config.num_hidden_layers, getattr(config, "layer_types", None), weights(student.state_dict())]
    return facts


def measured_case(folder):
    """Layers that measures choose, through the command line."""
    texts = write_texts(folder / "texts")
    files = sorted(str(path) for path in Path(texts).parent.iterdir())
    path = write_reference("gpt2-6", gpt2, layers=6)
    facts = {}
    for form in ("rank:3", "influence:3", "angular:3", "loss:3", "auto"):
        output = folder / form.replace(":", "-")
        inheritune("inherit", path, "--keep-layers", form, "--files", *files, "--output", output)
        config = json.loads((output / "config.json").read_text())
        facts[form] = config["inheritune"]["kept_layers"]
    return facts


def collapse_case(folder):
    texts = write_texts(folder / "texts")
    files = sorted(str(path) for path in Path(texts).parent.iterdir())
    path = write_reference("gpt2-6", gpt2, layers=6)
    output = folder / "analysis"
    inheritune("analyze", path, "--files", *files, "--sequences", 30, "--output", output, "--no-cache")
    return analysis_facts(output)


def plan_case(folder):
    """Rounds that a plan expects, of each growth, and the bytes that it says it would read."""
    path = write_reference("gpt2-8", gpt2, steps=2, layers=8)
    words = ["plan", path, "--steps-per-round", 10, "--batch-size", 2, "--json"]
    facts = {}
    for name, more in (
        ("paper", []),
        ("schedule", ["--schedule", "ends:1+1", "ends:2+2", "ends:3+3"]),
        ("capped", ["--max-layers", 5, "--max-steps", 15]),
    ):
        facts[name] = plan_facts(json.loads(inheritune(*words, *more)))
    doctor = json.loads(inheritune("doctor", path, "--keep-layers", "0:2,5", "--json"))
    facts["doctor"] = [doctor["kept_layers"], doctor["bytes_to_read"], doctor["parameters_after"]]
    return facts


def bytes_case(folder):
    """Bytes that a partial load requests of a Hub, from one file and from shards, and what it makes of them."""
    one = write_reference("gpt2-wide", gpt2, steps=0, layers=12, initializer_range=0.1)
    shards = folder / "shards"
    shutil.copytree(one, shards)
    (shards / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(one).save_pretrained(shards, max_shard_size="60KB")
    server = subprocess.Popen(
        [sys.executable, "-I", str(ROOT / "tests" / "hub_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        endpoint = server.stdout.readline().strip()

        def control(**values):
            request = urllib.request.Request(f"{endpoint}/_control", json.dumps(values).encode(), method="POST")
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        for name, path in (("one", one), ("shards", str(shards))):
            control(action="add", repository=f"me/{name}", folder=path)
        hidden = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "PYTHONPATH": str(ROOT),
        }
        facts = {}
        for name in ("one", "shards"):
            control(action="clear")
            done = subprocess.run(
                [sys.executable, __file__, "fetch", f"me/{name}"], env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            sent = sum(
                entry["bytes"]
                for entry in control(action="log")
                if entry["server"] == "storage" or ".safetensors" in entry["path"]
            )
            facts[name] = {"bytes": sent, "weights": done.stdout.split()[-1]}
        return facts
    finally:
        server.stdin.close()
        server.wait(20)


def fetch(repository):
    sys.stdout.write(weights(InheritedGPT2.from_pretrained(repository, keep_layers=3).state_dict()) + "\n")


CONTINUE = {"growth": "continue"}
CASES = {
    "reinherit": run_case({**TOWARDS_REFERENCE, "max_layers": 3}),
    "reinherit-matched": run_case({**TOWARDS_REFERENCE, "tolerance": 2.0, "keep_layers": 2}),
    "reinherit-budget": run_case({}, {"max_steps": 12, "gradient_accumulation_steps": 2}),
    "schedule": run_case({"keep_layers": "half", "schedule": ["ends:1+1", "0:2,3"], "max_layers": 3}),
    "continue-reference": run_case(CONTINUE),
    "continue-copy_last": run_case({**CONTINUE, "new_blocks": "copy_last"}),
    "continue-identity": run_case({**CONTINUE, "new_blocks": "identity"}),
    "continue-random": run_case({**CONTINUE, "new_blocks": "random"}),
    "optimizer-keep": run_case({**CONTINUE, "optimizer_state": "keep"}),
    "lr-continue": run_case({**CONTINUE, "lr_schedule": "continue"}, {"max_steps": 24}),
    "data-continue": run_case({"data_order": "continue"}),
    "llama": llama_case,
    "stream": stream_case,
    "data": data_case,
    "distillation-logits": run_case(
        {"max_layers": 2, "distillation": "cross_entropy=0.6,forward_kl=0.4", "distillation_temperature": 2}
    ),
    "distillation-others": run_case({"distillation": "reverse_kl=0.5,jsd=0.5", "max_layers": 2}),
    "distillation-states": run_case(
        {"max_layers": 2, "distillation": "cross_entropy=1,hidden_mse=0.5,hidden_cosine=0.5"}
    ),
    "distillation-top-k": run_case(
        {"max_layers": 2, "distillation": "cross_entropy=0.5,forward_kl=0.5", "distillation_top_k": 8}
    ),
    "loss-full": run_case({"loss": "full", "max_layers": 2}),
    "loss-chunked": run_case({"loss": "chunked", "max_layers": 2}),
    "loss-linear": run_case({"loss": "linear", "max_layers": 2}),
    "processes": processes_case,
    "killed": killed_case,
    "command": command_case,
    "comparison": comparison_case,
    "layers": layers_case,
    "measured": measured_case,
    "collapse": collapse_case,
    "plan": plan_case,
    "bytes": bytes_case,
}


# Recording and comparing


def facts_of(name):
    began = time.monotonic()
    folder = Path(_HOME.name) / "cases" / name
    folder.mkdir(parents=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            facts = json.loads(json.dumps(CASES[name](folder)))
    except Exception as error:  # noqa: BLE001 (the other cases still count)
        traceback.print_exc()
        facts = {"error": type(error).__name__}
    shutil.rmtree(folder, ignore_errors=True)
    sys.stderr.write(f"{name}: {time.monotonic() - began:.1f} s\n")
    return facts


def differences(there, here, place=""):
    """Yield each place at which two recordings differ, with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted({*there, *here}):
            yield from differences(there.get(name, "nothing"), here.get(name, "nothing"), f"{place}.{name}")
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (left, right) in enumerate(zip(there, here, strict=True)):
            yield from differences(left, right, f"{place}[{index}]")
    elif repr(there) != repr(here):  # so that nan equals nan, and 1 is not True
        yield f"{place.lstrip('.')}: {there!r} recorded, {here!r} now"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare", "list", "program", "fetch"))
    parser.add_argument("file", nargs="?")
    parser.add_argument("--only", nargs="+", default=[""], help="Names of cases, or their beginnings.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if options.action in ("program", "fetch"):
        (program if options.action == "program" else fetch)(options.file)
        return 0
    names = [name for name in CASES if name.startswith(tuple(options.only))]
    if options.action == "list":
        sys.stdout.write("\n".join(names) + "\n")
        return 0
    if options.file is None or not names:
        parser.error("give a FILE, and names that are in `list`")
    path = Path(options.file)
    recorded = json.loads(path.read_text()) if options.action == "compare" or path.is_file() else {}
    found = {name: facts_of(name) for name in names}
    failed = [name for name in names if "error" in found[name]]
    if options.action == "record":
        path.write_text(json.dumps({**recorded, **found}, indent=1) + "\n")
        return len(failed)
    for name in names:
        different = list(differences(recorded.get(name, "nothing"), found[name]))
        sys.stdout.write(f"{name}: {'equal' if not different else f'{len(different)} differences'}\n")
        for line in different[:8]:
            sys.stdout.write(f"    {line[:300]}\n")
        failed += [name] if different and name not in failed else []
    sys.stdout.write(f"{len(names) - len(failed)} of {len(names)} equal\n")
    return min(len(failed), 1)


if __name__ == "__main__":
    sys.exit(main())
