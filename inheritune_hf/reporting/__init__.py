"""Report: the records of a run or a comparison as one page."""

from .page import REPORT_FILES, write_report
from .summary import RunSummary, read_run

__all__ = ["REPORT_FILES", "RunSummary", "read_run", "write_report"]
