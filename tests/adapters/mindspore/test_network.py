"""The detector in MindSpore gives the specification's outputs."""

import numpy as np
import pytest

from refinedet.adapters.mindspore.backend import MindSporeCPU
from refinedet.spec import network as spec
from refinedet.spec.config import replace
from refinedet.spec.detection import scored_boxes
from refinedet.spec.presets import preset

BASE = replace(
    preset("refinedet_eighth_128"),
    image_size=(64, 128),
    num_classes=4,
    optimizer={"clip_norm": None, "bias_rate": 2.0},
    schedule={"steps": 40, "warmup_steps": 4},
)
CONFIGS = {"batch norm": BASE, "biases": replace(BASE, network={"batch_norm": False})}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_heads_and_scored_boxes_are_the_specifications(config, parameters_of, batch_of):
    parameters = parameters_of(config)
    images = batch_of(config)[0].images
    network = MindSporeCPU().network(config, parameters)
    want, _ = spec.forward(parameters, images, config)
    for actual, expected in zip(network.heads(images), want, strict=True):
        assert (actual.shape, actual.dtype) == (expected.shape, np.float32)
        np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=2e-5)
    for actual, expected in zip(
        network.scored_boxes(images), scored_boxes(want, config), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=2e-5)


def test_parameters_have_canonical_names_and_shapes():
    from refinedet.adapters.mindspore.network import Detector

    for config in (BASE, CONFIGS["biases"], preset("refinedet_vgg16_320")):
        actual = {p.name: tuple(p.shape) for p in Detector(config).get_parameters()}
        assert actual == {p.name: p.shape for p in spec.parameter_table(config)}
