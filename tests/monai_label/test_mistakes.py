"""Requests that cannot be answered: one line that names the parameter and the mend, and nothing is touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel", reason="run by `make test-label`, in an environment of its own")

from bundle_list import NAMES, REPRESENTATIVES
from label_server import Answer, LabelServer
from label_studies import DDMR, PROSTATE, WEAK_DDF, Pair, Studies

pytestmark = pytest.mark.usefixtures("untouched")
each_bundle = pytest.mark.parametrize("bundle", NAMES)
#: For long lists of names and files, which all bundles look up alike.
two_bundles = pytest.mark.parametrize("bundle", REPRESENTATIVES)

#: Values of a parameter that names a file; {outside} is the folder beside the studies.
NO_NAMES: dict[str, Any] = {
    "number": 7,
    "float": 0.5,
    "true": True,
    "object": {"id": "mr01"},
    "component": {"_target_": "os.mkdir", "path": "{outside}/made"},
    "nested list": [["mr01"]],
    "list of numbers": [1, 2],
    "null byte": "mr01\0",
}
NOT_THERE: dict[str, Any] = {
    "unknown id": "nobody",
    "missing file": "more/nobody.nii.gz",
    "folder": "labels",
    "the studies": ".",
    "long": "m" * 5000,
    "surrogate": "mr\ud800",
    "expression": "$__import__('os').mkdir('{outside}/made')",
    "reference": "@bundle_root",
    "wild card": "mr*",
    "home": "~",
}
OUTSIDE: dict[str, Any] = {
    "beside": "../outside/mr.nii.gz",
    "through a folder": "labels/final/../../../outside/mr.nii.gz",
    "absolute": "{outside}/mr.nii.gz",
    "system": "/etc/passwd",
    "a parent": "..",
    "id of a link": "link",
    "link": "link.nii.gz",
    "through a linked folder": "linked/mr.nii.gz",
    "not there": "../outside/nobody.nii.gz",
    "a copy of the studies' name": "{studies}_other/mr.nii.gz",
}


def filled(value: Any, studies: Studies) -> Any:
    """A value with the folders of the test in it."""
    if isinstance(value, dict):
        return {key: filled(part, studies) for key, part in value.items()}
    if not isinstance(value, str):
        return value
    return value.replace("{outside}", str(studies.outside)).replace("{studies}", str(studies.folder))


def refused(answer: Answer, *named: str) -> None:
    """The answer is a single line that names what it is about."""
    assert answer.status == 400, (answer.status, answer.detail)
    assert answer.image is None and set(answer.params) == {"detail"}
    assert "\n" not in answer.detail and "Traceback" not in answer.detail and 10 < len(answer.detail) < 1000
    assert all(name in answer.detail for name in named), answer.detail


def first(bundle: str, studies: Studies) -> Pair:
    return studies.pairs(bundle)[0]


@each_bundle
@pytest.mark.parametrize("value", [None, "", "left out"], ids=repr)
def test_no_moving_image(bundle: str, value: Any, server: LabelServer, studies: Studies) -> None:
    named = {} if value == "left out" else {"moving_image": value}
    refused(server.infer(bundle, first(bundle, studies).fixed, moving_label="mr01", **named), "moving_image")


@two_bundles
@pytest.mark.parametrize("parameter", ["moving_image", "moving_label"])
@pytest.mark.parametrize("kind", [*NO_NAMES, *NOT_THERE, *OUTSIDE])
def test_names_of_nothing_or_of_what_is_none_of_theirs(
    bundle: str, parameter: str, kind: str, server: LabelServer, studies: Studies
) -> None:
    pair = first(bundle, studies)
    value = filled((NO_NAMES | NOT_THERE | OUTSIDE)[kind], studies)
    named = {"moving_image": pair.moving, "moving_label": pair.moving} | {parameter: value}
    answer = server.infer(bundle, pair.fixed, **named)
    refused(answer, parameter)
    if kind in OUTSIDE:
        # Whether there is such a file is not said.
        assert "outside the studies" in answer.detail
    assert not (studies.outside / "made").exists()


@each_bundle
@pytest.mark.parametrize("parameter", ["moving_image", "moving_label", "align", "device", "model_filename"])
def test_what_configurations_would_run_or_read(
    bundle: str, parameter: str, server: LabelServer, studies: Studies
) -> None:
    """MONAI runs and reads such strings wherever they stand in a configuration, so no request may come to be in one."""
    made = studies.outside / "made"
    config = studies.outside / "config.json"
    config.write_text(json.dumps({"_target_": "os.mkdir", "path": str(made)}), encoding="utf-8")
    payload = [place / "payload.py" for place in (server.models.parent, server.models.parent / "lib")]
    for file in payload:
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"import pathlib\npathlib.Path({str(made)!r}).mkdir()\n", encoding="utf-8")
    pair = first(bundle, studies)
    named = {"moving_image": pair.moving, "moving_label": pair.moving}
    for text in ("$import payload", "%{outside}/config.json", "%", "@####x", "$import (", "@bundle_root"):
        refused(server.infer(bundle, pair.fixed, **(named | {parameter: filled(text, studies)})), parameter)
    assert server.infer(bundle, pair.fixed, **named).status == 200  # nor may it stay for the next one
    for file in (config, *payload):
        file.unlink()
    assert not made.exists()


@pytest.mark.parametrize("key", ["moving_label", "fixed_label"])
def test_an_image_is_not_its_own_label(key: str, server: LabelServer, studies: Studies) -> None:
    """One without a finished label, whose intensities could pass for a label map."""
    named = {"moving_image": "us02", "moving_label": "us02"}
    if key == "fixed_label":
        named = {"moving_image": "mr01", "moving_label": "mr01", "fixed_label": "us01"}
    answer = server.infer(WEAK_DDF, "us01", **named)
    refused(answer, key, "no finished label")


@each_bundle
@pytest.mark.parametrize(
    "wrong",
    [
        {"result_dtype": "nonsense"},
        {"result_dtype": "bool"},
        {"result_extension": ".txt"},
        {"result_compress": "x"},
        {"model_filename": None},
        {"save_label": True, "label_tag": "../../../outside"},
        {"save_label": True, "label_tag": "final"},
    ],
    ids=str,
)
def test_ways_to_write_an_answer(bundle: str, wrong: dict[str, Any], server: LabelServer, studies: Studies) -> None:
    """MONAI Label would fail without a word, or write over what a person has finished, or outside the studies."""
    pair = first(bundle, studies)
    named = {"moving_image": pair.moving, "moving_label": pair.moving}
    refused(server.infer(bundle, pair.fixed, **(named | wrong)), next(reversed(wrong)))


def test_values_that_a_type_cannot_hold(server: LabelServer, studies: Studies) -> None:
    pair = studies.oblique["abdomen"]  # with a label 300
    named = {"moving_image": pair.moving, "moving_label": pair.moving, "align": "header"}
    refused(server.infer(DDMR, pair.fixed, **named, result_dtype="uint8"), "result_dtype", "300")
    assert server.infer(DDMR, pair.fixed, **named, result_dtype="int16").status == 200
    del named["moving_label"]
    refused(server.infer(DDMR, pair.fixed, **named, result_dtype="uint8"), "result_dtype", "moving_label")


@pytest.mark.parametrize("image", [5, ["us01"], {"a": 1}, None], ids=repr)
def test_a_fixed_image_that_is_no_name(image: Any, server: LabelServer, studies: Studies) -> None:
    answer = server.infer(WEAK_DDF, "us01", image=image, moving_image="mr01", moving_label="mr01")
    assert answer.status >= 400 and "\n" not in answer.detail


def test_a_mistake_does_not_stay(server: LabelServer, studies: Studies) -> None:
    pair = first(WEAK_DDF, studies)
    named = {"moving_image": pair.moving, "moving_label": pair.moving}
    for value in (*NO_NAMES.values(), *NOT_THERE.values()):
        server.infer(WEAK_DDF, pair.fixed, **(named | {"moving_label": filled(value, studies)}))
    assert server.infer(WEAK_DDF, pair.fixed, **named).status == 200
    assert server.infer(WEAK_DDF, pair.fixed, moving_image=pair.moving).params["answer"] == "image"


@two_bundles
@pytest.mark.parametrize("kind", ["number", "object", "unknown id", *OUTSIDE])
def test_a_list_with_one_bad_name(bundle: str, kind: str, server: LabelServer, studies: Studies) -> None:
    pair = first(bundle, studies)
    value = filled((NO_NAMES | NOT_THERE | OUTSIDE)[kind], studies)
    answer = server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=[pair.moving, value])
    refused(answer, "moving_label")


@pytest.mark.parametrize("kind", ["number", "object", "unknown id", *OUTSIDE])
def test_the_label_of_the_fixed_image(kind: str, server: LabelServer, studies: Studies) -> None:
    pair = first(DDMR, studies)
    value = filled((NO_NAMES | NOT_THERE | OUTSIDE)[kind], studies)
    answer = server.infer(DDMR, pair.fixed, moving_image=pair.moving, moving_label=pair.moving, fixed_label=value)
    refused(answer, "fixed_label")


@two_bundles
@pytest.mark.parametrize("bad", ["truncated", "nonsense", "flat"])
@pytest.mark.parametrize("role", ["fixed", "moving_image", "moving_label"])
def test_files_nobody_can_use(bundle: str, bad: str, role: str, server: LabelServer, studies: Studies) -> None:
    pair = first(bundle, studies)
    named = {"moving_image": pair.moving, "moving_label": pair.moving}
    if role != "fixed":
        named[role] = bad
    refused(server.infer(bundle, bad if role == "fixed" else pair.fixed, **named), f"{bad}.nii.gz")


@each_bundle
def test_a_label_of_another_space(bundle: str, server: LabelServer, studies: Studies) -> None:
    """On another grid than its image, in another place, and that of another image."""
    pair = first(bundle, studies)
    other = "ct01a" if bundle in PROSTATE else "us02"
    for label in ("far_label", other):
        answer = server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=label)
        refused(answer, f"{label}.nii.gz")


@each_bundle
@pytest.mark.parametrize("align", ["sideways", "", 5, True, {"by": "header"}, ["header"], "HEADER"], ids=repr)
def test_alignments_that_there_are_not(bundle: str, align: Any, server: LabelServer, studies: Studies) -> None:
    pair = first(bundle, studies)
    answer = server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=pair.moving, align=align)
    if align == "":  # what 3D Slicer sends of an emptied field
        assert answer.status == 200
    else:
        refused(answer, "align")


@each_bundle
def test_images_apart(bundle: str, server: LabelServer, studies: Studies) -> None:
    pair = first(bundle, studies)
    copy = Path(shutil.copy(studies.folder / "far_label.nii.gz", studies.folder / "more" / "far.nii.gz"))
    answer = server.infer(bundle, pair.fixed, moving_image="far_label", moving_label="more/far.nii.gz", align="header")
    copy.unlink()
    refused(answer, "far_label.nii.gz" if bundle in PROSTATE else "nii.gz")


@each_bundle
@pytest.mark.parametrize("fixed", ["nobody", "{outside}/mr.nii.gz", "link", "/etc/passwd", "{outside}"])
def test_fixed_images_that_are_not_in_the_studies(
    bundle: str, fixed: str, server: LabelServer, studies: Studies
) -> None:
    pair = first(bundle, studies)
    answer = server.infer(bundle, filled(fixed, studies), moving_image=pair.moving, moving_label=pair.moving)
    refused(answer, "image")
    # Nor by the parameters, which MONAI Label merges with the address.
    hidden = {"image": filled(fixed, studies), "moving_image": pair.moving, "moving_label": pair.moving}
    refused(server.infer(bundle, pair.fixed, **hidden), "image")


@each_bundle
@pytest.mark.parametrize(
    "name",
    ["nobody.pt", "../../../../outside/mr.nii.gz", "{outside}/mr.nii.gz", 5, {"a": 1}, [], ["nobody.pt"]],
    ids=repr,
)
def test_weights_that_there_are_not(bundle: str, name: Any, server: LabelServer, studies: Studies) -> None:
    """MONAI Label would take the released ones without a word, or load what is outside."""
    pair = first(bundle, studies)
    named = {"moving_image": pair.moving, "moving_label": pair.moving, "model_filename": filled(name, studies)}
    refused(server.infer(bundle, pair.fixed, **named), "model_filename")


def test_what_monai_label_itself_refuses(server: LabelServer, studies: Studies) -> None:
    """No parameters at all, parameters that are no JSON, an unknown model: not ours to answer, but nothing happens."""
    pair = first(WEAK_DDF, studies)
    query = {"image": pair.fixed, "output": "all"}
    for address, params in ((WEAK_DDF, "{"), (WEAK_DDF, "[1, 2]"), ("nobody", json.dumps({"moving_image": "mr01"}))):
        answer = server.post(f"/infer/{address}", query, params)
        assert answer.status_code >= 400
