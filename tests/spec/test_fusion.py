"""Fusion of views: voting and soft suppression by example, their laws, and whole images."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.config import DetectionConfig
from refinedet.spec.detection import Detections, detect, nms
from refinedet.spec.fusion import FusionConfig, View, box_voting, fuse, soft_nms

from .strategies import boxes, grid_scores, refused

BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])
NAN, INF = math.nan, math.inf
PLAIN = FusionConfig(pixel=0.0)
SIZE = (100, 200)


def positive_scores(count):
    """On a grid of 256ths, above 0: all different."""
    return st.permutations(range(1, 257)).map(lambda p: (np.array(p[:count]) / 256).astype("f4"))


def detections(*rows):
    """Of rows (corners, score, label)."""
    return Detections(
        np.array([r[0] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[1] for r in rows], np.float32),
        np.array([r[2] for r in rows], np.int64),
    )


def same(actual, want):
    for mine, theirs in zip(actual, want, strict=True):
        assert mine.dtype == theirs.dtype
        assert_array_equal(mine, theirs)


# Box voting


@BOTH
def test_voting_by_hand(dtype):
    b = np.array(
        [
            [0, 0, 1, 0.5],  # overlaps the best by a half
            [0, 0, 1, 1],  # the best
            [0, 0.75, 1, 1],  # overlaps it by a quarter: votes for itself
        ],
        dtype,
    )
    actual = box_voting(b, np.array([0.25, 0.75, 0.5], dtype), 0.45)
    # The lower edge: (0.25 * 0.5 + 0.75 * 1) / (0.25 + 0.75).
    assert actual.boxes.tolist() == [[0, 0, 1, 0.875], [0, 0.75, 1, 1]]
    assert actual.scores.tolist() == [0.75, 0.5]
    assert actual.rows.tolist() == [1, 2]
    assert actual.boxes.dtype == actual.scores.dtype == dtype
    assert actual.rows.dtype == np.int64


def test_an_overlap_of_exactly_the_threshold_votes():
    b = np.float32([[0, 0, 1, 1], [0, 0, 1, 0.5]])
    scores = np.float32([0.75, 0.25])
    assert box_voting(b, scores, 0.5).rows.tolist() == [0]
    assert box_voting(b, scores, 0.5001).rows.tolist() == [0, 1]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.45, 0.7])
def test_an_overlap_is_compared_in_its_own_dtype(threshold):
    b = np.float32([[0, 0, 1, 1], [0, 0, 1, threshold]])
    scores = np.float32([0.75, 0.5])
    assert len(box_voting(b, scores, threshold).rows) == 1
    assert soft_nms(b, scores, threshold, 0.01).scores.tolist() == [0.75, 0.5]


def test_votes_are_for_the_best_box_alone():
    # Each overlaps the next by 3/5 and the one after by 1/3: the third does not vote for the
    # first through the second, and the second is spent.
    b = np.float32([[0, 0, 1, 1], [0.25, 0, 1.25, 1], [0.5, 0, 1.5, 1]])
    actual = box_voting(b, np.float32([0.75, 0.75, 0.5]), 0.45)
    assert actual.boxes.tolist() == [[0.125, 0, 1.125, 1], [0.5, 0, 1.5, 1]]
    assert actual.rows.tolist() == [0, 2]  # of equal scores the lower row leads


def test_ties_keep_their_order_on_long_inputs():
    # An unstable sort shows beyond some sixteen numbers.
    b = np.float32([[i, 0, i + 0.5, 1] for i in range(100)])
    scores = np.float32([0.5, 0.25] * 50)
    order = [*range(0, 100, 2), *range(1, 100, 2)]
    assert box_voting(b, scores, 0.45).rows.tolist() == order
    assert soft_nms(b, scores, 0.3, 0.01).rows.tolist() == order


def test_softly_beaten_voters_stay_beside_the_vote():
    b = np.float32([[0, 0, 1, 0.5], [0, 0, 1, 1], [0, 0, 1, 0.75]])
    scores = np.float32([0.5, 1, 0.5])
    actual = box_voting(b, scores, 0.45, least=0.125)
    # Beaten: 0.5 * (1 - 1/2) = 1/4 and 0.5 * (1 - 3/4) = 1/8, which is still enough. The
    # best itself is in the vote alone.
    assert actual.boxes[:, 3].tolist() == [0.8125, 0.5, 0.75]
    assert actual.scores.tolist() == [1, 0.25, 0.125]
    assert actual.rows.tolist() == [1, 0, 2]
    assert box_voting(b, scores, 0.45, least=0.126).rows.tolist() == [1, 0]


def test_pixels_are_added_where_overlaps_are_measured():
    # Two pixels side by side in an image 4 wide and 2 high: with a pixel more, 2 x 2 of 3 x 2.
    b = np.float32([[0, 0, 0.25, 0.5], [0.25, 0, 0.5, 0.5]])
    scores = np.float32([0.75, 0.25])
    for pixel, voted, lowered in (((0, 0), 2, 0.25), ((0.25, 0.5), 1, 0.25 * 2 / 3)):
        assert len(box_voting(b, scores, 0.3, pixel).rows) == voted
        assert soft_nms(b, scores, 0.3, 0.01, pixel).scores[1] == np.float32(lowered)


def test_boxes_without_area_vote_for_themselves():
    point = np.float32([[0.5, 0.5, 0.5, 0.5]] * 2)
    actual = box_voting(point, np.float32([0.25, 0.75]), 0.45)
    assert actual.rows.tolist() == [1, 0]
    assert_array_equal(actual.boxes, point)


@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]))
def test_laws_of_voting(data, dtype):
    b = data.draw(boxes(dtype=dtype))
    scores = data.draw(positive_scores(len(b))).astype(dtype)
    actual = box_voting(b, scores, 0.451)
    # Who leads is who survives suppression, with the score it had.
    assert actual.rows.tolist() == nms(b, scores, 0.451).tolist()
    assert_array_equal(actual.scores, scores[actual.rows])
    # A vote is within what was voted for; nothing that none voted for is moved.
    assert (actual.boxes >= b.min(axis=0, initial=1) - 1e-7).all()
    assert (actual.boxes <= b.max(axis=0, initial=0) + 1e-7).all()
    sort = np.argsort(-scores)
    same(box_voting(b, scores, 1.01), (b[sort], scores[sort], sort))
    # The order of the rows does not matter.
    order = np.array(data.draw(st.permutations(range(len(b)))), np.int64)
    again = box_voting(b[order], scores[order], 0.451)
    same((again.boxes, again.scores, order[again.rows]), actual)
    # What stays softly is there beside the same votes, and never rises.
    soft = box_voting(b, scores, 0.451, least=0.05)
    assert set(actual.rows.tolist()) <= set(soft.rows.tolist())
    assert len(set(soft.rows.tolist())) == len(soft.rows)
    assert (soft.scores <= scores[soft.rows]).all()


# Soft suppression


@BOTH
def test_soft_suppression_by_hand(dtype):
    b = np.array(
        [
            [0, 0, 1, 0.5],  # half of row 1: 0.75 * 1/2; half of row 3: again * 1/2
            [0, 0, 1, 1],  # the best
            [0, 0, 1, 0.25],  # a quarter of rows 1 and 3, below 0.3; half of row 0: 0.25 * 1/2
            [0, 0, 1, 1],  # the same box as row 1: nothing is left of it
        ],
        dtype,
    )
    actual = soft_nms(b, np.array([0.75, 1, 0.25, 0.5], dtype), 0.3, 0.01)
    assert actual.rows.tolist() == [1, 0, 2]
    assert actual.scores.tolist() == [1, 0.375, 0.125]
    assert_array_equal(actual.boxes, b[[1, 0, 2]])
    assert actual.boxes.dtype == actual.scores.dtype == dtype
    assert actual.rows.dtype == np.int64


def test_soft_suppression_goes_on_with_the_lowered_scores():
    # Row 1 falls from 0.9 to 0.45, behind row 2, which is far away.
    b = np.float32([[0, 0, 1, 1], [0, 0, 1, 0.5], [5, 5, 6, 6]])
    assert soft_nms(b, np.float32([1, 0.9, 0.5]), 0.3, 0.01).rows.tolist() == [0, 2, 1]


def test_a_score_of_exactly_the_least_stays_and_ties_go_to_the_lower_row():
    b = np.float32([[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0.5, 1, 1]])
    scores = np.float32([1, 0.5, 0.5])
    assert soft_nms(b, scores, 0.3, 0.25).rows.tolist() == [0, 1, 2]
    assert soft_nms(b, scores, 0.3, 0.2501).rows.tolist() == [0]
    assert soft_nms(b, scores, 0.3, 1).rows.tolist() == [0]
    assert soft_nms(b, scores, 0.3, 1.01).rows.tolist() == []


@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]))
def test_laws_of_soft_suppression(data, dtype):
    b = data.draw(boxes(dtype=dtype))
    scores = data.draw(positive_scores(len(b))).astype(dtype)
    actual = soft_nms(b, scores, 0.3, 0.003)
    assert_array_equal(actual.boxes, b[actual.rows])
    assert (actual.scores <= scores[actual.rows]).all()
    assert (np.diff(actual.scores) <= 0).all()
    assert (actual.scores >= 0.003).all()
    # The best stays as it is, and where nothing overlaps too much all do.
    assert actual.rows[:1].tolist() == np.argsort(-scores)[:1].tolist()
    alone = nms(b, scores, 0.3)
    same(soft_nms(b[alone], scores[alone], 0.3, 0.001)[:2], (b[alone], scores[alone]))
    sort = np.argsort(-scores)
    same(soft_nms(b, scores, 1, 0.001), (b[sort], scores[sort], sort))
    # The order of the rows does not matter, but for ties that lowering makes.
    if len(np.unique(actual.scores)) == len(actual.scores):
        order = np.array(data.draw(st.permutations(range(len(b)))), np.int64)
        again = soft_nms(b[order], scores[order], 0.3, 0.003)
        same((again.boxes, again.scores, order[again.rows]), actual)


@pytest.mark.parametrize("combine", [box_voting, lambda *a: soft_nms(*a[:3], 0.01)])
def test_what_both_refuse(combine):
    b = np.float32([[0, 0, 1, 1]])
    with refused("scores: expected shape (1), got (2,)"):
        combine(b, np.float32([0.1, 0.2]), 0.5)
    with refused("boxes: row 0 has crossed corners [1.0, 0.0, 0.0, 1.0]"):
        combine(np.float32([[1, 0, 0, 1]]), np.float32([0.1]), 0.5)
    with refused("boxes, scores: expected one dtype, got ['float32', 'float64']"):
        combine(b, np.array([0.1]), 0.5)
    with refused("scores: row 0 is 0.0, not above 0"):
        combine(b, np.float32([0]), 0.5)


# Views


def test_the_size_of_a_views_input():
    double = View(2, 2)
    assert double.input_size((320, 320), (480, 640)) == (640, 640)
    assert View(0.6, 0.6).input_size((320, 320), (1, 1)) == (192, 192)
    assert View().input_size((192, 256), (480, 640)) == (192, 256)
    # Multiples of 64, the nearest, and never nothing.
    assert View(1.2, 1.2).input_size((128, 192), (9, 9)) == (128, 256)
    assert View(0.1, 0.1).input_size((128, 128), (9, 9)) == (64, 64)
    assert View(1.75, 1.75).input_size((128, 128), (9, 9)) == (256, 256)


def test_a_view_may_keep_the_longer_side_and_shrink_the_shorter():
    narrow = View(1, 0.6)
    assert narrow.input_size((320, 320), (480, 640)) == (192, 320)
    assert narrow.input_size((320, 320), (640, 480)) == (320, 192)
    assert narrow.input_size((320, 320), (480, 480)) == (320, 192)  # as a high one


def one_view(view, *rows, size=SIZE, **change):
    config = dataclasses.replace(PLAIN, views=(view,), **change)
    return fuse([detections(*rows)], config, size)


def test_large_and_small_boxes_count_by_pixels_of_the_image():
    # In an image 200 wide and 100 high: 32 x 16, 32 x 8 and 16 x 32 pixels; far apart.
    rows = (
        ((0, 0, 0.16, 0.16), 0.5, 1),
        ((0.2, 0, 0.36, 0.08), 0.4, 1),
        ((0.4, 0, 0.48, 0.32), 0.3, 1),
    )
    scores = np.float32([0.5, 0.4, 0.3]).tolist()
    for view, kept in (
        (View(longest_above=31.5), scores),
        (View(longest_above=32.5), []),
        (View(shortest_below=16.5), scores),
        (View(shortest_below=15.5), scores[1:2]),
        (View(longest_above=31.5, shortest_below=15.5), scores[1:2]),
    ):
        assert one_view(view, *rows).scores.tolist() == kept
    high = one_view(View(longest_above=31.5), *rows, size=(200, 100))
    assert high.scores.tolist() == [scores[0], scores[2]]  # 16 x 32, 16 x 16, 8 x 64


def test_a_side_of_exactly_the_limit_does_not_count_and_pixels_are_added():
    row = ((0, 0, 0.5, 0.25), 0.5, 1)  # 32 wide and 16 high
    for pixel in (0, 1):
        for view, by in (
            (View(longest_above=32 + pixel), -1),
            (View(shortest_below=16 + pixel), 1),
        ):
            name = "longest_above" if by < 0 else "shortest_below"
            looser = dataclasses.replace(view, **{name: getattr(view, name) + by / 16})
            assert len(one_view(view, row, size=(64, 64), pixel=pixel).scores) == 0
            assert len(one_view(looser, row, size=(64, 64), pixel=pixel).scores) == 1


def test_without_limits_boxes_without_area_count():
    row = ((0.5, 0.5, 0.5, 0.5), 0.5, 1)
    assert len(one_view(View(), row).scores) == 1
    assert len(one_view(View(longest_above=0), row).scores) == 0


def test_a_mirrored_view_is_mirrored_back():
    row = ((0.125, 0.25, 0.5, 0.75), 0.5, 3)
    actual = one_view(View(mirrored=True), row)
    assert actual.boxes.tolist() == [[0.5, 0.25, 0.875, 0.75]]
    assert actual.labels.tolist() == [3]


# Fusion


def test_two_views_by_hand():
    # The first sees a wide box, the mirrored one the same a little larger, and another class.
    found = [
        detections(((0, 0, 0.5, 0.5), 0.75, 1)),
        detections(((0.5, 0, 1, 0.5), 0.8125, 2), ((0.5, 0, 1, 0.75), 0.25, 1)),
    ]
    config = dataclasses.replace(PLAIN, views=(View(), View(mirrored=True)))
    same(
        fuse(found, config, SIZE),
        detections(((0, 0, 0.5, 0.5), 0.8125, 2), ((0, 0, 0.5, 0.5625), 0.75, 1)),
    )
    soft = dataclasses.replace(config, rule="soft_vote", score=0.0625)
    beaten = ((0, 0, 0.5, 0.75), np.float32(0.25 * (1 - 0.5 / 0.75)), 1)
    same(
        fuse(found, soft, SIZE),
        detections(((0, 0, 0.5, 0.5), 0.8125, 2), ((0, 0, 0.5, 0.5625), 0.75, 1), beaten),
    )
    lowered = dataclasses.replace(config, rule="soft_nms", score=0.0625)
    same(
        fuse(found, lowered, SIZE),
        detections(((0, 0, 0.5, 0.5), 0.8125, 2), ((0, 0, 0.5, 0.5), 0.75, 1), beaten),
    )


def test_overlaps_of_a_image_that_is_not_square():
    # 4 x 1 pixels beside 4 x 1 below it: with a pixel more, 5 x 2, shared 5 x 1 of 5 x 3.
    b = [(0, 0, 0.5, 0.25), (0, 0.25, 0.5, 0.5)]
    rows = [(b[0], 0.5, 1), (b[1], 0.25, 1)]
    for iou, count in ((0.33, 1), (0.34, 2)):
        config = FusionConfig(iou=iou)
        assert len(fuse([detections(*rows)], config, (4, 8)).scores) == count


def test_labels_of_any_integers_become_int64():
    one = detections(((0, 0, 1, 1), 0.5, 1))
    same(fuse([one._replace(labels=np.int32([1]))], PLAIN, SIZE), one)


@BOTH
def test_nothing_found(dtype):
    nothing = Detections(np.zeros((0, 4), dtype), np.zeros(0, dtype), np.zeros(0, np.int64))
    for rule in ("vote", "soft_vote", "soft_nms"):
        same(fuse([nothing], dataclasses.replace(PLAIN, rule=rule), SIZE), nothing)


@given(data=st.data(), rows=st.integers(0, 8))
def test_one_plain_view_is_plain_detection(data, rows):
    """Where no overlap is left to vote or to suppress, ties included."""
    b = data.draw(boxes(least=rows, most=rows))
    scores = data.draw(grid_scores(rows, 4))
    found = detect(b, scores, DetectionConfig(nms_iou=0.3, score=0.1))
    for rule in ("vote", "soft_vote", "soft_nms"):
        same(fuse([found], dataclasses.replace(PLAIN, rule=rule, iou=0.301), SIZE), found)


VIEWS = (
    View(),
    View(mirrored=True),
    View(0.6, 0.6, longest_above=40),
    View(2, 2, mirrored=True, shortest_below=50),
)


@st.composite
def several(draw, views=VIEWS):
    """Detections of each view; all scores differ."""
    counts = [draw(st.integers(0, 4)) for _ in views]
    scores = np.split(draw(positive_scores(sum(counts))), np.cumsum(counts)[:-1])
    found = []
    for count, s in zip(counts, scores, strict=True):
        labels = draw(arrays(np.int64, count, elements=st.integers(1, 2)))
        found.append(Detections(draw(boxes(least=count, most=count)), s, labels))
    return found


RULES = st.sampled_from(["vote", "soft_vote"])


@given(data=st.data(), found=several(), rule=RULES)
def test_the_order_of_the_views_does_not_matter(data, found, rule):
    config = FusionConfig(VIEWS, rule, score=0.001)
    actual = fuse(found, config, SIZE)
    order = data.draw(st.permutations(range(len(VIEWS))))
    turned = dataclasses.replace(config, views=tuple(VIEWS[i] for i in order))
    again = fuse([found[i] for i in order], turned, SIZE)
    if len(np.unique(actual.scores)) == len(actual.scores):
        same(again, actual)


@given(found=several(), rule=RULES)
def test_a_mirrored_image_has_the_mirrored_detections(found, rule):
    config = FusionConfig(VIEWS, rule, score=0.001)
    mirrored = tuple(dataclasses.replace(v, mirrored=not v.mirrored) for v in VIEWS)
    actual = fuse(found, config, SIZE)
    other = fuse(found, dataclasses.replace(config, views=mirrored), SIZE)
    assert_array_equal(other.labels, actual.labels)
    assert_array_equal(other.scores, actual.scores)
    left, low, right, high = actual.boxes.T
    assert_allclose(other.boxes, np.stack([1 - right, low, 1 - left, high], axis=1), atol=1e-6)


def test_what_fusion_refuses():
    one = detections(((0, 0, 1, 1), 0.5, 1))
    with refused("found: expected detections of 1 views, got 2"):
        fuse([one, one], PLAIN, SIZE)
    double = one._replace(boxes=one.boxes.astype("f8"), scores=one.scores.astype("f8"))
    with refused("found[0], found[1]: expected one dtype, got ['float32', 'float64']"):
        fuse([one, double], dataclasses.replace(PLAIN, views=(View(), View())), SIZE)
    with refused("labels: 0 at (0,) is outside 1..99999"):
        fuse([one._replace(labels=np.int64([0]))], PLAIN, SIZE)
    with refused("labels: expected shape (1), got (2,)"):
        fuse([one._replace(labels=np.int64([1, 1]))], PLAIN, SIZE)
    with refused("boxes: row 0 has crossed corners [1.0, 0.0, 0.0, 1.0]"):
        fuse([one._replace(boxes=np.float32([[1, 0, 0, 1]]))], PLAIN, SIZE)


# Settings: what a field wants, values it takes, values it refuses.

LIMIT = "a number from 0, or null"
FIELDS = [
    (View, "long", "1/64 to 64", [1 / 64, 1, 64], [0, 1 / 64.5, 65, NAN, None, True, "1"]),
    (View, "short", "1/64 to 64", [1 / 64, 1, 64], [0, 1 / 64.5, 65, NAN, None, True, "1"]),
    (View, "mirrored", "true or false", [True, False], [0, 1, None]),
    (View, "longest_above", LIMIT, [None, 0, 32], [-1e-9, NAN, INF, "1"]),
    (View, "shortest_below", LIMIT, [None, 0, 1e9], [-1e-9, NAN, INF, "1"]),
    (
        FusionConfig,
        "views",
        "one view or more",
        [(View(),), VIEWS],
        [(), [View()], View(), (View(), 1), None],
    ),
    (
        FusionConfig,
        "rule",
        "'vote' or 'soft_vote' or 'soft_nms'",
        ["vote", "soft_vote", "soft_nms"],
        ["nms", None, ["vote"]],
    ),
    (FusionConfig, "iou", "0 to 1", [0, 0.45, 1], [-1e-9, 1.01, NAN, None]),
    (FusionConfig, "score", "0 to 1", [0, 1], [-1e-9, 1.01, NAN, None]),
    (FusionConfig, "pixel", "0 to 1", [0, 0.5, 1], [-1e-9, 1.01, NAN, None]),
]


@pytest.mark.parametrize(("kind", "name", "expected", "good", "bad"), FIELDS)
def test_every_field_is_checked(kind, name, expected, good, bad):
    for value in good:
        assert getattr(kind(**{name: value}), name) == value
    section = kind.__name__.removesuffix("Config").lower()
    for value in bad:
        with refused(f"{section}.{name}: expected {expected}, got {value!r}"):
            kind(**{name: value})


def test_the_table_above_names_every_field():
    for kind in (View, FusionConfig):
        named = {name for k, name, *_ in FIELDS if k is kind}
        assert named == {field.name for field in dataclasses.fields(kind)}


def test_the_first_bad_score_is_named():
    b, s = np.zeros((4, 4)), np.array([0.5, -0.25, 0, 1])
    for combine in (lambda: box_voting(b, s, 0.5), lambda: soft_nms(b, s, 0.5, 0.01)):
        with refused("scores: row 1 is -0.25, not above 0"):
            combine()


def test_fewer_lists_than_views_are_refused():
    with refused("found: expected detections of 2 views, got 1"):
        fuse([detections()], FusionConfig(views=(View(), View(mirrored=True))), SIZE)


def test_pixels_of_the_width_are_added_to_widths():
    """In an image 100 high and 10 wide, a pixel is a tenth of the width."""
    config, size = FusionConfig(iou=0.3, pixel=1), (100, 10)
    beside = detections(([0, 0, 0.1, 1], 0.75, 1), ([0.1, 0, 0.2, 1], 0.5, 1))
    assert len(fuse([beside], config, size).boxes) == 1  # columns 0 to 2 and 1 to 3
    apart = detections(([0, 0, 0.1, 1], 0.75, 1), ([0.5, 0, 0.6, 1], 0.5, 1))
    assert len(fuse([apart], config, size).boxes) == 2


@pytest.mark.parametrize("made", [View(), FusionConfig()])
def test_settings_stay_as_they_are(made):
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.mirrored = True
