"""Augmentation: pixels and boxes move together, and nothing moves by accident."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from refinedet.data import augment as module
from refinedet.data.augment import (
    Window,
    augment,
    cropped,
    distort,
    expanded,
    normaliser,
    resize_only,
)
from refinedet.settings import AugmentSettings
from refinedet.spec.boxes import box_iou
from refinedet.spec.config import ImageConfig
from refinedet.spec.errors import SpecError
from refinedet.spec.images import normalise
from refinedet.spec.types import Array

NOTHING = AugmentSettings(distort=0, expand=0, crop=False, mirror=0, flip=0)
STEPS = {
    "nothing": NOTHING,
    "distort": replace(NOTHING, distort=1),
    "expand": replace(NOTHING, expand=1),
    "crop": replace(NOTHING, crop=True),
    "mirror": replace(NOTHING, mirror=1),
    "flip": replace(NOTHING, flip=1),
    "both ways": replace(NOTHING, mirror=1, flip=1),
    "geometry": AugmentSettings(distort=0, expand=0.8, crop=True, mirror=0.5, flip=0.5),
    "everything": AugmentSettings(distort=0.5, expand=0.8, crop=True, mirror=0.5, flip=0.5),
}
GREY = ImageConfig(channels="RGB", mean=(100.0, 100.0, 100.0))
BLUE, RED, GREEN = (30, 30, 230), (230, 30, 30), (30, 230, 30)
BGR = ImageConfig()
FILL = (123, 117, 104)  # of BGR, as R, G, B


def painted(shape: tuple[int, int], *squares: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """A blue image with rectangles (box, colour) in whole pixels."""
    image = np.full((*shape, 3), BLUE, np.uint8)
    for (x0, y0, x1, y1), colour in squares:
        image[y0:y1, x0:x1] = colour
    return image


def extent(mask: Array) -> Array:
    """The box around the pixels that are set, in pixels."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


def in_pixels(box: Array, size: tuple[int, int]) -> Array:
    return box * np.array([size[1], size[0], size[1], size[0]])


@pytest.mark.parametrize("size", [(64, 128), (160, 64)])
@pytest.mark.parametrize("shape", [(90, 150), (210, 80)])
@pytest.mark.parametrize("step", STEPS)
def test_a_square_is_found_at_its_box(
    step: str, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    box = (50, 12, 70, 62) if shape == (90, 150) else (10, 20, 60, 52)
    image = painted(shape, (box, RED))
    for seed in range(25):
        out, boxes, labels = augment(
            image,
            np.array([box], np.float32),
            np.array([3]),
            np.random.default_rng(seed),
            STEPS[step],
            size,
            GREY,
        )
        assert out.shape == (*size, 3)
        assert out.dtype == np.uint8
        assert (boxes.dtype, labels.tolist()) == (np.float32, [3])
        red = out[..., 0].astype(int) - out[..., 2] > 5
        np.testing.assert_allclose(in_pixels(boxes[0], size), extent(red), atol=2, err_msg=step)


@pytest.mark.parametrize("step", ["expand", "crop", "mirror", "flip", "everything"])
def test_every_step_does_something(step: str) -> None:
    box = np.array([[50, 12, 70, 62]], np.float32)
    image = painted((90, 150))
    moved = [
        augment(image, box, np.array([1]), np.random.default_rng(s), STEPS[step], (64, 128), GREY)[
            1
        ]
        for s in range(12)
    ]
    plain = box / np.float32([150, 90, 150, 90])
    assert sum(not np.allclose(m, plain, atol=1e-3) for m in moved) >= 6


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    count=st.integers(0, 5),
    step=st.sampled_from(list(STEPS)),
)
def test_boxes_are_inside_uncrossed_and_at_least_one(
    seed: int, height: int, width: int, count: int, step: str
) -> None:
    rng = np.random.default_rng(seed)
    low = rng.random((count, 2)) * 0.9
    boxes = np.hstack([low, low + (1 - low) * rng.uniform(0.01, 1, (count, 2))])
    boxes = (boxes * [width, height, width, height]).astype(np.float32)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = np.arange(1, count + 1)
    before = image.copy(), boxes.copy()
    out, moved, kept = augment(image, boxes, labels, rng, STEPS[step], (32, 64), BGR)
    assert out.shape == (32, 64, 3)
    assert moved.shape == (len(kept), 4)
    assert (moved >= 0).all()
    assert (moved <= 1).all()
    assert (moved[:, 2:] > moved[:, :2]).all()
    assert len(kept) >= min(1, count)
    assert set(kept) <= set(labels)
    np.testing.assert_array_equal(image, before[0])  # the arguments stay as they are
    np.testing.assert_array_equal(boxes, before[1])


