"""Requests as MONAI Label hands them to a bundle."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import write_series
from helpers import ball, make_affine, smooth_noise, write
from regzoo.errors import RegZooError
from regzoo.monai_label import RequestedPaird, ServedCompose
from regzoo.transforms import LoadPaird

SHAPE = (13, 11, 9)


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A studies folder as MONAI Label keeps it, with a mask as an image and a finished label; beside it, a secret."""
    folder = tmp_path / "studies"
    (folder / "labels" / "final").mkdir(parents=True)
    (folder / "more").mkdir()
    affine = make_affine(SHAPE, (1.5, 2, 2.5), (10, -5, 20))
    mask = ball(SHAPE, (6, 5, 4), 3).astype(np.uint8)
    for seed, name in enumerate(("fixed01", "moving01", "more/moving02")):
        write(folder / f"{name}.nii.gz", smooth_noise(SHAPE, 1, seed), affine)
    write(folder / "moving01_label.nii.gz", mask, affine)
    write(folder / "labels" / "final" / "moving01.nii.gz", mask, affine)
    write(tmp_path / "secret.nii.gz", smooth_noise(SHAPE, 1, 5), affine)
    (folder / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    (folder / "way").symlink_to(tmp_path)
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(folder))
    return folder


def request(studies: Path, fixed: str = "fixed01.nii.gz", **parameters: Any) -> dict[str, Any]:
    """As the server sends it, after it has found the fixed image."""
    path = str(studies / fixed)
    sent = {"model": "m", "image": path, "image_path": path, "device": "cpu", "result_dtype": "uint8", **parameters}
    return sent | {"served": True}


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("moving_image", "moving01", "moving01.nii.gz"),
        ("moving_image", "moving01.nii.gz", "moving01.nii.gz"),
        ("moving_image", "more/moving02.nii.gz", "more/moving02.nii.gz"),
        ("moving_image", "./more/../moving01.nii.gz", "moving01.nii.gz"),
        ("moving_image", "{studies}/more/moving02.nii.gz", "more/moving02.nii.gz"),
        ("moving_label", "moving01", "labels/final/moving01.nii.gz"),
        ("moving_label", "moving01_label", "moving01_label.nii.gz"),
        ("moving_label", "labels/final/moving01.nii.gz", "labels/final/moving01.nii.gz"),
        ("fixed_label", "moving01_label", "moving01_label.nii.gz"),
        ("moving_label", ["moving01", "moving01_label"], ["labels/final/moving01.nii.gz", "moving01_label.nii.gz"]),
    ],
)
def test_files_are_found_in_the_studies(studies: Path, parameter: str, value: Any, expected: Any) -> None:
    given = value.format(studies=studies) if isinstance(value, str) else value
    record = RequestedPaird()(request(studies, **({"moving_image": "moving01"} | {parameter: given})))
    paths = [str(studies / name) for name in ([expected] if isinstance(expected, str) else expected)]
    assert record[parameter] == (paths if isinstance(value, list) else paths[0])
    assert record["fixed_image"] == str(studies / "fixed01.nii.gz") and record["case"] == "fixed01"


def test_a_series_in_the_studies(studies: Path) -> None:
    affine = make_affine(SHAPE, (1.5, 2, 2.5), (10, -5, 20))
    files = write_series(studies / "more" / "p1", smooth_noise(SHAPE, 1, 1).astype(np.int16), affine)
    for value in ("more/p1", "more/p1#4", f"more/p1/{files[0].name}"):
        record = RequestedPaird()(request(studies, moving_image=value))
        assert record["moving_image"] == str(studies / value)
        assert LoadPaird()(record)["moving_image"].shape == (1, *SHAPE)
    shutil.move(files[3], studies.parent / "slice")
    files[3].symlink_to(studies.parent / "slice")
    with pytest.raises(RegZooError, match=r"'IM\d+', outside the studies folder"):
        RequestedPaird()(request(studies, moving_image="more/p1"))


OUTSIDE = [
    "../secret.nii.gz",
    "more/../../secret.nii.gz",
    "{studies}/../secret.nii.gz",
    "{outside}/secret.nii.gz",
    "link",
    "link.nii.gz",
    "way/secret.nii.gz",
    "way",
    "way#4",
    "..",
    "..#4",
    "more/../..#4",
    "/etc/passwd",
    "../no_such_file.nii.gz",
]


