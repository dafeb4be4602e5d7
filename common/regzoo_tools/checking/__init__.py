"""Finds errors and oddities of a data set before a training."""

from regzoo_tools.checking.command import Report, check_data
from regzoo_tools.checking.findings import Finding
from regzoo_tools.checking.table import as_text

__all__ = ["Finding", "Report", "as_text", "check_data"]
