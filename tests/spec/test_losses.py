"""Losses: hand-computed values, gradients against finite differences, the mining by example."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.coding import decode, encode
from refinedet.spec.config import replace
from refinedet.spec.losses import (
    Loss,
    ModuleLoss,
    cross_entropy,
    detector_loss,
    detector_targets,
    hard_negatives,
    loss_on_targets,
    module_loss,
    smooth_l1,
    softmax,
)
from refinedet.spec.matching import targets
from refinedet.spec.network import Heads

from .strategies import grid_scores, refused, tiny

CONFIG = tiny()
ANCHORS = 170
BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])
STEP = 1e-6


def differences(function, x):
    """Central finite differences of a scalar function by every number of x."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += STEP
        down[place] -= STEP
        gradient[place] = (function(up) - function(down)) / (2 * STEP)
    return gradient


def random(seed):
    return np.random.default_rng(seed)


# Softmax


@BOTH
def test_softmax_by_hand(dtype):
    # e^0 : e^ln2 : e^ln5 = 1 : 2 : 5
    actual = softmax(np.array([[0, math.log(2), math.log(5)]], dtype))
    assert actual.dtype == dtype
    assert_allclose(actual, [[0.125, 0.25, 0.625]], rtol=1e-6 if dtype == np.float32 else 1e-14)


@given(x=arrays(np.float64, (2, 3, 4), elements=st.floats(-30, 30)), shift=st.floats(-100, 100))
def test_softmax_is_a_distribution_and_ignores_a_shift(x, shift):
    p = softmax(x)
    assert_allclose(p.sum(axis=-1), 1, rtol=1e-14)
    assert (p >= 0).all()
    assert_allclose(softmax(x + shift), p, rtol=1e-12)


@BOTH
def test_softmax_of_huge_logits_does_not_overflow(dtype):
    huge = np.finfo(dtype).max / 4
    assert_array_equal(softmax(np.array([[huge, -huge, huge]], dtype)), [[0.5, 0, 0.5]])


def test_softmax_is_computed_in_float64():
    x = random(0).normal(size=(50, 7)).astype(np.float32)
    assert_array_equal(softmax(x), softmax(x.astype(np.float64)).astype(np.float32))


def test_softmax_of_no_rows_and_what_it_refuses():
    assert softmax(np.zeros((0, 3), np.float32)).shape == (0, 3)
    with refused("logits: not finite at (0, 1)"):
        softmax(np.array([[0, np.nan]]))


# Cross entropy


@BOTH
def test_cross_entropy_by_hand(dtype):
    # Probabilities 1/8, 2/8, 5/8: losses ln 8, ln 4, ln 8/5; the gradient is the
    # probabilities, less 1 at the label.
    logits = np.array([[0, math.log(2), math.log(5)]] * 3, dtype)
    loss, gradient = cross_entropy(logits, np.array([0, 1, 2]))
    assert loss.dtype == gradient.dtype == dtype
    close = {"rtol": 1e-6 if dtype == np.float32 else 1e-13}
    assert_allclose(loss, [math.log(8), math.log(4), math.log(1.6)], **close)
    want = [[-0.875, 0.25, 0.625], [0.125, -0.75, 0.625], [0.125, 0.25, -0.375]]
    assert_allclose(gradient, want, **close)


def test_cross_entropy_of_equal_logits_is_the_logarithm_of_the_classes():
    loss, _ = cross_entropy(np.full((2, 81), 7.0), np.array([0, 80]))
    assert_allclose(loss, math.log(81), rtol=1e-14)


@given(seed=st.integers(0, 99))
def test_gradient_of_cross_entropy(seed):
    rng = random(seed)
    logits, labels = rng.normal(size=(4, 5)) * 3, rng.integers(0, 5, 4)
    _, gradient = cross_entropy(logits, labels)
    numeric = differences(lambda x: cross_entropy(x, labels)[0].sum(), logits)
    assert_allclose(gradient, numeric, atol=1e-8)
    assert_allclose(gradient.sum(axis=1), 0, atol=1e-14)


