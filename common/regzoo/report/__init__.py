"""Summaries, tables, plots and quality-control pictures of an evaluation."""

from regzoo.report.boxplots import summary_figure
from regzoo.report.figures import FigureWriter, case_figure
from regzoo.report.learn2reg import Learn2RegFields, field_files
from regzoo.report.tables import (
    CaseTable,
    LabelTable,
    PointTable,
    percentile_summary,
    read_csv,
    summary_text,
    write_csv,
)

__all__ = [
    "CaseTable",
    "FigureWriter",
    "LabelTable",
    "Learn2RegFields",
    "PointTable",
    "case_figure",
    "field_files",
    "percentile_summary",
    "read_csv",
    "summary_figure",
    "summary_text",
    "write_csv",
]
