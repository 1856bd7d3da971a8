"""Unread fields: each field of a configuration changes something, or is refused."""

import copy
import dataclasses
import functools
import itertools

import numpy as np
import pytest

from refinedet.spec.anchors import anchors
from refinedet.spec.config import Config, NetworkConfig, ScheduleConfig, replace
from refinedet.spec.detection import detections
from refinedet.spec.errors import SpecError
from refinedet.spec.images import normalise
from refinedet.spec.network import Heads, initial_parameters, trained_parameters
from refinedet.spec.optimizer import LossScale, next_loss_scale
from refinedet.spec.presets import PRESETS
from refinedet.spec.schedule import learning_rate
from refinedet.spec.training import training_step
from refinedet.spec.unread import RULES, unread

from .strategies import refused, tiny

SHORT = {"kind": "multistep", "steps": 20, "warmup_steps": 0, "warmup_rate": 0.0}
MULTISTEP = SHORT | {"milestones": (10, 15), "rate": 0.1}
RESNET = {"backbone": "resnet", "blocks": (1, 1, 1, 1)}
PAPER = tiny(network={"width": 1 / 64, "batch_norm": False, "l2_scales": (10.0, 8.0)})
COSINE = {"steps": 20, "warmup_steps": 5}
# The ways of every part of a detector, each in one configuration at least.
CONFIGS = {
    "vgg16": replace(PAPER, schedule=MULTISTEP, anchors={"aspect_ratios": (1.0, 2.0)}),
    "vgg16, batch normalisation": replace(
        PAPER,
        network={"batch_norm": True, "upsample_batch_norm": True, "l2_scales": None},
        schedule=COSINE,
        optimizer={"precision": "float16"},
    ),
    "vgg16, bottleneck heads": replace(
        PAPER,
        network={"heads": "bottleneck", "initialiser": "normal"},
        schedule=SHORT | {"milestones": ()},
    ),
    "vgg16, separable heads": replace(
        PAPER,
        network={"heads": "separable", "head_momentum": 0.5},
        anchors={"refined": False, "aspect_ratios": (0.5, 2.0)},
        detection={"clip_first": True},
        schedule=COSINE | {"warmup_steps": 0, "warmup_rate": 0.0},
    ),
    "vgg16, model zoo": replace(
        PAPER,
        network={"heads": "separable", "tcb": "relu_sum_conv_conv", "conv_bias": False},
        loss={"classes": "sigmoid"},
        matching={"rule": "in_order"},
        optimizer={"decay_all": True},
        schedule=MULTISTEP,
    ),
    "resnet": replace(PAPER, network=RESNET, schedule=MULTISTEP),
    "resnet, no L2": replace(
        PAPER, network=RESNET | {"l2_scales": None, "heads": "bottleneck"}, schedule=COSINE
    ),
}
# Two values of every field; one at least differs from that of a configuration.
VALUES = {
    "image_size": [(64, 64), (128, 64)],
    "num_classes": [3, 5],
    "image.channels": ["RGB", "BGR"],
    "image.mean": [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)],
    "image.std": [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)],
    "network.backbone": ["vgg16", "resnet"],
    "network.width": [1 / 32, 1 / 16],
    "network.blocks": [(2, 1, 1, 1), (1, 1, 2, 1)],
    "network.bottleneck_stride": ["1x1", "3x3"],
    "network.same_padding": [True, False],
    "network.pool_centred": [True, False],
    "network.extra_width": [64, 192],
    "network.residual_gamma": [0.5, 0.25],
    "network.batch_norm": [True, False],
    "network.batch_norm_eps": [1e-3, 1e-2],
    "network.batch_norm_momentum": [0.5, 0.25],
    "network.head_momentum": [0.75, 0.25],
    "network.upsample_batch_norm": [True, False],
    "network.tcb_channels": [64, 128],
    "network.l2_scales": [(1.0, 2.0), (3.0, 4.0)],
    "network.l2_eps": [1e-3, 1e-2],
    "network.l2_floor": [True, False],
    "network.l2_in_arm": [True, False],
    "network.conv_bias": [True, False],
    "network.fc7_relu": [True, False],
    "network.tcb": ["sum_relu_conv", "relu_sum_conv_conv"],
    "network.heads": ["conv", "separable", "bottleneck"],
    "network.initialiser": ["xavier", "gaussian", "normal"],
    "anchors.strides": [(8, 16, 32, 128), (4, 8, 16, 32)],
    "anchors.sides": [(10.0, 20.0, 30.0, 40.0), (9.0, 18.0, 27.0, 36.0)],
    "anchors.aspect_ratios": [(3.0,), (1.0, 3.0)],
    "anchors.variances": [(0.2, 0.2), (0.1, 0.1)],
    "anchors.square_sides": [(10.0, 20.0, 30.0, 40.0), (9.0, 18.0, 27.0, 36.0)],
    "anchors.refined": [True, False],
    "matching.iou": [0.3, 0.2],
    "matching.lowest_iou": [0.2, 0.3],
    "matching.rule": ["bipartite", "in_order"],
    "loss.negatives_per_positive": [1.0, 2.0],
    "loss.objectness": [0.4, 0.6],
    "loss.classes": ["softmax", "sigmoid"],
    "loss.focal_alpha": [0.25, 0.5],
    "loss.focal_gamma": [0.0, 1.0],
    "loss.arm_first_class": [True, False],
    "detection.score": [0.5, 0.6],
    "detection.top_before_nms": [3, 5],
    "detection.top_before_nms_per_class": [1, 2],
    "detection.nms_iou": [0.0, 0.1],
    "detection.top_per_class": [1, 2],
    "detection.top": [1, 2],
    "detection.clip": [True, False],
    "detection.clip_first": [True, False],
    "detection.pixel": [1.0, 0.5],
    "optimizer.momentum": [0.5, 0.25],
    "optimizer.weight_decay": [0.5, 0.25],
    "optimizer.bias_rate": [3.0, 4.0],
    "optimizer.clip_norm": [1e-3, 1e-2],
    "optimizer.loss_scale": [3.0, 5.0],
    "optimizer.decay_all": [True, False],
    "optimizer.precision": ["float32", "float16"],
    "optimizer.loss_scale_window": [1, 2],
    "schedule.kind": ["multistep", "cosine"],
    "schedule.steps": [25, 30],
    "schedule.rate": [0.5, 0.25],
    "schedule.warmup_steps": [3, 4],
    "schedule.warmup_rate": [0.01, 0.02],
    "schedule.milestones": [(8,), (12,)],
    "schedule.factor": [0.5, 0.25],
    "schedule.final_rate": [1e-4, 1e-5],
}