@given(seed=st.integers(0, 99), shift=st.floats(-100, 100))
def test_cross_entropy_is_minus_the_logarithm_of_softmax(seed, shift):
    rng = random(seed)
    logits, labels = rng.normal(size=(4, 5)) * 3, rng.integers(0, 5, 4)
    loss, _ = cross_entropy(logits + shift, labels)
    assert_allclose(loss, -np.log(softmax(logits)[np.arange(4), labels]), atol=1e-11)


def test_cross_entropy_of_huge_logits_is_exact():
    loss, gradient = cross_entropy(np.float32([[1e30, -1e30]]), np.array([0]))
    assert loss.tolist() == [0]
    assert gradient.tolist() == [[0, 0]]
    loss, gradient = cross_entropy(np.float32([[1e30, 0]]), np.array([1]))
    assert loss.tolist() == [np.float32(1e30)]
    assert gradient.tolist() == [[1, -1]]


def test_cross_entropy_is_computed_in_float64():
    logits = random(1).normal(size=(50, 7)).astype(np.float32)
    labels = np.arange(50) % 7
    for actual, fine in zip(
        cross_entropy(logits, labels), cross_entropy(logits.astype(float), labels), strict=True
    ):
        assert_array_equal(actual, fine.astype(np.float32))


def test_cross_entropy_of_nothing_and_what_it_refuses():
    loss, gradient = cross_entropy(np.zeros((0, 3), np.float32), np.zeros(0, int))
    assert loss.shape == (0,)
    assert gradient.shape == (0, 3)
    two = np.zeros((2, 3))
    with refused("labels: 3 at (1,) is outside 0..2"):
        cross_entropy(two, np.array([0, 3]))
    with refused("labels: -1 at (0,) is outside 0..2"):
        cross_entropy(two, np.array([-1, 0]))
    with refused("labels: expected shape (2), got (3,)"):
        cross_entropy(two, np.array([0, 1, 2]))
    with refused("logits: expected shape (any, any), got (2,)"):
        cross_entropy(np.zeros(2), np.array([0, 1]))
    with refused("logits: expected a float32 or float64 array, got int64"):
        cross_entropy(np.zeros((2, 3), np.int64), np.array([0, 1]))


# Smooth L1


@BOTH
def test_smooth_l1_by_hand(dtype):
    # 0.5 * 0.25 + 0 + (2 - 0.5) + (3 - 0.5) = 4.125; slopes 0.5, 0, -1, 1.
    # At a difference of 1 both branches say 0.5, and the slope is 1.
    predicted = np.array([[1.5, 1, -1, 4], [1, -1, 0, 0]], dtype)
    expected = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], dtype)
    loss, gradient = smooth_l1(predicted, expected)
    assert loss.dtype == gradient.dtype == dtype
    assert loss.tolist() == [4.125, 1.0]
    assert gradient.tolist() == [[0.5, 0, -1, 1], [1, -1, 0, 0]]


@given(seed=st.integers(0, 99))
def test_gradient_of_smooth_l1(seed):
    rng = random(seed)
    predicted, expected = rng.normal(size=(3, 4)) * 2, rng.normal(size=(3, 4))
    _, gradient = smooth_l1(predicted, expected)
    numeric = differences(lambda x: smooth_l1(x, expected)[0].sum(), predicted)
    assert_allclose(gradient, numeric, atol=1e-6)
    _, reverse = smooth_l1(expected, predicted)
    assert_array_equal(reverse, -gradient)


def test_smooth_l1_subtracts_in_float64():
    a, b = np.float32([[1 + 2**-23, 0, 0, 0]]), np.float32([[-(2**-25), 0, 0, 0]])
    loss, _ = smooth_l1(a, b)
    assert loss[0] == np.float32(float(a[0, 0]) - float(b[0, 0]) - 0.5)
    x, y = (random(s).normal(size=(200, 4)).astype(np.float32) * 3 for s in (2, 3))
    fine, _ = smooth_l1(x.astype(float), y.astype(float))
    assert_array_equal(smooth_l1(x, y)[0], fine.astype(np.float32))


