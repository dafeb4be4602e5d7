"""Registration on the tracked device: from files to a result, refined, and as the answer of a server."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_list import BUNDLES, pairs, predicts_field
from monai.bundle import ConfigParser
from regzoo.inference import Registrar
from regzoo.refinement import RefinementOptions, Volumes, linear, refine
from regzoo.spatial import DisplacementField, Grid
from regzoo.spatial.point_files import read_points
from tracked_device import DeviceTensor, on_cpu, tracked_device

FIELDS = [bundle for bundle in BUNDLES if predicts_field(bundle)]
#: A refinement of a few steps.
FEW = {"steps": [2, 2], "max_voxels": 4000}


def files(phantoms: Path) -> list[str]:
    pair = pairs(phantoms)[0]
    return [pair[key] for key in ("fixed_image", "moving_image", "moving_label", "fixed_label")]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_bundle_registers(bundle: Path, dataset: Path, tmp_path: Path) -> None:
    """All files can be written, and the labels are those of a registration on the CPU."""
    given = files(dataset)
    points = tmp_path / "points.csv"
    points.write_text("x,y,z\n0,0,0\n5,-4,3\n", encoding="utf-8")
    results = []
    with tracked_device():
        for device in ("cuda", "cpu"):
            registrar = Registrar(bundle, device=device)
            result = registrar.register(*(given if registrar.aligns_by_organ else given[:3]))
            if result.transformation is not None:
                result.carry_points(read_points(points, "RAS"))
            result.save(tmp_path / device, inverse=result.transformation is not None)
            results.append(result)
        there, here = results
        assert {path.name for path in (tmp_path / "cuda").iterdir()} == {
            path.name for path in (tmp_path / "cpu").iterdir()
        }
        assert torch.equal(on_cpu(there.warped_label.as_tensor()), here.warped_label.as_tensor())
        kept = [there.warped_image, there.labels] if predicts_field(bundle) else [there.probability, there.labels]
        assert len({value.is_cuda for value in kept}) == 1


@pytest.mark.parametrize("kind_of_pair", ["mr", "labels"])
@pytest.mark.parametrize("bundle", FIELDS[:1], ids=lambda path: path.name)
def test_a_bundle_refines(bundle: Path, kind_of_pair: str, dataset: Path) -> None:
    with tracked_device():
        result = Registrar(bundle, device="cuda", refine=kind_of_pair, refine_options=FEW).register(*files(dataset))
        assert result.statistics["refinement"]["steps"] > 0 and result.field.displacement.is_cuda


def waits_of_more_steps(fewer: Counter[tuple[str, str]], more: Counter[tuple[str, str]]) -> int:
    """The waits at one place, at most, that a run of more steps has beyond one of fewer steps."""
    # PyTorch's matrix exponential waits in each step.
    grown = {key: count for key, count in (more - fewer).items() if key[0] != "aten::linalg_matrix_exp"}
    return max(grown.values(), default=0)


@pytest.mark.parametrize(
    ("similarity", "transformation"),
    [
        *((similarity, "velocity") for similarity in ("lncc", "ncc", "mind", "labels", "distance")),
        ("lncc", "displacement"),
        ("lncc", "affine"),
    ],
)
def test_the_steps_of_a_refinement_do_not_wait(similarity: str, transformation: str) -> None:
    """Four more steps read a value once more at most, when the last phase of a velocity field looks at the overlap."""
    torch.manual_seed(0)
    grid = Grid((24, 22, 20), np.diag([2.0, 2.0, 2.0, 1.0]))
    label = torch.zeros(1, 24, 22, 20, dtype=torch.uint8)
    label[:, 6:16, 6:16, 6:16] = 1
    waits = []
    with tracked_device() as log:
        sides = [
            Volumes(
                grid, torch.rand(1, 24, 22, 20).to("cuda"), part.to("cuda"), torch.ones_like(label).float().to("cuda")
            )
            for part in (label, label.roll(2, 1))
        ]
        start = DisplacementField(torch.zeros(3, 24, 22, 20, device="cuda"), grid)
        for steps in ((2, 2), (4, 4)):
            options = RefinementOptions({similarity: 1.0}, transformation, spacing=2.0, steps=steps, lattice=4.0)
            log.clear()
            assert isinstance(refine(*sides, options, start).ddf, DeviceTensor)
            waits.append(log.waits.copy())
    assert waits_of_more_steps(*waits) <= 1


def test_the_steps_of_a_linear_registration_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    grid = Grid((14, 12, 10), np.diag([2.0, 2.0, 2.0, 1.0]))
    waits = []
    with tracked_device() as log:
        fixed, moving = (torch.rand(1, 14, 12, 10).to("cuda") for _ in range(2))
        for steps in (2, 4):
            monkeypatch.setattr(linear, "LEVELS", [(voxels, 500, steps, rate) for voxels, _, _, rate in linear.LEVELS])
            log.clear()
            found = linear.register_linear(
                fixed, grid, moving, grid, "rigid", torch.ones_like(fixed), torch.ones_like(moving)
            )
            assert found.shape == (4, 4)
            waits.append(log.waits.copy())
    assert waits_of_more_steps(*waits) == 0


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_bundle_answers_a_server(bundle: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MONAI Label runs it: its own steps between the transforms, and arrays for the client."""
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(dataset))
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs/inference.json"))
    parser["bundle_root"], parser["device"], parser["served"] = str(bundle), "cuda", True
    fixed, moving, label, _ = files(dataset)
    inside = {"moving_image": moving, "moving_label": label}
    request = {"model": bundle.name, "image": fixed, "image_path": fixed, **inside}
    with tracked_device():
        before, after, inferer = (
            parser.get_parsed_content(key) for key in ("preprocessing", "postprocessing", "inferer")
        )
        network = parser.get_parsed_content("network").eval()
        item = before(request)
        with torch.no_grad():
            item["pred"] = inferer(item["image"][None].to("cuda"), network)[0]
        item = after(item)
    assert isinstance(item["pred"].array, np.ndarray)
    assert json.loads(json.dumps(item["result"]))
