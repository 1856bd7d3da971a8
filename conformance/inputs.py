"""Inputs of the specification's domain, for Hypothesis.

Coordinates, overlaps and scores are drawn on grids of powers of two. They are exact in float32,
so that ties and equality with a threshold are frequent and must be decided as the specification
defines; and they shrink to short numbers. Images are never square.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refinedet.spec.anchors import anchors
from refinedet.spec.config import (
    Config,
    DetectionConfig,
    ImageConfig,
    MatchingConfig,
    ScheduleConfig,
    replace,
)
from refinedet.spec.network import Heads, Parameters, initial_parameters, parameter_table
from refinedet.spec.presets import preset
from refinedet.spec.types import Array
from refinedet.spec.unread import without_unread


@st.composite
def boxes(
    draw: st.DrawFn, least: int = 0, most: int = 8, sided: bool = False, dtype: type = np.float32
) -> Array:
    """Boxes (M, 4) on a 1/256 grid, corner form. ``sided``: no side is 0."""
    shape = (draw(st.integers(least, most)), 2, 2)
    points = draw(arrays(np.uint16, shape, elements=st.integers(0, 255)))
    low, high = points.min(axis=1), points.max(axis=1)
    return (np.hstack([low, high + sided]) / 256).astype(dtype)


@st.composite
def wide_boxes(draw: st.DrawFn) -> Array:
    """Boxes, some of which extend beyond the image."""
    wide: Array = draw(boxes()) * np.float32(2) - np.float32(0.5)
    return wide


def offsets(rows: int, dtype: type = np.float32) -> st.SearchStrategy[Array]:
    """Offsets (rows, 4) of a size that occurs in training."""
    small = st.integers(-256, 256).map(lambda n: n / 64)
    return arrays(np.float32, (rows, 4), elements=small).map(lambda a: a.astype(dtype))


def grid(*shape: int, top: int = 8) -> st.SearchStrategy[Array]:
    """Numbers on a grid of eighths, from 0 to ``top`` eighths: many ties, all exact."""
    return arrays(np.uint8, shape, elements=st.integers(0, top)).map(
        lambda a: (a / 8).astype(np.float32)
    )


def logits(*shape: int) -> st.SearchStrategy[Array]:
    """Logits on a grid of quarters, -8 to 8."""
    return arrays(np.int8, shape, elements=st.integers(-32, 32)).map(
        lambda a: (a / 4).astype(np.float32)
    )


VARIANCES = st.sampled_from([(0.1, 0.2), (0.25, 0.5), (1.0, 1.0)])


@st.composite
def box_pairs(draw: st.DrawFn) -> tuple[Array, Array]:
    """Two sets of boxes; some of the second are copies of the first."""
    first, second = draw(boxes()), draw(boxes())
    copies = draw(st.integers(0, min(len(first), len(second))))
    second[:copies] = first[:copies]
    return first, second


@st.composite
def coded(draw: st.DrawFn) -> tuple[Array, Array, tuple[float, ...]]:
    """Boxes, an anchor for each, variances."""
    b = draw(boxes(sided=True))
    a = draw(boxes(least=len(b), most=len(b), sided=True))
    return b, a, draw(VARIANCES)


@st.composite
def decodable(draw: st.DrawFn) -> tuple[Array, Array, tuple[float, ...]]:
    """Offsets, an anchor for each, variances."""
    a = draw(boxes(sided=True))
    return draw(offsets(len(a))), a, draw(VARIANCES)


@st.composite
def cascades(draw: st.DrawFn) -> tuple[Array, Array, Array, tuple[float, ...]]:
    """ARM offsets, ODM offsets, anchors, variances."""
    arm, a, variances = draw(decodable())
    return arm, draw(offsets(len(a))), a, variances


@st.composite
def overlaps(draw: st.DrawFn) -> tuple[Array, MatchingConfig]:
    """Overlaps (A, T) on a grid, with thresholds on the grid."""
    shape = draw(st.integers(0, 8)), draw(st.integers(0, 5))
    lowest = draw(st.sampled_from([0.0, 1e-6, 0.125]))
    rule = draw(st.sampled_from(["bipartite", "in_order"]))
    config = MatchingConfig(draw(st.sampled_from([0.25, 0.5, 0.75])), lowest, rule)
    return draw(grid(*shape)), config


SMALL = replace(
    preset("refinedet_eighth_128"),
    image_size=(64, 128),
    num_classes=4,
    network={"width": 1 / 64, "batch_norm": False},
)
"""A very small detector for operations: 510 anchors."""


def with_drawn(section: Any, drawn: dict[str, Any]) -> Any:
    """A section with drawn fields; of these, what the others leave unread has its default."""
    kind = type(section)
    return kind(**without_unread(kind, vars(section) | drawn, ()))


@st.composite
def anchor_configs(draw: st.DrawFn) -> Config:
    """Small detectors whose anchors differ: size, ratios, sides."""
    rows, columns = draw(st.sampled_from([(1, 2), (2, 1), (3, 1), (1, 3), (2, 3)]))
    return replace(
        SMALL,
        image_size=(64 * rows, 64 * columns),
        anchors=with_drawn(
            SMALL.anchors,
            {
                "aspect_ratios": tuple(
                    draw(st.lists(st.sampled_from([1.0, 2.0, 0.5, 3.0]), min_size=1, max_size=3))
                ),
                "sides": tuple(
                    draw(
                        st.lists(st.sampled_from([16.0, 20.0, 32.0, 64.0]), min_size=4, max_size=4)
                    )
                ),
                "square_sides": draw(st.sampled_from([None, (8.0, 24.0, 32.0, 80.0)])),
            },
        ),
    )


@st.composite
def objects(draw: st.DrawFn, config: Config, most: int = 4) -> tuple[Array, Array]:
    """An image's objects: boxes (T, 4), labels (T,)."""
    b = draw(boxes(most=most, sided=True))
    c = draw(arrays(np.int64, len(b), elements=st.integers(1, config.num_classes - 1)))
    return b, c


