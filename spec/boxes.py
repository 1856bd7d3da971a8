"""Boxes: two forms, their area, their overlap.

A box is a row of four floats. Corner form is x_min, y_min, x_max, y_max;
centre form is x_centre, y_centre, width, height. Coordinates are fractions of
the image's width (x) and height (y) unless a name says pixels. A side's length
is the difference of its coordinates, with no "+ 1". A box whose sides are zero
is legal and has no area; a box whose corners are crossed is refused.
"""

from __future__ import annotations

import numpy as np

from refinedet.spec.errors import SpecError, check_boxes, check_float, check_shape
from refinedet.spec.types import Array


def corners_to_centres(boxes: Array) -> Array:
    """Corner form to centre form.

    Args:
        boxes: (M, 4) float32 or float64, corner form; M may be 0.
    Returns:
        (M, 4), same dtype, centre form. Computed in float64.
    Raises:
        SpecError: shape, dtype, non-finite or crossed corners.
    """
    check_boxes(boxes=boxes)
    low, high = np.split(boxes.astype(np.float64), 2, axis=1)
    return np.hstack([(low + high) / 2, high - low]).astype(boxes.dtype)


def centres_to_corners(boxes: Array) -> Array:
    """Centre form to corner form; inverts ``corners_to_centres``.

    Args:
        boxes: (M, 4) float32 or float64, centre form; M may be 0.
    Returns:
        (M, 4), same dtype, corner form. Computed in float64.
    Raises:
        SpecError: shape, dtype, non-finite values or a negative side.
    """
    check_float(boxes=boxes)
    check_shape(boxes, "boxes", None, 4)
    centre, size = np.split(boxes.astype(np.float64), 2, axis=1)
    negative = np.flatnonzero((size < 0).any(axis=1))
    if negative.size:
        raise SpecError(f"row {int(negative[0])} has a negative side", key="boxes")
    return np.hstack([centre - size / 2, centre + size / 2]).astype(boxes.dtype)


def area(boxes: Array) -> Array:
    """Width times height of corner-form boxes (..., 4); any float dtype, kept."""
    size: Array = boxes[..., 2:] - boxes[..., :2]
    product: Array = size[..., 0] * size[..., 1]
    return product


def box_iou(anchors: Array, ground_truth: Array) -> Array:
    """Overlap of every anchor with every ground truth, from 0 to 1.

    Intersection area over union area; 0 where the union is empty.
    Computed in float64, more precisely than any backend that is compared with it.

    Args:
        anchors: (A, 4) float32 or float64, corner form.
        ground_truth: (T, 4), same dtype and units. A and T may be 0.
    Returns:
        (A, T), dtype of the arguments.
    Raises:
        SpecError: shape, dtype, non-finite or crossed corners;
            names the argument and row.
    Source: Jaccard overlap, SSD, arXiv:1512.02325, section 2.2.
    """
    check_boxes(anchors=anchors, ground_truth=ground_truth)
    a = anchors[:, None].astype(np.float64)  # (A, 1, 4)
    t = ground_truth[None].astype(np.float64)  # (1, T, 4)
    low = np.maximum(a[..., :2], t[..., :2])
    high = np.minimum(a[..., 2:], t[..., 2:])
    shared = (high - low).clip(0).prod(axis=-1)  # (A, T)
    union = area(a) + area(t) - shared
    iou: Array = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
    return iou.astype(anchors.dtype)


def lengthened(boxes: Array, pixel: tuple[float, float]) -> Array:
    """Corner-form boxes (M, 4) with ``pixel`` added to width and height, as float64.

    Systems that count pixels, and add 1 to sides, measure the overlaps of such boxes.
    """
    longer: Array = boxes.astype(np.float64) + np.array([0, 0, *pixel])
    return longer


def clip_boxes(boxes: Array) -> Array:
    """Corner-form boxes (M, 4) with every coordinate limited to the range from 0 to 1."""
    check_boxes(boxes=boxes)
    return boxes.clip(0, 1)
