"""Configuration: every field's range."""

import dataclasses
import math

import pytest

from refinedet.spec.config import (
    VGG16_BLOCKS,
    AnchorsConfig,
    Config,
    DetectionConfig,
    ImageConfig,
    LossConfig,
    MatchingConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
    feature_sizes,
    replace,
)

from .strategies import refused

SECTIONS = {
    "image": ImageConfig,
    "network": NetworkConfig,
    "anchors": AnchorsConfig,
    "matching": MatchingConfig,
    "loss": LossConfig,
    "detection": DetectionConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
}
NAN, INF = math.nan, math.inf
COUNT = "a whole number from 1, or null"
COUNTS = ([None, 1, 10**6], [0, -1, 1.0, True, "1"])

# Section, field, what it wants, values it takes, values it refuses.
FIELDS = [
    ("image", "channels", "'RGB' or 'BGR'", ["RGB", "BGR"], ["rgb", "RBG", "", None, ["RGB"]]),
    (
        "image",
        "mean",
        "three numbers from 0",
        [(0, 0, 0), (255.0, 1, 2.5)],
        [(1, 2), (1, 2, 3, 4), [1, 2, 3], (-1e-9, 0, 0), (0, 0, NAN), ("1", 0, 0), (0, True, 0)],
    ),
    (
        "image",
        "std",
        "three numbers above 0",
        [(1e-6, 1e-6, 1e-6), (58.4, 57.1, 57.4)],
        [(0, 1, 1), (1, 1, 9e-7), (1, 1), (1, INF, 1), None],
    ),
    (
        "network",
        "backbone",
        "'vgg16' or 'resnet'",
        ["vgg16", "resnet"],
        ["VGG16", "resnet101", None],
    ),
    (
        "network",
        "blocks",
        "four whole numbers from 1 to 100",
        [(3, 4, 23, 3), (1, 1, 1, 100)],
        [(3, 4, 23), (3, 4, 23, 3, 1), (3, 4, 0, 3), (3, 4, 101, 3), [3, 4, 23, 3], 3],
    ),
    ("network", "bottleneck_stride", "'1x1' or '3x3'", ["1x1", "3x3"], ["2x2", None, 3]),
    ("network", "same_padding", "true or false", [True, False], [0, "same", None]),
    ("network", "pool_centred", "true or false", [True, False], [0, 1, None]),
    ("network", "upsample_batch_norm", "true or false", [True, False], [0, 1, None]),
    (
        "network",
        "extra_width",
        "a whole number from 1",
        [1, 32, 10**9],
        [0, -1, 1.0, True, "128", 10**9 + 1],
    ),
    ("network", "residual_gamma", "a number from 0", [0, 0.5, 1], [-1e-9, NAN, INF, None, True]),
    ("network", "head_momentum", "0 to 1, or null", [None, 0, 0.97, 1], [-0.1, 1.1, NAN, "0"]),
    (
        "network",
        "width",
        "1/64 to 4, with whole channel counts",
        [1 / 64, 0.125, 1, 1.25, 4],
        [0, 1 / 128, 4.015625, 0.1, -1, NAN, INF, True, "1", None],
    ),
    ("network", "batch_norm", "true or false", [True, False], [0, 1, "true", None]),
    ("network", "batch_norm_eps", "1e-12 to 1", [1e-12, 1e-3, 1], [0, 9e-13, 1.1, NAN, True]),
    ("network", "batch_norm_momentum", "0 to 1", [0, 0.97, 1], [-0.1, 1.1, NAN, None]),
    (
        "network",
        "tcb_channels",
        "a whole number from 1",
        [1, 256, 10**9],
        [0, -1, 1.0, True, "256", 10**9 + 1],
    ),
    (
        "network",
        "l2_scales",
        "two numbers from 0, or null",
        [None, (0, 0), (20.0, 1)],
        [(10,), (10, 8, 6), (10, -1e-9), [10, 8], (10, INF), 10],
    ),
    ("network", "l2_floor", "true or false", [True, False], [0, 1, None]),
    ("network", "l2_in_arm", "true or false", [True, False], [0, 1, None]),
    ("network", "conv_bias", "true or false", [True, False], [0, 1, None]),
    ("network", "fc7_relu", "true or false", [True, False], [0, 1, None]),
    (
        "network",
        "tcb",
        "'sum_relu_conv' or 'relu_sum_conv_conv'",
        ["sum_relu_conv", "relu_sum_conv_conv"],
        ["paper", None, True],
    ),
    (
        "network",
        "heads",
        "'conv' or 'separable' or 'bottleneck'",
        ["conv", "separable", "bottleneck"],
        ["depthwise", None],
    ),
    (
        "network",
        "initialiser",
        "'xavier' or 'gaussian' or 'normal'",
        ["xavier", "gaussian", "normal"],
        ["he", None, 0.02],
    ),
    ("network", "l2_eps", "1e-30 to 1", [1e-30, 1], [0, 9e-31, 1.1, NAN]),
    (
        "anchors",
        "strides",
        "whole numbers from 1",
        [(8, 16, 32, 64), (1, 1, 1, 1)],
        [(), (0, 16, 32, 64), (8.0, 16, 32, 64), [8, 16, 32, 64], (True, 16, 32, 64), 8],
    ),
    (
        "anchors",
        "sides",
        "4 numbers from 1, one for each stride",
        [(1, 1, 1, 1), (32.5, 64, 128, 256)],
        [(32, 64, 128), (0.9, 64, 128, 256), (), [1, 2, 3, 4], (1, 2, 3, NAN), (1, 2, 3, 4, 5)],
    ),
    (
        "anchors",
        "aspect_ratios",
        "numbers above 0",
        [(1e-3,), (1.0, 2.0, 0.5, 3.0)],
        [(), (0.0,), (1.0, 9e-4), [1.0], (INF,), 1.0],
    ),
    (
        "anchors",
        "variances",
        "two numbers above 0",
        [(1e-6, 1e-6), (1, 1)],
        [(0.1,), (0.1, 0.0), (0.1, 0.1, 0.2), (9e-7, 0.2), [0.1, 0.2]],
    ),
    (
        "anchors",
        "square_sides",
        "4 numbers from 1, one for each stride, or null",
        [None, (1, 1, 1, 1), (32.5, 64, 128, 256)],
        [(32, 64, 128), (0.9, 64, 128, 256), (), [1, 2, 3, 4], 32.0],
    ),
    ("anchors", "refined", "true or false", [True, False], [0, 1, None]),
    (
        "matching",
        "rule",
        "'bipartite' or 'in_order'",
        ["bipartite", "in_order"],
        ["greedy", None],
    ),
    ("matching", "iou", "1e-6 to 1", [1e-6, 0.5, 1], [0, 9e-7, 1.01, NAN, None, "0.5"]),
    ("matching", "lowest_iou", "0 to matching.iou", [0, 0.5], [-1e-9, 0.51, NAN]),
    (
        "loss",
        "negatives_per_positive",
        "a number from 0",
        [0, 0.5, 3, 1000],
        [-1e-9, INF, NAN, None],
    ),
    ("loss", "objectness", "0 to 1", [0, 0.01, 1], [-1e-9, 1.01, NAN]),
    ("loss", "classes", "'softmax' or 'sigmoid'", ["softmax", "sigmoid"], ["focal", None, True]),
    ("loss", "focal_alpha", "0 to 1", [0, 0.75, 1], [-1e-9, 1.01, NAN, None]),
    ("loss", "focal_gamma", "0 to 10", [0, 2, 10], [-1e-9, 10.1, NAN, None]),
    (
        "loss",
        "arm_first_class",
        "true or false",
        [True, False],
        [0, 1, None],
    ),
    ("detection", "score", "0 to 1", [0, 1], [-1e-9, 1.01, NAN, None]),
    ("detection", "nms_iou", "0 to 1", [0, 1], [-1e-9, 1.01, NAN, None]),
    ("detection", "clip", "true or false", [True, False], [0, 1, None]),
    ("detection", "clip_first", "true or false", [True, False], [0, 1, None]),
    ("detection", "pixel", "0 to 1", [0, 0.5, 1], [-1e-9, 1.01, NAN, None]),
    ("detection", "top_before_nms", COUNT, *COUNTS),
    ("detection", "top_before_nms_per_class", COUNT, *COUNTS),
    ("detection", "top_per_class", COUNT, *COUNTS),
    ("detection", "top", COUNT, *COUNTS),
    ("optimizer", "momentum", "0 to 1", [0, 0.9, 1], [-1e-9, 1.01, NAN]),
    ("optimizer", "weight_decay", "0 to 1", [0, 1], [-1e-9, 1.01, NAN]),
    ("optimizer", "decay_all", "true or false", [True, False], [0, 1, None]),
    ("optimizer", "bias_rate", "0 to 100", [0, 2, 100], [-1e-9, 100.1, NAN]),
    (
        "optimizer",
        "clip_norm",
        "a number above 0, or null",
        [None, 1e-6, 10],
        [0, 9e-7, -1, INF, NAN, True],
    ),
    ("optimizer", "precision", "'float32' or 'float16'", ["float32", "float16"], ["half", None]),
    (
        "optimizer",
        "loss_scale",
        "a number above 0, or null",
        [None, 1e-6, 1, 1024.0],
        [0, 9e-7, INF, True],
    ),
    (
        "optimizer",
        "loss_scale_window",
        "a whole number from 1, or null",
        [None, 1, 10**9],
        [0, 1.0, True],
    ),
    ("schedule", "kind", "'multistep' or 'cosine'", ["multistep", "cosine"], ["step", None]),
    (
        "schedule",
        "steps",
        "a whole number from 1 to 10**7",
        [1, 10**7],
        [0, -1, 10.0, True, 10**7 + 1],
    ),
    ("schedule", "rate", "0 to 1000", [0, 1e-3, 1000], [-1e-9, 1000.1, NAN, "0.1"]),
    (
        "schedule",
        "warmup_steps",
        "a whole number from 0 to schedule.steps",
        [0, 1],
        [-1, 120_001, 1.0, False],
    ),
    ("schedule", "warmup_rate", "0 to 1000", [0, 1000], [-1e-9, 1000.1, NAN]),
    (
        "schedule",
        "milestones",
        "whole numbers above schedule.warmup_steps, rising",
        [(), (1,), (1, 2, 10**9)],
        [(0,), (2, 1), (1, 1), (1, 1, 2), [1, 2], (1.0,), (True,), 1],
    ),
    ("schedule", "factor", "0 to 1", [0, 0.1, 1], [-1e-9, 1.01, NAN]),
    ("schedule", "final_rate", "0 to schedule.rate", [0, 1e-3], [-1e-9, 1.1e-3, NAN]),
]
GOOD = [(s, f, value) for s, f, _, good, _ in FIELDS for value in good]
BAD = [(s, f, expected, value) for s, f, expected, _, bad in FIELDS for value in bad]


