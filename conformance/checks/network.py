"""Level *network*: the same parameters and images give the same outputs.

Small detectors vary everything that a port can get wrong: size and shape of the image, width,
batch normalisation or biases, classes, anchors per cell, and constants large enough to matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from refinedet.conformance import inputs
from refinedet.conformance.comparison import CheckedBackend
from refinedet.conformance.margin import is_arm_filter_decided
from refinedet.conformance.registry import check
from refinedet.spec.config import NETWORK_CHOICES, Config, replace
from refinedet.spec.detection import scored_boxes
from refinedet.spec.network import forward
from refinedet.spec.presets import preset
from refinedet.spec.types import Array

WITH_BATCH_NORM = replace(
    preset("refinedet_eighth_128"),
    image_size=(64, 128),
    num_classes=4,
    network={"l2_eps": 0.5, "batch_norm_eps": 0.125},
)
WITH_BIASES = replace(
    WITH_BATCH_NORM,
    image_size=(128, 64),
    num_classes=3,
    network={"batch_norm": False, "width": 1 / 16, "tcb_channels": 128},
    anchors={"aspect_ratios": (1.0, 2.0)},
)
LIKE_THE_ZOO = replace(
    WITH_BATCH_NORM,
    network={
        "batch_norm": False,
        "width": 1 / 16,
        "l2_floor": True,
        "l2_in_arm": False,
        "conv_bias": False,
        "fc7_relu": False,
        "tcb": "relu_sum_conv_conv",
        "heads": "separable",
    },
    anchors={"square_sides": (8.0, 32.0, 64.0, 128.0), "refined": False},
    loss={"classes": "sigmoid", "objectness": 0.0, "arm_first_class": True},
)
"""A small detector of the model zoo's family."""
RESNET = {"backbone": "resnet", "blocks": (1, 2, 1, 1), "width": 1 / 16}
RESNET_OF_THE_PAPER = replace(
    WITH_BATCH_NORM,
    network=RESNET | {"upsample_batch_norm": True, "l2_scales": None, "heads": "bottleneck"},
)
RESNET_OF_THE_ZOO = replace(
    LIKE_THE_ZOO,
    network=RESNET
    | {
        "bottleneck_stride": "3x3",
        "same_padding": True,
        "extra_width": 32,
        "head_momentum": 0.5,
        "fc7_relu": True,
    },
)
SMALL = (WITH_BATCH_NORM, WITH_BIASES, LIKE_THE_ZOO, RESNET_OF_THE_PAPER, RESNET_OF_THE_ZOO)
FULL_SIZE = (
    preset("refinedet_vgg16_320"),
    preset("modelzoo_vgg16_320"),
    preset("refinedet_resnet101_320"),
    preset("modelzoo_resnet101_320"),
)


