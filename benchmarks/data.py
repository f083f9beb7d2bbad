"""
Tokens per second of preparing data and of data loading, compared with other ways.

`python -m benchmarks.data --text FILES --tokenizer FOLDER` prints a table; the files are JSON lines with a `text`.
Prepare is compared with the bare loop (tokenizers and numpy, nothing saved but one array: the floor) and with the
grouping of Transformers' run_clm. All of them tokenize with one thread in each process, in processes of their own, in
turns; the table shows medians and their ratios.

`python -m benchmarks.data memory --documents 1000000 2000000 --tokenizer FOLDER` prints the memory for preparing many
short documents: what splitting and the search for duplicates store of each. It writes 0.4 GB for each million, and
deletes them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BLOCK_SIZE = 1024


def now() -> list[float]:
    """Seconds by the clock, and seconds of the processors: of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return [time.perf_counter(), sum(item.ru_utime + item.ru_stime for item in used)]


def since(began: list[float]) -> list[float]:
    return [after - before for after, before in zip(now(), began, strict=True)]


def texts_of(files: list[str]) -> list[str]:
    from inheritune_hf.data.sources import Layout, read_rows

    return [row["text"] for name in files for row in read_rows(Path(name), Layout()) if isinstance(row, dict)]


def run_floor(options: Any) -> tuple[int, list[float]]:
    """Encode with tokenizers, put the ids into one numpy array, cut it, save it; in each process a part of the text."""
    import multiprocessing

    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    began = now()
    texts = texts_of(options.text)
    counts = multiprocessing.Array("q", options.processes)

    def work(number: int) -> None:
        parts, end = [], tokenizer.eos_token_id
        own = texts[len(texts) * number // options.processes : len(texts) * (number + 1) // options.processes]
        for start in range(0, len(own), 128):
            group = own[start : start + 128]
            for item in tokenizer.backend_tokenizer.encode_batch_fast(group, add_special_tokens=False):
                parts.append(np.array([*item.ids, end], dtype=np.int32))
        tokens = np.concatenate(parts)
        rows = tokens[: len(tokens) // BLOCK_SIZE * BLOCK_SIZE].reshape(-1, BLOCK_SIZE)
        np.save(Path(options.folder) / f"floor{number}.npy", rows)
        counts[number] = len(tokens)

    if options.processes == 1:
        work(0)
    else:
        # Forked: the text and the tokenizer are there already.
        workers = [
            multiprocessing.get_context("fork").Process(target=work, args=(n,)) for n in range(options.processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return sum(counts), since(began)


def run_clm(options: Any) -> tuple[int, list[float]]:
    """Do what run_clm does: map the tokenizer, then map the grouping of 1000 rows, then save."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    began = now()
    raw = load_dataset("json", data_files=options.text, split="train", cache_dir=options.folder)

    def tokenize(rows: Any) -> Any:
        return tokenizer(rows["text"], verbose=False)

    def group(rows: Any) -> Any:
        joined = {name: list(itertools.chain(*rows[name])) for name in rows}
        whole = len(joined["input_ids"]) // BLOCK_SIZE * BLOCK_SIZE
        cut = {name: [row[i : i + BLOCK_SIZE] for i in range(0, whole, BLOCK_SIZE)] for name, row in joined.items()}
        cut["labels"] = cut["input_ids"].copy()
        return cut

    processes = None if options.processes == 1 else options.processes
    tokenized = raw.map(tokenize, batched=True, remove_columns=raw.column_names, num_proc=processes)
    grouped = tokenized.map(group, batched=True, num_proc=processes)
    grouped.save_to_disk(Path(options.folder) / "grouped")
    return len(grouped) * BLOCK_SIZE, since(began)


def run_prepare(options: Any) -> tuple[int, list[float]]:
    """Prepare: read, tokenize, split, look for duplicates, pack, save."""
    from transformers import AutoTokenizer

    from inheritune_hf.config import DataConfig
    from inheritune_hf.data import prepare_data

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    began = now()
    workers = None if options.processes == 1 else options.processes
    config = DataConfig(train_files=options.text, preprocessing_workers=workers)
    facts = prepare_data(config, tokenizer, Path(options.folder) / "prepared", block_size=BLOCK_SIZE)
    tokens = sum(item.tokens or 0 for item in (facts.train, facts.selection, facts.test)) + facts.dropped_tokens
    return tokens, since(began)


def run_loader(options: Any) -> tuple[int, list[float]]:
    """Read every batch of a prepared set, in random order, as in training; the folder was prepared before."""
    import torch
    from datasets import load_from_disk
    from torch.utils.data import DataLoader

    from inheritune_hf.data import CausalCollator
    from inheritune_hf.training.data_loading import with_tensor_format

    torch.set_num_threads(1)
    train = with_tensor_format(load_from_disk(Path(options.prepared) / "sets")["train"])
    loader = DataLoader(train, batch_size=8, shuffle=True, collate_fn=CausalCollator(0))
    began = now()
    tokens = sum(batch["input_ids"].numel() for batch in loader)
    return tokens, since(began)


def run_stream(options: Any) -> tuple[int, list[float]]:
    """Read 100 batches of a stream of the same files: read, tokenized and packed in the training's process."""
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    from inheritune_hf.config import DataConfig
    from inheritune_hf.data import CausalCollator, load_data_splits
    from inheritune_hf.data.stream import StreamCollator

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    config = DataConfig(
        train_files=options.text,
        selection_files=options.held,
        test_files=options.held,
        streaming=True,
        near_duplicates="ignore",
    )
    stream = load_data_splits(config, tokenizer, block_size=BLOCK_SIZE).train
    loader = DataLoader(stream, batch_size=8, collate_fn=StreamCollator(CausalCollator(0)))
    began = now()
    tokens = sum(batch["input_ids"].numel() for batch in itertools.islice(loader, 100))
    return tokens, since(began)


def run_bins(options: Any) -> tuple[int, list[float]]:
    """Read every batch of a token file of the same tokens."""
    import numpy as np
    import torch
    from datasets import Dataset, load_from_disk
    from torch.utils.data import DataLoader

    from inheritune_hf.data import CausalCollator
    from inheritune_hf.data.token_files import TokenSequences, open_token_file

    torch.set_num_threads(1)
    train = load_from_disk(Path(options.prepared) / "sets")["train"]
    path = Path(options.folder) / "train.bin"
    np.concatenate(train.with_format("numpy")["input_ids"][:]).astype(np.uint16).tofile(path)
    file = open_token_file(path, "uint16")
    loader = DataLoader(
        TokenSequences([file], [Dataset.from_dict({"start": [0], "length": [file.count]})], BLOCK_SIZE),
        batch_size=8,
        shuffle=True,
        collate_fn=CausalCollator(0),
    )
    began = now()
    tokens = sum(batch["input_ids"].numel() for batch in loader)
    return tokens, since(began)


def run_step(options: Any) -> tuple[int, list[float]]:
    """Train on three batches: a GPT-2 of 12 layers (124 M parameters), as small as a real run gets."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    model = GPT2LMHeadModel(GPT2Config(use_cache=False))
    batch = torch.randint(0, 50000, (1, BLOCK_SIZE))
    model(input_ids=batch, labels=batch).loss.backward()
    began = now()
    model(input_ids=batch, labels=batch).loss.backward()
    return batch.numel(), since(began)


def run_memory(options: Any) -> tuple[int, list[float]]:
    """Prepare short documents; return their number, bytes (own before and at most, resident at most) and seconds."""
    import random
    import threading

    from datasets import disable_progress_bars
    from transformers import AutoTokenizer

    from inheritune_hf.config import DataConfig
    from inheritune_hf.data import prepare_data

    disable_progress_bars()
    draw, words = random.Random(0), [f"w{number}" for number in range(1000)]
    path = Path(options.folder) / "documents.jsonl"
    with path.open("w") as file:
        for number in range(options.documents[0]):
            file.write(json.dumps({"text": f"{number} {' '.join(draw.choices(words, k=5))}"}) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    config = DataConfig(train_files=[str(path)], selection_fraction=0.0005, test_fraction=0.0005)

    def resident() -> list[int]:
        rows = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        own, mapped = (int(rows[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
        return [own, own + mapped]

    most, done = [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[:] = map(max, most, resident())

    before = resident()[0]
    watcher = threading.Thread(target=watch)
    watcher.start()
    began = now()
    prepare_data(config, tokenizer, Path(options.folder) / "prepared", block_size=BLOCK_SIZE)
    seconds = since(began)
    done.set()
    watcher.join()
    return options.documents[0], [before, *most, *seconds]


WAYS = {
    "memory": run_memory,
    "floor": run_floor,
    "run_clm": run_clm,
    "prepare": run_prepare,
    "loader": run_loader,
    "stream": run_stream,
    "bins": run_bins,
    "step": run_step,
}


def measure(way: str, processes: int, options: argparse.Namespace, prepared: str) -> list[float]:
    """Run one way in a process of its own and return its tokens per second, and per second of a processor."""
    tokens, seconds = apart(way, processes, options, prepared)
    return [float(tokens / item) for item in seconds]


def apart(way: str, processes: int, options: argparse.Namespace, prepared: str) -> tuple[int, list[float]]:
    """Run one way in a process and a folder of its own and return what it returned."""
    folder = tempfile.mkdtemp(prefix="data-benchmark-")
    words = ["--way", way, "--processes", str(processes), "--folder", folder, "--prepared", prepared]
    words += ["--text", *options.text, "--held", *options.held, "--tokenizer", options.tokenizer]
    words += ["--documents", *map(str, options.documents)]
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": folder,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.data", *words], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr[-3000:]
        count, numbers = json.loads(done.stdout.splitlines()[-1])
        return count, numbers
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def print_memory(options: argparse.Namespace) -> None:
    """Print the memory of preparing each number of documents, and the slope from the first number to the last."""
    print("| documents | MB before | own MB at most | resident MB at most | processor seconds |")
    print("|---|---|---|---|---|")
    found = []
    for count in options.documents:
        options.documents = [count]
        _, (before, own, resident, _, seconds) = apart("memory", 1, options, "")
        found.append((count, own))
        sizes = " | ".join(f"{size / 1e6:,.0f}" for size in (before, own, resident))
        print(f"| {count:,} | {sizes} | {seconds:,.0f} |", flush=True)
    if len(found) > 1:
        (few, less), (many, more) = found[0], found[-1]
        print(f"{(more - less) / (many - few):.0f} bytes for each document more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["speed", "memory"], default="speed")
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000_000, 2_000_000])
    parser.add_argument("--text", nargs="*", default=os.environ.get("INHERITUNE_BENCHMARK_TEXT", "").split())
    parser.add_argument("--held", nargs="*", default=os.environ.get("INHERITUNE_BENCHMARK_HELD", "").split())
    parser.add_argument("--tokenizer", default=os.environ.get("INHERITUNE_BENCHMARK_TOKENIZER"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--prepared", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(WAYS[options.way](options)))
        return
    if options.what == "memory" and options.tokenizer:
        print_memory(options)
        return
    if not options.text or not options.tokenizer:
        print("benchmarks.data: no text given; see python -m benchmarks.data --help")
        return
    options.held = options.held or options.text[:1]
    prepared = tempfile.mkdtemp(prefix="data-benchmark-")
    from transformers import AutoTokenizer

    from inheritune_hf.config import DataConfig
    from inheritune_hf.data import prepare_data

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    prepare_data(DataConfig(train_files=options.text), tokenizer, prepared, block_size=BLOCK_SIZE)
    ways = [("floor", 1), ("run_clm", 1), ("prepare", 1), ("floor", 2), ("run_clm", 2), ("prepare", 2)]
    ways += [("loader", 1), ("bins", 1), ("stream", 1)]
    speeds: dict[tuple[str, int], list[list[float]]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way in ways:
            speeds[way].append(measure(*way, options, prepared))
    medians = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in speeds.items()}
    print("| what | processes | tokens/s | of the floor | tokens per CPU second | range | of the floor |")
    print("|---|---|---|---|---|---|---|")
    for (way, processes), (wall, cpu) in medians.items():
        floor = medians["floor", processes]
        ratios = [f"{wall / floor[0]:.2f}", f"{cpu / floor[1]:.2f}"]
        if way in ("loader", "bins", "stream"):
            ratios = ["", ""]
        own = [row[1] for row in speeds[way, processes]]
        spread = f"{min(own):,.0f} to {max(own):,.0f}"
        print(f"| {way} | {processes} | {wall:,.0f} | {ratios[0]} | {cpu:,.0f} | {spread} | {ratios[1]} |")
    step = measure("step", 1, options, prepared)[1]
    for way in ("loader", "bins", "stream"):
        print(f"{way}: {step / medians[way, 1][1]:.3%} of the time of a step of GPT-2 (124 M parameters) on one core")
    shutil.rmtree(prepared, ignore_errors=True)


if __name__ == "__main__":
    main()
