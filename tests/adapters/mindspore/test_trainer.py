"""A step of MindSpore's trainer: loss, gradients, update; resuming; float16."""

import numpy as np
import pytest

from refinedet.adapters.mindspore.backend import MindSporeCPU
from refinedet.spec import losses as spec_losses
from refinedet.spec import network as spec
from refinedet.spec.config import replace
from refinedet.spec.optimizer import momentum_step
from refinedet.spec.presets import preset
from refinedet.spec.schedule import learning_rate

BASE = replace(
    preset("refinedet_eighth_128"),
    image_size=(64, 128),
    num_classes=4,
    optimizer={"clip_norm": None, "bias_rate": 2.0},
    schedule={"steps": 40, "warmup_steps": 4},
)
CONFIGS = {
    "batch norm": BASE,
    "biases": replace(BASE, network={"batch_norm": False}),
    "clipped, scaled": replace(BASE, optimizer={"clip_norm": 0.5, "loss_scale": 1024.0}),
}


def loss_in_float64(parameters, batch, expected, config):
    exact = {name: p.astype(np.float64) for name, p in parameters.items()}
    heads, _ = spec.forward(exact, batch.images.astype(np.float64), config, training=True)
    return spec_losses.loss_on_targets(heads, expected, config).total


@pytest.fixture(scope="module", params=CONFIGS)
def stepped(request, parameters_of, batch_of):
    """A trainer before and after two steps on one batch."""
    config = CONFIGS[request.param]
    parameters = parameters_of(config)
    batch, objects = batch_of(config)
    trainer = MindSporeCPU().trainer(config, parameters)
    losses, momentum_buffers, after = [], [], []
    for _ in range(2):
        losses.append(trainer.step(batch))
        momentum_buffers.append(trainer.momentum_buffers())
        after.append(trainer.parameters())
    return config, parameters, batch, objects, losses, momentum_buffers, after


def test_step_has_the_specifications_loss_and_statistics(stepped):
    config, parameters, batch, objects, losses, _, after = stepped
    heads, statistics = spec.forward(parameters, batch.images, config, training=True)
    want = spec_losses.detector_loss(
        heads, [b for b, _ in objects], [c for _, c in objects], config
    )
    parts = (*want.arm[:2], *want.odm[:2], want.total)
    np.testing.assert_allclose(losses[0][:5], parts, rtol=2e-5)
    assert not losses[0].skipped
    for name, value in statistics.items():
        np.testing.assert_allclose(after[0][name], value, atol=1e-5, rtol=1e-5, err_msg=name)


def test_gradient_of_every_parameter_is_that_of_the_specifications_loss(stepped):
    """Along a random direction, against central differences in float64.

    The step is small: the network has many kinks, and none may lie within it.
    """
    config, parameters, batch, objects, _, momentum_buffers, _ = stepped
    if config.optimizer.clip_norm is not None:
        return  # the update test covers clipping
    heads, _ = spec.forward(parameters, batch.images, config, training=True)
    expected = spec_losses.detector_targets(
        heads, [b for b, _ in objects], [c for _, c in objects], config
    )
    expected = expected._replace(
        arm_offsets=expected.arm_offsets.astype(np.float64),
        odm_offsets=expected.odm_offsets.astype(np.float64),
    )
    rng, step = np.random.default_rng(7), 1e-8
    groups = {p.name: p.group for p in spec.parameter_table(config)}
    for name, momentum_buffer in momentum_buffers[0].items():
        decay = config.optimizer.weight_decay if groups[name] == "decay" else 0.0
        gradient = momentum_buffer - decay * parameters[name].astype(np.float64)
        direction = rng.normal(size=momentum_buffer.shape)
        sides = []
        for sign in (1, -1):
            moved = parameters | {name: parameters[name] + sign * step * direction}
            sides.append(loss_in_float64(moved, batch, expected, config))
        slope = (sides[0] - sides[1]) / (2 * step)
        scale = np.linalg.norm(gradient) + 1e-3
        assert abs(slope - (gradient * direction).sum()) < 1e-2 * scale, name


