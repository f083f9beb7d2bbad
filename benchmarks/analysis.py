"""
What an analysis costs on GPT-2-XL-shaped layers, beside `output_attentions=True` and `torch.linalg.svdvals`.

    python -m benchmarks.analysis [seconds] [memory] [linear] [protocol] [THREADS]

Both ways are timed in turn in one process, on the same weights and tokens, with as many threads (torch's own number
unless THREADS is given), on a GPU if there is one; the best of the repeats counts. The usual way gives ranks at one
share in float32; the analysis gives ranks and masses at four, with entropy and sink share. Ranks alone, at one share,
are timed on one layer's attention beside `svdvals`. Peak memory is that of a process of its own, above the model and a
plain forward pass. `protocol` measures 100 sequences of 100 tokens on all 48 layers and is meant for a GPU.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from inheritune_hf.analysis import SHARES, watch_attention
from inheritune_hf.analysis.collapse import ranks
from inheritune_hf.analysis.measurement import batches_of, score_layers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS, WIDTH = 25, 1600
# Fresh weights attend to everything nearly equally (rank 7 of 1,024); larger queries and keys give flat spectra (rank
# 100 and more, the expensive case), and a sink gives rank 1, as in the lazy layers of the paper.
KINDS = ("fresh", "diffuse", "sink")


def xl_model(layers: int, kind: str, tokens: int = 1024) -> GPT2LMHeadModel:
    """Return GPT-2-XL-shaped layers with a small vocabulary."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=1000,
        bos_token_id=0,
        eos_token_id=0,
        n_positions=max(tokens, 1024),
        n_embd=WIDTH,
        n_head=HEADS,
        n_layer=layers,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            if kind != "fresh":
                block.attn.c_attn.weight[:, : 2 * WIDTH].mul_(2.2)
            if kind == "sink":
                block.attn.c_attn.weight[:, : 2 * WIDTH] = 0
                block.attn.c_attn.bias[:WIDTH] = 0.5
                block.attn.c_attn.weight[0, WIDTH : 2 * WIDTH] = 0.5
        if kind == "sink":
            model.transformer.wpe.weight[:, 0] = 0
            model.transformer.wte.weight[:, 0] = 0
            model.transformer.wpe.weight[0, 0] = 100.0
    return model.to(DEVICE)


def usual_way(model: GPT2LMHeadModel, batches: list[torch.Tensor], tau: float = 0.9) -> list[torch.Tensor]:
    """Return ranks by `output_attentions=True` and singular values in float32."""
    model.set_attn_implementation("eager")
    found = []
    for batch in batches:
        with torch.no_grad():
            attentions = model(batch, output_attentions=True).attentions
        for attention in attentions:
            energies = torch.linalg.svdvals(attention).square()
            sums = energies.cumsum(-1) / energies.sum(-1, keepdim=True)
            found.append((sums < tau).sum(-1).add(1).cpu())
    return found


def our_way(model: GPT2LMHeadModel, batches: list[torch.Tensor]) -> object:
    """Return everything that an analysis measures of attention."""
    model.set_attn_implementation("sdpa")
    return score_layers(model, batches, SHARES)


