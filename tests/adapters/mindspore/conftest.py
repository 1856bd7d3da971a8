"""Parameters and a batch for small detectors."""

import numpy as np
import pytest

from refinedet.data.batch import Batch
from refinedet.spec import network as spec
from refinedet.spec.anchors import anchors
from refinedet.spec.matching import targets

SLOTS = 8
OBJECTS = [5, 0, 3]


@pytest.fixture(scope="session")
def parameters_of():
    """Makes fresh parameters of a config."""

    def make(config):
        """Fresh parameters, with everything that starts as a constant made to differ."""
        rng = np.random.default_rng(3)
        parameters = spec.initial_parameters(config, 1)
        for p in spec.parameter_table(config):
            if p.initialiser != "xavier":
                noise = rng.uniform(0.05, 0.2, p.shape).astype(np.float32)
                parameters[p.name] = parameters[p.name] + noise
        return parameters

    return make


@pytest.fixture(scope="session")
def batch_of():
    """Makes a batch for a config."""

    def make(config):
        """A batch, and its objects in the form of the specification."""
        rng = np.random.default_rng(5)
        height, width = config.image_size
        images = rng.normal(size=(len(OBJECTS), 3, height, width)).astype(np.float32)
        boxes = np.zeros((len(OBJECTS), SLOTS, 4), np.float32)
        labels = np.zeros((len(OBJECTS), SLOTS), np.int32)
        objects = []
        for row, count in enumerate(OBJECTS):
            low = rng.uniform(0, 0.7, (count, 2))
            boxes[row, :count] = np.hstack([low, low + rng.uniform(0.05, 0.3, (count, 2))])
            labels[row, :count] = rng.integers(1, config.num_classes, count)
            objects.append((boxes[row, :count], labels[row, :count].astype(np.int64)))
        expected = [targets(anchors(config), b, c, config) for b, c in objects]
        arm_offsets = np.stack([w[0] for w in expected])
        arm_labels = np.stack([w[1] for w in expected]).astype(np.int32)
        return Batch(images, boxes, labels, arm_offsets, arm_labels), objects

    return make
