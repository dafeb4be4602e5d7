"""Statistics, tables, plots and quality-control pictures of an evaluation."""

from regzoo.report.boxplots import summary_figure
from regzoo.report.figures import FigureWriter, case_figure, registration_figure
from regzoo.report.statistics import PERCENTILES, PairedTest, paired_wilcoxon, percentile_summary
from regzoo.report.tables import CaseTable, LabelTable, read_csv, summary_text, write_csv

__all__ = [
    "PERCENTILES",
    "CaseTable",
    "FigureWriter",
    "LabelTable",
    "PairedTest",
    "case_figure",
    "paired_wilcoxon",
    "percentile_summary",
    "read_csv",
    "registration_figure",
    "summary_figure",
    "summary_text",
    "write_csv",
]