@st.composite
def trunks(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a VGG16 or of a ResNet."""
    if draw(st.booleans()):
        return {"backbone": "vgg16", "fc7_relu": draw(st.booleans())}
    return {
        "backbone": "resnet",
        "blocks": draw(st.sampled_from([(1, 1, 1, 1), (1, 2, 1, 2)])),
        "bottleneck_stride": draw(st.sampled_from(NETWORK_CHOICES["bottleneck_stride"])),
        "same_padding": draw(st.booleans()),
        "pool_centred": draw(st.booleans()),
        "extra_width": draw(st.sampled_from([32, 128])),
    }


@st.composite
def detectors(draw: st.DrawFn) -> Config:
    """Small detectors."""
    return replace(
        WITH_BATCH_NORM,
        image_size=draw(st.sampled_from([(64, 128), (128, 64), (64, 192)])),
        num_classes=draw(st.integers(2, 5)),
        network=inputs.with_drawn(
            WITH_BATCH_NORM.network,
            {
                "width": draw(st.sampled_from([1 / 32, 1 / 16, 1 / 8])),
                "batch_norm": draw(st.booleans()),
                "upsample_batch_norm": draw(st.booleans()),
                "l2_scales": draw(st.sampled_from([(2.0, 2.0), (3.0, 1.0), None])),
                "l2_eps": draw(st.sampled_from([1e-10, 0.5])),
                "l2_floor": draw(st.booleans()),
                "l2_in_arm": draw(st.booleans()),
                "conv_bias": draw(st.booleans()),
                "tcb": draw(st.sampled_from(NETWORK_CHOICES["tcb"])),
                "heads": draw(st.sampled_from(NETWORK_CHOICES["heads"])),
                **draw(trunks()),
            },
        ),
        anchors={"aspect_ratios": draw(st.sampled_from([(1.0,), (1.0, 2.0, 0.5)]))},
    )


Case = tuple[Config, int, int]
"""A detector, the seed of its parameters and images, and how many images."""


def build(case: Case) -> tuple[Any, Array]:
    """Parameters and images of a case."""
    config, seed, count = case
    return inputs.seeded_parameters(config, seed), inputs.seeded_images(config, count, seed)


def cases() -> st.SearchStrategy[Case]:
    """Small detectors, one to three images."""
    return st.tuples(detectors(), st.integers(0, 2**16), st.integers(1, 3))


@check(
    "network",
    "network.heads",
    cases(),
    [(WITH_BIASES, 0, 2), *((config, 0, 1) for config in SMALL)],
    share=0.06,
)
def heads(backend: CheckedBackend, case: Case) -> None:
    """The four raw outputs are the specification's."""
    parameters, images = build(case)
    expected = forward(parameters, images, case[0])[0]
    network = backend.network(case[0], parameters)
    actual = backend.valid("heads", network.heads, expected, images)
    backend.compare("heads", actual, expected)


@check(
    "network",
    "network.full_size",
    pinned=[(config, 0, 1) for config in FULL_SIZE],
)
def full_size(backend: CheckedBackend, case: Case) -> None:
    """The outputs of both families' detectors at full size are the specification's."""
    heads(backend, case)


@check("network", "network.blank_image", pinned=SMALL)
def blank(backend: CheckedBackend, config: Config) -> None:
    """An image of zeros, and one with a single bright pixel, give the specification's outputs."""
    parameters = inputs.seeded_parameters(config, 0)
    images = np.zeros((2, 3, *config.image_size), np.float32)
    images[1, 1, 9, 21] = 1000
    expected = forward(parameters, images, config)[0]
    network = backend.network(config, parameters)
    backend.compare("heads", backend.valid("heads", network.heads, expected, images), expected)


@check("network", "network.images_apart", pinned=[(WITH_BATCH_NORM, 0, 3)])
def images_are_independent(backend: CheckedBackend, case: Case) -> None:
    """The outputs for an image do not depend on the other images of its batch."""
    parameters, images = build(case)
    network = backend.network(case[0], parameters)
    expected = forward(parameters, images, case[0])[0]
    together = backend.valid("heads", network.heads, expected, images)
    for n in range(len(images)):
        one = [np.ascontiguousarray(head[n : n + 1]) for head in expected]
        alone = backend.valid("heads", network.heads, type(expected)(*one), images[n : n + 1])
        backend.compare("heads", alone, type(expected)(*(h[n : n + 1] for h in together)))


@check(
    "network",
    "network.scored_boxes",
    cases(),
    [(replace(WITH_BATCH_NORM, loss={"objectness": 0.5}), 1, 2), (LIKE_THE_ZOO, 0, 1)],
    share=0.04,
    max_undecided=0.02,
)
def scores(backend: CheckedBackend, case: Case) -> None:
    """Boxes and scores are the specification's."""
    config = case[0]
    parameters, images = build(case)
    outputs = forward(parameters, images, config)[0]
    expected = scored_boxes(outputs, config)
    network = backend.network(config, parameters)
    actual = backend.valid("scored_boxes", network.scored_boxes, expected, images)
    decided = is_arm_filter_decided(outputs, config, case[1])
    backend.compared += decided.size
    backend.undecided += int((~decided).sum())
    backend.compare(
        "network scored_boxes",
        (actual[0], actual[1][decided]),
        (expected[0], expected[1][decided]),
        "network.scored_boxes",
    )
