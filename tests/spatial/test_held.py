"""Labels held small give what masks of floats give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import from_sitk, make_grid, smooth_ddf, smooth_noise, to_sitk
from monai.data import MetaTensor
from regzoo.spatial import DisplacementField, Grid, carry_labels, centroids, read_label_file, to_channels
from regzoo.spatial.carry import carry_held
from regzoo.spatial.held import as_masks, boxes, hold, is_map, label_map, one_mask, sizes_and_centres, write_labels
from regzoo.transforms.apply import label_masks

MOVING = make_grid((31, 26, 23), (1.3, 1.1, 1.7), (12, -8, 20), (1, 0, 2), (-1, 1, 1), (4, -6, 9))
#: No coarser than the moving image, and coarser along one axis.
TARGETS = {
    "finer": make_grid((29, 33, 37), (1.1, 1.0, 1.05), (3, 4, -5), center=(4, -6, 9)),
    "thick slices": make_grid((27, 29, 9), (1.2, 1.1, 5.0), (3, 4, -5), center=(4, -6, 9)),
}
VALUES = (3, 7, 500, 9)


def moving_map() -> MetaTensor:
    """Patches of the values, one of them absent, and of one that nobody asked for."""
    noise = smooth_noise(MOVING.shape, 2.0, seed=4)
    bins = np.digitize(noise, np.quantile(noise, (0.4, 0.55, 0.7, 0.85)))
    volume = np.array([0, 3, 7, 500, 21], np.float32)[bins]
    return MetaTensor(torch.from_numpy(volume)[None], affine=torch.from_numpy(MOVING.affine))


def field_on(target: Grid) -> DisplacementField:
    return DisplacementField.from_ddf(torch.from_numpy(smooth_ddf(target.shape, 1.5)), target, target)


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_map_is_carried_as_its_masks_are(name: str) -> None:
    volume, field = moving_map(), field_on(TARGETS[name])
    held = hold(volume, VALUES)
    assert held.dtype == torch.uint8 and is_map(held)
    found = as_masks(carry_held(field, held, len(VALUES)), len(VALUES))
    soft = carry_labels(field, to_channels(volume, VALUES), True)
    expected = label_masks(soft.as_tensor(), exclusive=True)
    assert 0.2 < float(expected.any(0).float().mean()) < 0.9
    # Rounding may decide where two labels fill a voxel alike.
    assert float((found.as_tensor() != expected).float().mean()) < 1e-4
    assert not found[3].any() and found[:3].flatten(1).any(1).all()


def test_a_map_is_carried_as_simpleitk_carries_its_labels() -> None:
    volume, field = moving_map(), field_on(TARGETS["finer"])
    lps = field.displacement.double().numpy().transpose(1, 2, 3, 0) * (-1, -1, 1)
    transform = sitk.DisplacementFieldTransform(to_sitk(lps, field.grid.affine))
    frame = to_sitk(np.zeros(field.grid.shape, np.float32), field.grid.affine)
    shares = []
    for value in VALUES:
        mask = to_sitk((volume[0].numpy() == value).astype(np.float32), MOVING.affine)
        shares.append(from_sitk(sitk.Resample(mask, frame, transform, sitk.sitkLinear, 0.0)))
    stack = np.stack([1 - np.sum(shares, axis=0), *shares])
    first, second = np.sort(stack, axis=0)[:-3:-1]
    sure = first - second > 1e-3
    assert sure.mean() > 0.99
    found = label_map(carry_held(field, hold(volume, VALUES), len(VALUES)).as_tensor(), VALUES).numpy()
    np.testing.assert_array_equal(found[sure], np.array([0, *VALUES])[stack.argmax(axis=0)][sure])


@pytest.mark.parametrize("name", list(TARGETS))
def test_masks_that_overlap_are_carried_one_by_one(name: str) -> None:
    field = field_on(TARGETS[name])
    masks = to_channels(moving_map(), VALUES).as_tensor()
    masks[3] = masks[0] + masks[1]
    labels = MetaTensor(masks, affine=torch.from_numpy(MOVING.affine))
    found = carry_held(field, hold(labels, None), len(masks))
    assert found.dtype == torch.bool
    expected = torch.stack([carry_labels(field, labels[i : i + 1], False)[0] >= 0.5 for i in range(len(masks))])
    assert torch.equal(found.as_tensor(), expected.as_tensor())


def test_sizes_centres_and_boxes_are_those_of_the_masks() -> None:
    volume = moving_map()
    masks = to_channels(volume, VALUES)
    for held in (hold(volume, VALUES), hold(masks, None), masks):
        found = boxes(held, len(VALUES))
        sizes, centres = sizes_and_centres(held, found)
        assert found[3] is None and sizes[3] == 0 and np.isnan(centres[3]).all()
        np.testing.assert_array_equal(sizes, masks.flatten(1).sum(1).numpy())
        np.testing.assert_allclose(centres, centroids(masks, masks.affine).numpy(), atol=1e-4)
        for index, box in enumerate(found[:3]):
            assert torch.equal(one_mask(held, index) > 0, masks[index].as_tensor() > 0)
            places = np.argwhere(masks[index].numpy())
            assert box is not None
            np.testing.assert_array_equal(
                [(s.start, s.stop - 1) for s in box], np.stack([places.min(0), places.max(0)], 1)
            )


def test_more_labels_than_a_byte_can_number() -> None:
    values = list(range(1, 257))
    volume = MetaTensor(torch.arange(512.0).view(1, 8, 8, 8), affine=torch.eye(4))
    held = hold(volume, values)
    assert held.dtype == torch.int16
    np.testing.assert_array_equal(label_map(held.as_tensor(), values).flatten()[:260], [*range(257), 0, 0, 0])


@pytest.mark.parametrize("name", ["a.seg.nrrd", "A.SEG.NRRD", "A.MHA", "A.NRRD"])
def test_written_labels_name_every_value(name: str, tmp_path: Path) -> None:
    """3D Slicer drops the voxels of values that the header does not list."""
    volume = moving_map()
    labels = MetaTensor(volume.as_tensor()[0].int(), affine=volume.affine)
    write_labels(tmp_path / name, labels, {500: "left \\ right:=\nHarnröhre", 9: "absent"})
    assert [file.name for file in tmp_path.iterdir()] == [name]
    found = read_label_file(tmp_path / name, MOVING)
    np.testing.assert_array_equal(found.volume.numpy(), volume.numpy())
    names = {500: "left \\ right:= Harnröhre", 9: "absent", 3: "label_3", 7: "label_7", 21: "label_21"}
    assert found.names == (names if name.lower().endswith(".seg.nrrd") else {})