@st.composite
def target_cases(draw: st.DrawFn) -> tuple[Array, Array, Array, Config]:
    """Anchors, boxes, labels, config. Anchors on a grid: the matching is exact."""
    config = replace(SMALL, matching={"iou": draw(st.sampled_from([0.25, 0.5, 0.75]))})
    b, c = draw(objects(config))
    a = draw(boxes(most=10, sided=True))
    copies = draw(st.integers(0, min(len(a), len(b))))
    a[:copies] = b[:copies]
    return a, b, c, config


@st.composite
def mining_cases(draw: st.DrawFn) -> tuple[Array, Array, Array, float]:
    """Losses with ties, positives, eligible anchors, ratio."""
    count = draw(st.integers(0, 12))
    flags = arrays(bool, count)
    ratio = draw(st.sampled_from([0.0, 0.5, 1.0, 1.5, 3.0]))
    return draw(grid(count, top=4)), draw(flags), draw(flags), ratio


@st.composite
def labelled_logits(draw: st.DrawFn) -> tuple[Array, Array]:
    """Logits (M, K), labels (M,)."""
    rows, classes = draw(st.integers(0, 6)), draw(st.integers(2, 5))
    labels = draw(arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    return draw(logits(rows, classes)), labels


@st.composite
def offset_pairs(draw: st.DrawFn) -> tuple[Array, Array]:
    """Predicted and expected offsets (M, 4)."""
    rows = draw(st.integers(0, 6))
    return draw(offsets(rows)), draw(offsets(rows))


@st.composite
def module_cases(draw: st.DrawFn) -> tuple[Array, Array, Array, Array, Array, float]:
    """Arguments of ``module_loss``; losses of negatives tie where logits are the same."""
    n, a, k = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(2, 4))
    predicted, expected = (draw(offsets(n * a)).reshape(n, a, 4) for _ in range(2))
    coarse = arrays(np.int8, (n, a, k), elements=st.integers(-2, 2))
    labels = draw(arrays(np.int64, (n, a), elements=st.integers(0, k - 1)))
    logits = draw(coarse).astype(np.float32)
    # Other logits in another order have the same loss, but not for every order of adding up.
    logits[labels == 0, 1:] = np.array([0.5, -1, 2], np.float32)[: k - 1]
    eligible = draw(arrays(bool, (n, a)))
    ratio = draw(st.sampled_from([0.0, 1.0, 1.5, 3.0]))
    return predicted, logits, expected, labels, eligible, ratio


PIXELS = st.sampled_from([(0.0, 0.0), (0.125, 0.0625)])
"""Added to the sides of boxes when overlaps are computed."""