def test_smooth_l1_of_nothing_and_what_it_refuses():
    loss, gradient = smooth_l1(np.zeros((0, 4)), np.zeros((0, 4)))
    assert loss.shape == (0,)
    assert gradient.shape == (0, 4)
    with refused("target: expected shape (2, 4), got (1, 4)"):
        smooth_l1(np.zeros((2, 4)), np.zeros((1, 4)))
    with refused("predicted: expected shape (any, 4), got (4,)"):
        smooth_l1(np.zeros(4), np.zeros(4))
    with refused("predicted: expected shape (any, 4), got (2, 3)"):
        smooth_l1(np.zeros((2, 3)), np.zeros((2, 3)))
    with refused("predicted, target: expected one dtype, got ['float32', 'float64']"):
        smooth_l1(np.zeros((1, 4)), np.zeros((1, 4), np.float32))


# Hard negatives


def mined(losses, positive, eligible=None, ratio=3.0):
    losses = np.float32(losses)
    positive = np.isin(np.arange(len(losses)), positive)
    eligible = np.isin(np.arange(len(losses)), eligible) if eligible else np.ones(len(losses), bool)
    chosen = hard_negatives(losses, positive, eligible, ratio)
    assert chosen.dtype == bool
    assert chosen.shape == losses.shape
    return np.flatnonzero(chosen).tolist()


def test_three_negatives_for_a_positive_the_hardest():
    assert mined([9, 1, 5, 2, 4, 3], positive=[0]) == [2, 4, 5]
    assert mined([0, 1, 5, 2, 4, 3], positive=[5]) == [2, 3, 4]  # a positive is never chosen


def test_negatives_that_are_not_eligible_are_passed_over():
    assert mined([9, 1, 5, 2, 4, 3], positive=[0], eligible=[0, 1, 3, 5]) == [1, 3, 5]
    assert mined([9, 1, 5, 2], positive=[0], eligible=[0]) == []


def test_equal_losses_go_to_the_lowest_anchor():
    assert mined([2, 2, 2, 2, 2, 2], positive=[2], ratio=2) == [0, 1]
    assert mined([1, 2, 1, 3, 1, 1], positive=[3], ratio=2) == [0, 1]
    # Long inputs are where an unstable sort shows.
    losses = np.arange(200) % 2
    assert mined(losses, positive=[1], ratio=50) == list(range(3, 103, 2))


@pytest.mark.parametrize(
    ("ratio", "positives", "count"),
    [(0, 2, 0), (0.5, 1, 0), (0.5, 2, 1), (0.5, 3, 1), (1.9, 1, 1), (3, 2, 6), (1e300, 1, 9)],
)
def test_the_number_is_rounded_down(ratio, positives, count):
    actual = mined(np.arange(10), positive=range(positives), ratio=ratio)
    assert len(actual) == min(count, 10 - positives)


def test_a_image_without_positives_has_no_negatives():
    assert mined([1, 2, 3], positive=[]) == []
    assert mined([], positive=[]) == []


@given(data=st.data(), size=st.integers(0, 12), ratio=st.floats(0, 4))
def test_the_hardest_eligible_negatives_are_chosen(data, size, ratio):
    losses = data.draw(grid_scores(size))
    positive, eligible = (data.draw(arrays(bool, size)) for _ in range(2))
    chosen = hard_negatives(losses, positive, eligible, ratio)
    may = eligible & ~positive
    assert not (chosen & ~may).any()
    assert chosen.sum() == min(may.sum(), math.floor(ratio * positive.sum()))
    left = may & ~chosen
    if chosen.any() and left.any():
        easiest = losses[chosen].min()
        assert easiest >= losses[left].max()
        last = np.flatnonzero(chosen & (losses == easiest)).max()
        assert not (left & (losses == easiest))[:last].any()


# One module


def module_batch(seed=0, dtype=np.float64, images=2, anchors=9, classes=4):
    rng = random(seed)
    labels = rng.integers(0, classes, (images, anchors)) * (rng.random((images, anchors)) < 0.4)
    return (
        rng.normal(size=(images, anchors, 4)).astype(dtype) * 2,
        rng.normal(size=(images, anchors, classes)).astype(dtype),
        rng.normal(size=(images, anchors, 4)).astype(dtype),
        labels,
        rng.random((images, anchors)) < 0.8,
    )