def test_the_table_covers_every_field_of_every_section():
    fields = {(s, f.name) for s, section in SECTIONS.items() for f in dataclasses.fields(section)}
    assert fields == {(s, f) for s, f, *_ in FIELDS}
    ours = {f.name for f in dataclasses.fields(Config)}
    assert ours == {*SECTIONS, "image_size", "num_classes"}


# What makes a section read a field that it does not read by default.
READ_WITH = {
    "blocks": {"backbone": "resnet"},
    "bottleneck_stride": {"backbone": "resnet"},
    "same_padding": {"backbone": "resnet"},
    "pool_centred": {"backbone": "resnet"},
    "extra_width": {"backbone": "resnet"},
    "residual_gamma": {"heads": "bottleneck"},
    "head_momentum": {"heads": "separable"},
    "batch_norm_eps": {"batch_norm": True},
    "batch_norm_momentum": {"batch_norm": True},
    "focal_alpha": {"classes": "sigmoid"},
    "focal_gamma": {"classes": "sigmoid"},
    "arm_first_class": {"classes": "sigmoid"},
    "loss_scale_window": {"precision": "float16"},
    "warmup_rate": {"warmup_steps": 1},
    "final_rate": {"kind": "cosine"},
}


@pytest.mark.parametrize(("section", "field", "value"), GOOD)
def test_a_value_in_range_is_taken(section, field, value):
    others = READ_WITH.get(field, {})
    assert getattr(SECTIONS[section](**others, **{field: value}), field) == value


