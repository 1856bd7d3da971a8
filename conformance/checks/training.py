"""Level *training*: the same parameters and batch give the same loss and the same update.

A step is compared only where the specification's selection of anchors is decided (see
``margin``); elsewhere the results of two correct backends may diverge.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from refinedet.backends.interface import StepLosses
from refinedet.conformance import inputs
from refinedet.conformance.checks.network import (
    LIKE_THE_ZOO,
    RESNET_OF_THE_PAPER,
    RESNET_OF_THE_ZOO,
    WITH_BATCH_NORM,
    WITH_BIASES,
)
from refinedet.conformance.checks.operations import is_loss_decided
from refinedet.conformance.comparison import CheckedBackend
from refinedet.conformance.registry import check
from refinedet.conformance.tolerances import FLOAT32
from refinedet.data.batch import Batch, padded
from refinedet.spec.anchors import anchors
from refinedet.spec.config import Config, replace
from refinedet.spec.losses import Loss, detector_loss, detector_targets, loss_on_targets
from refinedet.spec.matching import targets
from refinedet.spec.network import (
    Parameters,
    forward,
    parameter_table,
    trained_parameters,
)
from refinedet.spec.optimizer import LossScale
from refinedet.spec.schedule import learning_rate
from refinedet.spec.training import Step, loss_gradients, training_step
from refinedet.spec.types import Array

SCHEDULE = {
    "kind": "multistep",
    "steps": 12,
    "rate": 0.01,
    "warmup_steps": 3,
    "warmup_rate": 0.004,
    "milestones": (6,),
}
PAPER_TRAINING = {
    "optimizer": {"clip_norm": None, "bias_rate": 2.0, "weight_decay": 0.01},
    "schedule": SCHEDULE,
}
NORMALISED = replace(WITH_BATCH_NORM, **PAPER_TRAINING)
RESIDUAL = replace(RESNET_OF_THE_PAPER, **PAPER_TRAINING)
BIASED = replace(
    WITH_BIASES,
    optimizer={"clip_norm": None, "bias_rate": 2.0, "weight_decay": 0.01, "loss_scale": 64.0},
    schedule=SCHEDULE,
)
CLIPPED = replace(NORMALISED, optimizer={"clip_norm": 0.5, "loss_scale": 128.0})
ZOO_TRAINING = {
    "matching": {"rule": "in_order"},
    "optimizer": {"clip_norm": None, "weight_decay": 0.01, "decay_all": True},
    "schedule": SCHEDULE,
}
ZOO_LIKE = replace(LIKE_THE_ZOO, **ZOO_TRAINING)
ZOO_RESIDUAL = replace(RESNET_OF_THE_ZOO, **ZOO_TRAINING)
SLOTS = 6
"""Slots for objects in an image."""

Case = tuple[Config, int, tuple[int, ...]]
"""A detector, a seed, and for each image of the batch how many objects."""


class BuiltCase(NamedTuple):
    """A case: parameters, batch, and the objects as the specification takes them."""

    parameters: Parameters
    batch: Batch
    boxes: list[Array]
    labels: list[Array]


def build(case: Case) -> BuiltCase:
    """Parameters, batch and objects of a case."""
    config, seed, counts = case
    boxes, labels = inputs.seeded_objects(config, counts, seed)
    expected = [targets(anchors(config), b, c, config) for b, c in zip(boxes, labels, strict=True)]
    objects = [padded(b, c, SLOTS) for b, c in zip(boxes, labels, strict=True)]
    batch = Batch(
        inputs.seeded_images(config, len(counts), seed),
        np.stack([boxes for boxes, _ in objects]),
        np.stack([labels for _, labels in objects]),
        np.stack([offsets for offsets, _ in expected]),
        np.stack([labels for _, labels in expected]).astype(np.int32),
    )
    return BuiltCase(inputs.seeded_parameters(config, seed), batch, boxes, labels)


def is_decided(case: Case, built: BuiltCase) -> bool:
    """Whether the specification computes the same step within the margin.

    It must select the same anchors, and have the same gradient in float32 as in float64, which
    it has not where a number is at the kink of a ReLU or in a tie of a pooling.
    """
    config, seed, _ = case
    heads, _ = forward(built.parameters, built.batch.images, config, training=True)
    if not is_loss_decided(heads, built.boxes, built.labels, config, seed):
        return False
    coarse, fine = (
        loss_gradients(
            {name: p.astype(dtype) for name, p in built.parameters.items()},
            built.batch.images.astype(dtype),
            [b.astype(dtype) for b in built.boxes],
            built.labels,
            config,
        )[1]
        for dtype in (np.float32, np.float64)
    )
    row = FLOAT32["one step momentum_buffers"]
    return all(
        np.abs(g - coarse[name]).max() <= (row.atol + row.rtol * np.abs(g).max()) / 2
        for name, g in fine.items()
    )


def take_step(backend: CheckedBackend, trainer: Any, batch: Batch) -> StepLosses:
    """One step of the backend's trainer; its losses are valid."""
    kind = StepLosses(0.0, 0.0, 0.0, 0.0, 0.0)
    losses: StepLosses = backend.valid("step", trainer.step, kind, batch)
    return losses


