"""
Compare all arms at a size that two cores finish: what `inheritune compare docs/results/mechanism.yaml` needs and left.

    python docs/results/mechanism.py prepare BOOKS...
    inheritune compare docs/results/mechanism.yaml
    python docs/results/mechanism.py page

BOOKS are JSONL files of novels, one to a row, with `id` and `text`: the English collection of ELTeC
(COST-ELTeC/ELTeC-eng, level 1). `prepare` deals the books to three sets, trains a tokenizer and a reference, and keeps
all of it in `mechanism/`; `page` writes docs/results/mechanism.md, its picture and its figures.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import datasets
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, PreTrainedTokenizerFast, TrainingArguments

from inheritune_hf import DataConfig, load_data_splits
from inheritune_hf.evaluation import compare_over_seeds
from inheritune_hf.experiments import random_model, train_control, write_results
from inheritune_hf.experiments.cells import Cell
from inheritune_hf.experiments.results import arm_results, difference, markdown
from inheritune_hf.records import write_json, write_text

HERE = Path(__file__).parent
WORK = Path("mechanism")
SETS = ("selection", "test", "train")
HELD_OUT = 30  # books of the selection set, and of the test set: fewer give no interval
VOCABULARY, BLOCK_SIZE, STEPS, BATCH, SEED = 4096, 128, 350, 8, 1
END = "<|endoftext|>"

_PAGE = """# All arms on one budget

Every figure on this page was made on two CPU cores by

```text
python docs/results/mechanism.py prepare BOOKS...
inheritune compare docs/results/mechanism.yaml
python docs/results/mechanism.py page
```

A mechanism check: it shows that the arms do what they say, and which way they differ at a toy size. The reference is a
GPT-2 of {layers} layers and {parameters:,} parameters with attention scaled by depth
(`scale_attn_by_inverse_layer_idx`, as in the paper), trained for {steps:,} steps on {train} English novels (ELTeC,
{tokens:,} tokens, a byte-level BPE of {vocabulary:,} entries). Other books, {held} each, make the selection and the
test set. In the last fifth of its training its selection loss fell by {gain:.1%}{flat}. All settings are in
`docs/results/mechanism.yaml`.

## Result

