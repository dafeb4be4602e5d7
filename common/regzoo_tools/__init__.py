"""Bundles as the MONAI Model Zoo takes them: checked, packed into a zip that runs on its own, and published."""

from regzoo_tools.packing import package, stage
from regzoo_tools.publishing import publish
from regzoo_tools.verification import Row, as_table, failed, summary, verify

__all__ = ["Row", "as_table", "failed", "package", "publish", "stage", "summary", "verify"]
