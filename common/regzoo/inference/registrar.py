"""Registering pairs from Python with a bundle's own inference configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import torch
from monai.bundle import ConfigParser
from regzoo.bundles import find_bundle, listed, read_config
from regzoo.case import MASK_KEYS, Key
from regzoo.datasets import Record
from regzoo.engines.options import check_config, check_effect, unknown
from regzoo.engines.origin import adopt
from regzoo.engines.streams import requested_records
from regzoo.errors import RegZooError, bad_file, user_error
from regzoo.files import check_writable
from regzoo.inference.outputs import RegistrationResult, check_target, requested_outputs
from regzoo.refinement.options import Linear
from regzoo.spatial.point_files import read_points

#: The ids of ``configs/inference.json`` that a registration uses.
USED = ("device", "preprocessing", "network", "inferer", "postprocessing")


def inference_config(
    bundle: str | PathLike[str], overlays: str | Sequence[str], overrides: Mapping[str, Any], used: Sequence[str] = USED
) -> tuple[Path, ConfigParser]:
    """A bundle's folder, and its ``configs/inference.json`` with overlays and settings applied.

    Args:
        bundle: a bundle's folder or name.
        overlays: further configuration files, relative to the bundle; see `regzoo.bundles.listed`.
        overrides: settings.
        used: the ids that will be evaluated.

    Raises:
        RegZooError: there is no such bundle, overlay or setting, or a setting is invalid or has no effect.
    """
    root = find_bundle(bundle)
    parser = ConfigParser()
    files = [root / "configs" / "inference.json", *(root / overlay for overlay in listed(overlays))]
    for file in files:
        read_config(file)
    parser.read_config([str(file) for file in files])
    overrides = {name.replace("#", "::"): value for name, value in overrides.items()}
    for name, value in overrides.items():
        if name not in parser and name.rpartition("::")[0] not in parser:
            raise unknown(name, list(parser.config), files[0])
        parser[name] = value
    check_config(parser, files[:1], overrides)
    check_effect(parser, overrides, used)
    parser["bundle_root"] = str(root)
    checkpoint = parser.get_parsed_content("checkpoint", default=None)
    parser.ref_resolver.reset()  # `adopt` changes settings, so nothing may be resolved yet
    adopt(parser, checkpoint, files[0], overrides)
    return root, parser


#: One file, or a file for each label.
Label = str | PathLike[str] | Sequence[str]


class Registrar:
    """A bundle, loaded once, that registers pairs of files.

    It evaluates the preprocessing, the network, the inferer and the postprocessing of ``configs/inference.json``, as
    ``python -m monai.bundle run`` does. Unlike a run, it has no data loader, takes one pair at a time, and raises
    errors.

    Args:
        bundle: a bundle's folder, or its name.
        overlays: further configuration files, such as ``configs/variants/paper.json``, relative to the bundle.
        overrides: any id of ``configs/inference.json``, such as ``align="center"`` or ``checkpoint=…``.

    Raises:
        RegZooError: there is no such bundle, its weights do not fit, or a setting contradicts the training of the
            weights. Settings that are not given are those of the training.
    """

    def __init__(self, bundle: str | PathLike[str], overlays: str | Sequence[str] = (), **overrides: Any) -> None:
        root, parser = inference_config(bundle, overlays, overrides)
        self.bundle = root.resolve().name
        self.aligns_by_organ = "field_of_view" in parser.config
        self.settings = {key: value for key, value in parser.config.items() if key not in ("_meta_", "bundle_root")}
        try:
            self.device = torch.device(parser.get_parsed_content("device"))
            self.preprocessing = parser.get_parsed_content("preprocessing")
            self.network = parser.get_parsed_content("network").eval()
            self.inferer = parser.get_parsed_content("inferer")
            self.postprocessing = parser.get_parsed_content("postprocessing")
            self.refines = parser.get_parsed_content("refine") is not False
            self.uses_masks = self.refines or parser.get_parsed_content("align") in get_args(Linear)
            weights = (parser.get_parsed_content(name, default=None) for name in ("checkpoint", "exported"))
            self.weights = [Path(file) for file in weights if file and Path(file).is_file()]
        except RuntimeError as error:  # MONAI wraps errors that occur in a configuration
            raise user_error(error) or error from None

    def register(
        self,
        fixed: str | PathLike[str],
        moving: str | PathLike[str],
        label: Label | None = None,
        fixed_label: Label | None = None,
        fixed_mask: str | PathLike[str] | None = None,
        moving_mask: str | PathLike[str] | None = None,
    ) -> RegistrationResult:
        """Register a moving image file to a fixed one.

        Args:
            fixed: fixed image, any grid.
            moving: moving image, any grid.
            label: labels on the moving image to propagate: a 4-D file, a label map, a mask, or a list of masks.
            fixed_label: labels on the fixed image, for a refinement that compares labels, and for a bundle that first
                aligns the two by an organ.
            fixed_mask: mask of the fixed voxels that count in a refinement and in a registration as pre-alignment, or
                with ``exclude=True`` of those that do not.
            moving_mask: the same for the moving image.

        Raises:
            RegZooError: a file cannot be used, or this registration does not use it.
        """
        for what, file, used in (
            ("a mask of the fixed image", fixed_mask, self.uses_masks),
            ("a mask of the moving image", moving_mask, self.uses_masks),
            ("labels of the fixed image", fixed_label, self.refines or self.aligns_by_organ),
        ):
            if file is not None and not used:
                raise RegZooError(f"{file}: this registration does not use {what}; set refine, or leave the file out")
        record = _record(fixed, moving, label, fixed_label, fixed_mask, moving_mask)
        self.check_refinement([record])
        return RegistrationResult.of(self.run(record), self.bundle)

    def check_refinement(self, records: Sequence[Record]) -> None:
        """Raise `RegZooError` if settings of a refinement are given, and none of the records is refined."""
        for name in ("refine_seconds", "refine_options"):
            if self.settings.get(name) and not self.refines and not any(record.get(Key.REFINE) for record in records):
                raise RegZooError(f"{name}: has no effect without refine; set refine, or leave it out")

    def check_exclude(self, records: Sequence[Record]) -> None:
        """Raise `RegZooError` if masks are to exclude voxels, and none of the records has a mask."""
        if self.settings.get("exclude") and not any(record.get(key) for record in records for key in MASK_KEYS):
            raise RegZooError("exclude: has no effect without fixed_mask or moving_mask; name one, or leave it out")

    def run(self, record: Record) -> dict[str, Any]:
        """The case of a record after the postprocessing; errors as `register`."""
        try:
            item = self.preprocessing({**record, Key.REQUESTED: True})
            with torch.inference_mode():
                item[Key.PRED] = self.inferer(item[Key.IMAGE][None].to(self.device), self.network)[0]
                return self.postprocessing(item)
        except RuntimeError as error:
            raise user_error(error) or error from None


def _record(*files: Label | None) -> Record:
    """The record of a pair of files, in the order of `Registrar.register`, all of which exist."""
    keys = ("fixed_image", "moving_image", "moving_label", "fixed_label", "fixed_mask", "moving_mask")
    named: dict[str, Any] = {}
    for key, file in zip(keys, files, strict=True):
        if file is None:
            continue
        several = file if isinstance(file, (list, tuple)) and key.endswith("label") else [file]
        if wrong := [one for one in several if not isinstance(one, str | PathLike)]:
            raise bad_file(key, f"is a {type(wrong[0]).__name__}, not the path of a file", "save it, and name the file")
        names = [str(one) for one in several]
        named[key] = names if several is file else names[0]
    (record,) = requested_records(**named)
    return record


def register(
    bundle: str | PathLike[str],
    fixed: str | PathLike[str],
    moving: str | PathLike[str],
    label: Label | None = None,
    out: str | PathLike[str] | None = None,
    outputs: Sequence[str] | str | None = None,
    fixed_label: Label | None = None,
    fixed_mask: str | PathLike[str] | None = None,
    moving_mask: str | PathLike[str] | None = None,
    points: str | Path | None = None,
    frame: str | None = None,
    inverse: bool = False,
    **overrides: Any,
) -> RegistrationResult:
    """Register one pair with a bundle and, if `out` is given, write the result there.

    For many pairs, make one `Registrar`, which loads the network once. See `Registrar` and `Registrar.register` for the
    arguments, and `RegistrationResult.save` for the files. `points` of the moving image, see
    `regzoo.spatial.point_files.read_points`, are carried to the fixed image; `inverse` adds this output to the others.
    """
    # These checks come before the network is loaded.
    files = (fixed, moving, label, fixed_label, fixed_mask, moving_mask)
    record = _record(*files)
    requested_outputs(outputs)
    if frame is not None and points is None:
        raise RegZooError("frame: has no effect without points; leave it out")
    file = None if points is None else read_points(points, frame)
    if out is not None:
        check_target(out, outputs, find_bundle(bundle).resolve().name, record, points, inverse)
        check_writable(out)
    registrar = Registrar(bundle, **overrides)
    registrar.check_exclude([record])
    result = registrar.register(*files)
    if file is not None:
        result.carry_points(file)
    if out is not None:
        result.save(out, outputs, inverse)
    return result
