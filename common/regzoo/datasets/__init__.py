"""Where pairs come from: phantoms, µ-RegPro, a folder or a table; splits and folds."""

from regzoo.datasets.loading import load_records
from regzoo.datasets.muregpro import read_muregpro
from regzoo.datasets.phantoms import embedded_phantoms, write_prostate_phantoms
from regzoo.datasets.records import Record, check_records, is_of_kind, known_kinds, read_datalist
from regzoo.datasets.splits import patient_folds, split_fold

__all__ = [
    "Record",
    "check_records",
    "embedded_phantoms",
    "is_of_kind",
    "known_kinds",
    "load_records",
    "patient_folds",
    "read_datalist",
    "read_muregpro",
    "split_fold",
    "write_prostate_phantoms",
]