def test_labels_follow_their_boxes() -> None:
    red, green = (10, 10, 50, 40), (70, 30, 120, 80)
    image = painted((90, 150), (red, RED), (green, GREEN))
    boxes, seen = np.array([red, green], np.float32), set()
    for seed in range(60):
        out, moved, labels = augment(
            image,
            boxes,
            np.array([1, 2]),
            np.random.default_rng(seed),
            STEPS["geometry"],
            (96, 160),
            GREY,
        )
        for box, label in zip(moved, labels, strict=True):
            x_min, y_min, x_max, y_max = in_pixels(box, (96, 160))
            x, y = int((x_min + x_max) / 2), int((y_min + y_max) / 2)
            assert out[y, x].argmax() == label - 1
        seen.add(tuple(labels.tolist()))
    assert seen == {(1,), (2,), (1, 2)}


def test_same_seed_same_result_and_another_seed_another() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    boxes, labels = np.array([[20, 10, 90, 70]], np.float32), np.array([1])
    runs = [
        augment(image, boxes, labels, np.random.default_rng(s), AugmentSettings(), (64, 64), BGR)
        for s in (7, 7, 8)
    ]
    for a, b in zip(runs[0], runs[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(runs[0][0], runs[2][0])


@pytest.mark.parametrize("step", ["mirror", "flip"])
def test_twice_is_identity(step: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 128, 3), dtype=np.uint8)
    boxes, labels = np.array([[3, 5, 40, 60], [1, 2, 127, 64]], np.float32), np.array([1, 2])
    scale = np.float32([128, 64, 128, 64])
    once, moved, _ = augment(image, boxes, labels, rng, STEPS[step], (64, 128), BGR)
    twice, back, _ = augment(once, moved * scale, labels, rng, STEPS[step], (64, 128), BGR)
    assert not np.array_equal(once, image)
    np.testing.assert_array_equal(twice, image)
    np.testing.assert_array_equal(back * scale, boxes)


def test_nothing_is_a_linear_stretch() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 150, 3), dtype=np.uint8)
    boxes = np.array([[15, 9, 75, 45]], np.float32)
    out, moved, _ = augment(image, boxes, np.array([1]), rng, NOTHING, (64, 128), BGR)
    np.testing.assert_array_equal(out, resize_only(image, (64, 128)))
    np.testing.assert_allclose(moved, [[0.1, 0.1, 0.5, 0.5]], rtol=1e-6)


def test_outside_the_image_is_the_mean_whatever_the_distortion() -> None:
    image, whole = painted((90, 150)), np.array([[0, 0, 150, 90]], np.float32)
    settings = replace(NOTHING, expand=1, distort=1, mirror=0.5)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        out, boxes, _ = augment(image, whole, np.array([1]), rng, settings, (64, 128), BGR)
        x0, y0, x1, y1 = np.rint(in_pixels(boxes[0], (64, 128))).astype(int)
        inside = np.zeros((64, 128), bool)
        inside[y0:y1, x0:x1] = True
        np.testing.assert_array_equal((out == FILL).all(axis=2), ~inside)