@pytest.mark.parametrize("parameter", ["moving_image", "moving_label", "fixed_label"])
@pytest.mark.parametrize("value", OUTSIDE)
def test_nothing_outside_the_studies_is_reached(studies: Path, parameter: str, value: str) -> None:
    given = value.format(studies=studies, outside=studies.parent)
    with pytest.raises(RegZooError, match=f"^{parameter}: .* leads outside the studies folder; [^\n]*$"):
        RequestedPaird()(request(studies, **({"moving_image": "moving01"} | {parameter: given})))
    if parameter != "moving_image":
        with pytest.raises(RegZooError, match="leads outside"):
            RequestedPaird()(request(studies, moving_image="moving01", **{parameter: ["moving01", given]}))


@pytest.mark.parametrize(
    "value",
    [5, 1.5, True, {"a": 1}, ["moving01"], "nobody", "a\0b", "a\nb", "x" * 5000, ".", "more", "labels/final", "", None],
)
def test_what_names_no_image_is_refused_in_a_line(studies: Path, value: Any) -> None:
    with pytest.raises(RegZooError, match=r"^moving_image: [^\n]*; give [^\n]*$") as caught:
        RequestedPaird()(request(studies, moving_image=value))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [5, {"a": 1}, [7], [""], [["moving01"]], "nobody"])
def test_what_names_no_label_is_refused_in_a_line(studies: Path, value: Any) -> None:
    with pytest.raises(RegZooError, match=r"^moving_label: "):
        RequestedPaird()(request(studies, moving_image="moving01", moving_label=value))


@pytest.mark.parametrize("fixed", ["", "../secret.nii.gz", "link.nii.gz", "/etc/passwd"])
def test_the_fixed_image_lies_in_the_studies_too(studies: Path, fixed: str) -> None:
    served = request(studies, moving_image="moving01")
    served["image"] = served["image_path"] = str(studies / fixed) if fixed else ""
    with pytest.raises(RegZooError, match=r"^image: no such image in the studies folder itself; [^\n]*$"):
        RequestedPaird()(served)


