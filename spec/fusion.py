"""Fusion: one list of detections from several views of an image.

The multi-scale test behind the paper's "+" rows. A view is a size of the network's input,
mirrored or not, and a range of sizes of the boxes that count in it: small objects are
detected in large inputs, large objects in small ones.

1. The detections of each view are mirrored back; those outside its range are dropped.
2. For each class, the detections of all views are combined by one rule: ``vote``,
   ``soft_vote`` or ``soft_nms``.
3. The result is ordered by falling score; equal scores by view, then by detection.

Sides and overlaps of boxes are measured in pixels of the original image, with ``pixel``
added to every side. Overlaps and scores are compared with thresholds in the dtype of the
boxes, to which the threshold is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refinedet.spec.boxes import box_iou, lengthened
from refinedet.spec.config import NETWORK_STRIDES, is_number, require
from refinedet.spec.detection import Detections
from refinedet.spec.errors import SpecError, check_boxes, check_float, check_labels, check_shape
from refinedet.spec.types import Array

RULES = ("vote", "soft_vote", "soft_nms")
MOST_CLASSES = 10**5
"""The most that a ``Config`` may have: detections do not know their number of classes."""


@dataclass(frozen=True)
class View:
    """One evaluation of an image by the network.

    Attributes:
        long, short: the input's side along the longer and the shorter side of the image,
            as a multiple of the size that the network was trained on. In a square image the
            height counts as the longer side.
        mirrored: left and right are exchanged.
        longest_above: a box counts if its longer side is above this, in pixels.
        shortest_below: a box counts if its shorter side is below this, in pixels.
            ``None``, in both, means no limit.
    """

    long: float = 1.0
    short: float = 1.0
    mirrored: bool = False
    longest_above: float | None = None
    shortest_below: float | None = None

    def __post_init__(self) -> None:
        require(is_number(self.long, 1 / 64, 64), self, "long", "1/64 to 64")
        require(is_number(self.short, 1 / 64, 64), self, "short", "1/64 to 64")
        require(isinstance(self.mirrored, bool), self, "mirrored", "true or false")
        for name in ("longest_above", "shortest_below"):
            limit = getattr(self, name)
            expected = "a number from 0, or null"
            require(limit is None or is_number(limit, 0), self, name, expected)

    def input_size(self, trained: tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the network's input for an image of such height and width.

        The nearest multiples of the coarsest stride, halves up, at least one stride.

        Args:
            trained: height and width of the input that the network was trained on.
        """
        high = image[0] >= image[1]
        factors = (self.long, self.short) if high else (self.short, self.long)
        stride = NETWORK_STRIDES[-1]
        height, width = (
            max(1, int(side * factor / stride + 0.5)) * stride
            for side, factor in zip(trained, factors, strict=True)
        )
        return height, width


@dataclass(frozen=True)
class FusionConfig:
    """From the detections of several views to those of an image.

    Attributes:
        views: one or more.
        rule: ``vote``: box voting; ``soft_vote``: the same, and boxes that voted for a better
            one stay with a lower score; ``soft_nms``: linear soft suppression.
        iou: of two boxes of a class: voting merges from this overlap on, soft suppression
            lowers scores above it.
        score: a box whose score was lowered below this is dropped; ``soft_*`` only.
        pixel: added to the sides of boxes, in pixels of the original image, where they
            are measured.
    """

    views: tuple[View, ...] = (View(),)
    rule: str = "vote"
    iou: float = 0.45
    score: float = 0.01
    pixel: float = 1.0

    def __post_init__(self) -> None:
        require(
            isinstance(self.views, tuple)
            and len(self.views) > 0
            and all(isinstance(view, View) for view in self.views),
            self,
            "views",
            "one view or more",
        )
        require(self.rule in RULES, self, "rule", " or ".join(map(repr, RULES)))
        for name in ("iou", "score", "pixel"):
            require(is_number(getattr(self, name), 0, 1), self, name, "0 to 1")


class Combined(NamedTuple):
    """Boxes of one class after voting or soft suppression; D rows."""

    boxes: Array
    """(D, 4), dtype of what came in, corner form."""
    scores: Array
    """(D,), same dtype."""
    rows: Array
    """(D,) int64: the row of each in the input; for a vote, of its best box. All different."""


def box_voting(
    boxes: Array,
    scores: Array,
    iou: float,
    pixel: tuple[float, float] = (0.0, 0.0),
    least: float | None = None,
) -> Combined:
    """Box voting within one class.

    Take boxes by falling score, ties to the lower row. The best of those left and all that
    overlap it by ``iou`` or more are taken together: one box, the mean of theirs weighted
    by score, with the best score. With ``least`` each that was taken, but the best, also
    stays as it was, its score times (1 - overlap), if that is ``least`` or more.

    Args:
        boxes: (M, 4) float32 or float64, corner form. M may be 0.
        scores: (M,), same dtype, above 0.
        pixel: added to widths and heights where overlaps are measured.
    Returns:
        The votes in falling order, each followed by what stays beside it. Computed in
        float64.
    Raises:
        SpecError: shapes, dtypes, crossed corners, a score that is not above 0.
    Source: Gidaris and Komodakis, arXiv:1505.01749, "bounding box voting"; the authors'
        release, sfzhang15/RefineDet, test/lib/fast_rcnn/test.py: who votes, the best score,
        and what stays.
    """
    _check_scored(boxes, scores)
    longer = lengthened(boxes, pixel)
    left = np.argsort(-scores, kind="stable")
    combined = [(boxes[:0], scores[:0], left[:0])]
    while left.size:
        best = left[:1]
        overlap = box_iou(longer[best], longer[left])[0]
        near = overlap.astype(boxes.dtype) >= iou
        near[0] = True  # a box without area overlaps not even itself
        voters, overlap = left[near], overlap[near]
        share = scores[voters].astype(np.float64)
        share /= share.sum()  # first, so that one vote leaves a box as it is
        voted = (share[:, None] * boxes[voters]).sum(axis=0, keepdims=True)
        combined.append((voted.astype(boxes.dtype), scores[best], best))
        if least is not None:
            beaten = (scores[voters] * (1 - overlap)).astype(boxes.dtype)[1:]
            stay = voters[1:][beaten >= least]
            combined.append((boxes[stay], beaten[beaten >= least], stay))
        left = left[~near]
    return Combined(*(np.concatenate(column) for column in zip(*combined, strict=True)))


