"""A MONAI Label server on all bundles. Without MONAI Label nothing here is imported, and all tests are skipped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

if TYPE_CHECKING:
    from label_server import LabelServer
    from label_studies import Studies


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Studies:
    from bundle_list import NAMES, kind
    from label_studies import Studies

    phantoms = {anatomy: request.getfixturevalue(f"{anatomy}_phantoms") for anatomy in sorted(set(map(kind, NAMES)))}
    return Studies(tmp_path_factory.mktemp("label"), phantoms)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, studies: Studies) -> Iterator[LabelServer]:
    """The server, on all bundles."""
    from label_server import LabelServer
    from label_studies import ENVIRONMENT, fingerprints

    with LabelServer(tmp_path_factory.mktemp("server"), studies.folder, environment=ENVIRONMENT) as started:
        bundles = fingerprints(started.models)
        yield started
        assert fingerprints(started.models) == bundles


@pytest.fixture
def untouched(server: LabelServer, studies: Studies) -> Iterator[None]:
    """Holds that a test leaves the studies, what lies beside them and temporary files as they were."""
    from label_studies import fingerprints
    from regzoo.monai_label.files import DATASTORE

    def found() -> dict[str, str]:
        files = fingerprints(studies.folder, studies.outside, server.temporary)
        # MONAI Label writes its list of the files when it hears of them, which may be during a later test.
        return {path: content for path, content in files.items() if Path(path).name != DATASTORE}

    end = time.monotonic() + 5  # the server removes an answer's file after it was sent, also that of the test before
    while any(server.temporary.glob("tmp*.nii*")) and time.monotonic() < end:
        time.sleep(0.1)
    before = found()
    yield
    end = time.monotonic() + 5
    while (after := found()) != before and time.monotonic() < end:
        time.sleep(0.1)
    assert after == before
