"""ResNets in both families: published figures, and a second opinion on the whole.

Figures: counted on the authors' and the model zoo's networks by others. Layers:
arXiv:1512.03385, table 1, 101 layers; the extra block and the heads of the authors'
``ResNet101_COCO_320.py``; the model zoo's ``resnet101_for_refinedet.py``.
"""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from refinedet.spec.config import preset, replace
from refinedet.spec.network import (
    Heads,
    forward,
    forward_and_back,
    initial_parameters,
    parameter_count,
    parameter_table,
)

from .strategies import tiny

PAPER = {
    "backbone": "resnet",
    "batch_norm": True,
    "upsample_batch_norm": True,
    "l2_scales": None,
    "heads": "bottleneck",
}
ZOO = {
    "backbone": "resnet",
    "bottleneck_stride": "3x3",
    "same_padding": True,
    "extra_width": 32,
    "l2_floor": True,
    "l2_in_arm": False,
    "conv_bias": False,
    "tcb": "relu_sum_conv_conv",
    "heads": "separable",
    "head_momentum": 0.5,
}
TORCHVISION = PAPER | {"bottleneck_stride": "3x3", "pool_centred": True}
FAMILIES = {"paper": PAPER, "zoo": ZOO, "torchvision": TORCHVISION}


def small(family):
    shape = {"width": 1 / 32, "blocks": (1, 2, 1, 2), "tcb_channels": 64}
    sizes = {"batch_norm_eps": 0.01, "batch_norm_momentum": 0.8}
    return tiny(network=shape | sizes | FAMILIES[family])


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# Published figures


@pytest.mark.parametrize(
    ("name", "trained", "running"),
    [
        ("refinedet_resnet101", 82_451_588, None),
        ("modelzoo_resnet101", 60_803_844, 128_000),
    ],
)
def test_published_counts(name, trained, running):
    for size in (320, 512):
        config = preset(f"{name}_{size}")
        assert config.image_size == (size, size)
        assert config.num_classes == 81
        assert parameter_count(config) == trained
        statistics = [p for p in parameter_table(config) if p.group == "statistic"]
        if running:
            assert sum(math.prod(p.shape) for p in statistics) == running


def test_the_presets_differ_from_those_of_vgg16_in_the_network_and_the_schedule_alone():
    for family in ("refinedet", "modelzoo"):
        for size in (320, 512):
            vgg, resnet = (preset(f"{family}_{kind}_{size}") for kind in ("vgg16", "resnet101"))
            assert replace(vgg, network={}) == vgg
            changed = {"network": resnet.network, "schedule": resnet.schedule}
            assert replace(vgg, **changed) == resnet
            assert resnet.network.blocks == (3, 4, 23, 3)
    assert preset("modelzoo_vgg16_512").schedule == preset("modelzoo_resnet101_512").schedule
    # The authors' solvers for COCO: batches of 32, and of 20 at 512.
    schedules = [preset(f"refinedet_resnet101_{size}").schedule for size in (320, 512)]
    assert [(s.steps, s.milestones) for s in schedules] == [
        (400_000, (280_000, 360_000)),
        (540_000, (400_000, 480_000)),
    ]


def test_the_model_zoos_network_field_by_field():
    net = preset("modelzoo_resnet101_320").network
    assert (net.bottleneck_stride, net.same_padding, net.pool_centred) == ("3x3", True, False)
    assert (net.extra_width, net.residual_gamma, net.l2_scales) == (32, 0, (10, 8))
    assert (net.batch_norm, net.upsample_batch_norm, net.batch_norm_eps) == (False, False, 1e-3)
    assert (net.batch_norm_momentum, net.head_momentum) == (0.997, 0.97)
    assert (net.heads, net.tcb, net.initialiser) == ("separable", "relu_sum_conv_conv", "normal")
    assert (net.l2_floor, net.l2_in_arm, net.conv_bias, net.fc7_relu) == (True, False, False, True)


