"""Optimizer: one step by hand for each group, and the laws of clipping."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.config import replace
from refinedet.spec.network import initial_parameters, parameter_table
from refinedet.spec.optimizer import (
    LossScale,
    clip_by_global_norm,
    momentum_step,
    next_loss_scale,
)

from .strategies import refused, tiny

# One weight of each group: a bias only where no batch normalisation is.
CONFIG = tiny(
    network={"width": 1 / 64, "batch_norm": True},
    optimizer={
        "momentum": 0.9,
        "weight_decay": 0.1,
        "bias_rate": 2.0,
        "clip_norm": None,
        "loss_scale": 1.0,
    },
)
TABLE = parameter_table(CONFIG)
TRAINED = [p for p in TABLE if p.group != "statistic"]


def filled(value, entries=TRAINED, dtype=np.float64):
    return {p.name: np.full(p.shape, value, dtype) for p in entries}


def test_one_step_by_hand():
    # Parameter 1, gradient 0.5, momentum buffer 0.2, rate 0.01.
    # decay:    gradient 0.5 + 0.1 * 1 = 0.6; momentum buffer 0.9 * 0.2 + 0.6 = 0.78; 1 - 0.0078.
    # no decay: momentum buffer 0.18 + 0.5 = 0.68; 1 - 0.0068.
    # bias:     the same momentum buffer at twice the rate; 1 - 0.0136.
    parameters = filled(1.0, TABLE)
    new, moved = momentum_step(parameters, filled(0.5), filled(0.2), 0.01, CONFIG)
    want = {"decay": (0.9922, 0.78), "no_decay": (0.9932, 0.68), "bias": (0.9864, 0.68)}
    assert {p.group for p in TRAINED} == set(want)
    for entry in TRAINED:
        value, momentum_buffer = want[entry.group]
        assert_allclose(new[entry.name], np.full(entry.shape, value), rtol=1e-14)
        assert_allclose(moved[entry.name], np.full(entry.shape, momentum_buffer), rtol=1e-14)


def test_running_statistics_pass_through_and_have_no_momentum_buffer():
    parameters = filled(1.0, TABLE)
    new, moved = momentum_step(parameters, filled(0.5), filled(0.2), 0.01, CONFIG)
    assert list(new) == [p.name for p in TABLE]
    assert list(moved) == [p.name for p in TRAINED]
    statistics = [p.name for p in TABLE if p.group == "statistic"]
    assert statistics
    for name in statistics:
        assert_array_equal(new[name], parameters[name])


def test_the_arguments_stay_as_they_are():
    arguments = [filled(1.0, TABLE), filled(0.5), filled(0.2)]
    config = replace(CONFIG, optimizer={"clip_norm": 1.0, "loss_scale": 2.0})
    momentum_step(*arguments, 0.01, config)
    for tensors, value in zip(arguments, (1.0, 0.5, 0.2), strict=True):
        assert all((t == value).all() for t in tensors.values())


def test_two_steps_carry_the_momentum_buffer():
    # 0, then 0.9 * 1 + 1: without decay, gradient 1 and rate 1 move by 1 and by 1.9.
    config = replace(CONFIG, optimizer={"weight_decay": 0, "bias_rate": 1})
    parameters, momentum_buffers = filled(0.0, TABLE), filled(0.0)
    for where in (-1.0, -2.9):
        parameters, momentum_buffers = momentum_step(
            parameters, filled(1.0), momentum_buffers, 1.0, config
        )
        assert all(np.allclose(parameters[p.name], where, rtol=1e-14) for p in TRAINED)


def test_a_rate_of_0_moves_momentum_buffers_only():
    parameters = initial_parameters(CONFIG, 0)
    new, moved = momentum_step(
        parameters, filled(0.5, dtype=np.float32), filled(0.2, dtype=np.float32), 0.0, CONFIG
    )
    for entry in TRAINED:
        assert_array_equal(new[entry.name], parameters[entry.name])
        assert (moved[entry.name] != np.float32(0.2)).any()


def test_the_gradient_is_divided_by_the_loss_scale():
    config = replace(CONFIG, optimizer={"loss_scale": 8.0})
    plain = momentum_step(filled(1.0, TABLE), filled(0.5), filled(0.2), 0.01, CONFIG)
    scaled = momentum_step(filled(1.0, TABLE), filled(4.0), filled(0.2), 0.01, config)
    for a, b in zip(plain, scaled, strict=True):
        assert all((a[name] == b[name]).all() for name in a)


def test_a_given_loss_scale_wins_over_the_configs():
    config = replace(CONFIG, optimizer={"loss_scale": 8.0})
    plain = momentum_step(filled(1.0, TABLE), filled(0.5), filled(0.2), 0.01, CONFIG)
    scaled = momentum_step(filled(1.0, TABLE), filled(2.0), filled(0.2), 0.01, config, 4.0)
    for a, b in zip(plain, scaled, strict=True):
        assert all((a[name] == b[name]).all() for name in a)


def test_clipping_comes_after_the_scale_and_before_the_decay():
    # All gradients equal g; n numbers have the norm g * sqrt(n). Clipped to 1 each is 1/sqrt(n).
    config = replace(CONFIG, optimizer={"clip_norm": 1.0, "loss_scale": 8.0})
    each = 1 / np.sqrt(sum(np.prod(p.shape) for p in TRAINED))
    _, moved = momentum_step(filled(1.0, TABLE), filled(80.0), filled(0.2), 0.01, config)
    want = {"decay": 0.18 + each + 0.1, "no_decay": 0.18 + each, "bias": 0.18 + each}
    for entry in TRAINED:
        assert_allclose(moved[entry.name], want[entry.group], rtol=1e-12)
    # A norm of 0.5 * each / each is below 1: clipped it would be, if the scale came later.
    _, moved = momentum_step(filled(1.0, TABLE), filled(4 * each), filled(0.2), 0.01, config)
    for entry in TRAINED:
        small = want[entry.group] - each / 2
        assert_allclose(moved[entry.name], small, rtol=1e-12)


def test_computed_in_float64_and_rounded_once():
    rng = np.random.default_rng(0)
    p, g, v = (
        {e.name: rng.normal(size=e.shape).astype(np.float32) for e in entries}
        for entries in (TABLE, TRAINED, TRAINED)
    )
    rate = 0.0123
    new, moved = momentum_step(p, g, v, rate, CONFIG)
    for e in TRAINED:
        fine = {k: t[e.name].astype(np.float64) for k, t in (("p", p), ("g", g), ("v", v))}
        decay = 0.1 if e.group == "decay" else 0
        momentum_buffer = 0.9 * fine["v"] + (fine["g"] + decay * fine["p"])
        step = rate * (2 if e.group == "bias" else 1)
        assert new[e.name].dtype == moved[e.name].dtype == np.float32
        assert_array_equal(moved[e.name], momentum_buffer.astype(np.float32))
        assert_array_equal(new[e.name], (fine["p"] - step * momentum_buffer).astype(np.float32))


# Clipping


def test_clipping_by_hand():
    # 3, 4 and 12 have the norm 13; to 6.5 is half of each.
    gradients = {"a": np.float64([3, 4]), "b": np.float64([[12]])}
    actual = clip_by_global_norm(gradients, 6.5)
    assert list(actual) == ["a", "b"]
    assert_allclose(actual["a"], [1.5, 2])
    assert_allclose(actual["b"], [[6]])


@pytest.mark.parametrize("norm", [13, 13.5, 1e9])
def test_a_norm_of_at_most_the_limit_is_left_alone(norm):
    gradients = {"a": np.float32([3, 4]), "b": np.float32([[12]])}
    actual = clip_by_global_norm(gradients, norm)
    assert actual["a"].tolist() == [3, 4]
    assert actual["b"].tolist() == [[12]]


def test_no_gradient_has_no_norm():
    assert clip_by_global_norm({}, 1.0) == {}
    assert clip_by_global_norm({"a": np.zeros(3)}, 1.0)["a"].tolist() == [0, 0, 0]


@given(seed=st.integers(0, 999), norm=st.floats(0.1, 10))
def test_the_norm_is_at_most_the_limit_and_the_direction_stays(seed, norm):
    rng = np.random.default_rng(seed)
    gradients = {"a": rng.normal(size=5) * 3, "b": rng.normal(size=(2, 2))}
    actual = clip_by_global_norm(gradients, norm)
    before, after = (np.concatenate([t["a"], t["b"].ravel()]) for t in (gradients, actual))
    assert np.linalg.norm(after) <= norm * (1 + 1e-12)
    assert_allclose(after, before * min(1, norm / np.linalg.norm(before)), rtol=1e-12)
    again = clip_by_global_norm(actual, norm)
    assert_allclose(again["a"], actual["a"], rtol=1e-12)


def test_clipping_is_computed_in_float64():
    # The squares of 1e30 overflow float32; and every product is rounded once.
    big = clip_by_global_norm({"a": np.float32([3e30, 4e30])}, 5.0)
    assert_allclose(big["a"], [3, 4], rtol=1e-6)
    gradients = {"a": np.random.default_rng(0).normal(size=2000).astype(np.float32)}
    fine = gradients["a"].astype(np.float64)
    actual = clip_by_global_norm(gradients, 1.0)["a"]
    assert actual.dtype == np.float32
    assert_array_equal(actual, (fine * (1 / np.sqrt(np.square(fine).sum()))).astype(np.float32))


# The loss scale


def run(scale, window, steps):
    """The scales after steps that are finite ("+") or overflow ("-")."""
    scales = []
    for step in steps:
        scale = next_loss_scale(scale, step == "+", window)
        scales.append((scale.scale, scale.good_steps))
    return scales


def test_the_loss_scale_doubles_after_a_window_without_overflow():
    assert run(LossScale(8.0), 3, "++++++") == [(8, 1), (8, 2), (16, 0), (16, 1), (16, 2), (32, 0)]
    assert run(LossScale(8.0), 1, "++") == [(16, 0), (32, 0)]


def test_an_overflow_halves_the_loss_scale_and_begins_the_window_anew():
    assert run(LossScale(8.0), 3, "++-++-") == [(8, 1), (8, 2), (4, 0), (4, 1), (4, 2), (2, 0)]


def test_the_loss_scale_stays_from_1_to_2_to_the_24():
    assert run(LossScale(1.5), 2, "--") == [(1, 0), (1, 0)]
    assert run(LossScale(2.0**23), 1, "++") == [(2**24, 0), (2**24, 0)]


def test_a_scale_that_is_no_power_of_two_is_halved_exactly():
    assert run(LossScale(3.0), 2, "-") == [(1.5, 0)]


def test_more_good_steps_than_a_window_are_enough():
    assert run(LossScale(8.0, 7), 3, "+") == [(16, 0)]


def test_a_loss_scale_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LossScale(8.0).scale = 4.0


def test_without_a_window_the_loss_scale_stays():
    assert run(LossScale(8.0, 5), None, "+-+") == [(8, 5)] * 3


@pytest.mark.parametrize("scale", [0, float("inf"), float("nan"), True, None])
def test_a_loss_scale_is_a_number_above_0(scale):
    with refused(f"loss scale: expected a number above 0, got {scale!r}"):
        LossScale(scale)


@pytest.mark.parametrize("count", [-1, 1.0, True, None])
def test_good_steps_are_a_whole_number(count):
    with refused(f"good steps: want a whole number from 0, got {count!r}"):
        LossScale(8.0, count)


# Refusals


def test_tensors_are_those_of_the_table():
    good = filled(1.0, TABLE), filled(0.5), filled(0.2)
    name = TRAINED[0].name
    without = {k: v for k, v in good[1].items() if k != name}
    with refused(f"gradients: {name} is missing"):
        momentum_step(good[0], without, good[2], 0.1, CONFIG)
    with refused("momentum_buffers: x is unknown"):
        momentum_step(good[0], good[1], {**good[2], "x": np.zeros(1)}, 0.1, CONFIG)
    # A statistic is not trained: a gradient for it would count in the norm.
    statistic = next(p for p in TABLE if p.group == "statistic")
    with refused(f"gradients: {statistic.name} is unknown"):
        extra = {**good[1], statistic.name: np.zeros(statistic.shape)}
        momentum_step(good[0], extra, good[2], 0.1, CONFIG)
    with refused(f"gradients: {name} has shape (1,), expected {TRAINED[0].shape}"):
        momentum_step(good[0], {**good[1], name: np.zeros(1)}, good[2], 0.1, CONFIG)
    with refused(f"parameters: {name} is missing"):
        other = {k: v for k, v in good[0].items() if k != name}
        momentum_step(other, good[1], good[2], 0.1, CONFIG)


def test_a_gradient_that_is_not_finite_is_refused():
    name, shape = TRAINED[0].name, TRAINED[0].shape
    with refused(f"{name}: not finite at {(0,) * len(shape)}"):
        gradients = {**filled(0.5), name: np.full(shape, np.nan)}
        momentum_step(filled(1.0, TABLE), gradients, filled(0.2), 0.1, CONFIG)
