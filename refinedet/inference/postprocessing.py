"""From scored boxes to detections: filter, non-maximum suppression, limits.

The result equals that of ``spec.detection.detect``, ties and order included, and is computed
faster. Candidates are selected before they are sorted. Suppression treats all classes
together, in rounds of one block of each class's best candidates, and skips a class that has
its maximum number of detections. Only pairs of one class are compared: a kept or a new
candidate with a new one of lower rank.
"""

from __future__ import annotations

import numpy as np

from refinedet.spec.boxes import area, lengthened
from refinedet.spec.config import DetectionConfig
from refinedet.spec.detection import Detections, pixel_sides
from refinedet.spec.errors import SpecError, check_boxes, check_float, check_shape
from refinedet.spec.types import Array

BLOCK = 64
"""Candidates of a class in one round."""
GROUP = 4096
"""Candidates, of whole classes, that are treated together; limits the memory."""


def postprocess(
    boxes: Array, scores: Array, config: DetectionConfig, size: tuple[int, int] | None = None
) -> Detections:
    """The detections of one image; ``spec.detection``, steps 3 to 5.

    Args:
        boxes: (A, 4) float32, corner form; an anchor has one box for all classes.
        scores: (A, K) float32; column 0 is the background and is ignored.
        size: height and width of the original image; see ``spec.detection.detect``.
    Raises:
        SpecError: shapes, dtypes, crossed corners.
    """
    check_boxes(boxes=boxes)
    check_float(boxes=boxes, scores=scores)
    check_shape(scores, "scores", len(boxes), None)
    if scores.shape[1] < 2:
        raise SpecError("expected a column for the background and one for each class", key="scores")
    pixel = pixel_sides(config, size)
    if config.clip_first:
        boxes = clip_boxes(boxes)
    above = scores > config.score
    above[:, 0] = False
    flat = np.flatnonzero(above)  # by rising anchor, then rising class
    score = scores.ravel()[flat]
    order = _best_first(score, config.top_before_nms)
    score = score[order]
    anchor, label = np.divmod(flat[order], scores.shape[1])

    by_class = np.argsort(label, kind="stable")  # each class best first
    by_class = by_class[_rank(label[by_class]) < (config.top_before_nms_per_class or len(score))]
    kept = suppress(boxes[anchor[by_class]], label[by_class], config, pixel)
    rows = np.sort(by_class[kept])[: config.top]
    kept_boxes = boxes[anchor[rows]]
    if config.clip:
        kept_boxes = clip_boxes(kept_boxes)
    return Detections(kept_boxes, score[rows], label[rows])


def clip_boxes(boxes: Array) -> Array:
    """``spec.boxes.clip_boxes``: boxes (N, 4) clipped to the image."""
    clipped: Array = boxes.clip(0, 1)
    return clipped


def _best_first(score: Array, top: int | None) -> Array:
    """The first ``top`` rows by falling score; equal scores keep their order."""
    if top is None or top >= len(score):
        return np.argsort(-score, kind="stable")
    lowest = np.partition(score, len(score) - top)[len(score) - top]
    rows = np.flatnonzero(score >= lowest)
    best: Array = rows[np.argsort(-score[rows], kind="stable")[:top]]
    return best


def _rank(label: Array) -> Array:
    """Number of earlier rows with the same label, for each row; ``label`` is sorted."""
    rank: Array = np.arange(len(label)) - np.searchsorted(label, label)
    return rank


def _largest_kept(iou: float) -> float:
    """The largest float64 that, rounded to float32 as in the specification, is at most ``iou``."""
    exact = np.float32(iou)
    middle = (float(exact) + float(np.nextafter(exact, np.float32(2)))) / 2
    return middle if np.float32(middle) == exact else float(np.nextafter(middle, 0))


def nms(boxes: Array, scores: Array, iou: float, pixel: tuple[float, float] = (0.0, 0.0)) -> Array:
    """Non-maximum suppression within one class: ``spec.detection.nms`` for valid boxes."""
    order = np.argsort(-scores, kind="stable")
    config = DetectionConfig(nms_iou=iou)
    return order[suppress(boxes[order], np.ones(len(order), np.int64), config, pixel)]


def suppress(
    boxes: Array, label: Array, config: DetectionConfig, pixel: tuple[float, float] = (0.0, 0.0)
) -> Array:
    """The rows that are kept, of candidates sorted by class, each class best first.

    ``pixel`` is added to widths and heights when overlaps are computed.
    """
    rank, longer = _rank(label), lengthened(boxes, pixel)
    kept = [np.zeros(0, np.int64)]
    start = 0
    while start < len(label):
        # Whole classes, up to the one with which the group is full.
        last = min(start + GROUP, len(label)) - 1
        stop = int(np.searchsorted(label, label[last], side="right"))
        group = slice(start, stop)
        kept.append(start + _suppress_group(longer[group], label[group], rank[group], config))
        start = stop
    return np.concatenate(kept)


def _suppress_group(
    boxes: Array,
    label: Array,
    rank: Array,
    config: DetectionConfig,
) -> Array:
    """``suppress`` for some whole classes, in rounds of one block of each."""
    corners = np.ascontiguousarray(boxes.T)
    limit = _largest_kept(config.nms_iou)
    cap = config.top_per_class or len(label)
    kept = np.zeros(0, np.int64)
    for first_rank in range(0, int(rank.max()) + 1, BLOCK):
        block = np.flatnonzero((rank >= first_rank) & (rank < first_rank + BLOCK))
        full = np.bincount(label[kept], minlength=int(label[-1]) + 1) >= cap
        block = block[~full[label[block]]]
        pool = np.sort(np.concatenate([kept, block]))  # kept ones precede new ones of their class
        before = _rank(label[pool])
        new = np.flatnonzero(rank[pool] >= first_rank)
        later = np.repeat(new, before[new])
        earlier = later - 1 - _countdown(before[new])
        clash = _overlaps(corners, pool[earlier], pool[later]) > limit
        alive = np.ones(len(pool), bool)
        for i, j in zip(earlier[clash].tolist(), later[clash].tolist(), strict=True):
            if alive[i]:  # final: pairs are in order of j
                alive[j] = False
        kept = pool[alive]
        kept = kept[_rank(label[kept]) < cap]
    return kept


def _countdown(counts: Array) -> Array:
    """For each count n, the numbers from n - 1 down to 0, concatenated."""
    return np.repeat(np.cumsum(counts), counts) - 1 - np.arange(counts.sum())


def _overlaps(corners: Array, first: Array, second: Array) -> Array:
    """IoU of pairs of columns of ``corners``, (4, M) float64, as ``spec.boxes.box_iou``."""
    a, b = corners.take(first, axis=1), corners.take(second, axis=1)
    union: Array = area(a.T) + area(b.T)
    sides = np.minimum(a[2:], b[2:], out=a[2:])
    sides -= np.maximum(a[:2], b[:2], out=a[:2])
    np.maximum(sides, 0, out=sides)
    shared = sides[0] * sides[1]
    union -= shared
    iou: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou
