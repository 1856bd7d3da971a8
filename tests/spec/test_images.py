"""Images: which number lands where."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from refinedet.spec.config import ImageConfig
from refinedet.spec.images import normalise
from refinedet.spec.presets import preset

from .strategies import refused


def test_the_authors_mean():
    # B 104, G 117, R 123 (mean of the authors' release), blue first; no division.
    image = np.zeros((2, 3, 3), np.uint8)
    image[1, 2] = [200, 150, 100]  # R, G, B
    actual = normalise(image, preset("refinedet_vgg16_320").image)
    assert actual.shape == (3, 2, 3)
    assert actual.dtype == np.float32
    assert actual[:, 0, 0].tolist() == [-104, -117, -123]
    assert actual[:, 1, 2].tolist() == [100 - 104, 150 - 117, 200 - 123]


def test_mean_and_deviation_follow_the_channel_order():
    image = np.uint8([[[10, 20, 30]]])
    rgb = normalise(image, ImageConfig("RGB", (1, 2, 3), (2, 4, 8)))
    assert rgb[:, 0, 0].tolist() == [9 / 2, 18 / 4, 27 / 8]
    bgr = normalise(image, ImageConfig("BGR", (1, 2, 3), (2, 4, 8)))
    assert bgr[:, 0, 0].tolist() == [29 / 2, 18 / 4, 7 / 8]


def test_one_rounding_to_float32():
    config = ImageConfig("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    want = (image.astype(np.float64) - config.mean) / config.std
    assert_array_equal(normalise(image, config), np.float32(want.transpose(2, 0, 1)))


def test_the_result_is_contiguous_and_the_image_unchanged():
    image = np.full((4, 6, 3), 7, np.uint8)[:, ::2]
    actual = normalise(image, ImageConfig())
    assert actual.shape == (3, 4, 3)
    assert actual.flags["C_CONTIGUOUS"]
    assert (image == 7).all()


@given(height=st.integers(0, 4), width=st.integers(0, 4))
def test_mirroring_before_or_after_is_the_same(height, width):
    image = np.random.default_rng(height * 5 + width).integers(0, 256, (height, width, 3), np.uint8)
    config = ImageConfig(std=(2, 3, 4))
    actual = normalise(image, config)
    assert actual.shape == (3, height, width)
    assert_array_equal(normalise(image[:, ::-1], config), actual[..., ::-1])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 2), np.uint8), "image: expected shape (any, any, 3), got (2, 2)"),
        (np.zeros((2, 2, 4), np.uint8), "image: expected shape (any, any, 3), got (2, 2, 4)"),
        (np.zeros((3, 2, 2), np.uint8), "image: expected shape (any, any, 3), got (3, 2, 2)"),
        (np.zeros((2, 2, 3), np.float32), "image: expected uint8, got float32"),
        (np.zeros((2, 2, 3), np.uint16), "image: expected uint8, got uint16"),
        (np.zeros((2, 2, 3), np.int8), "image: expected uint8, got int8"),
        (np.zeros((2, 2, 3), bool), "image: expected uint8, got bool"),
        ([[[1, 2, 3]]], "image: expected an array, got list"),
    ],
)
def test_another_shape_or_dtype_is_refused(bad, message):
    with refused(message):
        normalise(bad, ImageConfig())
