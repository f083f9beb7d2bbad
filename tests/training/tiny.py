"""A run small enough to be repeated many times; also a program, so that it can be killed or run in two processes."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import killing
import sharding
import torch
from datasets import Dataset, IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from inheritune_hf import InheritedGPT2, InherituneConfig, InherituneTrainer
from inheritune_hf.data import CausalCollator
from inheritune_hf.data.sources import Layout
from inheritune_hf.data.stream import Exclusion, PackedStream, StreamSource
from inheritune_hf.data.tokenization import Encoder
from inheritune_hf.training import trainer as loop

VOCABULARY = 64
TOKENS = 16


def reference_model(layers=4, dropout=0.1, seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=TOKENS,
        n_embd=16,
        n_layer=layers,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def write_reference(folder, steps=0, **changes):
    model = reference_model(**changes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        tokens = torch.tensor(sequences(16, seed=100 + step))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return str(folder)


def sequences(count, seed, lengths=(TOKENS,)):
    """Sequences that can be learned: each token is the one before plus a step that the sequence keeps."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        start, step = torch.randint(1, VOCABULARY, (2,), generator=draw).tolist()
        length = lengths[index % len(lengths)]
        rows.append([(start + step % 5 * place) % VOCABULARY for place in range(length)])
    return rows


def train_set(count=80):
    return Dataset.from_dict({"input_ids": sequences(count, seed=1)})