@st.composite
def suppressions(draw: st.DrawFn) -> tuple[Array, Array, float, tuple[float, float]]:
    """Boxes, scores with ties, threshold, pixel; some boxes overlap others a lot."""
    b = draw(boxes())
    copies = draw(st.integers(0, len(b) // 2))
    if copies:
        b[copies : 2 * copies] = b[:copies]
    threshold = draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
    return b, draw(grid(len(b))), threshold, draw(PIXELS)


@st.composite
def detection_cases(
    draw: st.DrawFn,
) -> tuple[Array, Array, DetectionConfig, tuple[int, int] | None]:
    """Boxes, scores (A, K) with ties, limits, the original image's size."""
    count, classes = draw(st.integers(0, 8)), draw(st.integers(2, 4))
    inside = draw(boxes(least=count, most=count))
    b = inside * np.float32(1.25) - np.float32(0.125)
    limit = st.sampled_from([None, 1, 2, 3])
    fields = {
        "score": draw(st.sampled_from([0.0, 0.125, 0.25, 0.5])),
        "top_before_nms": draw(st.sampled_from([None, 2, 5, 8])),
        "top_before_nms_per_class": draw(limit),
        "nms_iou": draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        "top_per_class": draw(limit),
        "top": draw(st.sampled_from([None, 1, 4])),
        "clip": draw(st.booleans()),
        "clip_first": draw(st.booleans()),
        "pixel": draw(st.sampled_from([0.0, 1.0])),
    }
    config = with_drawn(DetectionConfig(), fields)
    size = (16, 8) if config.pixel else draw(st.sampled_from([None, (16, 8)]))
    return b, draw(grid(count, classes)), config, size


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, ScheduleConfig]:
    """A step and its schedule."""
    warmup = draw(st.integers(0, 5))
    steps = warmup + draw(st.integers(1, 20))
    milestones = draw(st.sets(st.integers(warmup + 1, steps + 3), max_size=3))
    fields = {
        "kind": draw(st.sampled_from(["multistep", "cosine"])),
        "steps": steps,
        "rate": draw(st.sampled_from([0.5, 1.0])),
        "warmup_steps": warmup,
        "warmup_rate": draw(st.sampled_from([0.0, 0.125])),
        "milestones": tuple(sorted(milestones)),
        "factor": draw(st.sampled_from([0.1, 0.5])),
        "final_rate": draw(st.sampled_from([0.0, 0.25])),
    }
    config = with_drawn(ScheduleConfig(), fields)
    return draw(st.integers(0, steps - 1)), config


@st.composite
def eight_bit(draw: st.DrawFn) -> tuple[Array, ImageConfig]:
    """An image (H, W, 3) uint8, RGB, and how it is normalised."""
    height = draw(st.integers(1, 4))
    width = draw(st.integers(1, 5).filter(lambda n: n != height))
    config = ImageConfig(
        draw(st.sampled_from(["RGB", "BGR"])),
        draw(st.sampled_from([(104.0, 117.0, 123.0), (0.0, 0.0, 0.0), (100.5, 50.25, 7.0)])),
        draw(st.sampled_from([(1.0, 1.0, 1.0), (58.0, 57.0, 57.5)])),
    )
    return draw(arrays(np.uint8, (height, width, 3))), config


def seeded_heads(config: Config, count: int, seed: int) -> Heads:
    """Heads as of a network after some training, float32."""
    rng = np.random.default_rng(seed)
    rows = len(anchors(config))
    shapes = Heads((4, 0.5), (2, 2.0), (4, 0.5), (config.num_classes, 2.0))  # type: ignore[arg-type]
    return Heads(*(rng.normal(0, wide, (count, rows, n)).astype(np.float32) for n, wide in shapes))


def seeded_objects(config: Config, counts: tuple[int, ...], seed: int) -> tuple[list[Any], ...]:
    """For each image its number of objects: boxes (T, 4) float32, labels (T,) int64."""
    rng = np.random.default_rng(seed)
    all_boxes, all_labels = [], []
    for count in counts:
        low = rng.uniform(0, 0.5, (count, 2))
        high = low + rng.uniform(
            0.2, 0.5, (count, 2)
        )  # smaller ones overlap several anchors equally
        all_boxes.append(np.hstack([low, high]).astype(np.float32))
        all_labels.append(rng.integers(1, config.num_classes, count))
    return all_boxes, all_labels


def seeded_parameters(config: Config, seed: int) -> Parameters:
    """Initial parameters, with noise added to all that are constant at first.

    Weights are Xavier's whatever the config is, because with others the activations of narrow
    detectors vanish. The last scale of a bottleneck is small, so that neither activations nor
    rounding errors grow over a hundred layers.
    """
    rng = np.random.default_rng([seed, 1])
    net = config.network
    has_bottlenecks = net.backbone == "resnet" or net.heads == "bottleneck"
    config = replace(
        config,
        network={"initialiser": "xavier", **({"residual_gamma": 0.125} if has_bottlenecks else {})},
    )
    parameters = initial_parameters(config, seed)
    for p in parameter_table(config):
        if p.initialiser != "xavier":
            noise = rng.uniform(0.05, 0.2, p.shape).astype(np.float32)
            parameters[p.name] = parameters[p.name] + noise
    return parameters


def seeded_images(config: Config, count: int, seed: int) -> Array:
    """Noise (N, 3, H, W) float32, of unit spread."""
    rng = np.random.default_rng([seed, 2])
    return rng.normal(size=(count, 3, *config.image_size)).astype(np.float32)
