"""The MindSpore backend says what the specification says: network, losses, update, matching."""

import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refinedet.adapters.mindspore.backend import MindSporeCPU
from refinedet.data.batch import Batch
from refinedet.spec import losses as spec_losses
from refinedet.spec import network as spec
from refinedet.spec.anchors import anchors
from refinedet.spec.config import replace
from refinedet.spec.detection import scored_boxes
from refinedet.spec.matching import match as spec_match
from refinedet.spec.matching import targets
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
PLACES = 8
OBJECTS = [5, 0, 3]


def parameters_of(config):
    """Fresh parameters, with everything that starts as a constant made to differ."""
    rng = np.random.default_rng(3)
    parameters = spec.initial_parameters(config, 1)
    for p in spec.parameter_table(config):
        if p.initialiser != "xavier":
            noise = rng.uniform(0.05, 0.2, p.shape).astype(np.float32)
            parameters[p.name] = parameters[p.name] + noise
    return parameters


def batch_of(config):
    """A batch, and its objects as the specification expected them."""
    rng = np.random.default_rng(5)
    height, width = config.image_size
    images = rng.normal(size=(len(OBJECTS), 3, height, width)).astype(np.float32)
    boxes = np.zeros((len(OBJECTS), PLACES, 4), np.float32)
    labels = np.zeros((len(OBJECTS), PLACES), np.int32)
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


def loss_in_float64(parameters, batch, expected, config):
    exact = {name: p.astype(np.float64) for name, p in parameters.items()}
    heads, _ = spec.forward(exact, batch.images.astype(np.float64), config, training=True)
    return spec_losses.loss_on_targets(heads, expected, config).total


@pytest.fixture(scope="module", params=CONFIGS)
def stepped(request):
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


@pytest.mark.parametrize("config", list(CONFIGS.values())[:2], ids=list(CONFIGS)[:2])
def test_heads_and_scored_boxes_are_the_contracts(config):
    parameters = parameters_of(config)
    images = batch_of(config)[0].images
    network = MindSporeCPU().network(config, parameters)
    want, _ = spec.forward(parameters, images, config)
    for got, expected in zip(network.heads(images), want, strict=True):
        assert (got.shape, got.dtype) == (expected.shape, np.float32)
        np.testing.assert_allclose(got, expected, atol=2e-5, rtol=2e-5)
    for got, expected in zip(network.scored_boxes(images), scored_boxes(want, config), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5, rtol=2e-5)


def test_step_has_the_contracts_loss_and_statistics(stepped):
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


def test_gradient_of_every_parameter_is_that_of_the_contracts_loss(stepped):
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


def test_update_is_the_contracts(stepped):
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


def test_float16_trains_as_float32_does():
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


@pytest.fixture(scope="module")
def graph_match():
    MindSporeCPU().network(BASE, spec.initial_parameters(BASE, 0))  # sets the device
    from refinedet.adapters.mindspore.losses import match

    @ms.jit
    def run(iou):
        return match(iou, 0.5, 1e-6)

    return run


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(grid=arrays(np.uint8, (2, 5, 12), elements=st.integers(0, 8)))
def test_matching_is_the_contracts_with_all_its_ties(graph_match, grid):
    iou = grid.astype(np.float32) / 8
    got = graph_match(ms.Tensor(iou)).asnumpy()
    want = np.stack([spec_match(row.T.copy(), BASE.matching) for row in iou])
    np.testing.assert_array_equal(got, want)


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
def test_hard_negatives_are_the_contracts_with_all_their_ties(graph_negatives, losses, kinds):
    losses = losses.astype(np.float32)
    positive, eligible = kinds == 2, kinds == 1
    most = (positive.sum(axis=1, keepdims=True) * 3).astype(np.int32)
    got = graph_negatives(ms.Tensor(losses), ms.Tensor(eligible), ms.Tensor(most)).asnumpy()
    for row in range(3):
        want = spec_losses.hard_negatives(losses[row], positive[row], eligible[row], 3.0)
        np.testing.assert_array_equal(got[row], want)


def test_parameters_have_canonical_names_and_shapes():
    from refinedet.adapters.mindspore.network import Detector

    for config in (BASE, CONFIGS["biases"], preset("refinedet_vgg16_320")):
        got = {p.name: tuple(p.shape) for p in Detector(config).get_parameters()}
        assert got == {p.name: p.shape for p in spec.parameter_table(config)}


def test_environment_caps_the_instruction_set_from_2_9_on(monkeypatch):
    from refinedet.adapters.mindspore import backend as module

    for found, capped in (
        ((2, 7, 2), False),
        ((2, 8, 0), False),
        ((2, 9, 0), True),
        ((2, 10), True),
    ):
        monkeypatch.setattr(module, "_version", lambda found=found: found)
        assert bool(MindSporeCPU().environment) is capped
        assert MindSporeCPU().missing() is None
    for found in ((2, 7, 1), (2, 11, 0)):
        monkeypatch.setattr(module, "_version", lambda found=found: found)
        assert "2.7.2 to 2.10" in MindSporeCPU().missing()


def test_it_runs_in_a_program_that_has_used_mindspore():
    code = (
        "import mindspore as ms; print((ms.Tensor([1.0]) + 1).asnumpy())\n"
        "from refinedet.backends.interface import find_backend\n"
        "print(find_backend('mindspore-cpu').found())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert "MindSpore" in ended.stdout, ended.stderr
