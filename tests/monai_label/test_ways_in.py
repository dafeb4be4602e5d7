"""The ways to name or send images and labels, the forms of an answer, and many requests at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="run by `make test-label`, in an environment of its own")

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from bundle_list import NAMES, predicts_field
from helpers import from_sitk, to_sitk, write
from label_server import Answer, LabelServer
from label_studies import CONDITIONAL, DDMR, PROSTATE, WEAK_DDF, Studies, fingerprints
from label_truth import masks_of

each_bundle = pytest.mark.parametrize("bundle", NAMES)


def voxels(answer: Answer) -> np.ndarray:
    """Of a good answer."""
    assert answer.status == 200 and answer.image is not None, answer.detail
    return np.asarray(answer.image.dataobj)


def usual(bundle: str, server: LabelServer, studies: Studies) -> np.ndarray:
    """The answer for the first pair, everything by id."""
    pair = studies.pairs(bundle)[0]
    return voxels(server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=pair.moving))


@each_bundle
@pytest.mark.usefixtures("untouched")
def test_ids_and_paths(bundle: str, server: LabelServer, studies: Studies) -> None:
    pair = studies.pairs(bundle)[0]
    expected = usual(bundle, server, studies)
    label = Path("labels", "final", pair.label_file.name)
    names = [
        (pair.moving_file.name, str(label)),
        (f"./{pair.moving_file.name}", f"more/../{label}"),
        (str(pair.moving_file), str(pair.label_file)),
    ]
    for image, labels in names:
        found = server.infer(bundle, pair.fixed, moving_image=image, moving_label=labels)
        np.testing.assert_array_equal(voxels(found), expected)
    # The fixed image by its path, as MONAI Label has it for ids.
    found = server.infer(bundle, str(pair.fixed_file), moving_image=pair.moving, moving_label=pair.moving)
    np.testing.assert_array_equal(voxels(found), expected)


def test_a_list_of_masks(server: LabelServer, studies: Studies) -> None:
    """One file for each label, instead of all in one file."""
    pair = studies.prostate[0]
    label = nib.load(pair.label_file)
    masks = masks_of(np.asarray(label.dataobj))
    for value, mask in masks.items():
        write(studies.folder / "more" / f"mask{value}.nii.gz", mask.astype(np.uint8), label.affine)
    names = [f"more/mask{value}.nii.gz" for value in masks]
    for bundle in (WEAK_DDF, CONDITIONAL):
        found = voxels(server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=names))
        np.testing.assert_array_equal(found, usual(bundle, server, studies))


def test_an_id_means_the_finished_label_or_else_the_image(server: LabelServer, studies: Studies) -> None:
    pair = studies.prostate[0]
    by_image = server.infer(WEAK_DDF, pair.fixed, moving_image=pair.moving, moving_label=f"{pair.moving}_gland")
    assert set(np.unique(voxels(by_image))) == {0, 1}
    assert set(np.unique(usual(WEAK_DDF, server, studies))) > {0, 1}


@pytest.fixture
def uploaded(server: LabelServer, studies: Studies) -> Iterator[list[str]]:
    """Ids of images that a test puts into the studies, to be removed again."""
    names: list[str] = []
    yield names
    for name in names:
        server.ask("DELETE", "/datastore/image", params={"id": name}).raise_for_status()
        assert not list(studies.folder.rglob(f"{name}.*"))
    # MONAI Label notes by and by which files are gone; now and then it misses one, which harms no other test.
    end = time.monotonic() + 5
    while set(names) & set(server.get("/datastore/?output=all")["objects"]) and time.monotonic() < end:
        time.sleep(0.2)


@each_bundle
def test_uploads(bundle: str, server: LabelServer, studies: Studies, uploaded: list[str]) -> None:
    pair = studies.pairs(bundle)[0]
    for side, file in (("fixed", pair.fixed_file), ("moving", pair.moving_file)):
        server.upload("image", f"sent_{side}", file)
        uploaded.append(f"sent_{side}")
    server.upload("label", "sent_moving", pair.label_file)
    found = server.infer(bundle, "sent_fixed", moving_image="sent_moving", moving_label="sent_moving")
    np.testing.assert_array_equal(voxels(found), usual(bundle, server, studies))
    assert found.params["case"] == "sent_fixed"


@each_bundle
@pytest.mark.usefixtures("untouched")
def test_the_fixed_image_with_the_request(bundle: str, server: LabelServer, studies: Studies) -> None:
    pair = studies.pairs(bundle)[0]
    found = server.infer(bundle, "", file=pair.fixed_file, moving_image=pair.moving, moving_label=pair.moving)
    np.testing.assert_array_equal(voxels(found), usual(bundle, server, studies))
    assert found.image is not None
    np.testing.assert_allclose(found.image.affine, nib.load(pair.fixed_file).affine, atol=1e-4)


def test_the_fixed_image_in_a_session(server: LabelServer, studies: Studies) -> None:
    """What 3D Slicer does for an image that is in no datastore."""
    pair = studies.prostate[0]
    with pair.fixed_file.open("rb") as stream:
        answer = server.ask("PUT", "/session/", files={"files": (pair.fixed_file.name, stream)})
    session = answer.raise_for_status().json()["session_id"]
    params = {"moving_image": pair.moving, "moving_label": pair.moving}
    content = server.post(f"/infer/{WEAK_DDF}", {"session_id": session, "output": "json"}, params)
    assert content.status_code == 200 and content.json()["answer"] == "label", content.text


@each_bundle
def test_a_refused_request_that_came_with_a_file(bundle: str, server: LabelServer, studies: Studies) -> None:
    """MONAI Label itself leaves the upload in its temporary folder then; the studies stay as they are."""
    before = fingerprints(studies.folder, studies.outside)
    pair = studies.pairs(bundle)[0]
    answer = server.infer(bundle, "", file=pair.fixed_file, moving_image="nobody", moving_label=pair.moving)
    assert answer.status == 400 and "moving_image" in answer.detail
    assert fingerprints(studies.folder, studies.outside) == before


@each_bundle
@pytest.mark.usefixtures("untouched")
def test_forms_of_an_answer(bundle: str, server: LabelServer, studies: Studies) -> None:
    pair = studies.pairs(bundle)[0]
    named = {"moving_image": pair.moving, "moving_label": pair.moving}
    both, image, text = (server.infer(bundle, pair.fixed, output, **named) for output in ("all", "image", "json"))
    np.testing.assert_array_equal(voxels(image), voxels(both))
    assert text.status == 200 and text.image is None and image.params == {}
    ours = {"case", "answer", "labels", "warnings"} | ({"deformation"} if predicts_field(bundle) else set())
    assert {key: text.params[key] for key in ours} == {key: both.params[key] for key in ours}
    # No output named, as 3D Slicer asks: both.
    np.testing.assert_array_equal(voxels(server.infer(bundle, pair.fixed, None, **named)), voxels(both))
    # A type of its own for the file.
    small = server.infer(bundle, pair.fixed, **named, result_dtype="uint8")
    assert small.image is not None and small.image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(voxels(small), voxels(both).astype(np.uint8))


@each_bundle
def test_what_3d_slicer_sends(bundle: str, server: LabelServer, studies: Studies, tmp_path: Path) -> None:
    """All of the options that the server lists, of each list the first; the partner is noted with the fixed image."""
    pair = studies.pairs(bundle)[0]
    config = server.get("/info/")["models"][bundle]["config"]
    options = {key: value[0] if isinstance(value, list) else value for key, value in config.items()}
    options |= {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}
    query: dict[str, str | None] = {"image": pair.fixed, "output": "image"}
    assert server.post(f"/infer/{bundle}", query, options).status_code == 400  # nothing is noted yet
    note(server, pair.fixed, moving_image=pair.moving, moving_label=pair.moving)
    answer = server.post(f"/infer/{bundle}", query, options)
    note(server, pair.fixed, moving_image="", moving_label="")
    assert answer.status_code == 200, answer.text
    (tmp_path / "answer.nrrd").write_bytes(answer.content)
    found = sitk.ReadImage(tmp_path / "answer.nrrd")
    np.testing.assert_array_equal(from_sitk(found), usual(bundle, server, studies))
    expected = to_sitk(np.zeros(nib.load(pair.fixed_file).shape), nib.load(pair.fixed_file).affine)
    np.testing.assert_allclose(found.GetOrigin(), expected.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(found.GetDirection(), expected.GetDirection(), atol=1e-5)


def note(server: LabelServer, image: str, **info: str) -> None:
    """Write into the datastore what belongs to an image."""
    told = {"info": json.dumps(info)}
    server.ask("PUT", "/datastore/image/info", params={"image": image}, data=told).raise_for_status()


def test_twenty_at_once(server: LabelServer, studies: Studies) -> None:
    """Bundles, pairs, with labels and without, good and bad, mixed: none lost, none wrong."""
    requests = []
    for pair in studies.prostate:
        for bundle in PROSTATE:
            requests.append((bundle, pair.fixed, {"moving_image": pair.moving, "moving_label": pair.moving}))
        requests.append((WEAK_DDF, pair.fixed, {"moving_image": pair.moving}))
    for pair in studies.abdomen:
        named = {"moving_image": pair.moving, "moving_label": pair.moving}
        requests += [(DDMR, pair.fixed, named), (DDMR, pair.fixed, named | {"align": "center"})]
        requests += [(DDMR, pair.moving, {"moving_image": pair.fixed, "moving_label": pair.fixed})]
    requests += [(WEAK_DDF, "us01", {}), (DDMR, "ct01a", {"moving_image": "nobody"})]
    assert len(requests) >= 20

    def ask(request: tuple[str, str, dict[str, str]]) -> Answer:
        bundle, fixed, params = request
        return server.infer(bundle, fixed, **params)

    alone = [ask(request) for request in requests]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(ask, requests))
    different = {voxels(answer).tobytes() for answer in alone if answer.image is not None}
    assert len(different) == 18
    for first, second in zip(alone, together, strict=True):
        assert first.status == second.status and first.detail == second.detail
        if first.image is not None:
            np.testing.assert_array_equal(voxels(second), voxels(first))
            assert second.params["case"] == first.params["case"]
            assert second.params.get("labels") == first.params.get("labels")


def test_batch_inference_cannot_name_a_moving_image(server: LabelServer, studies: Studies) -> None:
    """MONAI Label runs it on every image with one set of parameters; the answer is an error, and nothing is kept."""
    before = sorted(studies.folder.rglob("*"))
    answer = server.ask("POST", f"/batch/infer/{WEAK_DDF}", params={"run_sync": "true"}, json={})
    assert answer.status_code in (400, 500)
    assert sorted(studies.folder.rglob("*")) == before


def test_an_image_whose_header_itk_cannot_hold(server: LabelServer, studies: Studies) -> None:
    """Voxels that are no boxes."""
    pair = studies.prostate[0]
    fixed = nib.load(pair.fixed_file)
    sheared = fixed.affine.copy()
    sheared[0, 1] += 0.3 * sheared[0, 0]
    name = studies.folder / "sheared.nii.gz"
    write(name, np.asarray(fixed.dataobj), sheared)
    found = server.infer(WEAK_DDF, str(name), moving_image=pair.moving, moving_label=pair.moving)
    name.unlink()
    assert found.status == 200 and found.image is not None, found.detail
    np.testing.assert_allclose(found.image.affine, sheared, atol=1e-4)
