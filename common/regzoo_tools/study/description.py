"""The description of a study, a JSON file: what is read, checked and merged with a scale."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from regzoo.bundles import INSTALLED, read_config
from regzoo.errors import RegZooError, bad_file
from regzoo.files import file_name

#: Methods that need no training → the settings of their evaluation, which a study may override.
BASELINES: dict[str, dict[str, Any]] = {
    "identity": {"align": "header"},
    "centroid": {"align": "label"},
    "affine": {"align": "affine"},
    "refinement": {"align": "affine", "refine": True},
    "released": {},
    "tool": {},
}
#: Settings that a study gives to each cell itself → the key of the study that says them.
OWN = {"dataset_dir": "data", "fold": "folds", "folds": "folds", "seed": "repeats", "output_dir": "--out"}
OWN |= {"evaluation_dir": "--out", "checkpoint": "weights"}
#: What the values of a study are called in an error.
WORDS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Method:
    """One row of a study's tables: a way to train a bundle, or one of `BASELINES`, which need no training.

    docs/studies.md explains the entries. Those of ``data``, ``start`` and ``baseline`` are empty if they do not apply.
    """

    bundle: str
    overlays: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    start: str = ""
    measured: bool = True
    baseline: str = ""
    tool: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The folder of its bundle; it does not depend on the working folder."""
        return INSTALLED.resolve() / self.bundle

    @property
    def released_weights(self) -> Path:
        """The weights that come with its bundle."""
        return self.folder / "models" / "model.pt"


@dataclass(frozen=True)
class Source:
    """A data set, a path or the parameters of phantoms, and settings of all methods on it."""

    dataset_dir: str = ""
    phantoms: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study with one of its scales; docs/studies.md explains the keys of its file.

    Attributes:
        folder: where its results go.
        title, source: in words.
        data: name → the entries of a `Source`.
        methods: name → description, in the order of the tables.
        report: what the report compares, see `regzoo_tools.study.report.Options`; it has no effect on the runs.
    """

    file: Path
    folder: Path
    data: dict[str, dict[str, Any]]
    methods: dict[str, Method]
    title: str = ""
    source: str = ""
    overlays: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    folds: int | list[int] | None = None
    run_folds: int | None = None
    repeats: int = 1
    training_sizes: list[int] | None = None
    weights: str = "last"
    fields: int = 0
    processes: int = 1
    python: list[str] = field(default_factory=list)
    slurm: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, Any] = field(default_factory=dict)

    @property
    def fold_numbers(self) -> list[int]:
        """The numbers of folds."""
        return [self.folds] if isinstance(self.folds, int) else list(self.folds or [])

    def config_files(self, method: Method) -> list[Path]:
        """The files of a bundle that a method is trained and evaluated with."""
        folder = method.folder / "configs"
        overlays = [folder / "variants" / f"{name}.json" for name in (*self.overlays, *method.overlays)]
        return [folder / "train.json", *overlays, folder / "evaluate.json"]

    def config(self, method: Method) -> dict[str, Any]:
        """The top level of the configuration that a method is evaluated with."""
        config: dict[str, Any] = {}
        for path in self.config_files(method):
            config |= json.loads(path.read_text(encoding="utf-8"))
        return config

    def takes_images(self, method: Method) -> bool:
        """Whether the bundle of a method trains on single images instead of pairs."""
        return "max_images" in read_config(self.config_files(method)[0])

    def data_of(self, method: Method) -> str:
        """The name of the data set of a method."""
        return method.data or next(iter(self.data))

    def data_settings(self, method: Method) -> dict[str, Any]:
        """The settings of all methods on the data set of a method."""
        return dict(self.data[self.data_of(method)].get("settings", {}))


def read_study(file: str | Path, scale: str | None = None, out: str | Path | None = None) -> Study:
    """Read and check a study.

    Args:
        file: JSON, see `Study`. Paths in it are relative to its folder.
        scale: one of its ``scales``.
        out: the folder of the results; by default ``output/NAME`` or ``output/NAME_SCALE`` beside the file.

    Raises:
        RegZooError: the file cannot be read, or describes no valid study; one line that names the key.
    """
    from regzoo.datasets.text import read_json  # needs MONAI, which a worker loads only if it has to

    path = Path(file)
    if not path.is_file():
        raise bad_file(path, "no such file", "name the JSON file of a study")
    content = read_json(path)
    if not isinstance(content, dict):
        raise bad_file(path, "is not an object of settings", "see docs/studies.md")
    if scale is not None:
        content = _at_scale(path, content, [scale])
    name = path.stem if scale is None else f"{path.stem}_{scale}"
    folder = Path(out) if out else path.parent / "output" / name
    values = checked(path, "", content, Study, {"file", "folder"})
    for name, entry in values["data"].items():
        checked(path, f"data.{name}.", entry, Source)
    entries = {name: checked(path, f"methods.{name}.", entry, Method) for name, entry in values["methods"].items()}
    for name, entry in entries.items():
        entry["bundle"] = _bundle(path, f"methods.{name}.bundle", entry["bundle"])
    methods = {name: Method(**entry) for name, entry in entries.items()}
    study = Study(**values | {"file": path.resolve(), "folder": folder.resolve(), "methods": methods})
    _check(study)
    return _with_absolute_paths(study)


def _at_scale(file: Path, content: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """A description with the changes of a scale, the last of the names, after those of the scale that it is like."""
    scales, name = content.get("scales", {}), names[-1]
    if not isinstance(scales, dict) or name not in scales:
        raise unknown(file, f"scale {name}", "no such scale", name, scales)
    if not isinstance(scales[name], dict):
        raise bad_file(file, f"scales.{name} is not an object", "write {…}")
    changes = dict(scales[name])
    if (other := changes.pop("like", None)) is not None:
        if not isinstance(other, str) or other in names:
            problem = f"scales.{name}.like: {json.dumps(other)} is no scale, or is like this one itself"
            raise bad_file(file, problem, "write the name of another")
        content = _at_scale(file, content, [*names, other])
    only = changes.pop("only", None)
    content = merged(content, changes)
    if only is None or not isinstance(methods := content.get("methods"), dict):
        return content
    if not _fits(only, list[str]):
        raise bad_file(file, f"scales.{name}.only: {json.dumps(only)} is not a list of methods", "write one")
    for method in only:
        if method not in methods:
            raise unknown(file, f"scales.{name}.only", f"no method {method}", method, methods)
    return content | {"methods": {method: methods[method] for method in only}}


def _bundle(file: Path, place: str, bundle: str) -> str:
    """The name of an installed bundle, or the absolute path of another, which is relative to the study."""
    names = sorted(path.parents[1].name for path in INSTALLED.glob("*/configs/train.json"))
    if bundle in names:
        return bundle
    folder = (file.parent / bundle).resolve()
    if not (folder / "configs" / "train.json").is_file():
        raise unknown(file, place, f"no bundle {bundle}", bundle, names)
    return str(folder)


def merged(base: Any, changes: Any) -> Any:
    """A description with changes, object by object; null removes a key."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    whole = {key: merged(base.get(key), value) for key, value in changes.items()}
    return {key: value for key, value in (base | whole).items() if value is not None or key not in changes}


