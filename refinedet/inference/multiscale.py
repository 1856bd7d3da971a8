"""Multi-scale testing: predictions at several input sizes, also mirrored, are fused.

The paper's rows with a "+" are measured so. Each input size of the views gets a network with
the same parameters. Anchors keep their sides in input pixels at every size, also with presets
whose anchors are larger for larger inputs (the model zoo's), because the offsets were trained
with anchors of these sides, on features of this scale.

The networks of all sizes stay in memory, each with its own copy of the parameters if the
backend makes one. A batch of images stays in memory until all views of it are evaluated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from refinedet.backends.interface import Network
from refinedet.inference.predictor import Predictor, in_pixels
from refinedet.spec.config import Config, replace
from refinedet.spec.detection import Detections
from refinedet.spec.fusion import FusionConfig, View, fuse
from refinedet.spec.types import Array


class MultiScalePredictor:
    """As ``refinedet.inference.predictor.Predictor``, by several views of each image."""

    def __init__(
        self,
        network: Network,
        fusion: FusionConfig,
        rebuild: Callable[[Config], Network],
        batch_size: int = 8,
    ) -> None:
        """Make the networks of all input sizes.

        Args:
            network: that of the config's own ``image_size``.
            rebuild: gives the same detector for a config with another ``image_size``; called
                once for each size. Its errors are raised here.
        """
        self.config = network.config
        self.fusion = fusion
        self.rebuild = rebuild
        self.batch_size = batch_size
        self._predictors = {self.config.image_size: Predictor(network, batch_size)}
        for view in fusion.views:  # now: an error must not come after hours of evaluation
            for image in ((1, 1), (1, 2)):
                self._predictor(view.input_size(self.config.image_size, image))

    def predict(self, images: Iterable[Array]) -> Iterator[Detections]:
        """See ``Predictor.predict``."""
        remaining = iter(images)
        while group := list(itertools.islice(remaining, self.batch_size)):
            views = [self._detect(view, group) for view in self.fusion.views]
            for image, detections in zip(group, zip(*views, strict=True), strict=True):
                height, width = image.shape[:2]
                fused = fuse(detections, self.fusion, (height, width))
                yield in_pixels(fused, (height, width))

    def _detect(self, view: View, group: list[Array]) -> list[Detections]:
        """The detections of each image in a view; boxes as fractions of that view."""
        rows: dict[tuple[int, int], list[int]] = {}
        for row, image in enumerate(group):
            height, width = image.shape[:2]
            size = view.input_size(self.config.image_size, (height, width))
            rows.setdefault(size, []).append(row)
        by_row: dict[int, Detections] = {}
        for size, same_size in rows.items():
            images = (group[row] for row in same_size)
            if view.mirrored:
                images = (np.ascontiguousarray(image[:, ::-1]) for image in images)
            results = self._predictor(size).detect(images)
            for row, (_, detections) in zip(same_size, results, strict=True):
                by_row[row] = detections
        return [by_row[row] for row in range(len(group))]

    def _predictor(self, size: tuple[int, int]) -> Predictor:
        if size not in self._predictors:
            network = self.rebuild(replace(self.config, image_size=size))
            self._predictors[size] = Predictor(network, self.batch_size)
        return self._predictors[size]
