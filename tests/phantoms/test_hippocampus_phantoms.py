"""Hippocampus phantoms: the layout of Learn2Reg, anatomy, and units that differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from regzoo.datasets import load_single_records
from regzoo.spatial import read_image, read_label_file
from regzoo_phantoms import HippocampusPhantoms, embedded_phantoms
from regzoo_phantoms.hippocampus import LABELS
from regzoo_tools.commands import Phantom

SMALL = {"cases": 6, "held_out": 2, "seed": 2}


@pytest.fixture(scope="module")
def hippocampi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return HippocampusPhantoms(**SMALL).write(tmp_path_factory.mktemp("hippocampus") / "set", workers=1)


def test_layout(hippocampi: Path) -> None:
    """The reader of Learn2Reg finds both splits, each image with a map of two named labels."""
    for split, count in (("train", 6), ("val", 2)):
        records = load_single_records(hippocampi, split)
        assert len(records) == len({record["patient"] for record in records}) == count
        for record in records:
            assert (record["label_values"], record["label_names"]) == (list(LABELS), list(LABELS.values()))
            assert read_image(record["fixed_image"]).shape == (1, 36, 52, 40)


def test_anatomy(hippocampi: Path) -> None:
    """Each part has the volume of a real one; the anterior part lies in front and below; all of it is in view."""
    for record in load_single_records(hippocampi):
        volume = read_label_file(record["fixed_label"]).volume[0]
        where = {name: np.argwhere(np.asarray(volume) == value) for value, name in LABELS.items()}
        assert all(800 < len(voxels) < 3000 for voxels in where.values())
        middle = {name: voxels.mean(axis=0) for name, voxels in where.items()}
        assert middle["anterior"][1] > middle["posterior"][1] + 10 and middle["anterior"][2] < middle["posterior"][2]
        assert not (volume[[0, -1]].any() or volume[:, [0, -1]].any() or volume[:, :, [0, -1]].any())


def test_units_differ(hippocampi: Path) -> None:
    brightest = [float(read_image(record["fixed_image"]).max()) for record in load_single_records(hippocampi)]
    assert max(brightest) > 10 * min(brightest)


def test_command_and_embedded_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`regzoo phantom hippocampus` writes what a bundle without a data set would; the same seed, the same files."""
    Phantom().hippocampus(str(tmp_path / "set"), **SMALL)
    assert "6 + 2 cases in" in capsys.readouterr().out
    assert embedded_phantoms(tmp_path / "set", kind="hippocampus", **SMALL) == tmp_path / "set"
    again = HippocampusPhantoms(**SMALL | {"cases": 7}).write(tmp_path / "again", workers=1)
    for path in (tmp_path / "set").glob("*Tr/*.nii.gz"):
        assert path.read_bytes() == (again / path.relative_to(tmp_path / "set")).read_bytes()