def checked(file: Path, place: str, content: Any, kind: type, given: Collection[str] = ()) -> dict[str, Any]:
    """The entries of an object, which must be fields of a dataclass with values of their types."""
    if not isinstance(content, dict):
        raise bad_file(file, f"{place.rstrip('.')} is not an object", "write {…}")
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name not in given}
    if kind is Study:
        hints["methods"] = dict[str, Any]
    for key, value in content.items():
        if key not in hints:
            raise unknown(file, f"{place}{key}", "no such key", key, hints)
        if not _fits(value, hints[key]):
            options = get_args(hints[key]) if get_origin(hints[key]) in (Union, types.UnionType) else (hints[key],)
            words = [_words(option) for option in options if option is not type(None)]
            raise bad_file(file, f"{place}{key}: {json.dumps(value)} is not {' or '.join(words)}", "write one")
    needed = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
    if missing := sorted(needed - set(given) - content.keys()):
        raise bad_file(file, f"{place}{missing[0]} is missing", "add it; see docs/studies.md")
    return dict(content)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of a JSON file has a type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, arguments[1]) for one in value.values())
    return kind is Any or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))


def _words(kind: Any) -> str:
    """A type in words."""
    inner = {str: " of texts", int: " of whole numbers"}.get(get_args(kind)[0], "") if get_origin(kind) is list else ""
    return WORDS[get_origin(kind) or kind] + inner


def unknown(file: Path, place: str, problem: str, word: str, known: Collection[str]) -> RegZooError:
    near = difflib.get_close_matches(word, list(known), 1)
    fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}" if known else "leave it out"
    return bad_file(file, f"{place}: {problem}", fix)


