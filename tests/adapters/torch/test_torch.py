"""What the conformance suite does not ask of the PyTorch backend: batches, ties, devices."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refinedet.adapters.torch import backend as module
from refinedet.adapters.torch import losses, matching, network
from refinedet.adapters.torch.tensors import to_numpy, to_tensor
from refinedet.data.batch import Batch
from refinedet.data.formats.shapes import generate_shapes
from refinedet.errors import BackendError
from refinedet.evaluation.dataset_run import evaluate
from refinedet.settings import resolve
from refinedet.spec import layers
from refinedet.spec import losses as spec_losses
from refinedet.spec.anchors import anchors
from refinedet.spec.architecture import Pool
from refinedet.spec.config import MatchingConfig, replace
from refinedet.spec.matching import match, targets
from refinedet.spec.network import initial_parameters
from refinedet.spec.presets import preset
from refinedet.spec.training import training_step
from refinedet.training.loop import train
from refinedet.training.preparation import prepare_datasets

CONFIG = replace(
    preset("refinedet_eighth_128"),
    image_size=(64, 64),
    num_classes=3,
    schedule={"steps": 9, "warmup_steps": 0},
)
WHATEVER_THE_FIXTURE = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def tensor(array, backend):
    return to_tensor(array, backend.device)


def batch_of(images):
    """Images of noise with one object each."""
    rng = np.random.default_rng(5)
    boxes = np.tile(np.float32([0.2, 0.1, 0.7, 0.9]), (images, 1, 1))
    labels = np.full((images, 1), 2, np.int32)
    offsets, classes = targets(anchors(CONFIG), boxes[0], labels[0], CONFIG)
    return Batch(
        rng.normal(size=(images, 3, *CONFIG.image_size)).astype(np.float32),
        boxes,
        labels,
        np.stack([offsets] * images),
        np.stack([classes] * images).astype(np.int32),
    )


@WHATEVER_THE_FIXTURE
@given(
    grid=arrays(np.uint8, (2, 5, 12), elements=st.integers(0, 8)),
    rule=st.sampled_from(["bipartite", "in_order"]),
    lowest=st.sampled_from([0.0, 0.25]),
)
def test_matching_of_a_batch_is_the_contracts_with_all_its_ties(backend, grid, rule, lowest):
    iou = grid.astype(np.float32) / 8
    config = MatchingConfig(iou=0.5, lowest_iou=lowest, rule=rule)
    actual = to_numpy(matching.match(tensor(iou, backend), config))
    np.testing.assert_array_equal(actual, np.stack([match(one.T.copy(), config) for one in iou]))


@WHATEVER_THE_FIXTURE
@given(
    values=arrays(np.uint8, (3, 20), elements=st.integers(0, 5)),
    kinds=arrays(np.uint8, (3, 20), elements=st.integers(0, 2)),
)
def test_mining_of_a_batch_is_the_contracts_with_all_its_ties(backend, values, kinds):
    rows = values.astype(np.float32), kinds == 2, kinds == 1
    actual = losses.hard_negatives(*(tensor(row, backend) for row in rows), 2.5)
    want = [spec_losses.hard_negatives(*row, 2.5) for row in zip(*rows, strict=True)]
    np.testing.assert_array_equal(to_numpy(actual), np.stack(want))


@WHATEVER_THE_FIXTURE
@given(
    grid=arrays(np.uint8, (2, 2, 6, 8), elements=st.integers(0, 3)),
    pool=st.sampled_from([Pool(2), Pool(3, 0), Pool(3, 1)]),
)
def test_the_gradient_of_a_pooling_goes_to_the_first_of_equals(backend, grid, pool):
    x = grid.astype(np.float32) - 1
    d = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4) + 1
    if pool.kernel == 2:
        want = layers.max_pool2x2(x), *layers.max_pool2x2_gradient(d, x)
    else:
        want = layers.max_pool3x3(x, pool.before), *layers.max_pool3x3_gradient(d, x, pool.before)
    seen = tensor(x, backend).requires_grad_()
    pooled = network.max_pool(pool, seen)
    (by_input,) = torch.autograd.grad(pooled, seen, tensor(d, backend))
    np.testing.assert_array_equal(to_numpy(pooled), want[0])
    np.testing.assert_array_equal(to_numpy(by_input), want[1])


@pytest.mark.parametrize("eps", [4.0, 25.0])
def test_a_norm_at_its_floor_does_not_move(backend, eps):
    """One pixel's sum of squares is below, one exactly at, one above the floor of 25."""
    x = np.float32([[[[3, 3, 30]], [[0, 4, 4]]]])
    scale, d = np.float32([2, 5]), np.float32([[[[1, 2, 3]], [[4, 5, 6]]]])
    want = layers.l2_normalise_gradient(d, x, scale, eps, True)
    seen = [tensor(x, backend).requires_grad_(), tensor(scale, backend).requires_grad_()]
    y = network.l2_normalise(*seen, eps, True)
    for actual, one in zip(torch.autograd.grad(y, seen, tensor(d, backend)), want, strict=True):
        np.testing.assert_allclose(to_numpy(actual), one, rtol=1e-6)


