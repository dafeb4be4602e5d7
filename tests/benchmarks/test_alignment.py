"""The affine registration beside ITK's, on one phantom whose transformation is known."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

SCRIPT = "alignment"


@pytest.fixture(scope="module")
def script(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    script.DATA = tmp_path_factory.mktemp("phantoms")
    return script


def test_as_precise_as_itk_and_more_robust(script: ModuleType) -> None:
    """ITK finds a rotation of 15 degrees and none of 45 degrees; ours finds both."""
    scene, (ours, itk) = script.SCENES["brain MR"], ("RegZoo", "ITK")
    small, large = (scene(0, degrees, np.random.default_rng(degrees), 1) for degrees in (15, 45))
    lost = np.linalg.norm(small.truth - small.points, axis=1).mean()
    errors = {tool: script.measure(tool, small)[0] for tool in (ours, itk)}
    assert lost > 10 and errors[itk] < 1
    assert errors[ours] < max(errors[itk] + 0.2, 0.5)
    assert script.measure(ours, large)[0] < 0.5 < script.SUCCESS < script.measure(itk, large)[0]


def test_a_mask_is_for_both_tools(script: ModuleType) -> None:
    pair = script.SCENES["brain MR"](0, 0, np.random.default_rng(0), 1)
    half = np.zeros(pair.fixed.shape, dtype=bool)
    half[:, :, 40:] = True
    for tool in script.TOOLS.values():
        assert not np.array_equal(tool(pair), tool(pair._replace(mask=half)))
