"""Write docs/results/mechanism.md and its figures from the records of run.py; nothing on the page is typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from inheritune_hf.evaluation import SeedDifference, compare_over_seeds
from inheritune_hf.experiments.results import Cell, ComparisonRecord, difference, mean_curves
from inheritune_hf.figures import arm_panel, difference_panel, save_panels
from inheritune_hf.records import decode, read_json, write_text

HERE = Path(__file__).parent
PAGE = HERE.parent / "mechanism.md"
LOOPS = ("loop-heal", "loop-untaught", "loop-long", "loop-skip", "loop-first", "loop-paper")
GAIN, HALF = 0.01, 0.05  # what a reference worth matching gains at most, and what half its depth loses at least

_PAGE = """# All arms on one budget

Every figure on this page was made on one thread of {machine} by

```text
python docs/results/mechanism/run.py BOOKS...
python docs/results/mechanism/run.py page
```

The reference is the one in the package: GPT-2 with {layers} layers, {parameters:,} parameters, attention scaled by
depth as in the paper, trained on 45 English novels (ELTeC) for {seen:,} tokens, {each} for each parameter. Every arm
has a tenth of that, {tokens:,} tokens, but `random-2x` has twice and `loop-long` three times as many, and `skip-kd` and
`random-kd`, whose teacher counts too, have fewer for the same FLOPs. They are from the {train} novels that the
reference was trained on, as in the paper; an arm that chooses layers takes {kept}. Test and selection set are {test}
and {selection} passages of {books} other novels. Each learning rate was tuned with one seed until the best lay between
two others, and {seeds} seeds were run with it{alone}. Losses are in nats per token. Differences are paired by passage
and seed, with a 95 % interval that covers other passages and other seeds; one is *established* if its interval excludes
zero. The reference's test loss is {loss:.4f}; *trained further* is `continued`.

## Is the reference worth matching

{gate}

## Result

| arm | layers | learning rate | tokens | FLOPs | test loss | to the reference | to the reference trained further |
|---|---:|---:|---:|---:|---:|---:|---:|
{table}{notes}

