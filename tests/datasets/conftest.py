"""A small set of phantoms that the tests of data sets share."""

from pathlib import Path

import pytest
from regzoo.datasets import write_prostate_phantoms

#: Coarse, so that a pair costs a tenth of a second.
SPACING = 2.4


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve and three pairs of prostate phantoms, read only."""
    return write_prostate_phantoms(
        tmp_path_factory.mktemp("phantoms") / "prostate", pairs=12, held_out=3, seed=5, spacing=SPACING
    )
