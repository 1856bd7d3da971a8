"""The objects of a data set and the detections on it, as columns: what metrics read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refinedet.data.dataset import Dataset
from refinedet.spec.types import Array


class GroundTruthTable(NamedTuple):
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


class DetectionTable(NamedTuple):
    """Detections of many images; M rows, each image's in their order."""

    image_ids: Array
    """(M,) int64, image ids."""
    classes: Array
    """(M,) int64, from 0."""
    boxes: Array
    """(M, 4) float64, pixels: x_min, y_min, width, height."""
    scores: Array
    """(M,) float64, finite."""


def ground_truth_table(dataset: Dataset) -> GroundTruthTable:
    """All objects of a data set of at least one image, by rising image id."""
    records = sorted(dataset.records, key=lambda record: record.image_id)
    boxes = np.concatenate([record.boxes for record in records]).astype(np.float64)
    return GroundTruthTable(
        np.repeat([record.image_id for record in records], [len(r.boxes) for r in records]),
        np.concatenate([record.labels for record in records]).astype(np.int64) - 1,
        np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]),
        np.concatenate([record.areas for record in records]).astype(np.float64),
        np.concatenate([record.crowd for record in records]).astype(bool),
        np.concatenate([record.difficult for record in records]).astype(bool),
    )
