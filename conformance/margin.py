"""The margin: where the specification itself is undecided.

A discrete result (a matched anchor, a chosen negative, a silenced score) hangs on
comparisons of numbers that a backend may round otherwise. It counts as decided if the
specification gives the same when those numbers are moved by up to ``MARGIN``; then the
backend must agree exactly. What is undecided is left out, counted, and bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refinedet.spec.boxes import box_iou
from refinedet.spec.config import Config, MatchingConfig
from refinedet.spec.detection import scored_boxes
from refinedet.spec.matching import match
from refinedet.spec.network import Heads
from refinedet.spec.types import Array

MARGIN = 1e-5
"""Relative to a number's size, or absolute below 1."""
TRIES = 12
"""An exact tie falls either way at random: this many tries miss one in 4,000."""


def moved(values: Any, seed: int, margin: float = MARGIN) -> Iterator[Any]:
    """The values (an array, or a named tuple of arrays) moved at random, several times."""
    rng = np.random.default_rng([seed, 3])

    def move(array: Any) -> Any:
        far = margin * np.maximum(1, np.abs(array))
        return (array + rng.choice([-1, 1], array.shape) * far).astype(array.dtype)

    for _ in range(TRIES):
        if isinstance(values, np.ndarray):
            yield move(values)
        else:
            yield type(values)(*(move(array) for array in values))


def is_matched_surely(anchors: Array, boxes: Array, config: MatchingConfig, seed: int) -> Array:
    """For each anchor (A,) bool, whether the specification matches it alike for moved anchors."""
    expected = match(box_iou(anchors, boxes), config)
    sure = np.ones(len(anchors), bool)
    for other in moved(anchors, seed):
        sure &= match(box_iou(other, boxes), config) == expected
    return sure


def is_silenced_surely(heads: Heads, config: Config, seed: int) -> Array:
    """For each anchor (N, A) bool, whether the ARM silences it, or not, for moved outputs, too."""

    def silent(outputs: Heads) -> Array:
        none: Array = (scored_boxes(outputs, config)[1] == 0).all(axis=2)
        return none

    now = silent(heads)
    sure = np.ones_like(now)
    for other in moved(heads, seed):
        sure &= silent(other) == now
    return sure
