"""The tools of ``peer_methods.py`` that are built on PyTorch; on the CPU."""

from __future__ import annotations

import tempfile

import numpy as np
import SimpleITK as sitk
from peer_tools import THREADS, Found, Meter, Method, Pair, index_matrix, xyz


def convex_adam(pair: Pair, meter: Meter) -> Found:
    """convexAdam with MIND features and its defaults; displacements in voxels of the fixed grid."""
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(THREADS)
    with meter:
        moved = xyz(pair.moved())
        voxels = convex_adam_pt(xyz(pair.fixed), moved)
    displacement = voxels.transpose(2, 1, 0, 3) @ index_matrix(pair.fixed)[:3, :3].T
    return pair.after(displacement), own_warp(pair, moved, voxels)


def own_warp(pair: Pair, moved: np.ndarray, voxels: np.ndarray) -> sitk.Image:
    """An image through a displacement in voxels (X, Y, Z, 3), by SciPy, as convexAdam applies its result."""
    from scipy.ndimage import map_coordinates

    places = np.moveaxis(voxels, -1, 0) + np.indices(moved.shape)
    own = sitk.GetImageFromArray(map_coordinates(moved, places, order=1).transpose(2, 1, 0))
    own.CopyInformation(pair.fixed)
    return own


def fire_ants(kind: str) -> Method:
    """FireANTs with cross-correlation, on the CPU."""

    def run(pair: Pair, meter: Meter) -> Found:
        import torch
        from fireants.io.image import BatchedImages, Image
        from fireants.registration.greedy import GreedyRegistration
        from fireants.registration.syn import SyNRegistration

        torch.set_num_threads(THREADS)
        with meter:
            moved = pair.moved()
            scaled = (sitk.RescaleIntensity(image, 0.0, 1.0) for image in (pair.fixed, moved))
            images = [BatchedImages([Image(image, device="cpu")]) for image in scaled]
            method = {"greedy": GreedyRegistration, "SyN": SyNRegistration}[kind](
                scales=[4, 2, 1],
                iterations=[200, 100, 50],
                fixed_images=images[0],
                moving_images=images[1],
                cc_kernel_size=5,
                optimizer_lr=0.5 if kind == "greedy" else 0.1,
            )
            method.optimize()
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            method.save_as_ants_transforms(f"{folder}/warp.nii.gz")
            displacement = sitk.GetArrayFromImage(sitk.ReadImage(f"{folder}/warp.nii.gz"))
            warped = method.evaluate(*images)[0, 0].numpy()
        low, high = (float(f(sitk.GetArrayViewFromImage(moved))) for f in (np.min, np.max))
        own = sitk.GetImageFromArray(low + (high - low) * warped)
        own.CopyInformation(pair.fixed)
        return pair.after(displacement), own

    return run
