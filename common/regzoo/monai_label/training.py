"""Where a training that MONAI Label started puts its results."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from regzoo.monai_label.studies import is_served


def training_folder(bundle_root: str | Path) -> str:
    """The output folder of a training whose user named none.

    ``output/train`` of the bundle. MONAI Label starts each training anew from some weights, so each of its trainings
    gets a folder of its own, ``output/monai_label/<time>``.
    """
    output = Path(bundle_root) / "output"
    return str(output / "monai_label" / f"{datetime.now():%Y%m%d-%H%M%S}" if is_served() else output / "train")


def served_weights(bundle_root: str | Path) -> str | None:
    """The file beside the released weights for the weights of MONAI Label's trainings; None for other trainings."""
    return str(Path(bundle_root) / "models" / "monai_label.pt") if is_served() else None
