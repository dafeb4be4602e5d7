"""SyN and SyNCC beside our networks: the same pairs and start, the right frame and units, and nothing twice."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import make_affine, to_sitk, write
from monai.data import MetaTensor

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ["configs/train.json", "configs/variants/demo.json", "configs/evaluate.json"]
#: Two oblique, anisotropic grids with axes in another order, and where the second body lies, RAS mm.
FIXED = ((30, 26, 22), make_affine((30, 26, 22), (4, 5, 6), (8, -12, 5), axes=(1, 0, 2), flips=(1, -1, 1)))
MOVING = ((28, 24, 27), make_affine((28, 24, 27), (5, 5.5, 4.5), (-5, 6, 20), flips=(-1, -1, 1), center=(6, 0, -4)))
SHIFT = np.array([9.0, -6.0, 7.5])


@pytest.fixture(scope="module")
def peers() -> Iterator[ModuleType]:
    """The script as a module; it imports its neighbours."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import ablation_peers

    yield ablation_peers
    sys.path.remove(str(ROOT / "benchmarks"))


def body(shape: tuple[int, ...], affine: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A body of Hounsfield units with three organs, and their label map, drawn at a place in the world."""
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3] - shift

    def inside(center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        return (((points - center) / radii) ** 2).sum(-1) < 1

    image, label = np.full(shape, -1000.0), np.zeros(shape)
    image[inside((0, 0, 0), (45, 38, 42))] = -80
    organs = {
        6: ((14, 4, 6), (18, 20, 16), 110),
        2: ((-22, 8, -8), (10, 14, 12), 40),
        4: ((2, -18, 0), (9, 8, 26), 200),
    }
    for value, (center, radii, hounsfield) in organs.items():
        image[inside(center, radii)] = hounsfield
        label[inside(center, radii)] = value
    return (image + np.random.default_rng(0).normal(0, 8, shape)).astype(np.float32), label.astype(np.uint8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a body and of the same one shifted."""
    folder = tmp_path_factory.mktemp("pair")
    record: dict[str, Any] = {"case": "one"}
    for side, (shape, affine), shift in (("fixed", FIXED, np.zeros(3)), ("moving", MOVING, SHIFT)):
        image, label = body(shape, affine, shift)
        record[f"{side}_image"] = write(folder / f"{side}.nii.gz", image, affine)
        record[f"{side}_label"] = write(folder / f"{side}_label.nii.gz", label, affine)
    return record


@pytest.mark.slow
def test_a_known_translation_is_found_in_the_right_frame(peers: ModuleType, pair: dict[str, Any]) -> None:
    if not peers.TOOLS.is_file():
        pytest.skip("make peers has not made the tools' environment")
    settings = {"align": "header", "size": [16, 16, 16], "spacing": [8.0, 8.0, 8.0]}
    ants = peers.Peers(ROOT / "bundles" / "abdominal_ct_ddmr", CONFIGS, settings)
    native, result, seconds = ants.warp(pair, "SyN")
    values = ants.measure(native, result)
    assert seconds > 0
    # Unregistered: every organ is off by the shift.
    assert values["before_tre_mm"] == pytest.approx(np.linalg.norm(SHIFT), abs=0.5)
    assert values["tre_mm"] < 1.5
    assert values["dsc"] > values["before_dsc"] + 0.2
    assert values["ncc"] > values["before_ncc"] + 0.05
    assert values["ssim"] > values["before_ssim"]
    assert values["folded_percent"] == 0
    assert values["lost_labels"] == 0
    # The field itself, in the organs: voxels of the fixed grid, from fixed to moving.
    shape, affine = FIXED
    organs = body(shape, affine, np.zeros(3))[1] > 0
    found = result["ddf"].as_tensor().numpy()[:, organs].T @ affine[:3, :3].T
    np.testing.assert_allclose(found.mean(0), SHIFT, atol=1.0)
    # What ANTs warped with its own transformations is what its field says.
    ours = np.stack(np.nonzero(organs), 1) + result["ddf"].as_tensor().numpy()[:, organs].T
    world = ours @ affine[:3, :3].T + affine[:3, 3]
    image = to_sitk(nib.load(pair["moving_image"]).get_fdata().astype(np.float32), MOVING[1])
    seen = [image.EvaluateAtPhysicalPoint((point * (-1, -1, 1)).tolist()) for point in world[::7]]
    np.testing.assert_allclose(seen, result["warped_image"].as_tensor().numpy()[0][organs][::7], atol=2.0)


def test_pairs_begin_where_the_networks_begin(peers: ModuleType, pair: dict[str, Any]) -> None:
    """With the liver in both, the bundle aligns the pair beforehand; ANTs starts from there."""
    bundle = ROOT / "bundles" / "abdominal_ct_ddmr"
    settings = {"align": "region", "size": [16, 16, 16], "spacing": [8.0, 8.0, 8.0]}
    ants = peers.Peers(bundle, CONFIGS, settings)
    native = ants.prepare(pair)
    moved = native["moving_image"].affine.numpy()[:3, 3] - MOVING[1][:3, 3]
    np.testing.assert_allclose(moved, -SHIFT, atol=2.0)
    grid = native["fixed_image"]
    still = {"ddf": MetaTensor(torch.zeros(3, *grid.shape[1:]), affine=grid.affine)}
    still |= {f"warped_{kind}": native[f"fixed_{kind}"] for kind in ("image", "label")}
    values = ants.measure(native, still)
    assert values["before_tre_mm"] < 2
    # Metrics of the fixed image and labels themselves.
    assert (values["tre_mm"], values["hd_mm"], values["dsc"]) == (0, 0, 1)
    assert values["ncc"] == pytest.approx(1)


def test_each_pair_is_registered_once(peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def register(self: Any, pair: dict[str, str], method: str) -> dict[str, float]:
        done.append(pair["case"])
        return {"tre_mm": float(len(done)), "runtime_s": float("nan")}

    monkeypatch.setattr(peers.Peers, "register", register)
    ants = peers.Peers(ROOT / "bundles" / "abdominal_ct_ddmr", CONFIGS)
    first = ants.values([{"case": "a"}], "SyN", tmp_path)
    both = ants.values([{"case": "a"}, {"case": "b"}], "SyN", tmp_path)
    assert done == ["a", "b"]
    assert first["tre_mm"] == {"a": 1}
    assert both["tre_mm"] == {"a": 1, "b": 2}
    assert np.isnan(both["runtime_s"]["b"])