@BOTH
def test_a_batch_by_hand(dtype):
    # Two classes with equal logits cost ln 2 each. Image 0: anchor 0 is positive, off by
    # 0.5 and 2: 0.125 + 1.5; two negatives of the same loss may count, and with a ratio of 1
    # the first does. Image 1: no positives, so nothing counts. One positive in the batch.
    offsets = np.zeros((2, 3, 4), dtype)
    offsets[0, 0] = [0.5, 2, 0, 0]
    offsets[:, 1:] = 7  # is not read
    zeros = np.zeros((2, 3, 2), dtype)
    labels = np.array([[1, 0, 0], [0, 0, 0]])
    expected = np.zeros((2, 3, 4), dtype)
    actual = module_loss(offsets, zeros, expected, labels, np.ones((2, 3), bool), 1.0)
    assert isinstance(actual, ModuleLoss)
    assert actual.offsets_gradient.dtype == actual.logits_gradient.dtype == dtype
    assert actual.offsets == 1.625
    assert actual.classes == pytest.approx(2 * math.log(2), rel=1e-6)
    assert isinstance(actual.offsets, float)
    assert isinstance(actual.classes, float)
    want = np.zeros((2, 3, 4))
    want[0, 0] = [0.5, 1, 0, 0]
    assert_array_equal(actual.offsets_gradient, want)
    want = np.zeros((2, 3, 2))
    want[0, 0], want[0, 1] = [0.5, -0.5], [-0.5, 0.5]
    assert_array_equal(actual.logits_gradient, want)


def test_the_divisor_counts_the_positives_of_the_whole_batch():
    # Four positives, three in one image; each is off by 3: 2.5, ten in all, over four.
    offsets, expected = np.zeros((2, 4, 4)), np.zeros((2, 4, 4))
    offsets[..., 0] = 3
    labels = np.array([[1, 2, 1, 0], [0, 0, 0, 2]])
    actual = module_loss(offsets, np.zeros((2, 4, 3)), expected, labels, np.zeros((2, 4), bool), 3)
    assert actual.offsets == 2.5
    assert actual.classes == pytest.approx(math.log(3), rel=1e-14)
    assert actual.offsets_gradient[0, 0, 0] == 0.25
    assert actual.offsets_gradient[0, 3, 0] == 0
    assert_allclose(actual.logits_gradient[1, 3], np.float64([1, 1, -2]) / 12, rtol=1e-14)


def test_negatives_are_counted_image_by_image():
    # Image 0 has two positives and room for two negatives; image 1 has none of either,
    # however hard its negatives are.
    logits = np.zeros((2, 5, 2))
    logits[1, :, 1] = 50
    labels = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    offsets = np.zeros((2, 5, 4))
    actual = module_loss(offsets, logits, offsets, labels, np.ones((2, 5), bool), 1)
    assert (np.abs(actual.logits_gradient).sum(axis=2) > 0).tolist() == [
        [True, True, True, True, False],
        [False] * 5,
    ]
    assert actual.classes == pytest.approx(4 * math.log(2) / 2, rel=1e-14)


@BOTH
def test_a_batch_without_positives_costs_nothing(dtype):
    offsets, logits, expected, labels, eligible = module_batch(dtype=dtype)
    actual = module_loss(offsets, logits, expected, labels * 0, eligible, 3)
    assert (actual.offsets, actual.classes) == (0, 0)
    assert actual.offsets_gradient.shape == offsets.shape
    assert actual.logits_gradient.shape == logits.shape
    assert not actual.offsets_gradient.any()
    assert not actual.logits_gradient.any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_gradients_of_a_module(seed, ratio):
    offsets, logits, expected, labels, eligible = module_batch(seed)
    actual = module_loss(offsets, logits, expected, labels, eligible, ratio)
    assert labels.any()

    def total(x, y):
        loss = module_loss(x, y, expected, labels, eligible, ratio)
        return loss.offsets + loss.classes

    by_offsets = differences(lambda x: total(x, logits), offsets)
    by_logits = differences(lambda y: total(offsets, y), logits)
    assert_allclose(actual.offsets_gradient, by_offsets, atol=1e-6)
    assert_allclose(actual.logits_gradient, by_logits, atol=1e-8)


