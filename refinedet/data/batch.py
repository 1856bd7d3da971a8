"""What one training step reads, and how objects are padded to fit it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refinedet.data.dataset import Dataset
from refinedet.errors import DataError
from refinedet.spec.types import Array


class Batch(NamedTuple):
    """What one training step reads. N images, A anchors, T padded slots for objects."""

    images: Array
    """(N, 3, H, W) float32, normalised."""
    boxes: Array
    """(N, T, 4) float32, corner form, fractions; zero where ``labels`` is 0."""
    labels: Array
    """(N, T) int32: classes from 1; 0 marks a padded slot, after all objects."""
    arm_offsets: Array
    """(N, A, 4) float32: ``spec.matching.targets`` on the anchors, offsets."""
    arm_labels: Array
    """(N, A) int32: the same, classes; 0 is background."""


def training_objects(dataset: Dataset) -> list[tuple[Array, Array]]:
    """For each record the boxes and labels to train on: all but crowds."""
    return [
        (record.boxes[~record.crowd], record.labels[~record.crowd]) for record in dataset.records
    ]


def slot_count(objects: list[tuple[Array, Array]], max_objects: int) -> int:
    """Padded slots for the objects of an image in a batch.

    Args:
        max_objects: the number of slots; 0 takes the largest count, rounded up to a multiple
            of 8.
    Raises:
        DataError: there is no object, or an image has more than ``max_objects``, which would
            lose objects.
    """
    most = max((len(labels) for _, labels in objects), default=0)
    if most == 0:
        raise DataError("no image has an object to train on")
    if max_objects and max_objects < most:
        raise DataError(f"{max_objects}, but an image has {most} objects", key="input.max_objects")
    return max_objects or -(-most // 8) * 8


def padded(boxes: Array, labels: Array, slots: int) -> tuple[Array, Array]:
    """The objects of one image as a ``refinedet.data.batch.Batch`` has them.

    Args:
        boxes: (C, 4). labels: (C,), from 1. slots: T, at least C.
    Returns:
        (T, 4) float32 and (T,) int32, zero in the slots after the last object.
    """
    all_boxes, all_labels = np.zeros((slots, 4), np.float32), np.zeros(slots, np.int32)
    all_boxes[: len(boxes)], all_labels[: len(labels)] = boxes, labels
    return all_boxes, all_labels
