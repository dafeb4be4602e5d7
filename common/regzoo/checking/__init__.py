"""What is wrong or unusual about a data set, found before hours of training on it."""

from regzoo.checking.command import Report, check_data
from regzoo.checking.findings import Finding
from regzoo.checking.table import as_text

__all__ = ["Finding", "Report", "as_text", "check_data"]
