"""The fast post-processing is the specification's ``detect``, to the last bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import refinedet.inference.postprocessing
from refinedet.inference.postprocessing import postprocess
from refinedet.spec.boxes import box_iou
from refinedet.spec.config import DetectionConfig
from refinedet.spec.detection import detect
from refinedet.spec.errors import SpecError
from refinedet.spec.types import Array

limits = st.sampled_from([None, 1, 2, 3, 7])
configs = st.builds(
    DetectionConfig,
    score=st.sampled_from([0.0, 0.25, 0.3]),
    top_before_nms=limits,
    top_before_nms_per_class=limits,
    nms_iou=st.sampled_from([0.0, 1 / 3, 0.45, 0.5, 1.0]),
    top_per_class=limits,
    top=limits,
    clip=st.booleans(),
)


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Array, Array]:
    """0 to 20 boxes, some outside the image or without area, scores full of ties."""
    count, classes = draw(st.integers(0, 20)), draw(st.integers(2, 5))
    points = draw(arrays(np.int16, (count, 2, 2), elements=st.integers(-1, 8))) / np.float32(7)
    scores = draw(arrays(np.uint8, (count, classes), elements=st.integers(0, 4))) / np.float32(4)
    boxes = np.hstack([points.min(axis=1), points.max(axis=1)]).astype(np.float32)
    return boxes, scores.astype(np.float32)


def assert_same(boxes: Array, scores: Array, config: DetectionConfig) -> int:
    actual, want = postprocess(boxes, scores, config), detect(boxes, scores, config)
    for name, a, b in zip(want._fields, actual, want, strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
    return len(want.scores)


def dense(count: int, classes: int, seed: int, grid: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    low = rng.random((count, 2)) * 0.8
    boxes = np.hstack([low, low + rng.uniform(0.02, 0.3, (count, 2))]).astype(np.float32)
    scores = rng.integers(0, grid, (count, classes)) / np.float32(grid)
    return boxes, scores.astype(np.float32)


@settings(max_examples=400, deadline=None)
@given(outputs=outputs(), config=configs)
@example(
    outputs=(np.zeros((0, 4), np.float32), np.zeros((0, 3), np.float32)), config=DetectionConfig()
)
@example(
    outputs=(np.zeros((3, 4), np.float32), np.ones((3, 2), np.float32)), config=DetectionConfig()
)
def test_detections_are_those_of_the_contract(
    outputs: tuple[Array, Array], config: DetectionConfig
) -> None:
    assert_same(*outputs, config)


@pytest.mark.parametrize("grid", [5, 100_000])
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"top_before_nms": None, "top_per_class": 20, "top": None, "nms_iou": 0.6},
        {"top_before_nms": None, "top_before_nms_per_class": 150, "top": 100},
        {"top_before_nms": None, "top": None, "score": 0.0, "nms_iou": 0.3},
    ],
)
def test_several_blocks_and_groups(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, float | None], grid: int
) -> None:
    monkeypatch.setattr(refinedet.inference.postprocessing, "GROUP", 700)
    config = dataclasses.replace(DetectionConfig(), **limits)
    assert assert_same(*dense(300, 7, 1, grid), config) >= 40


def test_an_overlap_of_exactly_the_threshold_stays() -> None:
    # 9 of 20 cells are shared: 0.45, which float32 cannot hold exactly.
    boxes = np.float32([[0, 0, 14 / 32, 1], [5 / 32, 0, 20 / 32, 1]])
    boxes[1, 2] = 15 / 32 + 5 / 32
    assert box_iou(boxes[:1], boxes[1:])[0, 0] == np.float32(0.45)
    scores = np.float32([[0, 0.9], [0, 0.8]])
    assert len(postprocess(boxes, scores, DetectionConfig(nms_iou=0.45)).scores) == 2
    assert len(postprocess(boxes, scores, DetectionConfig(nms_iou=0.4499)).scores) == 1


@pytest.mark.parametrize("iou", [0.0, 0.3, 1 / 3, 0.45, 0.5, 0.6, 1.0])
def test_the_threshold_in_float64_is_the_one_in_float32(iou: float) -> None:
    limit = refinedet.inference.postprocessing._largest_kept(iou)
    assert np.float32(limit) <= np.float32(iou)
    assert np.float32(np.nextafter(limit, 2)) > np.float32(iou)


def test_suppressing_twice_changes_nothing() -> None:
    boxes, scores = dense(300, 2, 3, 1000)
    config = DetectionConfig(top=None, clip=False)
    once = postprocess(boxes, scores, config)
    again = postprocess(once.boxes, np.stack([once.scores * 0, once.scores], axis=1), config)
    np.testing.assert_array_equal(once.boxes, again.boxes)


@pytest.mark.parametrize(
    ("boxes", "scores", "message"),
    [
        (np.zeros((1, 4), np.float32), np.zeros((1, 1), np.float32), "column"),
        (np.zeros((1, 4), np.float32), np.zeros((2, 2), np.float32), "scores"),
        (np.zeros((1, 4), np.float32), np.float32([[0, np.nan]]), "finite"),
        (np.float32([[1, 0, 0, 1]]), np.zeros((1, 2), np.float32), "crossed"),
    ],
)
def test_what_the_contract_refuses_is_refused(boxes: Array, scores: Array, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        postprocess(boxes, scores, DetectionConfig())
