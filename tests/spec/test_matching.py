"""Matching: the two steps by example, their laws, and a slow second opinion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.coding import decode
from refinedet.spec.config import MatchingConfig
from refinedet.spec.matching import UNMATCHED, match, targets

from .strategies import boxes, grid_scores, refused, tiny

HALF = MatchingConfig()
CONFIG = tiny()


def brute_force(iou, config):
    """The same by sorting all pairs once."""
    anchors, ground_truth = iou.shape
    matched = [-1] * anchors
    pairs = sorted(
        (-iou[a, t], a, t)
        for a in range(anchors)
        for t in range(ground_truth)
        if iou[a, t] > config.lowest_iou
    )
    served = set()
    for _, a, t in pairs:
        if matched[a] == -1 and t not in served:
            matched[a] = t
            served.add(t)
    taken = list(matched)
    for negative, a, t in pairs:
        if matched[a] == -1 and -negative >= config.iou:
            matched[a] = t
    assert all(m == n for m, n in zip(taken, matched, strict=True) if m != -1)
    return matched


def test_both_steps_by_hand():
    iou = np.float32(
        [
            [0.9, 0.0],  # the largest of all: object 0
            [0.8, 0.3],  # the best of object 1 that is free: object 1, below the threshold
            [0.5, 0.1],  # exactly the threshold: object 0
            [0.49, 0.2],  # less: nothing
            [0.55, 0.25],  # above: object 0
            [0.0, 0.0],
        ]
    )
    assert match(iou, HALF).tolist() == [0, 1, 0, -1, 0, -1]
    assert match(iou, HALF).dtype == np.int64
    assert UNMATCHED == -1


def test_an_anchor_claimed_by_two_objects_goes_to_the_larger_overlap():
    # Both objects like anchor 0 best. Object 1 likes it more; object 0 gets its second best,
    # although that is far below the threshold.
    iou = np.float32([[0.6, 0.8], [0.1, 0.0], [0.05, 0.7]])
    assert match(iou, HALF).tolist() == [1, 0, 1]


def test_a_forced_anchor_serves_its_object_even_if_it_overlaps_another_more():
    # Object 0 takes anchor 0. Object 1 can only have anchor 1, which prefers object 0.
    iou = np.float32([[0.9, 0.0], [0.8, 0.2]])
    assert match(iou, HALF).tolist() == [0, 1]


def test_ties_go_to_the_lowest_anchor_then_to_the_lowest_object():
    assert match(np.full((3, 2), 0.25, np.float32), HALF).tolist() == [0, 1, -1]
    assert match(np.full((3, 2), 0.75, np.float32), HALF).tolist() == [0, 1, 0]
    # Anchor 0 with object 1 comes before anchor 1 with object 0.
    assert match(np.float32([[0.0, 0.5], [0.5, 0.5]]), HALF).tolist() == [1, 0]


def test_more_objects_than_anchors():
    iou = np.float32([[0.6, 0.7, 0.8]])
    assert match(iou, HALF).tolist() == [2]
    iou = np.float32([[0.6, 0.7, 0.8], [0.1, 0.2, 0.9]])
    assert match(iou, HALF).tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_no_anchors_or_no_objects(shape):
    actual = match(np.zeros(shape, np.float32), HALF)
    assert actual.shape == (shape[0],)
    assert actual.dtype == np.int64
    assert (actual == UNMATCHED).all()


def test_an_object_that_no_anchor_touches_stays_unmatched():
    assert match(np.zeros((3, 2), np.float32), HALF).tolist() == [-1, -1, -1]
    assert match(np.float32([[0, 0.2], [0, 0.1]]), HALF).tolist() == [1, -1]


def test_an_overlap_of_exactly_the_lowest_is_none():
    config = MatchingConfig(iou=0.5, lowest_iou=0.25)
    assert match(np.float32([[0.25]]), config).tolist() == [-1]
    assert match(
        np.float32([[np.nextafter(np.float32(0.25), np.float32(1))]]), config
    ).tolist() == [0]
    both = MatchingConfig(iou=0.25, lowest_iou=0.25)
    assert match(np.float32([[0.5], [0.25], [0.26]]), both).tolist() == [0, -1, 0]


def test_in_order_a_best_anchor_outdoes_any_overlap_and_the_lowest_is_none():
    config = MatchingConfig(iou=0.5, lowest_iou=0.25, rule="in_order")
    # Anchor 1 is object 0's by an overlap of 1, and then object 1's as its best.
    assert match(np.float32([[1.0, 0.1], [1.0, 0.9]]), config).tolist() == [0, 1]
    # Anchor 1 stays with object 0, which it overlaps more.
    iou = np.float32([[0.9, 0.1], [0.7, 0.6], [0.1, 0.8]])
    assert match(iou, config).tolist() == [0, 0, 1]
    assert match(np.float32([[0.25]]), config).tolist() == [-1]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7])
def test_overlaps_are_compared_in_their_own_dtype(threshold):
    # A float32 overlap equal to the threshold as float32 is neither above nor below it,
    # on whichever side of the decimal number the rounding went.
    equal = np.float32(threshold)
    lowest = MatchingConfig(iou=0.9, lowest_iou=threshold)
    assert match(np.array([[equal]]), lowest).tolist() == [-1]
    matched = match(np.array([[1], [equal]], np.float32), MatchingConfig(iou=threshold))
    assert matched.tolist() == [0, 0]
    below = np.nextafter(equal, np.float32(0))
    matched = match(np.array([[1], [below]], np.float32), MatchingConfig(iou=threshold))
    assert matched.tolist() == [0, -1]


def test_the_overlaps_are_left_as_they_are():
    iou = np.float32([[0.9, 0.0], [0.8, 0.2]])
    kept = iou.copy()
    match(iou, HALF)
    assert_array_equal(iou, kept)


@given(data=st.data(), anchors=st.integers(0, 6), ground_truth=st.integers(0, 4))
def test_the_greedy_choice_agrees_with_sorting_all_pairs(data, anchors, ground_truth):
    iou = data.draw(grid_scores(anchors, ground_truth))
    for config in (HALF, MatchingConfig(iou=0.625, lowest_iou=0.25), MatchingConfig(iou=1)):
        assert match(iou, config).tolist() == brute_force(iou, config)


@given(data=st.data(), anchors=st.integers(1, 6), ground_truth=st.integers(1, 4))
def test_without_ties_the_order_of_the_objects_does_not_matter(data, anchors, ground_truth):
    distinct = data.draw(st.permutations(range(1, anchors * ground_truth + 1)))
    iou = np.float32(distinct).reshape(anchors, ground_truth) / (anchors * ground_truth)
    order = np.array(data.draw(st.permutations(range(ground_truth))))
    there = match(iou, HALF)
    back = match(iou[:, order], HALF)
    back[back >= 0] = order[back[back >= 0]]
    assert_array_equal(back, there)


@given(data=st.data(), ground_truth=st.integers(1, 4), more=st.integers(0, 3))
def test_every_touched_object_gets_an_anchor_if_there_are_enough(data, ground_truth, more):
    iou = data.draw(grid_scores(ground_truth + more, ground_truth)).clip(0.125)
    assert set(match(iou, HALF).tolist()) >= set(range(ground_truth))


@given(data=st.data(), anchors=st.integers(1, 6), ground_truth=st.integers(1, 4))
def test_no_anchor_over_the_threshold_is_left_out(data, anchors, ground_truth):
    iou = data.draw(grid_scores(anchors, ground_truth))
    matched = match(iou, HALF)
    assert (matched[iou.max(axis=1) >= 0.5] >= 0).all()
    answered = np.flatnonzero(matched >= 0)
    assert (iou[answered, matched[answered]] > 0).all()


def test_targets_by_hand():
    anchors = np.float64([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 1, 1], [0.9, 0.9, 1, 1]])
    # Object 0 is anchor 1, moved right by 0.05: 0.45 * 0.5 of 0.55 * 0.5, IoU 9/11.
    # Object 1 is anchor 0 itself.
    objects = np.float64([[0.55, 0, 1.05, 0.5], [0, 0, 0.5, 0.5]])
    offsets, classes = targets(anchors, objects, np.array([3, 2]), CONFIG)
    assert classes.tolist() == [2, 3, 0, 0]
    assert classes.dtype == np.int64
    # 0.05 / (0.5 * 0.1) = 1
    assert_allclose(offsets, [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_image_without_objects_is_background(dtype):
    anchors = all_anchors(CONFIG).astype(dtype)
    offsets, classes = targets(anchors, np.zeros((0, 4), dtype), np.zeros(0, int), CONFIG)
    assert offsets.shape == anchors.shape
    assert offsets.dtype == dtype
    assert classes.shape == (len(anchors),)
    assert classes.dtype == np.int64
    assert not offsets.any()
    assert not classes.any()


@pytest.mark.parametrize("flat", [[0.3, 0.3, 0.3, 0.3], [0.2, 0.3, 0.4, 0.3], [0.3, 0, 0.3, 1]])
def test_an_object_without_area_is_never_answered_for(flat):
    anchors = all_anchors(CONFIG)
    _, classes = targets(anchors, np.float32([flat]), np.array([1]), CONFIG)
    assert not classes.any()
    _, classes = targets(anchors, np.float32([flat, [0, 0, 0.5, 1]]), np.array([1, 2]), CONFIG)
    assert set(classes.tolist()) == {0, 2}


def test_an_anchor_without_area_is_never_assigned():
    # Refined anchors may lose their area to rounding.
    anchors = np.float32([[0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1]])
    offsets, classes = targets(anchors, np.float32([[0, 0, 1, 1]]), np.array([1]), CONFIG)
    assert classes.tolist() == [0, 1]
    assert not offsets.any()


@given(objects=boxes(most=4, sided=True, dtype=np.float64))
def test_targets_lead_from_the_anchors_to_the_objects(objects):
    anchors = all_anchors(CONFIG).astype(np.float64)
    labels = np.arange(len(objects)) % 3 + 1
    offsets, classes = targets(anchors, objects, labels, CONFIG)
    positive = classes > 0
    assert not offsets[~positive].any()
    reached = decode(offsets[positive], anchors[positive], CONFIG.anchors.variances)
    for box, label in zip(reached, classes[positive], strict=True):
        same = np.isclose(objects, box, atol=1e-9).all(axis=1)
        assert label in labels[same]


def test_what_targets_refuses():
    anchors = all_anchors(CONFIG)
    box = np.float32([[0, 0, 1, 1]])
    with refused("labels: 0 at (0,) is outside 1..3"):
        targets(anchors, box, np.array([0]), CONFIG)
    with refused("labels: 4 at (0,) is outside 1..3"):
        targets(anchors, box, np.array([4]), CONFIG)
    with refused("labels: expected shape (1), got (2,)"):
        targets(anchors, box, np.array([1, 1]), CONFIG)
    with refused("labels: expected an array, got list"):
        targets(anchors, box, [1], CONFIG)
    with refused("labels: expected an integer array, got float64"):
        targets(anchors, box, np.array([1.0]), CONFIG)
    with refused("boxes: row 0 has crossed corners [1.0, 0.0, 0.0, 1.0]"):
        targets(anchors, np.float32([[1, 0, 0, 1]]), np.array([1]), CONFIG)
    with refused("anchors, boxes: expected one dtype, got ['float32', 'float64']"):
        targets(anchors, box.astype(float), np.array([1]), CONFIG)
