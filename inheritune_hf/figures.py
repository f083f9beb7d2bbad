"""Figures: each is drawn by one function and saved as PNG for files or as SVG for pages."""

from __future__ import annotations

import io
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .records import Round

#: Points of a loss curve: optimizer steps or tokens, and nats per token.
Curve = Sequence[tuple[int, float]]

#: Colours by name, for light and for dark paper. An SVG asks its page for them by these names.
COLORS = {
    "paper": ("#ffffff", "#14161a"),
    "ink": ("#17191d", "#e9ebee"),
    "soft": ("#545b66", "#a9b0bb"),
    "edge": ("#d6dae0", "#363b44"),
    "student": ("#0b62b8", "#74b3ff"),
    "reference": ("#8a4b00", "#f0b060"),
    "series1": ("#9a4d00", "#efb161"),
    "series2": ("#6a3fa0", "#c4a2f5"),
    "series3": ("#1b6b3a", "#7fd39c"),
    "series4": ("#a3195b", "#ff8fc4"),
    "series5": ("#00666b", "#6fd6d6"),
    "target": ("#3d434c", "#c9ced6"),
    "lazy": ("#c0392b", "#ff7a6b"),
}

#: Colours by name, for light paper alone.
LIGHT = {name: light for name, (light, _) in COLORS.items()}
_NAMES = {light: name for name, light in LIGHT.items()}
_SERIES = ("student", "series1", "series2", "series3", "series4", "series5")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.8)), (0, (5, 2, 1.2, 2)))
_MARKERS = ("o", "s", "^", "D")