![Each arm's difference to the reference on the test set, with its interval](mechanism-differences.png)

![Selection loss against tokens, one line for each arm, and the reference's level](mechanism.png)

## First layers against random weights

{random}

## How much of it is the moved attention scale

GPT-2 with `scale_attn_by_inverse_layer_idx` divides the attention logits of a block by its position. A block that moves
to another position keeps its own scale here, or takes that of the position (`moved-scale`).

{moved}

## Where the loop ends

`loop-heal` is `preset: heal` from 10 layers by `skip` on, in two rounds, with the reference as teacher; `loop-untaught`
is the same without a teacher. `loop-skip` and `loop-first` have none either, and begin with 9 layers by `skip` or the
first 9, in three rounds. All four get one layer after a miss, keep what was trained, and have one schedule over all
rounds. `loop-paper` is `preset: paper`: the first 6, then two more, inherited afresh, in four rounds; the last has all
layers, so that it is the reference itself and matches before its first step, at each rate. `loop-long` is one long
round of `preset: heal` with 9 layers by `skip`, at the rate of `loop-heal`: no deeper student is tried.

{loops}

## Layers by `skip` against first layers

`skip` keeps the layers without which alone the reference's loss would be highest.

{order}

## Distillation, for the same FLOPs

{distillation}

## Lazy layers

{lazy}

## As wide as GPT-2 small

{wide}

## What is not established

- One reference of {parameters:,} parameters and one kind of text: another reference was not tried, and nothing here is
  evidence about the paper's sizes.
- The test set has {books_of_test} novels. Its passages are taken as independent; those of one novel are not quite.
{teacher}{missing}"""

_TEACHER = """- What the teacher alone does for the loop: `loop-heal` also begins with one layer more, in longer rounds,
  than `loop-skip`.
"""

Records = dict[str, ComparisonRecord]


def read_records(folder: Path) -> Records:
    """Return the comparison of each arm by the record's name, in the order of run.py."""
    from run import ARMS

    paths = {name: folder / f"{name}.json" for name in ARMS}
    return {name: read_record(read_json(path)) for name, path in paths.items() if path.is_file()}


def read_record(values: dict[str, Any]) -> ComparisonRecord:
    """Return the comparison in a record, checked."""
    found = {name: value for name, value in values["comparison"].items() if name != "format"}
    return decode(ComparisonRecord, found, "comparison")


def write_page() -> None:
    """Write page and figures from the records beside this script."""
    records = read_records(HERE)
    write_text(PAGE, page(records, read_records(HERE / "wide"), facts(HERE)))
    rows = [
        (f"{name} ({depths(record.cells)})", found.difference, found.lower, found.upper)
        for name, record in by_loss(records).items()
        for found in [to_reference(record)]
    ]
    differences = difference_panel(rows, "test loss minus the reference's (nats per token); layers in brackets")
    save_panels(PAGE.with_name("mechanism-differences.png"), [differences])
    curves = {name: [curve(cell) for cell in record.cells] for name, record in by_loss(records).items()}
    means = {name: next(iter(mean_curves(record).values())) for name, record in by_loss(records).items()}
    level = first(records).reference.selection_loss
    save_panels(PAGE.with_suffix(".png"), [arm_panel(means, level, curves)])


def facts(folder: Path) -> dict[str, Any]:
    """Return by what the records were made, and what was measured of half the depth and without scaling, or None."""
    paths = {name: folder / f"{name}.json" for name in ("half", "unscaled")}
    kept = {name: read_json(path) if path.is_file() else None for name, path in paths.items()}
    machines = {read_json(path)["machine"] for path in folder.glob("*.json")}
    return {**kept, "machine": " or ".join(sorted(machines))}


def page(records: Records, wide: Records, made: dict[str, Any]) -> str:
    """Return the page that the records of the embedded and of the wide reference make."""
    from run import EMBEDDED, SELECTION_BOOKS, TEST_BOOKS

    one = first(records)
    reference, data = one.reference, one.data
    done = {*records, *(name for name in ("half", "unscaled") if made[name] is not None)}
    left = [f"`{name}`" for name in EMBEDDED.arms if name not in done]
    single = [f"`{name}`" for name, record in records.items() if len(record.compare.seeds) == 1]
    notes = sorted({found.note for record in records.values() if (found := to_reference(record)).note})
    return _PAGE.format(
        machine=made["machine"],
        layers=reference.layers,
        parameters=reference.parameters,
        seen=reference.tokens,
        each=round((reference.tokens or 0) / reference.parameters),
        tokens=one.cells[0].tokens,
        train=data.train.documents,
        kept=one.compare.layers,
        test=data.test.documents,
        selection=data.selection.documents,
        books=TEST_BOOKS + SELECTION_BOOKS,
        books_of_test=TEST_BOOKS,
        seeds=max(len(record.compare.seeds) for record in records.values()),
        alone=f" (but for {', '.join(single)}: one)" if single else "",
        loss=reference.test.loss,
        gate=gate(records, made["half"]),
        table="\n".join(row(name, record, records) for name, record in by_loss(records).items()),
        notes="".join(f"\n\nNote: {note}." for note in notes),
        random=lines(*against_random(records)),
        moved=lines(
            compared(records, "last", "inherited", "last layers to first layers"),
            compared(records, "middle", "inherited", "middle layers to first layers"),
            compared(records, "spaced", "inherited", "layers at equal distances to first layers"),
            *(moved(records, name) for name in ("last", "middle")),
        ),
        loops=lines(*(loop(records, name) for name in LOOPS)),
        order=lines(*by_order(records)),
        distillation=lines(
            compared(records, "random-kd", "random", "random weights, with a teacher to without"),
            compared(records, "skip-kd", "skip", "layers by `skip`, with a teacher to without"),
            compared(records, "loop-heal", "loop-untaught", "the loop for the same tokens, with a teacher to without"),
        ),
        lazy=lazy(records, made["unscaled"]),
        wide=as_wide(wide),
        teacher="" if "loop-untaught" in records else _TEACHER,
        missing=f"- Not run yet: {', '.join(left)}.\n" if left else "",
    )


def first(records: Records) -> ComparisonRecord:
    """Return any of the records: reference and data are the same in all."""
    return next(iter(records.values()))


def by_loss(records: Records) -> Records:
    """Return the records, lowest test loss first."""
    return dict(sorted(records.items(), key=lambda item: fmean(tests(item[1]))))


def tests(record: ComparisonRecord) -> list[float]:
    """Return the test loss of each seed."""
    return [cell.test.loss for cell in record.cells if cell.test is not None]


def to_reference(record: ComparisonRecord) -> SeedDifference:
    """Return the difference of an arm to the reference on the test set."""
    return compare_over_seeds(
        [cell.test for cell in record.cells if cell.test is not None], [record.reference.test] * len(record.cells)
    )


def pair(records: Records, name: str, other: str) -> SeedDifference | None:
    """Return the difference of two arms, paired by passage and seed; None if one was not run."""
    if name not in records or other not in records:
        return None
    found = {cell.seed: cell.test for cell in records[other].cells}
    both = [(cell.test, found[cell.seed]) for cell in records[name].cells if cell.seed in found]
    return compare_over_seeds([one for one, _ in both if one], [two for _, two in both if two])


def told(found: SeedDifference) -> str:
    """Return a difference with its interval, and whether it is told apart from zero."""
    apart = found.lower is not None and found.upper is not None and (found.lower > 0 or found.upper < 0)
    return f"{difference(found)}, {'established' if apart else 'not told apart'}"


def compared(records: Records, name: str, other: str, what: str) -> str:
    """Return a line on the difference of two arms; empty if one was not run."""
    found = pair(records, name, other)
    return "" if found is None else f"- {what} (`{name}` minus `{other}`): {told(found)}"


def lines(*found: str) -> str:
    """Return the lines that there are."""
    return "\n".join(line for line in found if line) or "Not run yet."


def depths(cells: Sequence[Cell]) -> str:
    """Return the depth of an arm's models, or the least and the greatest."""
    found = sorted({cell.layers for cell in cells})
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def curve(cell: Cell) -> list[tuple[int, float]]:
    """Return a cell's tokens and selection losses."""
    return [(tokens, loss) for tokens, _, loss in cell.curve]


def row(name: str, record: ComparisonRecord, records: Records) -> str:
    """Return an arm's row of the table."""
    cells, losses = record.cells, tests(record)
    rates = sorted(next(iter(record.sweep.values())), key=float)
    rate = f"{cells[0].learning_rate:g}"
    edge = "" if rates[0] != rate != rates[-1] else ", not tuned" if len(rates) == 1 else ", at an end"
    continued = pair(records, name, "continued") if name != "continued" else None
    spread = f" ± {stdev(losses):.4f}" if len(losses) > 1 else ""
    return (
        f"| `{name}` | {depths(cells)} | {rate} of {', '.join(rates)}{edge} | {fmean(c.tokens for c in cells):,.0f} | "
        f"{fmean(c.flops for c in cells):.2e} | {fmean(losses):.4f}{spread} | "
        f"{difference(to_reference(record))} | {difference(continued)} |"
    )


def gate(records: Records, half: dict[str, Any] | None) -> str:
    """Return whether the reference has stopped improving, and what half its depth comes to on the same tokens."""
    found = []
    if "continued" in records:
        found.append(gained(records))
    if "continued-new" in records:
        found.append(elsewhere(records["continued-new"]))
    if half is not None:
        match = half["corpus"]["match"]
        says = "more" if match["difference"] >= HALF else "**not more**"
        found.append(
            f"- {half['layers']} layers from random weights, trained on the very tokens that the reference was trained "
            f"on, end {match['difference']:+.4f} [{match['lower']:+.4f}, {match['upper']:+.4f}] from it: {says} than "
            f"the {HALF} that was asked for."
        )
    return lines(*found)


def gained(records: Records) -> str:
    """Return what the reference gains from further training, and whether that is little enough."""
    found = to_reference(records["continued"])
    says = "less" if -found.difference < GAIN else "**not less**"
    return (
        f"- Trained further at its own best rate, on as many tokens of its novels as a student gets, it ends "
        f"{difference(found)} from where it was: {says} than the gain of {GAIN} nats that was allowed."
    )


def elsewhere(record: ComparisonRecord) -> str:
    """Return what the reference gains on novels that it has not seen."""
    return (
        f"- On {record.data.train.documents} novels that it has not seen, trained for as many tokens at "
        f"{record.cells[0].learning_rate:g}, it ends {difference(to_reference(record))} from where it was, measured on "
        "the same passages."
    )


def against_random(records: Records) -> list[str]:
    """Return lines on random weights, at one budget and at two."""
    return [
        compared(records, "random", "inherited", "random weights to first layers, the same tokens"),
        compared(records, "random-2x", "inherited", "random weights, twice the tokens, to first layers"),
        compared(records, "random", "skip", "random weights to layers by `skip`, the same tokens"),
        compared(records, "random-2x", "skip", "random weights, twice the tokens, to layers by `skip`"),
    ]


def by_order(records: Records) -> list[str]:
    """Return lines on layers by `skip`."""
    return [
        compared(records, "skip", "inherited", "6 layers by `skip` to the first 6"),
        sooner(records, "skip", "inherited"),
        compared(records, "skip", "spaced", "6 layers by `skip` to 6 at equal distances"),
        compared(records, "loop-skip", "loop-first", "a loop from 9 layers by `skip` on to one from the first 9"),
        sooner(records, "loop-skip", "loop-first"),
        matches(records),
    ]


def matches(records: Records) -> str:
    """Return with how many seeds either of the two loops matched, and after what."""
    pairs = ("loop-skip", "loop-first")
    if not set(pairs) <= set(records):
        return ""
    by_skip, by_place = ({cell.seed: cell for cell in matched_below(records[name])} for name in pairs)
    both = sorted(set(by_skip) & set(by_place))
    found = f"- `loop-skip` matched with {len(by_skip)} seeds, `loop-first` with {len(by_place)}"
    if not both:
        return found
    tokens, flops = (
        fmean(spent_to_match(by_skip[seed])[at] / spent_to_match(by_place[seed])[at] for seed in both) for at in (0, 1)
    )
    return f"{found}; where both did, after {tokens:.0%} of the tokens and {flops:.0%} of the FLOPs"


def as_wide(records: Records) -> str:
    """Return what was found on a reference as wide as GPT-2 small."""
    if not records:
        return "Not run yet: `run.py BOOKS --wide TOKENIZER` trains such a reference, and needs a GPU."
    one = first(records)
    reference = one.reference
    return (
        f"{reference.layers} layers, {reference.parameters:,} parameters, {reference.tokens:,} "
        f"tokens of the same novels; every arm has {one.cells[0].tokens:,} and {len(one.compare.seeds)} seeds.\n\n"
        + lines(
            gained(records) if "continued" in records else "",
            *against_random(records),
            *(loop(records, name) for name in LOOPS),
            *by_order(records),
        )
    )


def moved(records: Records, name: str) -> str:
    """Return how much of what moved layers lack is the scale of their attention."""
    gap, added = pair(records, f"{name}-moved-scale", "inherited"), pair(records, f"{name}-moved-scale", name)
    if gap is None or added is None:
        return ""
    share = ""
    if added.lower is not None and added.lower > 0:
        share = f"; that is {added.difference / gap.difference:.0%} of their distance to first layers"
    return f"- what the scale of their new position adds to {name} layers: {told(added)}{share}"


def loop(records: Records, name: str) -> str:
    """Return where a loop ended: at which depths it matched, and how far it is from both references."""
    if name not in records:
        return ""
    record = records[name]
    below = matched_below(record)
    ends = ""
    if below:
        tokens, flops = (fmean(spent_to_match(cell)[at] for cell in below) for at in (0, 1))
        ends = f" ({depths(below)} layers), first after {tokens:,.0f} tokens and {flops:.2e} FLOPs on average"
    tolerance = float(record.recipe["tolerance"])
    continued = pair(records, name, "continued")
    further = "" if continued is None else f"; to the reference, trained further: {told(continued)}"
    return (
        f"- `{name}` (tolerance {tolerance:g}) matched below full depth with {len(below)} of {len(record.cells)} seeds"
        f"{ends}. To the reference as it was: {told(to_reference(record))}{further}"
    )


def matched_below(record: ComparisonRecord) -> list[Cell]:
    """Return the cells of a loop that matched with fewer layers than the reference has."""
    return [cell for cell in record.cells if cell.outcome == "matched" and cell.layers < record.reference.layers]


def spent_to_match(cell: Cell) -> tuple[int, float]:
    """Return tokens and FLOPs of a loop that matched, up to the evaluation that did so first."""
    return cell.first_match or (cell.tokens, cell.flops)


def sooner(records: Records, name: str, other: str) -> str:
    """Return after how many of its tokens and FLOPs an arm reached what another one ended at, seed by seed."""
    if name not in records or other not in records:
        return ""
    ends = {cell.seed: cell.selection.loss for cell in records[other].cells}
    cells = records[name].cells
    found = [next((place for place in cell.curve if place[2] <= ends[cell.seed]), None) for cell in cells]
    reached = [(place, cell) for place, cell in zip(found, cells, strict=True) if place is not None]
    if len(reached) < len(cells):
        return f"- `{name}` reached the final selection loss of `{other}` with {len(reached)} of {len(cells)} seeds"
    tokens, flops = (
        fmean(place[at] / whole for (place, cell) in reached for whole in [getattr(cell, what)])
        for at, what in enumerate(("tokens", "flops"))
    )
    return (
        f"- `{name}` reached the final selection loss of `{other}` after {tokens:.0%} of its tokens and {flops:.0%} of "
        f"its FLOPs (mean of {len(cells)} seeds, {len(cells[0].curve)} evaluations each)"
    )


def lazy(records: Records, ranks: dict[str, Any] | None) -> str:
    """Return how many layers are near rank 1: in the reference, with attention unscaled, and in what was trained."""
    count = first(records).reference.lazy_layers
    cells = [cell for record in records.values() for cell in record.cells]
    trained = f"{sum(cell.lazy_layers or 0 for cell in cells)} were counted in all {len(cells)} trained models together"
    if count:
        found = [f"The reference has {count} near rank 1; {trained}."]
    else:
        found = [
            f"The reference has none near rank 1, so that nothing here is evidence about lazy layers; {trained}.",
        ]
    if ranks is not None:
        found += [
            "Trained once more on the same tokens, with attention not scaled by depth and in mixed precision:",
            "",
        ]
        found += [f"- {name}: {rank_line(ranks[name])}" for name in ("scaled", "unscaled")]
    return "\n".join([found[0], "", *found[1:]]).strip()


def rank_line(values: dict[str, Any]) -> str:
    """Return between which MaxRanks the layers of a reference lie, and which are near 1."""
    lazy = ", ".join(map(str, values["lazy"])) or "none"
    return (
        f"MaxRank of its layers from {min(values['max_ranks']):.1f} to {max(values['max_ranks']):.1f} (random weights: "
        f"{min(values['random']):.1f} to {max(values['random']):.1f}), near rank 1: {lazy}; loss {values['loss']:.3f} "
        f"on the {values['sequences']} sequences of {values['tokens']} tokens that were measured"
    )