@pytest.mark.parametrize(("section", "field", "expected", "value"), BAD)
def test_a_value_out_of_range_names_its_field(section, field, expected, value):
    with refused(f"{section}.{field}: expected {expected}, got {value!r}"):
        SECTIONS[section](**{field: value})


@pytest.mark.parametrize(("section", "field", "expected", "value"), BAD[:40:7])
def test_replace_checks_again(section, field, expected, value):
    with refused(f"{section}.{field}: expected {expected}, got {value!r}"):
        replace(Config(), **{section: {field: value}})


@pytest.mark.parametrize("value", [(64, 64), (128, 64), (320, 512), (64, 8192)])
def test_image_sizes_need_not_be_square(value):
    assert Config(image_size=value).image_size == value


@pytest.mark.parametrize(
    "value",
    [
        *((64,), (64, 64, 64), [64, 64], (64.0, 64), (True, 64), 64, None),
        *((64, 0), (-64, 64), (8193, 64)),
    ],
)
def test_an_image_size_is_two_whole_numbers(value):
    expected = "height and width, whole numbers from 1 to 8192"
    with refused(f"image_size: expected {expected}, got {value!r}"):
        Config(image_size=value)


@pytest.mark.parametrize("value", [(63, 64), (64, 96), (300, 300), (64, 1)])
def test_an_image_size_is_a_multiple_of_the_coarsest_stride(value):
    with refused(f"image_size: expected multiples of 64, the coarsest stride, got {value!r}"):
        Config(image_size=value)


