"""Generated pictures: rings, squares and triangles, in COCO's layout on the disk.

They let a new user see the whole program work in minutes, through the same reader as
real data.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refinedet.data.coco import read_coco
from refinedet.data.dataset import DataError, Dataset
from refinedet.drawing import write_picture
from refinedet.spec.errors import Array

CLASSES = ("ring", "square", "triangle")
MOST = 4
"""Objects of a picture, at most; at least one."""
SIDES = (0.12, 0.45)
"""Side of an object, as a share of the picture's shorter side."""
OVERLAP = 0.1
"""Share of the smaller of two boxes that both may cover."""


def generate_shapes(count: int, size: tuple[int, int], seed: int, folder: Path) -> Dataset:
    """Write pictures of shapes with their annotations, and read them back.

    The same arguments give the same files. The folder appears when it is complete; one
    that is there already is replaced if it was generated here.

    Args:
        count: pictures, from 1.
        size: height and width, pixels, from 32.
        seed: of all that is random.
        folder: gets ``pictures/`` and ``annotations.json``.
    Raises:
        DataError: the folder holds something else, or cannot be written.
    """
    annotations = folder / "annotations.json"
    if folder.exists() and not annotations.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: holds something else than generated pictures")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as draft:
            _write(count, size, seed, Path(draft) / "whole")
            if folder.exists():
                shutil.rmtree(folder)
            (Path(draft) / "whole").rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot write: {error.strerror or error}") from error
    return read_coco(annotations, folder / "pictures", CLASSES)


def _write(count: int, size: tuple[int, int], seed: int, folder: Path) -> None:
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        picture, found = draw_shapes(size, np.random.default_rng((seed, number)))
        name = f"{number:05d}.png"
        write_picture(pictures / name, picture)
        height, width = size
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for label, (x, y, side) in found:
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def draw_shapes(
    size: tuple[int, int], rng: np.random.Generator
) -> tuple[Array, list[tuple[int, tuple[int, int, int]]]]:
    """One picture, and its objects.

    Returns:
        The picture (H, W, 3) uint8, R, G, B; and for each object its label from 1, and
        x_min, y_min and side of its box, in pixels.
    """
    height, width = size
    coarse = rng.integers(60, 196, (4, 4, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 12, picture.shape)
    picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    objects: list[tuple[int, tuple[int, int, int]]] = []
    for _ in range(int(rng.integers(1, MOST + 1))):
        side = int(rng.uniform(*SIDES) * min(size))
        x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        label = int(rng.integers(1, 4))
        colour = (rng.integers(0, 2, 3) * 200 + rng.integers(0, 56, 3)).tolist()  # vivid
        if any(_shared((x, y, side), other) > OVERLAP for _, other in objects):
            continue
        _draw(picture, label, x, y, side, colour)
        objects.append((label, (x, y, side)))
    return picture, objects


def _shared(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """Share of the smaller square that both cover."""
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    tall = min(a[1] + a[2], b[1] + b[2]) - max(a[1], b[1])
    return max(wide, 0) * max(tall, 0) / min(a[2], b[2]) ** 2


def _draw(picture: Array, label: int, x: int, y: int, side: int, colour: list[int]) -> None:
    """Fill a shape that touches all sides of its box of ``side`` pixels."""
    far = side - 1
    if label == 1:
        # In units of 1/16 pixel, so that odd and even sides are met exactly.
        thick = max(1, side // 6)
        centre, radius = (int((x + far / 2) * 16), int((y + far / 2) * 16)), (side - thick) * 8
        cv2.circle(picture, centre, radius, colour, thick, cv2.LINE_8, 4)
    elif label == 2:
        cv2.rectangle(picture, (x, y), (x + far, y + far), colour, cv2.FILLED)
    else:
        corners = np.array([[x, y + far], [x + far, y + far], [x + far // 2, y]], np.int32)
        cv2.fillPoly(picture, [corners], colour)
