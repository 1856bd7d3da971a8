"""Matching in the graph, with all its ties."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refinedet.adapters.mindspore.backend import MindSporeCPU
from refinedet.spec import network as spec
from refinedet.spec.config import replace
from refinedet.spec.matching import match as spec_match
from refinedet.spec.presets import preset

BASE = replace(preset("refinedet_eighth_128"), image_size=(64, 128), num_classes=4)


@pytest.fixture(scope="module")
def graph_match():
    MindSporeCPU().network(BASE, spec.initial_parameters(BASE, 0))  # sets the device
    from refinedet.adapters.mindspore.matching import match

    @ms.jit
    def run(iou):
        return match(iou, 0.5, 1e-6)

    return run


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(grid=arrays(np.uint8, (2, 5, 12), elements=st.integers(0, 8)))
def test_matching_is_the_specifications_with_all_its_ties(graph_match, grid):
    iou = grid.astype(np.float32) / 8
    actual = graph_match(ms.Tensor(iou)).asnumpy()
    want = np.stack([spec_match(row.T.copy(), BASE.matching) for row in iou])
    np.testing.assert_array_equal(actual, want)
