"""Evaluation: how good detections are, by COCO's metrics and by PASCAL VOC's.

An ``Evaluator`` is given the final detections of one image after another and keeps
nothing else. At the end:

1. COCO's twelve metrics, computed by pycocotools. It runs class by class, so that its
   memory is that of one class, and sees only the images that matter to the class.
2. PASCAL VOC's average precision at an overlap of 0.5: of 2007 (mean of the precision
   at eleven recalls) and of 2010 and later (area under the curve).

A metric with nothing to measure (no ground truth of that class or size) is nan here, null in
JSON, "-" in a table; the COCO API prints -1. A mean leaves such classes out.

COCO knows crowds and no difficult objects, VOC the reverse. So COCO's metrics count a
difficult object as any other, and VOC's treat a crowd as a difficult object.

Metrics do not depend on the order in which images are added. Equal scores are ranked
by rising image id, then in the order of the detections, which the specification fixes.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refinedet.data.dataset import Dataset
from refinedet.errors import DataError
from refinedet.spec.detection import Detections
from refinedet.spec.errors import SpecError, check_boxes, check_float, check_labels, check_shape
from refinedet.spec.types import Array

METRICS = {
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
"""Passes the classes on while it shows how far one is, as ``tqdm.tqdm`` does. COCO's
metrics of 5,000 images with 80 classes take a minute."""


class GroundTruth(NamedTuple):
    """The objects of a data set; M rows."""

    image_ids: Array
    """(M,) int64, image ids."""
    classes: Array
    """(M,) int64, from 0."""
    boxes: Array
    """(M, 4) float64, pixels: x_min, y_min, width, height, as COCO has them."""
    areas: Array
    """(M,) float64, square pixels; COCO sorts objects into sizes by it."""
    crowd: Array
    """(M,) bool."""
    difficult: Array
    """(M,) bool."""


class Found(NamedTuple):
    """Detections of many images; M rows, each image's in their order."""

    image_ids: Array
    """(M,) int64, image ids."""
    classes: Array
    """(M,) int64, from 0."""
    boxes: Array
    """(M, 4) float64, pixels: x_min, y_min, width, height."""
    scores: Array
    """(M,) float64, finite."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics, each from 0 to 1 or nan; by class in the order of ``class_names``."""

    class_names: tuple[str, ...]
    coco: Mapping[str, float]
    """The twelve of ``METRICS``."""
    coco_classes: tuple[float, ...]
    """COCO's AP of every class."""
    voc07_classes: tuple[float, ...] = ()
    """VOC 2007's AP of every class; empty where it was not computed."""
    voc12_classes: tuple[float, ...] = ()
    """The same for VOC 2010 and later."""

    @property
    def metrics(self) -> dict[str, float]:
        """COCO's twelve, then VOC07 and VOC12 (means over the classes) if computed."""
        found = dict(self.coco)
        if self.voc07_classes:
            found["VOC07"] = _mean(self.voc07_classes)
            found["VOC12"] = _mean(self.voc12_classes)
        return found

    def as_dict(self, by_class: bool = False) -> dict[str, Any]:
        """For JSON: ``metrics`` by name, None for nan; ``by_class`` adds "classes"."""
        known: dict[str, Any] = {name: _or_none(x) for name, x in self.metrics.items()}
        if by_class:
            known["classes"] = [
                {"class": name, **{metric: _or_none(x) for metric, x in row.items()}}
                for name, row in self.rows_by_class()
            ]
        return known

    def rows_by_class(self) -> Iterator[tuple[str, dict[str, float]]]:
        """Every class's name with its AP, and its VOC07 and VOC12 if computed."""
        columns = {"AP": self.coco_classes}
        if self.voc07_classes:
            columns |= {"VOC07": self.voc07_classes, "VOC12": self.voc12_classes}
        for row, name in enumerate(self.class_names):
            yield name, {metric: column[row] for metric, column in columns.items()}


