"""Shared by all tests; its presence also puts this folder on the path, so that `helpers` can be imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bundle_list import kind

# Before PyTorch is imported: test workers share the cores, so each takes its part and lets idle threads sleep.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))


@pytest.fixture(scope="session")
def prostate_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 8 + 4 coarse MR–TRUS phantoms in the µ-RegPro layout."""
    from regzoo_phantoms import ProstatePhantoms

    return ProstatePhantoms(pairs=8, held_out=4, seed=3, spacing=4.0).write(
        tmp_path_factory.mktemp("phantoms") / "prostate", workers=1
    )


@pytest.fixture(scope="session")
def abdomen_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 8 + 4 coarse CT phantoms in the layout of Learn2Reg's AbdomenCTCT."""
    from regzoo_phantoms import AbdomenPhantoms

    return AbdomenPhantoms(cases=8, held_out=4, seed=3, spacing=8.0).write(
        tmp_path_factory.mktemp("phantoms") / "abdomen", workers=1
    )


@pytest.fixture(scope="session")
def brain_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 8 + 4 coarse brain phantoms in the layout of IXI."""
    from regzoo_phantoms import BrainPhantoms

    return BrainPhantoms(cases=8, held_out=4, seed=3, spacing=6.0).write(
        tmp_path_factory.mktemp("phantoms") / "brain", workers=1
    )


@pytest.fixture(scope="session")
def hippocampus_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 8 + 4 coarse phantoms of the hippocampus in the layout of Learn2Reg's HippocampusMR."""
    from regzoo_phantoms import HippocampusPhantoms

    return HippocampusPhantoms(cases=8, held_out=4, seed=3, spacing=2.0).write(
        tmp_path_factory.mktemp("phantoms") / "hippocampus", workers=1
    )


@pytest.fixture
def dataset(bundle: str | Path, request: pytest.FixtureRequest) -> Path:
    """What the bundle, a parameter of the test by name or folder, trains on."""
    return request.getfixturevalue(f"{kind(bundle)}_phantoms")


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve and three pairs of prostate phantoms, read only; so coarse that a pair costs a tenth of a second."""
    from regzoo_phantoms import ProstatePhantoms

    return ProstatePhantoms(pairs=12, held_out=3, seed=5, spacing=2.4).write(
        tmp_path_factory.mktemp("phantoms") / "prostate"
    )
