"""From annotated images to the samples of a training, as pure functions of a position.

A training reads an endless row of positions 0, 1, 2, ...; step ``s`` reads the
``batch_size`` positions from ``s * batch_size``. Which image stands at a position,
and how it is augmented, depends on the seed and the position alone. A training
that goes on from step ``s`` therefore needs no other state than ``s``, and any number
of workers gives the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refinedet.backends.process_group import Group, share
from refinedet.data.augment import augment, normaliser
from refinedet.data.dataset import DataError, Dataset
from refinedet.data.images import decode_image
from refinedet.data.targets import ArmTargets
from refinedet.settings import InputSettings
from refinedet.spec.config import Config
from refinedet.spec.errors import Array


class Slice(NamedTuple):
    """Some images in the order in which a training reads them."""

    indices: Array
    """(M,) int64, positions in the list of images; distinct."""
    positions: Array
    """(M,) int64, where in the endless row they stand; rising."""


def reading_order(count: int, seed: int, first: int, last: int) -> Iterator[Slice]:
    """The images at positions ``first`` to ``last`` - 1, one slice an epoch.

    An epoch is ``count`` positions; each shows every image once, in a new order.
    """
    while first < last:
        epoch, start = divmod(first, count)
        stop = min(count, start + last - first)
        order = np.random.default_rng((seed, epoch)).permutation(count)
        yield Slice(order[start:stop], np.arange(first, first + stop - start))
        first += stop - start


def of_worker(part: Slice, batch_size: int, group: Group) -> Slice:
    """What one of several workers reads of a slice: its share of every batch."""
    places = share(batch_size, group)
    place = part.positions % batch_size
    mine = (places.start <= place) & (place < places.stop)
    return Slice(part.indices[mine], part.positions[mine])


def training_objects(dataset: Dataset) -> list[tuple[Array, Array]]:
    """For each record the boxes and labels to train on: all but crowds."""
    return [
        (record.boxes[~record.crowd], record.labels[~record.crowd]) for record in dataset.records
    ]


def places(objects: list[tuple[Array, Array]], expected: int) -> int:
    """Places for objects in a batch: the largest count, in steps of 8.

    Args:
        expected: at least so many; fewer than an image has is an error, as objects
            would be lost.
    Raises:
        DataError: no object at all, or more than ``expected``.
    """
    most = max((len(labels) for _, labels in objects), default=0)
    if most == 0:
        raise DataError("no image has an object to train on")
    if expected and expected < most:
        raise DataError(f"input.max_objects: {expected}, but an image has {most} objects")
    return expected or -(-most // 8) * 8


def padded(boxes: Array, labels: Array, places: int) -> tuple[Array, Array]:
    """The objects of one image as a ``refinedet.backends.interface.Batch`` has them.

    Args:
        boxes: (C, 4). labels: (C,), from 1. places: T, at least C.
    Returns:
        (T, 4) float32 and (T,) int32, zero in the places after the last object.
    """
    all_boxes, all_labels = np.zeros((places, 4), np.float32), np.zeros(places, np.int32)
    all_boxes[: len(boxes)], all_labels[: len(labels)] = boxes, labels
    return all_boxes, all_labels


class SampleMaker:
    """Makes the sample at a position: decode, augment, normalise, match, pad."""

    def __init__(self, config: Config, settings: InputSettings, max_objects: int) -> None:
        self.size = config.image_size
        self.image = config.image
        self.settings = settings
        self.max_objects = max_objects
        self.normalise = normaliser(config.image)
        self.targets = ArmTargets(config)

    def __call__(
        self, encoded: Array, boxes: Array, labels: Array, position: Array
    ) -> tuple[Array, Array, Array, Array, Array]:
        """The rows of a ``refinedet.backends.interface.Batch`` for one position.

        Args:
            encoded: the image's file, bytes.
            boxes: (T, 4) float32, pixels, corner form.
            labels: (T,) int32.
            position: () int64.
        """
        rng = np.random.default_rng((self.settings.seed, int(position), 1))
        image = decode_image(encoded.tobytes(), f"image at position {int(position)}")
        image, boxes, labels = augment(
            image, boxes, labels, rng, self.settings.augment, self.size, self.image
        )
        objects = padded(boxes, labels, self.max_objects)
        return self.normalise(image), *objects, *self.targets(boxes, labels)
