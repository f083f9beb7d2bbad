"""Publish: standard checkpoints with their card and record, on disk and on the Hub, and a run's table and picture."""

from ..records import RECORD_FILE
from .card import render_card
from .hub import PUBLISHED, push_student, save_inherited, save_student
from .report import ResultRow, draw_losses, markdown_table, terminal_table

__all__ = [
    "PUBLISHED",
    "RECORD_FILE",
    "ResultRow",
    "draw_losses",
    "markdown_table",
    "push_student",
    "render_card",
    "save_inherited",
    "save_student",
    "terminal_table",
]