@given(seed=st.integers(0, 99))
def test_only_positives_and_chosen_negatives_have_a_gradient(seed):
    offsets, logits, expected, labels, eligible = module_batch(seed)
    actual = module_loss(offsets, logits, expected, labels, eligible, 1.5)
    positive = labels > 0
    assert not actual.offsets_gradient[~positive].any()
    counted = np.abs(actual.logits_gradient).sum(axis=2) > 0
    assert counted[positive].all()
    assert not counted[~positive & ~eligible].any()
    for image in range(len(labels)):
        room = (eligible & ~positive)[image].sum()
        extra = (counted & ~positive)[image].sum()
        assert extra == min(room, math.floor(1.5 * positive[image].sum()))


def test_wanted_is_read_at_positives_only():
    offsets, logits, expected, labels, eligible = module_batch()
    a = module_loss(offsets, logits, expected, labels, eligible, 3)
    b = module_loss(
        offsets, logits, np.where(labels[..., None] > 0, expected, 1e6), labels, eligible, 3
    )
    assert (a.offsets, a.classes) == (b.offsets, b.classes)
    assert_array_equal(a.offsets_gradient, b.offsets_gradient)


def test_a_module_sums_in_float64():
    # 2^24 and a thousand ones: in float32 the ones would vanish.
    offsets = np.ones((1, 1001, 4), np.float32) * np.float32([1.5, 0, 0, 0])
    offsets[0, 0, 0] = 2**24
    labels = np.ones((1, 1001), int)
    zeros = np.zeros_like(offsets)
    actual = module_loss(offsets, zeros[..., :2], zeros, labels, labels > 0, 3)
    assert actual.offsets == (2**24 + 1000) / 1001


def test_what_a_module_refuses():
    offsets, logits, expected, labels, eligible = module_batch()
    with refused("offsets: expected shape (2, 9, 4), got (2, 8, 4)"):
        module_loss(offsets[:, :8], logits, expected, labels, eligible, 3)
    with refused("target: expected shape (2, 9, 4), got (9, 2, 4)"):
        module_loss(offsets, logits, expected.reshape(9, 2, 4), labels, eligible, 3)
    with refused("labels: expected shape (2, 9), got (18,)"):
        module_loss(offsets, logits, expected, labels.reshape(-1), eligible, 3)
    with refused("eligible: expected shape (2, 9), got (2, 8)"):
        module_loss(offsets, logits, expected, labels, eligible[:, :8], 3)
    with refused("logits: expected shape (any, any, any), got (9, 4)"):
        module_loss(offsets, logits[0], expected, labels, eligible, 3)
    with refused("labels: 4 at (3,) is outside 0..3"):
        bad = labels * 0
        bad[0, 3] = 4
        module_loss(offsets, logits, expected, bad, eligible, 3)
    with refused("offsets, logits, target: expected one dtype, got ['float32', 'float64']"):
        module_loss(offsets, logits.astype(np.float32), expected, labels, eligible, 3)
    with refused("offsets: not finite at (0, 0, 0)"):
        module_loss(offsets * np.inf, logits, expected, labels, eligible, 3)
    with refused("logits: expected at least one image, got none"):
        module_loss(offsets[:0], logits[:0], expected[:0], labels[:0], eligible[:0], 3)


# The detector


def heads_of(seed, images=3, dtype=np.float64):
    rng = random(seed)
    shapes = (4, 2, 4, CONFIG.num_classes)
    return Heads(*(rng.normal(size=(images, ANCHORS, n)).astype(dtype) for n in shapes))


def objects_of(dtype=np.float64):
    """Two objects, none, one."""
    boxes = [[[0.1, 0.2, 0.5, 0.7], [0.4, 0.1, 0.9, 0.8]], np.zeros((0, 4)), [[0, 0, 1, 1]]]
    labels = [np.array([3, 1]), np.zeros(0, int), np.array([2])]
    return [np.array(b, dtype) for b in boxes], labels


