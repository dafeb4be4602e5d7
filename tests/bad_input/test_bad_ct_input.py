"""Bad CTs and label maps through the abdominal bundle's own inference configuration, with an untrained network.

Either one line that names the file and the mend, and nothing is written; or a warning and a result.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers import ball, make_affine, write
from monai.bundle import ConfigParser
from regzoo.engines import save_weights
from regzoo.errors import user_error

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "abdominal_ct_ddmr"
Values = dict[str, Any]
SHAPE, SPACING = (32, 26, 24), (9.0, 9.0, 9.0)
AFFINE = make_affine(SHAPE, SPACING, flips=(-1, -1, 1), center=(10, -20, 300))
SHIFT = np.array([18.0, -9.0, 27.0])
NETWORK: Values = {"channels": [4, 4], "spacing": [18.0, 18.0, 18.0], "size": [16, 12, 12], "device": "cpu"}
OUTPUTS = {"warped_image.nii.gz", "field.nii.gz", "statistics.json", "quality.png"}


def ct(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """A body of fat and muscle with a liver, Hounsfield units."""
    x, y, _ = np.indices(shape)
    image = np.full(shape, -1000.0)
    image[((x - 16) / 13) ** 2 + ((y - 13) / 9) ** 2 <= 1] = -100
    image[((x - 16) / 11) ** 2 + ((y - 13) / 7) ** 2 <= 1] = 45
    image[ball(shape, (11, 13, 12), 4) > 0] = 110
    return (image + np.random.default_rng(seed).normal(0, 6, shape)).round().astype(np.int16)


def organs() -> np.ndarray:
    """Liver (6) and spleen (1)."""
    return np.where(ball(SHAPE, (11, 13, 12), 4) > 0, 6, ball(SHAPE, (22, 13, 12), 2)).astype(np.uint8)


def moved(affine: np.ndarray = AFFINE) -> np.ndarray:
    there = affine.copy()
    there[:3, 3] += SHIFT
    return there


def configured(values: Values) -> ConfigParser:
    """The inference configuration with some other values."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    parser["bundle_root"] = str(BUNDLE)
    for key, value in values.items():
        assert key in parser.config
        parser[key] = value
    return parser