_FONT = 10  # points, which are the pixels of a page
_LINE = 1.45 * _FONT
# Where all curves span this many times what the student and its target do, the student is drawn once more, larger.
_CROWDED = 6
_ABOVE, _BELOW = 2.1, 3.2  # lines of text above and below the axes, without the legend
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["soft"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": LIGHT["soft"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": LIGHT["soft"],
    "axes.titlelocation": "left",
    "axes.titlesize": _FONT,
    "font.size": _FONT,
    "grid.color": LIGHT["edge"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["ink"],
    "text.color": LIGHT["ink"],
    "text.parse_math": False,
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
    "svg.fonttype": "none",
}
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Panel:
    """One drawing with axes of its own; sizes are in points."""

    height: float  # of its axes
    draw: Callable[[Any, float], None]  # on axes, for a figure of this width
    left: float = 46  # room for the labels of the vertical axis


def figure_style() -> Any:
    """Return the context in which every figure is drawn: one set of colours and sizes."""
    from matplotlib import rc_context

    return rc_context(_STYLE)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Save a figure as PNG: the same bytes for the same figure, and the whole file or none."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    temporary.replace(path)


def save_panels(path: str | os.PathLike[str], panels: Sequence[Panel], title: str = "", width: float = 620) -> None:
    """Draw panels below one another as one PNG file, `width` points wide, below a title."""
    save_figure(_compose(panels, width, title), path)


def render_svg(panel: Panel, name: str, width: float) -> str:
    """
    Return a panel as SVG for an HTML page: text stays text, colours are the page's, points have titles.

    `name` is the prefix of its ids, which are unique on a page if names are; `width` is in pixels.
    """
    from matplotlib import rc_context

    text = io.StringIO()
    figure = _compose([panel], width)
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(text.getvalue())
    _clean(root, name)
    return ElementTree.tostring(root, encoding="unicode")


def _compose(panels: Sequence[Panel], width: float, title: str = "") -> Figure:
    """Place panels below one another by estimated text sizes: measuring text takes longer than drawing it."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    columns = int(width / (0.56 * _FONT))
    lines = [line for part in title.splitlines() for line in textwrap.wrap(part, columns) or [""]]
    legends = []
    with figure_style():
        figure = Figure()
        for panel in panels:
            axes = figure.add_subplot()
            panel.draw(axes, width)
            legends.append(_add_legend(axes, width - panel.left))
        heights = [(_ABOVE + _BELOW + rows) * _LINE + panel.height for panel, rows in zip(panels, legends, strict=True)]
        height = sum(heights) + _LINE * (len(lines) + 0.5 * bool(lines))
        figure.set_size_inches(width / 72, height / 72)
        if lines:
            figure.text(8 / width, 1 - 0.4 * _LINE / height, "\n".join(lines), va="top", linespacing=1.3)
        top = sum(heights)
        for axes, panel, below in zip(figure.axes, panels, heights, strict=True):
            bottom = top - _ABOVE * _LINE - panel.height
            inside = (width - panel.left - 10) / width
            axes.set_position((panel.left / width, bottom / height, inside, panel.height / height))
            top -= below
    return figure


def _add_legend(axes: Any, width: float) -> float:
    """Put the legend below the axes, in as many columns as fit; return its number of lines."""
    from matplotlib.transforms import ScaledTranslation

    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return 0
    columns = min(len(labels), max(1, int(width / (0.58 * _FONT * max(map(len, labels)) + 48))))
    below = axes.transAxes + ScaledTranslation(0, -2.6 * _LINE / 72, axes.figure.dpi_scale_trans)
    style = {"loc": "upper left", "borderaxespad": 0, "borderpad": 0, "labelspacing": 0.35, "fontsize": _FONT}
    axes.legend(handles, labels, ncols=columns, bbox_to_anchor=(0, 0), bbox_transform=below, **style)
    return math.ceil(len(labels) / columns)


def _clean(root: ElementTree.Element, name: str) -> None:
    """Remove namespaces and style sheet from an SVG of Matplotlib, so that it can be in a page beside others."""
    for element in list(root):
        if element.tag == f"{_SVG}defs" and element.find(f"{_SVG}style") is not None:
            root.remove(element)  # it would be the style sheet of the whole page
    for group in root.iter(f"{_SVG}g"):
        identity = group.get("id", "")
        if identity.startswith("["):
            for mark, title in zip(list(group.iter(f"{_SVG}use")), json.loads(identity), strict=True):
                ElementTree.SubElement(mark, "title").text = title
    linked = {link.removeprefix("#") for element in root.iter() if (link := element.get(_LINK))}
    linked |= set(re.findall(r"url\(#([^)]+)\)", " ".join(v for item in root.iter() for v in item.attrib.values())))
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        identity = element.attrib.pop("id", "")
        if identity in linked:
            element.set("id", f"{name}-{identity}")
        link = element.attrib.pop(_LINK, "")
        if link:
            element.set("href", f"#{name}-{link.removeprefix('#')}")
        for key, value in element.attrib.items():
            value = re.sub(r"url\(#", f"url(#{name}-", value)
            value = re.sub(r"#[0-9a-f]{6}\b", lambda found: f"var(--{_NAMES[found[0]]})", value)
            element.set(key, re.sub(r"(font: [\d.]+px|font-family:) [^;]*", r"\1 system-ui, sans-serif", value))
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "style": "stroke-linejoin: round; stroke-linecap: butt",
        # The figure around it names and describes it.
        "aria-hidden": "true",
        "focusable": "false",
    }


def loss_panel(
    rounds: Sequence[Round], curves: Mapping[str, Curve], target: float | None, tolerance: float = 0.0
) -> Panel:
    """
    Draw selection losses against steps: the student round by round, controls, and the tolerance above the target.

    `curves` holds `student` and controls by name; `target` and `tolerance` are in nats per token.
    """
    student = curves.get("student", ())
    others = {name: curve for name, curve in curves.items() if name != "student" and curve}
    shown = [loss for _, loss in student] + [curve[-1][1] for curve in others.values()]
    shown += [] if target is None else [target, target + tolerance]
    limits = _limits(shown, above=0.16)
    near = _limits([loss for loss in shown if student and loss <= max(loss for _, loss in student)], above=0.16)
    crowded = bool(student) and limits[1] - limits[0] > _CROWDED * (near[1] - near[0])
    last = max([step for curve in curves.values() for step, _ in curve] + [item.end_step for item in rounds] + [1])

    def draw(axes: Any, width: float) -> None:
        _plane(axes, (0, 1.01 * last), limits, "optimizer steps, all rounds together")
        axes.set_title("nats per token", pad=16)
        draw_curves(axes)
        for item in rounds:
            if (item.end_step - item.start_step) / last * (width - 70) > 52:
                middle = ((item.start_step + item.end_step) / 2, 1)
                text = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "color": LIGHT["soft"]}
                axes.annotate(f"{item.layers} layers", middle, xycoords=("data", "axes fraction"), **text)
        if crowded:  # controls end so far above that rounds cannot be told apart: they are shown larger in between
            inset = axes.inset_axes((0.36, 0.2, 0.62, 0.42))
            _plane(inset, (0, 1.02 * student[-1][0]), near, "")
            inset.set(title="the student, closer", facecolor=LIGHT["paper"])
            draw_curves(inset)

    def draw_curves(axes: Any) -> None:
        for place, points in enumerate(points_by_round(rounds, student)):
            titles = [f"step {step:,}: {loss:.4f}" for step, loss in points]
            _curve(axes, points, titles, 0, "student, round by round" if place == 0 else "", size=5, linewidth=2.2)
        for place, (name, curve) in enumerate(others.items(), start=1):
            label = textwrap.shorten(name, 44, placeholder=" …")
            axes.plot(*zip(*curve, strict=True), label=label, **_look(place, dashes=place), linewidth=1.8)
        if target is not None:
            axes.axhline(target, color=LIGHT["target"], dashes=(5, 3), linewidth=1.3, label=f"to reach: {target:.4f}")
            if tolerance:
                style = {"color": LIGHT["student"], "alpha": 0.15, "linewidth": 0}
                axes.axhspan(target, target + tolerance, label=f"tolerance of {tolerance:g}", **style)
        for item in rounds:
            if item.start_step:
                axes.axvline(item.start_step, color=LIGHT["soft"], linestyle=":", linewidth=1)

    return Panel(240, draw)


def points_by_round(rounds: Sequence[Round], curve: Curve) -> list[Curve]:
    """Return the student's points in each round, and those after the last finished one."""
    ends = [0, *(item.end_step for item in rounds), math.inf]
    pieces = [tuple(point for point in curve if start < point[0] <= end) for start, end in pairwise(ends)]
    return [piece for piece in pieces if piece]


def layer_panel(rows: Sequence[tuple[str, Sequence[int]]], reference_layers: int) -> Panel:
    """Draw which of the reference's layers each student has, a row for each student's name and layers."""

    def draw(axes: Any, width: float) -> None:
        for place, (_, layers) in enumerate(rows):
            kept = [layer for layer in range(reference_layers) if layer in layers]
            dropped = [layer for layer in range(reference_layers) if layer not in layers]
            shape = {"width": 0.82, "height": 0.74, "bottom": place - 0.37}
            label = ("kept", "left out") if place == 0 else ("", "")
            axes.bar(kept, color=LIGHT["student"], label=label[0], **shape)
            if dropped:
                line = {"edgecolor": LIGHT["soft"], "linestyle": (0, (2, 2)), "linewidth": 0.8}
                axes.bar(dropped, fill=False, label=label[1], **line, **shape)
        axes.set_xlim(-0.6, reference_layers - 0.4)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_xticks(_every_layer(reference_layers, width))
        axes.set_xlabel("layer of the reference")
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    return Panel(12 + 26 * len(rows), draw, left=12 + _widest(rows))


def rank_panel(reference: Sequence[float | None], student: Sequence[float | None], near_one: float) -> Panel:
    """Draw MaxRank by layer of a reference and its student; up to `near_one` a layer is near rank-1."""
    depth = max(len(reference), len(student))

    def draw(axes: Any, width: float) -> None:
        _plane(axes, (-0.5, depth - 0.5), (0, 1), "layer")
        axes.set_title("approximate rank, the largest over heads")
        rank_axis(axes, [*reference, *student], near_one)
        axes.set_xticks(_every_layer(depth, width))
        for name, values, dashes, marker in (
            ("reference, before", reference, "--", "s"),
            ("student, after", student, "-", "o"),
        ):
            points = [(layer, value) for layer, value in enumerate(values) if value is not None]
            who = name.partition(",")[0]
            titles = [f"{who}, layer {layer}: {value:.1f}" for layer, value in points]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, color=LIGHT[who], linestyle=dashes, linewidth=1.8)
                _marks(axes, points, titles, color=LIGHT[who], marker=marker, size=5)

    return Panel(200, draw)