@BOTH
def test_targets_of_both_modules(dtype):
    heads, (boxes, labels) = heads_of(0, dtype=dtype), objects_of(dtype)
    actual = detector_targets(heads, boxes, labels, CONFIG)
    anchors = all_anchors(CONFIG).astype(dtype)
    for image in range(3):
        offsets, classes = targets(anchors, boxes[image], labels[image], CONFIG)
        assert_array_equal(actual.arm_offsets[image], offsets)
        assert_array_equal(actual.arm_labels[image], classes > 0)  # an object, whichever
        refined = decode(heads.arm_offsets[image], anchors, CONFIG.anchors.variances)
        offsets, classes = targets(refined, boxes[image], labels[image], CONFIG)
        assert_array_equal(actual.odm_offsets[image], offsets)
        assert_array_equal(actual.odm_labels[image], classes)
        positive = classes > 0
        reached = (
            encode(
                boxes[image][labels[image].tolist().index(classes[positive][0])][None],
                refined[positive][:1],
                CONFIG.anchors.variances,
            )
            if positive.any()
            else offsets[:0]
        )
        assert_allclose(offsets[positive][:1], reached, rtol=1e-6)
    assert actual.arm_offsets.dtype == actual.odm_offsets.dtype == dtype
    assert actual.arm_labels.dtype == actual.odm_labels.dtype == np.int64
    assert actual.odm_labels.max() == 3
    assert not actual.arm_labels[1].any()
    assert not actual.odm_labels[1].any()


def test_anchors_that_the_arm_holds_for_background_are_no_negatives():
    # Probability of "object" 1 / (1 + e^x): 0.01 at x = ln 99; theta is 0.99 on the negative
    # class, arXiv:1711.06897, section 3.1.
    config = replace(CONFIG, loss={"objectness": 0.25})
    heads = heads_of(0)
    heads.arm_logits[...] = 0
    heads.arm_logits[0, :3, 0] = [math.log(3.01), math.log(2.99), -9]
    actual = detector_targets(heads, *objects_of(), config)
    assert actual.odm_eligible.dtype == bool
    assert actual.odm_eligible[0, :4].tolist() == [False, True, True, True]
    heads.arm_logits[0, 3] = [math.log(99.1), 0]
    heads.arm_logits[0, 4] = [math.log(98.9), 0]
    actual = detector_targets(heads, *objects_of(), CONFIG)
    assert actual.odm_eligible[0, :5].tolist() == [True, True, True, False, True]


def test_an_objectness_of_exactly_the_threshold_is_eligible():
    config = replace(CONFIG, loss={"objectness": 0.5})
    heads = heads_of(0)
    heads.arm_logits[...] = 0
    assert detector_targets(heads, *objects_of(), config).odm_eligible.all()
    heads.arm_logits[..., 0] = 1e-9
    assert not detector_targets(heads, *objects_of(), config).odm_eligible.any()


def test_filtered_positives_of_the_odm_stay():
    # The ARM sees background everywhere: the ODM learns from its positives alone.
    heads = heads_of(1)
    heads.arm_logits[...] = [50, 0]
    loss = detector_loss(heads, *objects_of(), CONFIG)
    expected = detector_targets(heads, *objects_of(), CONFIG)
    assert not expected.odm_eligible.any()
    counted = np.abs(loss.odm.logits_gradient).sum(axis=2) > 0
    assert_array_equal(counted, expected.odm_labels > 0)
    arm = np.abs(loss.arm.logits_gradient).sum(axis=2) > 0
    assert arm.sum() > (expected.arm_labels > 0).sum()  # the ARM's own negatives are not filtered


def test_the_loss_is_the_sum_of_two_modules():
    heads, (boxes, labels) = heads_of(2), objects_of()
    config = replace(CONFIG, loss={"negatives_per_positive": 2.0})
    expected = detector_targets(heads, boxes, labels, config)
    loss = detector_loss(heads, boxes, labels, config)
    all_of_them = np.ones((3, ANCHORS), bool)
    arm = module_loss(
        heads.arm_offsets,
        heads.arm_logits,
        expected.arm_offsets,
        expected.arm_labels,
        all_of_them,
        2,
    )
    odm = module_loss(
        heads.odm_offsets,
        heads.odm_logits,
        expected.odm_offsets,
        expected.odm_labels,
        expected.odm_eligible,
        2,
    )
    for actual, want in ((loss.arm, arm), (loss.odm, odm)):
        assert (actual.offsets, actual.classes) == (want.offsets, want.classes)
        assert_array_equal(actual.offsets_gradient, want.offsets_gradient)
        assert_array_equal(actual.logits_gradient, want.logits_gradient)
    parts = (arm.offsets, arm.classes, odm.offsets, odm.classes)
    assert min(parts) > 0.1
    assert loss.total == pytest.approx(sum(parts), rel=1e-14)


