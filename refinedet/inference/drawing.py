"""Detections drawn on images, as JSON, and sheets of several images.

All images are (H, W, 3) uint8 in the order R, G, B. Files are written whole or not
at all. Equal arguments give equal images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refinedet.data.images import check_image, write_image
from refinedet.spec.detection import Detections
from refinedet.spec.errors import SpecError, check_boxes, check_labels, check_shape
from refinedet.spec.types import Array

FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_HEIGHT = 22.0
"""Pixels of a capital letter at scale 1."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Step on the colour circle from one class to the next; keeps many classes apart."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the perceived brightness (ITU-R BT.601)."""
GREY = 64
GAP = 4
"""Pixels between the images of a sheet."""


def class_colour(label: int) -> tuple[int, int, int]:
    """R, G, B of a class, whose label is at least 1: saturated, the same in every image."""
    hue = (label - 1) * GOLDEN % 1
    pixel = np.array([[[round(hue * 179), 200, 255]]], np.uint8)
    r, g, b = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return r, g, b


def draw_detections(
    image: Array,
    boxes: Array,
    labels: Array,
    scores: Array | None,
    class_names: Sequence[str],
) -> Array:
    """A copy of the image with a box, a name and a score for every object.

    Lines and letters scale with the image. The highest scores are drawn last, on top.
    Characters outside ASCII, which OpenCV's fonts lack, become "?".

    Args:
        image: (H, W, 3) uint8.
        boxes: (D, 4) float32 or float64, pixels, corner form; clipped to the image.
        labels: (D,) integers from 1.
        scores: (D,), or None for ground truth.
        class_names: without the background; label 1 is the first.
    Returns:
        (H, W, 3) uint8.
    Raises:
        SpecError: shapes, dtypes, crossed corners, labels out of range.
    """
    check_image(image)
    check_boxes(boxes=boxes)
    check_shape(labels, "labels", len(boxes))
    check_labels(labels, "labels", len(class_names) + 1, lowest=1)
    if scores is not None:
        check_shape(scores, "scores", len(boxes))
    drawn: Array = np.ascontiguousarray(image).copy()
    height, width = drawn.shape[:2]
    line = max(1, round(min(height, width) / 250))
    corners = np.rint(boxes.clip(0, [width - 1, height - 1] * 2)).astype(int)
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    for row in order.tolist():
        label = int(labels[row])
        text = class_names[label - 1]
        if scores is not None:
            text = f"{text} {scores[row]:.2f}"
        low, high = corners[row, :2].tolist(), corners[row, 2:].tolist()
        cv2.rectangle(drawn, low, high, class_colour(label), line)
        _write(drawn, text, low, class_colour(label))
    return drawn


def _write(image: Array, text: str, corner: Sequence[int], colour: tuple[int, int, int]) -> None:
    """Write text on the class's colour, above the corner if there is room."""
    height, width = image.shape[:2]
    scale = max(0.35, min(height, width) / 40 / FONT_HEIGHT)
    weight = max(1, round(scale * 1.5))
    ascii_text = text.encode("ascii", "replace").decode()
    (wide, tall), below = cv2.getTextSize(ascii_text, FONT, scale, weight)
    x = max(0, min(corner[0], width - wide))
    top = max(0, corner[1] - tall - below)
    cv2.rectangle(image, (x, top), (x + wide, top + tall + below), colour, cv2.FILLED)
    bright = np.dot(colour, LUMA) > 110
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(image, ascii_text, (x, top + tall), FONT, scale, ink, weight, cv2.LINE_AA)


def detections_json(
    images: Iterable[tuple[str, int, int, Detections]], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Detections of several images, ready for ``json.dumps``.

    Args:
        images: file name, width and height in pixels, and the detections with boxes
            in pixels.
        class_names: label 1 is the first.
    Returns:
        For each image "file", "width", "height" and "objects", best first; for each
        object "label", "class", "score" (6 decimals) and "box": x_min, y_min, x_max,
        y_max in pixels (2 decimals).
    """
    return [
        {
            "file": file,
            "width": width,
            "height": height,
            "objects": [
                {
                    "label": label,
                    "class": class_names[label - 1],
                    "score": round(score, 6),
                    "box": [round(x, 2) for x in box],
                }
                for box, score, label in zip(
                    *(column.tolist() for column in detections), strict=True
                )
            ],
        }
        for file, width, height, detections in images
    ]


def sheet(images: Sequence[Array], columns: int, path: Path, cell: int = 320) -> None:
    """Write one image that shows several, in rows on grey.

    Args:
        images: at least one, of any sizes; each is resized to fit its cell, undistorted. All
            cells are as high and wide as the largest image needs.
        columns: at least 1; fewer images use fewer.
        path: a PNG.
        cell: the longer side of every resized image, pixels.
    Raises:
        SpecError: no image, or not an image; columns or cell below 1.
        WriteError: the file cannot be written.
    """
    if not images or columns < 1 or cell < 1:
        raise SpecError("needs an image, a column and a cell size of at least 1", key="sheet")
    fitted = [_fit(image, cell) for image in images]
    columns = min(columns, len(fitted))
    wide = max(image.shape[1] for image in fitted)
    tall = max(image.shape[0] for image in fitted)
    shape = (math.ceil(len(fitted) / columns) * (tall + GAP) + GAP, columns * (wide + GAP) + GAP, 3)
    canvas = np.full(shape, GREY, np.uint8)
    for index, image in enumerate(fitted):
        height, width = image.shape[:2]
        top = GAP + index // columns * (tall + GAP) + (tall - height) // 2
        left = GAP + index % columns * (wide + GAP) + (wide - width) // 2
        canvas[top : top + height, left : left + width] = image
    write_image(path, canvas)


def _fit(image: Array, cell: int) -> Array:
    """The image with its longer side ``cell``, undistorted."""
    check_image(image)
    height, width = image.shape[:2]
    ratio = cell / max(height, width)
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    method = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    resized: Array = cv2.resize(image, size, interpolation=method)
    return resized
