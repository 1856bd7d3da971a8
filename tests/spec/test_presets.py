"""Presets: number by number, as published."""

import dataclasses

import pytest

from refinedet.spec.config import (
    AnchorsConfig,
    DetectionConfig,
    ImageConfig,
    LossConfig,
    MatchingConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
    replace,
)
from refinedet.spec.presets import PRESETS, preset

from .strategies import refused


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_one_that_can_run(name):
    config = preset(name)
    assert config is PRESETS[name]
    assert dataclasses.replace(config) == config  # checked once more


def test_an_unknown_preset_lists_the_known():
    known = (
        "refinedet_vgg16_320, refinedet_vgg16_512, refinedet_resnet101_320, "
        "refinedet_resnet101_512, modelzoo_vgg16_320, modelzoo_vgg16_512, "
        "modelzoo_resnet101_320, modelzoo_resnet101_512, refinedet_quarter_320, "
        "refinedet_eighth_128, modelzoo_eighth_128"
    )
    with refused(f"preset: no 'refinedet_320'; there are {known}"):
        preset("refinedet_320")


@pytest.mark.parametrize(("name", "size"), [("320", (320, 320)), ("512", (512, 512))])
def test_the_papers_presets(name, size):
    """arXiv:1711.06897, sections 3.2 to 4, and the solver of the authors' VOC07 release."""
    config = preset(f"refinedet_vgg16_{name}")
    assert config.image_size == size
    assert config.num_classes == 81  # COCO's 80 and the background
    assert config.image == ImageConfig("BGR", (104, 117, 123), (1, 1, 1))
    net = config.network
    assert (net.backbone, net.width, net.tcb_channels) == ("vgg16", 1, 256)
    assert (net.batch_norm, net.batch_norm_eps, net.batch_norm_momentum) == (False, 1e-5, 0.9)
    assert (net.l2_scales, net.l2_eps) == ((10, 8), 1e-10)
    assert net == NetworkConfig()
    sides = (32, 64, 128, 256)  # 4 strides, at both input sizes
    assert config.anchors == AnchorsConfig((8, 16, 32, 64), sides, (1, 2, 0.5), (0.1, 0.2))
    assert config.matching == MatchingConfig(0.5, 1e-6)
    assert config.loss == LossConfig(3, 0.01)
    # Section 3.3, inference: the top 400, suppression at 0.45, the top 200.
    assert config.detection == DetectionConfig(0.01, 400, None, 0.45, None, 200, True)
    assert config.optimizer == OptimizerConfig(0.9, 5e-4, 2, None)
    milestones = (80_000, 100_000)
    assert config.schedule == ScheduleConfig("multistep", 120_000, 1e-3, 0, 0, milestones, 0.1, 0)


def test_the_papers_presets_have_nothing_of_the_model_zoo():
    plain = preset("refinedet_vgg16_320")
    net, anchors, loss, found = plain.network, plain.anchors, plain.loss, plain.detection
    assert (net.l2_floor, net.l2_in_arm, net.conv_bias, net.fc7_relu) == (False, True, True, True)
    assert (net.tcb, net.heads, net.initialiser) == ("sum_relu_conv", "conv", "xavier")
    assert (anchors.square_sides, anchors.refined) == (None, True)
    assert plain.matching.rule == "bipartite"
    assert (loss.classes, loss.arm_first_class) == ("softmax", False)
    assert (loss.focal_alpha, loss.focal_gamma) == (0.75, 2)
    assert (found.clip_first, found.pixel) == (False, 0)
    assert plain.optimizer.decay_all is False


def test_the_model_zoos_presets():
    """Every number in which the family differs from the paper."""
    zoo, large = preset("modelzoo_vgg16_320"), preset("modelzoo_vgg16_512")
    assert (zoo.image_size, large.image_size) == ((320, 320), (512, 512))
    assert zoo.num_classes == 81
    assert zoo.image == ImageConfig("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    net = zoo.network
    assert (net.width, net.batch_norm, net.tcb_channels) == (1, False, 256)
    assert (net.batch_norm_eps, net.batch_norm_momentum, net.l2_eps) == (1e-3, 0.97, 1e-10)
    assert (net.l2_floor, net.l2_in_arm, net.conv_bias, net.fc7_relu) == (True, False, False, False)
    assert zoo.anchors.sides == (64, 144, 224, 304)
    assert zoo.anchors.square_sides == (32, 144, 224, 304)
    assert large.anchors.sides == (102.4, 230.4, 358.4, 486.4)
    assert large.anchors.square_sides == (51.2, 230.4, 358.4, 486.4)
    assert not zoo.anchors.refined
    assert (zoo.loss.objectness, zoo.loss.classes, zoo.loss.arm_first_class) == (0, "sigmoid", True)
    assert zoo.detection == DetectionConfig(0.1, None, None, 0.6, 100, None, True, True, 1)
    assert zoo.optimizer == OptimizerConfig(0.9, 1.5e-4, 1, None, None, True)
    assert zoo.schedule == ScheduleConfig("cosine", 229_000, 0.05, 916, 0.001, (), 0.1, 5e-5)


@pytest.mark.parametrize(
    ("name", "size", "width", "sides"),
    [
        ("refinedet_quarter_320", (320, 320), 0.25, (32, 64, 128, 256)),
        ("refinedet_eighth_128", (128, 128), 0.125, (16, 32, 64, 128)),
    ],
)
def test_the_narrow_presets_train_from_scratch(name, size, width, sides):
    config = preset(name)
    assert config.image_size == size
    assert config.network == NetworkConfig(width=width, batch_norm=True, l2_scales=(2, 2))
    assert config.anchors == AnchorsConfig(sides=sides)
    assert config.optimizer == OptimizerConfig(bias_rate=1, clip_norm=10)
    assert config.schedule == ScheduleConfig(
        "cosine", 600, 0.03, warmup_steps=30, warmup_rate=0.001, milestones=()
    )
    assert config.loss == LossConfig()
    assert config.detection == DetectionConfig()


def test_the_model_zoos_narrow_preset_has_its_familys_ways():
    zoo, narrow = preset("modelzoo_vgg16_320"), preset("modelzoo_eighth_128")
    assert narrow.image_size == (128, 128)
    own = {"width": 0.125, "batch_norm": True}
    assert narrow.network == replace(zoo, network=own).network
    assert narrow.anchors.sides == (25.6, 57.6, 89.6, 121.6)  # 0.2, 0.45, 0.7, 0.95 of 128
    assert narrow.anchors.square_sides == (12.8, 57.6, 89.6, 121.6)
    assert not narrow.anchors.refined
    assert narrow.optimizer == OptimizerConfig(0.9, 1.5e-4, 1, 10, None, True)
    assert narrow.schedule == preset("refinedet_eighth_128").schedule
    for section in ("image", "matching", "loss", "detection"):
        assert getattr(narrow, section) == getattr(zoo, section)