def test_total_adds_the_four_parts():
    none = np.zeros((1, 0, 4))
    loss = Loss(ModuleLoss(1.0, 20.0, none, none), ModuleLoss(300.0, 4000.0, none, none))
    assert loss.total == 4321


@pytest.mark.parametrize("head", range(4))
@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_the_detector_with_its_targets_held(head, seed):
    heads = heads_of(seed, images=3)
    expected = detector_targets(heads, *objects_of(), CONFIG)
    loss = loss_on_targets(heads, expected, CONFIG)
    gradients = [
        loss.arm.offsets_gradient,
        loss.arm.logits_gradient,
        loss.odm.offsets_gradient,
        loss.odm.logits_gradient,
    ]
    assert gradients[head].any()
    rng = random(seed + 10)
    for _ in range(3):  # along random directions, over all anchors at once
        direction = rng.normal(size=heads[head].shape)
        up, down = (
            loss_on_targets(
                heads._replace(**{Heads._fields[head]: heads[head] + sign * STEP * direction}),
                expected,
                CONFIG,
            ).total
            for sign in (1, -1)
        )
        slope = (gradients[head] * direction).sum()
        assert slope == pytest.approx((up - down) / (2 * STEP), rel=1e-5, abs=1e-6)


def test_a_batch_without_objects_costs_nothing():
    heads = heads_of(3, images=2, dtype=np.float32)
    none = [np.zeros((0, 4), np.float32)] * 2
    loss = detector_loss(heads, none, [np.zeros(0, int)] * 2, CONFIG)
    assert loss.total == 0
    for module in (loss.arm, loss.odm):
        assert not module.offsets_gradient.any()
        assert not module.logits_gradient.any()


def test_the_order_of_the_objects_does_not_matter():
    heads, (boxes, labels) = heads_of(4), objects_of()
    other = detector_loss(
        heads, [b[::-1] for b in boxes], [label[::-1] for label in labels], CONFIG
    )
    assert detector_loss(heads, boxes, labels, CONFIG).total == other.total


def test_perfect_heads_cost_almost_nothing():
    heads, (boxes, labels) = heads_of(5), objects_of()
    expected = detector_targets(heads, boxes, labels, CONFIG)
    heads.arm_offsets[...] = expected.arm_offsets
    expected = detector_targets(heads, boxes, labels, CONFIG)
    heads.odm_offsets[...] = expected.odm_offsets
    heads.arm_logits[...] = 60 * (np.arange(2) == expected.arm_labels[..., None])
    heads.odm_logits[...] = 60 * (np.arange(4) == expected.odm_labels[..., None])
    loss = detector_loss(heads, boxes, labels, CONFIG)
    assert 0 <= loss.total < 1e-12


def test_what_the_detector_refuses():
    heads, (boxes, labels) = heads_of(6), objects_of()
    more_boxes, more_labels = [*boxes, boxes[0]], [*labels, labels[0]]
    for b, c in (
        *((boxes[:2], labels), (boxes, labels[:2]), (boxes[:2], labels[:2])),
        *((more_boxes, labels), (boxes, more_labels), (more_boxes, more_labels)),
    ):
        with refused("boxes, labels: expected one entry for each image, at least one"):
            detector_targets(heads, b, c, CONFIG)
    with refused("boxes, labels: expected one entry for each image, at least one"):
        detector_targets(Heads(*(h[:0] for h in heads)), [], [], CONFIG)
    with refused("labels: 4 at (0,) is outside 1..3"):
        detector_loss(heads, boxes, [labels[0], labels[1], np.array([4])], CONFIG)
    with refused("boxes: row 0 has crossed corners [1.0, 0.0, 0.0, 1.0]"):
        detector_loss(heads, [*boxes[:2], np.float64([[1, 0, 0, 1]])], labels, CONFIG)
    with refused("anchors, boxes: expected one dtype, got ['float32', 'float64']"):
        detector_loss(heads, [b.astype(np.float32) for b in boxes], labels, CONFIG)
