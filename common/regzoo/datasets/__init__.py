"""Where pairs and single images come from: phantoms, public data sets, a folder or a table; splits and folds."""

from regzoo.case import Record
from regzoo.datasets.datalist import read_datalist
from regzoo.datasets.decathlon import read_decathlon
from regzoo.datasets.drawn_pairs import draw_pairs
from regzoo.datasets.ixi import read_ixi
from regzoo.datasets.learn2reg import read_learn2reg, read_learn2reg_images
from regzoo.datasets.loading import load_records, load_single_records, load_validation
from regzoo.datasets.muregpro import read_muregpro
from regzoo.datasets.records import check_records, is_of_kind, is_single, single_records, validate_kinds
from regzoo.datasets.splits import patient_folds, split_fold

__all__ = [
    "Record",
    "check_records",
    "draw_pairs",
    "is_of_kind",
    "is_single",
    "load_records",
    "load_single_records",
    "load_validation",
    "patient_folds",
    "read_datalist",
    "read_decathlon",
    "read_ixi",
    "read_learn2reg",
    "read_learn2reg_images",
    "read_muregpro",
    "single_records",
    "split_fold",
    "validate_kinds",
]
