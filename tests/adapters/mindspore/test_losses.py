"""Mining in the graph, with all its ties."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refinedet.adapters.mindspore.backend import MindSporeCPU
from refinedet.spec import losses as spec_losses
from refinedet.spec import network as spec
from refinedet.spec.config import replace
from refinedet.spec.presets import preset

BASE = replace(preset("refinedet_eighth_128"), image_size=(64, 128), num_classes=4)


@pytest.fixture(scope="module")
def graph_negatives():
    MindSporeCPU().network(BASE, spec.initial_parameters(BASE, 0))  # sets the device
    from refinedet.adapters.mindspore.losses import hard_negatives

    @ms.jit
    def run(losses, candidate, expected):
        return hard_negatives(losses, candidate, expected)

    return run


@settings(max_examples=100, deadline=None)
@given(
    losses=arrays(np.uint8, (3, 20), elements=st.integers(0, 5)),
    kinds=arrays(np.uint8, (3, 20), elements=st.integers(0, 2)),
)
def test_hard_negatives_are_the_specifications_with_all_their_ties(graph_negatives, losses, kinds):
    losses = losses.astype(np.float32)
    positive, eligible = kinds == 2, kinds == 1
    most = (positive.sum(axis=1, keepdims=True) * 3).astype(np.int32)
    actual = graph_negatives(ms.Tensor(losses), ms.Tensor(eligible), ms.Tensor(most)).asnumpy()
    for row in range(3):
        want = spec_losses.hard_negatives(losses[row], positive[row], eligible[row], 3.0)
        np.testing.assert_array_equal(actual[row], want)