{table}
![Selection loss against tokens, one line for each arm, and the reference's level](mechanism.png)

Every figure of the table, unrounded: [mechanism.csv](mechanism.csv).

## How much of it is the moved attention scale

GPT-2 with `scale_attn_by_inverse_layer_idx` divides the attention logits of a block by its position. A block that moves
to another position is scaled anew, unless it keeps its own scale. The same arms with and without:

| arm | keeps its scale | takes that of its position | difference |
|---|---:|---:|---:|
{scales}

A positive difference is loss that the moved scale adds, paired by book and seed.

## First layers against others

Arms that keep their scale, against the first layers (`inherited`) under the same steps:

| arm | to `inherited` |
|---|---:|
{choices}

## What is not established

{limits}
"""


def main(arguments: list[str]) -> None:
    """Make the comparison's material, or its page."""
    if arguments[:1] == ["prepare"] and len(arguments) > 1:
        prepare(arguments[1:])
    elif arguments == ["page"]:
        write_page()
    else:
        sys.exit(f"usage: python {sys.argv[0]} prepare BOOKS... | page")


def prepare(files: list[str]) -> None:
    """Deal the books, train the tokenizer on the training books, and the reference."""
    torch.set_num_threads(2)
    books = datasets.load_dataset("json", data_files=files, split="train")
    order = sorted(range(len(books)), key=lambda row: hashlib.sha256(str(books[row]["id"]).encode()).digest())
    dealt = {"selection": order[:HELD_OUT], "test": order[HELD_OUT : 2 * HELD_OUT], "train": order[2 * HELD_OUT :]}
    WORK.mkdir(exist_ok=True)
    for name, rows in dealt.items():
        books.select(rows).select_columns(["id", "text"]).to_json(WORK / f"{name}.jsonl")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    core.train_from_iterator((books[row]["text"] for row in dealt["train"]), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=END, eos_token=END)
    data = DataConfig(
        block_size=BLOCK_SIZE,
        max_sequences_per_document=4,
        near_duplicates="ignore",
        **{f"{name}_files": [str(WORK / f"{name}.jsonl")] for name in SETS},
    )
    splits = load_data_splits(data, tokenizer, seed=SEED)
    shape = {"vocab_size": VOCABULARY, "n_positions": BLOCK_SIZE, "n_embd": 128, "n_layer": 8, "n_head": 4}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    end = tokenizer.eos_token_id
    config = GPT2Config(**shape, **quiet, bos_token_id=end, eos_token_id=end, scale_attn_by_inverse_layer_idx=True)
    arguments = TrainingArguments(
        str(WORK / "work"),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=16,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.1,
        adam_beta2=0.95,
        eval_steps=STEPS // 5,
        logging_steps=50,
        seed=SEED,
        use_cpu=True,
        report_to="none",
    )
    control = train_control(random_model(config, SEED), arguments, splits, STEPS, "reference", WORK / "work")
    shutil.rmtree(WORK / "work", ignore_errors=True)
    control.model.save_pretrained(WORK / "reference")
    tokenizer.save_pretrained(WORK / "reference")
    facts = {"curve": control.curve, "tokens": splits.facts.train.tokens, "books": len(dealt["train"])}
    write_json(WORK / "reference.json", facts)


def write_page() -> None:
    """Write the page from the comparison's records."""
    folder = WORK / "comparison"
    write_results(folder)
    for ending in ("csv", "png"):
        shutil.copy(folder / f"comparison.{ending}", HERE / f"mechanism.{ending}")
    facts = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    made = json.loads((WORK / "reference.json").read_text(encoding="utf-8"))
    cells: dict[str, list[Cell]] = {}
    for values in facts["cells"]:
        cells.setdefault(values["arm"], []).append(Cell.from_dict(values))
    moved = [name for name in cells if f"{name}/moved-scale" in cells]
    scales = [
        f"| `{name}` | {loss(cells[name])} | {loss(cells[f'{name}/moved-scale'])} | "
        f"{paired(cells[f'{name}/moved-scale'], cells[name])} |"
        for name in moved
    ]
    others = [name for name in cells if "/" not in name and name not in ("inherited", "inheritune")]
    choices = sorted((pair(cells[name], cells["inherited"]).difference, name) for name in others)
    (_, before), (_, last) = made["curve"][-2:]
    gain = (before - last) / before
    reference = facts["reference"]
    text = _PAGE.format(
        layers=reference["layers"],
        parameters=reference["parameters"],
        steps=STEPS,
        train=made["books"],
        tokens=made["tokens"],
        vocabulary=VOCABULARY,
        held=HELD_OUT,
        gain=gain,
        flat="" if gain < 0.01 else ", so it is not trained to its end",
        table=markdown(arm_results(facts), facts),
        scales="\n".join(scales),
        choices="\n".join(f"| `{name}` | {paired(cells[name], cells['inherited'])} |" for _, name in choices),
        limits=limits(facts, cells),
    )
    write_text(HERE / "mechanism.md", text)


def limits(facts: dict, cells: dict[str, list[Cell]]) -> str:
    """Return what the comparison does not show, as its records say."""
    loops = cells["inheritune"]
    matched = sum(cell.outcome == "matched" for cell in loops)
    ahead = next(row for row in arm_results(facts) if row.arm == "inheritune").to_continued
    lazy = facts["reference"]["lazy_layers"]
    points = [
        f"{matched} of {len(loops)} loops matched their reference on the selection set. The reference trained on for "
        f"the same steps is another thing: the loop's students are {difference(ahead)} nats per token from it.",
        f"The reference has {lazy} lazy layers: what lazy layers of a large model transfer cannot be told from it.",
        f"{len(loops)} seeds of students of one reference, on one text: another reference was not tried.",
        "The models are tiny and far from converged. The order of the arms is no evidence about the paper's sizes.",
    ]
    return "\n".join(f"- {point}" for point in points)


def pair(cells: list[Cell], others: list[Cell]):
    """Return the difference in test loss of two arms, paired by book and seed."""
    by_seed = {cell.seed: cell for cell in others}
    return compare_over_seeds([cell.test for cell in cells], [by_seed[cell.seed].test for cell in cells])


def paired(cells: list[Cell], others: list[Cell]) -> str:
    """Return that difference and its interval."""
    return difference(pair(cells, others))


def loss(cells: list[Cell]) -> str:
    """Return an arm's mean test loss over its seeds."""
    return f"{sum(cell.test.loss for cell in cells) / len(cells):.4f}"


if __name__ == "__main__":
    main(sys.argv[1:])
