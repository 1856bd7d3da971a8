"""``refinedet.spec.boxes`` and ``refinedet.spec.coding`` in PyTorch, for batches.

Anchors are in centre form: centre x, centre y, width, height, as fractions of the image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from refinedet.adapters.torch.tensors import to_tensor
from refinedet.spec import boxes as spec_boxes
from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.config import Config


def centre_anchors(config: Config, device: str) -> Tensor:
    """The anchors, (A, 4), centre form."""
    centres = spec_boxes.corners_to_centres(all_anchors(config).astype(np.float64))
    return to_tensor(centres.astype(np.float32), device)


def corners_to_centres(boxes: Tensor) -> Tensor:
    """Corner form to centre form, (..., 4)."""
    low, high = boxes.split(2, -1)
    return torch.cat(((low + high) / 2, high - low), -1)


def centres_to_corners(boxes: Tensor) -> Tensor:
    """Centre form to corner form, (..., 4)."""
    centre, sides = boxes.split(2, -1)
    return torch.cat((centre - sides / 2, centre + sides / 2), -1)


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Overlap (N, T, A) of boxes (N, T, 4) with anchors (N, A, 4), corner form."""
    bx0, by0, bx1, by1 = boxes[:, :, None].unbind(-1)  # each (N, T, 1)
    ax0, ay0, ax1, ay1 = anchors[:, None].unbind(-1)  # each (N, 1, A)
    wide = (torch.minimum(bx1, ax1) - torch.maximum(bx0, ax0)).clamp(min=0)
    high = (torch.minimum(by1, ay1) - torch.maximum(by0, ay0)).clamp(min=0)
    shared = wide * high
    union = (bx1 - bx0) * (by1 - by0) + (ax1 - ax0) * (ay1 - ay0) - shared
    return torch.where(union > 0, shared / union, 0)


def encode(boxes: Tensor, anchors: Tensor, variances: tuple[float, ...]) -> Tensor:
    """``spec.coding.encode``: boxes (..., 4) corner form, anchors (..., 4) centre form."""
    (centre, sides), (origin, units) = corners_to_centres(boxes).split(2, -1), anchors.split(2, -1)
    offset = (centre - origin) / (units * variances[0])
    return torch.cat((offset, torch.log(sides / units) / variances[1]), -1)


def decode(offsets: Tensor, anchors: Tensor, variances: tuple[float, ...]) -> Tensor:
    """``spec.coding.decode`` with anchors and boxes (..., 4) in centre form."""
    (move, stretch), (centre, sides) = offsets.split(2, -1), anchors.split(2, -1)
    moved = centre + move * variances[0] * sides
    return torch.cat((moved, sides * torch.exp(stretch * variances[1])), -1)


def cascaded_decode(
    arm_offsets: Tensor, odm_offsets: Tensor, anchors: Tensor, variances: tuple[float, ...]
) -> Tensor:
    """``spec.coding.cascaded_decode`` with anchors and boxes (..., 4) in centre form."""
    return decode(odm_offsets, decode(arm_offsets, anchors, variances), variances)
