"""Prediction: images of any size in, detections in their own pixels out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from refinedet.backends.interface import Network
from refinedet.data.augment import normaliser, resize_only
from refinedet.errors import BackendError
from refinedet.inference.postprocessing import postprocess
from refinedet.spec.detection import Detections
from refinedet.spec.errors import SpecError
from refinedet.spec.types import Array


def confident(found: Detections, score: float) -> Detections:
    """The detections with at least this score, in their order."""
    sure = found.scores >= score
    return Detections(found.boxes[sure], found.scores[sure], found.labels[sure])


def in_pixels(found: Detections, size: tuple[int, int]) -> Detections:
    """Detections as fractions of an image in its pixels; ``size`` is height and width."""
    height, width = size
    return found._replace(boxes=found.boxes * np.array([width, height, width, height], np.float32))


class Predictor:
    """Runs a network over images, a fixed number at a time.

    The last batch is filled up, so that a backend that compiles for a shape compiles
    once.
    """

    def __init__(self, network: Network, batch_size: int = 8) -> None:
        self.network = network
        self.batch_size = batch_size
        self.normalise = normaliser(network.config.image)

    def predict(self, images: Iterable[Array]) -> Iterator[Detections]:
        """The detections of each image, in order; reads ahead one batch at most.

        Args:
            images: each (H, W, 3) uint8, RGB, of any size.
        Returns:
            For each the ``Detections``, boxes in pixels of that image.
        """
        for size, found in self.detect(images):
            yield in_pixels(found, size)

    def detect(self, images: Iterable[Array]) -> Iterator[tuple[tuple[int, int], Detections]]:
        """As ``predict``: for each its height and width, and boxes as fractions of it."""
        config = self.network.config
        remaining = iter(images)
        while group := list(itertools.islice(remaining, self.batch_size)):
            batch = np.zeros((self.batch_size, 3, *config.image_size), np.float32)
            for row, image in zip(batch, group, strict=False):
                row[...] = self.normalise(resize_only(image, config.image_size))
            boxes, scores = self.network.scored_boxes(batch)
            for image, b, s in zip(group, boxes, scores, strict=False):
                height, width = image.shape[:2]
                try:
                    found = postprocess(b, s, config.detection, (height, width))
                except SpecError as error:
                    raise BackendError(
                        f"its outputs are no detections: {error}; its parameters are "
                        "damaged, or its training has diverged",
                        key="--model",
                    ) from error
                yield (height, width), found
