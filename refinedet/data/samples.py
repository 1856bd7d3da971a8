"""From annotated images to the samples of a training, as pure functions of a position.

A training reads an endless sequence of positions from 0; step ``s`` reads the
``batch_size`` positions from ``s * batch_size``. Which image has a position, and how it is
augmented, depends on the seed and the position alone. A training that is resumed at step
``s`` therefore needs no other state than ``s``, and any number of workers gives the same
batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, SupportsInt

import numpy as np

from refinedet.data.augment import augment, normaliser
from refinedet.data.batch import padded
from refinedet.data.images import decode_image
from refinedet.data.targets import ArmTargets
from refinedet.settings import InputSettings
from refinedet.spec.config import Config
from refinedet.spec.types import Array


class Slice(NamedTuple):
    """Some images in the order in which a training reads them."""

    indices: Array
    """(M,) int64, rows in the list of images; distinct."""
    positions: Array
    """(M,) int64, their positions in the endless sequence; rising."""


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
        self, encoded: Array, boxes: Array, labels: Array, position: SupportsInt
    ) -> tuple[Array, Array, Array, Array, Array]:
        """The rows of a ``refinedet.data.batch.Batch`` for one position.

        Args:
            encoded: the image's file, bytes.
            boxes: (T, 4) float32, pixels, corner form.
            labels: (T,) int32.
            position: from 0; an integer or a () int64 array.
        """
        rng = np.random.default_rng((self.settings.seed, int(position), 1))
        image = decode_image(encoded.tobytes(), f"image at position {int(position)}")
        image, boxes, labels = augment(
            image, boxes, labels, rng, self.settings.augment, self.size, self.image
        )
        objects = padded(boxes, labels, self.max_objects)
        return self.normalise(image), *objects, *self.targets(boxes, labels)