@pytest.mark.parametrize("value", [1, 0, -1, 10**5 + 1, 2.0, True, "2", None])
def test_there_is_a_class_besides_the_background(value):
    with refused(f"num_classes: expected a whole number from 2 to 10**5, got {value!r}"):
        Config(num_classes=value)
    assert Config(num_classes=2).num_classes == 2
    assert Config(num_classes=10**5).num_classes == 10**5


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("value", [None, {}, "x"])
def test_a_section_is_of_its_kind(section, value):
    kind = SECTIONS[section].__name__
    with refused(f"{section}: expected a {kind}, got {value!r}"):
        Config(**{section: value})


def test_anchors_and_feature_maps_agree():
    expected = "(8, 16, 32, 64), the strides of the network's feature maps"
    for strides in ((4, 8, 16, 32), (8, 16, 32, 128)):
        with refused(f"anchors.strides: expected {expected}, got {strides}"):
            replace(Config(), anchors={"strides": strides})
    with refused(f"anchors.strides: expected {expected}, got (8, 16, 32)"):
        replace(Config(), anchors={"strides": (8, 16, 32), "sides": (32.0, 64.0, 128.0)})


def test_width_keeps_every_channel_count_whole():
    expected = "1/64 to 4, with whole channel counts"
    assert NetworkConfig(width=0.5, tcb_channels=2).channels(2) == 1
    with refused(f"network.width: expected {expected}, got 0.5"):
        NetworkConfig(width=0.5, tcb_channels=3)  # 1.5 channels
    with refused(f"network.width: expected {expected}, got 0.1"):
        NetworkConfig(width=0.1, tcb_channels=10)  # 6.4 channels of conv1
    with refused(f"network.width: expected {expected}, got {3 / 128}"):
        NetworkConfig(width=3 / 128, tcb_channels=128)  # 1.5 channels of conv1, 3 of conv2
    with refused(f"network.width: expected {expected}, got 0.5"):
        NetworkConfig("resnet", width=0.5, extra_width=3)  # 1.5 channels inside res6


