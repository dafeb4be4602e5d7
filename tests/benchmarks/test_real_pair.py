"""The measurement of a pair of real images: against SimpleITK's warp of the label map, and on scenes that are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import from_sitk, make_affine, rigid, to_sitk, write
from monai.bundle import ConfigParser
from regzoo.engines import save_weights
from regzoo.errors import RegZooError
from scipy.ndimage import center_of_mass

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "abdomen_ct"
BUNDLE = ROOT / "bundles" / "abdominal_ct_ddmr"
RELEASED = BUNDLE / "models" / "model.pt"
#: Centre and radius of the labels, RAS mm.
LABELS = {1: ((70, 10, 20), 22), 2: ((-45, -20, -10), 30), 6: ((-20, 35, 45), 26)}
IMAGE_GRID = ((60, 46, 38), (5.0, 5.0, 5.5))
SCRIPT = "real_pair"
NETWORK = {"spacing": [10.0, 10.0, 10.0], "size": [36, 28, 24], "channels": [4, 4], "stride": 1, "passes": 1}


def scene(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units and labels of a body at points (..., 3), RAS mm."""
    x, y, z = np.moveaxis(points, -1, 0)
    image = np.full(x.shape, -1000.0)
    image[(x / 125) ** 2 + (y / 95) ** 2 + (z / 400) ** 2 <= 1] = -90
    image[(x / 110) ** 2 + (y / 75) ** 2 + (z / 400) ** 2 <= 1] = 30
    image[(x**2 + (y + 60) ** 2 <= 14**2)] = 200
    labels = np.zeros(x.shape, dtype=np.uint8)
    for value, (center, radius) in LABELS.items():
        inside = ((points - center) ** 2).sum(-1) <= radius**2
        labels[inside] = value
        image[inside] = 80 + 20 * value
    return image.astype(np.float32), labels


