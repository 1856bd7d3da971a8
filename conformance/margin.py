"""The margin: which discrete results of the specification depend on rounding.

A discrete result (a matched anchor, a chosen negative, a filtered anchor) depends on comparisons
of numbers, which a backend may round differently. It is *decided* if the specification gives the
same result when those numbers are perturbed by up to ``MARGIN``; then the backend must agree
exactly. Undecided results are not compared, but counted, and a check bounds their number.
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
"""Relative to a number's size; absolute for numbers below 1."""
TRIES = 12
"""Random perturbations. An exact tie is missed by all of them once in 4,000 times."""


def perturbed(values: Any, seed: int, margin: float = MARGIN) -> Iterator[Any]:
    """The values (an array, or a named tuple of arrays), perturbed at random ``TRIES`` times."""
    rng = np.random.default_rng([seed, 3])

    def perturb(array: Any) -> Any:
        step = margin * np.maximum(1, np.abs(array))
        return (array + rng.choice([-1, 1], array.shape) * step).astype(array.dtype)

    for _ in range(TRIES):
        if isinstance(values, np.ndarray):
            yield perturb(values)
        else:
            yield type(values)(*(perturb(array) for array in values))


def is_match_decided(anchors: Array, boxes: Array, config: MatchingConfig, seed: int) -> Array:
    """For each anchor, (A,) bool: whether its match is the same for perturbed anchors."""
    expected = match(box_iou(anchors, boxes), config)
    decided = np.ones(len(anchors), bool)
    for other in perturbed(anchors, seed):
        decided &= match(box_iou(other, boxes), config) == expected
    return decided


def is_arm_filter_decided(heads: Heads, config: Config, seed: int) -> Array:
    """For each anchor, (N, A) bool: whether the ARM filters it alike for perturbed outputs."""

    def filtered(outputs: Heads) -> Array:
        zero: Array = (scored_boxes(outputs, config)[1] == 0).all(axis=2)
        return zero

    expected = filtered(heads)
    decided = np.ones_like(expected)
    for other in perturbed(heads, seed):
        decided &= filtered(other) == expected
    return decided
