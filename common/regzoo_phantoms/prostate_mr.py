"""T2-weighted MR of a prostate."""

from __future__ import annotations

import numpy as np
from regzoo_phantoms.fields import SmoothField
from regzoo_phantoms.scene import Scene, cover, paint, rim

#: Brightness of tissues in T2-weighted MR, 1 = fluid.
MR_TISSUE = {
    "muscle": 0.3,
    "fat": 0.68,
    "obturator": 0.2,
    "marrow": 0.5,
    "cortex": 0.06,
    "fluid": 0.95,
    "wall": 0.3,
    "gas": 0.06,
    "stool": 0.4,
    "peripheral_zone": 0.7,
    "transition_zone": 0.42,
    "capsule": 0.16,
    "urethra": 0.8,
    "vesicle": 0.75,
    "cyst": 1.0,
    "calcification": 0.05,
}


def mr_image(scene: Scene, slices: int, rng: np.random.Generator) -> np.ndarray:
    """An MR image with bias field and Rician noise, int16, shape (X, Y, Z / slices).

    Args:
        scene: the patient, at `slices` points along the last axis of every slice.
        slices: how many neighbouring points one slice averages; slices have no gaps.
    """
    image = _tissues(scene, rng)
    bias = SmoothField.random(rng, length=45, components=1, terms=6).scaled(rng.uniform(0.08, 0.2))(scene.points)[0]
    image = np.clip(image, 0, None) ** np.float32(rng.uniform(0.8, 1.25)) * np.exp(bias)
    image = image.reshape(*image.shape[:2], -1, slices).mean(axis=-1)
    noise = np.float32(rng.uniform(0.02, 0.045))
    real = image + noise * rng.standard_normal(image.shape, np.float32)
    imaginary = noise * rng.standard_normal(image.shape, np.float32)
    scale = np.float32(rng.uniform(500, 1100))
    return np.clip(np.rint(scale * np.hypot(real, imaginary)), 0, 32767).astype(np.int16)


def _tissues(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Brightness of the tissues, without bias and noise."""
    tissue = {name: value * rng.normal(1, 0.08) for name, value in MR_TISSUE.items()}
    image = _background(scene, tissue, rng)
    inner, found, blur = image[scene.box], scene.distances, scene.blur
    texture = SmoothField.random(rng, length=2.6, components=2, terms=20)(scene.body[(slice(None), *scene.box)])
    paint(inner, cover(found["gland"], blur), tissue["peripheral_zone"] + np.float32(0.05) * texture[0])
    paint(inner, cover(found["transition_zone"], blur), tissue["transition_zone"] + np.float32(0.09) * texture[1])
    paint(inner, np.float32(0.6) * rim(found["transition_zone"], 1.2), tissue["capsule"])
    paint(inner, rim(found["gland"], 1.3), tissue["capsule"])
    paint(inner, cover(found["urethra"], blur) * np.float32(0.8), tissue["urethra"])
    for side in ("left", "right"):
        folds = np.float32(0.2) * texture[0]
        paint(inner, cover(found[f"seminal_vesicle_{side}"], blur), tissue["vesicle"] + folds)
    for name in scene.landmark_names:
        paint(inner, cover(found[name], blur), tissue[name.split("_")[0]])
    return image


def _background(scene: Scene, tissue: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """Everything outside the gland: fat and muscle, bones, bladder, rectum."""
    anatomy, q, blur = scene.anatomy, scene.body, scene.blur
    mixture = SmoothField.random(rng, length=7, components=1, terms=20)(q)[0]
    image = np.clip(np.float32(0.5) + np.float32(0.9) * mixture, 0, 1)
    image *= np.float32(tissue["fat"] - tissue["muscle"])
    image += np.float32(tissue["muscle"])
    for side in ("left", "right"):
        paint(image, cover(anatomy.shapes[f"obturator_{side}"].distance(q), 1.5), tissue["obturator"])
    for name in ("bone_left", "bone_right", "symphysis"):
        distance = anatomy.shapes[name].distance(q)
        paint(image, cover(distance, blur), tissue["marrow"])
        paint(image, rim(distance, 2.5), tissue["cortex"])
    bladder = np.maximum(anatomy.shapes["bladder"].distance(q), 1.5 - scene.gland)
    paint(image, cover(bladder - 2.5, blur), tissue["wall"])
    paint(image, cover(bladder, blur), tissue["fluid"])
    radius = np.float32(rng.uniform(9, 13))
    axis = np.float32(anatomy.radii[1] * 1.05 + radius + 2.5)
    rectum = np.hypot(q[0] - np.float32(rng.normal(0, 2)), q[1] + axis + np.float32(0.05) * q[2]) - radius
    rectum = np.maximum(rectum, 1 - scene.gland)
    paint(image, cover(rectum, blur), tissue["wall"])
    paint(image, cover(rectum + 3, blur), tissue["gas"] if rng.random() < 0.6 else tissue["stool"])
    return image
