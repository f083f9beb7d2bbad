"""Publish: standard checkpoints with their card and record, on disk and on the Hub, and a run's table."""

from typing import TYPE_CHECKING

from ..exports import lazy_exports

if TYPE_CHECKING:
    from ..records import RECORD_FILE
    from .bundle import PUBLISHED, try_out
    from .card import CardFacts, render_card, update_card
    from .hub import Publication, publish_student, push_student, save_inherited, save_student
    from .tables import FinishedRun, ResultRow, markdown_table, terminal_table
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "PUBLISHED",
    "RECORD_FILE",
    "CardFacts",
    "FinishedRun",
    "Publication",
    "ResultRow",
    "markdown_table",
    "publish_student",
    "push_student",
    "render_card",
    "save_inherited",
    "save_student",
    "terminal_table",
    "try_out",
    "update_card",
]