def test_the_papers_network_field_by_field():
    net = preset("refinedet_resnet101_320").network
    assert (net.bottleneck_stride, net.same_padding, net.pool_centred) == ("1x1", False, False)
    assert (net.extra_width, net.residual_gamma, net.l2_scales) == (128, 1, None)
    assert (net.batch_norm, net.upsample_batch_norm, net.batch_norm_eps) == (True, True, 1e-5)
    assert (net.batch_norm_momentum, net.head_momentum) == (0.999, None)
    assert (net.heads, net.tcb, net.initialiser) == ("bottleneck", "sum_relu_conv", "gaussian")


# The table of parameters


def bottleneck(name, inputs, inner, outputs, projected):
    yield f"{name}.conv1", (inner, inputs, 1, 1)
    yield f"{name}.conv2", (inner, inner, 3, 3)
    yield f"{name}.conv3", (outputs, inner, 1, 1)
    if projected:
        yield f"{name}.projection", (outputs, inputs, 1, 1)


def listed_trunk(extra):
    yield "backbone.conv1", (64, 3, 7, 7)
    inputs = 64
    for stage, inner, count in ((2, 64, 3), (3, 128, 4), (4, 256, 23), (5, 512, 3)):
        for n in range(1, count + 1):
            yield from bottleneck(f"backbone.res{stage}_{n}", inputs, inner, 4 * inner, n == 1)
            inputs = 4 * inner
    yield from bottleneck("backbone.res6_1", 2048, extra, 512, True)


@pytest.mark.parametrize(("name", "extra"), [("refinedet", 128), ("modelzoo", 32)])
def test_the_table_lists_the_published_layers_in_order(name, extra):
    table = parameter_table(preset(f"{name}_resnet101_320"))
    weights = {p.name.removesuffix(".weight"): p.shape for p in table if len(p.shape) == 4}
    listed = dict(listed_trunk(extra))
    assert list(weights.items())[: len(listed)] == list(listed.items())
    assert weights["tcb.0.lateral1"] == (256, 512, 3, 3)
    assert weights["tcb.2.lateral1"] == (256, 2048, 3, 3)
    assert weights["tcb.3.lateral1"] == (256, 512, 3, 3)
    scales = {p.name: (p.shape, p.initialiser) for p in table if "l2_scale" in p.name}
    zoo = {"backbone.res3_4.l2_scale": ((512,), "normal")}
    zoo["backbone.res4_23.l2_scale"] = ((1024,), "normal")
    assert scales == (zoo if name == "modelzoo" else {})
    if name == "refinedet":
        for n, inputs in enumerate((512, 1024, 2048, 512)):
            heads = dict(bottleneck(f"arm.{n}.shared", inputs, 256, 1024, True))
            assert {k: v for k, v in weights.items() if k.startswith(f"arm.{n}.shared")} == heads
        assert weights["odm.1.shared.projection"] == (1024, 256, 1, 1)
        assert weights["odm.1.offsets"] == (12, 1024, 3, 3)
        assert weights["arm.3.logits"] == (6, 1024, 3, 3)


def test_what_has_a_bias_and_what_batch_normalisation():
    paper = [p.name for p in parameter_table(preset("refinedet_resnet101_320"))]
    outputs = [f"{m}.{n}.{o}" for m in ("arm", "odm") for n in range(4) for o in HEADS]
    assert [n.removesuffix(".bias") for n in paper if n.endswith("bias")] == outputs
    assert "tcb.1.upsample.gamma" in paper
    zoo = [p.name for p in parameter_table(preset("modelzoo_resnet101_320"))]
    assert [n.removesuffix(".bias") for n in zoo if n.endswith("bias")] == outputs
    assert {n.split(".")[0] for n in zoo if n.endswith("gamma")} == {"backbone", "arm", "odm"}


HEADS = ("offsets", "logits")


