"""Detectors in MindSpore Lite."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np

from refinedet.adapters.lite.process import Runner
from refinedet.spec.config import Config
from refinedet.spec.detection import scored_boxes
from refinedet.spec.errors import check_shape
from refinedet.spec.network import Heads
from refinedet.spec.types import Array


class LiteNetwork:
    """``Network``, on one runner or on several that take turns.

    Args:
        size: images that a runner takes at a time; the last ones are filled up.
        mindir: the converted model, if it was not read from a file.
    """

    def __init__(
        self, config: Config, runners: list[Runner], size: int, mindir: bytes | None = None
    ) -> None:
        self.config = config
        self.runners = runners
        self.size = size
        self.mindir = mindir

    def heads(self, images: Array) -> Heads:
        """The raw outputs."""
        check_shape(images, "images", None, 3, *self.config.image_size)
        starts = range(0, len(images), self.size)
        pieces = [images[at : at + self.size] for at in starts]
        outputs = list(self._run(pieces))
        return Heads(*(np.concatenate([o[name] for o in outputs]) for name in Heads._fields))

    def _run(self, pieces: list[Array]) -> Iterable[dict[str, Array]]:
        if len(self.runners) == 1:  # in this thread: to others a device may be unknown
            return (self._outputs(self.runners[0], piece) for piece in pieces)
        free: SimpleQueue[Runner] = SimpleQueue()
        for runner in self.runners:
            free.put(runner)

        def run(piece: Array) -> dict[str, Array]:
            runner = free.get()
            try:
                return self._outputs(runner, piece)
            finally:
                free.put(runner)

        with ThreadPoolExecutor(len(self.runners)) as pool:
            return list(pool.map(run, pieces))

    def _outputs(self, runner: Runner, piece: Array) -> dict[str, Array]:
        count = len(piece)
        if count < self.size:
            blank = np.zeros((self.size - count, *piece.shape[1:]), piece.dtype)
            piece = np.concatenate([piece, blank])
        return {name: output[:count] for name, output in runner.run(piece).items()}

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor, from the raw outputs."""
        return scored_boxes(self.heads(images), self.config)
