"""The files that all bundles share are copies of one source, which `make bundles` writes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"LICENSE": ROOT / "LICENSE"}
SOURCES |= {str(p.relative_to(ROOT / "bundle_files")): p for p in (ROOT / "bundle_files").rglob("*") if p.is_file()}


def drifted(bundles: Path) -> list[str]:
    """The files of bundles that are not as their source."""
    found = []
    for configs in sorted(bundles.glob("*/configs")):
        copies = ((configs.parent / name, source) for name, source in SOURCES.items())
        found += [str(c) for c, source in copies if not c.is_file() or c.read_bytes() != source.read_bytes()]
    return found


def test_no_copy_differs_from_its_source() -> None:
    assert len(SOURCES) >= 7
    assert drifted(ROOT / "bundles") == [], "run `make bundles`"


def test_make_bundles_writes_the_copies(tmp_path: Path) -> None:
    """Into a bundle that has another copy and lacks one; its own files stay."""
    for name in ("Makefile", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "bundle_files", tmp_path / "bundle_files")
    bundle = tmp_path / "bundles" / "anatomy_modality_task"
    (bundle / "configs" / "variants").mkdir(parents=True)
    (bundle / "LICENSE").write_text("none\n", encoding="utf-8")
    (bundle / "configs" / "train.json").write_text("{}\n", encoding="utf-8")
    assert len(drifted(tmp_path / "bundles")) == len(SOURCES)
    subprocess.run(["make", "bundles"], cwd=tmp_path, check=True, capture_output=True)
    assert drifted(tmp_path / "bundles") == []
    assert (bundle / "configs" / "train.json").read_text(encoding="utf-8") == "{}\n"
