"""The soft Hausdorff loss against distances found by brute force, MONAI and finite differences."""

from __future__ import annotations

import monai.losses
import numpy as np
import pytest
import torch
from helpers import ball
from regzoo.losses import LabelSimilarity, MultiScaleDice, RegistrationLoss, SoftHausdorff
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

SHAPE = (17, 14, 12)
SPACING = (1.0, 2.5, 0.8)


def soft(center: tuple[float, float, float], radius: float) -> torch.Tensor:
    """A ball with a soft edge of limited width, (X, Y, Z) float32."""
    return torch.from_numpy(gaussian_filter(ball(SHAPE, center, radius), 0.7, truncate=1.5))


def two_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """Warped and fixed, (2, 2, X, Y, Z): one touches the edge of the volume, one pair lies apart."""
    warped = [soft((8, 6, 5), 3), soft((2, 7, 9), 2), soft((6, 6, 6), 4), soft((15, 2, 2), 3)]
    fixed = [soft((9, 7, 6), 3), soft((12, 7, 3), 2), soft((6, 6, 6), 3), soft((14, 3, 1), 3)]
    return torch.stack(warped).unflatten(0, (2, 2)), torch.stack(fixed).unflatten(0, (2, 2))


def nearest_other(label: np.ndarray) -> np.ndarray:
    """Distance in mm from each voxel to the nearest on the other side of ½: a search among all."""
    mask = label > 0.5
    distance = np.zeros(label.shape)
    for side in (mask, ~mask):
        tree = cKDTree(np.argwhere(~side) * SPACING)
        distance[side] = tree.query(np.argwhere(side) * SPACING)[0]
    return distance


def test_errors_weighed_by_distances_in_mm() -> None:
    warped, fixed = two_labels()
    expected = []
    for p, g in zip(warped.flatten(0, 1).double().numpy(), fixed.flatten(0, 1).double().numpy(), strict=True):
        weight = nearest_other(g) ** 2 + nearest_other(p) ** 2
        expected.append(((p - g) ** 2 * weight).mean())
    value = SoftHausdorff(SPACING)(warped, fixed)
    assert float(value) == pytest.approx(np.mean(expected), rel=1e-5)


def test_equals_monai_for_voxels_of_one_mm() -> None:
    warped, fixed = two_labels()
    theirs = monai.losses.HausdorffDTLoss(include_background=True)
    assert float(SoftHausdorff()(warped, fixed)) == pytest.approx(float(theirs(warped, fixed)), rel=1e-5)
    ours_leaf, their_leaf = warped.clone().requires_grad_(), warped.clone().requires_grad_()
    SoftHausdorff()(ours_leaf, fixed).backward()
    theirs(their_leaf, fixed).backward()
    torch.testing.assert_close(ours_leaf.grad, their_leaf.grad)


def test_gradient_against_finite_differences() -> None:
    # Away from ½ the distances stay as they are.
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, 5, 4, 6)
    warped = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.45
    warped = (warped + 0.55 * (torch.rand(shape, generator=generator) > 0.5)).requires_grad_()
    fixed = torch.rand(shape, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: SoftHausdorff(SPACING)(p, fixed), warped)


def test_pulls_labels_together_that_do_not_overlap() -> None:
    fixed, moving = soft((4, 7, 6), 2.5)[None, None], soft((12, 7, 6), 2.5)[None, None]
    targets = {"fixed_label": fixed, "moving_label": moving}

    def slope(loss: torch.nn.Module) -> tuple[float, torch.Tensor]:
        shift = torch.zeros(3, requires_grad=True)
        ddf = shift.view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
        value = RegistrationLoss({"label": LabelSimilarity(loss)})(ddf, targets)
        value.backward()
        assert shift.grad is not None
        return float(value.detach()), shift.grad

    value, gradient = slope(SoftHausdorff(SPACING))
    # The label comes towards the fixed one where the field points to larger x.
    assert float(gradient[0]) < 0 and int(gradient.abs().argmax()) == 0
    assert float(slope(MultiScaleDice((0.0,)))[1].abs().max()) < 1e-6
    # Descent ends on top of the fixed label, eight voxels away.
    shift = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([shift], 0.4)
    term = LabelSimilarity(SoftHausdorff(SPACING))
    for _ in range(60):
        optimizer.zero_grad()
        term(shift.view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE), targets).backward()
        optimizer.step()
    np.testing.assert_allclose(shift.detach(), (8, 0, 0), atol=0.7)
    end = float(term(shift.detach().view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE), targets))
    assert end < 0.05 * value


def test_labels_that_are_not_there() -> None:
    warped, fixed = two_labels()
    loss = SoftHausdorff(SPACING)
    missing = fixed.clone()
    missing[0, 1] = 0
    present = [loss(warped[b : b + 1, c : c + 1], fixed[b : b + 1, c : c + 1]) for b, c in ((0, 0), (1, 0), (1, 1))]
    assert float(loss(warped, missing)) == pytest.approx(float(torch.stack(present).mean()), rel=1e-5)
    leaf = warped.clone().requires_grad_()
    nothing = loss(leaf, 0 * fixed)
    nothing.backward()
    assert float(nothing.detach()) == 0 and leaf.grad is not None and not leaf.grad.any()


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_labels_without_a_boundary(value: float) -> None:
    # Moved out of view, never above ½, or filling the volume: the other label's distances remain.
    fixed = two_labels()[1][:1, :1]
    warped = torch.full_like(fixed, value).requires_grad_()
    loss = SoftHausdorff(SPACING)(warped, fixed)
    loss.backward()
    expected = ((value - fixed[0, 0].double().numpy()) ** 2 * nearest_other(fixed[0, 0].numpy()) ** 2).mean()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert warped.grad is not None and bool(warped.grad.isfinite().all())


def test_settings_and_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="spacing"):
        SoftHausdorff((1, 1))
    with pytest.raises(ValueError, match="same shape"):
        SoftHausdorff()(torch.zeros(1, 2, *SHAPE), torch.zeros(1, 1, *SHAPE))


def test_float32_under_autocast() -> None:
    warped, fixed = two_labels()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = SoftHausdorff(SPACING)(warped, fixed)
    assert value.dtype == torch.float32
    assert torch.equal(value, SoftHausdorff(SPACING)(warped, fixed))