def test_one_field_bounds_another():
    assert MatchingConfig(iou=0.3, lowest_iou=0.3).lowest_iou == 0.3
    with refused("matching.lowest_iou: expected 0 to matching.iou, got 0.4"):
        MatchingConfig(iou=0.3, lowest_iou=0.4)
    assert ScheduleConfig(steps=5, warmup_steps=5, milestones=()).warmup_steps == 5
    with refused("schedule.warmup_steps: expected a whole number from 0 to schedule.steps, got 6"):
        ScheduleConfig(steps=5, warmup_steps=6)
    with refused("schedule.final_rate: expected 0 to schedule.rate, got 0.2"):
        ScheduleConfig(rate=0.1, final_rate=0.2)
    # Else the step after the warm-up would not have the full rate.
    assert ScheduleConfig(warmup_steps=5, milestones=(6,)).milestones == (6,)
    expected = "whole numbers above schedule.warmup_steps, rising"
    with refused(f"schedule.milestones: expected {expected}, got (5, 9)"):
        ScheduleConfig(warmup_steps=5, milestones=(5, 9))


def test_a_config_does_not_change():
    for section in (Config(), *(kind() for kind in SECTIONS.values())):
        first = dataclasses.fields(section)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, first, None)


def test_feature_sizes_are_rows_and_columns():
    config = Config(image_size=(128, 320))
    assert feature_sizes(config) == ((16, 40), (8, 20), (4, 10), (2, 5))


def test_replace_changes_what_it_names():
    old = Config()
    new = replace(old, image_size=(64, 128), network={"width": 0.5}, loss=LossConfig(objectness=0))
    assert new.image_size == (64, 128)
    assert new.network == NetworkConfig(width=0.5)
    assert new.loss == LossConfig(objectness=0)
    assert new.anchors == old.anchors
    assert old == Config()


@pytest.mark.parametrize("name", ["bogus", "widht"])
def test_replace_refuses_unknown_fields(name):
    with refused(f"{name}: no such field; there are {', '.join(FIELD_NAMES)}"):
        replace(Config(), **{name: 1})
    with refused(f"{name}: no such field; there are {', '.join(FIELD_NAMES)}"):
        replace(Config(), **{name: {"x": 1}})
    known = ", ".join(f.name for f in dataclasses.fields(LossConfig))
    with refused(f"loss.{name}: no such field; there are {known}"):
        replace(Config(), loss={name: 1})


FIELD_NAMES = [f.name for f in dataclasses.fields(Config)]


def test_replace_needs_a_value_for_a_field_that_is_not_a_section():
    with refused("num_classes: expected a whole number from 2 to 10**5, got {'x': 1}"):
        replace(Config(), num_classes={"x": 1})


def test_vgg16_has_the_published_layers():
    # arXiv:1409.1556, table 1, column D: 13 convolutions.
    assert VGG16_BLOCKS == ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def test_anchors_of_one_level_are_possible_and_of_none_are_not():
    assert AnchorsConfig(strides=(8,), sides=(32,)).strides == (8,)
    with refused("anchors.strides: expected whole numbers from 1, got ()"):
        AnchorsConfig(strides=(), sides=())


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 1.0),
        ({"precision": "float16"}, 1024.0),
        ({"precision": "float16", "loss_scale": 8.0}, 8.0),
        ({"loss_scale": 8.0}, 8.0),
    ],
)
def test_the_loss_scale_that_a_training_begins_with(options, scale):
    assert OptimizerConfig(**options).scale == scale


@pytest.mark.parametrize("scale", [None, 1, 2**24])
def test_a_loss_scale_may_follow_the_gradient_in_float16(scale):
    OptimizerConfig(precision="float16", loss_scale=scale, loss_scale_window=1)


def test_a_loss_scale_that_follows_the_gradient_has_bounds():
    for scale in (0.5, 2.0**24 + 2):
        expected = "1 to 2**24 with an optimizer.loss_scale_window"
        with refused(f"optimizer.loss_scale: expected {expected}, got {scale!r}"):
            OptimizerConfig(precision="float16", loss_scale=scale, loss_scale_window=1)