def selection_set(count=36, lengths=(TOKENS, 9, 5)):
    rows = sequences(count, seed=2, lengths=lengths)
    return Dataset.from_dict({"input_ids": rows, "document": [index // 3 for index in range(count)]})


def arguments(output_dir, **changes):
    settings = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "steps",
        "eval_steps": 5,
        "save_steps": 3,
        "logging_steps": 2,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
    }
    return TrainingArguments(str(output_dir), **{**settings, **changes})


def stream_rows(shards):
    for first, count in shards:
        for number in range(first, first + count):
            # Each document is told by its first token, and has its own length.
            yield {"input_ids": [number % (VOCABULARY - 1) + 1] * (3 + number % 11), "labels": None, "damage": None}


def stream(shards, shuffle=0):
    """A stream of rows of tokens; each shard is the number of its first document, and how many there are."""
    tokenizer = SimpleNamespace(eos_token_id=0, eos_token="<end>", unk_token_id=None)
    rows = IterableDataset.from_generator(stream_rows, gen_kwargs={"shards": [tuple(shard) for shard in shards]})
    source = StreamSource(rows, Encoder(tokenizer, Layout(rows="tokens")))
    return PackedStream([source], TOKENS, fingerprint=str(shards), shuffle_documents=shuffle)


def make_trainer(
    output_dir,
    reference,
    recipe=None,
    callbacks=None,
    train=None,
    reference_kwargs=None,
    reference_cache=False,
    baseline=None,
    **changes,
):
    settings = {"keep_layers": 1, "grow_by": 1, "steps_per_round": 10, "target": 0.01, "max_layers": 3}
    return InherituneTrainer(
        reference,
        InherituneConfig(**{**settings, **(recipe or {})}),
        arguments(output_dir, **changes),
        train_dataset=train_set() if train is None else train,
        eval_dataset=selection_set(),
        callbacks=callbacks,
        reference_kwargs=reference_kwargs,
        reference_cache=reference_cache,
        baseline=baseline,
    )


def plain_trainer(output_dir, reference, layers, steps, **changes):
    """Transformers' own trainer, on a student of so many layers, for so many steps."""
    return Trainer(
        model=InheritedGPT2.from_pretrained(reference, keep_layers=layers),
        args=arguments(output_dir, max_steps=steps, **{"dataloader_pin_memory": False, **changes}),
        train_dataset=train_set(),
        data_collator=CausalCollator(0),
    )


def weights_hash(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def saved_log(trainer):
    """The log of the last checkpoint; the one in memory ends with figures of this process alone."""
    path = trainer.output_dir / f"checkpoint-{trainer.state.global_step}" / "trainer_state.json"
    return json.loads(path.read_text())["log_history"]


def optimizer_hash(trainer):
    """The moments in the last checkpoint, or those of each process."""
    checkpoint = trainer.output_dir / f"checkpoint-{trainer.state.global_step}"
    if trainer.is_deepspeed_enabled:
        return engine_hash(checkpoint)
    file = "optimizer.bin" if trainer.is_fsdp_enabled else "optimizer.pt"
    state = torch.load(checkpoint / file, weights_only=True)["state"]
    digest = hashlib.sha256()
    for place in sorted(state):
        for name, value in sorted(state[place].items()):
            digest.update(f"{place} {name}".encode() + torch.as_tensor(value).contiguous().numpy().tobytes())
    return digest.hexdigest()


def engine_hash(checkpoint):
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for name in sorted(value, key=str):
                digest.update(str(name).encode())
                add(value[name])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)

    for file in sorted(checkpoint.glob("global_step*/*optim_states.pt")):
        add(torch.load(file, weights_only=False)["optimizer_state_dict"])
    return digest.hexdigest()


def without_times(history):
    timed = ("runtime", "per_second", "preparation_time")
    return [{key: value for key, value in row.items() if not any(word in key for word in timed)} for row in history]


class Kill(TrainerCallback):
    """Kill this process, as a machine that fails would, at the end of a step."""

    def __init__(self, step, number=signal.SIGKILL):
        self.step, self.number = step, number

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


class FullDisk(TrainerCallback):
    """From a step on, or from the beginning, let no file grow beyond a few kilobytes, as a full disk would."""

    def __init__(self, step):
        self.step = step
        if step == 0:
            self.fill()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.fill()

    def fill(self):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class Seen(TrainerCallback):
    """Write down the batches that each process trains on, as they come."""

    def watch(self, trainer, folder):
        whole, path = trainer.training_step, folder and Path(folder) / f"{trainer.args.process_index}.jsonl"

        def training_step(model, inputs, *others):
            if path:
                with path.open("a") as file:
                    file.write(json.dumps([trainer.state.global_step, inputs["input_ids"].tolist()]) + "\n")
            return whole(model, inputs, *others)

        trainer.training_step = training_step


def main(settings):
    torch.set_num_threads(1)
    if "plain_steps" in settings:
        plain = plain_trainer(
            settings["output_dir"],
            settings["reference"],
            settings["recipe"]["keep_layers"],
            settings["plain_steps"],
            **settings["args"],
        )
        plain.train()
        if plain.args.process_index == 0:
            result = {
                "world_size": plain.args.world_size,
                "weights": weights_hash(plain.accelerator.unwrap_model(plain.model)),
            }
            Path(settings["result"]).write_text(json.dumps(result))
        return
    callbacks: list[TrainerCallback] = []
    if "kill_at" in settings:
        callbacks.append(Kill(settings["kill_at"], settings.get("signal", signal.SIGKILL)))
    if "full_disk_at" in settings:
        callbacks.append(FullDisk(settings["full_disk_at"]))
    if "fsdp" in settings.get("args", {}):
        sharding.shard_on_processors()
    if "deepspeed" in settings.get("args", {}):
        sharding.communicate_by_gloo()
    shards = sharding.Shards()
    train = stream(settings["shards"], settings.get("shuffle", 0)) if "shards" in settings else None
    if "held_out" in settings:
        train.exclusion = Exclusion(share=settings["held_out"])
    seen = Seen()
    trainer = make_trainer(
        settings["output_dir"],
        settings["reference"],
        settings.get("recipe"),
        [*callbacks, seen, shards],
        train,
        reference_cache=settings.get("reference_cache", False),
        **settings.get("args", {}),
    )
    if settings.get("disagree") and trainer.args.process_index:
        compare = loop.compare_losses
        loop.compare_losses = lambda *given: replace(compare(*given), matched=not compare(*given).matched)
    if "moment" in settings:
        killing.install(settings["moment"], settings["output_dir"], settings["moments"])
    seen.watch(trainer, settings.get("seen"))
    trainer.train()
    if trainer.args.process_index == 0:
        result = {
            "world_size": trainer.args.world_size,
            "outcome": trainer.outcome,
            "layers": [item.layers for item in trainer.rounds],
            "losses": [item.loss for item in trainer.rounds],
            "tokens": [item.tokens for item in trainer.rounds],
            "epochs": [item.epochs for item in trainer.rounds],
            "reference": trainer.reference_validation.loss if trainer.reference_validation else None,
            "weights": weights_hash(trainer.student),
            "optimizer": optimizer_hash(trainer),
            "sharded": sorted(shards.seen),
            "history": without_times(saved_log(trainer)),
        }
        Path(settings["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # or a thread of it may abort the process as it ends