def places(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


class Pair:
    """Files of a pair; the moving world is the fixed one through a matrix. Label maps lie on grids of their own."""

    def __init__(
        self,
        folder: Path,
        there: np.ndarray,
        weights: dict[str, torch.Tensor] | None = None,
        turn: tuple[float, float, float] = (3, 0, 5),
    ) -> None:
        self.folder = folder
        shape, spacing = IMAGE_GRID
        self.affines = {}
        grids = {
            "fixed": (
                make_affine(shape, spacing, flips=(-1, -1, 1)),
                (80, 64, 60),
                make_affine((80, 64, 60), (3.5,) * 3),
            ),
            "moving": (
                there @ make_affine(shape, spacing, flips=(-1, 1, 1)),
                (70, 80, 50),
                there @ make_affine((70, 80, 50), (4, 3, 4.2), turn),
            ),
        }
        back = np.linalg.inv(there)
        for side, (affine, label_shape, label_affine) in grids.items():
            world = np.eye(4) if side == "fixed" else back
            volumes = [
                scene(places(s, world @ a))[i]
                for i, (s, a) in enumerate([(shape, affine), (label_shape, label_affine)])
            ]
            write(folder / f"{side}.nii.gz", volumes[0], affine)
            write(folder / f"{side}_label.nii.gz", volumes[1], label_affine)
        torch.manual_seed(0)
        network = untrained()
        network.load_state_dict(network.state_dict() | (weights or {}))
        save_weights(network, folder / "model.pt")
        (folder / "coarse.json").write_text(json.dumps(NETWORK))

    def label(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        image = nib.load(self.folder / f"{side}_label.nii.gz")
        return np.asarray(image.dataobj), image.affine

    def arguments(self, *more: str) -> list[str]:
        files = {"fixed": "fixed", "moving": "moving", "fixed-label": "fixed_label", "moving-label": "moving_label"}
        words = [word for key, name in files.items() for word in (f"--{key}", str(self.folder / f"{name}.nii.gz"))]
        words += ["--overlay", str(self.folder / "coarse.json"), "--checkpoint", str(self.folder / "model.pt")]
        return [*words, "--device", "cpu", *more]

    def warped(self, transform: sitk.Transform) -> np.ndarray:
        """The moving label map on the fixed one's grid, by SimpleITK."""
        (moving, there), (fixed, here) = self.label("moving"), self.label("fixed")
        images = to_sitk(moving, there), to_sitk(fixed, here)
        return from_sitk(sitk.Resample(*images, transform, sitk.sitkNearestNeighbor, 0))

    def overlaps(self, warped: np.ndarray) -> list[float]:
        fixed = self.label("fixed")[0]
        masks = [(fixed == value, warped == value) for value in LABELS]
        return [2 * float((a & b).sum()) / float(a.sum() + b.sum()) for a, b in masks]

    def centroids(self, labels: np.ndarray | None = None) -> np.ndarray:
        """Of a map on the fixed label map's grid, mm."""
        fixed, here = self.label("fixed")
        voxels = [center_of_mass((fixed if labels is None else labels) == value) for value in LABELS]
        return np.asarray(voxels) @ here[:3, :3].T


def untrained() -> torch.nn.Module:
    """The bundle's network, small; it predicts nothing."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    parser.update({key: value for key, value in NETWORK.items() if key in parser.config})
    return parser.get_parsed_content("network_def")


def field_head(bias: tuple[float, float, float], scale: float = 0.0) -> dict[str, torch.Tensor]:
    """Weights of a last layer that predicts a constant displacement, voxels, and something that varies."""
    layer = "unet.net.1.final_conv_out"
    names = {name: value for name, value in untrained().state_dict().items() if layer in name}
    (weight,) = (name for name in names if name.endswith("weight"))
    (offset,) = (name for name in names if name.endswith("bias"))
    noise = torch.randn(names[weight].shape, generator=torch.Generator().manual_seed(3))
    return {weight: scale * noise, offset: torch.tensor(bias)}


def columns(text: str) -> dict[str, dict[str, list[float]]]:
    """Measure → stage → values of the labels and their mean."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    heading, _, *rows = lines
    assert [row[0] for row in rows] == [*map(str, LABELS), "mean"]
    found: dict[str, dict[str, list[float]]] = {}
    measure = ""
    for index, cell in enumerate(heading[1:], 1):
        measure = cell.split(": ")[0] if ": " in cell else measure
        values = [float(row[index].replace("—", "nan")) for row in rows]
        found.setdefault(measure, {})[cell.split(": ")[-1]] = values
    return found


def folded(text: str) -> list[int]:
    line = next(line for line in text.splitlines() if line.startswith("Folded voxels"))
    return [int(word) for word in line.split(": ")[1].replace("(", "").split() if word.isdigit()]


def test_a_known_translation(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shift = np.array([14.0, -9.0, 20.0])
    there = rigid((0, 0, 0), shift)
    pair = Pair(tmp_path, there, field_head((0.8, -0.5, 0.6)))
    script.main(pair.arguments("--align", "center"))
    text = capsys.readouterr().out
    found = columns(text)
    assert list(found) == ["Dice", "TRE, mm", "HD95, mm"]
    assert folded(text) == [0, 0, 0]
    # Fixed and moving world in LPS mm, as ITK wants them; the network moves everything by the same 10 mm voxels.
    last = shift + 10 * np.array([0.8, -0.5, 0.6])
    stages = {"header": np.zeros(3), "pre-aligned": shift, "registered": last}
    for stage, vector in stages.items():
        warped = pair.warped(sitk.TranslationTransform(3, (vector * [-1, -1, 1]).tolist()))
        expected = pair.overlaps(warped)
        dice = found["Dice"][stage]
        assert dice[:3] == pytest.approx(expected, abs=0.006)
        assert dice[3] == pytest.approx(np.mean(expected), abs=0.006)
        away = float(np.linalg.norm(vector - shift))
        distances = [float(np.linalg.norm(step)) for step in pair.centroids(warped) - pair.centroids()]
        assert found["TRE, mm"][stage] == pytest.approx([*distances, np.mean(distances)], abs=0.1)
        assert found["TRE, mm"][stage] == pytest.approx([away] * 4, abs=1)
        # A ball that is moved is at most as far from itself as it was moved.
        assert all(0.6 * away - 4.2 <= value <= away + 4.2 for value in found["HD95, mm"][stage])


def test_an_affine_and_the_whole_field(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The affine is found, and is part of the field that is measured and written."""
    there = rigid((4, -3, 7), (12, -10, 15)) @ np.diag([1.05, 0.96, 1.03, 1])
    # Grids along the axes that the affine stretches: no file holds the shear that it would give others.
    pair = Pair(tmp_path, there, field_head((0.2, -0.1, 0.3), scale=0.3), turn=(0, 0, 0))
    out = tmp_path / "out"
    script.main(pair.arguments("--align", "affine", "--out", str(out)))
    text = capsys.readouterr().out
    assert text.endswith((out / "table.md").read_text())
    found = columns(text)
    away = [np.linalg.norm((there @ [*center, 1])[:3] - center) for center, _ in LABELS.values()]
    assert found["TRE, mm"]["header"][:3] == pytest.approx(away, abs=1.5)
    assert min(found["TRE, mm"]["header"]) > 12
    assert max(found["TRE, mm"]["pre-aligned"]) < 3
    assert min(found["Dice"]["pre-aligned"]) > 0.88
    vectors = sitk.ReadImage(str(out / "field.nii.gz"), sitk.sitkVectorFloat64)
    array = sitk.GetArrayFromImage(vectors)
    warped = pair.warped(sitk.DisplacementFieldTransform(vectors))
    assert found["Dice"]["registered"][:3] == pytest.approx(pair.overlaps(warped), abs=0.01)
    assert abs(np.diff(found["Dice"]["registered"][:3])).max() > 0
    # The network's field is none that the affine alone could be.
    assert np.abs(np.diff(array, n=2, axis=0)).max() > 0.05
    # The written image is the moving file, seen through that field.
    image = sitk.ReadImage(str(tmp_path / "moving.nii.gz"), sitk.sitkFloat32)
    vectors = sitk.ReadImage(str(out / "field.nii.gz"), sitk.sitkVectorFloat64)
    fixed = sitk.ReadImage(str(tmp_path / "fixed.nii.gz"))
    again = sitk.Resample(image, fixed, sitk.DisplacementFieldTransform(vectors), sitk.sitkLinear, -1000.0)
    difference = sitk.GetArrayFromImage(again) - sitk.GetArrayFromImage(
        sitk.ReadImage(str(out / "warped_image.nii.gz"))
    )
    assert np.quantile(np.abs(difference), 0.98) < 1


def spoiled_copy(folder: Path, side: str, step: int = 1) -> tuple[str, str, np.ndarray]:
    """Image and labels, cropped, flipped and with a header that says nothing of it, and the truth about its world."""
    shape, affine = (56, 40, 36), make_affine((56, 40, 36), (5, 5, 5), flips=(-1, -1, 1), center=(6, -4, 5))
    image, labels = scene(places(shape, affine))
    header = np.diag([-5.0, -5.0, 5.0, 1.0])
    flip = np.eye(4)
    flip[1, 1], flip[1, 3] = -1, shape[1] - 1
    files = [
        write(folder / f"{side}_{name}.nii.gz", v[:, ::-1], header)
        for name, v in (("copy", image.clip(-900, 500)), ("drawn", labels))
    ]
    return files[0], files[1], affine @ flip @ np.linalg.inv(header)


def test_labels_on_a_copy_with_another_header(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("same_world.COMPARED", 10_000)
    pair = Pair(tmp_path, np.eye(4))
    copy, drawn, truth = spoiled_copy(tmp_path, "fixed")
    matrix, correlation = script.world_of_copy(copy, tmp_path / "fixed.nii.gz")
    assert correlation > 0.95
    corners = places((2, 2, 2), nib.load(copy).affine @ np.diag([55, 39, 35, 1])).reshape(-1, 3)
    found, expected = (corners @ m[:3, :3].T + m[:3, 3] for m in (matrix, truth))
    np.testing.assert_allclose(found, expected, atol=1.5)
    options = script.parse(pair.arguments("--fixed-drawn-on", copy))
    options.fixed_label = drawn
    fixed, moving, values = script.read_labels(options)
    assert values == list(LABELS)
    for channel, (center, _) in zip(fixed, LABELS.values(), strict=True):
        voxels = np.argwhere(channel.numpy() > 0)
        np.testing.assert_allclose(nib.affines.apply_affine(fixed.affine.numpy(), voxels).mean(0), center, atol=1.5)
    assert moving.shape[1:] == pair.label("moving")[0].shape


def test_what_cannot_be_measured_is_one_line(script: ModuleType, tmp_path: Path) -> None:
    pair = Pair(tmp_path, np.eye(4))
    noise = np.random.default_rng(0).normal(0, 300, (30, 30, 30)).astype(np.float32)
    other = write(tmp_path / "noise.nii.gz", noise, np.diag([5, 5, 5, 1]))
    with pytest.raises(RegZooError, match=r"noise.nii.gz: does not show what .*fixed.nii.gz shows") as caught:
        script.world_of_copy(other, tmp_path / "fixed.nii.gz")
    assert "\n" not in str(caught.value)
    labels, affine = pair.label("moving")
    write(tmp_path / "moving_label.nii.gz", (labels > 0).astype(np.uint8) * 9, affine)
    with pytest.raises(RegZooError, match="no label in common"):
        script.main(pair.arguments("--align", "center"))
    write(tmp_path / "moving_label.nii.gz", np.stack([labels > 0] * 2, -1).astype(np.uint8), affine)
    with pytest.raises(RegZooError, match=r"moving_label.nii.gz: is a 4-D file"):
        script.main(pair.arguments())
    write(tmp_path / "moving_label.nii.gz", labels, affine)
    with pytest.raises(RegZooError, match=r"fixed_label.nii.gz: .*; resample"):
        script.main([*pair.arguments(), "--fixed-drawn-on", other])


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data/abdomen_ct")
def test_real_copies_are_put_where_they_belong(script: ModuleType) -> None:
    """The 2 mm files are the native ones, flipped, resampled to a whole number of voxels, cropped and padded."""
    matrix, correlation = script.world_of_copy(REAL / "fixed_2mm.nii.gz", REAL / "fixed_native.nii.gz")
    assert correlation > 0.99
    assert np.linalg.det(matrix[:3, :3]) < 0
    native, copy = (nib.load(REAL / f"fixed_{name}.nii.gz") for name in ("native", "2mm"))
    # 412×412×255 mm are 206×206×128 voxels of 2 mm; 8 and 9 are cut off.
    ratio = np.array(native.shape) / (206, 206, 128)
    index = np.diag([*ratio, 1.0])
    index[:3, 3] = (np.array([8, 9, 0]) + 0.5) * ratio - 0.5
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = native.shape[1] - 1
    truth = native.affine @ flip @ index
    corners = np.array(copy.shape) - 1
    found, expected = (places((2, 2, 2), m @ np.diag([*corners, 1])) for m in (matrix @ copy.affine, truth))
    np.testing.assert_allclose(found, expected, atol=0.5)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data/abdomen_ct")
@pytest.mark.skipif(not RELEASED.is_file(), reason="no released weights")
def test_real_abdomens(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = []
    for side in ("fixed", "moving"):
        files = {"": "native", "-label": "2mm_pseudolabel", "-drawn-on": "2mm"}
        for key, name in files.items():
            arguments += [f"--{side}{key}", str(REAL / f"{side}_{name}.nii.gz")]
    script.main([*arguments, "--bundle", str(BUNDLE), "--device", "cpu"])
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert [row[0] for row in rows[2:]] == ["1", "2", "3", "6", "7", "8", "9", "mean"]
    header, aligned, registered = (float(cell) for cell in rows[-1][1:4])
    assert header < aligned < registered
