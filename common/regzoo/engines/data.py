"""The data set of a bundle, and its division into records for training, validation and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from regzoo.bundles import writable
from regzoo.case import Key
from regzoo.datasets import (
    Record,
    draw_pairs,
    is_single,
    load_records,
    load_single_records,
    load_validation,
    single_records,
    split_fold,
    validate_kinds,
)
from regzoo.datasets.records import check_label_names, patient_of
from regzoo.errors import RegZooError
from regzoo.report.engine import is_writer

logger = logging.getLogger(__name__)

#: The smallest number of validation cases that are simulated from single images.
SIMULATED = 8
#: Default number of folds: for pairs, and for single images.
FOLDS, FOLDS_OF_IMAGES = 20, 8
#: Values of `split` that evaluate the pairs listed by the data set → the split of these pairs in the data set.
LISTED = {"listed": "val", "listed_test": "test"}


def data_folder(
    dataset_dir: str | Path | None, bundle_root: str | Path, *, served: bool = False, **phantoms: Any
) -> str:
    """The data set that the user named or, if there is none, phantoms in the bundle's ``data/``, see `writable`.

    Each set of phantom parameters has its own folder, so the demo and the training do not share one.

    Args:
        dataset_dir: folder or datalist of a data set; empty for phantoms.
        served: whether MONAI Label provides the data; then the result is empty instead of phantoms.
        phantoms: parameters of the phantoms, see `regzoo_phantoms.embedded_phantoms`.

    Raises:
        RegZooError: no data set was named, and this is a packaged bundle, which contains no phantoms.
    """
    if dataset_dir:
        return str(dataset_dir)
    if served:
        return ""
    name = "_".join(["phantoms", *(f"{key}{value}" for key, value in sorted(phantoms.items()))])
    try:
        from regzoo_phantoms import embedded_phantoms
    except ModuleNotFoundError as error:
        if error.name != "regzoo_phantoms":
            raise
        problem = "no data set was named, and a packaged bundle contains no phantoms"
        raise RegZooError(f"{problem}; name one as dataset_dir") from error
    if is_writer():
        print("No data set was named", flush=True)
    return str(embedded_phantoms(writable(bundle_root, f"data/{name}"), **phantoms))


def training_records(folder: str | Path, direction: str = "mr_to_us", count: int | None = None) -> list[Record]:
    """The first `count` records (0 or None: all) of a data set's training split; empty without a data set."""
    return load_records(folder, "train", direction)[: count or None] if folder else []


class Division(NamedTuple):
    """The records to train on, and the records to validate on, which decide on the best epoch."""

    training: list[Record]
    validation: list[Record]


def split_pairs(
    records: Sequence[Record],
    fold: int | None = None,
    folds: int | None = None,
    seed: int = 0,
    folder: str | Path = "",
    holdout: Sequence[str] = (),
) -> Division:
    """Divide pairs into training and validation; without records, both are empty.

    If `fold` or `folds` is given, one fold of the training split is held out for validation; with one fold, nothing is,
    and validation uses the training records. Otherwise, validation uses the data set's validation part or, if there is
    none, fold 0. The folds are those of the datalist's column ``fold`` or, without that column, those of
    `regzoo.datasets.split_fold`.

    Args:
        fold: the fold to hold out, from 0; None: 0, or the validation part.
        folds: the number of folds; None: the data set's own number, else 20.
        folder: the data set, for its validation part.
        holdout: kinds of label that the training leaves out, see `regzoo.datasets.validate_kinds`.
    """
    division = _divided(records, fold, folds, seed, load_validation(folder) if folder and records else [], FOLDS)
    if records:
        validate_kinds([*division.training, *division.validation], holdout)
    return division


def _divided(
    records: Sequence[Record],
    fold: int | None,
    folds: int | None,
    seed: int,
    validation: Sequence[Record],
    default: int,
) -> Division:
    """Divide pairs or single images, see `split_pairs`."""
    if not records:
        return Division([], [])
    if validation and fold is None and folds is None:
        logger.info("validating on the %d records of the data set's validation part", len(validation))
        return Division(list(records), list(validation))
    if folds == 1:
        logger.warning("one fold holds nothing out: validating on the training's own %d records", len(records))
        return Division(list(records), list(records))
    listed = any(Key.FOLD in record for record in records)
    division = Division(*split_fold(records, fold or 0, folds if listed or folds is not None else default, seed))
    which = "of the data set's own folds" if listed else f"of {folds or default}"
    logger.info("validating on fold %d %s: %d of %d records", fold or 0, which, len(division.validation), len(records))
    return division


def evaluation_records(
    folder: str | Path,
    split: str,
    direction: str = "mr_to_us",
    count: int | None = None,
    fold: int | None = None,
    folds: int | None = None,
    seed: int = 0,
    holdout: Sequence[str] = (),
) -> list[Record]:
    """The records to evaluate on.

    Args:
        split: ``val`` or ``test`` of the data set, or ``fold`` for the validation records of a training with the same
            settings, see `split_pairs`.
        direction: moving to fixed, see `regzoo.datasets.load_records`.
        count: use only the first few records of the data set; all for 0 or None.
        fold, folds, seed: the settings of the training, see `split_pairs`.
        holdout: kinds of label that the training left out, to be measured separately; see `split_pairs`.
    """
    if split == "fold":
        records = split_pairs(training_records(folder, direction, count), fold, folds, seed, folder).validation
    else:
        records = load_records(folder, split, direction)[: count or None]
    validate_kinds(records, holdout)
    return records


