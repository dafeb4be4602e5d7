"""A contact sheet: the pictures of many cases in one."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from regzoo.files import atomic_path

#: Pictures in a row, and the width of each in pixels.
ACROSS, WIDTH = 3, 640


def contact_sheet(path: str | PathLike[str], pictures: Sequence[Path]) -> None:
    """Write pictures, made smaller, row by row into one PNG file.

    Args:
        pictures: at least one, such as those of `regzoo.report.case_figure`.
    """
    from PIL import Image

    tiles = []
    for file in pictures:
        with Image.open(file) as picture:
            tiles.append(picture.convert("RGB").resize((WIDTH, round(picture.height * WIDTH / picture.width))))
    rows = [tiles[start : start + ACROSS] for start in range(0, len(tiles), ACROSS)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (WIDTH * len(rows[0]), sum(heights)), tiles[0].getpixel((0, 0)))
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * WIDTH, sum(heights[:number])))
    with atomic_path(path) as temporary:
        sheet.save(temporary)
