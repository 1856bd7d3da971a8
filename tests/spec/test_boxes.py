"""Boxes: laws of the two forms and of their overlap, and the edges by example."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.boxes import (
    area,
    box_iou,
    centres_to_corners,
    clip_boxes,
    corners_to_centres,
)

from .strategies import boxes, refused

BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@BOTH
def test_a_box_in_both_forms(dtype):
    # x: 0.25 to 0.75, centre 0.5, 0.5 wide; y: 0 to 0.5, centre 0.25, 0.5 high.
    corners = np.array([[0.25, 0, 0.75, 0.5], [-1, 0.5, 3, 0.5]], dtype)
    centres = np.array([[0.5, 0.25, 0.5, 0.5], [1, 0.5, 4, 0]], dtype)
    for actual, want in (
        (corners_to_centres(corners), centres),
        (centres_to_corners(centres), corners),
    ):
        assert actual.dtype == dtype
        assert_array_equal(actual, want)


@given(b=boxes())
def test_centre_form_leads_back_to_corner_form(b):
    assert_array_equal(centres_to_corners(corners_to_centres(b)), b)


@BOTH
def test_no_boxes(dtype):
    none, some = np.zeros((0, 4), dtype), np.zeros((3, 4), dtype)
    for function in (corners_to_centres, centres_to_corners, clip_boxes):
        assert function(none).shape == (0, 4)
        assert function(none).dtype == dtype
    assert area(none).shape == (0,)
    for a, t, shape in ((none, some, (0, 3)), (some, none, (3, 0)), (none, none, (0, 0))):
        assert box_iou(a, t).shape == shape
        assert box_iou(a, t).dtype == dtype


def test_forms_are_computed_finer_than_float32():
    # In float32 the sum of these corners rounds to 2, and the centre to 1.
    low, high = np.float32(1 - 2**-24), np.float32(1 + 2**-23)
    actual = corners_to_centres(np.array([[low, low, high, high]]))
    assert actual[0, 0] == np.float32((float(low) + float(high)) / 2)
    assert actual[0, 2] == np.float32(float(high) - float(low))


def test_crossed_corners_are_refused():
    crossed = np.float32([[0, 0, 1, 1], [0.5, 0, 0.25, 1]])
    with refused("boxes: row 1 has crossed corners [0.5, 0.0, 0.25, 1.0]"):
        corners_to_centres(crossed)
    with refused("boxes: row 1 has crossed corners [0.5, 0.0, 0.25, 1.0]"):
        clip_boxes(crossed)
    with refused("anchors: row 1 has crossed corners [0.5, 0.0, 0.25, 1.0]"):
        box_iou(crossed, crossed[:1])
    with refused("ground_truth: row 1 has crossed corners [0.5, 0.0, 0.25, 1.0]"):
        box_iou(crossed[:1], crossed)


def test_centre_form_refuses_negative_sides_and_other_shapes():
    with refused("boxes: row 2 has a negative side"):
        centres_to_corners(np.float32([[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, -0.5], [0, 0, -1, 0]]))
    with refused("boxes: expected shape (any, 4), got (1, 3)"):
        centres_to_corners(np.zeros((1, 3)))
    with refused("boxes: not finite at (0, 1)"):
        centres_to_corners(np.array([[0, np.nan, 1, 1]]))
    with refused("boxes: expected a float32 or float64 array, got int64"):
        centres_to_corners(np.zeros((1, 4), np.int64))


def test_area_by_hand():
    # 0.5 * 0.25; nothing; (2 + 1) * (1 + 1).
    b = np.float32([[0.25, 0.5, 0.75, 0.75], [0.5, 0.1, 0.5, 0.9], [-1, -1, 2, 1]])
    assert_array_equal(area(b), np.float32([0.125, 0, 6]))
    assert area(b).dtype == np.float32
    assert_array_equal(area(b[None, :2]), np.float32([[0.125, 0]]))


@BOTH
def test_overlap_by_hand(dtype):
    a = np.array([[0, 0, 0.5, 0.5]], dtype)
    t = np.array(
        [
            [0.25, 0, 0.75, 0.5],  # shares 0.25 * 0.5 of 2 * 0.25: 0.125 / 0.375 = 1/3
            [0.25, 0.25, 0.75, 0.75],  # 0.0625 / 0.4375 = 1/7
            [0, 0, 0.5, 1],  # 0.25 / 0.5 = 1/2
            [0.5, 0, 1, 0.5],  # a shared side is no overlap
            [0.75, 0.75, 1, 1],  # apart in x and y: two negative sides make no area
            [0.25, 0.25, 0.25, 0.25],  # no area, inside
            [0.125, 0.125, 0.375, 0.25],  # inside: 0.03125 / 0.25 = 1/8
        ],
        dtype,
    )
    actual = box_iou(a, t)
    assert actual.dtype == dtype
    assert actual.shape == (1, 7)
    assert_array_equal(actual[0], np.array([1 / 3, 1 / 7, 1 / 2, 0, 0, 0, 1 / 8], dtype))
    assert_array_equal(box_iou(t, a)[:, 0], actual[0])


def test_two_boxes_without_area_do_not_overlap_even_if_they_are_the_same():
    point = np.float32([[0.5, 0.5, 0.5, 0.5]])
    line = np.float32([[0.1, 0.5, 0.9, 0.5]])
    assert box_iou(point, point) == 0
    assert box_iou(line, line) == 0


def test_overlap_is_computed_in_float64():
    # In float32 sides of 2^-80 have an area of 0, and no overlap.
    side = np.float32(2**-80)
    small = np.array([[0, 0, side, side]])
    assert box_iou(small, small) == 1


@given(a=boxes(), t=boxes())
def test_overlap_is_symmetric_and_between_0_and_1(a, t):
    iou = box_iou(a, t)
    assert_array_equal(iou, box_iou(t, a).T)
    assert (iou >= 0).all()
    assert (iou <= 1).all()


@given(b=boxes(sided=True))
def test_a_box_overlaps_itself_entirely(b):
    assert_array_equal(np.diag(box_iou(b, b)), np.ones(len(b), np.float32))


@given(a=boxes(), t=boxes(), dx=st.integers(-4, 4), dy=st.integers(-4, 4))
def test_overlap_does_not_change_when_all_boxes_move(a, t, dx, dy):
    move = np.float32([dx, dy, dx, dy]) / 4
    assert_array_equal(box_iou(a + move, t + move), box_iou(a, t))


@given(a=boxes(), t=boxes())
def test_overlap_does_not_change_when_x_and_y_are_exchanged(a, t):
    other = [1, 0, 3, 2]
    assert_array_equal(box_iou(a[:, other], t[:, other]), box_iou(a, t))


def test_overlaps_need_one_dtype():
    with refused("anchors, ground_truth: expected one dtype, got ['float32', 'float64']"):
        box_iou(np.zeros((1, 4), np.float32), np.zeros((1, 4)))


def test_clipping_brings_every_coordinate_into_the_image():
    b = np.float32([[-0.5, 0.25, 1.5, 0.75], [1.25, -3, 2, -1], [0, 0, 1, 1]])
    want = np.float32([[0, 0.25, 1, 0.75], [1, 0, 1, 0], [0, 0, 1, 1]])
    assert_array_equal(clip_boxes(b), want)
    assert_array_equal(clip_boxes(clip_boxes(b)), want)
    assert clip_boxes(b).dtype == np.float32


def test_arguments_are_not_changed():
    b = np.float32([[-0.5, 0.25, 1.5, 0.75]])
    kept = b.copy()
    clip_boxes(b)
    corners_to_centres(b)
    box_iou(b, b)
    assert_allclose(b, kept, rtol=0, atol=0)
