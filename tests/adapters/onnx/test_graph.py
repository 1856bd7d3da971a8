"""The graph is the specification's network: every kind of layer, any batch, valid ONNX."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from numpy.testing import assert_allclose

from refinedet.adapters.onnx.export import HEADS, SCORED_BOXES, detector
from refinedet.adapters.onnx.network import session_of
from refinedet.conformance import inputs
from refinedet.conformance.checks.network import (
    LIKE_THE_ZOO,
    RESNET_OF_THE_PAPER,
    RESNET_OF_THE_ZOO,
    WITH_BATCH_NORM,
    WITH_BIASES,
    cases,
)
from refinedet.conformance.margin import is_arm_filter_decided
from refinedet.spec.anchors import anchors
from refinedet.spec.config import replace
from refinedet.spec.detection import scored_boxes
from refinedet.spec.network import forward, parameter_table

DETECTORS = {
    "batch norm": WITH_BATCH_NORM,
    "biases, two ratios": WITH_BIASES,
    "silent anchors": replace(WITH_BATCH_NORM, loss={"objectness": 0.5}),
    "zoo": LIKE_THE_ZOO,
    "fc7 before its ReLU, normalised for the ARM": replace(
        WITH_BIASES, network={"fc7_relu": False, "l2_floor": True}
    ),
    "resnet of the paper": RESNET_OF_THE_PAPER,
    "resnet of the zoo": RESNET_OF_THE_ZOO,
    "resnet, pooling centred": replace(RESNET_OF_THE_PAPER, network={"pool_centred": True}),
    "resnet, sparse heads": replace(RESNET_OF_THE_PAPER, network={"heads": "separable"}),
}


def agrees(config, number, count, session):
    """The session's outputs for so many images are the specification's."""
    parameters = inputs.seeded_parameters(config, number)
    images = inputs.seeded_images(config, count, number)
    heads, _ = forward(parameters, images, config)
    *actual, boxes, scores = session.run([*HEADS, *SCORED_BOXES], {"images": images})
    for name, mine, expected in zip(HEADS, actual, heads, strict=True):
        assert (mine.shape, mine.dtype) == (expected.shape, np.float32), name
        assert_allclose(mine, expected, atol=1e-5, rtol=1e-5, err_msg=name)
    expected_boxes, expected_scores = scored_boxes(heads, config)
    assert_allclose(boxes, expected_boxes, atol=1e-5, rtol=1e-5)
    sure = is_arm_filter_decided(heads, config, number)
    assert sure.mean() > 0.98
    assert scores.shape == expected_scores.shape
    assert_allclose(scores[sure], expected_scores[sure], atol=1e-5, rtol=1e-5)


def session_for(config, number):
    model = detector(config, inputs.seeded_parameters(config, number), HEADS + SCORED_BOXES)
    return session_of(model.SerializeToString())


@pytest.mark.parametrize("config", DETECTORS.values(), ids=DETECTORS)
def test_any_batch_gives_the_contracts_outputs(config):
    session = session_for(config, 1)
    for count in (3, 1):
        agrees(config, 1, count, session)


@seed(0)
@settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_drawn_detectors_give_the_contracts_outputs(case):
    config, number, count = case
    agrees(config, number, count, session_for(config, number))


@pytest.mark.parametrize("config", DETECTORS.values(), ids=DETECTORS)
@pytest.mark.parametrize("outputs", [HEADS, SCORED_BOXES], ids=["heads", "scored boxes"])
def test_the_model_is_valid_and_its_shapes_are_known(config, outputs):
    model = detector(config, inputs.seeded_parameters(config, 0), outputs)
    onnx.checker.check_model(model, full_check=True)
    found = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    known = {value.name for value in found.graph.value_info} | set(outputs)
    assert {name for node in found.graph.node for name in node.output} == known
    rows, classes = len(anchors(config)), config.num_classes
    widths = dict(zip((*HEADS, *SCORED_BOXES), (4, 2, 4, classes, 4, classes), strict=True))
    assert shapes(found.graph.input) == {"images": ["N", 3, *config.image_size]}
    assert shapes(found.graph.output) == {name: ["N", rows, widths[name]] for name in outputs}


def shapes(values):
    """Names and shapes of float32 tensors."""
    assert {v.type.tensor_type.elem_type for v in values} == {onnx.TensorProto.FLOAT}
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values
    }


def test_parameters_keep_their_names():
    config = RESNET_OF_THE_ZOO
    parameters = inputs.seeded_parameters(config, 0)
    stored = {t.name: t for t in detector(config, parameters, HEADS).graph.initializer}
    for p in parameter_table(config):
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(stored[p.name]), parameters[p.name]
        )


def test_the_opset_is_one_that_converters_read():
    model = detector(WITH_BATCH_NORM, inputs.seeded_parameters(WITH_BATCH_NORM, 0), HEADS)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13)]
    assert model.ir_version == 7
