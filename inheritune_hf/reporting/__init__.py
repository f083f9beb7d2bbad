"""Report: the records of a run or a comparison as one page."""

from typing import TYPE_CHECKING

from ..exports import lazy_exports

if TYPE_CHECKING:
    from .page import REPORT_FILES, write_report
    from .summary import RunSummary, read_run
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = ["REPORT_FILES", "RunSummary", "read_run", "write_report"]
