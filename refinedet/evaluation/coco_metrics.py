"""COCO's twelve metrics, computed by pycocotools.

They are computed class by class, so that memory is needed for one class at a time, and each
class reads only the images that have an object or a detection of it.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refinedet.evaluation.box_tables import DetectionTable, GroundTruthTable
from refinedet.spec.types import Array

COCO_METRICS = {
    "AP": ("0.50:0.95", "all", "100"),
    "AP50": ("0.50", "all", "100"),
    "AP75": ("0.75", "all", "100"),
    "APs": ("0.50:0.95", "small", "100"),
    "APm": ("0.50:0.95", "medium", "100"),
    "APl": ("0.50:0.95", "large", "100"),
    "AR1": ("0.50:0.95", "all", "1"),
    "AR10": ("0.50:0.95", "all", "10"),
    "AR100": ("0.50:0.95", "all", "100"),
    "ARs": ("0.50:0.95", "small", "100"),
    "ARm": ("0.50:0.95", "medium", "100"),
    "ARl": ("0.50:0.95", "large", "100"),
}
"""COCO's metrics in the API's order: overlaps, sizes of objects, detections an image
and class. Small is an area up to 32 x 32 square pixels, large is one from 96 x 96."""

Progress = Callable[[range], Iterable[int]]
"""Iterates over the classes and may show a progress bar, as ``tqdm.tqdm`` does: COCO's
metrics of 5,000 images with 80 classes take a minute."""


def coco_metrics(
    ground_truth: GroundTruthTable,
    detections: DetectionTable,
    classes: int,
    progress: Progress = iter,
) -> tuple[dict[str, float], tuple[float, ...]]:
    """COCO's twelve metrics and the AP of every class, by pycocotools.

    A metric is a mean over classes, so one class at a time gives the same numbers.

    Args:
        ground_truth, detections: of all images; either may have no rows.
        classes: how many classes there are, C from 1.
        progress: iterates over the classes.
    Returns:
        The metrics by name, and C numbers.
    """
    curves = [_curves(ground_truth, detections, c) for c in progress(range(classes))]
    summary = COCOeval(iouType="bbox")
    summary.eval = {
        "precision": np.concatenate([precision for precision, _ in curves], axis=2),
        "recall": np.concatenate([recall for _, recall in curves], axis=1),
    }
    with _silence():
        summary.summarize()
    metrics = {
        name: float(x) if x >= 0 else math.nan
        for name, x in zip(COCO_METRICS, summary.stats, strict=True)
    }
    return metrics, tuple(_class_ap(precision[:, :, 0, 0, -1]) for precision, _ in curves)


def _class_ap(precision: Array) -> float:
    """AP of one class from its precision (T, R), which is -1 where there is no ground truth."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan


def _curves(
    ground_truth: GroundTruthTable, detections: DetectionTable, class_index: int
) -> tuple[Array, Array]:
    """Precision (T, R, 1, A, M) and recall (T, 1, A, M) of one class, as COCOeval's."""
    t = np.flatnonzero(ground_truth.classes == class_index)
    d = np.flatnonzero(detections.classes == class_index)
    image_ids = np.union1d(ground_truth.image_ids[t], detections.image_ids[d]).tolist()
    areas = detections.boxes[d, 2:].prod(axis=1)
    with _silence():
        objects = _coco_set(
            image_ids,
            ground_truth.image_ids[t],
            ground_truth.boxes[t],
            ground_truth.areas[t],
            iscrowd=ground_truth.crowd[t],
        )
        results = _coco_set(
            image_ids,
            detections.image_ids[d],
            detections.boxes[d],
            areas,
            score=detections.scores[d],
        )
        evaluation = COCOeval(objects, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _coco_set(
    listed: Sequence[int], image_ids: Array, boxes: Array, areas: Array, **extra: Array
) -> Any:
    """A COCO object of one class. Ids run from 1: COCOeval reads 0 as "unmatched"."""
    rows = zip(image_ids.tolist(), boxes.tolist(), areas.tolist(), strict=True)
    annotations = [
        {"id": i, "image_id": image, "category_id": 1, "bbox": box, "area": area, "iscrowd": 0}
        for i, (image, box, area) in enumerate(rows, start=1)
    ]
    for name, column in extra.items():
        for annotation, x in zip(annotations, column.tolist(), strict=True):
            annotation[name] = x
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in listed],
        "categories": [{"id": 1}],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _silence() -> contextlib.AbstractContextManager[Any]:
    """For pycocotools, which always prints."""
    return contextlib.redirect_stdout(io.StringIO())