def expected_losses(loss: Loss) -> StepLosses:
    """The specification's loss in the type that a backend returns."""
    arm, odm = loss
    return StepLosses(arm.offsets, arm.classes, odm.offsets, odm.classes, loss.total)


def compare_state(
    backend: CheckedBackend,
    trainer: Any,
    parameters: Parameters,
    momentum_buffers: Parameters,
    rule: str,
) -> None:
    """Compare parameters and momentum buffers; errors relative to each tensor's largest."""
    for what, read, expected in (
        ("momentum_buffers", trainer.momentum_buffers, momentum_buffers),
        ("parameters", trainer.parameters, parameters),
    ):
        actual = backend.valid(what, read, expected)
        backend.compare_tensors(what, actual, expected, f"{rule} {what}")


CASES = [
    (NORMALISED, 0, (3, 0, 1)),
    (BIASED, 1, (2, 1)),
    (CLIPPED, 3, (2, 1)),
    (ZOO_LIKE, 1, (2, 1)),
    (RESIDUAL, 0, (2, 1)),
    (ZOO_RESIDUAL, 0, (2, 1)),
]


def drawn() -> st.SearchStrategy[Case]:
    """Batches of one or two images."""
    return st.tuples(
        st.sampled_from([NORMALISED, BIASED, ZOO_LIKE]),
        st.integers(0, 2**16),
        st.lists(st.integers(0, 4), min_size=1, max_size=2).map(tuple),
    )


@check("training", "training.loss", pinned=CASES[:1])
def loss(backend: CheckedBackend, case: Case) -> None:
    """The four parts of the loss are the specification's, before the update."""
    built = build(case)
    trainer = backend.trainer(case[0], built.parameters)
    losses = take_step(backend, trainer, built.batch)
    heads, _ = forward(built.parameters, built.batch.images, case[0], training=True)
    expected = expected_losses(detector_loss(heads, built.boxes, built.labels, case[0]))
    backend.compare("step", losses, expected, "training.loss")


@check(
    "training",
    "training.nothing_to_find",
    pinned=[(NORMALISED, 0, (0, 0)), (BIASED, 0, (0,)), (ZOO_LIKE, 1, (0,))],
)
def nothing(backend: CheckedBackend, case: Case) -> None:
    """The update for a batch without objects, in both families, is the specification's."""
    update(backend, case)


