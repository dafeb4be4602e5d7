"""Pictures of a validation and means of the loss in TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ball, smooth_noise
from ignite.engine import Engine
from matplotlib.image import imread
from regzoo.engines import EventWriter, LossTerms, ValidationImages
from regzoo.losses import RegistrationLoss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SHAPE = (9, 7, 5)
NAMES = ("reference", "unregistered", "warped")
CYAN, PINK = (54, 209, 255), (255, 94, 176)


def case() -> dict[str, Any]:
    images = {f"{name}_image": torch.from_numpy(smooth_noise(SHAPE, 1, i))[None] for i, name in enumerate(NAMES)}
    fixed, propagated = ball(SHAPE, (6, 2, 2), 1), ball(SHAPE, (2, 4, 2), 1)
    labels = {"reference_label": fixed, "warped_label": propagated}
    return images | {key: torch.from_numpy(np.stack([label, 0 * label])) for key, label in labels.items()}


def written(item: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """The pictures in TensorBoard's files: tag → (H, W, channels), 0 to 255."""
    evaluator = Engine(lambda *_: [item])
    ValidationImages(EventWriter(folder)).attach(evaluator)
    evaluator.run([[{}]])
    events = EventAccumulator(str(folder)).Reload()
    encoded = {tag: events.Images(tag)[-1].encoded_image_string for tag in events.Tags()["images"]}
    return {tag: np.round(imread(io.BytesIO(data), format="png") * 255) for tag, data in encoded.items()}


def test_registration(tmp_path: Path) -> None:
    item = case()
    ((tag, picture),) = written(item, tmp_path).items()
    assert tag == "fixed | unregistered | warped"
    assert picture.shape[:2] == (SHAPE[1], 3 * SHAPE[0])
    grey = picture if picture.ndim == 2 else picture[..., 0]
    for number, name in enumerate(NAMES):
        # The second axis runs upwards; within the percentiles, brighter stays brighter.
        expected = item[f"{name}_image"][0, :, :, 2].numpy().T[::-1]
        shown = grey[:, number * SHAPE[0] : (number + 1) * SHAPE[0]]
        assert np.corrcoef(expected.ravel(), shown.ravel())[0, 1] > 0.98


def test_labels_propagated_without_a_transformation(tmp_path: Path) -> None:
    item = {key: value for key, value in case().items() if key != "warped_image"} | {"labels_predicted": True}
    ((tag, picture),) = written(item, tmp_path).items()
    assert tag == "fixed | unregistered | propagated"
    assert picture.shape == (SHAPE[1], 3 * SHAPE[0], 3)
    first, last = picture[:, : SHAPE[0]], picture[:, 2 * SHAPE[0] :]
    # The border of a ball of radius 1: its centre shows the fixed image.
    around = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
    marked = np.zeros(last.shape[:2], dtype=bool)
    for (x, y), color in (((6, 2), CYAN), ((2, 4), PINK)):
        for column, row in np.add(around, (x, SHAPE[1] - 1 - y)):
            np.testing.assert_allclose(last[row, column], color, atol=1.5)
            marked[row, column] = True
    np.testing.assert_array_equal(last[~marked], first[~marked])


@pytest.mark.parametrize("keys", [("reference_image",), ("reference_image", "unregistered_image"), ()])
def test_panels_that_are_there(tmp_path: Path, keys: tuple[str, ...]) -> None:
    pictures = written({key: case()[key] for key in keys}, tmp_path)
    assert list(pictures) == (["fixed", "fixed | unregistered"][len(keys) - 1 : len(keys)] if keys else [])


def test_an_epoch_that_was_broken_off_is_forgotten(tmp_path: Path) -> None:
    handler = LossTerms(RegistrationLoss({}), EventWriter(tmp_path))

    def train(losses: list[float]) -> dict[str, float]:
        def step(_: Engine, loss: float) -> dict[str, torch.Tensor]:
            if loss < 0:
                raise KeyboardInterrupt
            return {"loss": torch.tensor(loss)}

        engine = Engine(step)
        engine.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        handler.attach(engine)
        return engine.run(losses, max_epochs=1).metrics

    with pytest.raises(KeyboardInterrupt):
        train([100.0, -1.0])
    assert train([5.0, 7.0]) == {"loss/total": 6.0}