def test_initial_parameters():
    config = small("paper")
    config = replace(config, network={"initialiser": "gaussian", "residual_gamma": 0.25})
    parameters = initial_parameters(config, 0)
    drawn = np.concatenate(
        [parameters[p.name].ravel() for p in parameter_table(config) if p.initialiser == "gaussian"]
    )
    assert_allclose(drawn.std(), 0.01, rtol=0.01)
    assert_allclose(drawn.mean(), 0, atol=2e-4)
    heads = parameters["arm.0.offsets.weight"]  # no batch normalisation behind it: xavier
    assert abs(heads).max() <= math.sqrt(3 / math.prod(heads.shape[1:]))
    assert heads.std() > 0.03
    gammas = {n: set(v.tolist()) for n, v in parameters.items() if n.endswith("gamma")}
    assert gammas["backbone.res3_2.conv3.gamma"] == gammas["odm.2.shared.conv3.gamma"] == {0.25}
    assert gammas["backbone.res3_2.conv2.gamma"] == {1.0}
    assert gammas["backbone.res3_1.projection.gamma"] == gammas["backbone.conv1.gamma"] == {1.0}


# A second opinion on the whole


def other_opinion(p, pictures, family, training):
    """The four outputs, and the running statistics, from the published descriptions."""
    config = small(family)
    seen = {}

    def window(x, kernel, stride, before, behind, value=0.0):
        sides = (before, behind)
        x = np.pad(x, ((0, 0), (0, 0), sides, sides), constant_values=value)
        windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))
        return windows[:, :, ::stride, ::stride]

    def normal(name, y, momentum=0.8):
        mean, variance = p[f"{name}.moving_mean"], p[f"{name}.moving_variance"]
        if training:
            flat = np.moveaxis(y, 1, 3).reshape(-1, y.shape[1])
            fresh = flat.var(axis=0, ddof=1) if len(flat) > 1 else flat.var(axis=0)
            seen[f"{name}.moving_mean"] = momentum * mean + (1 - momentum) * flat.mean(axis=0)
            seen[f"{name}.moving_variance"] = momentum * variance + (1 - momentum) * fresh
            mean, variance = flat.mean(axis=0), flat.var(axis=0)
        columns = mean, np.sqrt(variance + 0.01), p[f"{name}.gamma"], p[f"{name}.beta"]
        mean, deviation, gamma, beta = (a[:, None, None] for a in columns)
        return (y - mean) / deviation * gamma + beta

    def conv(name, x, stride=1, same=False):
        w = p[f"{name}.weight"]
        k = w.shape[2]
        before, behind = (k - 2) // 2 if same else k // 2, k // 2
        if k == 1:
            before = behind = 0
        seen_by = window(x, k, stride, before, behind)
        y = np.moveaxis(np.tensordot(seen_by, w, ((1, 4, 5), (1, 2, 3))), 3, 1)
        if f"{name}.bias" in p:
            return y + p[f"{name}.bias"][:, None, None]
        return normal(name, y) if f"{name}.gamma" in p else y

    def positive(x):
        return np.where(x > 0, x, 0)

    def block(name, x, stride=1):
        # Caffe's strides are in the first convolution, the others' in the second.
        first, second = (stride, 1) if family == "paper" else (1, stride)
        y = positive(conv(f"{name}.conv1", x, first))
        y = positive(conv(f"{name}.conv2", y, second, same=family == "zoo" and second == 2))
        y = conv(f"{name}.conv3", y)
        projected = f"{name}.projection.weight" in p
        return positive(y + (conv(f"{name}.projection", x, stride) if projected else x))

    x = positive(conv("backbone.conv1", pictures, 2, same=family == "zoo"))
    sides = (1, 0) if family == "torchvision" else (0, 1)
    x = window(x, 3, 2, *sides, value=-np.inf).max(axis=(4, 5))
    sources = []
    for stage, count in ((2, 1), (3, 2), (4, 1), (5, 2), (6, 1)):
        for n in range(1, count + 1):
            x = block(f"backbone.res{stage}_{n}", x, 2 if stage > 2 and n == 1 else 1)
        if stage > 2:
            sources.append(x)
    inputs = list(sources)
    if family == "zoo":
        for level, name in enumerate(("res3_2", "res4_1")):
            squares = np.maximum((sources[level] ** 2).sum(axis=1, keepdims=True), 1e-10)
            scale = p[f"backbone.{name}.l2_scale"][:, None, None]
            inputs[level] = sources[level] / np.sqrt(squares) * scale

    refined = [None] * 4
    for level in (3, 2, 1, 0):
        x = conv(f"tcb.{level}.lateral2", positive(conv(f"tcb.{level}.lateral1", inputs[level])))
        if level < 3:
            deeper = refined[level + 1]
            w = p[f"tcb.{level}.upsample.weight"]
            up = np.zeros((*x.shape[:2], 2 * deeper.shape[2], 2 * deeper.shape[3]))
            for i, j in np.ndindex(2, 2):
                up[:, :, i::2, j::2] = np.einsum("ncrs,cd->ndrs", deeper, w[:, :, i, j])
            x = x + (positive(up) if family == "zoo" else normal(f"tcb.{level}.upsample", up))
        if family != "zoo" or level == 3:
            x = positive(x)
        x = positive(conv(f"tcb.{level}.output", x))
        if family == "zoo" and level < 3:
            x = positive(conv(f"tcb.{level}.output2", x))
        refined[level] = x

    def output(name, x):
        if family == "zoo":
            w = p[f"{name}.depthwise.weight"]
            y = np.einsum("ncrsij,cij->ncrs", window(x, 3, 1, 1, 1), w[:, 0])
            x = np.minimum(positive(normal(f"{name}.depthwise", y, momentum=0.5)), 6)
        return conv(name, x)

    rows = {}
    for module, features in (("arm", sources), ("odm", refined)):
        rows |= {f"{module}.{kind}": [] for kind in HEADS}
        for level, x in enumerate(features):
            if family != "zoo":
                x = block(f"{module}.{level}.shared", x)
            for kind in HEADS:
                numbers_an_anchor = {"offsets": 4, "logits": 2 if module == "arm" else 4}[kind]
                y = np.moveaxis(output(f"{module}.{level}.{kind}", x), 1, 3)
                rows[f"{module}.{kind}"].append(y.reshape(len(y), -1, numbers_an_anchor))
    assert config.num_classes == 4
    return [np.concatenate(part, axis=1) for part in rows.values()], seen