def test_a_fixed_image_may_come_with_the_request_or_a_session(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as upload:
        shutil.copy(studies / "fixed01.nii.gz", upload.name)
        record = RequestedPaird()(request(studies, upload.name, moving_image="moving01"))
    assert record["fixed_image"] == os.path.realpath(upload.name)
    assert record["moving_image"] == str(studies / "moving01.nii.gz")
    with pytest.raises(RegZooError, match=r"^image: "):
        RequestedPaird()(request(studies, str(Path(tempfile.gettempdir()) / "other.nii.gz"), moving_image="moving01"))
    monkeypatch.setenv("MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    session = tmp_path / "sessions" / "id" / "image.nii.gz"
    session.parent.mkdir(parents=True)
    shutil.copy(studies / "fixed01.nii.gz", session)
    assert RequestedPaird()(request(studies, str(session), moving_image="moving01"))["fixed_image"] == str(session)


def test_without_a_studies_folder_of_its_own_it_is_that_of_the_fixed_image(
    studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MONAI_LABEL_STUDIES")
    assert RequestedPaird()(request(studies, moving_image="moving01"))["moving_image"].endswith("moving01.nii.gz")
    with pytest.raises(RegZooError, match="leads outside"):
        RequestedPaird()(request(studies, moving_image="../secret.nii.gz"))
    monkeypatch.setenv("MONAI_LABEL_STUDIES", "http://127.0.0.1/dicom-web")
    with pytest.raises(RegZooError, match="needs studies in a folder"):
        RequestedPaird()(request(studies, moving_image="moving01"))


@pytest.mark.parametrize("missing", ["image_path", "image"])
def test_a_request_without_a_fixed_image_is_refused(studies: Path, missing: str) -> None:
    """MONAI Label notes the path of an image that is named by a string only."""
    served = request(studies, moving_image="moving01")
    del served["image_path"]
    served["image"] = 5 if missing == "image" else served["image"]
    with pytest.raises(RegZooError, match=r"^image: "):
        RequestedPaird()(served)


@pytest.mark.parametrize(("key", "name"), [("moving_label", "more/moving02.nii.gz"), ("fixed_label", "fixed01")])
def test_an_image_is_not_its_own_label(studies: Path, key: str, name: str) -> None:
    for value in (name, [name], [str(studies / "moving01_label.nii.gz"), name]):
        with pytest.raises(RegZooError, match=f"^{key}: .* has no finished label; submit it"):
            RequestedPaird()(request(studies, moving_image="more/moving02.nii.gz", **{key: value}))


@pytest.mark.parametrize("key", ["fixed_mask", "moving_mask"])
@pytest.mark.parametrize("name", ["fixed01", "more/moving02.nii.gz"])
def test_an_image_is_not_a_mask(studies: Path, key: str, name: str) -> None:
    with pytest.raises(RegZooError, match=f"^{key}: {name} has no finished label; submit it"):
        RequestedPaird()(request(studies, moving_image="more/moving02.nii.gz", refine="mr", **{key: name}))


def test_an_id_is_that_of_an_image(studies: Path) -> None:
    """Whatever else lies beside it under the same name; of two images the NIfTI file."""
    for suffix in (".json", ".bval", ".nrrd"):
        (studies / f"moving01{suffix}").touch()
        (studies / "labels" / "final" / f"moving01{suffix}").touch()
    record = RequestedPaird()(request(studies, moving_image="moving01", moving_label="moving01"))
    assert [Path(record[key]).name for key in ("moving_image", "moving_label")] == ["moving01.nii.gz"] * 2


def test_what_the_datastore_notes_of_the_fixed_image_stands_in(studies: Path) -> None:
    """3D Slicer can name one image only; the other may be noted with it, and is trusted no more than a request."""

    def note(**info: Any) -> None:
        objects = {"fixed01": {"image": {"ext": ".nii.gz", "info": {"ts": 1, **info}}, "labels": {}}}
        (studies / "datastore_v2.json").write_text(json.dumps({"name": "n", "objects": objects}))

    note(moving_image="moving01", moving_label="moving01", align="center", anything=1)
    record = RequestedPaird()(request(studies))
    assert Path(record["moving_image"]).name == "moving01.nii.gz" and record["align"] == "center"
    assert record["moving_label"] == str(studies / "labels" / "final" / "moving01.nii.gz")
    assert "anything" not in record
    record = RequestedPaird()(request(studies, moving_image="more/moving02.nii.gz", moving_label="moving01_label"))
    assert Path(record["moving_image"]).name == "moving02.nii.gz"
    assert Path(record["moving_label"]).name == "moving01_label.nii.gz"
    for bad in (5, "../secret.nii.gz", ["moving01"], {"a": 1}):
        note(moving_image=bad)
        with pytest.raises(RegZooError, match=r"^moving_image: "):
            RequestedPaird()(request(studies))
    for text in ("", "[]", '{"objects": 5}', '{"objects": {"fixed01": {"image": {"info": 3}}}}'):
        (studies / "datastore_v2.json").write_text(text)
        with pytest.raises(RegZooError, match="moving_image: missing"):
            RequestedPaird()(request(studies))


@pytest.mark.parametrize(
    "wrong",
    [
        {"result_dtype": "nonsense"},
        {"result_dtype": "bool"},
        {"result_dtype": 5},
        {"result_extension": ".txt"},
        {"result_extension": ["a"]},
        {"result_compress": "x"},
        {"save_label": True, "label_tag": "../../evil"},
        {"save_label": True, "label_tag": "final"},
        {"device": "$import os"},
        {"device": "gpu7"},
        *(
            {"device": one}
            for one in ("meta", "mps", "cpu:5", "cpu:0", "xla", "cuda:99", "7", "true", 7, True, ["cpu"])
        ),
        *({"result_compress": one} for one in (0, 1, 1.0, "true", [True])),
        *({"save_label": one} for one in (1, "false", "original", ["x"])),
        {"align": {"a": 1}, "result_dtype": {"a": 1}},
    ],
    ids=str,
)
def test_other_parameters_are_checked_before_the_server_uses_them(studies: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(
        RegZooError, match=r"^(result_\w+|save_label|label_tag|device): [^\n]*; use [^\n]*$|^label_tag: "
    ):
        RequestedPaird()(request(studies, moving_image="moving01") | wrong)
    right = {"result_dtype": "int16", "result_extension": ".nrrd", "result_compress": True, "device": "cpu"}
    kept = RequestedPaird()(request(studies, moving_image="moving01", save_label=True) | right)
    assert {key: kept[key] for key in right} == right and "save_label" not in kept


def test_a_client_cannot_slip_in_what_later_steps_use(studies: Path) -> None:
    slipped = {"field": 1, "probability": 2, "view_center": [0, 0, 0], "label_values": [1], "case": "../x", "pred": 3}
    record = RequestedPaird()(request(studies, moving_image="moving01", align="center", **slipped))
    kept = {"model", "image", "image_path", "device", "result_dtype", "fixed_image", "moving_image", "align", "case"}
    assert set(record) == kept | {"requested", "served", "result_extension"} and record["case"] == "fixed01"
    for step in ServedCompose([RequestedPaird()], served=True).transforms:
        assert step(request(studies, moving_image="moving01") | {"served": False})["served"] is True


def test_a_record_that_no_server_sent_is_left_alone(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"image": "a", "moving_image": "../b", "moving_label": ["c"], "case": "d", "anything": 1}
    for more in ({}, {"model": "a scanner", "image_path": "elsewhere"}):  # columns of a table are not a request
        given = record | more
        assert RequestedPaird()(given) == given | {"fixed_image": "a", "requested": True}
        assert ServedCompose([RequestedPaird()])(given | {"served": True})["served"] is False


@pytest.mark.parametrize(
    ("name", "known"),
    [
        (None, False),
        ("model.pt", True),
        ("other.pt", True),
        (["model.pt", "other.pt"], True),  # what the server sends where the client names none
        ("nobody.pt", False),
        ("../models/model.pt", False),
        ("/etc/passwd", False),
        ("", False),
        (5, False),
        ({"a": 1}, False),
        ([], False),
        (["nobody.pt"], False),
        (["model.pt", "removed.pt"], True),  # since the server's start
    ],
)
def test_weights_have_to_be_those_of_the_bundle(studies: Path, tmp_path: Path, name: Any, known: bool) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for file in ("model.pt", "other.pt", "model.ts"):
        (models / file).touch()
    asked = request(studies, moving_image="moving01", model_filename=name)
    if known:
        assert RequestedPaird(models)(asked)["model_filename"] == name
        return
    with pytest.raises(RegZooError, match=r"^model_filename: no [^\n]* weights here, model.pt, other.pt$"):
        RequestedPaird(models)(asked)


def test_files_of_a_request_are_limited(studies: Path) -> None:
    asked = request(studies, moving_image="moving01", moving_label="moving01")
    voxels = 3 * int(np.prod(SHAPE))
    assert RequestedPaird(max_voxels=voxels)(asked)["moving_label"]
    with pytest.raises(
        RegZooError, match=rf"^moving_label: .* {voxels} voxels, .* limit of {voxels - 1}; .*max_voxels"
    ):
        RequestedPaird(max_voxels=voxels - 1)(asked)
    with pytest.raises(RegZooError, match=r"^moving_label: 33 files; give at most 32"):
        RequestedPaird()(asked | {"moving_label": ["moving01_label"] * 33})
    write(studies / "many.nii.gz", np.ones((2, 2, 2, 257), np.uint8))
    with pytest.raises(RegZooError, match=r"^moving_label: 257 labels; give at most 256"):
        RequestedPaird()(asked | {"moving_label": "many"})


def test_voxels_in_another_file_are_read_in_the_studies_only(studies: Path) -> None:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 9 8 7\nElementType = MET_UCHAR\nElementDataFile = "
    (studies / "more" / "a.raw").write_bytes(bytes(9 * 8 * 7))
    (studies / "a.mhd").write_text(header + "more/a.raw\n", encoding="utf-8")
    assert RequestedPaird()(request(studies, moving_image="a"))["moving_image"] == str(studies / "a.mhd")
    for name in ("../secret.nii.gz", str(studies.parent / "secret.nii.gz"), "way/secret.nii.gz", "link.nii.gz"):
        (studies / "a.mhd").write_text(f"{header}{name}\n", encoding="utf-8")
        for key in ("moving_image", "moving_label", "fixed_label"):
            with pytest.raises(RegZooError, match="names another file"):
                RequestedPaird()(request(studies, **({"moving_image": "moving01"} | {key: "a"})))
        with pytest.raises(RegZooError, match="names another file"):
            RequestedPaird()(request(studies, "a.mhd", moving_image="moving01"))
    with tempfile.NamedTemporaryFile(suffix=".mhd") as upload:
        (beside := Path(upload.name).with_suffix(".raw")).write_bytes(bytes(9 * 8 * 7))
        Path(upload.name).write_text(f"{header}{beside.name}\n", encoding="utf-8")
        with pytest.raises(RegZooError, match="names another file"):
            RequestedPaird()(request(studies, upload.name, moving_image="moving01"))
        beside.unlink()


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("a.NII.GZ", None, ".nii.gz"),
        ("a.Nii", None, ".nii"),
        ("a.2024.nii.gz", None, ".nii.gz"),
        ("without", None, ".nii.gz"),
        ("a.NII.GZ", ".mha", ".mha"),
    ],
)
def test_an_answer_is_written_under_a_known_suffix(studies: Path, name: str, given: str | None, expected: str) -> None:
    shutil.copy(studies / "fixed01.nii.gz", studies / name)
    asked = request(studies, name, moving_image="moving01", result_extension=given)
    assert RequestedPaird()(asked)["result_extension"] == expected


def test_what_came_with_a_refused_request_is_removed(studies: Path) -> None:
    (step,) = ServedCompose([RequestedPaird()], served=True).transforms
    handle, upload = tempfile.mkstemp(suffix=".nii.gz")
    os.close(handle)
    shutil.copy(studies / "fixed01.nii.gz", upload)
    step(request(studies, upload, moving_image="moving01"))
    assert Path(upload).is_file()
    for fixed in (str(studies / "fixed01.nii.gz"), upload):
        with pytest.raises(Exception, match="moving_image: missing"):
            step(request(studies, fixed))
    assert not Path(upload).exists() and (studies / "fixed01.nii.gz").is_file()


class HTTPException(Exception):
    """Stands in for the one of FastAPI, which only a server has."""

    def __init__(self, status_code: int, detail: str) -> None:
        self.status_code, self.detail = status_code, detail


def test_mistakes_reach_the_client_of_a_server(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", types.SimpleNamespace(HTTPException=HTTPException))
    (studies / "broken.nii.gz").write_bytes(b"no image")
    steps = ServedCompose([RequestedPaird(), LoadPaird()], served=True)
    (step,) = steps.transforms  # MONAI Label takes a Compose apart
    for parameters, part in (({}, "moving_image: missing"), ({"moving_image": "broken"}, "broken.nii.gz: holds text")):
        with pytest.raises(HTTPException) as caught:
            step(request(studies, **parameters))
        assert caught.value.status_code == 400 and part in caught.value.detail
        assert "\n" not in caught.value.detail and json.dumps(caught.value.detail)


def test_without_a_server_mistakes_stay_what_they_are(studies: Path) -> None:
    steps = ServedCompose([RequestedPaird(), LoadPaird()])
    with pytest.raises(RuntimeError) as caught:
        steps({"image": "no_such_file.nii.gz", "moving_image": "x"})
    causes, error = [], caught.value
    while error is not None:
        causes.append(error)
        error = error.__cause__
    assert any(isinstance(cause, RegZooError) for cause in causes)


def test_other_faults_are_not_hidden(studies: Path) -> None:
    def fails(data: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(RuntimeError):
        ServedCompose([fails], served=True)(request(studies))


@pytest.mark.parametrize(("value", "expected"), [(True, True), ("true", True), ("false", False), ("labels", "labels")])
def test_a_refinement_is_asked_for_within_the_limit(studies: Path, value: Any, expected: Any) -> None:
    sent = request(studies, moving_image="moving01", refine=value, fixed_mask="moving01_label")
    record = RequestedPaird(max_refine_seconds=7)(sent)
    assert record["refine"] == expected and record.get("refine_seconds") == (7 if expected else None)
    assert record["fixed_mask"] == str(studies / "moving01_label.nii.gz")
    assert RequestedPaird()(sent | {"refine_seconds": "2.5"})["refine_seconds"] == 2.5


@pytest.mark.parametrize(
    "wrong",
    [
        *({"refine": value} for value in (1, 0, {"a": 1}, ["mr"], "yes")),
        *({"refine_seconds": value} for value in (0, -1, 30.5, True, "long", "nan", "inf", {"a": 1}, 10**400)),
        *({"fixed_mask": value} for value in (5, ["moving01"], "nobody", "../secret.nii.gz", "link")),
    ],
)
def test_a_wrong_refinement_is_refused_in_a_line(studies: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(RegZooError, match=rf"^{next(iter(wrong))}: [^\n]*; [^\n]*$"):
        RequestedPaird()(request(studies, moving_image="moving01", **wrong))
