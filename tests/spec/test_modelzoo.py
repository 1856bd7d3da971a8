"""The model zoo's family: its published figures, and where it differs from the paper's.

Figures: counted and run on the MindSpore model zoo's RefineDet by others; its README.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.anchors import anchors
from refinedet.spec.boxes import box_iou, corners_to_centres, lengthened
from refinedet.spec.config import DetectionConfig, MatchingConfig, replace
from refinedet.spec.detection import detect, nms, scored_boxes
from refinedet.spec.layers import (
    depthwise_conv2d,
    l2_normalise,
    l2_normalise_gradient,
    relu6,
    relu6_gradient,
)
from refinedet.spec.losses import (
    detector_loss,
    detector_targets,
    focal,
    focal_module_loss,
    sigmoid,
    smooth_l1,
)
from refinedet.spec.matching import match
from refinedet.spec.network import (
    Heads,
    forward,
    initial_parameters,
    parameter_count,
    parameter_table,
    trained_parameters,
)
from refinedet.spec.optimizer import momentum_step
from refinedet.spec.presets import preset
from refinedet.spec.schedule import learning_rate

from .strategies import refused, slopes, tiny

ZOO = preset("modelzoo_vgg16_320")
SMALL = tiny(
    network={
        "width": 1 / 64,
        "batch_norm": False,
        "l2_floor": True,
        "l2_in_arm": False,
        "conv_bias": False,
        "fc7_relu": False,
        "tcb": "relu_sum_conv_conv",
        "heads": "separable",
    },
    anchors={"refined": False},
    matching={"rule": "in_order"},
    loss={"classes": "sigmoid", "objectness": 0.0, "arm_first_class": True},
)


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# The network


@pytest.mark.parametrize("name", ["modelzoo_vgg16_320", "modelzoo_vgg16_512"])
def test_published_counts(name):
    """35,480,324 trained numbers at 81 classes, 185,040 fewer at 21, 14,336 running ones."""
    config = preset(name)
    assert parameter_count(config) == 35_480_324
    assert parameter_count(replace(config, num_classes=21)) == 35_480_324 - 185_040
    table = parameter_table(config)
    assert sum(math.prod(p.shape) for p in table if p.group == "statistic") == 14_336
    assert len(table) == 149  # tensors of one of its checkpoints, without the optimizer's


def test_only_the_last_convolutions_of_the_heads_have_a_bias():
    biased = [p.name for p in parameter_table(ZOO) if p.name.endswith("bias")]
    assert biased == [
        f"{module}.{level}.{output}.bias"
        for module in ("arm", "odm")
        for level in range(4)
        for output in ("offsets", "logits")
    ]


def test_the_heads_work_channel_by_channel_first():
    shapes = {p.name: p.shape for p in parameter_table(ZOO)}
    assert shapes["arm.2.offsets.depthwise.weight"] == (1024, 1, 3, 3)
    assert shapes["arm.2.offsets.weight"] == (12, 1024, 1, 1)
    assert shapes["odm.0.logits.depthwise.moving_variance"] == (256,)
    assert shapes["odm.0.logits.weight"] == (243, 256, 1, 1)
    assert shapes["tcb.0.output2.weight"] == (256, 256, 3, 3)
    assert "tcb.3.output2.weight" not in shapes


def test_weights_are_drawn_from_a_cut_normal_distribution():
    config = replace(SMALL, network={"initialiser": "normal"})
    parameters = initial_parameters(config, 0)
    weights = np.concatenate(
        [parameters[p.name].ravel() for p in parameter_table(config) if p.initialiser == "normal"]
    )
    assert abs(weights).max() <= np.float32(0.04)
    # Of a normal distribution cut at two deviations: 0.8796 of the deviation.
    assert_allclose(weights.std(), 0.02 * 0.8796, rtol=0.03)
    assert {p.name for p in parameter_table(config) if "l2_scale" in p.name} <= {
        p.name for p in parameter_table(config) if p.initialiser == "normal"
    }
    assert parameters["arm.0.offsets.bias"].tolist() == [0] * 12


def other_opinion(p, images):
    """The small detector's ARM logits and ODM logits of the coarsest level, by hand."""

    def conv(name, x, padding=1, dilation=1, stride=1):
        w = p[f"{name}.weight"]
        k = w.shape[2]
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        reach = dilation * (k - 1)
        rows, columns = ((n - reach - 1) // stride + 1 for n in x.shape[2:])
        out = 0
        for i, j in np.ndindex(k, k):
            down = slice(i * dilation, i * dilation + stride * (rows - 1) + 1, stride)
            right = slice(j * dilation, j * dilation + stride * (columns - 1) + 1, stride)
            out = out + np.tensordot(w[:, :, i, j], x[:, :, down, right], (1, 1))
        return out.transpose(1, 0, 2, 3)

    def head(name, x):
        w = p[f"{name}.depthwise.weight"]
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        y = sum(
            w[:, 0, i, j, None, None] * padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            for i, j in np.ndindex(3, 3)
        )
        mean, var, gamma, beta = (
            p[f"{name}.depthwise.{part}"][:, None, None]
            for part in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        y = (y - mean) / np.sqrt(var + SMALL.network.batch_norm_eps) * gamma + beta
        return (
            conv(name, np.minimum(np.maximum(y, 0), 6), padding=0)
            + p[f"{name}.bias"][:, None, None]
        )

    x, sources = images, []
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        for n in range(1, count + 1):
            x = np.maximum(conv(f"backbone.conv{block}_{n}", x), 0)
        if block >= 4:
            sources.append(x)
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    x = np.maximum(conv("backbone.fc6", x, padding=3, dilation=3), 0)
    fc7 = conv("backbone.fc7", x, padding=0)
    sources.append(fc7)  # before its ReLU
    x = np.maximum(conv("backbone.conv6_1", np.maximum(fc7, 0), padding=0), 0)
    sources.append(np.maximum(conv("backbone.conv6_2", x, stride=2), 0))

    def lateral(level, x):
        x = np.maximum(conv(f"tcb.{level}.lateral1", x), 0)
        return conv(f"tcb.{level}.lateral2", x)

    top = np.maximum(lateral(3, sources[3]), 0)
    top = np.maximum(conv("tcb.3.output", top), 0)
    up = np.einsum("nchw,cdij->ndhiwj", top, p["tcb.2.upsample.weight"])
    up = np.maximum(up.reshape(len(top), -1, 2 * top.shape[2], 2 * top.shape[3]), 0)
    block = lateral(2, sources[2]) + up  # no ReLU after the sum
    for name in ("output", "output2"):
        block = np.maximum(conv(f"tcb.2.{name}", block), 0)
    arm = [head(f"arm.{i}.logits", s) for i, s in enumerate(sources)]  # not normalised
    return arm, head("odm.2.logits", block), head("odm.3.logits", top)


def lively(seed):
    parameters = {}
    for i, p in enumerate(parameter_table(SMALL)):
        low, high = (0.5, 1.5) if "variance" in p.name or "gamma" in p.name else (-0.6, 0.6)
        parameters[p.name] = np.random.default_rng([seed, i]).uniform(low, high, p.shape)
    return parameters


def test_the_whole_against_a_second_opinion():
    parameters, images = lively(0), numbers(1, 2, 3, 64, 128)
    heads, _ = forward(parameters, images, SMALL)
    arm, odm2, odm3 = other_opinion(parameters, images)
    rows = np.concatenate([y.transpose(0, 2, 3, 1).reshape(2, -1, 2) for y in arm], axis=1)
    assert_allclose(heads.arm_logits, rows, rtol=1e-9, atol=1e-12)
    coarse = [y.transpose(0, 2, 3, 1).reshape(2, -1, 4) for y in (odm2, odm3)]
    count = sum(y.shape[1] for y in coarse)
    assert_allclose(heads.odm_logits[:, -count:], np.hstack(coarse), rtol=1e-9, atol=1e-12)


def test_the_arm_does_not_read_the_l2_scales_and_the_blocks_do():
    parameters, images = lively(0), numbers(1, 1, 3, 64, 128)
    before, _ = forward(parameters, images, SMALL)
    name = "backbone.conv4_3.l2_scale"
    after, _ = forward(parameters | {name: 2 * parameters[name]}, images, SMALL)
    assert_array_equal(before.arm_logits, after.arm_logits)
    assert (before.odm_logits != after.odm_logits).any()
    paper = replace(SMALL, network={"l2_in_arm": True})
    before, _ = forward(parameters, images, paper)
    after, _ = forward(parameters | {name: 2 * parameters[name]}, images, paper)
    assert (before.arm_logits != after.arm_logits).any()


def test_the_backward_pass_is_the_slope_of_the_forward_pass():
    parameters, images = lively(0), numbers(1, 2, 3, 64, 128)
    for part, slope, expected in slopes(parameters, images, SMALL):
        assert abs(slope - expected) < 1e-3 * (abs(expected) + 1), part


def test_layers_by_hand():
    x = np.float64([[[[1, 2], [3, 4]], [[1, 1], [1, 1]]]])
    w = np.zeros((2, 1, 3, 3))
    w[0, 0, 1, 1], w[1, 0, 0, 1] = 10, 1
    actual = depthwise_conv2d(x, w, padding=1)
    assert actual.tolist() == [[[[10, 20], [30, 40]], [[0, 0], [1, 1]]]]
    ends = np.float64([-1, 0, 3, 6, 7])
    assert relu6(ends).tolist() == [0, 0, 3, 6, 6]
    assert relu6_gradient(np.ones(5), ends)[0].tolist() == [0, 0, 1, 0, 0]
    # Sum of squares 25 above the floor of 4; 1 below it, where the norm is 2.
    x = np.float64([[[[3, 1]], [[4, 0]]]])
    actual = l2_normalise(x, np.float64([1, 1]), 4.0, floor=True)
    assert actual.tolist() == [[[[0.6, 0.5]], [[0.8, 0]]]]
    by_x, by_scale = l2_normalise_gradient(np.ones_like(x), x, np.float64([1, 1]), 4.0, floor=True)
    assert_allclose(by_x[0, :, 0, 1], [0.5, 0.5])  # the norm does not move
    assert_allclose(by_x[0, :, 0, 0], [(1 - 0.6 * 1.4) / 5, (1 - 0.8 * 1.4) / 5])
    assert_allclose(by_scale, [1.1, 0.8])
    # Squares of 2.25 in both channels: their sum is above the floor, none of them is.
    x = np.full((1, 2, 1, 1), 1.5)
    by_x, _ = l2_normalise_gradient(
        np.float64([[[[1]], [[0]]]]), x, np.float64([1, 1]), 4.0, floor=True
    )
    assert_allclose(by_x.ravel(), [0.5 / np.sqrt(4.5), -0.5 / np.sqrt(4.5)])


# Anchors


@pytest.mark.parametrize(
    ("row", "centre"),
    [
        (0, [0.0125, 0.0125, 0.1, 0.1]),
        (1, [0.0125, 0.0125, 0.28284, 0.14142]),
        (2, [0.0125, 0.0125, 0.14142, 0.28284]),
        (3, [0.0375, 0.0125, 0.1, 0.1]),
        (4800, [0.025, 0.025, 0.45, 0.45]),
        (4801, [0.025, 0.025, 0.63640, 0.31820]),
        (6000, [0.05, 0.05, 0.7, 0.7]),
        (6001, [0.05, 0.05, 0.98995, 0.49497]),
        (6300, [0.1, 0.1, 0.95, 0.95]),
        (6301, [0.1, 0.1, 1.34350, 0.67175]),
    ],
)
def test_published_anchors(row, centre):
    found = corners_to_centres(anchors(ZOO).astype(np.float64))
    assert len(found) == 6375
    assert_allclose(found[row], centre, atol=6e-6)


def test_anchors_grow_with_the_input():
    large = corners_to_centres(anchors(preset("modelzoo_vgg16_512")))
    assert len(large) == 16_320
    assert_allclose(large[0, 2:], [0.1, 0.1], atol=1e-6)
    assert_allclose(large[-3, 2:], [0.95, 0.95], atol=1e-6)


# Matching


IN_ORDER = MatchingConfig(0.5, 1e-6, "in_order")


@pytest.mark.parametrize(
    ("iou", "expected"),
    [
        # Both objects like anchor 0 best: the earlier keeps it, the later has none.
        ([[0.6, 0.7], [0.2, 0.3]], [0, -1]),
        # An anchor above the threshold changes hands for a larger overlap alone.
        ([[0.9, 0.1], [0.6, 0.6], [0.1, 0.8]], [0, 0, 1]),
        ([[0.9, 0.1], [0.6, 0.7], [0.1, 0.8]], [0, 1, 1]),
        # A forced match takes what the threshold gave.
        ([[0.9, 0.1], [0.8, 0.3]], [0, 1]),
        # More than the threshold, not equal to it.
        ([[0.7], [0.5], [0.51]], [0, -1, 0]),
        # What touches nothing has no anchor.
        ([[0.0, 0.3], [0.0, 0.1]], [1, -1]),
        # Equal overlaps: the lowest anchor.
        ([[0.25], [0.25]], [0, -1]),
    ],
)
def test_matching_in_order(iou, expected):
    assert match(np.float64(iou), IN_ORDER).tolist() == expected


def test_the_order_matters_and_the_arguments_stay():
    iou = np.float64([[0.6, 0.7], [0.2, 0.3]])
    before = iou.copy()
    assert match(iou, IN_ORDER).tolist() == [0, -1]
    assert match(iou[:, ::-1], IN_ORDER).tolist() == [0, -1]  # the other object, now first
    assert_array_equal(iou, before)


# Losses


def test_focal_loss_by_hand():
    # p = 1/2 everywhere: 0.75 / 4 * ln 2 for the label's column, 0.25 / 4 * ln 2 for others.
    losses, _ = focal(np.zeros((2, 3)), np.array([1, 3]), 0.75, 2.0)
    assert_allclose(losses, [(0.75 + 0.5) / 4 * math.log(2), 0.75 / 4 * math.log(2)])
    # Without focus and with equal weights: half the cross entropy of each column.
    losses, _ = focal(np.float64([[2.0, -1.0]]), np.array([0]), 0.5, 0.0)
    assert_allclose(losses, [(math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2])


@given(st.lists(st.floats(-6, 6), min_size=3, max_size=3), st.integers(0, 3))
def test_focal_gradient_against_central_differences(row, label):
    x, labels = np.float64([row]), np.array([label])
    _, gradient = focal(x, labels, 0.75, 2.0)
    for k in range(3):
        step = np.zeros((1, 3))
        step[0, k] = 1e-6
        sides = [focal(x + s * step, labels, 0.75, 2.0)[0][0] for s in (1, -1)]
        assert_allclose(gradient[0, k], (sides[0] - sides[1]) / 2e-6, atol=1e-8)


def test_focal_loss_of_large_logits_is_finite():
    losses, gradient = focal(np.float32([[1000, -1000]]), np.array([1]), 0.75, 2.0)
    assert_allclose(losses, [0.25 * 1000 + 0.75 * 1000])
    assert np.isfinite(gradient).all()
    assert (losses.dtype, gradient.dtype) == (np.float32, np.float32)
    assert_array_equal(sigmoid(np.float32([1000, -1000, 0])), np.float32([1, 0, 0.5]))


def test_every_anchor_contributes_and_the_divisor_is_the_positives():
    offsets, logits = numbers(0, 2, 3, 4), numbers(1, 2, 3, 5)
    expected, labels = numbers(2, 2, 3, 4), np.array([[0, 4, 0], [1, 0, 0]])
    actual = focal_module_loss(offsets, logits, expected, labels, 0.75, 2.0)
    classes = focal(logits.reshape(-1, 5), labels.ravel(), 0.75, 2.0)
    boxes = smooth_l1(offsets.reshape(-1, 4), expected.reshape(-1, 4))
    assert_allclose(actual.classes, classes[0].sum() / 2)
    assert_allclose(actual.offsets, boxes[0][[1, 3]].sum() / 2)
    assert_allclose(actual.logits_gradient.reshape(-1, 5), classes[1] / 2)
    assert_allclose(actual.offsets_gradient[0, 1], boxes[1][1] / 2)
    assert not actual.offsets_gradient[0, 0].any()
    empty = focal_module_loss(offsets, logits, expected, 0 * labels, 0.75, 2.0)
    assert empty.offsets == 0
    assert_allclose(
        empty.classes, focal(logits.reshape(-1, 5), 0 * labels.ravel(), 0.75, 2.0)[0].sum()
    )


def heads_of(seed):
    count = len(anchors(SMALL))
    return Heads(*(numbers(seed + i, 1, count, n) for i, n in enumerate((4, 2, 4, 4))))


def test_the_arm_detects_the_first_class_alone_and_the_odm_shares_its_targets():
    boxes, labels = [np.float64([[0.1, 0.2, 0.5, 0.9], [0.5, 0.1, 0.9, 0.8]])], [np.array([1, 3])]
    expected = detector_targets(heads_of(0), boxes, labels, SMALL)
    assert set(np.unique(expected.arm_labels)) == {0, 1, 3}
    assert_array_equal(expected.arm_labels, expected.odm_labels)
    assert_array_equal(expected.arm_offsets, expected.odm_offsets)
    assert expected.odm_eligible.all()
    # Class 3 is in neither of the ARM's two columns: both logits are pushed down.
    loss = detector_loss(heads_of(0), boxes, labels, SMALL)
    gradient = loss.arm.logits_gradient[expected.arm_labels == 3]
    assert len(gradient)
    assert (gradient > 0).all()
    every = replace(SMALL, loss={"arm_first_class": False})
    assert set(np.unique(detector_targets(heads_of(0), boxes, labels, every).arm_labels)) == {0, 1}


# Detection


def test_the_arm_does_not_matter_to_detections():
    one, other = heads_of(0), heads_of(10)
    mixed = other._replace(odm_offsets=one.odm_offsets, odm_logits=one.odm_logits)
    for a, b in zip(scored_boxes(one, SMALL), scored_boxes(mixed, SMALL), strict=True):
        assert_array_equal(a, b)
    assert_allclose(scored_boxes(one, SMALL)[1], 1 / (1 + np.exp(-one.odm_logits)))


def test_a_pixel_more_on_every_side():
    # Two boxes of 4x2 pixels side by side share a column of 1x3 where a pixel is added.
    boxes = np.float64([[0, 0, 4, 2], [4, 0, 8, 2]]) / 8
    assert box_iou(boxes, boxes)[0, 1] == 0
    longer = lengthened(boxes, (1 / 8, 1 / 8))
    shared = box_iou(longer, longer)
    assert_allclose(shared, [[1, 3 / 27], [3 / 27, 1]])
    assert nms(boxes, np.float64([1, 0.5]), 0.1).tolist() == [0, 1]
    assert nms(boxes, np.float64([1, 0.5]), 0.1, (1 / 8, 1 / 8)).tolist() == [0]
    scores = np.float64([[0, 1], [0, 0.5]])
    config = DetectionConfig(nms_iou=0.1, pixel=1.0)
    assert len(detect(boxes, scores, config, (8, 8)).scores) == 1
    assert len(detect(boxes, scores, config, (8, 1000)).scores) == 2  # a narrow pixel
    with refused("size: expected the image's height and width, which detection.pixel needs"):
        detect(boxes, scores, config)


def test_clipping_first_changes_the_overlaps():
    boxes = np.float64([[-1, 0, 0.5, 1], [0, 0, 0.5, 1]])
    scores = np.float64([[0, 1], [0, 0.5]])
    assert len(detect(boxes, scores, DetectionConfig(clip=False)).scores) == 2
    first = detect(boxes, scores, DetectionConfig(clip_first=True))
    assert first.boxes.tolist() == [[0, 0, 0.5, 1]]


# Training


def test_everything_decays():
    config = replace(SMALL, optimizer={"decay_all": True, "weight_decay": 0.25, "clip_norm": None})
    parameters = initial_parameters(config, 0)
    zeros = {p.name: np.zeros(p.shape, np.float32) for p in trained_parameters(config)}
    _, momentum_buffers = momentum_step(parameters, zeros, zeros, 0.1, config)
    for name, momentum_buffer in momentum_buffers.items():
        assert_array_equal(momentum_buffer, 0.25 * parameters[name])


def test_published_schedule():
    """Linear from 0.001 to 0.05 over two epochs of 458 steps, then a cosine to 5e-5."""
    schedule = ZOO.schedule
    assert schedule.steps == 500 * 458
    assert learning_rate(0, schedule) == 0.001
    assert learning_rate(2 * 458, schedule) == 0.05
    assert_allclose(learning_rate(schedule.steps - 1, schedule), 5e-5, rtol=1e-3)