@check("training", "training.update", drawn(), CASES, share=0.04, max_undecided=0.5)
def update(backend: CheckedBackend, case: Case) -> None:
    """After one step parameters, statistics and momentum buffers are the specification's."""
    config = case[0]
    built = build(case)
    trainer = backend.trainer(config, built.parameters)
    losses = take_step(backend, trainer, built.batch)
    backend.compared += 1
    if not is_decided(case, built):
        backend.undecided += 1
        return
    zeros = {p.name: np.zeros(p.shape, np.float32) for p in trained_parameters(config)}
    done = training_step(
        built.parameters, zeros, built.batch.images, built.boxes, built.labels, 0, config
    )
    backend.compare("step", losses, expected_losses(done.loss), "training.loss")
    compare_state(backend, trainer, done.parameters, done.momentum_buffers, "one step")


@check("training", "training.ten_steps", pinned=[(BIASED, 4, (2, 1))])
def ten_steps(backend: CheckedBackend, case: Case) -> None:
    """After ten steps on one batch the results are the specification's, within its tolerance.

    Without batch normalisation: with few numbers a channel it makes the loss so steep that
    the specification in float32 diverges from itself in float64 within ten steps.
    """
    config = case[0]
    built = build(case)
    trainer = backend.trainer(config, built.parameters)
    parameters = built.parameters
    momentum_buffers = {p.name: np.zeros(p.shape, np.float32) for p in trained_parameters(config)}
    for step in range(10):
        done = training_step(
            parameters,
            momentum_buffers,
            built.batch.images,
            built.boxes,
            built.labels,
            step,
            config,
        )
        losses = take_step(backend, trainer, built.batch)
        backend.compare("step", losses, expected_losses(done.loss), "ten steps loss")
        parameters, momentum_buffers = done.parameters, done.momentum_buffers
    compare_state(backend, trainer, parameters, momentum_buffers, "ten steps")


@check("training", "training.resume", pinned=[(NORMALISED, 0, (2, 1))])
def resume(backend: CheckedBackend, case: Case) -> None:
    """A resumed training continues as if it had not been interrupted."""
    config = case[0]
    built = build(case)
    whole = backend.trainer(config, built.parameters)
    for _ in range(4):
        take_step(backend, whole, built.batch)
    parameters, momentum_buffers = whole.parameters(), whole.momentum_buffers()
    resumed = backend.trainer(config, parameters, momentum_buffers, 4)
    backend.compare(
        "step",
        take_step(backend, resumed, built.batch),
        take_step(backend, whole, built.batch),
        "training.loss",
    )
    compare_state(backend, resumed, whole.parameters(), whole.momentum_buffers(), "one step")


@check("training", "training.gradient", pinned=[*CASES[:2], CASES[3]])
def gradient(backend: CheckedBackend, case: Case) -> None:
    """In random directions of every group of parameters, the gradient is the slope of the loss.

    The slope is taken by central differences of the specification's loss in float64. The
    step is small: the network has many kinks, and none may lie within it.
    """
    config, seed, _ = case
    built = build(case)
    trainer = backend.trainer(config, built.parameters)
    take_step(backend, trainer, built.batch)
    decay = config.optimizer.weight_decay
    table = trained_parameters(config)
    gradients = {
        p.name: momentum_buffer
        - (
            decay * built.parameters[p.name]
            if p.group == "decay" or config.optimizer.decay_all
            else 0
        )
        for p, momentum_buffer in zip(
            table, _ordered(trainer.momentum_buffers(), table), strict=True
        )
    }
    heads, _ = forward(built.parameters, built.batch.images, config, training=True)
    held = detector_targets(heads, built.boxes, built.labels, config)
    held = held._replace(
        arm_offsets=held.arm_offsets.astype(np.float64),
        odm_offsets=held.odm_offsets.astype(np.float64),
    )
    exact = {name: p.astype(np.float64) for name, p in built.parameters.items()}
    images = built.batch.images.astype(np.float64)

    def total(names: list[str], directions: dict[str, Array], step: float) -> float:
        shifted = exact | {n: exact[n] + step * directions[n] for n in names}
        outputs, _ = forward(shifted, images, config, training=True)
        return loss_on_targets(outputs, held, config).total

    rng, step = np.random.default_rng([seed, 4]), 1e-8
    for group in sorted({p.group for p in table}):
        names = [p.name for p in table if p.group == group]
        for _ in range(2):
            directions = {n: rng.normal(size=gradients[n].shape) for n in names}
            slope = (total(names, directions, step) - total(names, directions, -step)) / (2 * step)
            actual = sum(float((gradients[n] * directions[n]).sum()) for n in names)
            size = float(np.sqrt(sum(np.square(gradients[n]).sum() for n in names)))
            backend.require_near(
                actual / (size + 1e-3),
                slope / (size + 1e-3),
                "training.gradient",
                f"the slope along a random direction of the group {group}",
            )


