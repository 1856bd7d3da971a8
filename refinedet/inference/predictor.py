"""Prediction: from images of any size to detections in their own pixels."""

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


def confident(detections: Detections, score: float) -> Detections:
    """The detections with at least this score, in the same order."""
    kept = detections.scores >= score
    return Detections(*(column[kept] for column in detections))


def in_pixels(detections: Detections, size: tuple[int, int]) -> Detections:
    """Convert boxes from fractions of an image to its pixels; ``size`` is height and width."""
    height, width = size
    scale = np.array([width, height, width, height], np.float32)
    return detections._replace(boxes=detections.boxes * scale)


class Predictor:
    """Runs a network over images, in batches of one size.

    The last batch is padded with blank images, so that a backend that compiles for a shape
    compiles once.
    """

    def __init__(self, network: Network, batch_size: int = 8) -> None:
        self.network = network
        self.batch_size = batch_size
        self.normalise = normaliser(network.config.image)

    def predict(self, images: Iterable[Array]) -> Iterator[Detections]:
        """The detections of each image, in order; reads at most one batch ahead.

        Args:
            images: each (H, W, 3) uint8, RGB, of any size.
        Returns:
            For each image its ``Detections``, boxes in pixels of that image.
        Raises:
            BackendError: outputs that are not finite.
        """
        for size, detections in self.detect(images):
            yield in_pixels(detections, size)

    def detect(self, images: Iterable[Array]) -> Iterator[tuple[tuple[int, int], Detections]]:
        """As ``predict``, with height and width of each image, and boxes as fractions of it."""
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
                    detections = postprocess(b, s, config.detection, (height, width))
                except SpecError as error:
                    raise BackendError(
                        f"the outputs of the model cannot be used: {error}; its parameters "
                        "are damaged, or its training has diverged"
                    ) from error
                yield (height, width), detections
