"""Write docs/results/real.md and its figure from the records of run.py; nothing on the page is typed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from scipy.stats import bootstrap, spearmanr

from inheritune_hf.figures import LIGHT, Panel, arm_panel, save_panels
from inheritune_hf.records import read_json, write_text

HERE = Path(__file__).parent

_PAGE = """# A released model, from its file to a published student

{model} ({reference_layers} layers; 4-bit weights of a GGUF file, dequantized; {package} of the package
index) was taken along the whole path by the verbs of this package, on one thread of {machine}, by

```console
make real BOOKS=novels ZERO_SHOT=tasks WORK=work
```

Every student, and the reference that was *adapted*, trained further on the same novels, had {tokens:,} tokens (one
seed, one learning rate, not tuned: `docs/results/real/recipe.yaml`). Losses are in nats per token, on {test}
other English novels ({test_tokens:,} tokens, spread over each); whether the model itself has seen them is not known.
The starting reference is at {starting:.4f}, the adapted one at {adapted:.4f}. A student matches if the 95 % upper bound
of its difference is at most {tolerance:g}.

## Result

{summary}

![Selection loss of every arm against training tokens, and the level of both references](real.png)

| arm | layers of {reference_layers} | untrained | test loss | to the starting reference | to the adapted reference | \
Python, to the starting | FLOPs |
|---|---:|---:|---:|---:|---:|---:|---:|
{rows}

`skip` keeps the layers without which alone the loss would be highest, `first` the first ones. `distilled` students
start from the adapted reference and have it as their teacher, `adapted` ones start from it and have none, the others
start from the starting reference. FLOPs are those of the training, the teacher's included; what the adapted
reference took is not. In brackets: 95 % one-sided bounds, which cluster by document. *Python* is the source of
Python's standard library ({library} modules), to see what the training did to other text. The untrained loss is that
of the selection set.

{measured}## Which measure predicts the layers that can be dropped

On {sequences} sequences of training text. Spearman's correlation over layers of a measure with the loss added by
skipping the layer, with a 95 % interval of a bootstrap over layers:

| measure | correlation |
|---|---:|
{correlations}

{lazy}

## What to copy

{copy}

With the recipe of these arms, `docs/results/real/recipe.yaml`, and a folder that `inheritune data prepare` made of
your own text:

```text
inheritune adapt MODEL --config recipe.yaml --dataset_name FOLDER --steps_per_round 489 --output_dir adapted
inheritune train --config recipe.yaml --reference MODEL --keep_layers skip:25 --max_layers 25 --dataset_name FOLDER \\
  --steps_per_round 489 --output_dir student
inheritune evaluate student --reference MODEL --adapted adapted --config student/settings.json --second-files OTHER
```

## What failed

{failed}

## What is not established

One seed of each arm, one model, one text and {tokens:,} tokens: two arms whose intervals overlap are not told
apart, and what a longer training would bring is not known.{missing}
"""

_MEASURED = """## Tasks, speed, memory and drafting

| model | {task_names} | parameters | peak memory | tokens per second, beside the starting reference | greedy tokens \
accepted as its draft | layers near rank 1 |
|---|{task_rules}---:|---:|---:|---:|---:|
{speeds}

Tasks are the first {rows_of_task} rows of each, zero-shot, with standard errors of up to {task_error:.3f}. Weights are
bfloat16 in this table but for the last column; everything above is float32. Speeds are medians of three on a machine
that did other work{noise}.

"""


def write_page(source: Path) -> None:
    """Keep the records of a run beside this script, and write page and figure from them."""
    for path in sorted(source.glob("*.json")):
        shutil.copy(path, HERE)
    records = read_records(HERE)
    write_text(HERE.parent / "real.md", page(records))
    save_panels(HERE.parent / "real.png", [panel(records)])


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records by their names."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}


def arms_of(records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the records of arms, the deepest first, and of one depth by their name."""
    names = [name for name in records if name.partition("-")[0].isdigit()]
    return {name: records[name] for name in sorted(names, key=lambda name: (-int(name.partition("-")[0]), name))}