def seconds(function: object, *args: object) -> float:
    """Return the seconds of a call; of one thread its processor time, which other work on the machine changes less."""
    clock = time.process_time if DEVICE == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    function(*args)  # type: ignore[operator]
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def data(model: GPT2LMHeadModel, sequences: int, tokens: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return batches_of(torch.randint(0, 1000, (sequences, tokens), generator=draw), model)


def plain_pass(model: GPT2LMHeadModel, batches: list[torch.Tensor]) -> None:
    """Run the layers alone: the cost of both ways without measuring."""
    with torch.no_grad():
        for batch in batches:
            model.transformer(batch)


def compare_seconds() -> None:
    """Print milliseconds per layer and sequence: of ranks alone, and of both ways with the model's own work."""
    print(
        "| tokens | attention | mean rank | svdvals | ranks at 0.9 | ratio | the model | usual way | analysis | ratio |"
    )
    print("|---|" + "---|" * 9)
    # A collapsed layer of 1,024 tokens is left out: `svdvals` takes minutes for it, on numbers next to zero.
    for tokens, sequences, repeats, kinds in ((100, 10, 5, KINDS), (256, 4, 4, KINDS), (1024, 1, 2, KINDS[:2])):
        for kind in kinds:
            compare_kind(tokens, sequences, repeats, kind)


def compare_kind(tokens: int, sequences: int, repeats: int, kind: str) -> None:
    """Print one line of the table."""
    model = xl_model(1, kind)
    batches = data(model, sequences, tokens)
    rows = []
    for _ in range(repeats):
        kept: list[torch.Tensor] = []
        with watch_attention(model, lambda _, weights, kept=kept: kept.append(weights[0])):
            model.transformer(batches[0][:1])
        rows.append(
            (
                sequences * seconds(torch.linalg.svdvals, kept[0]),
                sequences * seconds(ranks, kept[0], (0.9,)),
                seconds(plain_pass, model, batches),
                seconds(usual_way, model, batches),
                seconds(our_way, model, batches),
            )
        )
    best = [1e3 * min(column) / sequences for column in zip(*rows, strict=True)]
    rank = ranks(kept[0], (0.9,)).double().mean()
    print(
        f"| {tokens} | {kind} | {rank:.1f} | {best[0]:.1f} | {best[1]:.1f} | {best[0] / best[1]:.1f} × "
        f"| {best[2]:.0f} | {best[3]:.0f} | {best[4]:.0f} | {best[3] / best[4]:.2f} × |",
        flush=True,
    )


def compare_memory() -> None:
    """Print peak memory of both ways, each in a process of its own, for one and for three layers."""
    print("| tokens | layers | one layer's attention, MiB | usual, MiB | analysis, MiB |\n|---|---|---|---|---|")
    for tokens in (256, 1024):
        for layers in (1, 3):
            found = []
            for way in ("usual_way", "our_way"):
                words = [sys.executable, "-m", "benchmarks.analysis", "peak", way, str(tokens), str(layers)]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                found.append(float(done.stdout.split()[-1]))
            one = HEADS * tokens**2 * 4 / 2**20
            print(f"| {tokens} | {layers} | {one:.0f} | {found[0]:.0f} | {found[1]:.0f} |", flush=True)


def peak(way: str, tokens: int, layers: int) -> None:
    """Print the peak memory of one way above the model and a plain forward pass, in MiB."""
    model = xl_model(layers, "fresh")
    batches = data(model, 1, tokens)
    # Libraries allocate memory at their first call.
    torch.linalg.eigvalsh(torch.linalg.qr(torch.rand(8, 8))[0])
    torch.linalg.svdvals(torch.rand(8, 8))
    plain_pass(model, batches)
    before = highest_memory(plain_pass, model, batches)
    print((highest_memory(globals()[way], model, batches) - before) / 1024)


def highest_memory(function: Callable[..., object], *args: object) -> int:
    """Return the most memory that this process had while a function ran, in KiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: building a model takes more than running it
    function(*args)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def show_linear() -> None:
    """Print seconds for more layers and for more sequences of 256 tokens: twice as much costs twice as much."""
    print("| layers | sequences | seconds | ms per layer and sequence |\n|---|---|---|---|")
    for layers, sequences in ((1, 4), (2, 4), (4, 4), (1, 8), (1, 16)):
        model = xl_model(layers, "fresh")
        batches = data(model, sequences, 256)
        taken = min(seconds(our_way, model, batches) for _ in range(3))
        print(f"| {layers} | {sequences} | {taken:.2f} | {1e3 * taken / layers / sequences:.1f} |", flush=True)


def run_protocol() -> None:
    """Print seconds for the paper's protocol on the whole shape: 48 layers, 100 sequences of 100 tokens."""
    model = xl_model(48, "diffuse")
    batches = data(model, 100, 100)
    our_way(model, batches[:1])
    print(f"48 layers, 100 sequences of 100 tokens on {DEVICE}: {seconds(our_way, model, batches):.1f} s")


def main() -> None:
    """Run the named parts, or all but the protocol."""
    if sys.argv[1:2] == ["peak"]:
        torch.set_num_threads(1)
        peak(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    parts = {
        "seconds": compare_seconds,
        "memory": compare_memory,
        "linear": show_linear,
        "protocol": run_protocol,
    }
    for word in sys.argv[1:]:
        if word.isdigit():
            torch.set_num_threads(int(word))
    print(f"{DEVICE}, {torch.get_num_threads()} threads\n")
    chosen = [word for word in sys.argv[1:] if word in parts] or ["seconds", "memory", "linear"]
    for word in chosen:
        parts[word]()
        print()


if __name__ == "__main__":
    main()
