"""Summaries and CSV tables, through a real evaluator."""

from __future__ import annotations

import csv
import math
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from ignite import distributed as idist
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.handlers import IgniteMetricHandler, from_engine
from regzoo.errors import RegZooError
from regzoo.metrics import FoldedVoxels, LabelDice, TargetRegistrationError
from regzoo.report import CaseTable, LabelTable, percentile_summary
from regzoo.report.tables import summary_text

SHAPE = (16, 14, 12)
SPACING = (1.0, 2.0, 0.5)


def box(start: tuple[int, int, int], size: tuple[int, int, int]) -> torch.Tensor:
    mask = torch.zeros(SHAPE)
    mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = 1
    return mask


def record(number: int) -> dict[str, Any]:
    """A case whose landmark lies `number` + 1 voxels off along X before, and half of that in mm along Z after."""
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    gland = box((2, 2, 2), (8, 8, 8))
    empty = torch.zeros(SHAPE)
    shift = number + 1
    labels = {
        "reference_label": [gland, box((2, 4, 4), (2, 2, 2)), empty],
        "unregistered_label": [box((4, 2, 2), (8, 8, 8)), box((2 + shift, 4, 4), (2, 2, 2)), empty],
        "warped_label": [gland, box((2, 4, 4 + shift), (2, 2, 2)), empty],
    }
    item: dict[str, Any] = {k: MetaTensor(torch.stack(v), affine=affine) for k, v in labels.items()}
    x = torch.arange(float(SHAPE[0])).view(-1, 1, 1).expand(SHAPE)
    ddf = torch.stack([-2 * x * (number == 1), 0 * x, 0 * x])  # case 1 is mirrored
    names = ["gland", "cyst", "apex"]
    return item | {"image": torch.zeros(1, *SHAPE), "ddf": ddf, "case": f"case{number:06d}", "label_names": names}


def metric(cls: Any, keys: list[str]) -> IgniteMetricHandler:
    return IgniteMetricHandler(cls(), output_transform=from_engine(keys), save_details=True)


def evaluate(records: list[dict[str, Any]], folder: Path, decollate: bool = True) -> None:
    def forward(engine: Any, batch: dict[str, Any]) -> dict[str, Any]:
        keys = ("reference_label", "unregistered_label", "warped_label", "ddf")
        engine.state.output = {key: batch[key] for key in keys}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(records), batch_size=2),
        network=torch.nn.Identity(),
        iteration_update=forward,
        key_val_metric={"tre": metric(TargetRegistrationError, ["warped_label", "reference_label"])},
        additional_metrics={
            "dice": metric(LabelDice, ["warped_label", "reference_label"]),
            "folds": metric(FoldedVoxels, ["ddf", "reference_label"]),
            "before_tre": metric(TargetRegistrationError, ["unregistered_label", "reference_label"]),
            "before_dice": metric(LabelDice, ["unregistered_label", "reference_label"]),
        },
        val_handlers=[CaseTable(folder), LabelTable(folder)],
        decollate=decollate,
    )
    evaluator.run()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_percentile_summary_matches_numpy() -> None:
    values = np.random.default_rng(0).gamma(3, size=37)
    found = percentile_summary([*values, float("nan")])
    assert found["n"] == 37
    assert found["missing"] == 1
    for name, q in {"p10": 10, "p25": 25, "median": 50, "p75": 75, "p90": 90}.items():
        assert found[name] == pytest.approx(np.percentile(values, q))
    assert found["mean"] == pytest.approx(values.mean())
    assert found["std"] == pytest.approx(torch.from_numpy(values).std().item())


def test_percentile_summary_of_little() -> None:
    one = percentile_summary([4.0])
    assert one["median"] == one["p10"] == one["mean"] == 4
    assert math.isnan(one["std"])
    none = percentile_summary([float("nan")])
    assert (none["n"], none["missing"]) == (0, 1)
    assert math.isnan(none["median"])
    assert none.keys() == one.keys()


@pytest.mark.parametrize("decollate", [True, False])
def test_case_and_summary_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], decollate: bool) -> None:
    evaluate([record(i) for i in range(3)], tmp_path / "report", decollate=decollate)
    cases = rows(tmp_path / "report" / "cases.csv")
    assert [c["case"] for c in cases] == ["case000000", "case000001", "case000002"]
    for number, case in enumerate(cases):
        assert float(case["before_tre"]) == pytest.approx((number + 1) * SPACING[0])
        assert float(case["tre"]) == pytest.approx((number + 1) * SPACING[2])
        assert float(case["dice"]) == 1
        assert float(case["before_dice"]) == pytest.approx(0.75)  # 6 of 8 planes of the box overlap
        assert float(case["folds"]) == (100 if number == 1 else 0)
    summary = {row["metric"]: row for row in rows(tmp_path / "report" / "summary.csv")}
    assert set(summary) == {"tre", "dice", "folds", "before_tre", "before_dice"}
    assert summary["before_tre"]["n"] == "3"
    assert float(summary["before_tre"]["median"]) == 2
    assert float(summary["before_tre"]["p25"]) == 1.5
    assert float(summary["tre"]["std"]) == pytest.approx(0.5)
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("tre"))
    before = ["2.000", "1.200", "1.500", "2.500", "2.800"]
    after = ["1.000", "0.600", "0.750", "1.250", "1.400"]
    assert line.split() == ["tre", *before, *after]
    assert "unregistered" in shown
    assert "before_tre" not in shown
    assert not list(tmp_path.glob("**/.partial*"))


