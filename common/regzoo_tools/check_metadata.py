"""Checks of ``configs/metadata.json``."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version
from regzoo_tools.bundle import Bundle, CheckError, NotCheckedError

#: The zoo's schemas that travel with the package, so that nothing is fetched.
SCHEMAS = Path(__file__).parent
#: Where the zoo fetches the schema.
SCHEMA_URL = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
#: Packages whose version the zoo takes without an operator.
PLAIN = {"monai", "torch", "numpy"}
#: What the zoo demands of each tensor of the network.
TENSOR_FIELDS = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")


def schema(bundle: Bundle) -> str:
    """MONAI's own check against the schema that the metadata name."""
    if importlib.util.find_spec("jsonschema") is None:
        raise NotCheckedError("jsonschema not installed: pip install jsonschema")
    from monai.bundle import verify_metadata

    known = {SCHEMA_URL + path.name: path for path in sorted(SCHEMAS.glob("meta_schema_*.json"))}
    file = known.get(str(bundle.metadata.get("schema")))
    if file is None:
        raise CheckError(f"schema is {bundle.metadata.get('schema')}; known without the network is {', '.join(known)}")
    try:
        verify_metadata(meta_file=str(bundle.path("configs/metadata.json")), filepath=str(file))
    except ValueError as error:
        raise CheckError(str(error).split("\n", 1)[0]) from error
    return file.name


def version(bundle: Bundle) -> str:
    """A display name, and a version that the change log has an entry for."""
    found, changes = bundle.metadata.get("version"), bundle.metadata.get("changelog") or {}
    if not bundle.metadata.get("name"):
        raise CheckError("configs/metadata.json has no name, which the zoo shows")
    if not re.fullmatch(r"\d+\.\d+\.\d+", str(found)):
        raise CheckError(f"version {found} is not of the form 1.2.3")
    if not changes.get(found):
        raise CheckError(f"version {found} has no entry in changelog of configs/metadata.json")
    return f"{found}: {changes[found]}"


def requirements(bundle: Bundle) -> list[Requirement]:
    """What is to be installed for the bundle, as the zoo reads it from the metadata.

    Raises:
        CheckError: a version is missing, or is none that the zoo reads.
    """
    pins = {}
    for package, key in (("monai", "monai_version"), ("torch", "pytorch_version"), ("numpy", "numpy_version")):
        if key not in bundle.metadata:
            raise CheckError(f"configs/metadata.json has no {key}")
        pins[package] = bundle.metadata[key]
    pins.update(bundle.metadata.get("optional_packages_version", {}))
    pins.update(bundle.metadata.get("required_packages_version", {}))
    return [requirement(package, str(pin).strip()) for package, pin in pins.items()]


def requirement(package: str, pin: str) -> Requirement:
    """What the zoo's ``get_bundle_requirements.py`` makes of a version: what begins with <, > or = it takes as it is,
    before all else, and for what `PLAIN` names always, it writes ==.

    Raises:
        CheckError: this gives nothing that can be installed.
    """
    ranged = pin[:1] in {"<", ">", "="} and package not in PLAIN
    try:
        return Requirement(f"{package}{pin}" if ranged else f"{package}=={Version(pin)}")
    except (InvalidRequirement, InvalidVersion):
        mend = "write it as 1.2.3" + ("" if package in PLAIN else ", or with <, >, <=, >= or == before it")
        raise CheckError(f"configs/metadata.json: {pin!r} is no version of {package}; {mend}") from None


def packages(bundle: Bundle) -> str:
    """Versions of what is to be installed; of this package only if it does not travel inside."""
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
    """The tensors ``image`` and ``pred``: all fields, a name for each channel, and the size that the network gets."""
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
