"""The measurement of a request's time; what it is to come to is for a machine that has nothing else to do."""

from __future__ import annotations

import pytest

pytest.importorskip("monailabel", reason="run by `make test-label`, in an environment of its own")

from bundle_list import NAMES
from monai_label_request import main


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--shape", "40", "36", "32", "--rounds", "1"])
    heading, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "difference, s" in heading
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0].strip("`") for row in cells] == [name for name in NAMES for _ in range(2)]
    for _, labels, request, network, difference, verdict in cells:
        assert int(labels) >= 1 and 0 <= float(network) < float(request)
        assert float(difference) == pytest.approx(float(request) - float(network), abs=0.011)
        assert verdict == ("met" if float(difference) <= 1.5 else "missed")
    assert [int(row[1]) for row in cells[::2]] == [1] * len(NAMES) and all(int(row[1]) > 1 for row in cells[1::2])
