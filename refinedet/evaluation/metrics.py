"""Evaluation of detections by the metrics of COCO and of PASCAL VOC.

An ``Evaluator`` takes the final detections of one image after another and keeps
nothing else. At the end it computes COCO's twelve metrics (``coco_metrics``) and VOC's average
precision (``voc_metrics``).

A metric with nothing to measure (no ground truth of that class or size) is nan here, null in
JSON, "-" in a table; the COCO API prints -1. Such classes are left out of a mean.

COCO has crowds and no difficult objects, VOC the reverse. So COCO's metrics count a
difficult object as any other, and VOC's treat a crowd as a difficult object.

Metrics do not depend on the order in which images are added. Equal scores are ranked
by rising image id, then in the order of the detections, which the specification fixes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refinedet.data.dataset import Dataset
from refinedet.errors import DataError
from refinedet.evaluation.box_tables import DetectionTable, ground_truth_table
from refinedet.evaluation.coco_metrics import COCO_METRICS, Progress, coco_metrics
from refinedet.evaluation.voc_metrics import voc_metrics
from refinedet.spec.detection import Detections
from refinedet.spec.errors import SpecError, check_boxes, check_float, check_labels, check_shape
from refinedet.spec.types import Array


@dataclass(frozen=True)
class Evaluation:
    """The metrics, each from 0 to 1 or nan; by class in the order of ``class_names``."""

    class_names: tuple[str, ...]
    coco: Mapping[str, float]
    """The twelve of ``COCO_METRICS``."""
    coco_classes: tuple[float, ...]
    """COCO's AP of every class."""
    voc07_classes: tuple[float, ...] = ()
    """VOC 2007's AP of every class; empty where it was not computed."""
    voc12_classes: tuple[float, ...] = ()
    """The same for VOC 2010 and later."""

    @property
    def metrics(self) -> dict[str, float]:
        """COCO's twelve, then VOC07 and VOC12 (means over the classes) if computed."""
        metrics = dict(self.coco)
        if self.voc07_classes:
            metrics["VOC07"] = _mean(self.voc07_classes)
            metrics["VOC12"] = _mean(self.voc12_classes)
        return metrics

    def as_dict(self, by_class: bool = False) -> dict[str, Any]:
        """For JSON: ``metrics`` by name, None for nan; ``by_class`` adds "classes"."""
        content: dict[str, Any] = {name: _or_none(x) for name, x in self.metrics.items()}
        if by_class:
            content["classes"] = [
                {"class": name, **{metric: _or_none(x) for metric, x in row.items()}}
                for name, row in self.rows_by_class()
            ]
        return content

    def rows_by_class(self) -> Iterator[tuple[str, dict[str, float]]]:
        """Every class's name with its AP, and its VOC07 and VOC12 if computed."""
        columns = {"AP": self.coco_classes}
        if self.voc07_classes:
            columns |= {"VOC07": self.voc07_classes, "VOC12": self.voc12_classes}
        for row, name in enumerate(self.class_names):
            yield name, {metric: column[row] for metric, column in columns.items()}


class Evaluator:
    """Collects the detections of every image of a data set, then computes the metrics."""

    def __init__(self, dataset: Dataset) -> None:
        """Evaluate on all images of ``dataset``; ``DataError`` if it has none."""
        if not dataset.records:
            raise DataError("no usable image to evaluate on", key=dataset.name)
        self.dataset = dataset
        self.detections: dict[int, Detections] = {}
        """By image id; boxes in pixels."""
        self._image_ids = sorted(record.image_id for record in dataset.records)
        self._expected = frozenset(self._image_ids)

    def add(self, image_id: int, detections: Detections) -> None:
        """Add the detections of one image.

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
        if image_id in self.detections:
            raise SpecError(f"{image_id} was added before", key="image_id")
        check_boxes(boxes=detections.boxes)
        check_float(boxes=detections.boxes, scores=detections.scores)
        count = len(detections.boxes)
        check_shape(detections.scores, "scores", count)
        check_labels(detections.labels, "labels", len(self.dataset.class_names) + 1, lowest=1)
        check_shape(detections.labels, "labels", count)
        self.detections[image_id] = Detections(
            detections.boxes.copy(), detections.scores.copy(), detections.labels.copy()
        )

    def result(self, progress: Progress = iter) -> Evaluation:
        """All metrics; ``progress`` iterates over the classes.

        Raises:
            SpecError: some image was not added; its objects would count as missed.
        """
        if missing := self._expected - self.detections.keys():
            raise SpecError(
                f"{len(missing)} of {len(self._expected)} images were not "
                f"added, the first has image id {min(missing)}",
                key="evaluation",
            )
        names = self.dataset.class_names
        ground_truth, detections = ground_truth_table(self.dataset), self._table()
        coco, coco_classes = coco_metrics(ground_truth, detections, len(names), progress)
        voc07, voc12 = voc_metrics(ground_truth, detections, len(names))
        return Evaluation(names, coco, coco_classes, voc07, voc12)

    def _table(self) -> DetectionTable:
        parts = [self.detections[image_id] for image_id in self._image_ids]
        boxes = np.concatenate([part.boxes for part in parts]).astype(np.float64)
        return DetectionTable(
            np.repeat(np.asarray(self._image_ids), [len(part.boxes) for part in parts]),
            np.concatenate([part.labels for part in parts]).astype(np.int64) - 1,
            np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]),
            np.concatenate([part.scores for part in parts]).astype(np.float64),
        )


def evaluation_table(evaluation: Evaluation, by_class: bool = False) -> str:
    """The metrics as aligned lines of text, without a line end at the end.

    Args:
        by_class: adds a second table with a row for every class.
    """
    rows = [("metric", "IoU", "size", "detections", "value")]
    for name, x in evaluation.metrics.items():
        rows.append((name, *COCO_METRICS.get(name, ("0.50", "all", "all")), _cell(x)))
    table = aligned(rows, left=3)
    if by_class:
        classes = [(name, row) for name, row in evaluation.rows_by_class()]
        head = ("class", *(classes[0][1] if classes else ()))
        body = [(name, *map(_cell, row.values())) for name, row in classes]
        table += "\n\n" + aligned([head, *body], left=1)
    return table


def aligned(rows: Sequence[tuple[str, ...]], left: int) -> str:
    """Rows of cells as lines: columns two spaces apart, the first ``left`` aligned to the left."""
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
    """Mean without the values that are nan; nan where no other is left."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else math.nan
