"""Registration tools of others as a step of a bundle's evaluation, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from monai.transforms import MapTransform
from regzoo.case import SIDES, Case, Key
from regzoo.errors import RegZooError
from regzoo.files import write_json
from regzoo.spatial import DisplacementField, Grid, as_tensor, write_nifti
from regzoo.transforms.load import aligned
from regzoo.transforms.refine import scaled
from regzoo_tools.study.measuring import UNTIMED


class ToolPaird(MapTransform):
    """Register a pair by another program, from where the bundle's pre-alignment leaves it.

    Takes the place of `RefinePaird`; docs/studies.md says what the program is given and has to write. Only the
    ``seconds`` that it reports count in the runtime of the case.

    Args:
        command: the program and its first arguments.
        window: intensities that are mapped to 0 and 1; by default quantiles of each image.
        kind: of the images, for programs that want to know: ``mr``, ``ct`` or ``other``.

    Raises:
        RegZooError: the program fails, or does not write its two files.
    """

    def __init__(self, command: Sequence[str], window: Sequence[float] | None = None, kind: str = "other") -> None:
        super().__init__([Key.PRED])
        self.command, self.kind = list(command), kind
        self.window = None if window is None else (float(window[0]), float(window[1]))

    def __call__(self, data: Case) -> Case:
        item: Any = data.copy()
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            pair, out = Path(name, "pair"), Path(name, "out")
            pair.mkdir()
            out.mkdir()
            for side in SIDES:
                image = data[side.native_image]
                values = scaled(as_tensor(image).float(), self.window)[0].cpu().numpy()
                placed = image if side is SIDES[0] else aligned(data, image)
                write_nifti(pair / f"{side.name}.nii.gz", values, Grid.of(placed).affine)
            write_json(pair / "pair.json", {"aligned": True, "kind": self.kind})
            ended = subprocess.run([*self.command, str(pair), str(out)], capture_output=True, text=True)
            if ended.returncode:
                said = (ended.stderr or ended.stdout).strip().rpartition("\n")[2]
                problem = f"ended with status {ended.returncode} on {data[Key.CASE]}: {said}"
                raise RegZooError(f"{self.command[0]}: {problem}")
            try:
                seconds = float(json.loads((out / "run.json").read_text(encoding="utf-8-sig"))["seconds"])
            except (OSError, ValueError, KeyError) as error:
                problem = f"wrote no run.json with its seconds for {data[Key.CASE]} ({error})"
                raise RegZooError(f"{self.command[0]}: {problem}; see docs/studies.md") from error
            field = DisplacementField.load(out / "field.nii.gz")
        item[Key.PRED], item[Key.PRED_GRID] = as_tensor(field.ddf()).to(as_tensor(data[Key.PRED]).device), field.grid
        item[UNTIMED] = time.monotonic() - start - seconds
        return cast(Case, item)
