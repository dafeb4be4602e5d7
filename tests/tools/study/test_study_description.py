"""The JSON file of a study: scales, paths, and mistakes, each refused in one line that names the file and the key."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from regzoo.errors import RegZooError
from regzoo_tools.study.cells import cells_of, recipe
from regzoo_tools.study.description import read_study

ROOT = Path(__file__).resolve().parents[3]
DDF, SEG = "prostate_mr_trus_weak_ddf", "prostate_mr_trus_conditional_seg"
PHANTOMS = {"prostate": {"phantoms": {"pairs": 6}}}


def methods(**entry: Any) -> dict[str, Any]:
    return {"methods": {"sum": {"bundle": DDF} | entry}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 3}, r"fold: no such key; did you mean folds\?"),
        ({"repeats": "3"}, r'repeats: "3" is not a whole number'),
        ({"repeats": True}, r"repeats: true is not a whole number"),
        ({"repeats": 0}, r"repeats: is below 1"),
        ({"folds": [4, "8"]}, r'folds: \[4, "8"\] is not a whole number or a list of whole numbers'),
        ({"folds": 1}, r"folds: cross-validation needs at least 2"),
        ({"training_sizes": [2]}, r"training_sizes: would change the cases that are measured"),
        ({"data": {"prostate": {"phantom": {}}}}, r"data\.prostate\.phantom: no such key; did you mean phantoms\?"),
        ({"data": {"prostate": {}}}, r"data\.prostate: names no data"),
        ({"data": {"prostate": {"dataset_dir": 3}}}, r"data\.prostate\.dataset_dir: 3 is not a text"),
        ({"data": {"prostate": {"phantoms": 3}}}, r"data\.prostate\.phantoms: 3 is not an object"),
        ({"data": {"prostate": {"dataset_dir": "images", "settings": 3}}}, r"settings: 3 is not an object"),
        ({"settings": {"seed": 3}}, r"settings\.seed: the study itself sets it; leave it out; use repeats"),
        (methods(evaluation={"checkpoint": "a.pt"}), r"methods\.sum\.evaluation\.checkpoint: the study itself sets it"),
        ({"evaluation": {"refin": True}}, r"json: evaluation\.refin: no such setting of \S+; did you mean refine\?"),
        (
            {"data": {"prostate": {"dataset_dir": "images", "settings": {"alig": "header"}}}},
            r"json: data\.prostate\.settings\.alig: no such setting of \S+; did you mean align\?",
        ),
        ({"folds": [2, 2]}, r"folds: \[2, 2\] has a number twice; keep one of them"),
        ({"folds": None, "training_sizes": [4, 2, 4]}, r"training_sizes: \[4, 2, 4\] has a number twice"),
        ({"data": {}}, r"data: is empty"),
        ({"data": {"prostate": {"dataset_dir": "nowhere"}}}, r"no such folder or file, named in"),
        ({"methods": None}, r"methods is missing"),
        ({"methods": {"a b": {"bundle": DDF}, "a_b": {"bundle": DDF}}}, r"methods\.a_b: has the same folder as a b"),
        ({"weights": "lats"}, r"'lats' is not known; did you mean last\?"),
        (
            {"settings": {"max_epoch": 3}},
            r"settings\.max_epoch: no such setting of prostate\S*; did you mean max_epochs\?",
        ),
        ({"overlays": ["dem"]}, r"no overlay dem; did you mean demo\?"),
        (
            methods(bundle="prostate_mr_trus_weak_dff"),
            r"sum\.bundle: no bundle \S+; did you mean prostate_mr_trus_weak_ddf\?",
        ),
        (methods(bundle="none"), r"sum\.bundle: no bundle none; use one of abdominal_ct_ddmr, "),
        (methods(bundles=DDF), r"sum\.bundles: no such key; did you mean bundle\?"),
        (methods(**{"": {}}), r"sum\.: no such key; use one of bundle, "),
        (methods(overlays="demo"), r'sum\.overlays: "demo" is not a list of texts'),
        (methods(data="prostata"), r"sum\.data: no data set prostata; did you mean prostate\?"),
        (methods(start="som"), r"methods\.sum\.start: no trained method som"),
        (methods(start="sum"), r"methods\.sum\.start: leads back to sum"),
        (methods(baseline="afine"), r"sum\.baseline: no baseline afine; did you mean affine\?"),
        (methods(baseline="tool"), r"sum\.tool: belongs to a baseline tool"),
        (methods(baseline="affine", bundle=SEG), r"predicts labels, and a baseline finds a field"),
    ],
)
def test_mistakes(write_study: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    path = write_study(**changes)
    with pytest.raises(RegZooError) as caught:
        read_study(path)
    line = str(caught.value)
    assert "\n" not in line and "study.json" in line
    assert re.search(message, line)


def test_a_file_that_is_missing_or_no_study(tmp_path: Path) -> None:
    with pytest.raises(RegZooError, match=r"none\.json: no such file; name the JSON file"):
        read_study(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{,}")
    with pytest.raises(RegZooError, match=r"text\.json: is not valid JSON .*line 1.*; correct it there"):
        read_study(tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[]", encoding="utf-8-sig")
    with pytest.raises(RegZooError, match=r"list\.json: is not an object"):
        read_study(tmp_path / "list.json")


def test_a_method_that_is_named_twice(write_study: Callable[..., Path]) -> None:
    path = write_study()
    path.write_text(path.read_text().replace('"finest level"', '"sum"'))
    with pytest.raises(RegZooError, match=r"study\.json: has 'sum' twice in one object"):
        read_study(path)


def test_a_scale_that_is_no_object(write_study: Callable[..., Path]) -> None:
    with pytest.raises(RegZooError, match=r"study\.json: scales\.small is not an object; write \{…\}"):
        read_study(write_study(scales={"small": None}), "small")


def test_bundles_do_not_depend_on_the_working_folder(
    write_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does a cell that is done, also if the whole project moves."""
    project = tmp_path / "project"
    for name in (DDF, "own"):  # one has the name of an installed bundle
        shutil.copytree(ROOT / "bundles" / DDF / "configs", project / name / "configs")
    (project / "own" / "configs" / "train.json").write_text('{"network_def": {}}')
    shutil.move(write_study(), project)
    shutil.move(tmp_path / "images", project)
    (project / "register.py").touch()
    entries = {"installed": {"bundle": DDF}, "own": {"bundle": f"./{DDF}"}, "other": {"bundle": "own"}}
    entries["tool"] = {"bundle": DDF, "baseline": "tool", "tool": ["python", "./register.py"]}
    content = json.loads((project / "study.json").read_text()) | {"methods": entries}
    (project / "study.json").write_text(json.dumps(content))

    def read() -> tuple[list[Path], list[dict[str, str]]]:
        study = read_study(project / "study.json")
        recipes = [recipe(study, cell) for cell in cells_of(study)]
        return [method.folder for method in study.methods.values()], recipes

    folders, recipes = read()
    assert folders == [ROOT / "bundles" / DDF, project / DDF, project / "own", ROOT / "bundles" / DDF]
    for place in (project, ROOT / "bundles"):
        monkeypatch.chdir(place)
        assert read() == (folders, recipes)
    project = project.rename(tmp_path / "moved")
    assert read()[1] == recipes


