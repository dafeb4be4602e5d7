"""Checks of a bundle's files: presence, names, sizes, format, and the text of its pages."""

from __future__ import annotations

import ast
import configparser
import json
import logging.handlers
import re

from regzoo.files import file_hash
from regzoo_tools.bundle import CONFIGS, WEIGHTS, Bundle, CheckError
from regzoo_tools.linked_pages import links as links_of

#: The zoo's size limits in bytes: for ``models/`` (its releases) and for other files (its repository, 1024 kB).
LARGEST = 25_000_000
LARGEST_OTHER = 1024 * 1024
#: Hashes that MONAI's download supports; the first is its default.
HASHES = ("md5", "sha1", "sha256", "sha512")
#: ``<anatomy>_<modality>_<task>``, and words that change how MONAI Label serves a bundle.
NAME = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+){2,}")
FORBIDDEN_WORDS = ("deepedit", "deepgrow", "detection", "classification")
#: The sections of a README in the zoo.
SECTIONS = (
    *("Model Overview", "Data", "Training configuration", "Input", "Output", "Performance"),
    *("MONAI Bundle Commands", "References", "License"),
)
LOGGING = {"": logging, "logging": logging, "logging.handlers": logging.handlers}


def required_files(bundle: Bundle) -> str:
    """The files that the zoo requires."""
    wanted = ["LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf"]
    wanted += [f"configs/{name}.json" for name in CONFIGS]
    if WEIGHTS not in bundle.large_files:
        wanted.append(WEIGHTS)
    missing = [name for name in wanted if not (bundle.root / name).is_file()]
    if missing:
        raise CheckError(f"missing: {', '.join(missing)}")
    return f"{len(wanted)} there"


def name(bundle: Bundle) -> str:
    """The folder's name, which the zoo and MONAI Label use for the bundle."""
    words = [word for word in FORBIDDEN_WORDS if word in bundle.name.lower()]
    if words:
        raise CheckError(f"{bundle.name} contains {words[0]}, which changes how MONAI Label serves it; rename it")
    if not NAME.fullmatch(bundle.name):
        raise CheckError(f"{bundle.name} is not of the form <anatomy>_<modality>_<task>; rename the folder")
    return bundle.name


def licences(bundle: Bundle) -> str:
    """The bundle's licence is one that model hubs recognise, and the data's licence is stated."""
    text = bundle.path("LICENSE").read_text(encoding="utf-8")
    kinds = {"Apache-2.0": ("Apache License", "Version 2.0"), "MIT": ("MIT License",)}
    kind = next((kind for kind, words in kinds.items() if all(word in text for word in words)), None)
    if kind is None:
        raise CheckError("LICENSE is neither the text of Apache-2.0 nor of MIT; use the whole text of one of them")
    if not bundle.path("docs/data_license.txt").read_text(encoding="utf-8").strip():
        raise CheckError("docs/data_license.txt is empty; say whose data the weights were trained on, and the licence")
    return kind


def sizes(bundle: Bundle) -> str:
    """No file exceeds the zoo's limits, except files listed with a hash; listed files match their hash."""
    for listed, entry in bundle.large_files.items():
        if not entry.get("url") or not entry.get("hash_val"):
            raise CheckError(f"{listed} is in the list of large files without a url or a hash_val")
        kind, here = str(entry.get("hash_type") or HASHES[0]), bundle.root / listed
        if kind not in HASHES:
            raise CheckError(f"{listed}: hash_type {kind} is unknown to MONAI; use one of {', '.join(HASHES)}")
        if here.is_file() and file_hash(here, kind) != str(entry["hash_val"]):
            raise CheckError(f"{listed} is not the file in the list of large files ({kind} differs)")
    everything = {path.relative_to(bundle.root).as_posix(): path.stat().st_size for path in bundle.files()}
    large = [
        f"{file} ({size / 1e6:.1f} MB)"
        for file, size in everything.items()
        if file not in bundle.large_files and size > (LARGEST if file.startswith("models/") else LARGEST_OTHER)
    ]
    if large:
        limits = "larger than 25 MB in models/, or than 1 MB (1024 kB) elsewhere"
        fix = "make them smaller, or leave out the weights with regzoo package --large_files URL"
        raise CheckError(f"{limits}: {', '.join(large)}; {fix}")
    biggest = max(everything, key=everything.__getitem__)
    return f"largest is {biggest} with {everything[biggest] / 1e6:.1f} MB; limits: 25 MB in models/, 1 MB elsewhere"


def json_format(bundle: Bundle) -> str:
    """JSON files are formatted as by ``pretty-format-json --indent=4 --no-sort-keys``."""
    paths, wrong = list(bundle.files(".json")), []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        try:
            if text != json.dumps(json.loads(text), indent=4) + "\n":
                wrong.append(path.relative_to(bundle.root).as_posix())
        except ValueError as error:
            raise CheckError(f"{path.name} is not JSON: {error}") from None
    if wrong:
        raise CheckError(f"not formatted as by json.dumps(value, indent=4): {', '.join(wrong)}")
    return f"{len(paths)} files"


def logging_conf(bundle: Bundle) -> str:
    """Only logging classes, literals and ``sys.stdout``: MONAI refuses anything else, because it could run code."""
    parser = configparser.RawConfigParser()
    parser.read_string(bundle.path("configs/logging.conf").read_text(encoding="utf-8"))
    for section in parser.sections():
        kind = parser.get(section, "class", fallback="Handler")
        module, _, attribute = kind.rpartition(".")
        known = getattr(LOGGING.get(module), attribute, None)
        if not (isinstance(known, type) and issubclass(known, (logging.Handler, logging.Formatter))):
            raise CheckError(f"configs/logging.conf: class={kind} of [{section}] is not a class of Python's logging")
        for field in ("args", "kwargs"):
            value = parser.get(section, field, fallback="")
            try:
                ast.literal_eval(re.sub(r"\bsys\.stdout\b", "None", value) or "None")
            except (ValueError, SyntaxError):
                problem = f"{field}={value} of [{section}] has more than literals and sys.stdout"
                raise CheckError(f"configs/logging.conf: {problem}") from None
    return f"{len(parser.sections())} sections"


def readme_sections(bundle: Bundle) -> str:
    """``docs/README.md`` has the sections of the zoo's READMEs."""
    text = re.sub(r"```.*?```", "", bundle.path("docs/README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    found = {heading.strip("* ").lower() for heading in re.findall(r"^#{1,6}\s+(.+?)\s*$", text, flags=re.MULTILINE)}
    missing = [name for name in SECTIONS if name.lower() not in found]
    if missing:
        raise CheckError(f"docs/README.md has no heading {', '.join(missing)}")
    return ", ".join(SECTIONS)


def links(bundle: Bundle) -> str:
    """Links of the bundle's pages to files lead somewhere."""
    pages = {page: links_of(page.read_text(encoding="utf-8")) for page in bundle.files(".md")}
    found = [(page, link.path) for page, page_links in pages.items() for link in page_links if link.local]
    dangling = [(page, path) for page, path in found if not (page.parent / path).exists()]
    if dangling:
        listed = ", ".join(f"{page.relative_to(bundle.root).as_posix()} → {path}" for page, path in dangling)
        raise CheckError(f"no such file: {listed}")
    return f"{len(found)} links to files"
