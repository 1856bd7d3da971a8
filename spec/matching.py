"""Matching: which anchor is assigned to which object.

The rule ``bipartite``, the paper's, has two steps:

1. Every object gets one anchor of its own. Of all pairs of an unmatched anchor and an
   unmatched object, the pair with the largest overlap is matched; this is repeated.
2. Every anchor that is still unmatched is assigned to the object that it overlaps most, if
   that overlap reaches the threshold.

Except for ties, the order of the objects does not matter.

The rule ``in_order`` is the model zoo's. Each object in turn is matched to its best anchor, whose
overlap is set to 2, and to every anchor that it overlaps by more than the threshold. An
anchor is reassigned only for a strictly larger overlap. If two objects have the same best
anchor, the earlier keeps it, and the later may stay unmatched.

Ties go to the lowest anchor, then to the lowest object. An overlap of at most
``lowest_iou`` counts as none: an object that overlaps no anchor, or one without
area, stays unmatched. Thresholds are rounded to the dtype of the overlaps before the
comparison.
"""

from __future__ import annotations

import numpy as np

from refinedet.spec.boxes import box_iou
from refinedet.spec.coding import encode
from refinedet.spec.config import Config, MatchingConfig
from refinedet.spec.errors import check_boxes, check_labels, check_shape
from refinedet.spec.types import Array

UNMATCHED = -1


def match(iou: Array, config: MatchingConfig) -> Array:
    """The object that each anchor is assigned to.

    Args:
        iou: (A, T) float, overlaps as ``box_iou`` returns them. A and T may be 0.
        config: thresholds and rule.
    Returns:
        (A,) int64: index of an object, or ``UNMATCHED``.
    Source: the multi-box loss of the authors' release, bipartite then
        per-prediction; SSD, arXiv:1512.02325, section 2.2, "Matching strategy". The
        model zoo's ``box_utils.py`` for ``in_order``; it also matches an object without
        area to the first anchor, which this specification does not.
    """
    anchor_count, object_count = iou.shape
    matched = np.full(anchor_count, UNMATCHED, np.int64)
    if anchor_count == 0 or object_count == 0:
        return matched
    if config.rule == "in_order":
        return _match_in_order(iou, config)

    free = iou.copy()
    free[free <= config.lowest_iou] = -1
    for _ in range(min(anchor_count, object_count)):
        # argmax takes the first of equals, and row-major order puts the
        # lowest anchor first, then the lowest object.
        anchor, ground_truth = np.unravel_index(np.argmax(free), free.shape)
        if free[anchor, ground_truth] < 0:
            break
        matched[anchor] = ground_truth
        free[anchor, :] = -1
        free[:, ground_truth] = -1

    best = iou.argmax(axis=1)
    overlap = iou[np.arange(anchor_count), best]
    rest = (matched == UNMATCHED) & (overlap >= config.iou) & (overlap > config.lowest_iou)
    matched[rest] = best[rest]
    return matched


def _match_in_order(iou: Array, config: MatchingConfig) -> Array:
    """``match`` by the rule ``in_order``; an object that overlaps no anchor is skipped."""
    matched = np.full(len(iou), UNMATCHED, np.int64)
    held = np.zeros(len(iou), iou.dtype)
    for ground_truth, overlaps in enumerate(iou.T.copy()):
        best = overlaps.argmax()
        if overlaps[best] <= config.lowest_iou:
            continue
        overlaps[best] = 2
        taken = (overlaps > config.iou) & (overlaps > held)
        matched[taken] = ground_truth
        held[taken] = overlaps[taken]
    return matched


def targets(anchors: Array, boxes: Array, labels: Array, config: Config) -> tuple[Array, Array]:
    """The regression targets and the labels of each anchor of one image.

    The ARM's targets use the anchors; the ODM's use the refined anchors.

    Args:
        anchors: (A, 4) float32 or float64, corner form.
        boxes: (T, 4), same dtype, corner form: the objects. T may be 0.
        labels: (T,) integers from 1 to ``num_classes`` - 1.
    Returns:
        Target offsets (A, 4), dtype of the arguments, zero where unmatched; and
        labels (A,) int64, 0 where unmatched.
    Raises:
        SpecError: shapes, dtypes, crossed corners, or a label out of range.
    """
    check_boxes(anchors=anchors, boxes=boxes)
    check_shape(labels, "labels", len(boxes))
    check_labels(labels, "labels", config.num_classes, lowest=1)
    matched = match(box_iou(anchors, boxes), config.matching)
    positive = matched != UNMATCHED
    offsets = np.zeros_like(anchors)
    classes = np.zeros(len(anchors), np.int64)
    objects = matched[positive]
    offsets[positive] = encode(boxes[objects], anchors[positive], config.anchors.variances)
    classes[positive] = labels[objects]
    return offsets, classes
