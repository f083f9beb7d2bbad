"""
Hold forecasts of how rounds end against rounds that have ended, and write docs/results/forecast.md.

    python docs/results/forecast.py train BOOKS...
    python docs/results/forecast.py

BOOKS are the English collection of ELTeC as JSON rows of `id` and `text`, as for examples/train_reference.py. `train`
trains students of that reference on one thread (15 minutes) and keeps their losses in docs/results/forecast.json. The
page is made from these, from the records in mechanism/ and from the log of the reference itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.special import stdtrit
from transformers import AutoTokenizer, TrainingArguments, get_scheduler

from inheritune_hf import DataConfig, InherituneConfig, InherituneTrainer, forecast
from inheritune_hf.data import load_data_splits
from inheritune_hf.data.embedded import embedded_reference
from inheritune_hf.experiments.runs import loss_curve
from inheritune_hf.records import read_json, write_json, write_text

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
TAIL = 0.05

#: What differs from a cosine schedule, 6 layers at most, 160 steps a round and an evaluation every 10.
RUNS: dict[str, dict[str, Any]] = {
    "first-3-6-9": {"keep_layers": 3, "grow_by": 3, "max_layers": 9},
    "first-6-8": {"keep_layers": 6, "max_layers": 8, "learning_rate": 3e-3},
    "spaced-6": {"keep_layers": "spaced:6", "lr_scheduler_type": "linear"},
    "random-4": {"keep_layers": 4, "max_layers": 4, "inherit": "embeddings", "learning_rate": 3e-3},
    "decay-6": {
        "keep_layers": 6,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": 40},
    },
    "constant-4-6": {"keep_layers": 4, "lr_scheduler_type": "constant_with_warmup"},
    "continue-4-6-8": {"keep_layers": 4, "max_layers": 8, "growth": "continue", "lr_scheduler_type": "linear"},
    "full-12": {"keep_layers": 12, "max_layers": 12},
    "last-6": {"keep_layers": "last:6", "learning_rate": 3e-3},
    "distil-6": {"keep_layers": "spaced:6", "distillation": "cross_entropy=0.3,forward_kl=0.7"},
    "slow-6": {"keep_layers": "0:3,9:12", "learning_rate": 1e-4},
    "long-6": {"keep_layers": "spaced:6", "steps_per_round": 480, "eval_steps": 40},
}


@dataclass(frozen=True)
class Ended:
    """A round that has ended: its run, the rate of every step, and its evaluations, the last one at its end."""

    run: str
    rates: tuple[float, ...]
    steps: tuple[int, ...]
    losses: tuple[float, ...]

    def moments(self) -> Iterator[int]:
        """Yield the numbers of evaluations after which a forecast is made."""
        for count in range(forecast.MIN_EVALUATIONS, len(self.steps)):
            if self.steps[count - 1] >= forecast.MIN_SHARE * len(self.rates):
                yield count


#: Lower end, median and upper end of a 90 % interval of the loss at the end.
Interval = tuple[float, float, float]


def train(books: list[str]) -> None:
    """Train the runs and keep their evaluations."""
    sys.path.insert(0, str(EXAMPLES))
    from train_reference import split_books

    torch.set_num_threads(1)
    tokenizer, parts = AutoTokenizer.from_pretrained(embedded_reference()), split_books(books)
    sets = {"train": parts["demo"][:4], "selection": parts["evaluation"][:-2], "test": parts["evaluation"][-2:]}
    kept = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in sets.items():
            rows = "".join(json.dumps({"text": book["text"]}) + "\n" for book in part)
            write_text(Path(folder) / f"{name}.jsonl", rows)
        files: dict[str, Any] = {f"{name}_files": [str(Path(folder) / f"{name}.jsonl")] for name in sets}
        splits = load_data_splits(DataConfig(**files, block_size=128, max_sequences_per_document=2), tokenizer)
        for name, settings in RUNS.items():
            trainer = trainer_of(Path(folder) / name, settings, splits, tokenizer)
            trainer.train()
            rounds = [{"start": item.start_step, "end": item.end_step} for item in trainer.rounds]
            kept[name] = {"rounds": rounds, "curve": loss_curve(trainer.state)}
    write_json(HERE / "forecast.json", kept)


def trainer_of(folder: Path, settings: dict[str, Any], splits: Any, tokenizer: Any) -> InherituneTrainer:
    """Return a trainer of a student of the small reference."""
    fields = InherituneConfig.__dataclass_fields__
    recipe = {
        "steps_per_round": 160,
        "max_layers": 6,
        **{name: value for name, value in settings.items() if name in fields},
    }
    arguments = {
        "lr_scheduler_type": "cosine",
        "learning_rate": 1e-3,
        "eval_steps": 10,
        **{name: value for name, value in settings.items() if name not in fields},
    }
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=48,
        warmup_steps=0.1,
        weight_decay=0.1,
        adam_beta2=0.95,
        eval_strategy="steps",
        save_steps=10**6,
        report_to="none",
        use_cpu=True,
        save_total_limit=1,
        disable_tqdm=True,
        **arguments,
    )
    return InherituneTrainer(
        embedded_reference(),
        InherituneConfig(**recipe),
        args,
        splits.train,
        splits.selection,
        tokenizer,
    )


def rates_of(kind: str, steps: int, warmup: int, **settings: Any) -> tuple[float, ...]:
    """Return the learning rate of every step, as a share of the peak."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler: Any = get_scheduler(kind, optimizer, warmup, steps, settings)
    return tuple(float(scheduler.lr_lambdas[0](step)) for step in range(steps))


