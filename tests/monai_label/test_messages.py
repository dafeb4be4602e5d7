"""Messages to a client show no folder of the server."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from regzoo.monai_label.files import without_folders


def test_files_of_the_studies_keep_their_path_within_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, link = tmp_path / "the studies", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    for named in (folder, link):
        monkeypatch.setenv("MONAI_LABEL_STUDIES", str(named))
        for seen in (named, folder):
            message = f"{seen}/more/a b.nii.gz: is flat; its label is {seen}/c.nii"
            assert without_folders(message) == "more/a b.nii.gz: is flat; its label is c.nii"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/etc/passwd leads outside", "passwd leads outside"),
        ("model '/srv/app/model/m.pt': no", "model 'm.pt': no"),
        ("24/7, 1/2 mm and more/mr.nii", "24/7, 1/2 mm and more/mr.nii"),
        ("lists GET /datastore/ shows", "lists GET /datastore/ shows"),
        ("../a and ~/b", "../a and ~/b"),
    ],
)
def test_other_paths_are_shown_by_their_names(message: str, shown: str) -> None:
    assert without_folders(message) == shown


def test_an_uploaded_image_has_no_name() -> None:
    path = str(Path(tempfile.gettempdir()) / "tmpab12_x.nii.gz")
    for text in (path, "tmpab12_x.nii.gz", "tmpab12_x"):
        assert without_folders(f"{text}: is flat", path) == "the file sent with the request: is flat"