def _check(study: Study) -> None:
    """Refuse values that no run could use, before anything is run."""
    numbers = [("repeats", study.repeats, 1), ("processes", study.processes, 1), ("run_folds", study.run_folds, 1)]
    numbers += [("training_sizes", min(study.training_sizes or [1]), 1), ("fields", study.fields, 0)]
    for key, number, least in numbers:
        if number is not None and number < least:
            raise bad_file(study.file, f"{key}: is below {least}", "write a larger number")
    if study.folds is not None and (study.folds == [] or min(study.fold_numbers) < 2):
        raise bad_file(study.file, "folds: cross-validation needs at least 2", "write a larger number")
    for key, several in {"folds": study.fold_numbers, "training_sizes": study.training_sizes or []}.items():
        if len(set(several)) < len(several):
            raise bad_file(study.file, f"{key}: {several} has a number twice", "keep one of them")
    if study.folds is not None and study.training_sizes is not None:
        fix = "leave training_sizes out, and write several numbers as folds: k folds train on (k − 1)/k of the cases"
        raise bad_file(study.file, "training_sizes: would change the cases that are measured", fix)
    if study.weights not in ("last", "best"):
        raise unknown(study.file, "weights", f"{study.weights!r} is not known", study.weights, ["last", "best"])
    for name, source in study.data.items():
        if source.keys() - {"settings"} not in ({"dataset_dir"}, {"phantoms"}):
            raise bad_file(study.file, f"data.{name}: names no data", 'write {"dataset_dir": …} or {"phantoms": {…}}')
    if not study.data or not study.methods:
        raise bad_file(study.file, f"{'methods' if study.data else 'data'}: is empty", "name at least one")
    folders: dict[str, str] = {}
    for name, method in study.methods.items():
        if (other := folders.setdefault(file_name(name).lower(), name)) != name:
            raise bad_file(study.file, f"methods.{name}: has the same folder as {other}", "give it another name")
        _check_method(study, name, method)


def _check_method(study: Study, name: str, method: Method) -> None:
    file, place = study.file, f"methods.{name}"
    if method.data and method.data not in study.data:
        raise unknown(file, f"{place}.data", f"no data set {method.data}", method.data, study.data)
    if method.baseline and method.baseline not in BASELINES:
        raise unknown(file, f"{place}.baseline", f"no baseline {method.baseline}", method.baseline, BASELINES)
    if bool(method.tool) != (method.baseline == "tool"):
        raise bad_file(file, f"{place}.tool: belongs to a baseline tool, and to no other method", "write both or none")
    _check_start(study, name, method)
    folder = method.folder / "configs"
    variants = [path.stem for path in sorted((folder / "variants").glob("*.json"))]
    for overlay in (*study.overlays, *method.overlays):
        if overlay not in variants:
            raise unknown(file, f"{place}.overlays", f"no overlay {overlay}", overlay, variants)
    config = study.config(method)
    given = {"settings": study.settings, f"data.{study.data_of(method)}.settings": study.data_settings(method)}
    given |= {"evaluation": study.evaluation}
    given |= {f"{place}.settings": method.settings, f"{place}.evaluation": method.evaluation}
    for where, key in [(where, key) for where, settings in given.items() for key in settings]:
        first = key.lstrip("+").replace("::", "#").split("#")[0]
        if first not in config:
            raise unknown(file, f"{where}.{key}", f"no such setting of {method.bundle}", first, config)
        if first in OWN:
            raise bad_file(file, f"{where}.{key}: the study itself sets it", f"leave it out; use {OWN[first]}")
    if method.baseline == "released":
        if not method.released_weights.is_file():
            problem = f"methods.{name}: {method.bundle} has no released weights"
            raise bad_file(file, problem, f"copy them to {method.released_weights}")
    elif method.baseline and config["network_def"].get("out_channels") == 1:
        fix = "name a bundle whose network predicts a field"
        raise bad_file(file, f"{place}.bundle: {method.bundle} predicts labels, and a baseline finds a field", fix)


def _check_start(study: Study, name: str, method: Method) -> None:
    seen = [name]
    while start := method.start:
        if start not in study.methods or study.methods[start].baseline:
            trained = [other for other, one in study.methods.items() if not one.baseline and other != name]
            raise unknown(study.file, f"methods.{seen[-1]}.start", f"no trained method {start}", start, trained)
        if start in seen:
            raise bad_file(study.file, f"methods.{name}.start: leads back to {start}", "name another method")
        seen.append(start)
        method = study.methods[start]


def _with_absolute_paths(study: Study) -> Study:
    """The study with paths that do not depend on the working folder, and data sets that exist."""
    home = study.file.parent
    data = {name: dict(source) for name, source in study.data.items()}
    for name, source in data.items():
        if "dataset_dir" in source:
            source["dataset_dir"] = str((home / source["dataset_dir"]).resolve())
            if not Path(source["dataset_dir"]).exists():
                fix = f"name the data set as data.{name}.dataset_dir"
                raise bad_file(source["dataset_dir"], f"no such folder or file, named in {study.file}", fix)
    methods = {
        name: replace(method, tool=[_absolute(home, word) for word in method.tool])
        for name, method in study.methods.items()
    }
    return replace(study, data=data, methods=methods, python=[_absolute(home, word) for word in study.python])


def _absolute(home: Path, word: str) -> str:
    """A word of a command; a path relative to the study becomes absolute. A link to an interpreter stays a link."""
    return str(home.resolve() / word) if "/" in word and (word.startswith(".") or (home / word).exists()) else word
