"""An answer that is refined on the pair at hand: better than the network's, and within the server's time limit."""

from __future__ import annotations

import pytest

pytest.importorskip("monailabel", reason="run by `make test-label`, in an environment of its own")

import nibabel as nib
import numpy as np
from label_server import Answer, LabelServer
from label_studies import DDMR, Pair, Studies
from label_truth import dice, masks_of


def overlap(answer: Answer, studies: Studies, pair: Pair) -> float:
    """The mean Dice of the organs that came back with those of the fixed image."""
    assert answer.status == 200 and answer.image is not None, answer.detail
    truth = masks_of(np.asarray(nib.load(studies.fixed_label_file(pair)).dataobj))
    found = np.asarray(answer.image.dataobj)
    return float(np.mean([dice(found == value, mask) for value, mask in truth.items()]))


def test_a_refined_answer_is_closer(server: LabelServer, studies: Studies) -> None:
    """By the organs of both images; a mask of one half of the fixed image counts."""
    pair = studies.abdomen[0]
    files = {"moving_image": pair.moving, "moving_label": pair.moving, "fixed_label": pair.fixed}
    network, refined, masked = (
        overlap(server.infer(DDMR, pair.fixed, **files, **asked), studies, pair)
        for asked in ({"refine": False}, {"refine": "labels"}, {"refine": "labels", "fixed_mask": "half_mask"})
    )
    assert network + 0.1 < refined
    assert network < masked < refined


@pytest.mark.usefixtures("untouched")
def test_no_more_time_than_the_server_allows(server: LabelServer, studies: Studies) -> None:
    pair = studies.abdomen[0]
    answer = server.infer(DDMR, pair.fixed, moving_image=pair.moving, refine=True, refine_seconds=31)
    assert answer.status == 400
    assert answer.detail == "refine_seconds: 31 is not a valid time; give a number above 0, at most 30"


@pytest.mark.usefixtures("untouched")
def test_an_empty_mask_is_named_in_words_for_a_client(server: LabelServer, studies: Studies) -> None:
    pair = studies.abdomen[0]
    answer = server.infer(DDMR, pair.fixed, moving_image=pair.moving, refine=True, fixed_mask="empty_mask")
    assert answer.status == 400
    assert answer.detail.startswith("empty_mask.nii.gz: leaves no voxel that counts: ") and "--" not in answer.detail