class Inputs:
    """A labelled pair that registers, and the configuration that does it."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.config: Values = {
            "fixed_image": write(folder / "fixed.nii.gz", ct(), AFFINE),
            "moving_image": write(folder / "moving.nii.gz", ct(seed=1), moved()),
            "fixed_label": write(folder / "fixed_label.nii.gz", organs(), AFFINE),
            "moving_label": write(folder / "moving_label.nii.gz", organs(), moved()),
            "output_dir": str(self.out),
            "checkpoint": str(weights),
            **NETWORK,
        }

    def set(self, key: str, array: np.ndarray, affine: np.ndarray | None = None) -> str:
        """Put another volume in the place of a file."""
        there = moved() if key.startswith("moving") else AFFINE
        self.config[key] = write(self.folder / f"bad_{key}.nii.gz", array, there if affine is None else affine)
        return self.config[key]

    def run(self) -> dict[str, np.ndarray]:
        """Run ``inference.json``; returns what was written, the volumes by name."""
        parser = configured(self.config)
        for part in ("initialize", "run", "finalize"):
            parser.get_parsed_content(part)
        return {file.name: np.asarray(nib.load(file).dataobj) for file in self.out.glob("*/*.nii.gz")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "untrained.pt"
    save_weights(configured(NETWORK).get_parsed_content("network_def"), path)
    return path


@pytest.fixture
def inputs(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the configuration sets its own
    return Inputs(tmp_path, weights)


def unknown_value(inputs: Inputs) -> str:
    inputs.config["label_values"] = [1, 6]
    labels = organs()
    labels[2, 3, 4] = 9
    return inputs.set("moving_label", labels)


def truncated(inputs: Inputs) -> str:
    path = Path(inputs.config["moving_image"])
    path.write_bytes(path.read_bytes()[:4000])
    return str(path)


def with_nan(inputs: Inputs) -> str:
    image = ct().astype(np.float32)
    image[15:17, 13, 12] = np.nan
    return inputs.set("fixed_image", image)


def far_apart(inputs: Inputs) -> str:
    inputs.config["align"] = "header"
    del inputs.config["moving_label"], inputs.config["fixed_label"]
    return inputs.set("moving_image", ct(), make_affine(SHAPE, SPACING, center=(5000, 0, 0)))


ROWS: dict[str, tuple[Callable[[Inputs], str], str, str]] = {
    # what is wrong: how, in the message, the mend
    "label values not known": (unknown_value, "holds the label values 9", "label_values"),
    "no label at all, fixed": (lambda i: i.set("fixed_label", 0 * organs()), "no labelled voxel", "draw"),
    "no label at all, moving": (lambda i: i.set("moving_label", 0 * organs()), "no labelled voxel", "draw"),
    "soft labels": (lambda i: i.set("fixed_label", organs() * 0.3), "not labels", "whole numbers"),
    "negative labels": (lambda i: i.set("fixed_label", -organs().astype(np.int16)), "negative", "from 0"),
    "labels on another grid": (lambda i: i.set("fixed_label", organs()[:, :-1]), "voxels", "resample"),
    "labels in another space": (lambda i: i.set("moving_label", organs(), AFFINE), "elsewhere", "resample"),
    "scaled to [0, 1]": (
        lambda i: i.set("moving_image", ((ct().clip(-160, 240) + 160) / 400).astype(np.float32)),
        "not in Hounsfield units",
        "without a window",
    ),
    "windowed to bytes": (
        lambda i: i.set("fixed_image", ((ct().clip(-160, 240) + 160.0) * 255 / 400).astype(np.uint8)),
        "not in Hounsfield units",
        "without a window",
    ),
    "NaN in the body": (with_nan, "NaN or infinity in 2 voxels inside the body", "export"),
    "4-D": (lambda i: i.set("moving_image", np.stack([ct()] * 3, -1)), "4-D", "split"),
    "truncated": (truncated, "truncated", "again"),
    "constant": (lambda i: i.set("fixed_image", np.full(SHAPE, -1000, np.int16)), "constant", "check"),
    "far apart": (far_apart, "overlap", "set align to center"),
}


@pytest.mark.parametrize("row", ROWS)
def test_one_line_and_nothing_written(row: str, inputs: Inputs) -> None:
    spoil, problem, mend = ROWS[row]
    path = spoil(inputs)
    before = {p: p.read_bytes() for p in inputs.folder.rglob("*") if p.is_file()}
    with pytest.raises((ValueError, RuntimeError)) as caught:
        inputs.run()
    error = user_error(caught.value)
    assert error is not None
    message = str(error)
    assert "\n" not in message
    assert message.startswith(path)
    wrong, separator, advice = message.rpartition("; ")
    assert separator
    assert problem in wrong
    assert mend in advice
    assert {p: p.read_bytes() for p in inputs.folder.rglob("*") if p.is_file()} == before


def expect(inputs: Inputs, records: list[logging.LogRecord], labelled: bool = True) -> list[str]:
    """That everything was written; returns the warnings."""
    (folder,) = inputs.out.iterdir()
    assert {p.name for p in folder.iterdir()} == OUTPUTS | ({"warped_label.nii.gz"} if labelled else set())
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


def translation(field: np.ndarray) -> np.ndarray:
    """Of a field that is one (X, Y, Z, 1, 3), as RAS mm."""
    assert np.ptp(field.reshape(-1, 3), axis=0) == pytest.approx(0, abs=1e-3)
    return field.reshape(-1, 3)[0] * [-1, -1, 1]


def test_the_pair_itself_registers_without_a_word(inputs: Inputs, caplog: pytest.LogCaptureFixture) -> None:
    written = inputs.run()
    assert expect(inputs, caplog.records) == []
    # The network predicts nothing yet; what was shifted is found by the liver.
    np.testing.assert_allclose(translation(written["field.nii.gz"]), SHIFT, atol=1e-3)
    np.testing.assert_array_equal(written["warped_label.nii.gz"], organs())


@pytest.mark.parametrize("sides", [("fixed",), ("moving",), ("fixed", "moving")])
def test_a_pair_without_a_liver_mask(sides: tuple[str, ...], inputs: Inputs, caplog: pytest.LogCaptureFixture) -> None:
    spleen = (organs() == 1).astype(np.uint8)
    paths = [inputs.set(f"{side}_label", spleen * 3) for side in sides]
    written = inputs.run()
    warnings = [line for line in expect(inputs, caplog.records) if "the body is sought" in line]
    assert [line.split(":")[0] for line in warnings] == paths
    assert all("nothing has the value 6" in line for line in warnings)
    # The bodies lie as the livers do, to the voxels of the coarse copy on which they are sought.
    np.testing.assert_allclose(translation(written["field.nii.gz"]), SHIFT, atol=3)


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_liver_that_is_not_labelled_on_one_side_only(side: str, inputs: Inputs) -> None:
    del inputs.config[f"{side}_label"]
    written = inputs.run()
    np.testing.assert_allclose(translation(written["field.nii.gz"]), SHIFT, atol=3)
    assert ("warped_label.nii.gz" in written) == (side == "fixed")


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_hounsfield_units_stored_unsigned(side: str, inputs: Inputs, caplog: pytest.LogCaptureFixture) -> None:
    signed = inputs.run()
    raw = ct(seed=int(side == "moving"))
    path = inputs.set(f"{side}_image", (raw.astype(np.int32) + 1024).astype(np.uint16))
    inputs.config["output_dir"] = str(inputs.folder / "again")
    inputs.out = inputs.folder / "again"
    unsigned = inputs.run()
    (line,) = expect(inputs, caplog.records)
    assert line.startswith(path) and "1024 was subtracted" in line
    for name in ("warped_image.nii.gz", "field.nii.gz", "warped_label.nii.gz"):
        np.testing.assert_allclose(unsigned[name], signed[name], atol=1e-3)


def test_very_different_fields_of_view(inputs: Inputs, caplog: pytest.LogCaptureFixture) -> None:
    """A whole trunk for a moving image: without labels a warning, with them the livers are put together."""
    tall = (SHAPE[0], SHAPE[1], 3 * SHAPE[2])
    there = moved()
    image = ct(tall, seed=1)
    labels = np.zeros(tall, dtype=np.uint8)
    labels[..., : SHAPE[2]] = organs()
    inputs.set("moving_image", image, there)
    inputs.set("moving_label", labels, there)
    written = inputs.run()
    assert expect(inputs, caplog.records) == []
    np.testing.assert_allclose(translation(written["field.nii.gz"]), SHIFT, atol=1e-3)
    del inputs.config["moving_label"], inputs.config["fixed_label"]
    inputs.out = inputs.folder / "without"
    inputs.config["output_dir"] = str(inputs.out)
    inputs.run()
    (line,) = expect(inputs, caplog.records, labelled=False)
    assert line.startswith(inputs.config["fixed_image"])
    assert "shows 216 mm of a body" in line and "648 mm" in line and "set align to another method" in line


def test_a_field_of_view_smaller_than_the_liver(inputs: Inputs, caplog: pytest.LogCaptureFixture) -> None:
    inputs.config |= {"spacing": [9.0] * 3, "size": [10, 10, 10], "margin": 20.0}
    written = inputs.run()
    (line,) = [line for line in expect(inputs, caplog.records) if "field of view" in line]
    # Nine voxels of 9 mm and 20 mm on either side.
    assert "121×121×121 mm are wanted" in line and "90×90×90 mm" in line
    assert set(np.unique(written["warped_label.nii.gz"])) <= {0, 1, 6}


@pytest.mark.parametrize("padding", [-2000, -32768, np.nan])
def test_padding_outside_the_circle_of_the_scanner(
    padding: float, inputs: Inputs, caplog: pytest.LogCaptureFixture
) -> None:
    inputs.run()
    plain = {file.name: np.asarray(nib.load(file).dataobj) for file in inputs.out.glob("*/*.nii.gz")}
    x, y, _ = np.indices(SHAPE)
    image = ct(seed=1).astype(np.float32)
    outside = np.hypot(x - 16, y - 13) > 14.5
    image[outside] = padding
    path = inputs.set("moving_image", image)
    inputs.out = inputs.folder / "padded"
    inputs.config["output_dir"] = str(inputs.out)
    padded = inputs.run()
    (line,) = expect(inputs, caplog.records)
    assert line.startswith(path) and f"{outside.sum()} voxels of padding" in line and "-1000 HU" in line
    np.testing.assert_allclose(padded["field.nii.gz"], plain["field.nii.gz"], atol=0.2)
    inner = plain["warped_image.nii.gz"] > -500
    np.testing.assert_allclose(padded["warped_image.nii.gz"][inner], plain["warped_image.nii.gz"][inner], atol=1)
    assert padded["warped_image.nii.gz"].min() >= -1030
