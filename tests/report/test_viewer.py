"""The page that shows a case in a browser: what it embeds, that it needs no network, and what Chromium draws."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import make_affine
from monai.data import MetaTensor
from regzoo.errors import RegZooError
from regzoo.inference.outputs import requested_outputs
from regzoo.report import viewer
from regzoo.spatial import DisplacementField, Grid
from regzoo_tools.bundle import own_code
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

SHAPE = (40, 34, 28)
#: Axes in another order and direction than RAS, turned in all three directions.
OBLIQUE = make_affine(SHAPE, (1.2, 1.5, 2.0), (12, -9, 15), (1, 2, 0), (-1, 1, -1), (30, -20, 10))
GRIDS = {
    "RAS": make_affine(SHAPE, (1.2, 1.5, 2.0)),
    "flipped": make_affine(SHAPE, (1.2, 1.5, 2.0), (0, 0, 0), (0, 1, 2), (-1, -1, 1), (5, 6, 7)),
    "oblique": OBLIQUE,
}
RADIUS = 6.0
#: SHA-256 of dist/niivue.umd.js in the package @niivue/niivue of npm.
HASH = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"


def world(affine: np.ndarray) -> np.ndarray:
    """The position of each voxel, (X, Y, Z, 3), mm."""
    return nib.affines.apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1))


def centre_of_ball(affine: np.ndarray) -> np.ndarray:
    """A point of the world towards the right, posterior and superior of the middle of the image, mm."""
    return nib.affines.apply_affine(affine, (np.array(SHAPE) - 1) / 2) + np.array([8, -5, 6])


def case(affine: np.ndarray = OBLIQUE, **more: Any) -> dict[str, Any]:
    """Images that are ramps in the world, with a ball as label, and a field."""
    place = world(affine)
    ball = np.linalg.norm(place - centre_of_ball(affine), axis=-1) < RADIUS
    volumes = {
        "reference_image": place @ [1.0, 2.0, 3.0] + 200 * ball,
        "unregistered_image": place @ [3.0, -1.0, 1.0],
        "warped_image": place @ [1.0, 2.0, -1.0] + 500,
        "reference_label": ball,
        "unregistered_label": ball,
        "warped_label": ball,
    }
    volumes |= more
    item: dict[str, Any] = {"case": "case", "moving_label_is_map": False}
    for key, volume in volumes.items():
        if volume is not None:
            values = torch.as_tensor(np.asarray(volume), dtype=torch.float32)
            item[key] = MetaTensor(values if values.ndim == 4 else values[None], affine=affine)
    wave = 2 * np.sin(2 * np.pi * np.indices(SHAPE)[0] / SHAPE[0])[None] * np.array([0, 0, 1.0]).reshape(3, 1, 1, 1)
    item["field"] = DisplacementField(torch.from_numpy(wave), Grid(SHAPE, affine))
    return item


def content(path: Path) -> dict[str, Any]:
    """What a page shows."""
    found = re.search(r'<script type="application/json" id="case">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def decoded(text: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def at(image: nib.Nifti1Image, points: np.ndarray, order: int = 1) -> np.ndarray:
    """The values of a volume at points of the world."""
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), points)
    return map_coordinates(np.asarray(image.dataobj, dtype=float), voxels.T, order=order, mode="nearest")


@pytest.mark.parametrize("name", GRIDS)
def test_volumes_keep_their_values_and_their_place(name: str, tmp_path: Path) -> None:
    item = case(GRIDS[name])
    viewer.case_page(tmp_path / "viewer.html", item)
    page = content(tmp_path / "viewer.html")
    points = world(GRIDS[name]).reshape(-1, 3)
    for shown, key in (("fixed", "reference"), ("warped", "warped"), ("moving", "unregistered")):
        image, original = decoded(page["images"][shown]), item[f"{key}_image"][0].numpy().ravel()
        assert image.get_data_dtype() == np.uint8 and nib.aff2axcodes(image.affine) == ("R", "A", "S")
        low, high = np.percentile(item["reference_image" if shown == "fixed" else "unregistered_image"], (1, 99.5))
        step = (high - low) / 255
        assert np.abs(at(image, points) - original.clip(low, high)).max() <= 0.51 * step
    for shown, key in (("fixed", "reference"), ("warped", "warped"), ("moving", "unregistered")):
        label = decoded(page["labels"][shown])
        assert (at(label, points, 0) == item[f"{key}_label"].numpy().ravel()).all()


def test_the_deformation_is_shown_without_shift_and_turn(tmp_path: Path) -> None:
    item = case()
    start = world(OBLIQUE).reshape(-1, 3)
    turn, shift = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix(), np.array([12, -7, 30.0])
    wave = item["field"].displacement.numpy().reshape(3, -1).T
    for rest in (np.zeros_like(wave), wave):
        goal = (start + rest) @ turn.T + shift
        item["field"] = DisplacementField.from_points(torch.from_numpy(goal.T.reshape(3, *SHAPE)), Grid(SHAPE, OBLIQUE))
        viewer.case_page(tmp_path / "viewer.html", item)
        image = decoded(content(tmp_path / "viewer.html")["field"])
        assert image.shape == (*decoded(content(tmp_path / "viewer.html")["images"]["fixed"]).shape, 3)
        voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), start)
        found = np.asarray(image.dataobj)[tuple(np.rint(voxels).astype(int).T)]
        around, moved = start - start.mean(0), goal - goal.mean(0)
        best, _ = Rotation.align_vectors(moved, around)
        assert np.abs(found - (best.inv().apply(moved) - around)).max() < 1e-3


def test_a_large_volume_is_made_smaller_and_stays_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "VOXELS", 6000)
    monkeypatch.setattr(viewer, "NODES", 500)
    item = case()
    viewer.case_page(tmp_path / "viewer.html", item)
    page = content(tmp_path / "viewer.html")
    image = decoded(page["images"]["warped"])
    assert 5000 < np.prod(image.shape) <= 6000 and np.prod(decoded(page["field"]).shape) <= 1500
    spacing = nib.affines.voxel_sizes(image.affine)
    assert spacing.max() / spacing.min() < 1.2  # the finest axes lose most
    edges = [
        nib.affines.apply_affine(affine, np.array([[-0.5] * 3, np.asarray(shape) - 0.5]))
        for affine, shape in ((image.affine, image.shape), (OBLIQUE, SHAPE))
    ]
    axes = [np.sort(edge @ np.linalg.inv(OBLIQUE[:3, :3]).T, axis=0) for edge in edges]
    assert np.allclose(*axes, atol=1e-4)
    inner = world(OBLIQUE)[6:-6, 6:-6, 6:-6].reshape(-1, 3)
    low, high = np.percentile(item["unregistered_image"], (1, 99.5))
    truth = (inner @ [1.0, 2.0, -1.0] + 500).clip(low, high)
    assert np.abs(at(image, inner) - truth).max() < 0.05 * (high - low)
    centre = np.argwhere(np.asarray(decoded(page["labels"]["fixed"]).dataobj)).mean(0)
    assert np.linalg.norm(nib.affines.apply_affine(image.affine, centre) - centre_of_ball(OBLIQUE)) < 1


def test_labels_that_overlap_or_are_absent(tmp_path: Path) -> None:
    masks = np.zeros((300, *SHAPE))
    masks[0, 5:30, 5:30, 5:20], masks[298, 10:15, 10:15, 10:15], masks[299, 11:13, 11:13, 11:13] = 1, 1, 1
    none = {"unregistered_label": None, "warped_image": None}
    item = case(reference_label=masks, warped_label=masks[:1], **none) | {"labels_predicted": True}
    del item["field"]
    viewer.case_page(tmp_path / "viewer.html", item)
    page = content(tmp_path / "viewer.html")
    assert page["images"].keys() == {"fixed", "moving"} and page["field"] is None
    image = decoded(page["labels"]["fixed"])
    assert image.get_data_dtype() == np.uint16 and page["labels"].keys() == {"fixed", "warped"}
    for voxel, label in (((6, 6, 6), 1), ((10, 10, 10), 299), ((12, 12, 12), 300), ((0, 0, 0), 0)):
        assert at(image, world(OBLIQUE)[voxel][None], 0) == label
    bare = case(reference_label=None, unregistered_label=None, warped_label=None)
    bare["reference_image"][0, 3:5] = np.nan
    viewer.case_page(tmp_path / "viewer.html", bare)
    page = content(tmp_path / "viewer.html")
    assert page["labels"] == {} and page["images"].keys() == {"fixed", "warped", "moving"}
    assert page["facts"].endswith("of voxels folded")


class Loads(HTMLParser):
    """Collects the tags of a page, and the attributes that load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]