def test_label_table(tmp_path: Path) -> None:
    lost = record(0)
    lost["warped_label"][1] = 0
    lost["case"] = "lost"
    evaluate([record(0), lost, record(2)], tmp_path)
    table = rows(tmp_path / "labels.csv")
    # The third label is empty everywhere and has no row.
    assert [(r["case"], r["label"], r["name"]) for r in table] == [
        (case, str(label), name)
        for case in ("case000000", "lost", "case000002")
        for label, name in enumerate(["gland", "cyst"])
    ]
    gland, cyst = table[4], table[5]
    assert float(gland["distance_before_mm"]) == pytest.approx(2)
    assert float(gland["distance_after_mm"]) == 0
    assert float(gland["dsc_before"]) == pytest.approx(0.75)
    assert float(gland["volume_fixed_ml"]) == pytest.approx(8**3 / 1000)  # voxels of 1 mm³
    assert float(cyst["distance_before_mm"]) == pytest.approx(3)
    assert float(cyst["distance_after_mm"]) == pytest.approx(1.5)
    assert float(cyst["dsc_after"]) == 0
    assert table[3]["distance_after_mm"] == ""  # warped out of the image
    assert float(table[3]["distance_before_mm"]) == pytest.approx(1)
    assert float(table[3]["volume_after_ml"]) == 0


def test_label_rows_without_names_and_without_the_unregistered_label(tmp_path: Path) -> None:
    item = record(1)
    del item["label_names"], item["unregistered_label"]
    found = LabelTable(tmp_path).rows(item)
    assert [row[1] for row in found] == ["label 0 (from 0)", "label 1 (from 0)"]
    # Labels of maps are called by their values, as by `regzoo register`.
    assert [row[1] for row in LabelTable(tmp_path).rows(item | {"label_values": [3, 6, 7]})] == ["label 3", "label 6"]
    assert math.isnan(found[1][2])
    assert found[1][3] == pytest.approx(1)


def test_values_missing_everywhere_and_unusual_case_names(tmp_path: Path) -> None:
    nothing = record(0)
    nothing["reference_label"] = nothing["reference_label"] * 0
    nothing["case"] = 'odd, "name"'
    evaluate([nothing], tmp_path)
    (case,) = rows(tmp_path / "cases.csv")
    assert case["case"] == 'odd, "name"'
    assert case["tre"] == case["dice"] == ""
    assert rows(tmp_path / "labels.csv") == []
    summary = {row["metric"]: row for row in rows(tmp_path / "summary.csv")}
    assert (summary["tre"]["n"], summary["tre"]["missing"], summary["tre"]["median"]) == ("0", "1", "")


def test_printed_table_without_unregistered_metrics() -> None:
    text = summary_text({"tre": percentile_summary([1.0, 3.0])}, cases=2)
    assert "registered" not in text
    lines = text.splitlines()
    assert lines[0].startswith("2 cases")
    assert lines[-1].split() == ["tre", "2.000", "1.200", "1.500", "2.500", "2.800"]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RegZooError, match="cannot write here"):
        evaluate([record(0)], tmp_path / "file")


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2"
    )
    torch.set_num_threads(1)
    idist.initialize("gloo")
    # Three cases on two ranks: the last is repeated to fill up, as a DistributedSampler does.
    evaluate([record(i) for i in ((0, 1), (2, 0))[rank]], Path(folder))
    idist.finalize()


@pytest.mark.slow
def test_two_processes_write_one_table(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, args=(port, str(tmp_path)), nprocs=2)
    cases = rows(tmp_path / "cases.csv")
    assert [(c["case"], float(c["before_tre"])) for c in cases] == [
        ("case000000", 1.0),
        ("case000001", 2.0),
        ("case000002", 3.0),
    ]
    assert [r["case"] for r in rows(tmp_path / "labels.csv")] == [f"case00000{i}" for i in range(3) for _ in range(2)]
    assert rows(tmp_path / "summary.csv")[0]["n"] == "3"