class Evaluator:
    """Collects the detections of every image of a data set, then judges them."""

    def __init__(self, dataset: Dataset) -> None:
        """Evaluate on all images of ``dataset``; DataError where there is none."""
        if not dataset.records:
            raise DataError("no usable image to evaluate on", key=dataset.name)
        self.dataset = dataset
        self.found: dict[int, Detections] = {}
        """Image id to its detections, boxes in pixels: all that is kept."""
        self._image_ids = sorted(record.image_id for record in dataset.records)
        self._expected = frozenset(self._image_ids)

    def add(self, image_id: int, detections: Detections) -> None:
        """Take the detections of one image.

        Args:
            image_id: ``Record.image_id``; every image is added once.
            detections: boxes (D, 4) float32 or float64 in PIXELS of the original
                image, corner form; scores (D,), same dtype; labels (D,) integers,
                from 1. D may be 0. Copied.
        Raises:
            SpecError: unknown image id, or one that was added before; shapes,
                dtypes, non-finite values, crossed corners, labels out of range.
        """
        if image_id not in self._expected:
            raise SpecError(f"{image_id} is not in {self.dataset.name}", key="image_id")
        if image_id in self.found:
            raise SpecError(f"{image_id} was added before", key="image_id")
        check_boxes(boxes=detections.boxes)
        check_float(boxes=detections.boxes, scores=detections.scores)
        count = len(detections.boxes)
        check_shape(detections.scores, "scores", count)
        check_labels(detections.labels, "labels", len(self.dataset.class_names) + 1, lowest=1)
        check_shape(detections.labels, "labels", count)
        self.found[image_id] = Detections(
            detections.boxes.copy(), detections.scores.copy(), detections.labels.copy()
        )

    def result(self, progress: Progress = iter) -> Evaluation:
        """All metrics; ``progress`` is shown the classes.

        Raises:
            SpecError: some image was not added; it would silently count as missed.
        """
        if missing := self._expected - self.found.keys():
            raise SpecError(
                f"{len(missing)} of {len(self._expected)} images were not "
                f"added, the first has image id {min(missing)}",
                key="evaluation",
            )
        names = self.dataset.class_names
        ground_truth, found = dataset_ground_truth(self.dataset), self._rows()
        coco, coco_classes = coco_metrics(ground_truth, found, len(names), progress)
        voc07, voc12 = voc_metrics(ground_truth, found, len(names))
        return Evaluation(names, coco, coco_classes, voc07, voc12)

    def _rows(self) -> Found:
        parts = [self.found[image_id] for image_id in self._image_ids]
        boxes = np.concatenate([part.boxes for part in parts]).astype(np.float64)
        return Found(
            np.repeat(np.asarray(self._image_ids), [len(part.boxes) for part in parts]),
            np.concatenate([part.labels for part in parts]).astype(np.int64) - 1,
            np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]),
            np.concatenate([part.scores for part in parts]).astype(np.float64),
        )


def dataset_ground_truth(dataset: Dataset) -> GroundTruth:
    """All objects of a data set of at least one image, by rising image id."""
    records = sorted(dataset.records, key=lambda record: record.image_id)
    boxes = np.concatenate([record.boxes for record in records]).astype(np.float64)
    return GroundTruth(
        np.repeat([record.image_id for record in records], [len(r.boxes) for r in records]),
        np.concatenate([record.labels for record in records]).astype(np.int64) - 1,
        np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]),
        np.concatenate([record.areas for record in records]).astype(np.float64),
        np.concatenate([record.crowd for record in records]).astype(bool),
        np.concatenate([record.difficult for record in records]).astype(bool),
    )


# COCO ------------------------------------------------------------------------------


def coco_metrics(
    ground_truth: GroundTruth, found: Found, classes: int, progress: Progress = iter
) -> tuple[dict[str, float], tuple[float, ...]]:
    """COCO's twelve metrics and the AP of every class, by pycocotools.

    A metric is a mean over classes, so one class at a time gives the same numbers.

    Args:
        ground_truth, found: of all images; either may have no rows.
        classes: how many classes there are, C from 1.
        progress: is shown the classes.
    Returns:
        The metrics by name, and C numbers.
    """
    curves = [_coco_curves(ground_truth, found, c) for c in progress(range(classes))]
    judge = COCOeval(iouType="bbox")
    judge.eval = {
        "precision": np.concatenate([precision for precision, _ in curves], axis=2),
        "recall": np.concatenate([recall for _, recall in curves], axis=1),
    }
    with _silence():
        judge.summarize()
    metrics = {
        name: float(x) if x >= 0 else math.nan for name, x in zip(METRICS, judge.stats, strict=True)
    }
    by_class = tuple(
        _mean(precision[:, :, 0, 0, -1][precision[:, :, 0, 0, -1] > -1]) for precision, _ in curves
    )
    return metrics, by_class