NAME = "</script><script>alert(\"1\")</script> 'a' & <b> {{case}} \u2028"


def test_the_page_loads_nothing_and_no_name_changes_it(tmp_path: Path) -> None:
    found = []
    for name in ("plain", NAME):
        viewer.case_page(tmp_path / "viewer.html", case() | {"case": name})
        reader = Loads()
        reader.feed((tmp_path / "viewer.html").read_text("utf-8"))
        assert reader.loads == [] and content(tmp_path / "viewer.html")["name"] == name
        found.append(reader.tags)
    assert found[0] == found[1] and found[0].count("script") == 2
    text = (tmp_path / "viewer.html").read_text("utf-8")
    assert "default-src 'none'" in text and "connect-src data: blob:" in text
    assert "Copyright (c) 2021, Niivue" in text  # its license asks for this


def test_niivue_is_the_release_of_npm() -> None:
    code = gzip.decompress((viewer.FILES / "niivue.umd.js.gz").read_bytes())
    assert hashlib.sha256(code).hexdigest() == HASH
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    (version,) = re.findall(r"^NIIVUE := (.+)$", makefile, re.MULTILINE)
    assert f"NiiVue {version}," in (viewer.FILES / "LICENSE.niivue.txt").read_text()
    assert f'"{version}"'.encode() in code