def parts(config):
    """What the specification computes with a configuration, part by part, as bytes."""
    rng = np.random.default_rng(7)
    image = rng.integers(0, 256, (*config.image_size, 3), np.uint8)
    yield normalise(image, config.image).tobytes()
    yield anchors(config).tobytes()
    yield [learning_rate(step, config.schedule) for step in range(config.schedule.steps)]
    count, classes = len(anchors(config)), config.num_classes
    shapes = [(1, count, width) for width in (4, 2, 4, classes)]
    heads = Heads(*(rng.normal(size=shape) for shape in shapes))
    yield [array.tobytes() for array in detections(heads, config, (4, 8))[0]]
    parameters = {n: p.astype(np.float64) for n, p in initial_parameters(config, 1).items()}
    yield list(parameters), [p.tobytes() for p in parameters.values()]
    parameters = {n: p + rng.uniform(-0.01, 0.01, p.shape) for n, p in parameters.items()}
    trained = trained_parameters(config)
    buffers = {p.name: rng.normal(size=p.shape) for p in trained}
    images = rng.normal(size=(1, 3, *config.image_size))
    # The last two are small, and the same anchor is the best of both.
    corners = [(0.1, 0.2, 0.5, 0.9), (0.15, 0.2, 0.5, 0.8), (0.7, 0.7, 0.74, 0.76)]
    objects = np.array([*corners, (0.7, 0.7, 0.73, 0.75)])
    labels = np.array([1, 2, 2, 1])
    scale = LossScale(config.optimizer.scale)
    step = training_step(parameters, buffers, images, [objects], [labels], 0, config, scale)
    for arrays in (step.parameters, step.momentum_buffers):
        yield [array.tobytes() for array in arrays.values()]
    yield step.scale, step.loss.total
    yield next_loss_scale(scale, True, config.optimizer.loss_scale_window)


