"""The architecture of ResNets in both families: published figures and layers.

Figures: counted on the authors' and the model zoo's networks by others. Layers:
arXiv:1512.03385, table 1, 101 layers; the extra block and the heads of the authors'
``ResNet101_COCO_320.py``; the model zoo's ``resnet101_for_refinedet.py``.
"""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from refinedet.spec.architecture import Conv, Pool, trunk, upsampling
from refinedet.spec.config import replace
from refinedet.spec.network import initial_parameters, parameter_count, parameter_table
from refinedet.spec.presets import preset

from .strategies import tiny

HEADS = ("offsets", "logits")


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


def test_how_weights_begin():
    """Which of them are drawn how; scales of the L2 normalisation are numbers but in the zoo."""

    def drawn(config, ending):
        return {p.initialiser for p in parameter_table(config) if p.name.endswith(ending)}

    paper = preset("refinedet_resnet101_320")
    assert drawn(paper, ".weight") == {"gaussian", "xavier"}
    scaled = replace(paper, network={"l2_scales": (10.0, 8.0)})
    assert drawn(scaled, ".l2_scale") == {10.0, 8.0}
    for name in ("modelzoo_vgg16_320", "modelzoo_resnet101_320"):
        assert drawn(preset(name), (".weight", ".l2_scale")) == {"normal"}


def test_a_plain_convolution_is_3x3_with_a_bias_and_keeps_the_size():
    # Kernel, stride, padding, dilation, far; batch normalisation, its momentum, its gamma.
    expected = ("x", 3, 8, 3, 1, 1, 1, 0, False, 0.9, 1.0, True, False, False)
    assert Conv("x", 3, 8) == expected


def test_pooling_and_upsampling():
    paper, zoo = preset("refinedet_resnet101_320"), preset("modelzoo_resnet101_320")
    centred = replace(paper, network={"pool_centred": True})
    assert [trunk(config)[0][1] for config in (paper, zoo, centred)] == [
        Pool(3, before=0),
        Pool(3, before=0),
        Pool(3, before=1),
    ]
    assert [step for step in trunk(preset("refinedet_vgg16_320"))[0] if isinstance(step, Pool)] == [
        (2, 0)
    ] * 3
    for config in (paper, zoo):
        up = upsampling(2, config)
        assert (up.kernel, up.stride, up.padding, up.transposed) == (2, 2, 0, True)


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


def test_initial_parameters():
    config = tiny(
        network={
            "backbone": "resnet",
            "blocks": (1, 2, 1, 2),
            "width": 1 / 32,
            "heads": "bottleneck",
            "initialiser": "gaussian",
            "residual_gamma": 0.25,
        }
    )
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
