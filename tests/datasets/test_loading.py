"""Layouts found by themselves, and the data set that is written when none is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from regzoo.datasets import load_records, read_muregpro
from regzoo.errors import RegZooError
from regzoo_phantoms import embedded_phantoms
from regzoo_phantoms.writing import PhantomSet

SMALL = {"pairs": 2, "held_out": 1, "spacing": 3.2}


def test_phantom_folder(phantoms: Path) -> None:
    """The µ-RegPro layout, both directions."""
    assert load_records(phantoms, "val") == read_muregpro(phantoms, split="val")
    assert load_records(phantoms, "train", "us_to_mr") == read_muregpro(phantoms, "us_to_mr", "train")
    assert len(load_records(phantoms)) == 15


def test_datalists(phantoms: Path, tmp_path: Path) -> None:
    """A JSON datalist by file or folder, sections under either name, a plain list, a table with a split column."""
    train, val = (read_muregpro(phantoms, split=split) for split in ("train", "val"))
    path = tmp_path / "datalist.json"
    for name in ("validation", "val"):
        path.write_text(json.dumps({"training": train, name: val}))
        for source in (path, tmp_path):
            assert load_records(source, "train") == train and load_records(source, "val") == val
            assert load_records(source) == train + val
    with pytest.raises(RegZooError, match="has no pairs of the split 'test'"):
        load_records(path, "test")
    path.write_text(json.dumps(train))
    assert load_records(path, "train") == load_records(path) == train
    with pytest.raises(RegZooError, match="has no pairs of the split 'val'"):
        load_records(path, "val")
    table = tmp_path / "pairs.csv"
    rows = [(r, "training") for r in train[:2]] + [(r, "val") for r in val[:1]]
    lines = [f"{r['fixed_image']},{r['moving_image']},{split}" for r, split in rows]
    table.write_text("\n".join(["fixed_image,moving_image,split", *lines]))
    assert [r["case"] for r in load_records(table, "train")] == [r["case"] for r in train[:2]]
    assert [r["case"] for r in load_records(table, "val")] == [val[0]["case"]]
    with pytest.raises(RegZooError, match="has no pairs of the split 'test'"):
        load_records(table, "test")


def test_two_datalists_in_one_folder(tmp_path: Path) -> None:
    """None of them is passed over."""
    for name in ("datalist.json", "datalist.csv"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(RegZooError, match=r"holds datalist\.json and datalist\.csv; name the one"):
        load_records(tmp_path, "train")


def test_records_are_checked(phantoms: Path, tmp_path: Path) -> None:
    """A datalist that names a pair twice, and one whose file is gone."""
    record = read_muregpro(phantoms, split="val")[0]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([record, record]))
    with pytest.raises(RegZooError, match="is listed twice"):
        load_records(path, "train")
    path.write_text(json.dumps([record | {"moving_image": "gone.nii.gz"}]))
    with pytest.raises(RegZooError, match=r"gone\.nii\.gz: no such file"):
        load_records(path, "train")


def test_unknown_layouts(tmp_path: Path) -> None:
    """The line says which layouts are known."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "notes.txt").write_text("")
    for name in ("", "pictures", "notes.txt"):
        with pytest.raises(RegZooError, match=r"is in no known layout; name a datalist .*µ-RegPro folders"):
            load_records(tmp_path / name, "train")
    with pytest.raises(RegZooError, match="gone: no such data set; name a datalist"):
        load_records(tmp_path / "gone", "train")
    with pytest.raises(RegZooError, match="split 'training' is unknown; use one of train, val, test"):
        load_records(tmp_path, "training")


def test_embedded_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written once and said so, then used; other parameters or another content are not overwritten."""
    folder = tmp_path / "data" / "phantoms"
    assert embedded_phantoms(folder, **SMALL, workers=1) == folder
    assert capsys.readouterr().out == f"Writing 2 + 1 pairs of prostate phantoms to {folder}\n"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert len(load_records(embedded_phantoms(folder, **SMALL), "train")) == 2
    assert capsys.readouterr().out == f"Using the phantoms in {folder}\n"
    message = r"manifest.json: phantoms made with other parameters \(pairs 2 instead of 3\); remove the folder"
    with pytest.raises(RegZooError, match=message):
        embedded_phantoms(folder, **SMALL | {"pairs": 3})
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 0}))
    with pytest.raises(RegZooError, match="phantoms of kind 'prostate', version 0, are not what this version writes"):
        embedded_phantoms(folder, **SMALL)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(RegZooError, match="is not the manifest of a phantom set"):
        embedded_phantoms(folder, **SMALL)
    (folder / "manifest.json").unlink()
    with pytest.raises(RegZooError, match="phantoms: exists and is not empty"):
        embedded_phantoms(folder, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.gz")} == {
        path: time for path, time in before.items() if path.suffix == ".gz"
    }


def test_phantoms_that_another_process_has_just_written_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = PhantomSet.write

    def second(self: PhantomSet, folder: Path, workers: int | None = None) -> Path:
        write(self, folder, workers)
        return write(self, folder, workers)

    monkeypatch.setattr(PhantomSet, "write", second)
    assert len(load_records(embedded_phantoms(tmp_path / "set", **SMALL, workers=1), "train")) == 2


def _one_rank(rank: int, folder: str, mistake: bool) -> None:
    """A process of a distributed run; notes what it found."""
    target = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{target}/store", rank=rank, world_size=2)
    try:
        embedded_phantoms(target / "phantoms", **SMALL | ({"pairs": 9} if mistake else {}), workers=1)
        count = str(len(load_records(target / "phantoms", "train")))
    except RegZooError as error:
        count = str(error)
    (target / f"rank{rank}.txt").write_text(count)
    dist.destroy_process_group()


def test_distributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process writes, the other waits; a mistake is reported by both instead of hanging one."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    # Forked, not spawned: the children need not import everything again.
    mp.start_processes(_one_rank, (str(tmp_path), False), nprocs=2, start_method="fork")
    assert [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)] == ["2", "2"]
    assert len(list((tmp_path / "phantoms" / "train" / "ddf").iterdir())) == 2
    (tmp_path / "store").unlink(missing_ok=True)
    mp.start_processes(_one_rank, (str(tmp_path), True), nprocs=2, start_method="fork")
    for rank in range(2):
        assert "pairs 2 instead of 9" in (tmp_path / f"rank{rank}.txt").read_text()
    shutil.rmtree(tmp_path / "phantoms")
