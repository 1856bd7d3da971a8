"""Coding: a box as four offsets from an anchor, and back.

Offsets are (x, y, w, h). The centre's offset is measured in sides of the anchor,
the size as the logarithm of a ratio. Both are divided by a constant ("variance")
that brings them to about unit spread.

RefineDet decodes twice. The anchor refinement module (ARM) refines the anchors; the object
detection module (ODM) codes boxes against the refined anchors. For the gradient the refined
anchors are constants: the ODM's loss does not reach the ARM's offsets.
"""

from __future__ import annotations

import numpy as np

from refinedet.spec.boxes import corners_to_centres
from refinedet.spec.errors import SpecError, check_boxes, check_float, check_shape
from refinedet.spec.types import Array


def encode(boxes: Array, anchors: Array, variances: tuple[float, ...]) -> Array:
    """The offsets from each anchor to the box in the same row.

    Args:
        boxes: (M, 4) float32 or float64, corner form, sides above 0.
        anchors: (M, 4), same dtype, corner form, sides above 0.
        variances: two numbers, divisors of centre offsets and of log ratios.
    Returns:
        (M, 4), same dtype: x, y, w, h offsets. Computed in float64.
    Raises:
        SpecError: shapes, dtypes, crossed corners, or a side of length 0.
    Source: SSD, arXiv:1512.02325, section 2.2, equation 2; variances from the
        authors' release.
    """
    check_boxes(boxes=boxes, anchors=anchors)
    check_shape(boxes, "boxes", len(anchors), 4)
    for name, array in (("boxes", boxes), ("anchors", anchors)):
        empty = np.flatnonzero((array[:, 2:] <= array[:, :2]).any(axis=1))
        if empty.size:
            raise SpecError(f"row {int(empty[0])} has a side of length 0", key=name)
    b = corners_to_centres(boxes.astype(np.float64))
    a = corners_to_centres(anchors.astype(np.float64))
    offset = (b[:, :2] - a[:, :2]) / (a[:, 2:] * variances[0])
    ratio = np.log(b[:, 2:] / a[:, 2:]) / variances[1]
    return np.hstack([offset, ratio]).astype(boxes.dtype)


def decode(offsets: Array, anchors: Array, variances: tuple[float, ...]) -> Array:
    """The box of each row of offsets from its anchor; inverts ``encode``.

    Args:
        offsets: (M, 4) float32 or float64, x, y, w, h.
        anchors: (M, 4), same dtype, corner form; a side may be 0, and stays 0.
        variances: as in ``encode``.
    Returns:
        (M, 4), same dtype, corner form, not clipped. Computed in float64.
    Raises:
        SpecError: shapes, dtypes, crossed corners, or offsets so large
            that a coordinate overflows the dtype.
    """
    check_boxes(anchors=anchors)
    check_float(offsets=offsets, anchors=anchors)
    check_shape(offsets, "offsets", len(anchors), 4)
    a = corners_to_centres(anchors.astype(np.float64))
    t = offsets.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        centre = a[:, :2] + t[:, :2] * variances[0] * a[:, 2:]
        size = a[:, 2:] * np.exp(t[:, 2:] * variances[1])
        boxes = np.hstack([centre - size / 2, centre + size / 2]).astype(offsets.dtype)
    overflow = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
    if overflow.size:
        raise SpecError(f"row {int(overflow[0])} overflows {offsets.dtype}", key="offsets")
    return boxes


def cascaded_decode(
    arm_offsets: Array, odm_offsets: Array, anchors: Array, variances: tuple[float, ...]
) -> Array:
    """Boxes of the two-step cascade: refine the anchors, then decode against them.

    Args:
        arm_offsets, odm_offsets: (A, 4) float32 or float64.
        anchors: (A, 4), same dtype, corner form.
    Returns:
        (A, 4), same dtype, corner form, not clipped. Each step is rounded to the dtype.
    Raises:
        SpecError: as ``decode``, for either step.
    Source: RefineDet, arXiv:1711.06897, section 3.1 (two-step cascaded regression).
    """
    return decode(odm_offsets, decode(arm_offsets, anchors, variances), variances)
