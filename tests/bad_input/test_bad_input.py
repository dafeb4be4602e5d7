"""Bad input through the whole command: one line that names the file and the mend, exit status 1, no output.

A datalist that names a pair twice and a folder in no known layout are in tests/datasets (records, loading); files of
weights that are damaged, in tests/engines/test_checkpoint.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import ball, make_affine, smooth_noise, write
from regzoo.cli import main
from regzoo.engines import save_weights
from regzoo.errors import RegZooError
from regzoo.inference import register
from regzoo.networks import LocalNet
from regzoo.transforms import AlignPaird, LoadPaird

BUNDLE = "prostate_mr_trus_weak_ddf"
SHAPE = (20, 18, 16)
AFFINE = make_affine(SHAPE, (2, 2, 2.5), (5, 0, 10), center=(10, 20, 30))
FAR = make_affine(SHAPE, (2, 2, 2.5), (5, 0, 10), center=(510, 20, 30))
SHEAR = np.eye(4) + np.pad([[0.2]], ((0, 3), (1, 2)))
IMAGE = smooth_noise(SHAPE, 2, 0)
LABEL = ball(SHAPE, (10, 9, 8), 5).astype(np.uint8)


class Inputs:
    """A pair that registers, and the command that does it."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.options = {
            "fixed": write(folder / "fixed.nii.gz", IMAGE, AFFINE),
            "moving": write(folder / "moving.nii.gz", IMAGE[::-1].copy(), AFFINE),
            "label": write(folder / "label.nii.gz", LABEL, AFFINE),
            "out": str(self.out),
            "checkpoint": str(weights),
            "channels": "2",
            "device": "cpu",
        }

    def set(self, key: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> str:
        """Put another volume in the place of a file."""
        self.options[key] = write(self.folder / f"bad_{key}.nii.gz", array, affine)
        return self.options[key]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    save_weights(LocalNet(channels=2), path)
    return path


@pytest.fixture
def inputs(tmp_path: Path, weights: Path) -> Inputs:
    return Inputs(tmp_path, weights)


def missing(inputs: Inputs) -> str:
    inputs.options["moving"] = str(inputs.folder / "none.nii.gz")
    return inputs.options["moving"]


def missing_label(inputs: Inputs) -> str:
    inputs.options["label"] = str(inputs.folder / "none.nii.gz")
    return inputs.options["label"]


def truncated(inputs: Inputs) -> str:
    path = Path(inputs.options["fixed"])
    path.write_bytes(path.read_bytes()[:3000])
    return str(path)


def truncated_label(inputs: Inputs) -> str:
    path = Path(inputs.options["label"])
    path.write_bytes(path.read_bytes()[:-30])
    return str(path)


def not_an_image(inputs: Inputs) -> str:
    Path(inputs.options["moving"]).write_bytes(b"not an image at all" * 100)
    return inputs.options["moving"]


def with_value(value: float) -> Callable[[Inputs], str]:
    def replace(inputs: Inputs) -> str:
        bad = IMAGE.copy()
        bad[3, 4, 5] = value
        return inputs.set("moving", bad)

    return replace


def elsewhere(inputs: Inputs) -> str:
    return inputs.set("label", LABEL, AFFINE @ np.diag([1, 1, -1, 1.0]))


def far_away(inputs: Inputs) -> str:
    del inputs.options["label"]
    return inputs.set("moving", IMAGE, FAR)


def another_network(inputs: Inputs) -> str:
    save_weights(LocalNet(channels=3), inputs.folder / "other.pt")
    inputs.options["checkpoint"] = str(inputs.folder / "other.pt")
    return inputs.options["checkpoint"]


def no_checkpoint(inputs: Inputs) -> str:
    inputs.options["checkpoint"] = str(inputs.folder / "none.pt")
    return inputs.options["checkpoint"]


def out_is_a_file(inputs: Inputs) -> str:
    (inputs.folder / "file").write_text("mine")
    inputs.options["out"] = str(inputs.folder / "file" / "out")
    return str(inputs.folder / "file")


def same_twice(inputs: Inputs) -> str:
    inputs.options["moving"] = inputs.options["fixed"]
    return inputs.options["fixed"]


def two_places(inputs: Inputs) -> str:
    """An sform of code 2, as SPM writes it, and a qform 12 mm away, which ITK takes."""
    path = inputs.options["moving"]
    image = nib.load(path)
    image.set_sform(AFFINE, 2)
    image.set_qform(AFFINE + np.pad([[12.0]], ((1, 2), (3, 0))), 1)
    Path(path).write_bytes(image.to_bytes())
    inputs.options["strict_headers"] = "True"
    return path


def colour(inputs: Inputs) -> str:
    return inputs.set("moving", np.zeros(SHAPE, np.dtype([(channel, "u1") for channel in "RGB"])))


def slices(inputs: Inputs) -> str:
    inputs.options["moving"] = str(inputs.folder / "series")
    Path(inputs.options["moving"]).mkdir()
    (inputs.folder / "series" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    return inputs.options["moving"]


ROWS: dict[str, tuple[Callable[[Inputs], str], str, str]] = {
    # what is wrong: how, in the message, the mend
    "missing file": (missing, "no such file", "path"),
    "missing label": (missing_label, "no such file", "path"),
    "truncated gzip": (truncated, "truncated", "again"),
    "truncated label": (truncated_label, "truncated", "again"),
    "not an image": (not_an_image, "not an image", "again"),
    "2-D": (lambda i: i.set("fixed", IMAGE[:, :, 8]), "2-D", "3-D volume"),
    "one slice": (lambda i: i.set("fixed", IMAGE[:, :, 8:9]), "2-D", "3-D volume"),
    "one row": (lambda i: i.set("fixed", IMAGE[:, 8:9]), "2-D", "3-D volume"),
    "4-D image": (lambda i: i.set("moving", np.stack([IMAGE] * 2, -1)), "4-D", "split"),
    "5-D image": (lambda i: i.set("moving", np.stack([np.stack([IMAGE] * 2, -1)] * 3, -1)), "5-D", "split"),
    "NaN": (with_value(np.nan), "NaN", "replace them with the background value: in most images the minimum"),
    "infinity": (with_value(-np.inf), "infinity", "in CT -1000"),
    "constant image": (lambda i: i.set("moving", np.full(SHAPE, 7, np.int16)), "constant", "check"),
    "label of another size": (lambda i: i.set("label", LABEL[:-1]), "voxels", "resample"),
    "label elsewhere": (elsewhere, "elsewhere", "resample"),
    "label with no voxel": (lambda i: i.set("label", 0 * LABEL), "no labelled voxel", "draw"),
    "all labels of a case empty": (lambda i: i.set("label", np.stack([0 * LABEL] * 3, -1)), "no labelled", "draw"),
    "an image for a label": (lambda i: i.set("label", IMAGE), "intensities", "mask"),
    "sheared image": (lambda i: i.set("fixed", IMAGE, AFFINE @ SHEAR), "right angles", "resample"),
    "sheared label": (lambda i: i.set("label", LABEL, AFFINE @ SHEAR), "right angles", "resample"),
    "two places, strictly": (two_places, "up to 12 mm away", "as both sform and qform"),
    "colour": (colour, "colour", "one value"),
    "damaged series": (slices, "1.dcm: is a DICOM file that is truncated", "export it again"),
    "no overlap": (far_away, "overlap", "set align to center"),
    "the same file twice": (same_twice, "both the fixed and the moving", "two images"),
    "checkpoint of another network": (another_network, "another network", "configuration"),
    "missing checkpoint": (no_checkpoint, "no such checkpoint", "as checkpoint"),
    "output folder below a file": (out_is_a_file, "cannot write", "name a folder"),
}


def run(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [f"--{key}={value}" for key, value in inputs.options.items()]
    monkeypatch.setattr(sys, "argv", ["regzoo", "register", BUNDLE, *options])
    main()


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_is_answered_in_one_line(
    row: str, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, problem, mend = ROWS[row]
    path = spoil(inputs)
    before = {p: p.read_bytes() for p in inputs.folder.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as stop:
        run(inputs, monkeypatch)
    assert stop.value.code == 1
    out, message = capfd.readouterr()
    assert out == ""
    assert message.startswith("error: ")
    assert message.endswith("\n")
    assert message.count("\n") == 1
    assert path in message
    wrong, separator, advice = message.rpartition("; ")
    assert separator
    assert problem in wrong
    assert mend in advice
    # Nothing was written, nor anything the user had touched.
    assert {p: p.read_bytes() for p in inputs.folder.rglob("*") if p.is_file()} == before
    assert not inputs.out.exists()


def test_the_pair_itself_is_good(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(inputs, monkeypatch)
    assert capfd.readouterr().err == ""
    names = {path.name for path in inputs.out.iterdir()}
    assert names == {"warped_image.nii.gz", "warped_label.nii.gz", "field.nii.gz", "statistics.json", "quality.png"}


def scaled(path: Path, raw: np.ndarray, slope: float, offset: float) -> str:
    """Integers with a scale in the header, as scanners write them."""
    image = nib.Nifti1Image(raw, AFFINE)
    image.header.set_slope_inter(slope, offset)
    image.header.set_data_dtype(raw.dtype)
    with path.open("wb") as stream:
        image.header.write_to(stream)
        stream.write(bytes(352 - stream.tell()) + raw.tobytes(order="F"))
    return str(path)


def settings(inputs: Inputs) -> dict[str, object]:
    return {"checkpoint": inputs.options["checkpoint"], "channels": 2, "device": "cpu"}


def test_integer_double_and_scaled_files_register_alike(inputs: Inputs) -> None:
    whole = np.round(IMAGE[::-1] * 10).astype(np.int16)
    files = [
        write(inputs.folder / "integer.nii.gz", whole, AFFINE),
        write(inputs.folder / "double.nii", whole.astype(np.float64), AFFINE),
        scaled(inputs.folder / "scaled.nii", 2 * whole - 200, 0.5, 100.0),
    ]
    results = [register(BUNDLE, inputs.options["fixed"], file, **settings(inputs)) for file in files]
    for result in results:
        # The network is untrained, and both files lie on one grid: the moving image itself.
        np.testing.assert_allclose(result.warped_image[0].numpy(), whole, atol=0.01)


def test_a_folder_that_must_not_be_written_to(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    result = register(BUNDLE, inputs.options["fixed"], inputs.options["moving"], **settings(inputs))
    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)  # whoever runs the tests may write everywhere
    with pytest.raises(RegZooError, match=r"cannot write here .permission denied.; name a folder") as error:
        result.save(inputs.out)
    assert str(inputs.folder) in str(error.value)
    assert not inputs.out.exists()


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_mask_of_a_list_may_be_empty_but_not_all(side: str, inputs: Inputs) -> None:
    empty = inputs.set("label", 0 * LABEL)
    full = write(inputs.folder / "full.nii.gz", LABEL, AFFINE)
    record = {f"{s}_image": inputs.options[s] for s in ("fixed", "moving")}
    item = LoadPaird()(record | {f"{side}_label": [empty, full]})
    assert [bool(channel.any()) for channel in item[f"{side}_label"]] == [False, True]
    with pytest.raises(RegZooError, match="other masks of its list hold no labelled voxel; draw") as error:
        LoadPaird()(record | {f"{side}_label": [empty, empty]})
    assert str(error.value).startswith(empty)


def test_no_overlap_is_mended_by_what_the_line_says(inputs: Inputs) -> None:
    moving = inputs.set("moving", IMAGE, FAR)
    item = LoadPaird()({"fixed_image": inputs.options["fixed"], "moving_image": moving})
    with pytest.raises(RegZooError, match="500 mm apart") as error:
        AlignPaird()(item)
    assert moving in str(error.value)
    assert inputs.options["fixed"] in str(error.value)
    aligned = AlignPaird("center")(item)
    places = aligned["prealignment"].numpy() @ aligned["moving_image"].affine.numpy()
    np.testing.assert_allclose(places, AFFINE, atol=1e-4)
