"""Detection: from the network's outputs to the objects of an image.

1. Boxes are decoded in two steps (without ``anchors.refined``, from the ODM only); class
   probabilities are computed by softmax or sigmoid.
2. An anchor that the ARM classifies as background (probability of "object" below
   ``loss.objectness``) yields no detection.
3. Every pair of anchor and class, background excepted, with a score above
   ``detection.score`` is a candidate; the best ``top_before_nms`` of them are kept.
4. In each class, the best ``top_before_nms_per_class`` are kept, non-maximum suppression is
   applied, and the best ``top_per_class`` of its result are kept.
5. Of all classes together, the best ``top`` are kept; their boxes are clipped.

"Best" means the highest score; equal scores are ordered by ascending anchor, then by
ascending class. A threshold is rounded to the dtype of the scores, overlaps or objectness
that are compared with it. ``detection.pixel`` is added to the sides of boxes, in pixels of
the original image, before overlaps are computed. A box entirely outside the image has no area
after clipping, and is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refinedet.spec import coding
from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.boxes import box_iou, clip_boxes, lengthened
from refinedet.spec.config import Config, DetectionConfig
from refinedet.spec.errors import SpecError, check_boxes, check_float, check_shape
from refinedet.spec.losses import sigmoid, softmax
from refinedet.spec.network import Heads
from refinedet.spec.types import Array


class Detections(NamedTuple):
    """The objects detected in one image, best first; D may be 0."""

    boxes: Array
    """(D, 4), dtype of the heads, corner form, fractions of the image."""
    scores: Array
    """(D,), same dtype, above ``detection.score``."""
    labels: Array
    """(D,) int64, from 1."""


def nms(boxes: Array, scores: Array, iou: float, pixel: tuple[float, float] = (0.0, 0.0)) -> Array:
    """Non-maximum suppression within one class.

    Process the boxes by descending score, ties by ascending row; keep a box if its overlap
    with every kept box is at most ``iou``.

    Args:
        boxes: (M, 4) float32 or float64, corner form. M may be 0.
        scores: (M,), same dtype.
        pixel: added to widths and heights before overlaps are computed.
    Returns:
        (D,) int64: rows kept, by descending score.
    Raises:
        SpecError: shapes, dtypes, crossed corners.
    """
    check_boxes(boxes=boxes)
    check_float(boxes=boxes, scores=scores)
    check_shape(scores, "scores", len(boxes))
    longer = lengthened(boxes, pixel)
    overlaps = box_iou(longer, longer).astype(boxes.dtype)
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable"):
        if (overlaps[row, kept] <= iou).all():
            kept.append(int(row))
    return np.asarray(kept, np.int64)


def detect(
    boxes: Array, scores: Array, config: DetectionConfig, size: tuple[int, int] | None = None
) -> Detections:
    """The detections of one image, steps 3 to 5.

    Args:
        boxes: (A, 4) float32 or float64, corner form, one box per anchor for all
            classes. A may be 0.
        scores: (A, K), same dtype, K from 2; column 0 is the background and is
            ignored.
        size: height and width of the original image, in pixels; used if
            ``config.pixel`` is above 0.
    Raises:
        SpecError: shapes, dtypes, crossed corners, non-finite values, or no size
            although ``config.pixel`` is above 0.
    """
    check_boxes(boxes=boxes)
    check_float(boxes=boxes, scores=scores)
    check_shape(scores, "scores", len(boxes), None)
    if scores.shape[1] < 2:
        raise SpecError("expected a column for the background and one for each class", key="scores")
    pixel = pixel_sides(config, size)
    if config.clip_first:
        boxes = clip_boxes(boxes)
    # argwhere runs by rising anchor, then rising class: stable sorts keep that for ties.
    anchor, label = np.argwhere(scores[:, 1:] > config.score).T
    label = label + 1
    score = scores[anchor, label]
    order = np.argsort(-score, kind="stable")[: config.top_before_nms]
    anchor, label, score = anchor[order], label[order], score[order]

    kept: list[int] = []
    for c in np.unique(label):
        rows = np.flatnonzero(label == c)[: config.top_before_nms_per_class]
        chosen = nms(boxes[anchor[rows]], score[rows], config.nms_iou, pixel)
        kept.extend(rows[chosen[: config.top_per_class]])
    rows = np.sort(np.asarray(kept, np.int64))[: config.top]  # candidates are best first
    found = boxes[anchor[rows]]
    return Detections(clip_boxes(found) if config.clip else found, score[rows], label[rows])


def pixel_sides(config: DetectionConfig, size: tuple[int, int] | None) -> tuple[float, float]:
    """The width and height of ``detection.pixel``, as fractions of the image.

    Raises:
        SpecError: ``detection.pixel`` is above 0, and no size is given.
    """
    if config.pixel == 0:
        return 0.0, 0.0
    if size is None:
        raise SpecError(
            "expected the image's height and width, which detection.pixel needs", key="size"
        )
    height, width = size
    return config.pixel / width, config.pixel / height


def scored_boxes(heads: Heads, config: Config) -> tuple[Array, Array]:
    """Boxes and class scores of every anchor, steps 1 and 2.

    Args:
        heads: the network's outputs for N images, float32 or float64; N from 1.
    Returns:
        Boxes (N, A, 4) in corner form, not clipped, and scores (N, A, K), all zero
        where the ARM classifies an anchor as background; dtype of the heads.
    Raises:
        SpecError: dtypes, non-finite values, or offsets that overflow.
    """
    anchors = all_anchors(config).astype(heads.arm_offsets.dtype)
    variances = config.anchors.variances
    if config.anchors.refined:
        boxes = [
            coding.cascaded_decode(arm, odm, anchors, variances)
            for arm, odm in zip(heads.arm_offsets, heads.odm_offsets, strict=True)
        ]
    else:
        boxes = [coding.decode(odm, anchors, variances) for odm in heads.odm_offsets]
    objectness = softmax(heads.arm_logits)[..., 1]
    probability = softmax if config.loss.classes == "softmax" else sigmoid
    scores = probability(heads.odm_logits) * (objectness >= config.loss.objectness)[..., None]
    return np.stack(boxes), scores


def detections(
    heads: Heads, config: Config, size: tuple[int, int] | None = None
) -> list[Detections]:
    """The detections of every image of a batch, steps 1 to 5; all have the same original size."""
    boxes, scores = scored_boxes(heads, config)
    return [detect(b, s, config.detection, size) for b, s in zip(boxes, scores, strict=True)]