def rank_axis(axes: Any, ranks: Sequence[float | None], near_one: float) -> None:
    """Scale the vertical axis for approximate ranks, logarithmically from 1 on, and shade what is near rank-1."""
    highest = 1.25 * max([value for value in ranks if value is not None] + [4.0])
    axes.set_yscale("log", base=2)
    axes.set_ylim(0.85, highest)
    axes.set_yticks([2**power for power in range(13) if 2**power <= highest])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axhspan(0.85, near_one, color=LIGHT["lazy"], alpha=0.14, linewidth=0, label="near rank-1")


def arm_panel(curves: Mapping[str, Curve], target: float, seeds: Mapping[str, Sequence[Curve]]) -> Panel:
    """
    Draw mean losses of a comparison's arms against tokens, the curve of each seed, and the reference's loss.

    `curves` holds the means by arm, in the order of drawing; `seeds` the curves that each mean is made of.
    """
    ends = [target, *(one[-1][1] for group in (curves.values(), *seeds.values()) for one in group)]
    from matplotlib.ticker import EngFormatter

    limits = _limits(ends, above=0.35)
    last = max((tokens for curve in curves.values() for tokens, _ in curve), default=1)

    def draw(axes: Any, width: float) -> None:
        _plane(axes, (0, 1.01 * last), limits, "tokens, all rounds and stages together")
        axes.set_title("nats per token, mean over seeds")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        style = {"color": LIGHT["target"], "dashes": (5, 3), "linewidth": 1.3}
        axes.axhline(target, label=f"reference {target:.4f}", **style)
        for place, (name, curve) in enumerate(curves.items()):
            for one in seeds[name]:
                axes.plot(*zip(*one, strict=True), color=_look(place)["color"], linewidth=0.6, alpha=0.35)
            titles = [f"{name}, {tokens:,} tokens: {loss:.4f}" for tokens, loss in curve]
            # Some seeds of a loop may go on where the mean has ended.
            end = fmean([one[-1][1] for one in seeds[name]] or [curve[-1][1]])
            _curve(axes, curve, titles, place, f"{name} {end:.4f}", size=4, linewidth=1.8)

    return Panel(300, draw)


