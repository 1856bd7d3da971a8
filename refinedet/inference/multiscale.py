"""Prediction at several sizes of input, mirrored too: the test behind the paper's "+" rows.

A network is made for each size that the views want, with the same parameters. Anchors keep
their sides in pixels of the input, also where another preset's would grow with it, as the
model zoo's do: offsets were learnt against anchors of these sides, on features of this
scale. So an image twice as large shows objects of half the size.

Networks of all sizes stay in memory, each with its own copy of the parameters if the
backend makes one. A batch is held while all views look at it.
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
    """As ``refinedet.inference.predictor.Predictor``, by several looks at each image."""

    def __init__(
        self,
        network: Network,
        fusion: FusionConfig,
        rebuild: Callable[[Config], Network],
        batch_size: int = 8,
    ) -> None:
        """Look with this network, and with its likes for other sizes of input.

        Args:
            rebuild: the same detector for a config with another ``image_size``; called once
                for each size. What it raises is raised here.
        """
        self.config = network.config
        self.fusion = fusion
        self.rebuild = rebuild
        self.batch_size = batch_size
        self._predictors = {self.config.image_size: Predictor(network, batch_size)}
        for view in fusion.views:  # now, not when half of the images are done
            for image in ((1, 1), (1, 2)):
                self._predictor(view.input_size(self.config.image_size, image))

    def predict(self, images: Iterable[Array]) -> Iterator[Detections]:
        """See ``Predictor.predict``."""
        remaining = iter(images)
        while group := list(itertools.islice(remaining, self.batch_size)):
            looks = [self._look(view, group) for view in self.fusion.views]
            for image, found in zip(group, zip(*looks, strict=True), strict=True):
                height, width = image.shape[:2]
                fused = fuse(found, self.fusion, (height, width))
                yield in_pixels(fused, (height, width))

    def _look(self, view: View, group: list[Array]) -> list[Detections]:
        """What each image shows in a view: boxes as fractions, in that view."""
        rows: dict[tuple[int, int], list[int]] = {}
        for row, image in enumerate(group):
            height, width = image.shape[:2]
            size = view.input_size(self.config.image_size, (height, width))
            rows.setdefault(size, []).append(row)
        found: dict[int, Detections] = {}
        for size, mine in rows.items():
            shown = (group[row] for row in mine)
            if view.mirrored:
                shown = (np.ascontiguousarray(image[:, ::-1]) for image in shown)
            seen = self._predictor(size).detect(shown)
            found |= {row: detections for row, (_, detections) in zip(mine, seen, strict=True)}
        return [found[row] for row in range(len(group))]

    def _predictor(self, size: tuple[int, int]) -> Predictor:
        if size not in self._predictors:
            network = self.rebuild(replace(self.config, image_size=size))
            self._predictors[size] = Predictor(network, self.batch_size)
        return self._predictors[size]