def page(records: dict[str, dict[str, Any]]) -> str:
    """Return the page that the records make."""
    adapted, arms, analysis = records["adapted"], arms_of(records), records["analysis"]
    own = adapted["evaluation"]
    test, library = own["corpora"]
    measures = analysis["measures"]
    return _PAGE.format(
        model=records["reference"]["file"].partition(".")[0],
        package=records["reference"]["package"].partition("=")[0],
        machine=adapted["machine"],
        reference_layers=own["layers"]["reference"],
        tokens=adapted["tokens"],
        test=test["documents"],
        test_tokens=test["tokens"],
        starting=test["reference"]["loss"],
        adapted=test["student"]["loss"],
        tolerance=own["tolerance"],
        summary=summary(arms),
        rows="\n".join(_row(name, arm) for name, arm in {"adapted": adapted, **arms}.items()),
        library=library["documents"],
        measured=measured(records, ["adapted", *arms]),
        sequences=analysis["sequences"],
        correlations="\n".join(
            f"| {name} | {correlation(measures[name], measures['skip'])} |" for name in measures if name != "skip"
        ),
        lazy=lazy(analysis),
        copy=copy(arms),
        failed=failed(records, arms),
        missing=missing(arms),
    )


def measured(records: dict[str, dict[str, Any]], names: list[str]) -> str:
    """Return the section on tasks, speed, memory and drafting, of the models that were measured; empty if none was."""
    found = {name: records[f"measured-{name}"]["evaluation"] for name in names if f"measured-{name}" in records}
    if not found:
        return ""
    one = next(iter(found.values()))
    tasks = accuracies(one)
    return _MEASURED.format(
        task_names=" | ".join(task["task"] for task in tasks),
        task_rules="---:|" * len(tasks),
        rows_of_task=max(task["rows"] for task in tasks),
        task_error=max(task["reference_error"] for task in tasks),
        noise=noise(found),
        speeds="\n".join([_reference_speed(one), *(_speed_row(name, item) for name, item in found.items())]),
    )


def summary(arms: dict[str, dict[str, Any]]) -> str:
    """Return which arms match which reference, by depth, both claims side by side."""
    lines = []
    for against, name in (("starting", "the starting reference"), ("adapted", "the adapted reference")):
        matched = {arm: verdict(record, against)["matched"] for arm, record in arms.items()}
        kept = [arm for arm, yes in matched.items() if yes]
        if kept:
            least = min(kept, key=lambda arm: len(arms[arm]["layers"]))
            lines.append(
                f"- As good as **{name}**: {', '.join(f'`{arm}`' for arm in kept)}; the shallowest is `{least}`."
            )
        else:
            nearest = min(arms, key=lambda arm: verdict(arms[arm], against)["difference"])
            lines.append(
                f"- As good as **{name}**: none of {len(arms)} arms. The nearest is `{nearest}`, "
                f"{interval(verdict(arms[nearest], against))}."
            )
    for depth in sorted({name.partition("-")[0] for name in arms}, reverse=True):
        skip, first = arms.get(f"{depth}-skip"), arms.get(f"{depth}-first")
        if skip and first:
            begin, end = first["untrained"] - skip["untrained"], loss(first) - loss(skip)
            lines.append(
                f"- The first {depth} layers begin {apart(begin, 2)} {depth} by `skip` and end {apart(end)} them."
            )
        lines += [
            f"- `{name}` reached the final selection loss of `{depth}-first`, {first['curve'][-1][1]:.4f}, after "
            f"{tokens:,} of its {arm['tokens']:,} tokens."
            for name, arm in arms.items()
            if first and name.endswith("-skip") and len(arm["layers"]) <= int(depth)
            for tokens in [next((round(at) for at, found in arm["curve"] if found <= first["curve"][-1][1]), None)]
            if tokens is not None
        ]
        taught, plain = arms.get(f"{depth}-skip-distilled"), arms.get(f"{depth}-skip-adapted")
        if taught and skip:
            python = [verdict(arm, "starting", 1)["difference"] for arm in (taught, skip)]
            lines.append(
                f"- Started from the adapted reference and taught by it, {depth} layers by `skip` end "
                f"{apart(loss(taught) - loss(skip))} `{depth}-skip`, for {taught['flops'] / skip['flops']:.1f} times "
                f"the FLOPs and those of adapting; on Python {apart(python[0], 2)} the starting reference, "
                f"`{depth}-skip` {apart(python[1], 2)} it."
            )
        if taught and plain:
            lines.append(
                f"- Distillation moves {depth} layers by `skip` by {loss(taught) - loss(plain):+.4f}, "
                f"from {loss(plain):.4f}."
            )
    return "\n".join(lines)