def difference_panel(rows: Sequence[tuple[str, float, float | None, float | None]], name: str) -> Panel:
    """
    Draw differences with their intervals, the first on top, and a line at zero.

    `rows` holds name, difference, lower and upper bound in nats per token; `name` says what the differences are.
    """

    def draw(axes: Any, width: float) -> None:
        axes.axvline(0.0, color=LIGHT["target"], dashes=(5, 3), linewidth=1.3)
        for place, (_, difference, lower, upper) in enumerate(rows):
            if lower is not None and upper is not None:
                axes.plot([lower, upper], [place, place], color=LIGHT["student"], linewidth=1.8)
            axes.plot(difference, place, color=LIGHT["student"], marker="o", markersize=4)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(name)

    return Panel(20 + 1.3 * _LINE * len(rows), draw, left=12 + _widest(rows))


def _curve(
    axes: Any, points: Curve, titles: Sequence[str], place: int, label: str, size: float, linewidth: float
) -> None:
    """Draw a curve and its points, each with a title that a page shows as a tooltip."""
    look = _look(place)
    marker = look.pop("marker")
    axes.plot(*zip(*points, strict=True), label=label or None, linewidth=linewidth, **look)
    _marks(axes, points, titles, color=look["color"], marker=marker, size=size)


def _marks(axes: Any, points: Curve, titles: Sequence[str], color: str, marker: str, size: float) -> None:
    low, high = axes.get_ylim()
    shown = [(point, title) for point, title in zip(points, titles, strict=True) if low <= point[1] <= high]
    if shown:
        style = {"markerfacecolor": color, "markeredgecolor": LIGHT["paper"], "markeredgewidth": 0.7}
        marks = [point for point, _ in shown]
        drawn = axes.plot(*zip(*marks, strict=True), linestyle="", marker=marker, markersize=size, **style)
        drawn[0].set_gid(json.dumps([title for _, title in shown]))


def _look(place: int, dashes: int | None = None) -> dict[str, Any]:
    """Return colour, dashes and marker of a series, distinct for 96 of them."""
    count = len(_SERIES)
    return {
        "color": LIGHT[_SERIES[place % count]],
        "linestyle": _DASHES[(place // count if dashes is None else dashes) % len(_DASHES)],
        "marker": _MARKERS[place // (count * len(_DASHES)) % len(_MARKERS)] if dashes is None else "",
    }


def _plane(axes: Any, x: tuple[float, float], y: tuple[float, float], name: str) -> None:
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.set_xlabel(name)
    axes.margins(0)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _limits(losses: Sequence[float], above: float) -> tuple[float, float]:
    """Return limits for the student, the target and the controls' ends: random weights begin far above."""
    low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
    span = max(high - low, 0.05)
    return low - 0.08 * span, high + above * span


def _every_layer(depth: int, width: float) -> range:
    return range(0, depth, max(1, math.ceil(22 * depth / (width - 80))))


def _widest(rows: Sequence[tuple[str, Any]] | Sequence[tuple[str, Any, Any, Any]]) -> float:
    return 0.62 * _FONT * max(len(row[0]) for row in rows)
