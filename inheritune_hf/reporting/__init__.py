"""Look instead of read: what a run came to as one page, whether it matched, missed or was interrupted."""

from .report import REPORT_FILES, write_report
from .summary import RunSummary, read_run

__all__ = ["REPORT_FILES", "RunSummary", "read_run", "write_report"]
