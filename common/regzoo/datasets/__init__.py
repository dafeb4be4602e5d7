"""Where pairs and single images come from: phantoms, public data sets, a folder or a table; splits and folds."""

from regzoo.datasets.datalist import read_datalist
from regzoo.datasets.decathlon import read_decathlon
from regzoo.datasets.ixi import read_ixi
from regzoo.datasets.learn2reg import read_learn2reg, read_learn2reg_images
from regzoo.datasets.loading import load_records, load_single_records, load_validation
from regzoo.datasets.muregpro import read_muregpro
from regzoo.datasets.records import Record, check_records, is_of_kind, is_single, known_kinds, single_records
from regzoo.datasets.splits import patient_folds, split_fold
from regzoo.datasets.test_pairs import test_pairs

__all__ = [
    "Record",
    "check_records",
    "is_of_kind",
    "is_single",
    "known_kinds",
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
    "test_pairs",
]
