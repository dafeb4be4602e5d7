"""Checks of ``configs/metadata.json``."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version
from regzoo_tools.bundle import Bundle, CheckError, NotCheckedError

#: Folder of the zoo's schemas; the package contains them, so that nothing is downloaded.
SCHEMAS = Path(__file__).parent
#: The address of the zoo's schemas.
SCHEMA_URL = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
#: Packages whose version the zoo reads without an operator, and the entry that holds it.
PLAIN = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
#: Fields that the zoo requires for each tensor of the network.
TENSOR_FIELDS = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")


def schema(bundle: Bundle) -> str:
    """MONAI's own check of the metadata against their schema."""
    if importlib.util.find_spec("jsonschema") is None:
        raise NotCheckedError("jsonschema not installed: pip install jsonschema")
    from monai.bundle import verify_metadata

    known = {SCHEMA_URL + path.name: path for path in sorted(SCHEMAS.glob("meta_schema_*.json"))}
    file = known.get(str(bundle.metadata.get("schema")))
    if file is None:
        raise CheckError(f"schema is {bundle.metadata.get('schema')}; available offline: {', '.join(known)}")
    try:
        verify_metadata(meta_file=str(bundle.path("configs/metadata.json")), filepath=str(file))
    except ValueError as error:
        raise CheckError(str(error).split("\n", 1)[0]) from error
    return file.name


def version(bundle: Bundle) -> str:
    """The metadata have a display name, and the change log has an entry for the version."""
    found, changes = str(bundle.metadata.get("version")), _named(bundle, "changelog")
    if not bundle.metadata.get("name"):
        raise CheckError("configs/metadata.json has no name, which the zoo shows")
    if not re.fullmatch(r"\d+\.\d+\.\d+", found):
        raise CheckError(f"version {found} is not of the form 1.2.3")
    if not changes.get(found):
        raise CheckError(f"version {found} has no entry in changelog of configs/metadata.json")
    return f"{found}: {changes[found]}"


def requirements(bundle: Bundle) -> list[Requirement]:
    """The packages that the bundle requires, as the zoo reads them from the metadata.

    Raises:
        CheckError: a version is missing or malformed.
    """
    pins = {}
    for package, key in PLAIN.items():
        if key not in bundle.metadata:
            raise CheckError(f"configs/metadata.json has no {key}")
        pins[package] = bundle.metadata[key]
    for key in ("optional_packages_version", "required_packages_version"):
        pins |= _named(bundle, key)
    return [requirement(package, str(pin).strip()) for package, pin in pins.items()]


def _named(bundle: Bundle, key: str) -> dict[str, Any]:
    """An entry of the metadata that gives things by name; empty without one."""
    found = bundle.metadata.get(key, {})
    if not isinstance(found, dict):
        raise CheckError(f'configs/metadata.json: {key} is not an object; write {{"name": "…"}}')
    return found


def requirement(package: str, pin: str) -> Requirement:
    """The requirement that the zoo's ``get_bundle_requirements.py`` makes of a version.

    It writes == before a version that does not begin with <, > or =, and always for the packages in `PLAIN`.

    Raises:
        CheckError: the result is not a valid requirement.
    """
    ranged = pin[:1] in {"<", ">", "="} and package not in PLAIN
    try:
        return Requirement(f"{package}{pin}" if ranged else f"{package}=={Version(pin)}")
    except (InvalidRequirement, InvalidVersion):
        fix = "write it as 1.2.3" + ("" if package in PLAIN else ", or with <, >, <=, >= or == before it")
        raise CheckError(f"configs/metadata.json: {pin!r} is not a version of {package}; {fix}") from None


def packages(bundle: Bundle) -> str:
    """The required packages; regzoo is among them only if it is not inside the bundle."""
    names = [requirement.name for requirement in requirements(bundle)]
    if "required_packages_version" not in bundle.metadata:
        raise CheckError("configs/metadata.json has no required_packages_version")
    inside = (bundle.root / "regzoo").is_dir()
    if inside and "regzoo" in names:
        raise CheckError("regzoo is inside the bundle; take it out of required_packages_version")
    if not inside and "regzoo" not in names:
        raise CheckError("regzoo is not inside the bundle; name its version in required_packages_version")
    return ", ".join(names)


def tensors(bundle: Bundle) -> str:
    """The tensors ``image`` and ``pred``: all fields, a name for each channel, and the size of the network's grid."""
    for direction, key in (("inputs", "image"), ("outputs", "pred")):
        tensor, place = bundle.tensor(direction, key), f"network_data_format::{direction}::{key}"
        first = next(iter(bundle.metadata["network_data_format"][direction]))
        if first != key:
            raise CheckError(f"{place} is not the first of {direction}; MONAI Label takes {first}")
        missing = [field for field in TENSOR_FIELDS if field not in tensor]
        if missing:
            raise CheckError(f"{place} has no {', '.join(missing)}")
        named = sorted(map(int, tensor.get("channel_def") or {}))
        if named != list(range(tensor["num_channels"])):
            raise CheckError(f"{place}: channel_def names {named}, but there are {tensor['num_channels']} channels")
        size = bundle.config("inference").get("size", tensor["spatial_shape"])
        if tensor["spatial_shape"] != size:
            raise CheckError(f"{place}: spatial_shape is {tensor['spatial_shape']}, size in inference.json is {size}")
    first, second = bundle.shape()
    return f"{first} → {second}"
