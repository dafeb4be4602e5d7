"""Draw `images/architecture.svg`: the packages, and the path of a pair through them in training and in inference."""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1040, 690
INK, GREY = "#1f2933", "#6b7785"
TRAIN, INFER, BOTH, DOOR, ASIDE = "#fde8c8", "#cfe6f7", "#e9edf1", "#ffffff", "#f3e8f7"
TRAIN_LINE, INFER_LINE = "#b96a00", "#12629c"

#: By name: x, y, width, height, colour and lines of text.
BOXES: dict[str, tuple[int, int, int, int, str, list[str]]] = {
    "regzoo": (30, 20, 225, 54, DOOR, ["the command (cli)"]),
    "Registrar": (275, 20, 225, 54, DOOR, ["Python"]),
    "monai.bundle run": (520, 20, 250, 54, DOOR, ["training, evaluation, batches"]),
    "MONAI Label server": (790, 20, 220, 54, DOOR, ["HTTP, 3D Slicer"]),
    "bundles/NAME/configs": (
        *(30, 112, 980, 54, DOOR),
        ["train.json, evaluate.json, inference.json and variants: they name every part below and set its options"],
    ),
    "datasets": (30, 244, 140, 84, BOTH, ["a record:", "paths and facts"]),
    "transforms": (210, 244, 160, 84, BOTH, ["a case: tensors", "on the network’s grid"]),
    "networks": (590, 244, 150, 84, BOTH, ["a DDF, in voxels of", "the network’s grid"]),
    "inference": (790, 232, 220, 48, INFER, ["a field in mm; files"]),
    "monai_label": (790, 302, 220, 48, INFER, ["requests, studies, answers"]),
    "export": (30, 384, 220, 64, INFER, ["runs a network from a file:", "TorchScript, ONNX, TensorRT"]),
    "samplers": (320, 384, 140, 64, TRAIN, ["pairs, then labels"]),
    "augmentation": (480, 384, 130, 64, TRAIN, ["on the device"]),
    "refinement": (30, 466, 220, 50, INFER, ["optimises one pair"]),
    "losses": (650, 384, 120, 64, TRAIN, ["labels, images,", "deformation"]),
    "engines": (810, 384, 200, 64, TRAIN, ["checkpoints, schedules,", "logs, records"]),
    "metrics": (630, 466, 140, 50, TRAIN, ["one value per case"]),
    "report": (810, 466, 200, 50, TRAIN, ["tables and pictures"]),
    "spatial, filters, files, errors, ownership, bundles, case, startup": (
        *(30, 536, 980, 50, BOTH),
        ["grids, frames and fields; filters; safe reading and writing. They use no room above them."],
    ),
    "regzoo_phantoms": (30, 624, 400, 52, ASIDE, ["data sets with known truth, where no data set is named"]),
    "regzoo_tools": (
        450,
        624,
        560,
        52,
        ASIDE,
        ["all other commands: export, verify, package, publish, check, datalist, curves, …"],
    ),
}


def box(name: str) -> str:
    """A rounded box with its name and what it does."""
    x, y, width, height, fill, shown = BOXES[name]
    top = y + height / 2 - 8 * len(shown) + 5
    texts = [f'<text x="{x + width / 2}" y="{top}" class="name">{escape(name)}</text>']
    for number, line in enumerate(shown, 1):
        texts.append(f'<text x="{x + width / 2}" y="{top + 17 * number}" class="note">{escape(line)}</text>')
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{INK}"/>'
    return shape + "".join(texts)


def arrow(points: str, colour: str) -> str:
    """A line through points, with a head at its end."""
    head = "train" if colour == TRAIN_LINE else "infer" if colour == INFER_LINE else "grey"
    return f'<path d="M{points}" fill="none" stroke="{colour}" stroke-width="2.5" marker-end="url(#{head})"/>'


def label(x: float, y: float, text: str, colour: str) -> str:
    """A line of text beside an arrow."""
    return f'<text x="{x}" y="{y}" class="way" style="fill:{colour}">{escape(text)}</text>'


def drawing() -> str:
    """The whole picture."""
    markers = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
        for name, colour in (("train", TRAIN_LINE), ("infer", INFER_LINE), ("grey", GREY))
    )
    style = (
        f"text{{font-family:Helvetica,Arial,sans-serif;fill:{INK};text-anchor:middle}}"
        ".name{font-size:15px;font-weight:bold}.note{font-size:12.5px}"
        ".way{font-size:13px;font-style:italic;text-anchor:start}"
    )
    frame = (
        f'<rect x="14" y="204" width="1012" height="398" rx="12" fill="none" stroke="{GREY}" stroke-dasharray="6 5"/>'
    )
    ways = [
        *(arrow(f"{x} 74V110", GREY) for x in (142, 387, 645, 900)),
        arrow("520 166V202", GREY),
        arrow("170 268H208", INFER_LINE),
        arrow("370 268H588", INFER_LINE),
        arrow("740 268H765V256H788", INFER_LINE),
        arrow("900 280V300", INFER_LINE),
        label(410, 260, "inference: a single pair", INFER_LINE),
        arrow("170 306H208", TRAIN_LINE),
        arrow("370 306H390V382", TRAIN_LINE),
        arrow("460 416H478", TRAIN_LINE),
        arrow("545 384V306H588", TRAIN_LINE),
        arrow("710 328V382", TRAIN_LINE),
        arrow("770 416H808", TRAIN_LINE),
        arrow("620 328V491H628", TRAIN_LINE),
        arrow("770 491H808", TRAIN_LINE),
        label(398, 345, "training: a batch", TRAIN_LINE),
        label(545, 486, "evaluation", TRAIN_LINE),
        label(30, 226, "regzoo: the package that travels in a zip", GREY),
    ]
    body = [frame, *ways, *map(box, BOXES)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f"<style>{style}</style><defs>{markers}</defs>"
        f'<rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>\n'
    )


if __name__ == "__main__":
    target = Path(__file__).parent / "images" / "architecture.svg"
    target.write_text(drawing().replace("><", ">\n<"), encoding="utf-8")