@functools.cache
def all_parts(name):
    return list(parts(CONFIGS[name]))


def differs(name, changed):
    return any(a != b for a, b in itertools.zip_longest(parts(changed), all_parts(name)))


def value_of(config, key):
    return functools.reduce(getattr, key.split("."), config)


def with_value(config, key, value):
    section, dot, field = key.rpartition(".")
    return replace(config, **{section: {field: value}} if dot else {key: value})


# Their rules forbid what could be computed: a softmax would need a label beyond the ARM's two
# columns, and a float32 gradient has no overflow that a loss scale could follow.
MEANINGLESS = ("loss.arm_first_class", "optimizer.loss_scale_window")


def forced(config, key, value):
    """The configuration with a value that it refuses."""
    section, field = key.split(".")
    changed, part = copy.copy(config), copy.copy(getattr(config, section))
    object.__setattr__(part, field, value)
    object.__setattr__(changed, section, part)
    return changed


def test_the_table_of_values_has_every_field():
    sections = {f.name: getattr(Config(), f.name) for f in dataclasses.fields(Config)}
    assert list(VALUES) == [
        key
        for name, section in sections.items()
        for key in (
            [f"{name}.{f.name}" for f in dataclasses.fields(section)]
            if dataclasses.is_dataclass(section)
            else [name]
        )
    ]


def outcome(name, key, value):
    """``read``, ``unread``, ``refused`` for another reason, or ``ignored``: no change at all."""
    try:
        changed = with_value(CONFIGS[name], key, value)
    except SpecError as error:
        # Else it is another field that has no meaning with this value.
        if error.key != key or "is not read with" not in error.reason:
            return "refused"
        return "unread"
    return "read" if differs(name, changed) else "ignored"


@pytest.mark.parametrize("key", VALUES)
def test_a_field_changes_something_or_else_it_is_refused(key):
    seen = set()
    for name, config in CONFIGS.items():
        values = [value for value in VALUES[key] if value != value_of(config, key)]
        outcomes = {outcome(name, key, value) for value in values}
        assert outcomes != {"ignored"}, name
        if "unread" in outcomes:
            assert len(outcomes) == 1, name
            assert key in MEANINGLESS or not differs(name, forced(config, key, values[0])), name
        seen |= outcomes
    assert ("refused" if key == "anchors.strides" else "read") in seen
    section, _, field = key.rpartition(".")
    rules = RULES.get(f"{section.capitalize()}Config", ())
    assert ("unread" in seen) == any(field in rule.fields for rule in rules)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            "refinedet_vgg16_320",
            {"network": {"blocks": (1, 1, 1, 1)}},
            "network.blocks: is not read with backbone vgg16; leave it out",
        ),
        (
            "refinedet_vgg16_320",
            {"network": {"residual_gamma": 0.0}},
            "network.residual_gamma: is not read with backbone vgg16, heads conv; leave it out",
        ),
        (
            "refinedet_resnet101_320",
            {"network": {"fc7_relu": False}},
            "network.fc7_relu: is not read with backbone resnet; leave it out",
        ),
        (
            "refinedet_resnet101_320",
            {"network": {"l2_eps": 1e-3}},
            "network.l2_eps: is not read with l2_scales null; leave it out",
        ),
        (
            "refinedet_vgg16_320",
            {"anchors": {"aspect_ratios": (0.5, 2.0), "square_sides": (8.0, 16.0, 32.0, 64.0)}},
            "anchors.square_sides: is not read with aspect_ratios [0.5, 2.0]; leave it out",
        ),
        (
            "refinedet_vgg16_320",
            {"loss": {"arm_first_class": True}},
            "loss.arm_first_class: is not read with classes softmax; leave it out",
        ),
        (
            "modelzoo_vgg16_320",
            {"detection": {"clip": False}},
            "detection.clip: is not read with clip_first true; leave it out",
        ),
        (
            "refinedet_vgg16_320",
            {"optimizer": {"loss_scale_window": 1}},
            "optimizer.loss_scale_window: is not read with precision float32; leave it out",
        ),
        (
            "refinedet_vgg16_320",
            {"schedule": {"milestones": (), "factor": 0.5}},
            "schedule.factor: is not read with kind multistep, milestones []; leave it out",
        ),
        (
            "refinedet_vgg16_320",
            {"schedule": {"warmup_rate": 0.5}},
            "schedule.warmup_rate: is not read with warmup_steps 0; leave it out",
        ),
    ],
)
def test_the_error_names_the_field_and_what_decides(config, changes, message):
    with refused(message):
        replace(PRESETS[config], **changes)


