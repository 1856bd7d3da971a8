"""PASCAL VOC's average precision: of 2007, and of 2010 and later."""

from __future__ import annotations

import math

import numpy as np

from refinedet.evaluation.box_tables import DetectionTable, GroundTruthTable
from refinedet.spec.types import Array


def voc_metrics(
    ground_truth: GroundTruthTable,
    detections: DetectionTable,
    classes: int,
    iou: float = 0.5,
    pixel: float = 1.0,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """VOC's average precision of every class: of 2007, and of 2010 and later.

    Args:
        ground_truth, detections: of all images; ``detections`` by rising image id within
            equal scores.
        classes: how many classes there are.
        iou: an overlap of exactly this is enough.
        pixel: added to every side. The devkit's corners are whole pixels that belong
            to the box, so it adds 1; 0 is for corners that are edges.
    Returns:
        Two tuples of ``classes`` numbers; nan for a class without a ground truth that counts.
    Source: VOCdevkit, VOCevaldet.m (2007 and 2012) and VOCap.m. As there, a
        detection is assigned to its most overlapping ground-truth box only: where a better scored
        one was first, it is a false positive, even if another box is still unmatched.
    """
    voc07, voc12 = [], []
    for c in range(classes):
        t = np.flatnonzero(ground_truth.classes == c)
        d = np.flatnonzero(detections.classes == c)
        d = d[np.argsort(-detections.scores[d], kind="stable")]
        ignored = (ground_truth.difficult | ground_truth.crowd)[t]
        best, overlap = _best_ground_truth(ground_truth, t, detections, d, pixel)
        matched = overlap >= iou
        counted = ~(matched & ignored[best]) if t.size else np.ones(d.size, bool)
        hits = np.zeros(d.size, bool)
        rows = np.flatnonzero(matched & counted)
        hits[rows[np.unique(best[rows], return_index=True)[1]]] = True  # the first of each
        positives = int((~ignored).sum())
        voc07.append(voc07_average_precision(hits[counted], positives))
        voc12.append(voc12_average_precision(hits[counted], positives))
    return tuple(voc07), tuple(voc12)


def _best_ground_truth(
    ground_truth: GroundTruthTable, t: Array, detections: DetectionTable, d: Array, pixel: float
) -> tuple[Array, Array]:
    """For the rows ``d``: position in ``t`` of the most overlapping ground truth, and overlap.

    Ties go to the first ground truth. Without a ground truth in its image: position 0, overlap 0.
    """
    best, overlap = np.zeros(d.size, np.int64), np.zeros(d.size)
    for image_id in np.intersect1d(ground_truth.image_ids[t], detections.image_ids[d]):
        here = np.flatnonzero(ground_truth.image_ids[t] == image_id)
        rows = np.flatnonzero(detections.image_ids[d] == image_id)
        table = voc_overlap(detections.boxes[d[rows]], ground_truth.boxes[t[here]], pixel)
        best[rows] = here[table.argmax(axis=1)]
        overlap[rows] = table.max(axis=1)
    return best, overlap


def voc_overlap(boxes: Array, ground_truth: Array, pixel: float = 1.0) -> Array:
    """The devkit's overlap (D, T) of x_min, y_min, width, height; (D, 4) and (T, 4)."""
    a, t = boxes[:, None], ground_truth[None]
    low = np.maximum(a[..., :2], t[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], t[..., :2] + t[..., 2:])
    shared = (high - low + pixel).clip(0).prod(axis=-1)
    union = (a[..., 2:] + pixel).prod(axis=-1) + (t[..., 2:] + pixel).prod(axis=-1) - shared
    overlap: Array = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
    return overlap


def voc07_average_precision(hits: Array, positives: int) -> float:
    """Mean of the best precision at a recall of at least 0, 0.1, ... 1.

    Recall is compared in whole numbers: 3 of 10 reach 0.3, which rounding in the
    devkit's ``0:0.1:1`` can deny.

    Args:
        hits: (D,) bool, best score first: true or false positive.
        positives: ground truth that count. Without any, the metric is nan.
    Source: Everingham and others, The PASCAL VOC Challenge, 2010, section 4.2.
    """
    if positives == 0:
        return math.nan
    precision = np.append(_best_precision(hits), 0.0)
    reached = np.searchsorted(10 * np.cumsum(hits), np.arange(11) * positives)
    return float(precision[reached].mean())


def voc12_average_precision(hits: Array, positives: int) -> float:
    """Area under the best precision at each recall or above; as ``voc07_...`` otherwise.

    Each hit raises the recall by one part in ``positives``.
    Source: VOC 2012 development kit, section 3.4.1.
    """
    if positives == 0:
        return math.nan
    return float(_best_precision(hits)[hits].sum() / positives)


def _best_precision(hits: Array) -> Array:
    """(D,) float64: the highest precision from each detection on."""
    precision = np.cumsum(hits) / np.arange(1, hits.size + 1)
    best: Array = np.maximum.accumulate(precision[::-1])[::-1]
    return best