def _ordered(tensors: Parameters, table: list[Any]) -> list[Array]:
    return [tensors[p.name] for p in table]


@check("training", "training.names", pinned=[NORMALISED, BIASED])
def names(backend: CheckedBackend, config: Config) -> None:
    """A new trainer holds all parameters of the specification's table, unchanged."""
    parameters = inputs.seeded_parameters(config, 0)
    trainer = backend.trainer(config, parameters)
    actual = backend.valid("parameters", trainer.parameters, parameters)
    for entry in parameter_table(config):
        same = np.array_equal(actual[entry.name], parameters[entry.name])
        backend.require(same, f"{entry.name} differs from the parameter passed in")


# In float16

HALF: dict[str, Any] = {"precision": "float16", "loss_scale": None}
HALF_BIASED = replace(BIASED, optimizer=HALF)
HALF_CLIPPED = replace(HALF_BIASED, optimizer={"clip_norm": 0.5})
HALF_ZOO = replace(ZOO_LIKE, optimizer=HALF)
LARGEST_SCALE = 2.0**24
"""With it the gradients of the heads alone overflow float16."""
FALLING = {
    "optimizer": {"loss_scale": LARGEST_SCALE, "loss_scale_window": 40},
    "schedule": {
        "kind": "cosine",
        "steps": 40,
        "warmup_steps": 0,
        "warmup_rate": 0.0,
        "milestones": (),
    },
}
"""The loss scale is too large at first, and no two steps have the same rate."""


def first_step(
    config: Config, built: BuiltCase, momentum_buffers: Parameters | None = None
) -> Step:
    """The specification's first step."""
    batch = built.batch.images, built.boxes, built.labels
    zeros = {p.name: np.zeros(p.shape, np.float32) for p in trained_parameters(config)}
    return training_step(built.parameters, momentum_buffers or zeros, *batch, 0, config)


def require_scale(backend: CheckedBackend, trainer: Any, expected: LossScale) -> None:
    """Raise unless the trainer's loss scale and its count of good steps are these."""
    want = astuple(expected)
    actual = backend.valid("loss_scale", lambda: astuple(trainer.loss_scale()), want)
    backend.require(actual == want, "the loss scale of the next step differs", actual, want)


@check(
    "training",
    "training.float16_update",
    pinned=[(HALF_BIASED, 5, (2, 1)), (HALF_CLIPPED, 5, (2, 1)), (HALF_ZOO, 1, (2, 1))],
)
def half_update(backend: CheckedBackend, case: Case) -> None:
    """In float16 a step is the specification's, within the tolerances of float16.

    Without batch normalisation of few numbers, which makes the loss so steep that rounding
    decides the direction of a step.
    """
    built = build(case)
    trainer = backend.trainer(case[0], built.parameters)
    losses = take_step(backend, trainer, built.batch)
    done = first_step(case[0], built)
    backend.compare("step", losses, expected_losses(done.loss), "training.loss")
    compare_state(backend, trainer, done.parameters, done.momentum_buffers, "one step")


