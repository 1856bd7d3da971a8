"""What the tests of the specification share: inputs drawn from its domain, and its errors."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from helpers import raises_line
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refinedet.spec.config import Config, replace
from refinedet.spec.errors import SpecError
from refinedet.spec.network import Heads, Parameters, forward, forward_and_backward
from refinedet.spec.presets import preset
from refinedet.spec.types import Array

# The same examples on every run, and no database left behind.
settings.register_profile(
    "spec", derandomize=True, database=None, deadline=None, max_examples=60, print_blob=True
)
settings.load_profile("spec")


refused = partial(raises_line, SpecError)
"""The block raises a ``SpecError`` of exactly this line."""


def slopes(
    parameters: Parameters, images: Array, config: Config, step: float = 1e-7
) -> Iterator[tuple[str, float, float]]:
    """The slopes of a weighted sum of the heads in training, along random directions.

    For each part of the network, as ``tcb.2``: by central differences, and by the backward pass.
    """

    def drawn(seed: int, like: Array) -> Array:
        return np.random.default_rng([18, seed]).normal(size=like.shape)

    heads, _, backward = forward_and_backward(parameters, images, config)
    weights = Heads(*(drawn(i, head) for i, head in enumerate(heads)))
    gradients = backward(weights)
    direction = {n: drawn(9 + i, g) for i, (n, g) in enumerate(gradients.items())}

    def total(names: list[str], step: float) -> float:
        moved = {n: parameters[n] + step * direction[n] for n in names}
        outputs, _ = forward(parameters | moved, images, config, training=True)
        return sum(float((w * out).sum()) for w, out in zip(weights, outputs, strict=True))

    for part in dict.fromkeys(".".join(name.split(".")[:2]) for name in gradients):
        names = [n for n in gradients if n.startswith(f"{part}.")]
        there, here = total(names, step), total(names, -step)
        expected = sum(float((gradients[n] * direction[n]).sum()) for n in names)
        yield part, (there - here) / (2 * step), expected


@st.composite
def boxes(
    draw: st.DrawFn, least: int = 0, most: int = 8, sided: bool = False, dtype: type = np.float32
) -> Array:
    """Boxes on a 1/256 grid: no underflow, prints exactly. ``sided``: no side is 0."""
    shape = (draw(st.integers(least, most)), 2, 2)
    points = draw(arrays(np.uint16, shape, elements=st.integers(0, 255)))
    low, high = points.min(axis=1), points.max(axis=1)
    return (np.hstack([low, high + sided]) / 256).astype(dtype)


def offsets(rows: int, dtype: type = np.float32) -> st.SearchStrategy[Array]:
    """Offsets (rows, 4) of a size that training meets."""
    small = st.floats(-8, 8, width=32)
    return arrays(np.float32, (rows, 4), elements=small).map(lambda a: a.astype(dtype))


def grid_scores(*shape: int) -> st.SearchStrategy[Array]:
    """Numbers on a grid of eighths, 0 to 1: many ties, all exact."""
    return arrays(np.uint8, shape, elements=st.integers(0, 8)).map(
        lambda a: (a / 8).astype(np.float32)
    )


def tiny(**changes: object) -> Config:
    """A very small detector: 64x128 pixels, one anchor a cell, 4 classes, 170 anchors."""
    base: dict[str, object] = {
        "image_size": (64, 128),
        "num_classes": 4,
        "network": {"width": 1 / 64, "batch_norm": False},
        "anchors": {"aspect_ratios": (1.0,)},
    }
    return replace(preset("refinedet_eighth_128"), **{**base, **changes})
