"""Coding: decoding inverts encoding, hand-computed offsets, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.coding import cascaded_decode, decode, encode

from .strategies import boxes, offsets, refused

VARIANCES = (0.1, 0.2)
ANCHOR = [[0.25, 0.25, 0.75, 0.5]]  # centre (0.5, 0.375), 0.5 wide, 0.25 high


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_offsets_by_hand(dtype):
    # The box has its centre at (0.625, 0.25), is 0.25 wide and 0.5 high:
    # x (0.625 - 0.5) / (0.5 * 0.1) = 2.5, y (0.25 - 0.375) / (0.25 * 0.1) = -5,
    # w ln(0.25 / 0.5) / 0.2 = -5 ln 2, h ln(0.5 / 0.25) / 0.2 = 5 ln 2.
    anchor, box = np.array(ANCHOR, dtype), np.array([[0.5, 0, 0.75, 0.5]], dtype)
    want = [[2.5, -5, -5 * math.log(2), 5 * math.log(2)]]
    actual = encode(box, anchor, VARIANCES)
    assert actual.dtype == dtype
    assert_allclose(actual, np.array(want, dtype), rtol=1e-7 if dtype == np.float32 else 1e-14)
    back = decode(actual, anchor, VARIANCES)
    assert back.dtype == dtype
    assert_allclose(back, box, atol=1e-7 if dtype == np.float32 else 1e-15)


def test_the_two_variances_are_not_mixed_up():
    # Variances (0.5, 0.25): x 0.125 / (0.5 * 0.5) = 0.5, y -0.125 / (0.25 * 0.5) = -1,
    # w, h -+ ln 2 / 0.25 = 4 ln 2.
    actual = encode(np.float64([[0.5, 0, 0.75, 0.5]]), np.float64(ANCHOR), (0.5, 0.25))
    assert_allclose(actual, [[0.5, -1, -4 * math.log(2), 4 * math.log(2)]], rtol=1e-14)
    assert_allclose(
        decode(actual, np.float64(ANCHOR), (0.5, 0.25)), [[0.5, 0, 0.75, 0.5]], atol=1e-15
    )


@given(data=st.data())
def test_decoding_inverts_encoding(data):
    a = data.draw(boxes(least=1, sided=True, dtype=np.float64))
    b = data.draw(boxes(least=len(a), most=len(a), sided=True, dtype=np.float64))
    assert_allclose(decode(encode(b, a, VARIANCES), a, VARIANCES), b, atol=1e-12)
    # Sides of 1/256 to 1: offsets up to 2560, which float32 resolves to 2^-13; a
    # sixteenth of that, times 0.1 and a side, is what is left of the error.
    f, g = a.astype(np.float32), b.astype(np.float32)
    assert_allclose(decode(encode(g, f, VARIANCES), f, VARIANCES), g, atol=2e-6)


@given(data=st.data())
def test_encoding_inverts_decoding(data):
    a = data.draw(boxes(least=1, sided=True, dtype=np.float64))
    t = data.draw(offsets(len(a), np.float64))
    assert_allclose(encode(decode(t, a, VARIANCES), a, VARIANCES), t, atol=1e-9)


@given(a=boxes())
def test_offsets_of_zero_stay_at_the_anchor(a):
    assert_array_equal(decode(np.zeros_like(a), a, VARIANCES), a)


@given(a=boxes(sided=True))
def test_the_anchor_itself_has_offsets_of_zero(a):
    assert_array_equal(encode(a, a, VARIANCES), np.zeros_like(a))


@given(data=st.data())
def test_the_cascade_codes_against_the_refined_anchors(data):
    a = data.draw(boxes(least=1, sided=True, dtype=np.float64))
    box = data.draw(boxes(least=len(a), most=len(a), sided=True, dtype=np.float64))
    arm = data.draw(offsets(len(a), np.float64))
    refined = decode(arm, a, VARIANCES)
    odm = encode(box, refined, VARIANCES)
    assert_allclose(cascaded_decode(arm, odm, a, VARIANCES), box, atol=1e-9)
    nothing = np.zeros_like(arm)
    assert_allclose(cascaded_decode(arm, nothing, a, VARIANCES), refined, atol=1e-12)
    assert_allclose(cascaded_decode(nothing, arm, a, VARIANCES), refined, atol=1e-12)


def test_a_cascade_by_hand():
    # First step: twice as wide, centre right by 0.5 * 0.1 * 1 = 0.05, to 0.55, side 1.
    # Second: right by 1 * 0.1 * 1 = 0.1 sides of the refined anchor, to 0.65.
    arm, odm = [[1, 0, 5 * math.log(2), 0]], [[1, 0, 0, 0]]
    actual = cascaded_decode(np.float64(arm), np.float64(odm), np.float64(ANCHOR), VARIANCES)
    assert_allclose(actual, [[0.15, 0.25, 1.15, 0.5]], atol=1e-15)


def test_each_step_of_the_cascade_rounds_to_the_dtype():
    a = np.float32([[0.1, 0.2, 0.4, 0.7]])
    arm, odm = np.float32([[0.3, -0.7, 1.1, 0.9]]), np.float32([[1.3, 0.2, -0.4, 0.6]])
    two_steps = decode(odm, decode(arm, a, VARIANCES), VARIANCES)
    actual = cascaded_decode(arm, odm, a, VARIANCES)
    assert actual.dtype == np.float32
    assert_array_equal(actual, two_steps)


def test_boxes_are_not_clipped():
    actual = decode(np.float64([[-10, 20, 0, 0]]), np.float64(ANCHOR), VARIANCES)
    assert_allclose(actual, [[-0.25, 0.75, 0.25, 1.0]], atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_to_code(dtype):
    none = np.zeros((0, 4), dtype)
    for actual in (
        encode(none, none, VARIANCES),
        decode(none, none, VARIANCES),
        cascaded_decode(none, none, none, VARIANCES),
    ):
        assert actual.shape == (0, 4)
        assert actual.dtype == dtype


def test_computed_in_float64():
    # Both centres lie beyond 0.5 by less than float32 resolves there; the offset shows it.
    a = np.float32([[0.5 - 2**-25, 0, 0.5, 1]])
    b = np.float32([[0.5, 0, 0.5 + 2**-24, 1]])
    want = (2**-25 + 2**-26) / (2**-25 * 0.1)
    assert encode(b, a, VARIANCES)[0, 0] == np.float32(want)


@pytest.mark.parametrize("side", [[0.5, 0, 0.5, 1], [0, 0.5, 1, 0.5]])
def test_encoding_refuses_a_side_of_length_0(side):
    good = np.float64([[0, 0, 1, 1]] * 3)
    bad = np.float64([[0, 0, 1, 1], side, side])
    with refused("boxes: row 1 has a side of length 0"):
        encode(bad, good, VARIANCES)
    with refused("anchors: row 1 has a side of length 0"):
        encode(good, bad, VARIANCES)


def test_encoding_needs_a_box_for_each_anchor():
    with refused("boxes: expected shape (2, 4), got (1, 4)"):
        encode(np.float64([[0, 0, 1, 1]]), np.float64([[0, 0, 1, 1]] * 2), VARIANCES)
    with refused("boxes, anchors: expected one dtype, got ['float32', 'float64']"):
        encode(np.float32([[0, 0, 1, 1]]), np.float64([[0, 0, 1, 1]]), VARIANCES)
    with refused("anchors: row 0 has crossed corners [1.0, 0.0, 0.0, 1.0]"):
        encode(np.float64([[0, 0, 1, 1]]), np.float64([[1, 0, 0, 1]]), VARIANCES)


def test_decoding_takes_an_anchor_without_area():
    line = np.float64([[0.25, 0.5, 0.75, 0.5]])
    # Right by 1 * 0.1 * 0.5; a side of 0 stays 0, however large the offset.
    assert_allclose(decode(np.float64([[1, 1, 0, 9]]), line, VARIANCES), [[0.3, 0.5, 0.8, 0.5]])


def test_decoding_names_the_argument_it_refuses():
    one = np.float32(ANCHOR)
    with refused("offsets: expected shape (1, 4), got (2, 4)"):
        decode(np.zeros((2, 4), np.float32), one, VARIANCES)
    with refused("offsets, anchors: expected one dtype, got ['float32', 'float64']"):
        decode(np.zeros((1, 4)), one, VARIANCES)
    with refused("offsets: not finite at (0, 3)"):
        decode(np.float32([[0, 0, 0, np.inf]]), one, VARIANCES)
    with refused("anchors: row 0 has crossed corners [1.0, 0.0, 0.0, 1.0]"):
        decode(np.zeros((1, 4)), np.float64([[1, 0, 0, 1]]), VARIANCES)
    with refused("anchors: expected shape (any, 4), got (4,)"):
        decode(np.zeros((4, 4)), np.zeros(4), VARIANCES)


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [
        (np.float32, [0, 0, 500, 0]),  # e^100 > 3.4e38
        (np.float32, [0, 0, 0, 4000]),  # e^800 > 1.8e308
        (np.float64, [0, 0, 0, 4000]),
        (np.float32, [3e38, 0, 0, 0]),
    ],
)
def test_decoding_refuses_what_overflows(dtype, offset):
    rows = np.array([[0, 0, 0, 0], offset, offset], dtype)
    anchors = np.array([[0, 0, 1, 1], [0, 0, 100, 100], [0, 0, 100, 100]], dtype)
    with refused(f"offsets: row 1 overflows {np.dtype(dtype)}"):
        decode(rows, anchors, VARIANCES)


def test_an_overflow_on_an_anchor_without_area_is_refused_too():
    # 0 times e^800 is no number.
    with refused("offsets: row 0 overflows float32"):
        decode(np.float32([[0, 0, 4000, 0]]), np.float32([[0.5, 0, 0.5, 1]]), VARIANCES)


def test_a_large_offset_that_fits_is_decoded():
    actual = decode(np.float32([[0, 0, 400, 0]]), np.float32([[0, 0, 1, 1]]), VARIANCES)
    assert_allclose(actual[0, 2], math.exp(80) / 2, rtol=1e-6)
