"""Can an intensity similarity register the phantoms? ``python benchmarks/ncc_fails.py [--dataset_dir DIR]``.

Registers MR to ultrasound of held-out phantom pairs with SimpleITK and normalised cross-correlation (NCC), rigidly and
then with B-splines, with the gland's labels, and with a bundle's network, which sees no labels of these pairs. Prints a
table and draws a figure. ITK's correlation metric is squared, so an inverted contrast does not harm it.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import SimpleITK as sitk
from regzoo.case import SIDES
from regzoo.datasets import Record, load_records
from regzoo.files import atomic_path
from regzoo.inference import Registrar
from regzoo_phantoms import write_prostate_phantoms
from scipy.ndimage import center_of_mass

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "prostate_mr_trus_weak_ddf"
#: Not the seed of the phantoms that bundles train on.
SEED = 1000
UNREGISTERED = "unregistered"
NCC_RIGID = "NCC, rigid"
NCC_BSPLINE = "NCC, rigid + B-spline"
LABELS_RIGID = "gland labels, rigid"
NCC_FROM_LABELS = "NCC, rigid, begun at\nthe labels' solution"
NETWORK = "network\n(label-driven training)"
#: Outside the fan of an ultrasound there is nothing; the fan itself is brighter than this, grey levels.
FAN = 15.0
LEVELS, SMOOTHING = [4, 2, 1], [4, 2, 1]  # shrink factors and mm


@dataclass(frozen=True)
class Pair:
    """A pair in SimpleITK, LPS mm.

    Attributes:
        record: its files.
        fixed: ultrasound.
        moving: MR.
        fixed_gland: label of the gland.
        moving_gland: label of the gland.
        landmarks: centroids in ultrasound and MR of the labels, other than the gland, that both have, (N, 2, 3).
    """

    record: Record
    fixed: sitk.Image
    moving: sitk.Image
    fixed_gland: sitk.Image
    moving_gland: sitk.Image
    landmarks: np.ndarray

    @classmethod
    def read(cls, record: Record) -> Pair:
        """Read the files of a record."""
        fixed, moving = (sitk.ReadImage(record[side.image], sitk.sitkFloat32) for side in SIDES)
        labels = [channels(str(record[side.label])) for side in SIDES]
        both = [pair for pair in zip(*labels, strict=True) if all(_voxels(label).any() for label in pair)]
        landmarks = [[centroid(label) for label in pair] for pair in both[1:]]
        return cls(record, fixed, moving, labels[0][0], labels[1][0], np.array(landmarks))

    def tre(self, transform: sitk.Transform) -> float:
        """Root mean square distance of the landmarks, in the MR, under a transformation from ultrasound to MR, mm."""
        there = np.array([transform.TransformPoint(point.tolist()) for point in self.landmarks[:, 0]])
        return float(np.sqrt(np.square(there - self.landmarks[:, 1]).sum(axis=1).mean()))

    def gland_dsc(self, transform: sitk.Transform) -> float:
        """Overlap of the glands in the ultrasound."""
        warped = sitk.Resample(self.moving_gland, self.fixed_gland, transform, sitk.sitkNearestNeighbor)
        a, b = _voxels(warped) > 0, _voxels(self.fixed_gland) > 0
        return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def channels(path: str) -> list[sitk.Image]:
    """The labels of a 4-D file."""
    image = sitk.ReadImage(path)
    extract = sitk.ExtractImageFilter()
    extract.SetSize([*image.GetSize()[:3], 0])
    extract.SetDirectionCollapseToStrategy(extract.DIRECTIONCOLLAPSETOSUBMATRIX)
    found = []
    for index in range(image.GetSize()[3]):
        extract.SetIndex([0, 0, 0, index])
        found.append(extract.Execute(image))
    return found


def centroid(label: sitk.Image) -> np.ndarray:
    """Centre of mass of a label, LPS mm."""
    index = center_of_mass(_voxels(label))[::-1]
    return np.array(label.TransformContinuousIndexToPhysicalPoint([float(i) for i in index]))


def _voxels(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayViewFromImage(image)


def rigid(fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform, metric: str) -> sitk.Transform:
    """Register rigidly from a start, by NCC over the fan or by the mean squares of smoothed labels."""
    method = sitk.ImageRegistrationMethod()
    _set_metric(method, metric, fixed)
    method.SetInitialTransform(sitk.Euler3DTransform(start), inPlace=False)
    method.SetOptimizerAsRegularStepGradientDescent(learningRate=1.0, minStep=0.02, numberOfIterations=100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(LEVELS)
    method.SetSmoothingSigmasPerLevel(SMOOTHING)
    return method.Execute(fixed, moving)


def bspline(fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform) -> sitk.Transform:
    """Register with B-splines by NCC, after a rigid transformation."""
    method = sitk.ImageRegistrationMethod()
    _set_metric(method, "ncc", fixed)
    method.SetMovingInitialTransform(start)
    splines = sitk.BSplineTransformInitializer(fixed, [3, 3, 3])
    method.SetInitialTransform(splines, inPlace=False)
    method.SetOptimizerAsLBFGSB(numberOfIterations=15)
    method.SetShrinkFactorsPerLevel(LEVELS[1:])
    method.SetSmoothingSigmasPerLevel(SMOOTHING[1:])
    return sitk.CompositeTransform([start, method.Execute(fixed, moving)])


def _set_metric(method: sitk.ImageRegistrationMethod, metric: str, fixed: sitk.Image) -> None:
    if metric == "ncc":
        method.SetMetricAsCorrelation()
        method.SetMetricFixedMask(sitk.BinaryMorphologicalClosing(fixed > FAN, [3, 3, 3]))
    else:
        method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)


def from_labels(pair: Pair) -> sitk.Transform:
    """Register rigidly by the glands: what somebody who has both labels would do."""
    start = sitk.Euler3DTransform()
    start.SetCenter(centroid(pair.fixed_gland).tolist())
    start.SetTranslation((centroid(pair.moving_gland) - centroid(pair.fixed_gland)).tolist())
    fixed, moving = (
        sitk.SmoothingRecursiveGaussian(sitk.Cast(label, sitk.sitkFloat32) * 100, 2.0)
        for label in (pair.fixed_gland, pair.moving_gland)
    )
    return rigid(fixed, moving, start, "squares")


def network_transform(registrar: Registrar, record: Record) -> sitk.Transform:
    """What a bundle's network finds for the images, through the file that it writes for ITK."""
    result = registrar.register(record["fixed_image"], record["moving_image"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "field.nii.gz"
        result.field.save(path)
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


def register_all(pair: Pair, registrar: Registrar | None) -> dict[str, sitk.Transform]:
    """The transformations from ultrasound to MR that each way finds."""
    start = sitk.Euler3DTransform()
    middle = [(n - 1) / 2 for n in pair.fixed.GetSize()]
    start.SetCenter(pair.fixed.TransformContinuousIndexToPhysicalPoint(middle))
    ncc = rigid(pair.fixed, pair.moving, start, "ncc")
    labels = from_labels(pair)
    found = {
        UNREGISTERED: sitk.Transform(3, sitk.sitkIdentity),
        NCC_RIGID: ncc,
        NCC_BSPLINE: bspline(pair.fixed, pair.moving, ncc),
        LABELS_RIGID: labels,
        NCC_FROM_LABELS: rigid(pair.fixed, pair.moving, _as_euler(labels), "ncc"),
    }
    if registrar is not None:
        found[NETWORK] = network_transform(registrar, pair.record)
    return found


def _as_euler(transform: sitk.Transform) -> sitk.Euler3DTransform:
    """The rigid transformation inside what a registration returns."""
    inner = transform.GetNthTransform(0) if isinstance(transform, sitk.CompositeTransform) else transform
    return sitk.Euler3DTransform(inner)


def compare(records: Sequence[Record], registrar: Registrar | None) -> dict[str, np.ndarray]:
    """TRE in mm and gland DSC of each way and pair, (pairs, 2)."""
    figures: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        pair = Pair.read(record)
        for way, transform in register_all(pair, registrar).items():
            figures.setdefault(way, []).append((pair.tre(transform), pair.gland_dsc(transform)))
        line = ", ".join(f"{' '.join(way.split())} {values[-1][0]:.1f}" for way, values in figures.items())
        print(f"{record['case']}: TRE in mm: {line}", flush=True)
    return {way: np.array(values) for way, values in figures.items()}


def table(figures: dict[str, np.ndarray]) -> str:
    """Medians and ranges as a Markdown table."""
    lines = ["| registration | median TRE, mm | range | better than unregistered | median gland DSC |"]
    lines.append("|---|--:|--:|--:|--:|")
    before = figures[UNREGISTERED][:, 0]
    for way, values in figures.items():
        tre, dsc = values.T
        better = "" if way == UNREGISTERED else f"{int((tre < before).sum())} of {len(tre)}"
        name = " ".join(way.split())
        lines.append(
            f"| {name} | {np.median(tre):.1f} | {tre.min():.1f} – {tre.max():.1f} | {better} | {np.median(dsc):.2f} |"
        )
    return "\n".join(lines)


def draw(figures: dict[str, np.ndarray], path: Path) -> None:
    """Box plots of TRE and DSC with a line for each pair."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    panels: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
        ("landmark TRE, mm (lower is better)", lambda values: values[:, 0]),
        ("gland DSC (higher is better)", lambda values: values[:, 1]),
    ]
    for axis, (title, column) in zip(axes, panels, strict=True):
        values = np.array([column(figure_values) for figure_values in figures.values()])
        places = np.arange(1, len(values) + 1)
        axis.plot(places, values, color="0.75", linewidth=0.8, zorder=1)
        axis.boxplot(values.T, positions=places, widths=0.5, showfliers=False, medianprops={"color": "tab:red"})
        for place, row in zip(places, values, strict=True):
            axis.scatter(np.full(len(row), place), row, s=14, color="tab:blue", zorder=3)
        axis.set_xticks(places, list(figures), rotation=25, ha="right", fontsize=9)
        axis.set_title(title, fontsize=11)
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


@contextlib.contextmanager
def held_out_pairs(dataset_dir: str, count: int, spacing: float) -> Iterator[list[Record]]:
    """Held-out pairs of a data set, or phantoms that are written for the occasion."""
    if dataset_dir:
        yield load_records(dataset_dir, "val")[:count]
        return
    with tempfile.TemporaryDirectory() as folder:
        root = write_prostate_phantoms(
            Path(folder) / "phantoms", pairs=1, held_out=count, seed=SEED, spacing=spacing, workers=1
        )
        yield load_records(root, "val")


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", default="", help="phantoms; by default some are written to a temporary folder")
    parser.add_argument("--pairs", type=int, default=8, help="number of held-out pairs")
    parser.add_argument("--spacing", type=float, default=1.6, help="of the phantoms that are written, mm")
    parser.add_argument("--bundle", default=str(BUNDLE), help="whose network to compare with")
    parser.add_argument("--threads", type=int, default=2, help="of ITK")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "images" / "ncc_fails.png")
    options = parser.parse_args(arguments)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(options.threads)
    registrar = None
    if (Path(options.bundle) / "models" / "model.pt").is_file():
        registrar = Registrar(options.bundle)
    else:
        print(f"{options.bundle} has no weights (models/model.pt): the network is left out")
    with held_out_pairs(options.dataset_dir, options.pairs, options.spacing) as records:
        figures = compare(records, registrar)
    print("\n" + table(figures))
    draw(figures, options.figure)
    print(f"\nfigure: {options.figure}")


if __name__ == "__main__":
    main()
