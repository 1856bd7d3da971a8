"""Anchors: the published counts and first anchors, and a slow second opinion."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.anchors import anchors, level_anchors
from refinedet.spec.boxes import area, corners_to_centres
from refinedet.spec.config import feature_sizes, replace
from refinedet.spec.presets import preset

from .strategies import tiny

# Counts, map sizes and first anchors: arXiv:1711.06897, section 3.2, and the prior-box
# layer of the authors' release, worked out by hand from its formula. The elongated ones
# of level 0 at 320: 32 * sqrt(2) / 320 = 0.141421 wide, 32 / sqrt(2) / 320 = 0.070711 high,
# around 0.0125: 0.0125 -+ 0.070711 and 0.0125 -+ 0.035355.


@pytest.mark.parametrize(
    ("name", "count", "sizes"),
    [
        ("refinedet_vgg16_320", 6375, (40, 20, 10, 5)),
        ("refinedet_vgg16_512", 16320, (64, 32, 16, 8)),
    ],
)
def test_published_counts(name, count, sizes):
    config = preset(name)
    assert feature_sizes(config) == tuple((n, n) for n in sizes)
    actual = anchors(config)
    assert actual.shape == (count, 4)
    assert actual.dtype == np.float32


def test_first_anchors_at_320():
    actual = anchors(preset("refinedet_vgg16_320"))
    expected = [
        [-0.0375, -0.0375, 0.0625, 0.0625],
        [-0.05821, -0.02286, 0.08321, 0.04786],
        [-0.02286, -0.05821, 0.04786, 0.08321],
    ]
    assert_allclose(actual[:3], expected, atol=5e-6)
    assert_allclose(
        actual[3:6] - actual[:3], [[0.025, 0, 0.025, 0]] * 3, atol=1e-7
    )  # one cell right
    assert_allclose(actual[120:123] - actual[:3], [[0, 0.025, 0, 0.025]] * 3, atol=1e-7)  # one down
    for first, square in ((4800, (-0.075, 0.125)), (6000, (-0.15, 0.25)), (6300, (-0.3, 0.5))):
        low, high = square
        assert_allclose(actual[first], [low, low, high, high], atol=1e-7)


def test_first_anchor_at_512_keeps_its_size_in_pixels():
    actual = anchors(preset("refinedet_vgg16_512"))
    assert_allclose(actual[0], [-0.02344, -0.02344, 0.03906, 0.03906], atol=5e-6)
    assert_allclose(actual[0] * 512, [-12, -12, 20, 20], atol=1e-4)


def test_every_anchor_of_a_image_that_is_not_square():
    config = replace(
        preset("refinedet_vgg16_320"),
        image_size=(128, 192),
        anchors={"sides": (20.0, 50.0, 90.0, 170.0), "aspect_ratios": (1.0, 4.0, 0.25, 3.0)},
    )
    expected = []
    for stride, side in zip((8, 16, 32, 64), (20, 50, 90, 170), strict=True):
        for row in range(128 // stride):
            for column in range(192 // stride):
                for ratio in (1, 4, 0.25, 3):
                    x, y = (column + 0.5) * stride, (row + 0.5) * stride
                    w, h = side * ratio**0.5, side / ratio**0.5
                    box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                    expected.append([box[0] / 192, box[1] / 128, box[2] / 192, box[3] / 128])
    actual = anchors(config)
    assert actual.shape == (4 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3), 4)
    assert_allclose(actual, np.float32(expected), atol=1e-7)


def test_anchors_of_a_level_have_one_area_and_the_aspect_ratio_in_pixels():
    actual = level_anchors((2, 3), 16, 24.0, (1.0, 2.0, 0.5), (32, 48))
    pixels = (actual * np.float32([48, 32, 48, 32])).reshape(2, 3, 3, 4)
    assert_allclose(area(pixels), np.full((2, 3, 3), 24.0**2), rtol=1e-5)
    centres = corners_to_centres(pixels[1, 2])
    assert_allclose(centres[:, 2] / centres[:, 3], [1, 2, 0.5], rtol=1e-5)  # 2 is wide
    assert_allclose(centres[:, :2], [[40, 24]] * 3, rtol=1e-6)


def test_anchors_reach_outside_the_image():
    actual = anchors(preset("refinedet_vgg16_320"))
    assert actual.min() < -0.3
    assert actual.max() > 1.3


def test_levels_follow_one_another_finest_first():
    config = tiny()
    actual = anchors(config)
    assert feature_sizes(config) == ((8, 16), (4, 8), (2, 4), (1, 2))
    first = 0
    for size, stride, side in zip(
        feature_sizes(config), config.anchors.strides, config.anchors.sides, strict=True
    ):
        level = level_anchors(size, stride, side, (1.0,), (64, 128))
        assert_array_equal(actual[first : first + len(level)], level)
        first += len(level)
    assert first == len(actual) == 170


def test_one_rounding_to_float32():
    # Computed in float64 and rounded once: exact quotients come out correctly rounded.
    actual = level_anchors((1, 3), 8, 8.0, (1.0,), (8, 24))
    assert_array_equal(actual[:, 0], np.float32([0, 1 / 3, 2 / 3]))
    assert_array_equal(actual[:, 2], np.float32([1 / 3, 2 / 3, 1]))