def _coco_curves(ground_truth: GroundTruth, found: Found, expected: int) -> tuple[Array, Array]:
    """Precision (T, R, 1, A, M) and recall (T, 1, A, M) of one class, as COCOeval's."""
    t = np.flatnonzero(ground_truth.classes == expected)
    f = np.flatnonzero(found.classes == expected)
    image_ids = np.union1d(ground_truth.image_ids[t], found.image_ids[f]).tolist()
    areas = found.boxes[f, 2:].prod(axis=1)
    with _silence():
        real = _coco_set(
            image_ids,
            ground_truth.image_ids[t],
            ground_truth.boxes[t],
            ground_truth.areas[t],
            iscrowd=ground_truth.crowd[t],
        )
        claimed = _coco_set(
            image_ids, found.image_ids[f], found.boxes[f], areas, score=found.scores[f]
        )
        judge = COCOeval(real, claimed, "bbox")
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"], judge.eval["recall"]


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
    made = COCO()
    made.dataset = {
        "images": [{"id": i} for i in listed],
        "categories": [{"id": 1}],
        "annotations": annotations,
    }
    made.createIndex()
    return made


def _silence() -> contextlib.AbstractContextManager[Any]:
    """For pycocotools, which always prints."""
    return contextlib.redirect_stdout(io.StringIO())


# PASCAL VOC --------------------------------------------------------------------------


def voc_metrics(
    ground_truth: GroundTruth, found: Found, classes: int, iou: float = 0.5, pixel: float = 1.0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """VOC's average precision of every class: of 2007, and of 2010 and later.

    Args:
        ground_truth, found: of all images; ``found`` by rising image id within equal scores.
        classes: how many classes there are.
        iou: an overlap of exactly this is enough.
        pixel: added to every side. The devkit's corners are whole pixels that belong
            to the box, so it adds 1; 0 is for corners that are edges.
    Returns:
        Twice ``classes`` numbers; nan for a class without a ground truth that counts.
    Source: VOCdevkit, VOCevaldet.m (2007 and 2012) and VOCap.m. As there, a
        detection is assigned to its most overlapping ground-truth box only: where a better scored
        one was first, it is a false positive, even if another box is still unmatched.
    """
    voc07, voc12 = [], []
    for c in range(classes):
        t = np.flatnonzero(ground_truth.classes == c)
        f = np.flatnonzero(found.classes == c)
        f = f[np.argsort(-found.scores[f], kind="stable")]
        ignored = (ground_truth.difficult | ground_truth.crowd)[t]
        best, overlap = _best_ground_truth(ground_truth, t, found, f, pixel)
        matched = overlap >= iou
        counted = ~(matched & ignored[best]) if t.size else np.ones(f.size, bool)
        hits = np.zeros(f.size, bool)
        rows = np.flatnonzero(matched & counted)
        hits[rows[np.unique(best[rows], return_index=True)[1]]] = True  # the first of each
        positives = int((~ignored).sum())
        voc07.append(voc07_average_precision(hits[counted], positives))
        voc12.append(voc12_average_precision(hits[counted], positives))
    return tuple(voc07), tuple(voc12)


def _best_ground_truth(
    ground_truth: GroundTruth, t: Array, found: Found, f: Array, pixel: float
) -> tuple[Array, Array]:
    """For the rows ``f``: position in ``t`` of the most overlapping ground truth, and overlap.

    Ties go to the first ground truth. Without a ground truth in its image: position 0, overlap 0.
    """
    best, overlap = np.zeros(f.size, np.int64), np.zeros(f.size)
    for image_id in np.intersect1d(ground_truth.image_ids[t], found.image_ids[f]):
        here = np.flatnonzero(ground_truth.image_ids[t] == image_id)
        rows = np.flatnonzero(found.image_ids[f] == image_id)
        table = voc_overlap(found.boxes[f[rows]], ground_truth.boxes[t[here]], pixel)
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


# Tables --------------------------------------------------------------------------------


def evaluation_table(evaluation: Evaluation, by_class: bool = False) -> str:
    """The metrics as aligned lines of text, without a line end at the end.

    Args:
        by_class: adds a second table with a row for every class.
    """
    rows = [("metric", "IoU", "size", "detections", "value")]
    for name, x in evaluation.metrics.items():
        rows.append((name, *METRICS.get(name, ("0.50", "all", "all")), _cell(x)))
    table = aligned(rows, left=3)
    if by_class:
        classes = [(name, row) for name, row in evaluation.rows_by_class()]
        head = ("class", *(classes[0][1] if classes else ()))
        body = [(name, *map(_cell, row.values())) for name, row in classes]
        table += "\n\n" + aligned([head, *body], left=1)
    return table


def aligned(rows: Sequence[tuple[str, ...]], left: int) -> str:
    """Rows of cells as lines: columns two spaces apart, the first ``left`` set to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _cell(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.3f}"


def _or_none(x: float) -> float | None:
    return None if math.isnan(x) else x


def _mean(values: Sequence[float] | Array) -> float:
    """Mean of what is not nan; nan where nothing is left."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else math.nan