def test_a_packaged_bundle_says_that_it_has_no_viewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "FILES", tmp_path / "none")
    assert not [name for name in own_code() if "viewer_files" in name]
    line = "outputs: viewer is not part of a packaged bundle; pip install"
    for names in ("viewer", ["label", "viewer"]):
        with pytest.raises(RegZooError, match=line):
            requested_outputs(names)
    assert requested_outputs("label") == ["label"]


#: Uses the page as a reader does, and leaves what it finds in the page.
SCRIPT = """
const found = {};
const all = (canvas) => {
  const copy = document.createElement("canvas");
  copy.width = canvas.width; copy.height = canvas.height;
  const context = copy.getContext("2d");
  nv.drawScene();
  context.drawImage(canvas, 0, 0);
  return context.getImageData(0, 0, copy.width, copy.height);
};
const mmAt = (x, y, tile) => [...nv.frac2mm(nv.screenXY2TextureFrac(x, y, tile, false), 0, true)].slice(0, 3);
const key = (name) => window.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
const wait = () => new Promise((done) => setTimeout(done, 20));
(async () => {
  while (!document.body.dataset.ready) await wait();
  nv.opts.crosshairWidth = 0;
  nv.opts.isOrientationTextVisible = false;
  found.crosshair = [...nv.frac2mm(nv.scene.crosshairPos, 0, true)].slice(0, 3);
  found.modes = {};
  for (const [name, letter] of Object.entries({ fixed: "1", warped: "2", checkerboard: "5", blend: "6" })) {
    key(letter);
    found.modes[name] = nv.volumes[0].img.reduce((sum, value) => sum + value, 0);
  }
  key("1");
  const drawn = all(element("images"));
  found.tiles = nv.screenSlices.map(({ leftTopWidthHeight: [l, t, w, h], axCorSag }, tile) => {
    const edges = [[0, 0.5], [1, 0.5], [0.5, 1], [0.5, 0]].map(([x, y]) => mmAt(l + w * x, t + h * y, tile));
    const samples = [];
    for (let i = 1; i < 20; i++) for (let j = 1; j < 20; j++) {
      const x = Math.round(l + w * i / 20), y = Math.round(t + h * j / 20);
      samples.push([...mmAt(x + 0.5, y + 0.5, tile), drawn.data[4 * (y * drawn.width + x)]]);
    }
    return { axCorSag, edges, samples };
  });
  const image = all(element("lines"));
  found.outline = nv.screenSlices.map(({ leftTopWidthHeight: [l, t, w, h] }, tile) => {
    const points = [];
    for (let y = Math.ceil(t); y < t + h; y++) for (let x = Math.ceil(l); x < l + w; x++) {
      if (image.data[4 * (y * image.width + x) + 3] > 200) points.push(mmAt(x + 0.5, y + 0.5, tile));
    }
    return points;
  });
  key("o");
  found.withoutLines = all(element("lines")).data.filter((value) => value).length;
  key("g");
  found.grid = all(element("lines")).data.filter((value) => value).length;
  found.title = document.title;
  key("4");
  clearInterval(timer);
  found.text = document.querySelector("h1").textContent;
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
  document.body.append(result);
})();
"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(page: Path, script: str) -> tuple[dict[str, Any], str]:
    """Open a page in Chromium, run a script in it, and return what the script found and what Chromium logged."""
    text = page.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>")
    page.write_text(text, "utf-8")
    options = ["--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    options += ["--window-size=1100,600", "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    options += [f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", page.as_uri()]
    environment = os.environ | {"HOME": str(page.parent)}
    done = subprocess.run([str(CHROMIUM), *options], capture_output=True, text=True, timeout=300, env=environment)
    result = re.search(r'<pre id="found">(.*?)</pre>', done.stdout)
    assert result, done.stderr[-3000:]
    return json.loads(base64.b64decode(result[1])), done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("name", ["oblique", "flipped"])
def test_what_a_browser_shows(name: str, tmp_path: Path) -> None:
    affine = GRIDS[name]
    item = case(affine) | {"case": NAME}
    viewer.case_page(tmp_path / "viewer.html", item)
    found, log = browse(tmp_path / "viewer.html", SCRIPT)
    assert "CONSOLE" not in log  # no message, and nothing that the policy of the page had to block
    assert found["title"] == found["text"] == NAME
    ball = centre_of_ball(affine)
    assert np.linalg.norm(found["crosshair"] - ball) < 1.5  # the page opens at the label

    shown = [decoded(text) for text in content(tmp_path / "viewer.html")["images"].values()]
    fixed, warped, _ = (np.asarray(image.dataobj.get_unscaled(), dtype=float) for image in shown)
    half = (fixed.sum() + warped.sum()) / 2
    assert (found["modes"]["fixed"], found["modes"]["warped"]) == (fixed.sum(), warped.sum())
    assert abs(found["modes"]["blend"] - half) <= fixed.size / 2
    block = np.indices(fixed.shape) * nib.affines.voxel_sizes(shown[0].affine).reshape(3, 1, 1, 1) // 12
    assert found["modes"]["checkerboard"] == np.where(block.sum(0) % 2, warped, fixed).sum()

    # Every pixel shows the value of the file at its place in the world; at a step of the values, only nearly.
    low, high = np.percentile(item["reference_image"], (1, 99.5))
    file = nib.Nifti1Image(item["reference_image"][0].numpy(), affine)
    for tile in found["tiles"]:
        left, right, bottom, top = np.array(tile["edges"])
        # Patient's right on the left, anterior or superior at the top; in a sagittal slice anterior on the left.
        across, up = {0: (0, 1), 1: (0, 2), 2: (1, 2)}[tile["axCorSag"]]
        assert (left - right)[across] > 20 and (top - bottom)[up] > 20
        *places, values = np.array(tile["samples"]).T
        points = np.stack(places, axis=1)
        voxels = nib.affines.apply_affine(np.linalg.inv(affine), points)
        known = ((voxels > 0) & (voxels < np.array(SHAPE) - 1)).all(1)
        known &= np.abs(np.linalg.norm(points - ball, axis=1) - RADIUS) > 3
        expected = 255 * (at(file, points).clip(low, high) - low) / (high - low)
        assert known.sum() > 200 and values.std() > 30
        assert np.abs(values - expected)[known].max() <= 3

    for points in map(np.array, found["outline"]):
        distance = np.linalg.norm(points - ball, axis=1)
        assert len(points) > 200 and np.abs(distance - RADIUS).max() < 2
        assert np.linalg.norm(points.mean(0) - ball) < 1.4  # half a voxel
    assert found["withoutLines"] == 0 and found["grid"] > 1000
