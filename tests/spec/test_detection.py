"""Detection: suppression and caps by example, their laws, and a slow second opinion."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.boxes import box_iou
from refinedet.spec.coding import cascaded_decode
from refinedet.spec.config import DetectionConfig, replace
from refinedet.spec.detection import (
    Detections,
    detect,
    detections,
    nms,
    pixel_sides,
    scored_boxes,
)
from refinedet.spec.losses import softmax
from refinedet.spec.network import Heads

from .strategies import boxes, grid_scores, refused, tiny

CONFIG = tiny()
ANCHORS = 170
BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])
EVERYTHING = DetectionConfig(
    score=0, top_before_nms=None, nms_iou=1, top_per_class=None, top=None, clip=False
)


def far_apart(count, dtype=np.float32):
    """Boxes in a row that do not touch."""
    x = np.arange(count) / count
    return np.stack([x, x * 0, x + 0.5 / count, x * 0 + 0.5], axis=1).astype(dtype)


# Suppression within a class


@BOTH
def test_suppression_by_hand(dtype):
    b = np.array(
        [
            [0, 0, 1, 0.5],  # dropped: half of row 1
            [0, 0, 1, 1],  # the best
            [0, 0, 1, 0.25],  # a quarter of row 1, half of row 0, which is gone: kept
            [0, 0.75, 1, 1],  # a quarter of row 1: kept
        ],
        dtype,
    )
    actual = nms(b, np.array([0.8, 0.9, 0.7, 0.95], dtype), 0.4)
    assert actual.dtype == np.int64
    assert actual.tolist() == [3, 1, 2]


def test_an_overlap_of_exactly_the_threshold_is_kept():
    b = np.float32([[0, 0, 1, 1], [0, 0, 1, 0.5]])
    scores = np.float32([0.9, 0.8])
    assert nms(b, scores, 0.5).tolist() == [0, 1]
    assert nms(b, scores, 0.4999).tolist() == [0]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.45, 0.7])
def test_an_overlap_is_compared_in_its_own_dtype(threshold):
    # The overlap is float32(threshold), which is the threshold, whichever way it was rounded.
    b = np.float32([[0, 0, 1, 1], [0, 0, 1, threshold]])
    assert nms(b, np.float32([0.9, 0.8]), threshold).tolist() == [0, 1]


def test_equal_scores_go_to_the_lower_row():
    b = np.float32([[0, 0, 1, 0.9], [0, 0, 1, 1], [0, 0, 0.9, 1]])
    assert nms(b, np.float32([0.5, 0.5, 0.5]), 0.45).tolist() == [0]
    b = np.concatenate([b[:1] + 5, b])
    assert nms(b, np.float32([0.25, 0.5, 0.5, 0.5]), 0.45).tolist() == [1, 0]
    # Stable on long inputs, too.
    many = far_apart(100)
    assert nms(many, np.zeros(100, np.float32), 0.5).tolist() == list(range(100))


def test_boxes_without_area_suppress_nothing():
    point = np.float32([[0.5, 0.5, 0.5, 0.5]] * 2)
    assert nms(point, np.float32([0.1, 0.2]), 0.0).tolist() == [1, 0]


def test_the_same_box_twice_stays_at_a_threshold_of_1_only():
    twice = np.float32([[0, 0, 1, 1]] * 2)
    assert nms(twice, np.float32([0.1, 0.2]), 1.0).tolist() == [1, 0]
    assert nms(twice, np.float32([0.1, 0.2]), 0.99).tolist() == [1]


def test_touching_boxes_stay_at_a_threshold_of_0():
    b = np.float32([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0.25, 0, 0.75, 1]])
    assert nms(b, np.float32([0.3, 0.2, 0.1]), 0.0).tolist() == [0, 1]


@BOTH
def test_nothing_to_suppress(dtype):
    actual = nms(np.zeros((0, 4), dtype), np.zeros(0, dtype), 0.5)
    assert actual.shape == (0,)
    assert actual.dtype == np.int64


@given(data=st.data(), threshold=st.sampled_from([0.0, 0.25, 0.45, 1.0]))
def test_laws_of_suppression(data, threshold):
    b = data.draw(boxes())
    scores = data.draw(grid_scores(len(b)))
    kept = nms(b, scores, threshold)
    # Twice is once.
    assert nms(b[kept], scores[kept], threshold).tolist() == list(range(len(kept)))
    # The best stays, first; scores fall; equal scores by rising row.
    if len(b):
        assert kept[0] == scores.argmax()
    order = [(-scores[k], k) for k in kept]
    assert order == sorted(order)
    # No two that stay overlap too much; whatever goes overlaps a better one that stays.
    iou = box_iou(b, b)
    for place, k in enumerate(kept):
        assert (iou[k, kept[:place]] <= threshold).all()
    for gone in set(range(len(b))) - set(kept.tolist()):
        better = [k for k in kept if (-scores[k], k) < (-scores[gone], gone)]
        assert (iou[gone, better] > threshold).any()


def test_what_suppression_refuses():
    b = np.float32([[0, 0, 1, 1]])
    with refused("scores: expected shape (1), got (2,)"):
        nms(b, np.float32([0.1, 0.2]), 0.5)
    with refused("boxes: row 0 has crossed corners [1.0, 0.0, 0.0, 1.0]"):
        nms(np.float32([[1, 0, 0, 1]]), np.float32([0.1]), 0.5)
    with refused("boxes, scores: expected one dtype, got ['float32', 'float64']"):
        nms(b, np.array([0.1]), 0.5)
    with refused("scores: not finite at (0,)"):
        nms(b, np.float32([np.nan]), 0.5)


# Detections of an image


def test_a_score_of_exactly_the_threshold_is_no_candidate():
    b = far_apart(2)
    scores = np.float32([[0, 0.5], [0, np.nextafter(np.float32(0.5), np.float32(1))]])
    actual = detect(b, scores, replace_in(EVERYTHING, score=0.5))
    assert actual.scores.tolist() == [scores[1, 1]]


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.3, 0.7])
def test_a_score_is_compared_in_its_own_dtype(threshold):
    scores = np.float32([[0, threshold]])
    assert len(detect(far_apart(1), scores, replace_in(EVERYTHING, score=threshold)).scores) == 0


def replace_in(config, **changes):
    return DetectionConfig(**{**vars(config), **changes})


def test_the_background_is_never_found():
    actual = detect(far_apart(2), np.float32([[1, 0, 0.25], [1, 0, 0]]), EVERYTHING)
    assert actual.labels.tolist() == [2]
    assert actual.scores.tolist() == [0.25]


@BOTH
def test_one_anchor_may_be_several_objects(dtype):
    scores = np.array([[0, 0.25, 0.5, 0.75]], dtype)
    actual = detect(far_apart(1, dtype), scores, EVERYTHING)
    assert isinstance(actual, Detections)
    assert actual.labels.tolist() == [3, 2, 1]
    assert actual.labels.dtype == np.int64
    assert actual.scores.tolist() == [0.75, 0.5, 0.25]
    assert actual.boxes.dtype == actual.scores.dtype == dtype
    assert_array_equal(actual.boxes, far_apart(1, dtype).repeat(3, axis=0))


def test_equal_scores_go_by_rising_anchor_then_rising_class():
    scores = np.float32([[0, 0.5, 0.25, 0.5], [0, 0.5, 0.5, 0.25]])
    actual = detect(far_apart(2), scores, EVERYTHING)
    x = (actual.boxes[:, 0] * 2).tolist()  # the anchor
    assert list(zip(x, actual.labels.tolist(), strict=True)) == [
        (0, 1),
        (0, 3),
        (1, 1),
        (1, 2),
        (0, 2),
        (1, 3),
    ]
    three = detect(far_apart(2), scores, replace_in(EVERYTHING, top=3))
    assert_array_equal(three.boxes, actual.boxes[:3])
    assert three.labels.tolist() == [1, 3, 1]


def test_ties_keep_their_order_on_long_inputs():
    # An unstable sort shows beyond some sixteen numbers.
    scores = np.zeros((200, 3), np.float32)
    scores[:, 1], scores[:, 2] = 0.25, 0.5
    actual = detect(far_apart(200), scores, EVERYTHING)
    assert actual.labels.tolist() == [2] * 200 + [1] * 200
    assert_array_equal(actual.boxes, np.tile(far_apart(200), (2, 1)))


def test_classes_do_not_suppress_one_another():
    same = np.float32([[0, 0, 1, 1]] * 3)
    scores = np.float32([[0, 0.9, 0], [0, 0.8, 0], [0, 0, 0.7]])
    actual = detect(same, scores, replace_in(EVERYTHING, nms_iou=0.45))
    assert actual.labels.tolist() == [1, 2]
    assert actual.scores.tolist() == np.float32([0.9, 0.7]).tolist()


def test_the_best_of_a_image_are_chosen_before_suppression():
    # Two copies of one box lead; with room for two candidates nothing else is left.
    b = np.concatenate([far_apart(3)[:1], far_apart(3)])
    scores = np.float32([[0, 0.9, 0], [0, 0.8, 0], [0, 0.7, 0], [0, 0, 0.6]])
    config = replace_in(EVERYTHING, nms_iou=0.45)
    two = detect(b, scores, replace_in(config, top_before_nms=2))
    assert two.scores.tolist() == np.float32([0.9]).tolist()
    three = detect(b, scores, replace_in(config, top_before_nms=3))
    assert three.scores.tolist() == np.float32([0.9, 0.7]).tolist()
    # A class of its own is left room.
    per_class = detect(b, scores, replace_in(config, top_before_nms_per_class=2))
    assert per_class.scores.tolist() == np.float32([0.9, 0.6]).tolist()


def test_the_best_of_a_class_and_of_a_image_are_kept_after_suppression():
    b = np.concatenate([far_apart(3)[:1], far_apart(3)])
    scores = np.float32([[0, 0.9, 0], [0, 0.8, 0.5], [0, 0.7, 0.65], [0, 0.6, 0.4]])
    config = replace_in(EVERYTHING, nms_iou=0.45)
    actual = detect(b, scores, replace_in(config, top_per_class=2))
    assert actual.scores.tolist() == np.float32([0.9, 0.7, 0.65, 0.5]).tolist()
    assert actual.labels.tolist() == [1, 1, 2, 2]
    actual = detect(b, scores, replace_in(config, top_per_class=2, top=3))
    assert actual.scores.tolist() == np.float32([0.9, 0.7, 0.65]).tolist()
    actual = detect(b, scores, replace_in(config, top=5))
    assert actual.scores.tolist() == np.float32([0.9, 0.7, 0.65, 0.6, 0.5]).tolist()


def test_boxes_are_clipped_last_and_only_if_asked():
    # Clipped first, the two would be the same box.
    b = np.float32([[-1, 0, 1, 1], [0, 0, 3, 1]])
    scores = np.float32([[0, 0.9], [0, 0.8]])
    config = replace_in(EVERYTHING, nms_iou=0.45)
    assert detect(b, scores, config).boxes.tolist() == b.tolist()
    actual = detect(b, scores, replace_in(config, clip=True))
    assert actual.boxes.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


def test_a_box_beside_the_image_is_clipped_to_one_without_area_and_stays():
    actual = detect(np.float32([[2, 0, 3, 1]]), np.float32([[0, 1]]), DetectionConfig())
    assert actual.boxes.tolist() == [[1, 0, 1, 1]]


@pytest.mark.parametrize("anchors", [0, 3])
@BOTH
def test_nothing_found(anchors, dtype):
    actual = detect(far_apart(3, dtype)[:anchors], np.zeros((anchors, 4), dtype), DetectionConfig())
    assert actual.boxes.shape == (0, 4)
    assert actual.scores.shape == actual.labels.shape == (0,)
    assert actual.boxes.dtype == actual.scores.dtype == dtype
    assert actual.labels.dtype == np.int64


def brute_force(b, scores, config):
    """The same with sorted lists: (score, anchor, label), best first."""
    found = [
        (-scores[a, k], a, k)
        for a in range(len(b))
        for k in range(1, scores.shape[1])
        if scores[a, k] > config.score
    ]
    found = sorted(found)[: config.top_before_nms]
    iou = box_iou(b, b)
    kept = []
    for c in {k for _, _, k in found}:
        mine = [f for f in found if f[2] == c][: config.top_before_nms_per_class]
        stay = []
        for f in mine:
            if all(iou[f[1], s[1]] <= config.nms_iou for s in stay):
                stay.append(f)
        kept += stay[: config.top_per_class]
    return sorted(kept)[: config.top]


LIMITS = st.one_of(st.none(), st.integers(1, 6))


@given(data=st.data(), rows=st.integers(0, 6))
def test_detections_agree_with_sorted_lists(data, rows):
    b = data.draw(boxes(least=rows, most=rows))
    scores = data.draw(grid_scores(rows, 4))
    config = DetectionConfig(
        score=data.draw(st.sampled_from([0.0, 0.25])),
        top_before_nms=data.draw(LIMITS),
        top_before_nms_per_class=data.draw(LIMITS),
        nms_iou=data.draw(st.sampled_from([0.0, 0.25, 0.45])),
        top_per_class=data.draw(LIMITS),
        top=data.draw(LIMITS),
    )
    want = brute_force(b, scores, config)
    actual = detect(b, scores, config)
    assert actual.labels.tolist() == [k for _, _, k in want]
    assert actual.scores.tolist() == [-s for s, _, _ in want]
    assert_array_equal(actual.boxes, b[[a for _, a, _ in want]].reshape(-1, 4))


def test_what_detect_refuses():
    b = far_apart(2)
    with refused("scores: expected a column for the background and one for each class"):
        detect(b, np.zeros((2, 1), np.float32), EVERYTHING)
    with refused("scores: expected shape (2, any), got (3, 4)"):
        detect(b, np.zeros((3, 4), np.float32), EVERYTHING)
    with refused("boxes, scores: expected one dtype, got ['float32', 'float64']"):
        detect(b, np.zeros((2, 4)), EVERYTHING)
    with refused("boxes: row 0 has crossed corners [1.0, 0.0, 0.0, 1.0]"):
        detect(np.float32([[1, 0, 0, 1]]), np.zeros((1, 4), np.float32), EVERYTHING)
    with refused("scores: not finite at (1, 2)"):
        bad = np.zeros((2, 4), np.float32)
        bad[1, 2] = np.inf
        detect(b, bad, EVERYTHING)


# From the heads


def heads_of(seed, images=2, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = (4, 2, 4, CONFIG.num_classes)
    return Heads(*(rng.normal(size=(images, ANCHORS, n)).astype(dtype) for n in shapes))


@BOTH
def test_boxes_by_the_cascade_and_scores_by_softmax(dtype):
    heads = heads_of(0, dtype=dtype)
    actual, scores = scored_boxes(heads, CONFIG)
    assert actual.dtype == scores.dtype == dtype
    anchors = all_anchors(CONFIG).astype(dtype)
    for n in range(2):
        want = cascaded_decode(heads.arm_offsets[n], heads.odm_offsets[n], anchors, (0.1, 0.2))
        assert_array_equal(actual[n], want)
    assert (softmax(heads.arm_logits)[..., 1] >= 0.01).all()
    assert_array_equal(scores, softmax(heads.odm_logits))


def test_an_anchor_that_the_arm_holds_for_background_scores_nothing():
    # Probability of "object" 1 / (1 + e^x) is 0.01 at x = ln 99. arXiv:1711.06897, section 3.1:
    # at inference an anchor with a negative confidence above theta = 0.99 is discarded.
    heads = heads_of(1)
    heads.arm_logits[...] = 0
    heads.arm_logits[0, :4, 0] = [math.log(99.5), math.log(98.5), 30, -30]
    _, scores = scored_boxes(heads, CONFIG)
    assert (scores[0, :5].sum(axis=1) > 0).tolist() == [False, True, False, True, True]
    assert not scores[0, [0, 2]].any()  # the background's column, too
    assert_array_equal(scores[1], softmax(heads.odm_logits[1]))


def test_an_objectness_of_exactly_the_threshold_counts():
    heads = heads_of(2)
    heads.arm_logits[...] = 0
    half = replace(CONFIG, loss={"objectness": 0.5})
    assert_array_equal(scored_boxes(heads, half)[1], softmax(heads.odm_logits))
    heads.arm_logits[..., 0] = 1e-3
    assert not scored_boxes(heads, half)[1].any()


def test_a_filtered_anchor_is_not_found_even_without_a_score_threshold():
    config = replace(CONFIG, detection=EVERYTHING)
    heads = heads_of(3)
    heads.arm_logits[...] = [9, -9]
    assert [len(d.scores) for d in detections(heads, config)] == [0, 0]


def test_detections_are_those_of_each_image():
    heads = heads_of(4)
    b, scores = scored_boxes(heads, CONFIG)
    actual = detections(heads, CONFIG)
    assert len(actual) == 2
    for n in range(2):
        want = detect(b[n], scores[n], CONFIG.detection)
        assert len(want.scores) > 10
        for mine, theirs in zip(actual[n], want, strict=True):
            assert_array_equal(mine, theirs)


def test_one_object_from_heads_by_hand():
    # All logits say background but those of anchor 5 of level 0 (row 0, column 5 of 16: 8 px
    # cells, centre at 44, 4 px; side 16). ARM: right by 0.1 * 1 * 16 = 1.6 px. ODM: down by
    # 0.1 * 2 * 16 = 3.2 px, e^0.2 times as wide: 19.542 px.
    zeros = [np.zeros((1, ANCHORS, n), np.float32) for n in (4, 2, 4, 4)]
    heads = Heads(*zeros)
    heads.odm_logits[..., 0] = 20
    heads.odm_logits[0, 5] = [0, 0, 20, 0]
    heads.arm_offsets[0, 5] = [1, 0, 0, 0]
    heads.odm_offsets[0, 5] = [0, 2, 1, 0]
    (actual,) = detections(heads, CONFIG)
    assert actual.labels.tolist() == [2]
    assert actual.scores[0] == pytest.approx(1)
    wide = 16 * math.exp(0.2)
    x, y = 44 + 1.6, 4 + 3.2
    pixels = actual.boxes[0] * [128, 64, 128, 64]
    assert_allclose(pixels, [x - wide / 2, 0, x + wide / 2, y + 8], atol=1e-4)  # y - 8 is clipped


def test_a_network_that_has_lost_its_mind_is_refused():
    heads = heads_of(5)
    heads.arm_offsets[0, 7, 2] = 1e4
    with refused("offsets: row 7 overflows float32"):
        scored_boxes(heads, CONFIG)


def test_a_pixel_is_another_part_of_the_width_than_of_the_height():
    config = DetectionConfig(pixel=0.5)
    assert pixel_sides(config, (10, 40)) == (0.0125, 0.05)