def test_a_scale_changes_single_entries(write_study: Callable[..., Path], tmp_path: Path) -> None:
    small = {
        "run_folds": 1,
        "settings": {"max_epochs": 1},
        "methods": {"finest level": None, "sum": {"overlays": ["l2"]}},
    }
    path = write_study(settings={"max_epochs": 9, "batch_size": 2}, scales={"small": small})
    whole, study = read_study(path), read_study(path, "small")
    assert study.settings == {"max_epochs": 1, "batch_size": 2} and whole.settings["max_epochs"] == 9
    assert list(study.methods) == ["sum"] and study.methods["sum"].overlays == ["l2"]
    assert len(cells_of(study)) == 1 and len(cells_of(whole)) == 6
    assert (whole.folder, study.folder) == (tmp_path / "output" / "study", tmp_path / "output" / "study_small")
    with pytest.raises(RegZooError, match="scale smal: no such scale; did you mean small"):
        read_study(path, "smal")


def test_a_scale_is_like_another(write_study: Callable[..., Path]) -> None:
    small = {"settings": {"max_epochs": 1, "batch_size": 2}}
    longer = {"like": "small", "settings": {"max_epochs": 4}, "only": ["sum"]}
    mistakes: dict[str, Any] = {"round": {"like": "round"}, "odd": {"like": ["small"]}, "few": {"only": ["sun"]}}
    path = write_study(scales={"longer": longer, "small": small, **mistakes})
    study = read_study(path, "longer")
    assert study.settings == {"max_epochs": 4, "batch_size": 2} and list(study.methods) == ["sum"]
    messages = (
        'round.like: "round" is no scale, or is',
        "scales.odd.like: .* is no scale",
        "few.only: no method sun; did you",
    )
    for scale, message in zip(mistakes, messages, strict=True):
        with pytest.raises(RegZooError, match=message):
            read_study(path, scale)


def test_paths_are_relative_to_the_file(write_study: Callable[..., Path], tmp_path: Path) -> None:
    tool = {"bundle": DDF, "baseline": "tool", "tool": ["./tools/python", "register.py", "SyN"]}
    study = read_study(write_study(methods={"SyN": tool}))
    assert study.data["prostate"] == {"dataset_dir": str(tmp_path / "images")}
    assert study.methods["SyN"].tool == [str(tmp_path / "tools/python"), "register.py", "SyN"]


def test_cells_and_their_order(write_study: Callable[..., Path]) -> None:
    entries = {
        "tuned": {"bundle": DDF, "start": "first"},
        "identity": {"bundle": DDF, "baseline": "identity"},
        "first": {"bundle": DDF},
    }
    cells = cells_of(read_study(write_study(methods=entries, folds=[2, 4], repeats=2)))
    count = {name: sum(cell.method == name for cell in cells) for name in entries}
    assert count == {"tuned": 12, "identity": 2, "first": 12}  # a baseline has neither repeats nor sizes
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    assert names.index("first_fold3of4_repeat1") < names.index("tuned_fold0of2_repeat0")
    # With some folds only, each division holds other cases out.
    some = cells_of(read_study(write_study(methods=entries, folds=[2, 4], run_folds=1, repeats=2)))
    cases = [(cell.folds, cell.fold, cell.repeat) for cell in some if cell.method == "identity"]
    assert cases == [(cell.folds, cell.fold, cell.repeat) for cell in some if cell.method == "first"]
    sizes = cells_of(read_study(write_study(folds=None, training_sizes=[1, 4])))
    assert [cell.name for cell in sizes][:2] == ["sum_repeat0_size1", "sum_repeat0_size4"]


def test_every_published_study_is_valid() -> None:
    files = sorted((ROOT / "studies").glob("*.json"))
    assert len(files) >= 4
    for file in files:
        for scale in (None, *json.loads(file.read_text()).get("scales", {})):
            assert cells_of(read_study(file, scale))