@check("training", "training.float16_overflow", pinned=[(replace(HALF_ZOO, **FALLING), 1, (2, 1))])
def overflow(backend: CheckedBackend, case: Case) -> None:
    """A step whose gradient overflows trains nothing, halves the scale, advances the schedule."""
    config = case[0]
    built = build(case)
    buffers = {p.name: built.parameters[p.name] / 64 for p in trained_parameters(config)}
    trainer = backend.trainer(config, built.parameters, buffers)
    losses = take_step(backend, trainer, built.batch)
    done = first_step(config, built, buffers)
    skipped = expected_losses(done.loss)._replace(skipped=True)
    backend.compare("step", losses, skipped, "training.loss")
    compare_state(backend, trainer, done.parameters, done.momentum_buffers, "one step")
    kept = trainer.parameters(), trainer.momentum_buffers()
    for entry in trained_parameters(config):
        for now, before in zip(kept, (built.parameters, buffers), strict=True):
            same = np.array_equal(now[entry.name], before[entry.name])
            backend.require(same, f"{entry.name} changes in a step that overflows")
    scale, step = LARGEST_SCALE / 2, 1
    require_scale(backend, trainer, LossScale(scale))
    while take_step(backend, trainer, built.batch).skipped:
        scale, step = scale / 2, step + 1
        backend.require(scale > 1, "the gradient overflows with every loss scale")
        require_scale(backend, trainer, LossScale(scale))
    require_scale(backend, trainer, LossScale(scale, 1))
    # One step moved the parameters by the momentum buffers times its rate.
    expected = learning_rate(step, config.schedule)
    after, momentum_buffers = trainer.parameters(), trainer.momentum_buffers()
    product = square = 0.0
    for entry in trained_parameters(config):
        if entry.group != "bias":
            v = momentum_buffers[entry.name].astype(np.float64)
            product += float(((built.parameters[entry.name] - after[entry.name]) * v).sum())
            square += float(np.square(v).sum())
    rate = product / square
    holds = abs(rate - expected) < 1e-3 * expected
    backend.require(holds, "the first step that trains has the wrong rate", rate, expected)


@check(
    "training",
    "training.loss_scale",
    pinned=[
        (None, 256.0, 0, 256.0, 0),
        (2, 256.0, 1, 512.0, 0),
        (1, 192.0, 0, 384.0, 0),
    ],
)
def half_scale(backend: CheckedBackend, case: tuple[int | None, float, int, float, int]) -> None:
    """A window of steps without overflow doubles the scale; without a window it stays."""
    window, scale, good, expected, expected_good = case
    config = replace(HALF_ZOO, optimizer={"loss_scale_window": window})
    built = build((config, 1, (2, 1)))
    trainer = backend.trainer(config, built.parameters, None, 0, LossScale(scale, good))
    require_scale(backend, trainer, LossScale(scale, good))
    losses = take_step(backend, trainer, built.batch)
    require_scale(backend, trainer, LossScale(expected, expected_good))
    done = first_step(config, built)  # the same with every scale
    backend.compare("step", losses, expected_losses(done.loss), "training.loss")
    compare_state(backend, trainer, done.parameters, done.momentum_buffers, "one step")


@check("training", "training.float16_resume", pinned=[(HALF_ZOO, 1, (2, 1))])
def half_resume(backend: CheckedBackend, case: Case) -> None:
    """A resumed training in float16 continues exactly, with its loss scale."""
    config = replace(case[0], optimizer={"loss_scale": 64.0, "loss_scale_window": 2})
    built = build((config, *case[1:]))
    whole = backend.trainer(config, built.parameters)
    for _ in range(3):
        take_step(backend, whole, built.batch)
    require_scale(backend, whole, LossScale(128.0, 1))
    state = whole.momentum_buffers(), 3, whole.loss_scale()
    resumed = backend.trainer(config, whole.parameters(), *state)
    backend.compare(
        "step",
        take_step(backend, resumed, built.batch),
        take_step(backend, whole, built.batch),
        "training.loss",
    )
    compare_state(backend, resumed, whole.parameters(), whole.momentum_buffers(), "one step")
    require_scale(backend, resumed, LossScale(256.0))