def test_a_step_on_one_number_a_channel_is_the_contracts(backend):
    """One image of 64x64 pixels: the coarsest level has one cell."""
    config = replace(CONFIG, network={"batch_norm_eps": 0.125})  # few numbers: little variance
    parameters, batch = initial_parameters(config, 1), batch_of(1)
    for name in parameters:
        if name.endswith(".beta"):
            parameters[name] += 0.1  # away from the kink of the ReLU behind it
    trainer = backend.trainer(config, parameters)
    zeros = {name: v * 0 for name, v in trainer.momentum_buffers().items()}
    found = trainer.step(batch)
    objects = [batch.boxes[0]], [batch.labels[0]]
    want = training_step(parameters, zeros, batch.images, *objects, 0, config)
    assert found.total == pytest.approx(want.loss.total, rel=1e-5)
    for name, value in trainer.parameters().items():
        expected = want.parameters[name]
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_training_goes_on_bit_for_bit(backend):
    batch = batch_of(3)
    undisturbed = backend.trainer(CONFIG, initial_parameters(CONFIG, 1))
    for _ in range(3):
        undisturbed.step(batch)
    first = backend.trainer(CONFIG, initial_parameters(CONFIG, 1))
    first.step(batch)
    again = backend.trainer(CONFIG, first.parameters(), first.momentum_buffers(), steps_done=1)
    for _ in range(2):
        again.step(batch)
    for read in ("parameters", "momentum_buffers"):
        want = getattr(undisturbed, read)()
        for name, value in getattr(again, read)().items():
            np.testing.assert_array_equal(value, want[name], err_msg=name)


def test_what_is_given_and_what_is_read_are_copies(backend):
    parameters = initial_parameters(CONFIG, 1)
    given = {name: value.copy() for name, value in parameters.items()}
    trainer = backend.trainer(CONFIG, given)
    read = trainer.parameters()
    trainer.step(batch_of(2))
    for name, value in parameters.items():
        np.testing.assert_array_equal(given[name], value, err_msg=name)
        np.testing.assert_array_equal(read[name], value, err_msg=name)


@pytest.mark.parametrize("classes", ["softmax", "sigmoid"])
def test_no_tensor_of_a_step_is_left_on_the_processor(classes):
    """The device "meta" has shapes alone, and refuses to mix with another, as a GPU does.

    Not the rule ``bipartite``, whose rounds depend on numbers.
    """
    config = replace(CONFIG, loss={"classes": classes}, matching={"rule": "in_order"})
    detector = network.Detector(config, initial_parameters(config, 1), "meta", training=True)
    images, *expected = (to_tensor(array, "meta") for array in batch_of(2))
    outputs = detector(images)
    made = [
        losses.detector_loss(outputs, *expected, detector.anchors, config),
        *network.scored_boxes(outputs, detector.anchors, config),
    ]
    assert [tensor.device.type for tensor in made] == ["meta"] * 3


def test_tf32_is_off_once_a_backend_is_used(backend):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    backend.network(CONFIG, initial_parameters(CONFIG, 1))
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_pytorch_is_not_imported_before_it_is_used():
    code = (
        "import sys; from refinedet.adapters.torch.backend import TorchCPU; TorchCPU().missing();"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def no_torch(name):
    raise module.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("refinedet.adapters.torch.backend.version", no_torch, "pip install 'refinedet[torch]'"),
        ("refinedet.adapters.torch.backend.version", lambda _: "2.3.1+cpu", "2.4 or newer"),
        ("torch.version.cuda", None, "built without CUDA; install"),
        ("torch.cuda.is_available", lambda: False, "no CUDA device; it expected an NVIDIA GPU"),
    ],
)
def test_what_is_missing_is_one_line_and_nothing_falls_back(monkeypatch, attribute, value, message):
    monkeypatch.setattr("torch.version.cuda", "12.4")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    backend = module.TorchCUDA(device_id=1)
    assert backend.missing() is None
    assert backend.device == "cuda:1"
    assert module.TorchCUDA(device_id=2).missing() == "device_id 2: there are 2, from 0"
    monkeypatch.setattr(attribute, value)
    assert message in backend.missing()
    assert "\n" not in backend.missing()
    for use in (
        lambda: backend.operations,
        lambda: backend.network(CONFIG, {}),
        lambda: backend.trainer(CONFIG, {}),
    ):
        with pytest.raises(BackendError, match="backend torch-cuda: PyTorch"):
            use()


def test_a_missing_device_is_one_line_and_leaves_no_run_behind(monkeypatch, tmp_path, run):
    monkeypatch.setattr("torch.version.cuda", None)
    generate_shapes(2, (64, 64), 0, tmp_path / "data")
    folder = tmp_path / "data"
    files = "--annotations", folder / "annotations.json", "--images", folder / "images"
    status, _, errors = run(
        "train", "--run", tmp_path / "run", "--layout", "coco", *files, "--backend", "torch-cuda"
    )
    assert status == 1
    assert errors.startswith("refinedet: error: backend torch-cuda: PyTorch ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_it_exports_nothing_and_says_so(run, tmp_path):
    files = "--model", tmp_path, "--output", tmp_path / "x"
    status, _, errors = run("export", *files, "--backend", "torch-cpu")
    assert status == 1
    assert errors == "refinedet: error: backend torch-cpu: has no export; use another backend\n"


def test_a_detector_of_shapes_is_trained_and_finds_them(backend, tmp_path):
    changes = (
        "model.schedule.steps=300",
        "model.schedule.warmup_steps=10",
        "input.batch_size=16",
        "input.augment.crop=false",
        "input.augment.expand=0",
        "input.augment.distort=0",
    )
    size = preset("refinedet_eighth_128").image_size
    training = generate_shapes(200, size, 0, tmp_path / "train")
    held_out = generate_shapes(40, size, 1, tmp_path / "held-out")
    chosen = resolve("refinedet_eighth_128", None, changes, training.class_names)
    done = train(prepare_datasets(backend, training, None, chosen, tmp_path / "run"))
    assert done.steps_done == 300
    evaluator = evaluate(backend.network(done.config, done.parameters), held_out)
    metrics = evaluator.result().metrics
    assert metrics["AP50"] > 0.5, metrics