def lively(config, seed):
    """Parameters of which none is at rest."""
    parameters = {}
    for i, p in enumerate(parameter_table(config)):
        low, high = (0.5, 1.5) if "variance" in p.name or "gamma" in p.name else (-0.5, 0.5)
        parameters[p.name] = np.random.default_rng([seed, i]).uniform(low, high, p.shape)
    return parameters


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_against_a_second_opinion(family, training):
    config = small(family)
    parameters, pictures = lively(config, 0), numbers(1, 2, 3, *config.image_size)
    got, statistics = forward(parameters, pictures, config, training=training)
    want, seen = other_opinion(parameters, pictures, family, training)
    for name, mine, theirs in zip(Heads._fields, got, want, strict=True):
        assert mine.std() > 0.01, name
        assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11, err_msg=name)
    assert set(statistics) == set(seen)
    assert bool(seen) == training
    for name in seen:
        assert_allclose(statistics[name], seen[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("family", ["paper", "zoo"])
def test_the_way_back_is_the_slope_of_the_way_there(family):
    config = small(family)
    parameters, pictures = lively(config, 0), numbers(1, 2, 3, *config.image_size)
    heads, _, back = forward_and_back(parameters, pictures, config)
    weights = Heads(*(numbers(5 + i, *head.shape) for i, head in enumerate(heads)))
    gradients = back(weights)
    direction = {n: numbers([7, i], *g.shape) for i, (n, g) in enumerate(gradients.items())}

    def total(names, step):
        moved = {n: parameters[n] + step * direction[n] for n in names}
        outputs, _ = forward(parameters | moved, pictures, config, training=True)
        return sum((w * out).sum() for w, out in zip(weights, outputs, strict=True))

    parts = {name.rsplit(".", 1)[0] for name in gradients}
    for part in sorted(parts):
        names = [n for n in gradients if n.rsplit(".", 1)[0] == part]
        wanted = sum((gradients[n] * direction[n]).sum() for n in names)
        slope = (total(names, 1e-7) - total(names, -1e-7)) / 2e-7
        assert abs(slope - wanted) < 1e-3 * (abs(wanted) + 1), part