def test_one_milestone_has_a_factor_and_drawn_scales_are_of_one_initialiser_alone():
    assert ScheduleConfig(milestones=(8,), factor=0.5).factor == 0.5
    for initialiser in ("xavier", "gaussian"):
        assert NetworkConfig(initialiser=initialiser, l2_scales=(1.0, 2.0)).l2_scales == (1, 2)


@pytest.mark.parametrize(
    "others", [{"batch_norm": True}, {"upsample_batch_norm": True}, {"backbone": "resnet"}]
)
def test_heads_may_have_another_momentum_than_the_rest(others):
    momenta = {"head_momentum": 0.5, "batch_norm_momentum": 0.75}
    assert NetworkConfig(heads="separable", **momenta, **others).batch_norm_momentum == 0.75
    with refused(
        "network.batch_norm_momentum: is not read with backbone vgg16, batch_norm false, "
        "upsample_batch_norm false, head_momentum 0.5; leave it out"
    ):
        NetworkConfig(heads="separable", **momenta)


def test_no_scales_and_no_milestones_are_always_legal():
    assert NetworkConfig(initialiser="normal", l2_scales=None).l2_scales is None
    assert ScheduleConfig("cosine", milestones=()).milestones == ()


def test_the_default_of_a_field_that_is_not_read_is_always_legal():
    """A cosine schedule may have a warm-up that reaches beyond the default milestones."""
    assert ScheduleConfig("cosine", warmup_steps=90_000).milestones == (80_000, 100_000)


def test_unread_asks_the_values_of_a_section_that_need_not_exist():
    values = type("Values", (), {**vars(ScheduleConfig()), "kind": "cosine", "factor": 0.5})
    reason = "is not read with kind cosine, milestones [80000, 100000]; leave it out"
    assert unread(ScheduleConfig, values) == {"factor": reason}
    assert unread(Config, Config()) == {}
    assert unread(ScheduleConfig, values, {}) == {}


def test_what_replace_does_not_name_returns_to_its_default_where_it_is_not_read():
    resnet = replace(Config(), network={"backbone": "resnet", "blocks": (1, 1, 1, 1)})
    assert replace(resnet, network={"backbone": "vgg16"}).network == NetworkConfig()
    assert replace(resnet, network={"width": 0.5}).network.blocks == (1, 1, 1, 1)
    with refused("network.blocks: is not read with backbone vgg16; leave it out"):
        replace(resnet, network={"backbone": "vgg16", "blocks": (1, 1, 1, 1)})