def ended_rounds() -> dict[str, list[Ended]]:
    """Return the recorded rounds, by where they are from."""
    rounds: dict[str, list[Ended]] = {"inherited": [], "random": [], "reference": [], "fresh": []}
    for path in sorted((HERE / "mechanism").glob("*.json")):
        for cell in read_json(path).get("comparison", {}).get("cells", []):
            if cell["outcome"] is None:  # not a loop: one round
                steps = tuple(round(tokens * cell["steps"] / cell["tokens"]) for tokens, _, _ in cell["curve"])
                rates = rates_of("cosine_with_min_lr", cell["steps"], -(-cell["steps"] // 20), min_lr_rate=0.1)
                losses = tuple(loss for _, _, loss in cell["curve"])
                rounds["random" if cell["arm"].startswith("random") else "inherited"].append(
                    Ended(f"mechanism, seed {cell['seed']}", rates, steps, losses)
                )
    log = json.loads((EXAMPLES / "reference" / "first.json").read_text(encoding="utf-8"))
    points = [(row["step"], row["eval_loss"]) for row in log if row.get("eval_loss") and row["step"]]
    rates = rates_of("warmup_stable_decay", points[-1][0], 300, num_decay_steps=3800)
    rounds["reference"].append(Ended("reference", rates, *map(tuple, zip(*points, strict=True))))
    for name, run in read_json(HERE / "forecast.json").items():
        for item in run["rounds"]:
            length = item["end"] - item["start"]
            settings = RUNS[name].get("lr_scheduler_kwargs", {})
            rates = rates_of(RUNS[name].get("lr_scheduler_type", "cosine"), length, -(-length // 10), **settings)
            points = [
                (step - item["start"], loss) for step, loss in run["curve"] if item["start"] < step <= item["end"]
            ]
            rounds["fresh"].append(Ended(name, rates, *map(tuple, zip(*points, strict=True))))
    return rounds


# Candidates: each takes a round and how many of its evaluations are known


def power_law_of_steps(item: Ended, count: int) -> Interval:
    """Fit level + size × step^-exponent by least squares; the interval is that of its linearisation."""
    steps, losses, end = np.array(item.steps[:count], float), np.array(item.losses[:count]), float(len(item.rates))

    def law(step: Any, level: float, size: float, exponent: float) -> Any:
        return level + size * (step / end) ** -exponent

    start = [losses[-1] - 0.05, max(losses[0] - losses[-1], 0.05), 0.5]
    found = least_squares(
        lambda values: law(steps, *values) - losses, start, bounds=([0, 0, 0.05], [np.inf, np.inf, 2])
    ).x

    def slopes(step: Any) -> Any:
        power = (step / end) ** -found[2]
        return np.stack([np.ones_like(step), power, -found[1] * power * np.log(step / end)], -1)

    return _interval(law(end, *found), losses - law(steps, *found), slopes(steps), slopes(np.array(end)))


def annealing_by_least_squares(item: Ended, count: int) -> Interval:
    """Fit the law of the package by least squares: the best point of its grid, with the interval of that point."""
    rates, places = np.array(item.rates), np.array([*item.steps[:count], len(item.rates)])
    area = np.concatenate([[0], np.cumsum(rates)])[places] / rates.sum()
    rate, losses = np.append(rates, rates[-1])[places] / rates.max(), np.array(item.losses[:count])
    best: Any = None
    for horizon in np.exp(np.linspace(-6, 1, 8)):
        terms = np.stack([np.ones(count + 1), (1 + area / horizon) ** (-1 / 3), rate], -1)
        found = np.linalg.lstsq(terms[:-1], losses, rcond=None)[0]
        rest = losses - terms[:-1] @ found
        if best is None or rest @ rest < best[1] @ best[1]:
            best = terms[-1] @ found, rest, terms[:-1], terms[-1]
    return _interval(*best)


def _interval(end: float, rest: Any, slopes: Any, slopes_at_end: Any) -> Interval:
    freedom = max(1, len(rest) - 3)
    share = 1 + slopes_at_end @ np.linalg.pinv(slopes.T @ slopes) @ slopes_at_end
    reach = float(stdtrit(freedom, 1 - TAIL) * np.sqrt(rest @ rest / freedom * share))
    return float(end) - reach, float(end), float(end) + reach


def mixture(item: Ended, count: int) -> Interval:
    """Return what the package forecasts."""
    found = _forecast(item, count)
    lower, median, upper = (float(found.quantile(share)[0]) for share in (TAIL, 0.5, 1 - TAIL))
    return lower, median, upper


def _forecast(item: Ended, count: int) -> forecast.LossForecast:
    return forecast.forecast_loss(item.steps[:count], item.losses[:count], item.rates, [len(item.rates)])


CANDIDATES: dict[str, Callable[[Ended, int], Interval]] = {
    "power law in steps, least squares": power_law_of_steps,
    "power law in the summed rate and annealing, least squares": annealing_by_least_squares,
    "the same, averaged over its shapes (used)": mixture,
}


def figures(rounds: Sequence[Ended], candidate: Callable[[Ended, int], Interval], late: bool) -> str:
    """Return cells of a table: forecasts, coverage, mean and median width, mean error of the median."""
    made = [
        (item.losses[-1], *candidate(item, count))
        for item in rounds
        for count in item.moments()
        if (item.steps[count - 1] >= len(item.rates) / 2) == late
    ]
    if not made:
        return "0 | | | | "
    end, lower, median, upper = np.array(made).T
    held = ((lower <= end) & (end <= upper)).mean()
    width = upper - lower
    return f"{len(made)} | {held:.0%} | {width.mean():.3f} | {np.median(width):.3f} | {abs(end - median).mean():.3f}"


def leave_one_run_out(rounds: Sequence[Ended]) -> tuple[float, int, list[str]]:
    """
    Return coverage from half way on where two constants are chosen without the run, the forecasts, and the choices.

    Chosen is the pair with the best mean logarithm of the probability density at the true end, each run weighing alike.
    """
    walk, annealed = forecast._WALK, forecast._ANNEALED
    pairs = [(share * walk, (annealed[0], wider * annealed[1])) for share in (0.5, 1, 2) for wider in (0.5, 1, 2)]
    runs = sorted({item.run for item in rounds})
    scores, held = np.zeros((len(pairs), len(runs))), [[0.0] * len(runs) for _ in pairs]
    counts = [0] * len(runs)
    for place, pair in enumerate(pairs):
        forecast._WALK, forecast._ANNEALED = pair
        for number, run in enumerate(runs):
            late = [
                (item, count)
                for item in rounds
                for count in item.moments()
                if item.run == run and item.steps[count - 1] >= len(item.rates) / 2
            ]
            marks = [_mark(_forecast(item, count), item.losses[-1]) for item, count in late]
            scores[place, number], held[place][number] = np.mean(marks, axis=0)
            counts[number] = len(marks)
    forecast._WALK, forecast._ANNEALED = walk, annealed
    chosen = [int((scores.sum(1) - scores[:, number]).argmax()) for number in range(len(runs))]
    coverage = sum(held[place][number] * counts[number] for number, place in enumerate(chosen)) / sum(counts)
    return coverage, sum(counts), [f"walk {pairs[place][0]:g}, annealing {pairs[place][1][1]:g}" for place in chosen]


def _mark(found: forecast.LossForecast, end: float) -> tuple[float, float]:
    """Return the log density at the true end, and whether it lies between the two ends of the interval."""
    inside, step = float(found.below(end)[0]), 1e-4
    density = float(found.below(end + step)[0] - found.below(end - step)[0]) / (2 * step)
    return float(np.log(density + 1e-9)), float(TAIL <= inside <= 1 - TAIL)


def abandoned(rounds: Sequence[Ended], margin: float) -> tuple[float, float]:
    """
    Return the share of rounds that `abandon: 0.95` ends, and the share of their steps that this saves.

    Low enough for a match is a loss of `margin` above the one that each round has ended with.
    """
    saved = []
    for item in rounds:
        low_enough = item.losses[-1] + margin
        sure = [count for count in item.moments() if _forecast(item, count).below(low_enough)[0] <= TAIL]
        second = next((count for count in sure if count - 1 in sure), None)
        saved.append(0.0 if second is None else 1 - item.steps[second - 1] / len(item.rates))
    return float(np.mean(np.array(saved) > 0)), float(np.mean(saved))


_PAGE = """# How well forecasts hold

Every result on this page is written by one command:

```text
python docs/results/forecast.py
```

At each evaluation of a round, from the third one and a quarter of its steps on, the loss at its end is forecast with
a 90 % interval ([how to read and use it](../how-to/grow.md#forecasts)). Here every forecast is compared with the loss
with which the round ended. The rounds:

- **inherited**: {inherited} cells of [all arms on one budget](mechanism.md) that are one round and begin with layers of
  the reference, at tuned rates, under a cosine schedule that ends at a tenth, of {lengths[inherited]} steps with
  {fewest} evaluations or more.
- **random**: {random} cells that begin with random weights, likewise, of {lengths[random]} steps.
- **reference**: the first stage of the embedded reference, 15,400 steps with a constant rate until the last quarter.
- **fresh**: {fresh} rounds of {runs} runs made for this page from its end, of 160 steps with 16 evaluations
  (one of 480 with 12): depths of 3 to 12, inherited and random, at rates of 1e-4 to 3e-3, under cosine, linear,
  constant and warm-up, stable, decay schedules, grown by both ways, one distilled. Losses are on 22 novels × 2
  sequences of 128 tokens.

## The model

With u the learning rates summed up to a step, as a share of the round's, and a the rate of the next step, as a share
of the peak:

```text
loss = level + size × power + annealing × a^q + random walk in u + noise × a
```

where power is (1 + u / horizon)^(-1/3), scaled to fall by 1 over the round, and annealing is in nats per token.

Power and annealing are those of [a scaling law with learning rate annealing](https://arxiv.org/abs/2408.11029), with
the second one immediate. Level and size are fitted by generalised least squares. Horizon, annealing and q are not:
240 triples are averaged, each by its prior and how well it fits, which gives a mixture of t distributions. So a decay
of the rate that has not begun yet widens the interval, and a curve in which the rate has already fallen narrows it.

## Coverage and width

An interval should hold the end in 90 of 100 cases. Widths and errors are in nats per token. Students of a
run begin with layers of the reference; random weights at a tuned rate, which fall much further as the rate decays, are
forecast too high.

{tables}

The constants of the model (priors, exponent, noise and walk) were chosen by hand on these same rounds. Left out one
run at a time (a seed of the mechanism check counts as one), with the variance of the walk and the width of the
annealing's prior chosen on the others out of half, one and two times their values: {out:.0%} of {out_count} intervals
from half way on hold. The choices were: {choices}.

Forecasts of one round are not independent, nor are cells of the mechanism check with the same seed: they share their
batches, and the jumps that these make.

What was tried and left out: q fixed at 1, with an annealing expected to be half as large (on the first four arms of
the mechanism check, whose rates are tuned, 59 of 100 intervals from half way on held); and to let
earlier rounds of a run weigh the shapes. Later rounds have another shape, and between a quarter and half of a round
intervals held less often.

## What `abandon: 0.95` does

It takes two forecasts in a row. If a match took a loss that is this much above the one each round ended with (below 0:
the round misses):

| nats per token | inherited: abandoned | steps saved | fresh: abandoned | steps saved |
|---:|---:|---:|---:|---:|
{rows}

Where the margin is not below 0, an abandoned round would have matched.
"""


def page() -> None:
    """Write the page."""
    rounds = ended_rounds()
    everything = [item for part in rounds.values() for item in part]
    tables = []
    for title, late in (("From half way on", True), ("From a quarter to half", False)):
        tables.append(f"### {title}\n\n| rounds | model | forecasts | held | mean width | median | mean error |")
        tables[-1] += "\n|---|---|---:|---:|---:|---:|---:|"
        for name, part in rounds.items():
            for model, candidate in CANDIDATES.items():
                tables[-1] += f"\n| {name} | {model} | {figures(part, candidate, late)} |"
    out, count, choices = leave_one_run_out(everything)
    rows = []
    for margin in (-0.3, -0.1, -0.03, -0.01, 0.0, 0.01, 0.03):
        cells = [
            f"{ended:.0%} | {saved:.0%}"
            for ended, saved in (abandoned(rounds[part], margin) for part in ("inherited", "fresh"))
        ]
        rows.append(f"| {margin:+.2f} | {' | '.join(cells)} |")
    times = {choice: choices.count(choice) for choice in dict.fromkeys(choices)}
    lengths = {
        name: " or ".join(f"{steps:,}" for steps in sorted({len(item.rates) for item in rounds[name]}))
        for name in ("inherited", "random")
    }
    text = _PAGE.format(
        inherited=len(rounds["inherited"]),
        random=len(rounds["random"]),
        lengths=lengths,
        fewest=min(len(item.steps) for item in rounds["inherited"]),
        fresh=len(rounds["fresh"]),
        runs=len(RUNS),
        tables="\n\n".join(tables),
        out=out,
        out_count=count,
        choices="; ".join(f"{choice} ({number} of {len(choices)})" for choice, number in times.items()),
        rows="\n".join(rows),
    )
    write_text(HERE / "forecast.md", text)


if __name__ == "__main__":
    train(sys.argv[2:]) if sys.argv[1:2] == ["train"] else page()
