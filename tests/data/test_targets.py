"""The fast targets are the specification's, to the last bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refinedet.data.targets import ArmTargets
from refinedet.spec.anchors import anchors
from refinedet.spec.config import Config, replace
from refinedet.spec.errors import SpecError
from refinedet.spec.matching import targets
from refinedet.spec.presets import PRESETS
from refinedet.spec.types import Array

TINY = replace(PRESETS["refinedet_eighth_128"], image_size=(64, 64))  # 255 anchors
CONFIGS = [
    TINY,
    replace(TINY, image_size=(64, 192)),
    replace(TINY, image_size=(192, 128), matching={"iou": 0.45, "lowest_iou": 0.0}),
    replace(TINY, anchors={"sides": (9.3, 31.0, 32.0, 140.0), "aspect_ratios": (0.7, 3.0)}),
    replace(TINY, anchors={"aspect_ratios": (1.0,)}, matching={"iou": 0.25}),
]
FAST = [ArmTargets(config) for config in CONFIGS]


@st.composite
def boxes(draw: st.DrawFn) -> Array:
    """0 to 12 boxes on a coarse or fine grid: many ties, and boxes without area."""
    parts = draw(st.sampled_from([4, 16, 256]))
    shape = (draw(st.integers(0, 12)), 2, 2)
    points = draw(arrays(np.uint16, shape, elements=st.integers(0, parts))) / np.float32(parts)
    return np.hstack([points.min(axis=1), points.max(axis=1)]).astype(np.float32)


def assert_same(fast: ArmTargets, config: Config, boxes: Array) -> Array:
    labels = np.arange(len(boxes)) % (config.num_classes - 1) + 1
    offsets, classes = fast(boxes, labels)
    want_offsets, want_classes = targets(anchors(config), boxes, labels, config)
    assert (offsets.dtype, classes.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(classes, want_classes)
    np.testing.assert_allclose(offsets, want_offsets, rtol=1e-6, atol=1e-7)
    return classes


def random_boxes(count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    centre, size = rng.random((count, 2)), np.exp(rng.uniform(np.log(0.02), 0, (count, 2)))
    return np.hstack([centre - size / 2, centre + size / 2]).clip(0, 1).astype(np.float32)


@settings(max_examples=400, deadline=None)
@given(which=st.integers(0, len(CONFIGS) - 1), boxes=boxes())
@example(which=0, boxes=np.zeros((0, 4), np.float32))
@example(which=2, boxes=np.full((3, 4), 0.5, np.float32))  # no area
@example(which=1, boxes=np.tile(np.float32([[0.1, 0.2, 0.6, 0.9]]), (12, 1)))  # identical
def test_targets_are_those_of_the_contract(which: int, boxes: Array) -> None:
    assert_same(FAST[which], CONFIGS[which], boxes)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["refinedet_vgg16_320", "refinedet_vgg16_512"])
def test_targets_of_the_papers_presets(name: str, seed: int) -> None:
    classes = assert_same(ArmTargets(PRESETS[name]), PRESETS[name], random_boxes(9, seed))
    assert np.count_nonzero(classes) >= 9


def test_an_anchor_as_object_answers_for_itself() -> None:
    config = CONFIGS[1]
    own = anchors(config)[[0, 40, 250]].clip(0, 1)
    assert_same(ArmTargets(config), config, own)


def test_more_objects_than_anchors() -> None:
    config = TINY
    assert len(anchors(config)) == 255
    classes = assert_same(FAST[0], config, random_boxes(300, seed=3))
    assert (classes > 0).all()


def test_a_crowd_of_equal_objects_takes_one_anchor_each() -> None:
    crowd = np.tile(np.float32([[0.3, 0.3, 0.4, 0.45]]), (40, 1))
    assert_same(FAST[0], TINY, crowd)


def test_order_of_objects_changes_nothing_where_nothing_ties() -> None:
    boxes, labels = random_boxes(7, seed=1), np.arange(1, 8)
    fast, mixed = ArmTargets(PRESETS["refinedet_vgg16_320"]), np.array([3, 0, 6, 1, 5, 2, 4])
    for a, b in zip(fast(boxes, labels), fast(boxes[mixed], labels[mixed]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_threads_may_share_it() -> None:
    fast, labels = FAST[0], np.arange(1, 8)
    inputs = [random_boxes(7, seed) for seed in range(20)]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda b: fast(b, labels), inputs))
    for actual, one in zip(parallel, inputs, strict=True):
        np.testing.assert_array_equal(actual[0], fast(one, labels)[0])


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        (np.zeros((1, 4)), np.array([1]), "float32"),
        (np.float32([[0, 0, np.nan, 1]]), np.array([1]), "finite"),
        (np.float32([[0.5, 0, 0.4, 1]]), np.array([1]), "crossed"),
        (np.float32([[0, 0, 1, 1]]), np.array([0]), "outside"),
        (np.float32([[0, 0, 1, 1]]), np.array([81]), "outside"),
        (np.float32([[0, 0, 1, 1]]), np.array([1, 2]), "labels"),
    ],
)
def test_what_the_contract_refuses_is_refused(boxes: Array, labels: Array, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        FAST[0](boxes, labels)
