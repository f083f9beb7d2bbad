"""How the verbs show plans, diagnoses and estimates on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..students import InheritancePlan


def human_bytes(count: float) -> str:
    """Return a number of bytes as people read it, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def show_plan(console: Console, plan: InheritancePlan) -> None:
    """Show which layers are kept and dropped, what that leaves, and what will be read for it."""
    from ..students import describe

    table = Table(title=f"{plan.reference} ({plan.model_type}, {plan.depth} layers)", title_justify="left")
    table.add_column("layers")
    table.add_column("which")
    table.add_column("parameters", justify="right")
    for verb, layers in (("kept", plan.kept_layers), ("dropped", plan.dropped_layers)):
        count = sum(plan.layer_parameters[layer] for layer in layers)
        table.add_row(verb, describe(layers) if layers else "none", f"{count:,}")
    outside = plan.parameters_before - sum(plan.layer_parameters)
    table.add_row("kept", "what is not in a layer", f"{outside:,}")
    console.print(table)
    share = plan.parameters_after / plan.parameters_before
    lines = [
        f"kept        {describe(plan.kept_layers)} ({len(plan.kept_layers)} of {plan.depth} layers)",
        f"dropped     {describe(plan.dropped_layers) if plan.dropped_layers else 'nothing'}",
        f"parameters  {plan.parameters_before:,} -> {plan.parameters_after:,} ({share:.1%})",
        f"to read     {human_bytes(plan.bytes_to_read)} of {', '.join(file.name for file in plan.files) or 'no file'}",
    ]
    if plan.bytes_to_fetch:
        lines.append(f"to fetch    {human_bytes(plan.bytes_to_fetch)}")
    for name, (before, after) in plan.changed_fields.items():
        lines.append(f"config      {name}: {_short(before)} -> {_short(after)}")
    lines.extend(f"note        {note}" for note in plan.notes)
    for line in lines:
        console.print(line, markup=False)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 48 else f"{text[:45]}..."
