"""
Compare all arms at a size that two cores finish: what `inheritune compare docs/results/mechanism.yaml` needs and left.

    python docs/results/mechanism.py prepare BOOKS...
    inheritune compare docs/results/mechanism.yaml
    python docs/results/mechanism.py page

BOOKS are JSONL files of novels, one to a row, with `id` and `text`: the English collection of ELTeC
(COST-ELTeC/ELTeC-eng, level 1). `prepare` deals the books to three sets, trains a tokenizer and a reference, and keeps
all of it in `mechanism/`; `page` keeps the records in docs/results/mechanism.json, and writes mechanism.md with its
pictures and its figures from them. Without `mechanism/` it writes them from the records that were kept.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import datasets
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast, TrainingArguments

from inheritune_hf import DataConfig, load_data_splits
from inheritune_hf.arms import parse_arm
from inheritune_hf.evaluation import Corpus, compare_over_seeds, validate
from inheritune_hf.experiments import random_model, train_control
from inheritune_hf.experiments.arm_models import ArmInputs, build_arm
from inheritune_hf.experiments.results import (
    ArmResult,
    Cell,
    ComparisonRecord,
    arm_results,
    comma_separated,
    curves_panel,
    difference,
    differences_panel,
    markdown,
)
from inheritune_hf.figures import save_panels
from inheritune_hf.records import decode, write_json, write_text
from inheritune_hf.run_folder import RESULT_FILE
from inheritune_hf.students import open_reference

HERE = Path(__file__).parent
WORK = Path("mechanism")
SETS = ("selection", "test", "train")
HELD_OUT = 30  # books of the selection set, and of the test set: fewer give no interval
VOCABULARY, BLOCK_SIZE, STEPS, BATCH, SEED = 4096, 128, 700, 8, 1
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
(`scale_attn_by_inverse_layer_idx`, as in the paper), trained for {steps:,} steps, {seen:,} tokens, on {train} English
novels (ELTeC; {tokens:,} tokens by a byte-level BPE of {vocabulary:,} entries). Other books, {held} each, make the
selection and the test set. In the last fifth of its training its selection loss fell by {gain:.1%}{flat}.
Arms that choose layers have {chosen_layers}, whatever depth the loop ends at. All settings are in
`docs/results/mechanism.yaml`.

## Result

Test loss in nats per token, less the reference's, with a 95 % interval over books and seeds:

{summary}

![Each arm's difference to the reference on the test set, with its interval](mechanism-differences.png)

{tables}
![Selection loss against tokens, one line for each arm, and the reference's level](mechanism.png)

Every figure of the table, unrounded: [mechanism.csv](mechanism.csv).

## How much of it is the moved attention scale

GPT-2 with `scale_attn_by_inverse_layer_idx` divides the attention logits of a block by its position. A block that moves
to another position is scaled anew, unless it keeps its own scale. Before any training, the selection loss of the blocks
as they are put together is:

| arm | keeps its scale | takes that of its position | what the move of the scale adds |
|---|---:|---:|---:|
{before}

Trained, as test loss above that of the first layers (`inherited`) after the same steps:

| arm | keeps its scale | takes that of its position | what the move of the scale adds |
|---|---:|---:|---:|
{scales}

{share}

## First layers against others

Arms that keep their scale, as test loss above that of the first layers (`inherited`):

| arm | layers | rate | to `inherited` |
|---|---|---:|---:|
{choices}

Differences in nats per token, paired by book and seed, with a 95 % interval over books and seeds.

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
    splits = load_data_splits(data_config(), tokenizer, seed=SEED)
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


def data_config() -> DataConfig:
    """Return how the three sets are read, as in mechanism.yaml."""
    return DataConfig(
        block_size=BLOCK_SIZE,
        max_sequences_per_document=4,
        near_duplicates="ignore",
        **{f"{name}_files": [str(WORK / f"{name}.jsonl")] for name in SETS},
    )


def write_page() -> None:
    """Write page, table and pictures from the records: those of the comparison just made, or the kept ones."""
    kept = HERE / "mechanism.json"
    if (WORK / "comparison" / RESULT_FILE).is_file():
        comparison = json.loads((WORK / "comparison" / RESULT_FILE).read_text(encoding="utf-8"))
        made = json.loads((WORK / "reference.json").read_text(encoding="utf-8"))
        records = {"comparison": comparison, "made": made, "untrained": untrained(read_comparison(comparison).by_arm())}
        write_text(kept, json.dumps(records, ensure_ascii=False) + "\n")
    records = json.loads(kept.read_text(encoding="utf-8"))
    comparison = read_comparison(records["comparison"])
    rows = arm_results(comparison)
    write_text(HERE / "mechanism.md", page(records))
    write_text(HERE / "mechanism.csv", comma_separated(rows))
    save_panels(HERE / "mechanism.png", [curves_panel(comparison)])
    save_panels(HERE / "mechanism-differences.png", [differences_panel(rows)])


def read_comparison(values: dict) -> ComparisonRecord:
    """Return a comparison's record, checked."""
    values.pop("format", None)
    return decode(ComparisonRecord, values, "comparison.json")