@pytest.mark.parametrize("seed", range(12))
def test_composed_geometry_is_expand_then_crop_then_resize(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERPOLATIONS", (cv2.INTER_LINEAR,))
    y, x = np.mgrid[0:200, 0:300]
    image = np.stack([x * 0.8, y * 1.2, (x + y) * 0.5], axis=2).astype(np.uint8)
    boxes = np.array([[100, 60, 220, 170]], np.float32)
    settings = replace(NOTHING, expand=1, expand_ratio=2.0, crop=True)
    out, moved, _ = augment(
        image, boxes, np.array([1]), np.random.default_rng(seed), settings, (96, 128), BGR
    )

    rng = np.random.default_rng(seed)
    rng.random()  # whether to expand
    canvas_window = expanded(Window(0, 0, 300, 200), 2.0, rng)
    crop = cropped(canvas_window, boxes.astype(np.float64), rng)
    left, top = -canvas_window.x_min, -canvas_window.y_min
    size = canvas_window.y_max - canvas_window.y_min, canvas_window.x_max - canvas_window.x_min
    canvas = np.full((*size, 3), FILL, np.uint8)
    canvas[top : top + 200, left : left + 300] = image
    part = canvas[crop.y_min + top : crop.y_max + top, crop.x_min + left : crop.x_max + left]
    expected = cv2.resize(part, (128, 96)).astype(int)
    assert np.quantile(np.abs(out - expected), 0.95) <= 3  # the rest is the image's rim
    low = np.array([crop.x_min, crop.y_min] * 2)
    side = np.array([crop.x_max - crop.x_min, crop.y_max - crop.y_min] * 2)
    by_hand = ((boxes - low) / side).clip(0, 1)
    np.testing.assert_allclose(moved, by_hand, atol=0.75 / 96)  # whole pixels of the output


def test_expansion_covers_its_range_evenly() -> None:
    rng = np.random.default_rng(0)
    ratios, places = [], []
    for _ in range(1000):
        window = expanded(Window(0, 0, 200, 100), 4.0, rng)
        width, height = window.x_max - window.x_min, window.y_max - window.y_min
        ratios.append(width / 200)
        assert abs(width / 200 - height / 100) <= 0.01
        assert window.x_min <= 0
        assert window.y_min <= 0
        assert window.x_max >= 200
        assert window.y_max >= 100
        places.append((-window.x_min / max(1, width - 200), -window.y_min / max(1, height - 100)))
    assert 1 <= min(ratios) < 1.02
    assert 3.98 < max(ratios) <= 4
    assert abs(np.mean(ratios) - 2.5) < 0.1
    np.testing.assert_allclose(np.mean(places, axis=0), 0.5, atol=0.05)


@pytest.mark.parametrize("least", module.CROP_IOUS)
def test_a_crop_keeps_its_promise(least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CROP_IOUS", (least,))
    rng, canvas = np.random.default_rng(0), Window(-40, -30, 260, 170)
    boxes = np.array([[0, 0, 180, 130], [-35, -25, 255, 165]], np.float64)
    crops = [cropped(canvas, boxes, rng) for _ in range(300)]
    changed = np.array([crop for crop in crops if crop != canvas], np.float64)
    assert 0.25 < len(changed) / 300 < 0.65  # half, less where every trial may fail
    assert (box_iou(changed, boxes).max(axis=1) >= least).all()
    assert (changed[:, :2] >= [-40, -30]).all()
    assert (changed[:, 2:] <= [260, 170]).all()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    held = (changed[:, None, :2] < centres) & (centres < changed[:, None, 2:])
    assert held.all(axis=2).any(axis=1).all()
    share = (changed[:, 2:] - changed[:, :2]) / [300, 200]
    ratio, scale = share[:, 0] / share[:, 1], np.sqrt(share.prod(axis=1))
    assert ratio.min() > 0.48
    assert ratio.max() < 2.1
    assert scale.min() > 0.29
    if least == 0:
        assert scale.min() < 0.5
        assert scale.max() > 0.9
        place = (changed[:, :2] - [-40, -30]) / (1.001 - share)
        assert abs(np.corrcoef(place.T)[0, 1]) < 0.5  # x and y are drawn apart


def test_samplers_are_chosen_evenly() -> None:
    # One object that fills the image: all seven nearly always succeed.
    rng, canvas = np.random.default_rng(0), Window(0, 0, 200, 100)
    boxes = np.array([[0, 0, 200, 100]], np.float64)
    crops = [cropped(canvas, boxes, rng) for _ in range(1400)]
    assert abs(sum(crop == canvas for crop in crops) / 1400 - 1 / 7) < 0.04


def test_an_object_too_small_for_any_overlap_is_never_lost() -> None:
    rng, boxes = np.random.default_rng(0), np.array([[100, 50, 102, 51]], np.float64)
    for _ in range(100):
        crop = cropped(Window(0, 0, 200, 100), boxes, rng)
        assert crop.x_min < 101 < crop.x_max
        assert crop.y_min < 50.5 < crop.y_max


def test_distortion_leaves_grey_grey_and_within_its_numbers() -> None:
    grey = np.full((2, 3, 3), 100, np.uint8)
    values = []
    for seed in range(400):
        out = distort(grey, 1.0, np.random.default_rng(seed))
        assert (out == out[0, 0, 0]).all()
        values.append(int(out[0, 0, 0]))
    assert min(values) >= (100 - 32) * 0.5 - 1
    assert max(values) <= (100 + 32) * 1.5 + 1
    assert max(values) > 170
    assert min(values) < 45
    assert distort(grey, 0.0, np.random.default_rng(0)) is grey


def test_hue_turns_the_circle_and_saturation_fades() -> None:
    red = np.full((1, 1, 3), (200, 0, 0), np.uint8)
    turned = {turn: module._turn_colours(red, 1.0, turn)[0, 0].tolist() for turn in (0, 60, -60)}
    assert turned == {0: [200, 0, 0], 60: [0, 200, 0], -60: [0, 0, 200]}
    assert module._turn_colours(red, 0.5, 0)[0, 0].tolist() == pytest.approx([200, 100, 100], abs=1)


@pytest.mark.parametrize(
    "config",
    [
        BGR,
        GREY,
        ImageConfig("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ImageConfig("BGR", (1.5, 2.5, 3.5), (0.1, 7.0, 3.0)),
    ],
)
def test_normalising_is_the_contracts(config: ImageConfig) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 33, 3), dtype=np.uint8)
    actual, expected = normaliser(config)(image), normalise(image, config)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(normaliser(config)(image[:, ::-1]), expected[..., ::-1])


def test_lanczos_in_float_is_lanczos() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    fast = module._resize(image, (64, 128), cv2.INTER_LANCZOS4)
    plain = cv2.resize(image, (128, 64), interpolation=cv2.INTER_LANCZOS4)
    assert np.abs(fast.astype(int) - plain).max() <= 1


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(image: Array) -> None:
    with pytest.raises(SpecError, match="image"):
        resize_only(image, (8, 8))
