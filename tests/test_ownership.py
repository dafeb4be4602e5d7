"""Nothing that is not ours is deleted or overwritten, and no stale result looks like a new one."""

from __future__ import annotations

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import ball, make_affine, smooth_noise, write
from monai.bundle import ConfigWorkflow
from regzoo import ownership
from regzoo.cli import main
from regzoo.engines import save_weights
from regzoo.errors import RegZooError, user_error
from regzoo.inference import register
from regzoo.networks import LocalNet
from regzoo.ownership import check_file, check_folder, claim, discard, own_files, own_path, settle, sign
from regzoo_tools.export import export_network

WEAK, SEG = "prostate_mr_trus_weak_ddf", "prostate_mr_trus_conditional_seg"
CONFIGS = Path(__file__).resolve().parents[1] / "bundles" / WEAK / "configs"
SHAPE = (20, 18, 16)
AFFINE = make_affine(SHAPE, (2, 2, 2.5), center=(10, 20, 30))
IMAGE = smooth_noise(SHAPE, 2, 0)
LABEL = ball(SHAPE, (10, 9, 8), 5).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    save_weights(LocalNet(channels=2), path)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {
        "fixed": write(tmp_path / "fixed.nii.gz", IMAGE, AFFINE),
        "moving": write(tmp_path / "moving.nii.gz", IMAGE[::-1].copy(), AFFINE),
        "label": write(tmp_path / "label.nii.gz", LABEL, AFFINE),
    }


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *options: str) -> str:
    """The line of a registration that is refused before the weights are looked for."""
    arguments = ["register", WEAK, "--checkpoint", "none.pt", "--device", "cpu", *options]
    monkeypatch.setattr(sys, "argv", ["regzoo", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capfd.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", ["warped_image.nii.gz", "warped_label.nii.gz", "field.nii.gz"])
@pytest.mark.parametrize("linked", [False, True])
def test_an_input_under_the_name_of_an_output(
    name: str,
    linked: bool,
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    key = "label" if "label" in name else "moving"
    if linked:
        (out / name).symlink_to(files[key])
    else:
        files[key] = str(Path(files[key]).rename(out / name))
    before = content(tmp_path)
    options = [f"--{key}={value}" for key, value in files.items()]
    error = refused(monkeypatch, capfd, *options, "--out", str(out))
    assert error == (f"error: {files[key]}: is an input, and {name} would overwrite it; name another folder\n")
    assert content(tmp_path) == before


@pytest.mark.parametrize("key", ["moving", "label", "fixed_label", "points"])
@pytest.mark.parametrize("linked", [False, True])
def test_an_input_that_is_part_of_an_earlier_result(
    key: str,
    linked: bool,
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The new result would not overwrite the file, but remove it."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(files["moving"], out / "warped_image.nii.gz")
    shutil.copy(files["label"], out / "warped_label.nii.gz")
    (out / "warped_points.csv").write_text("x,y,z\n10,20,30\n")
    sign(out, WEAK)
    result = {"moving": "warped_image.nii.gz", "points": "warped_points.csv"}.get(key, "warped_label.nii.gz")
    given = out / result
    if linked:
        given = tmp_path / f"link_{result}"
        given.symlink_to(out / result)
    before = content(tmp_path)
    options = [f"--{name}={value}" for name, value in (files | {key: str(given)}).items()]
    options += ["--frame", "RAS"] if key == "points" else []
    error = refused(monkeypatch, capfd, *options, "--outputs", "field,statistics", "--out", str(out))
    if key == "points":  # they would also be written again
        assert f"{given}: is an input, and {result} would overwrite it" in error
    else:
        assert f"{given}: is an input and part of an earlier result, which the new one would replace" in error
    assert error.endswith("name another folder\n") and content(tmp_path) == before


@pytest.mark.parametrize("name", ["statistics.json", "quality.png", "field.nii.gz"])
@pytest.mark.parametrize("mine", [b'{"mine": "statistics of my own study"}\n', b"", b'{"written_by": {"files": []}}'])
def test_a_file_of_somebody_else(
    name: str,
    mine: bytes,
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(mine)
    options = [f"--{key}={value}" for key, value in files.items()]
    error = refused(monkeypatch, capfd, *options, "--out", str(tmp_path / "out"))
    assert f"{tmp_path / 'out' / name}: already exists" in error and "name another folder" in error
    assert (tmp_path / "out" / name).read_bytes() == mine
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_our_own_result_is_replaced_until_somebody_changes_it(
    files: dict[str, str], weights: str, tmp_path: Path
) -> None:
    out, settings = tmp_path / "out", {"checkpoint": weights, "channels": 2, "device": "cpu"}
    register(WEAK, files["fixed"], files["moving"], files["label"], out, **settings)
    record = json.loads((out / "statistics.json").read_text())["written_by"]
    assert record["bundle"] == WEAK and len(record["files"]) == 5
    (out / "notes.txt").write_text("mine")
    (out / "probability.nii.gz").write_text("mine")  # is not written here
    register(WEAK, files["fixed"], files["moving"], None, out, "image,field", **settings)
    names = {"warped_image.nii.gz", "field.nii.gz", ".regzoo.json", "notes.txt", "probability.nii.gz"}
    assert {path.name for path in out.iterdir()} == names
    register(WEAK, files["fixed"], files["moving"], files["label"], out, **settings)
    assert not (out / ".regzoo.json").exists()
    # A label corrected by hand, in whatever program; and the statistics with a word of one's own.
    for name in ("warped_label.nii.gz", "statistics.json"):
        shutil.copytree(out, tmp_path / name)
        if name == "statistics.json":
            text = (tmp_path / name / name).read_text()
            (tmp_path / name / name).write_text(text.replace('"warnings"', '"notes": "mine", "warnings"'))
        else:
            labels = nib.load(tmp_path / name / name)
            array = np.asarray(labels.dataobj).copy()
            array[0, 0, 0] = 1
            nib.save(nib.Nifti1Image(array, labels.affine, labels.header), tmp_path / name / name)
        before = content(tmp_path / name)
        with pytest.raises(RegZooError, match=f"{name}: already exists, and RegZoo did not write it or it has cha"):
            register(WEAK, files["fixed"], files["moving"], files["label"], tmp_path / name, **settings)
        assert content(tmp_path / name) == before
    with pytest.raises(RegZooError, match=f"holds a result of {WEAK}; name another folder for the result of {SEG}"):
        register(SEG, files["fixed"], files["moving"], files["label"], out, device="cpu")


def test_the_record_itself(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    sign(tmp_path, "mine")
    assert own_files(tmp_path) == {"a.txt", "b.txt", ".regzoo.json"}
    (tmp_path / "b.txt").write_text("changed")
    (tmp_path / "c.txt").symlink_to(tmp_path / "a.txt")
    assert own_files(tmp_path) == {"a.txt", ".regzoo.json"}
    check_folder(tmp_path, ["a.txt", "d.txt"], "mine")
    with pytest.raises(RegZooError, match=r"b\.txt: already exists"):
        check_folder(tmp_path, ["a.txt", "b.txt"], "mine")
    discard(tmp_path, "another")
    assert len(names(tmp_path)) == 4
    discard(tmp_path, "mine")
    assert names(tmp_path) == ["b.txt", "c.txt"]


def batch(data: list[dict[str, str]], out: Path, weights: str) -> str:
    """Register a datalist as `monai.bundle run` does; returns the line it ends with."""
    (out.parent / "datalist.json").write_text(json.dumps(data))
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / "inference.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        dataset_dir=str(out.parent / "datalist.json"),
        output_dir=str(out),
        checkpoint=weights,
        channels=2,
        device="cpu",
    )
    try:
        for step in (workflow.initialize, workflow.run, workflow.finalize):
            step()
    except Exception as error:
        return str(user_error(error))
    return ""


def test_a_case_that_fails_leaves_no_older_result(files: dict[str, str], weights: str, tmp_path: Path) -> None:
    pair = {"case": "A", "fixed_image": files["fixed"], "moving_image": files["moving"], "moving_label": files["label"]}
    data = [pair, {"case": "B", "fixed_image": files["moving"], "moving_image": files["fixed"]}]
    out = tmp_path / "out"
    assert batch(data, out, weights) == ""
    assert names(out) == ["A", "B"]
    (out / "B" / "notes.txt").write_text("mine")
    constant = write(tmp_path / "constant.nii.gz", np.full(SHAPE, 7, np.int16), AFFINE)
    data[1]["moving_image"] = constant
    before = (out / "A" / "statistics.json").stat().st_mtime_ns
    assert batch(data, out, weights).startswith(f"1 of 2 cases failed: {constant}")
    assert names(out / "B") == ["notes.txt"]
    assert (out / "A" / "statistics.json").stat().st_mtime_ns > before
    # Somebody else's file is found before the first case is registered.
    (out / "B" / "field.nii.gz").write_text("mine")
    before = (out / "A" / "statistics.json").stat().st_mtime_ns
    assert f"{out / 'B' / 'field.nii.gz'}: already exists" in batch(data, out, weights)
    assert (out / "A" / "statistics.json").stat().st_mtime_ns == before


def test_an_evaluation_measures_the_remaining_cases(prostate_phantoms: Path, weights: str, tmp_path: Path) -> None:
    data, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(prostate_phantoms, data)
    bad, *_ = sorted((data / "val" / "us_images").iterdir())
    bad.write_bytes(b"not an image")

    def evaluate() -> str:
        workflow = ConfigWorkflow(
            config_file=[str(CONFIGS / name) for name in ("train.json", "evaluate.json")],
            meta_file=str(CONFIGS / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
            dataset_dir=str(data),
            evaluation_dir=str(out),
            checkpoint=weights,
            channels=2,
            pictures=0,
            device="cpu",
        )
        with pytest.raises(Exception) as stop:
            for step in (workflow.initialize, workflow.run, workflow.finalize):
                step()
        return str(user_error(stop.value))

    assert evaluate().startswith(f"1 of 4 cases failed: {bad}")
    assert len((out / "cases.csv").read_text().splitlines()) == 1 + 3 and (out / "summary.png").is_file()
    for path in (data / "val" / "us_images").iterdir():
        path.write_bytes(b"not an image")
    assert evaluate().startswith("none of the 4 cases can be evaluated: ")


def foreign_file_survives(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *command: str) -> None:
    """A command refuses, before any work and in one line, to write its last argument over what is there."""
    target = Path(command[-1])
    target.write_bytes(b"mine")
    monkeypatch.setattr(sys, "argv", ["regzoo", *command])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capfd.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1
    assert f"{target}: already exists" in error and error.endswith("move it, or name another file\n")
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "command",
    [
        ("export", WEAK, "--format", "onnx", "--checkpoint", "none.pt", "--out", "model.onnx"),
        ("curves", "no_training", "--out", "training.png"),
        ("package", WEAK, "--out", "bundle.zip"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_never_writes_over_the_file_of_somebody_else(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    foreign_file_survives(monkeypatch, capfd, *command[:-1], str(tmp_path / command[-1]))


def test_an_export_may_be_repeated_but_not_over_its_own_weights(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"checkpoint": weights, "network_def#channels": 2, "size": [16, 16, 16]}
    for _ in range(2):
        export_network(WEAK, "torchscript", tmp_path / "model.ts", **options)
    (tmp_path / "model.ts").write_bytes(b"changed")
    with pytest.raises(RegZooError, match=r"model\.ts: already exists"):
        export_network(WEAK, "torchscript", tmp_path / "model.ts", **options)
    before = Path(weights).read_bytes()
    claim(Path(weights).parent, [])
    with pytest.raises(RegZooError, match=r"tiny\.pt: already exists"):
        export_network(WEAK, "torchscript", weights, **options)
    assert Path(weights).read_bytes() == before


@pytest.mark.parametrize("name", ["model.pt", "last.pt"])
def test_no_command_writes_over_the_weights_of_a_training(
    name: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with own_path(tmp_path / "training.png") as temporary:
        temporary.write_text("curves")
    claim(tmp_path, ["model.pt", "last.pt"], WEAK)
    for file in ("model.pt", "last.pt"):
        shutil.copy(weights, tmp_path / file)
    settle(tmp_path)
    before = content(tmp_path)
    for command in (
        ("export", WEAK, "--format", "torchscript", "--checkpoint", str(tmp_path / "model.pt")),
        ("curves", str(tmp_path)),
    ):
        monkeypatch.setattr(sys, "argv", ["regzoo", *command, "--out", str(tmp_path / name)])
        with pytest.raises(SystemExit):
            main()
        error = capfd.readouterr().err
        assert error.startswith(f"error: {tmp_path / name}: already exists, and this command did not write it")
        assert content(tmp_path) == before
    check_file(tmp_path / "training.png")
    check_folder(tmp_path, ["model.pt", "last.pt"], WEAK)
    # A run does not take over what a command wrote, and a user changed.
    (tmp_path / "training.png").write_text("changed")
    settle(tmp_path)
    with pytest.raises(RegZooError, match=r"training\.png: already exists"):
        check_file(tmp_path / "training.png")


def test_what_was_claimed_is_ours_until_it_is_settled_and_changed(tmp_path: Path) -> None:
    claim(tmp_path, ["cases.csv", "a.png"], WEAK)
    (tmp_path / "cases.csv").write_text("of a run that was killed", encoding="utf-8")
    claim(tmp_path, ["cases.csv", "a.png"], WEAK)
    with pytest.raises(RegZooError, match=f"holds a result of {WEAK}; name another folder for the result of {SEG}"):
        claim(tmp_path, ["cases.csv"], SEG)
    with pytest.raises(RegZooError, match=r"cases\.csv: already exists"):
        check_file(tmp_path / "cases.csv")  # another kind of command
    settle(tmp_path)
    check_folder(tmp_path, ["cases.csv"], WEAK)
    (tmp_path / "cases.csv").write_text("mine", encoding="utf-8")
    (tmp_path / "a.png").write_text("mine", encoding="utf-8")  # claimed, but not written
    for name in ("cases.csv", "a.png"):
        with pytest.raises(RegZooError, match=f"{name}: already exists, and RegZoo did not write it"):
            claim(tmp_path, [name], WEAK)


@pytest.mark.parametrize("name", ["model.pt", "last.pt", "data.json", "config.json", "epochs.csv", "log.txt"])
def test_a_training_refuses_a_folder_with_files_of_somebody_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"mine")
    workflow = ConfigWorkflow(
        str(CONFIGS / "train.json"), workflow_type="train", output_dir=str(tmp_path), dataset_dir="none", resume=False
    )
    with pytest.raises(Exception) as caught:  # MONAI wraps it
        workflow.initialize()
    assert f"{tmp_path / name}: already exists" in str(user_error(caught.value))
    assert content(tmp_path) == {str(tmp_path / name): b"mine"}


def test_files_that_end_at_the_same_moment_are_all_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk makes the moments between reading the record, writing it and moving the file longer."""
    record, replace = ownership.write_json, Path.replace

    def slow(path: Path, value: object) -> None:
        time.sleep(0.02)
        record(path, value)

    def slow_replace(path: Path, target: Path) -> Path:
        time.sleep(0.02 if path.suffix == ".txt" else 0)
        return replace(path, target)

    def write_one(number: int) -> None:
        with own_path(tmp_path / f"{number}.txt") as temporary:
            temporary.write_text(str(number))

    monkeypatch.setattr(ownership, "write_json", slow)
    monkeypatch.setattr(Path, "replace", slow_replace)
    with ThreadPoolExecutor(8) as pool:
        assert not any(list(pool.map(write_one, range(16))))
    for number in range(16):
        check_file(tmp_path / f"{number}.txt")
    claim(tmp_path, ["new.txt"])
    settle(tmp_path)
    assert names(tmp_path) == sorted([".regzoo.files.json", *(f"{number}.txt" for number in range(16))])
