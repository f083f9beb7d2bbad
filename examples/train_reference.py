"""
Train the small reference of the embedded default from random weights, with a plain Trainer, until it stops improving.

    python examples/train_reference.py --books train.jsonl.xz validation.jsonl.xz --output_dir reference

Books are split by the hash of their id into those of the reference, of the demonstration and of evaluation; those of
the demonstration are written as passages, in three files. The learning rate warms up, stays, and decays (warm-up,
stable, decay); a second stage trains further at a tenth of it, decaying all along. Each stage has a folder with its
checkpoints and its log; the checkpoint before the first decay is kept in `before-decay`, the result in `model`. The
same command again resumes from the last checkpoint. `--layers` trains another depth on the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from tokenizers import ByteLevelBPETokenizer
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

END_OF_TEXT = "<|endoftext|>"
REFERENCE_BOOKS, DEMO_BOOKS = 45, 8
# Of the demonstration: characters of a passage; passages for selection, and as many for the test.
PASSAGE, HELD_OUT = 6_000, 48


def split_books(files: list[str]) -> dict[str, list[dict[str, str]]]:
    """Return the books of `files` (JSON rows of `id` and `text`) as `reference`, `demo` and `evaluation`."""
    rows = load_dataset("json", data_files=files, split="train")
    books = sorted(rows, key=lambda book: hashlib.sha256(book["id"].encode()).digest())
    demo_end = REFERENCE_BOOKS + DEMO_BOOKS
    return {
        "reference": books[:REFERENCE_BOOKS],
        "demo": books[REFERENCE_BOOKS:demo_end],
        "evaluation": books[demo_end:],
    }


def write_passages(books: list[dict[str, str]], folder: Path) -> None:
    """
    Cut books into passages at paragraphs, and write them as `train.jsonl.xz`, `selection.jsonl.xz` and `test.jsonl.xz`.

    The longer half of the books is to train on; passages of the others, spread evenly, are for selection and the test.
    """
    ranked = sorted(books, key=lambda book: len(book["text"]), reverse=True)
    longer, others = ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]
    sets = {"train": longer, "selection": others[::3], "test": [book for place, book in enumerate(others) if place % 3]}
    for name, part in sets.items():
        rows = [row for book in part for row in passages_of(book)]
        if name != "train":
            rows = [rows[place] for place in np.linspace(0, len(rows), HELD_OUT, endpoint=False).astype(int)]
        with lzma.open(folder / f"{name}.jsonl.xz", "wt", encoding="utf-8", preset=9 | lzma.PRESET_EXTREME) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def passages_of(book: dict[str, str]) -> list[dict[str, str]]:
    """Cut a book into passages of whole paragraphs, each of `PASSAGE` characters or a little more."""
    passages = [""]
    for paragraph in book["text"].split("\n\n"):
        if len(passages[-1]) >= PASSAGE:
            passages.append("")
        passages[-1] += paragraph + "\n\n"
    if len(passages) > 1 and len(passages[-1]) < PASSAGE:
        passages[-2:] = ["".join(passages[-2:])]
    return [{"id": f"{book['id']}-{place}", "text": text.strip()} for place, text in enumerate(passages)]


def train_tokenizer(texts: list[str], vocab_size: int, block_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of `vocab_size` entries on `texts`."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer._tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=block_size,
    )


class RandomWindows(Dataset[dict[str, torch.Tensor]]):
    """Windows of `block_size` tokens, each drawn uniformly from `tokens` by its own index: resuming needs no state."""

    def __init__(self, tokens: np.ndarray, block_size: int, count: int, seed: int) -> None:
        self.tokens, self.block_size, self.count, self.seed = tokens, block_size, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = np.random.default_rng((self.seed, index)).integers(len(self.tokens) - self.block_size + 1)
        ids = torch.from_numpy(self.tokens[start : start + self.block_size].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def spread_windows(documents: list[list[int]], block_size: int, each: int) -> list[dict[str, torch.Tensor]]:
    """Return `each` windows of every document, spread evenly over it."""
    rows = []
    for ids in documents:
        for start in np.linspace(0, len(ids) - block_size, each + 2).astype(int)[1:-1]:
            window = torch.tensor(ids[start : start + block_size])
            rows.append({"input_ids": window, "labels": window})
    return rows


class KeepStable(TrainerCallback):
    """Copy the checkpoint at which the learning rate begins to decay: training longer starts from there."""

    def __init__(self, step: int, target: Path) -> None:
        self.step, self.target = step, target

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_save = control.should_save or state.global_step == self.step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self.step:
            shutil.copytree(Path(args.output_dir or ".") / f"checkpoint-{self.step}", self.target, dirs_exist_ok=True)


def main() -> None:
    """Train, or resume."""
    parser = argparse.ArgumentParser(description="Train the embedded reference from random weights.")
    parser.add_argument("--books", nargs="+", required=True, help="JSON files of books: id, text")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--block_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15_400)
    parser.add_argument("--warmup_steps", type=int, default=300)
    parser.add_argument("--decay_steps", type=int, default=3_800)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--further_steps", type=int, default=3_080)
    parser.add_argument("--further_rate", type=float, default=3e-4)
    parser.add_argument("--unscaled", action="store_true", help="attention that is not scaled by depth")
    parser.add_argument("--tokenizer", help="folder of a tokenizer; without it one is trained")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="mixed precision: twice as fast where bfloat16 has units")
    parser.add_argument("--gpu", action="store_true", help="train on the GPU")
    given = parser.parse_args()
    if given.tokenizer and not Path(given.tokenizer).is_dir():
        parser.error(f"--tokenizer is a folder of a tokenizer, got {given.tokenizer!r}, which is none.")

    torch.set_num_threads(given.threads)
    given.output_dir.mkdir(parents=True, exist_ok=True)
    books = split_books(given.books)
    (given.output_dir / "books.json").write_text(
        json.dumps({name: [book["id"] for book in part] for name, part in books.items()}, indent=1)
    )
    write_passages(books["demo"], given.output_dir)
    texts = {name: [book["text"] for book in part] for name, part in books.items()}
    made = given.tokenizer or given.output_dir / "tokenizer"
    if Path(made).is_dir():
        tokenizer = AutoTokenizer.from_pretrained(made)
    else:
        tokenizer = train_tokenizer(texts["reference"], given.vocab_size, given.block_size)
        tokenizer.save_pretrained(given.output_dir / "tokenizer")
    end = tokenizer.eos_token_id
    encoded = [tokenizer(text, verbose=False)["input_ids"] for text in texts["reference"]]
    tokens = np.concatenate([np.array([*ids, end], dtype=np.uint16) for ids in encoded])
    evaluation = [tokenizer(text, verbose=False)["input_ids"] for text in texts["evaluation"]]

    set_seed(given.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=given.block_size,
        n_embd=given.width,
        n_layer=given.layers,
        n_head=given.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        scale_attn_by_inverse_layer_idx=not given.unscaled,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = GPT2LMHeadModel(config)
    if given.bf16 and not given.gpu:
        model.set_attn_implementation("eager")  # with narrow heads, quicker on a CPU than the fused one
    parameters = model.num_parameters()
    seen = (given.steps + given.further_steps) * given.batch_size * given.block_size
    print(f"{parameters:,} parameters, {len(tokens):,} tokens of text, {seen:,} seen: {seen / parameters:.1f} each")
    warm = given.further_steps // 20
    stages = {
        "first": (given.steps, given.warmup_steps, given.decay_steps, given.learning_rate),
        "further": (given.further_steps, warm, given.further_steps - warm, given.further_rate),
    }
    for place, (name, (steps, warmup, decay, rate)) in enumerate(stages.items()):
        folder, seed = given.output_dir / name, given.seed + place
        folder.mkdir(exist_ok=True)
        arguments = TrainingArguments(
            str(folder),
            max_steps=steps,
            per_device_train_batch_size=given.batch_size,
            per_device_eval_batch_size=32,
            train_sampling_strategy="sequential",
            learning_rate=rate,
            lr_scheduler_type="warmup_stable_decay",
            lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": "1-sqrt"},
            warmup_steps=warmup,
            weight_decay=0.1,
            adam_beta2=0.95,
            logging_steps=50,
            eval_strategy="steps",
            eval_steps=500,
            eval_on_start=True,
            save_steps=500 if given.gpu else 100,
            save_total_limit=2,
            seed=seed,
            use_cpu=not given.gpu,
            bf16=given.bf16,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=RandomWindows(tokens, given.block_size, steps * given.batch_size, seed),
            eval_dataset=spread_windows(evaluation, given.block_size, 8),
            data_collator=default_data_collator,
            processing_class=tokenizer,
            callbacks=[] if place else [KeepStable(steps - decay, given.output_dir / "before-decay")],
        )
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))  # type: ignore[no-untyped-call]
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1))
    trainer.save_model(str(given.output_dir / "model"))


if __name__ == "__main__":
    main()
