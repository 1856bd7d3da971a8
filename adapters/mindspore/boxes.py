"""``refinedet.spec.boxes`` and ``refinedet.spec.coding`` in MindSpore, for batches.

Anchors are in centre form: centre x, centre y, width, height, as fractions of the image.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ops

from refinedet.spec import boxes as spec_boxes
from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.config import Config


def centre_anchors(config: Config) -> ms.Tensor:
    """The anchors as a constant (1, A, 4), centre form."""
    centres = spec_boxes.corners_to_centres(all_anchors(config).astype(np.float64))
    return ms.Tensor(centres.astype(np.float32)[None])


def corners_to_centres(boxes: ms.Tensor) -> ms.Tensor:
    """Corner form to centre form, (N, A, 4)."""
    low, high = boxes[:, :, :2], boxes[:, :, 2:]
    return ops.concat(((low + high) / 2, high - low), 2)


def centres_to_corners(boxes: ms.Tensor) -> ms.Tensor:
    """Centre form to corner form, (N, A, 4)."""
    half = boxes[:, :, 2:] / 2
    return ops.concat((boxes[:, :, :2] - half, boxes[:, :, :2] + half), 2)


def pairwise_iou(boxes: ms.Tensor, anchors: ms.Tensor) -> ms.Tensor:
    """Overlap (N, T, A) of boxes (N, T, 4) with anchors (N, A, 4), corner form."""
    bx0, by0, bx1, by1 = ops.split(boxes, 1, 2)  # each (N, T, 1)
    ax0, ay0, ax1, ay1 = ops.split(anchors.transpose((0, 2, 1)), 1, 1)  # each (N, 1, A)
    wide = ops.relu(ops.minimum(bx1, ax1) - ops.maximum(bx0, ax0))
    high = ops.relu(ops.minimum(by1, ay1) - ops.maximum(by0, ay0))
    shared = wide * high
    union = (bx1 - bx0) * (by1 - by0) + (ax1 - ax0) * (ay1 - ay0) - shared
    some = union > 0
    return ops.select(some, shared / ops.select(some, union, ops.ones_like(union)), shared)


def encode(boxes: ms.Tensor, anchors: ms.Tensor, centre: float, size: float) -> ms.Tensor:
    """``spec.coding.encode``: boxes (N, A, 4) corner form, anchors (N, A, 4) centre form."""
    centres, sides = corners_to_centres(boxes), anchors[:, :, 2:]
    offset = (centres[:, :, :2] - anchors[:, :, :2]) / (sides * centre)
    return ops.concat((offset, ops.log(centres[:, :, 2:] / sides) / size), 2)


def decode(offsets: ms.Tensor, anchors: ms.Tensor, centre: float, size: float) -> ms.Tensor:
    """``spec.coding.decode`` with anchors and boxes (N, A, 4) in centre form."""
    sides = anchors[:, :, 2:]
    return ops.concat(
        (
            anchors[:, :, :2] + offsets[:, :, :2] * centre * sides,
            sides * ops.exp(offsets[:, :, 2:] * size),
        ),
        2,
    )


def cascaded_decode(
    arm_offsets: ms.Tensor,
    odm_offsets: ms.Tensor,
    anchors: ms.Tensor,
    centre: float,
    size: float,
) -> ms.Tensor:
    """``spec.coding.cascaded_decode``, anchors and boxes (N, A, 4) in centre form."""
    return decode(odm_offsets, decode(arm_offsets, anchors, centre, size), centre, size)
