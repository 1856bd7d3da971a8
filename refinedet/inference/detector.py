"""A trained detector as a callable: takes images, returns boxes in pixels, scores and classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refinedet.data.images import check_image, read_image
from refinedet.errors import UsageError
from refinedet.inference.predictor import Predictor, confident
from refinedet.models.open import Model
from refinedet.spec.types import Array
from refinedet.support.text import shown

Image = str | Path | Array
"""An image file, or (H, W, 3) uint8 pixels in the order R, G, B."""


class Detection(NamedTuple):
    """One detected object."""

    name: str
    """Name of the class."""
    score: float
    """From 0 to 1."""
    box: tuple[float, float, float, float]
    """x_min, y_min, x_max, y_max in pixels of the image."""


@dataclass(frozen=True)
class ImageDetections:
    """The objects detected in one image, best first; iterating gives each as a ``Detection``.

    Attributes:
        boxes: (D, 4) float32; x_min, y_min, x_max, y_max in pixels of the image.
        scores: (D,) float32, in descending order.
        labels: (D,) int64, from 1: position in the detector's ``class_names`` plus 1.
        names: D class names.
    """

    boxes: Array
    scores: Array
    labels: Array
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
        for name, score, (x_min, y_min, x_max, y_max) in rows:
            yield Detection(name, score, (x_min, y_min, x_max, y_max))


class Detector:
    """Runs a trained detector on images of any size."""

    def __init__(self, model: Model, batch_size: int = 8) -> None:
        """Run ``model``, with at most ``batch_size`` images in a batch."""
        self.class_names = model.class_names
        self._model = model
        self._batch_size = batch_size

    def __call__(
        self, images: Image | Iterable[Image], score: float = 0.5
    ) -> ImageDetections | list[ImageDetections]:
        """Detect objects in one image or in several.

        Args:
            images: a path, an array (H, W, 3) uint8 in the order R, G, B, or an iterable of
                them.
            score: lowest score of a detection, from 0 to 1.
        Returns:
            The detections in the image; for an iterable, a list of them in the same order.
        Raises:
            DataError: a file that is missing or not an image.
            SpecError: an array with another shape or dtype.
            UsageError: another kind of argument.
        """
        if isinstance(images, str | Path | np.ndarray):
            return next(self._stream([_pixels(images)], _checked(score), 1))
        if not isinstance(images, Iterable):
            raise UsageError(
                f"expected a path, an array, or a list of them, got {shown(images)}", key="images"
            )
        return list(self.stream(map(_pixels, images), score))

    def stream(self, images: Iterable[Array], score: float = 0.5) -> Iterator[ImageDetections]:
        """Yield the detections in each image, in order; read at most one batch ahead."""
        return self._stream(images, _checked(score), self._batch_size)

    def _stream(
        self, images: Iterable[Array], score: float, batch_size: int
    ) -> Iterator[ImageDetections]:
        for detections in Predictor(self._model.network, batch_size).predict(images):
            kept = confident(detections, score)
            names = tuple(self.class_names[label - 1] for label in kept.labels.tolist())
            yield ImageDetections(kept.boxes, kept.scores, kept.labels, names)


def _checked(score: float) -> float:
    if not (isinstance(score, int | float | np.number) and 0 <= score <= 1):
        raise UsageError(f"expected a number from 0 to 1, got {shown(score)}", key="score")
    return score


def _pixels(image: Image) -> Array:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    check_image(image)
    return image
