"""Licences: what a reference's says of its student, as far as metadata tell."""

from __future__ import annotations

import re

# Licences that ask for something in a published derivative: what they are called, and what they ask for.
_OBLIGATIONS = (
    (
        r"llama[-_ ]?(3|4)",
        "the Llama community licence: pass a copy of it on, display 'Built with Llama', let the model's name begin "
        "with 'Llama', and follow its acceptable use policy",
    ),
    (
        r"llama[-_ ]?2",
        "the Llama 2 community licence: pass a copy of it on with its notice, and follow its acceptable use policy",
    ),
    (
        r"gemma",
        "the Gemma terms of use: pass a copy of them on, state that files were changed, and pass the restrictions of "
        "use on to whoever gets the model",
    ),
)


def obligation(license: str | None, license_name: str | None = None) -> str | None:
    """Return what a licence asks of who publishes a derivative, if it is one of those known to ask for something."""
    text = f"{license or ''} {license_name or ''}".lower()
    return next((asked for pattern, asked in _OBLIGATIONS if re.search(pattern, text)), None)


def licence_section(
    license: str | None, license_name: str | None, license_link: str | None, reference: str
) -> list[str]:
    """Return the lines of a card about the licence; if it is not known that is said."""
    if license is None:
        return [
            f"The licence of the reference, `{reference}`, is not known here. It applies to this model too: look it up "
            "before you use or pass on the model."
        ]
    name = license_name or license
    shown = f"[{name}]({license_link})" if license_link else f"`{name}`"
    lines = [f"{shown}, taken over from the reference `{reference}`: this model holds weights of it."]
    asked = obligation(license, license_name)
    if asked is not None:
        lines.append(f"It is {asked}.")
    return lines