def untrained(cells: dict[str, list[Cell]]) -> dict[str, float]:
    """Return the selection loss, before any training, of the arms that exist with and without the moved scale."""
    reference = str(WORK / "reference")
    tokenizer = AutoTokenizer.from_pretrained(reference)
    selection = load_data_splits(data_config(), tokenizer, seed=SEED).selection
    opened, losses = open_reference(reference), {}
    for name, group in cells.items():
        if f"{name.removesuffix('/moved-scale')}/moved-scale" not in cells:
            continue
        variant = parse_arm(name)
        chosen = tuple(group[0].identity["arm.chosen"])
        inputs = ArmInputs(opened, group[0].layers, SEED, chosen, keep_scale=not variant.moved_scale)
        model = build_arm(variant.arm, inputs)
        losses[name] = validate(model, Corpus("selection", selection, ""), batch_size=32).loss
    return losses


def page(records: dict) -> str:
    """Return the page that the records make."""
    comparison, made, starts = read_comparison(records["comparison"]), records["made"], records["untrained"]
    rows, cells = arm_results(comparison), comparison.by_arm()
    moved = [name for name in cells if f"{name}/moved-scale" in cells]
    first = cells["inherited"]
    scales = [
        f"| `{name}` | {paired(cells[name], first)} | {paired(cells[f'{name}/moved-scale'], first)} | "
        f"{paired(cells[f'{name}/moved-scale'], cells[name])} |"
        for name in moved
    ]
    others = [name for name in cells if "/" not in name and name not in ("inherited", "inheritune")]
    choices = sorted((pair(cells[name], first).difference, name) for name in others)
    (_, before), (_, last) = made["curve"][-2:]
    gain = (before - last) / before
    reference = comparison.reference
    return _PAGE.format(
        layers=reference.layers,
        parameters=reference.parameters,
        steps=STEPS,
        seen=reference.tokens,
        summary=summary({row.arm: row for row in rows}),
        before="\n".join(
            f"| `{name}` | {starts[name]:.4f} | {starts[f'{name}/moved-scale']:.4f} | "
            f"{starts[f'{name}/moved-scale'] - starts[name]:+.4f} |"
            for name in moved
        ),
        train=made["books"],
        tokens=made["tokens"],
        vocabulary=VOCABULARY,
        held=HELD_OUT,
        gain=gain,
        flat="" if gain < 0.01 else ", so it is not trained to its end",
        tables=markdown(rows, comparison),
        scales="\n".join(scales),
        share=share(cells),
        chosen_layers=f"{first[0].layers} of {reference.layers} layers",
        choices="\n".join(
            f"| `{name}` | {which(cells[name])} | {cells[name][0].learning_rate:g} | {paired(cells[name], first)} |"
            for _, name in choices
        ),
        limits=limits(comparison, rows),
    )


