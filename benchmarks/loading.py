"""
What building a student costs: half of a GPT-2-XL-shaped checkpoint, against loading all and against fewer layers.

    python -m benchmarks.loading [--folder FOLDER] [--repeats 3] [--layers 48]

A checkpoint of 6.4 GB is made in FOLDER, as one file and in shards, and removed afterwards. Every measurement is a
process of its own, forked from one that has imported everything; ways are interleaved, medians reported. In every way
each parameter is in memory of its own and was touched. Cold: the files are dropped from the page cache before. Before
each measurement as much memory as the largest one needs is touched and freed: a virtual machine first gets memory from
its host, which took twenty times as long as using it, a disadvantage for the first process.
"""

import argparse
import json
import mmap
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_output

from inheritune_hf import InheritedModelForCausalLM
from inheritune_hf.students import plan_inheritance

WAYS = ("bare read", "this package", "fewer layers", "load all, slice")


def config_of(layers: int) -> GPT2Config:
    """Return the config of a GPT-2 XL of so many layers."""
    return GPT2Config(n_layer=layers, n_embd=1600, n_head=25)


def make_checkpoint(folder: Path, layers: int, sharded: bool) -> None:
    """Write a GPT-2 XL in float32 as it is published: no prefix, no head, masks in every block."""
    folder.mkdir(parents=True)
    config = config_of(layers)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = GPT2LMHeadModel(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    shapes = {
        name.removeprefix("transformer."): tensor.shape for name, tensor in state.items() if "lm_head" not in name
    }
    shapes |= {f"h.{layer}.attn.bias": torch.Size((1, 1, 1024, 1024)) for layer in range(layers)}
    limit = 10**9 if sharded else 10**15
    parts: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    weight_map = {}
    for name, shape in shapes.items():
        tensor = torch.empty(shape).uniform_(-0.02, 0.02, generator=generator)
        if size + tensor.nbytes > limit:
            write_part(folder, parts, sharded, last=False)
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
        weight_map[name] = f"model-{len(parts):05d}.safetensors"
    write_part(folder, parts, sharded, last=True)
    if sharded:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_part(folder: Path, parts: list[dict[str, torch.Tensor]], sharded: bool, last: bool) -> None:
    """Write the collected tensors to disk, not only to the cache, and start a new part."""
    path = folder / (f"model-{len(parts):05d}.safetensors" if sharded else "model.safetensors")
    save_file(parts[-1], path, metadata={"format": "pt"})
    parts[-1] = {}
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if not last:
        parts.append({})


def build(way: str, folder: Path, keep: int, dtype: torch.dtype) -> object:
    """Build the student of the first `keep` layers in one of the ways; every parameter owns its memory."""
    if way == "bare read":
        return bare_read(folder, keep)
    if way == "this package":
        return InheritedModelForCausalLM.from_pretrained(folder, keep_layers=keep, dtype=dtype)
    if way == "fewer layers":
        model = AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=keep, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        del model.transformer.h[keep:]
        model.config.n_layer = keep
    if dtype is torch.float32:  # the parameters are the file's mapped pages: a student must not change with its file
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    return model


def bare_read(folder: Path, keep: int) -> list[torch.Tensor]:
    """Read as many bytes as the kept tensors have from the files' starts: the lower bound for every way."""
    found = []
    for file in plan_inheritance(folder, keep).files:
        buffer = torch.empty(file.kept, dtype=torch.uint8)
        with (folder / file.name).open("rb", buffering=0) as stream:
            view = memoryview(buffer.numpy())
            while view:
                view = view[stream.readinto(view) :]
        found.append(buffer)
    return found


def measure(way: str, folder: Path, keep: int, dtype: torch.dtype, results: object) -> None:
    """Build once in this process and report seconds, peak memory and bytes read."""
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    baseline = status("VmRSS")
    before = counters()
    began = time.perf_counter()
    model = build(way, folder, keep, dtype)
    if isinstance(model, torch.nn.Module):
        for parameter in model.parameters():
            parameter.data.view(-1)[::512].sum()
    seconds = time.perf_counter() - began
    after = counters()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    results.put(  # type: ignore[attr-defined]
        {
            "seconds": seconds,
            "peak": status("VmHWM") - baseline,
            "requested": after["rchar"] - before["rchar"],
            "from_disk": after["read_bytes"] - before["read_bytes"],
            "cpu": usage.ru_utime + usage.ru_stime,  # a forked process starts at zero
        }
    )


def status(name: str) -> int:
    """Return one of the kernel's figures on this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}.")


def counters() -> dict[str, int]:
    """Return the bytes of this process's read calls, and those read from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def folder_bytes(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def set_cache(folder: Path, cold: bool) -> None:
    """Drop the files from the page cache, or read them all into it."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                buffer = bytearray(2**24)
                while file.readinto(buffer):
                    pass


def touch_memory(size: int) -> None:
    """Touch so many bytes, so that a virtual machine has them from its host, and free them."""
    pages = mmap.mmap(-1, size)
    for place in range(0, size, mmap.PAGESIZE):
        pages[place] = 1
    pages.close()


def compare(folder: Path, keep: int, dtype: torch.dtype, cold: bool, repeats: int) -> dict[str, dict[str, float]]:
    """Measure every way, interleaved, and return the medians."""
    context = multiprocessing.get_context("fork")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            set_cache(folder, cold)
            touched = context.Process(target=touch_memory, args=(folder_bytes(folder) * 3 // 2,))
            touched.start()
            touched.join()
            results = context.Queue()
            process = context.Process(target=measure, args=(way, folder, keep, dtype, results))
            process.start()
            found[way].append(results.get())
            process.join()
    return {
        way: {name: statistics.median(item[name] for item in items) for name in items[0]}
        for way, items in found.items()
    }


def main() -> None:
    """Make the checkpoint, measure, and print a table for the benchmarks' README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Where to make the checkpoint (a temporary folder).")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--layouts", nargs="+", default=["single", "sharded"])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers_output.set_verbosity_error()
    transformers_output.disable_progress_bar()
    work = Path(tempfile.mkdtemp(dir=options.folder))
    keep = options.layers // 2
    try:
        for layout in options.layouts:
            folder = work / layout
            make_checkpoint(folder, options.layers, layout == "sharded")
            kept = plan_inheritance(folder, keep).bytes_to_read
            print(f"\n{layout}: {folder_bytes(folder):,} bytes, kept {kept:,}")
            columns = ["type", "cache", "way", "seconds", "of all", "of fewer", "CPU seconds", "of all", "of fewer"]
            columns += ["peak GB", "of all", "requested/kept", "disk/kept"]
            print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
            for dtype in (torch.float32, torch.bfloat16):
                for cold in (True, False):
                    medians = compare(folder, keep, dtype, cold, options.repeats)
                    whole, fewer = medians["load all, slice"], medians["fewer layers"]
                    for way, item in medians.items():
                        print(
                            f"| {str(dtype).removeprefix('torch.')} | {'cold' if cold else 'warm'} | {way} "
                            f"| {item['seconds']:.2f} | {item['seconds'] / whole['seconds']:.2f} "
                            f"| {item['seconds'] / fewer['seconds']:.2f} "
                            f"| {item['cpu']:.2f} | {item['cpu'] / whole['cpu']:.2f} "
                            f"| {item['cpu'] / fewer['cpu']:.2f} "
                            f"| {item['peak'] / 1e9:.2f} | {item['peak'] / whole['peak']:.2f} "
                            f"| {item['requested'] / kept:.3f} | {item['from_disk'] / kept:.3f} |",
                            flush=True,
                        )
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