def test_update_is_the_specifications(stepped):
    """The second step, from the first one's momentum buffer: rate, momentum, decay, groups."""
    config, parameters, _, _, _, momentum_buffers, after = stepped
    groups = {p.name: p.group for p in spec.parameter_table(config)}
    options = config.optimizer
    rate = learning_rate(1, config.schedule)
    for name, momentum_buffer in momentum_buffers[1].items():
        step = rate * (options.bias_rate if groups[name] == "bias" else 1)
        want = after[0][name] - step * momentum_buffer
        np.testing.assert_allclose(after[1][name], want, atol=1e-7, rtol=1e-6, err_msg=name)
    decay = {
        name: options.weight_decay * parameters[name] if groups[name] == "decay" else 0
        for name in momentum_buffers[0]
    }
    norm = np.sqrt(
        sum(
            np.square((v - decay[n]).astype(np.float64)).sum()
            for n, v in momentum_buffers[0].items()
        )
    )
    if options.clip_norm is not None:
        assert norm == pytest.approx(options.clip_norm, rel=1e-4)
    else:
        assert norm > 0.5
    gradients = {n: (v - decay[n]) * options.scale for n, v in momentum_buffers[0].items()}
    zeros = {n: np.zeros_like(v) for n, v in momentum_buffers[0].items()}
    first = learning_rate(0, config.schedule)
    new, _ = momentum_step(parameters, gradients, zeros, first, config)
    for name in gradients:
        np.testing.assert_allclose(after[0][name], new[name], atol=1e-7, rtol=1e-6, err_msg=name)


def test_training_goes_on_bit_for_bit(stepped):
    config, _, batch, _, _, momentum_buffers, after = stepped
    again = MindSporeCPU().trainer(config, after[0], momentum_buffers[0], steps_done=1)
    again.step(batch)
    for name, value in again.parameters().items():
        np.testing.assert_array_equal(value, after[1][name], err_msg=name)


def test_the_optimizer_is_mindspores_own_bit_for_bit():
    import mindspore as ms

    from refinedet.adapters.mindspore.trainer import Momentum

    rates = np.array([0.3, 0.2, 0.1], np.float32)
    groups = ((3, 0.01, 1), (1, 0.0, 1), (2, 0.0, 2))  # parameters, decay, factor of the rate
    results = []
    for ours in (True, False):
        rng = np.random.default_rng(0)
        members = []
        for number, (count, decay, factor) in enumerate(groups):
            names = [f"{number}.{i}" for i in range(count)]
            weights = [ms.Parameter(rng.normal(size=5).astype(np.float32), n) for n in names]
            members.append((weights, decay, rates * np.float32(factor)))
        if ours:
            optimizer = Momentum(members, rates, 0.9)
        else:
            made = [
                {"params": weights, "weight_decay": decay, "lr": ms.Tensor(rate)}
                for weights, decay, rate in members
            ]
            optimizer = ms.nn.Momentum(made, ms.Tensor(rates), momentum=0.9)
        for _ in rates:
            optimizer(tuple(ms.Tensor(rng.normal(size=5).astype(np.float32)) for _ in range(6)))
        assert optimizer.global_step.asnumpy() == [3]
        results.append([p.asnumpy() for p in (*optimizer.parameters, *optimizer.moments)])
    for mine, own in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, own)


def test_float16_trains_as_float32_does(parameters_of, batch_of):
    """The loss falls, and stays near: activations alone are rounded.

    At a rate that does not jump: one that does turns rounding into another path. The specification
    with its activations rounded to float16 was seen to part by 0.0034.
    """
    calm = {"optimizer": {"bias_rate": 1.0}, "schedule": {"rate": 0.003}}
    batch, _ = batch_of(CONFIGS["biases"])
    losses = {}
    for precision in ("float32", "float16"):
        config = replace(replace(CONFIGS["biases"], **calm), optimizer={"precision": precision})
        trainer = MindSporeCPU().trainer(config, parameters_of(config))
        taken = [trainer.step(batch) for _ in range(12)]
        assert not any(step.skipped for step in taken)
        losses[precision] = [step.total for step in taken]
    single, half = np.array(losses["float32"]), np.array(losses["float16"])
    assert half[-1] < 0.8 * half[0]
    assert (half != single).all()
    np.testing.assert_allclose(half, single, rtol=0.01)