def training_images(folder: str | Path, count: int | None = None) -> list[Record]:
    """The first `count` single images (0 or None: all) of a data set's training split; empty without a data set."""
    return load_single_records(folder, "train")[: count or None] if folder else []


def split_images(
    records: Sequence[Record],
    fold: int | None,
    folds: int | None,
    pairs_file: str | Path,
    count: int | None = None,
    seed: int = 0,
    simulated: bool = False,
    folder: str | Path = "",
) -> Division:
    """Divide single images into images to train on and pairs to validate on.

    The pairs are drawn once from the images of the held-out patients, and stored. If there are too few images to hold
    two patients out, or with `simulated`, validation uses single images, and `regzoo.transforms.SimulateMovingd`
    simulates a moving image for each: for the held-out images or, with fewer patients than folds, for all images. Fewer
    than `SIMULATED` images are listed several times, under different names.

    Args:
        records: single images.
        fold, folds, seed: which images are held out, see `split_pairs`; 8 folds by default.
        pairs_file: the file that stores the pairs, see `regzoo.datasets.draw_pairs`.
        count: the number of pairs; None: the number of held-out images.
        simulated: always validate on single images.
        folder: the data set, for its validation part; pairs that it lists are used as they are.

    Raises:
        RegZooError: see `regzoo.datasets.draw_pairs`.
    """
    if not records:
        return Division([], [])
    validation = load_validation(folder, single=True) if folder else []
    check_label_names([*records, *filter(is_single, validation)])
    training, held_out = list(records), list[Record]()
    enough_patients = len(set(map(patient_of, records))) >= max(folds or FOLDS_OF_IMAGES, 2)
    if enough_patients or validation or any(Key.FOLD in record for record in records):
        training, held_out = _divided(records, fold, folds, seed, validation, FOLDS_OF_IMAGES)
    if held_out and not simulated and (pairs := _as_pairs(held_out, pairs_file, count, seed)):
        return Division(training, pairs)
    held_out = single_records(held_out or records)
    if not simulated:
        logger.warning("too few patients for pairs: validating on pairs simulated from %d images", len(held_out))
    repeats = -(-SIMULATED // len(held_out))
    repeated = [item | {"case": f"{item['case']}_{number}"} for number in range(repeats) for item in held_out]
    return Division(training, repeated)


def _as_pairs(records: Sequence[Record], pairs_file: str | Path, count: int | None, seed: int) -> list[Record]:
    """Held-out pairs as they are, or pairs drawn from held-out images; none from the images of a single patient."""
    if not any(map(is_single, records)):
        return list(records)
    images = single_records(records)
    patients = set(map(patient_of, images))
    return draw_pairs(images, pairs_file, count or None, seed) if len(patients) > 1 else []


def evaluation_pairs(
    folder: str | Path,
    split: str,
    pairs_file: str | Path,
    count: int | None = None,
    images: int | None = None,
    fold: int | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> list[Record]:
    """The pairs to evaluate on: drawn once from single images and stored, or listed by the data set.

    Args:
        split: ``val`` or ``test`` of the data set; ``fold`` for the validation pairs of a training with the same
            settings, see `split_images`; ``rest`` for the images beyond the training's limit, of patients that it did
            not see; ``listed`` or ``listed_test`` for the pairs that the data set lists for validation or test.
        pairs_file: the file that stores the pairs, see `regzoo.datasets.draw_pairs`; if it is missing, pairs are drawn.
        count: the number of pairs; for 0 or None, all listed pairs, or one pair for each image.
        images: the training's limit on the number of images, for ``fold`` and ``rest``.
        fold, folds, seed: the settings of the training, see `split_images`.

    Raises:
        RegZooError: there are fewer than two patients, or see `regzoo.datasets.draw_pairs`.
    """
    if split in LISTED:
        return load_records(folder, LISTED[split])[: count or None]
    if split == "fold":
        validation = load_validation(folder, single=True)
        records = _divided(training_images(folder, images), fold, folds, seed, validation, FOLDS_OF_IMAGES).validation
        if not any(map(is_single, records)):
            return records[: count or None]
    elif split == "rest":
        everything = training_images(folder)
        seen = {patient_of(record) for record in everything[: images or 0]}
        records = [record for record in everything[images or 0 :] if patient_of(record) not in seen]
        if not images or not records:
            problem = f"training on {images or 'all'} images leaves none over of other patients"
            raise RegZooError(f"{folder}: {problem}; lower max_images")
    else:
        records = load_single_records(folder, split)
        for name in (name for name, part in LISTED.items() if part == split):
            with suppress(RegZooError):  # a data set of single images lists no pairs
                count_listed = len(load_records(folder, split))
                text = "eval_split %s draws pairs of different patients; %s takes the %d pairs that the data set lists"
                logger.info(text, split, name, count_listed)
    return draw_pairs(records, pairs_file, count or None, seed)