def soft_nms(
    boxes: Array,
    scores: Array,
    iou: float,
    least: float,
    pixel: tuple[float, float] = (0.0, 0.0),
) -> Combined:
    """Linear soft suppression within one class.

    Of those with a score of ``least`` or more take the best box, ties to the lower row.
    Multiply the score of each other that overlaps it by more than ``iou`` by (1 - overlap).
    Go on with the others and their new scores.

    Args:
        boxes: (M, 4) float32 or float64, corner form. M may be 0.
        scores: (M,), same dtype, above 0.
        pixel: added to widths and heights where overlaps are measured.
    Returns:
        What was taken, in falling order of the new scores.
    Raises:
        SpecError: shapes, dtypes, crossed corners, a score that is not above 0.
    Source: Soft-NMS, arXiv:1704.04503, linear; its release compares with "above".
    """
    _check_scored(boxes, scores)
    longer = lengthened(boxes, pixel)
    score = scores.copy()
    left, taken = np.flatnonzero(score >= least), []
    while left.size:
        best = left[score[left].argmax()]
        taken.append(best)
        left = left[left != best]
        overlap = box_iou(longer[best][None], longer[left])[0]
        above = overlap.astype(boxes.dtype) > iou
        score[left] *= 1 - overlap * above
        left = left[score[left] >= least]
    rows = np.asarray(taken, np.int64)
    return Combined(boxes[rows], score[rows], rows)


def _check_scored(boxes: Array, scores: Array) -> None:
    check_boxes(boxes=boxes)
    check_float(boxes=boxes, scores=scores)
    check_shape(scores, "scores", len(boxes))
    low = np.flatnonzero(scores <= 0)
    if low.size:
        raise SpecError(f"row {int(low[0])} is {scores[low[0]]}, not above 0", key="scores")


def mirrored(boxes: Array) -> Array:
    """Corner-form boxes (M, 4), fractions, with left and right exchanged."""
    left, low, right, high = boxes.T
    return np.stack([1 - right, low, 1 - left, high], axis=1)


def counting(detections: Detections, view: View, size: tuple[int, int], pixel: float) -> Detections:
    """The detections of a view, mirrored back, whose boxes have a size that counts there.

    Args:
        detections: boxes as fractions of the network's input.
        size: height and width of the original image, in pixels.
        pixel: added to every side.
    """
    boxes = mirrored(detections.boxes) if view.mirrored else detections.boxes
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64) * size[::-1] + pixel
    counts = np.ones(len(boxes), bool)
    if view.longest_above is not None:
        counts &= sides.max(axis=1) > view.longest_above
    if view.shortest_below is not None:
        counts &= sides.min(axis=1) < view.shortest_below
    return Detections(boxes[counts], detections.scores[counts], detections.labels[counts])


def fuse(found: Sequence[Detections], config: FusionConfig, size: tuple[int, int]) -> Detections:
    """The detections of an image from those of its views, steps 1 to 3.

    Args:
        found: for each of ``config.views``, in order, what was detected in it: boxes (D, 4)
            float32 or float64, one dtype in all, corner form, as fractions of what the
            network saw (of the mirrored image in a mirrored view), scores (D,), same
            dtype, above 0, labels (D,) integers from 1. D may be 0.
        size: height and width of the original image, in pixels.
    Returns:
        Boxes as fractions of the image, not clipped.
    Raises:
        SpecError: another number of views; shapes, dtypes, crossed corners, scores, labels.
    Source: the authors' release, sfzhang15/RefineDet, test/lib/fast_rcnn/test.py. Its mirrored
        boxes lie one pixel further to the right, here mirroring twice changes nothing.
    """
    if len(found) != len(config.views):
        raise SpecError(
            f"expected detections of {len(config.views)} views, got {len(found)}", key="found"
        )
    check_float(**{f"found[{i}]": detections.boxes for i, detections in enumerate(found)})
    for detections in found:
        _check_scored(detections.boxes, detections.scores)
        check_labels(detections.labels, "labels", MOST_CLASSES, lowest=1)
        check_shape(detections.labels, "labels", len(detections.boxes))
    counted = [
        counting(detections, view, size, config.pixel)
        for detections, view in zip(found, config.views, strict=True)
    ]
    boxes, scores, labels = (np.concatenate(column) for column in zip(*counted, strict=True))
    pixel = config.pixel / size[1], config.pixel / size[0]
    combined = [Combined(boxes[:0], scores[:0], np.zeros(0, np.int64))]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if config.rule == "soft_nms":
            got = soft_nms(boxes[rows], scores[rows], config.iou, config.score, pixel)
        else:
            least = config.score if config.rule == "soft_vote" else None
            got = box_voting(boxes[rows], scores[rows], config.iou, pixel, least)
        combined.append(got._replace(rows=rows[got.rows]))
    boxes, scores, rows = (np.concatenate(column) for column in zip(*combined, strict=True))
    order = np.lexsort((rows, -scores))
    return Detections(boxes[order], scores[order], labels[rows[order]].astype(np.int64))