def apart(difference: float, digits: int = 4) -> str:
    """Return how far a loss lies above or below another."""
    return f"{abs(difference):.{digits}f} nats {'above' if difference >= 0 else 'below'}"


def verdict(record: dict[str, Any], against: str, corpus: int = 0) -> dict[str, Any]:
    """Return an arm's comparison with the starting or the adapted reference on a corpus."""
    corpora = record["evaluation"]["corpora" if against == "starting" else "adapted_corpora"]
    found: dict[str, Any] = corpora[corpus]["match"]
    return found


def loss(record: dict[str, Any]) -> float:
    """Return the test loss in nats per token."""
    value: float = record["evaluation"]["corpora"][0]["student"]["loss"]
    return value


def accuracies(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the comparisons of tasks by accuracy."""
    return [task for task in evaluation["tasks"] if task["metric"] == "acc"]


def interval(match: dict[str, Any]) -> str:
    """Return a difference with its bounds."""
    bounds = "" if match["lower"] is None else f" [{match['lower']:+.4f}, {match['upper']:+.4f}]"
    return f"{match['difference']:+.4f}{bounds}"


def _row(name: str, record: dict[str, Any]) -> str:
    adapted = interval(verdict(record, "adapted")) if record["evaluation"]["adapted_corpora"] else ""
    return (
        f"| `{name}` | {len(record['layers'])} | {record['untrained']:.2f} | {loss(record):.4f} | "
        f"{interval(verdict(record, 'starting'))} | {adapted} | {interval(verdict(record, 'starting', 1))} | "
        f"{record['flops']:.2g} |"
    )


def noise(found: dict[str, dict[str, Any]]) -> str:
    """Return by how much the speeds of models of one shape differ; empty if no two are of one."""
    gains: dict[int, list[float]] = {}
    for one in found.values():
        speed = next(item for item in one["efficiency"]["speeds"] if item["quantity"] == "tokens per second")
        gains.setdefault(one["efficiency"]["student"]["parameters"], []).append(speed["gain"]["median"])
    most = max(max(group) / min(group) for group in gains.values())
    return "" if most == 1 else f": models of one shape, which are equally fast, differ by up to {most - 1:.0%} here"


def _reference_speed(measured: dict[str, Any]) -> str:
    scores = " | ".join(f"{task['reference']:.3f}" for task in accuracies(measured))
    size, lazy = measured["efficiency"]["reference"], measured["laziness"]["comparison"]
    return f"| starting reference | {scores} | {_size(size)} | | | {lazy['reference']} |"


def _speed_row(name: str, found: dict[str, Any]) -> str:
    scores = " | ".join(f"{task['student']:.3f}" for task in accuracies(found))
    speeds = [item for item in found["efficiency"]["speeds"] if item["quantity"] == "tokens per second"]
    gains = ", ".join(f"{item['gain']['median']:.2f} × at batch {item['batch']}" for item in speeds)
    greedy = next(item for item in found["drafts"] if item["mode"] == "greedy")
    accepted = f"{greedy['accepted'] / max(1, greedy['drafted']):.0%}, {greedy['speed_up']['median']:.2f} ×"
    size, lazy = found["efficiency"]["student"], found["laziness"]["comparison"]
    return f"| `{name}` | {scores} | {_size(size)} | {gains} | {accepted} | {lazy['student']} |"


def _size(size: dict[str, Any]) -> str:
    memory = "" if size["peak_memory"] is None else f"{size['peak_memory'] / 1e6:,.0f} MB"
    return f"{size['parameters']:,} | {memory}"


def correlation(one: list[float], other: list[float]) -> str:
    """Return Spearman's correlation over layers with the percentile interval of a bootstrap."""
    found = spearmanr(one, other)
    drawn = bootstrap(
        (one, other), lambda x, y: spearmanr(x, y).statistic, paired=True, vectorized=False, method="percentile", rng=0
    ).confidence_interval
    return f"{found.statistic:+.2f} [{drawn.low:+.2f}, {drawn.high:+.2f}]"


def lazy(analysis: dict[str, Any]) -> str:
    """Return which layers of the starting reference are lazy, and what it costs to skip them."""
    skip, layers = analysis["measures"]["skip"], analysis["lazy"]
    if not layers:
        return "No layer of the starting reference is near rank 1."
    costs = ", ".join(
        f"layer {layer}: {skip[layer]:+.3f} (rank {_place(skip, layer)} of {len(skip)})" for layer in layers
    )
    return f"Near rank 1 in the starting reference, with the loss added by skipping them: {costs}."


def _place(costs: list[float], layer: int) -> int:
    return sorted(costs, reverse=True).index(costs[layer]) + 1


def copy(arms: dict[str, dict[str, Any]]) -> str:
    """Return what to do with one's own model: the choice that ended best at each depth."""
    lines = []
    for depth in sorted({name.partition("-")[0] for name in arms}, reverse=True):
        here = {name: arm for name, arm in arms.items() if name.startswith(f"{depth}-")}
        best = min(here, key=lambda name: loss(here[name]))
        which = f" ended lowest of {len(here)} arms," if len(here) > 1 else " ended"
        lines.append(f"- {depth} layers: `{best}`{which} at {loss(here[best]):.4f}.")
    return "\n".join(lines)


def failed(records: dict[str, dict[str, Any]], arms: dict[str, dict[str, Any]]) -> str:
    """Return what the students lost beside their loss on the novels, at best and at worst."""
    adapted, other = records["adapted"], [verdict(arm, "starting", 1)["difference"] for arm in arms.values()]
    lines = [
        f"- Text of another kind: {min(other):+.2f} to {max(other):+.2f} nats per token on Python. Adapting alone "
        f"costs {verdict(adapted, 'starting', 1)['difference']:+.2f}."
    ]
    found = [records[f"measured-{name}"]["evaluation"] for name in arms if f"measured-{name}" in records]
    if found:
        tasks = [
            f"{task['task']} {task['reference']:.3f} to {max(accuracies(one)[place]['student'] for one in found):.3f}"
            for place, task in enumerate(accuracies(found[0]))
        ]
        speeds = [item["speed_up"]["median"] for one in found for item in one["drafts"] if item["mode"] == "greedy"]
        lines += [
            f"- Tasks, of the best student in each: {', '.join(tasks)}.",
            f"- Drafting: with a student as its draft the starting reference generates at {min(speeds):.2f} to "
            f"{max(speeds):.2f} times its speed alone.",
        ]
    return "\n".join(lines)


def missing(arms: dict[str, dict[str, Any]]) -> str:
    """Return which arms of run.py have not been run."""
    from run import ARMS

    left = [f"`{name}`" for name in ARMS if name not in arms]
    return f" Not run yet: {', '.join(left)}." if left else ""


def panel(records: dict[str, dict[str, Any]]) -> Panel:
    """Return the figure: selection loss against tokens, and both references' levels."""
    adapted = records["adapted"]
    curves = {name: [tuple(point) for point in arm["curve"]] for name, arm in arms_of(records).items()}
    below = arm_panel(
        {"adapted": adapted["curve"], **curves}, adapted["target"], {name: [] for name in ["adapted", *curves]}
    )

    def draw(axes: Any, width: float) -> None:
        below.draw(axes, width)
        axes.set_title("nats per token")
        end = adapted["curve"][-1][1]
        axes.axhline(end, color=LIGHT["reference"], linewidth=1.3, dashes=(2, 2), label=f"adapted reference {end:.4f}")

    return Panel(below.height, draw)
