"""One training step: the pieces in their order, and a loss that falls."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from refinedet.spec.config import replace
from refinedet.spec.errors import SpecError
from refinedet.spec.losses import detector_loss
from refinedet.spec.network import (
    Heads,
    forward,
    forward_and_backward,
    initial_parameters,
    trained_parameters,
)
from refinedet.spec.optimizer import LossScale, momentum_step
from refinedet.spec.schedule import learning_rate
from refinedet.spec.training import LARGEST_FLOAT16, loss_gradients, training_step

from .strategies import tiny

CONFIG = tiny(
    optimizer={"loss_scale": 8.0, "clip_norm": None},
    network={"width": 1 / 64, "batch_norm": True},
    schedule={"steps": 20, "rate": 0.01, "warmup_steps": 2, "warmup_rate": 0.001},
)
BOXES = [np.float32([[0.1, 0.2, 0.4, 0.7], [0.5, 0.1, 0.9, 0.9]]), np.zeros((0, 4), np.float32)]
LABELS = [np.array([1, 3]), np.zeros(0, np.int64)]


def start():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 3, 64, 128)).astype(np.float32)
    parameters = initial_parameters(CONFIG, 0)
    momentum_buffers = {
        p.name: rng.normal(0, 1e-3, p.shape).astype(np.float32) for p in trained_parameters(CONFIG)
    }
    return parameters, momentum_buffers, images


def test_a_step_is_loss_gradient_and_update_in_this_order():
    parameters, momentum_buffers, images = start()
    before = {name: p.copy() for name, p in parameters.items()}
    heads, statistics, backward = forward_and_backward(parameters, images, CONFIG)
    loss = detector_loss(heads, BOXES, LABELS, CONFIG)
    arm, odm = loss
    by_heads = Heads(
        8 * arm.offsets_gradient,
        8 * arm.logits_gradient,
        8 * odm.offsets_gradient,
        8 * odm.logits_gradient,
    )
    expected, moved = momentum_step(
        parameters, backward(by_heads), momentum_buffers, learning_rate(1, CONFIG.schedule), CONFIG
    )
    actual = training_step(parameters, momentum_buffers, images, BOXES, LABELS, 1, CONFIG)
    assert actual.loss.total == loss.total
    for name, value in moved.items():
        assert_array_equal(actual.momentum_buffers[name], value)
        assert_array_equal(actual.parameters[name], expected[name])
        assert (actual.parameters[name] != parameters[name]).any(), name
    for name, value in statistics.items():
        assert_array_equal(actual.parameters[name], value)
    assert actual.parameters.keys() == parameters.keys()
    for name, value in before.items():
        assert_array_equal(parameters[name], value)


def test_gradients_carry_the_loss_scale():
    parameters, _, images = start()
    plain = replace(CONFIG, optimizer={"loss_scale": 1.0})
    _, scaled, _ = loss_gradients(parameters, images, BOXES, LABELS, CONFIG)
    _, unscaled, statistics = loss_gradients(parameters, images, BOXES, LABELS, plain)
    for name, gradient in unscaled.items():
        assert_array_equal(scaled[name], 8 * gradient)  # a power of two changes no digit
    assert statistics.keys() == parameters.keys() - unscaled.keys()


def test_ten_steps_lower_the_loss():
    parameters, momentum_buffers, images = start()
    losses = []
    for step in range(10):
        taken = training_step(parameters, momentum_buffers, images, BOXES, LABELS, step, CONFIG)
        parameters, momentum_buffers = taken.parameters, taken.momentum_buffers
        losses.append(taken.loss.total)
        heads, _ = forward(parameters, images, CONFIG)
        assert all(np.isfinite(head).all() for head in heads)
    assert losses[-1] < 0.8 * losses[0]


HALF = replace(
    CONFIG, optimizer={"precision": "float16", "loss_scale": None, "loss_scale_window": 2}
)
TOO_LARGE = 2.0**24
"""A loss scale with which every gradient of the heads is beyond float16."""


def test_in_float16_a_step_without_overflow_is_that_of_float32():
    arguments = *start(), BOXES, LABELS
    actual = training_step(*arguments, 3, HALF, LossScale(8.0, 1))
    expected = training_step(*arguments, 3, CONFIG)
    assert not actual.skipped
    assert not expected.skipped
    for mine, other in (
        (actual.parameters, expected.parameters),
        (actual.momentum_buffers, expected.momentum_buffers),
    ):
        for name, value in mine.items():
            assert_array_equal(value, other[name])
    assert actual.scale == LossScale(16.0)
    assert expected.scale == LossScale(8.0)


def test_a_step_that_overflows_leaves_parameters_and_momentum_buffers():
    parameters, momentum_buffers, images = start()
    batch = images, BOXES, LABELS
    done = training_step(parameters, momentum_buffers, *batch, 3, HALF, LossScale(TOO_LARGE, 1))
    assert done.skipped
    assert done.scale == LossScale(TOO_LARGE / 2)
    assert done.momentum_buffers == momentum_buffers
    plain = training_step(parameters, momentum_buffers, *batch, 3, CONFIG)
    assert done.loss.total == plain.loss.total
    trained = {p.name for p in trained_parameters(CONFIG)}
    for name, value in done.parameters.items():
        assert_array_equal(value, (parameters if name in trained else plain.parameters)[name])


def test_a_static_loss_scale_skips_too_and_stays():
    config = replace(HALF, optimizer={"loss_scale": TOO_LARGE, "loss_scale_window": None})
    done = training_step(*start(), BOXES, LABELS, 3, config)
    assert done.skipped
    assert done.scale == LossScale(TOO_LARGE)


def test_a_gradient_overflows_beyond_the_largest_number_of_float16():
    parameters, _, images = start()
    batch = images, BOXES, LABELS
    heads, _ = forward(parameters, images, CONFIG, training=True)
    loss = detector_loss(heads, BOXES, LABELS, CONFIG)
    largest = max(np.abs(g).max() for module in loss for g in module[2:])
    for scale, overflows in ((65000 / largest, False), (66000 / largest, True)):
        gradients = loss_gradients(parameters, *batch, HALF, float(scale))[1]
        assert all(np.isinf(g).all() for g in gradients.values()) == overflows
        assert all(np.isfinite(g).all() for g in gradients.values()) != overflows
        # float32 has room for more
        gradients = loss_gradients(parameters, *batch, CONFIG, float(scale))[1]
        assert all(np.isfinite(g).all() for g in gradients.values())


def test_the_largest_number_of_float16_does_not_overflow(monkeypatch):
    assert np.finfo(np.float16).max == LARGEST_FLOAT16
    parameters, _, images = start()
    batch = images, BOXES, LABELS
    heads, _ = forward(parameters, images, CONFIG, training=True)
    loss = detector_loss(heads, BOXES, LABELS, CONFIG)
    largest = float(max(np.abs(g).max() for module in loss for g in module[2:]))
    for limit, overflows in ((4 * largest, False), (np.nextafter(4 * largest, 0), True)):
        monkeypatch.setattr("refinedet.spec.training.LARGEST_FLOAT16", limit)
        gradients = loss_gradients(parameters, *batch, HALF, 4.0)[1]
        assert all(np.isinf(g).all() for g in gradients.values()) == overflows


def test_in_float32_an_overflow_is_an_error():
    config = replace(CONFIG, optimizer={"loss_scale": 1e38})
    with np.errstate(all="ignore"), pytest.raises(SpecError, match="not finite"):
        training_step(*start(), BOXES, LABELS, 3, config)