def summary(rows: dict[str, ArmResult]) -> str:
    """Return the differences that a reader looks for first."""
    depth, steps = rows["inherited"].layers, rows["inherited"].steps
    points = {
        f"the first {depth} layers, trained for {steps} steps": "inherited",
        f"random weights of the same shape, {steps} steps": "random",
        f"the same, {rows['random-2x'].steps} steps": "random-2x",
        f"the last {depth} layers, which keep their scale": "last",
        f"the middle {depth} layers, which keep their scale": "middle",
        f"the loop, {steps} steps over all its rounds": "inheritune",
        "the loop with distillation": "inheritune/kd",
        f"the reference, trained further for {steps} steps": "continued",
    }
    return "\n".join(f"- {what}: {difference(rows[name].to_reference)}" for what, name in points.items())


def limits(comparison: ComparisonRecord, rows: list[ArmResult]) -> str:
    """Return what the comparison does not show, as its records say."""
    cells, by_name = comparison.by_arm(), {row.arm: row for row in rows}
    loops = cells["inheritune"]
    matches = [cell.layers for cell in loops if cell.outcome == "matched"]
    whole = matches.count(comparison.reference.layers)
    lazy = comparison.reference.lazy_layers
    swept = sorted(comparison.sweep["inherited"], key=float)
    edges = sum(f"{group[0].learning_rate:g}" in (swept[0], swept[-1]) for group in cells.values())
    long = by_name["random-long"]
    shallow = [
        f"The reference is no strong one: {long.layers} layers from random weights, trained for its own and the "
        f"students' steps together, are {difference(long.to_reference)} nats per token from it. Where depth buys so "
        "little, inheriting can save training, and shows nothing about depth."
    ]
    if long.to_reference.upper >= 0.0:
        shallow = []
    points = [
        f"{len(matches)} of {len(loops)} loops matched their reference on the selection set, {whole} of them at its "
        "full depth, which is no reduction. The reference, trained further for the same steps, is another: "
        f"the loop's students are {difference(by_name['inheritune'].to_continued)} nats per token from it.",
        f"The reference has {lazy} lazy layers: what lazy layers of a large model transfer cannot be learned from it.",
        f"The rates were {', '.join(swept)}. For {edges} of {len(cells)} arms the best was the lowest or the "
        "highest of them, so a better one may lie beyond.",
        f"{len(loops)} seeds of students of one reference, on one text: another reference was not tried.",
        *shallow,
        "The models are tiny and far from converged. The order of the arms is no evidence about the paper's sizes.",
    ]
    return "\n".join(f"- {point}" for point in points)


def share(cells: dict[str, list[Cell]]) -> str:
    """Return how much of the arms' loss above the first layers' comes of the moved scale."""
    first, lines = cells["inherited"], []
    chosen = which(cells["lazy"])
    for name in (name for name in cells if f"{name}/moved-scale" in cells):
        own, moved = cells[name], cells[f"{name}/moved-scale"]
        gap, added = pair(moved, first), pair(moved, own)
        if gap.lower <= 0.0:
            continue
        if added.lower > 0.0:
            part = f"the moved scale makes {added.difference / gap.difference:.0%} of it"
        else:
            part = (
                "what the moved scale makes of it is indistinguishable from zero, and at most "
                f"{added.upper / gap.difference:.0%} by the interval's upper end"
            )
        lines.append(f"- `{name}/moved-scale` ends {gap.difference:+.4f} above the first layers; {part}.")
    told = "\n".join(lines) or "- There is none."
    return (
        "How much of what moved layers lack is the scale, where they end above the first layers at all:\n\n"
        f"{told}\n\nThe layers of the lowest MaxRank (`lazy`) are {chosen} here, counted from 0."
    )


def which(cells: list[Cell]) -> str:
    """Return an arm's layers as the reference numbers them, where a measure chose them, or how many it has."""
    chosen = cells[0].identity["arm.chosen"]
    return "{" + ", ".join(map(str, chosen)) + "}" if chosen else str(cells[0].layers)


def pair(cells: list[Cell], others: list[Cell]):
    """Return the difference in test loss of two arms, paired by book and seed."""
    by_seed = {cell.seed: cell for cell in others}
    return compare_over_seeds([cell.test for cell in cells], [by_seed[cell.seed].test for cell in cells])


def paired(cells: list[Cell], others: list[Cell]) -> str:
    """Return that difference and its interval."""
    return difference(pair(cells, others))


if __name__ == "__main__":
    main(sys.argv[1:])
