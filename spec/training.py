"""One training step: from a batch to new parameters.

1. The forward pass in training mode: heads and new running statistics.
2. The loss, and its gradient with respect to the heads, times the loss scale.
3. The backward pass through the network.
4. The optimizer, at the schedule's rate.

With ``optimizer.precision`` float16 a gradient may overflow. Step 4 is then skipped:
parameters and momentum buffers stay as they are. The running statistics are new, because the
forward pass was valid, and the schedule goes on: the next step has the next rate. A loss that
is not finite is a different failure, which no scale repairs.

Here a step in float16 is computed in the dtype of the arguments; only its overflow is
imitated. A backend in float16 is compared with this exact step, with tolerances of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refinedet.spec.config import Config
from refinedet.spec.losses import Loss, detector_loss
from refinedet.spec.network import Heads, Parameters, forward_and_backward, trained_parameters
from refinedet.spec.optimizer import LossScale, momentum_step, next_loss_scale
from refinedet.spec.schedule import learning_rate
from refinedet.spec.types import Array

LARGEST_FLOAT16 = 65504.0
"""IEEE 754-2008, table 3.5: binary16."""


class Step(NamedTuple):
    """The result of one training step."""

    loss: Loss
    """Before the update."""
    parameters: Parameters
    """All of them, running statistics included."""
    momentum_buffers: Parameters
    """Of every trained parameter."""
    scale: LossScale
    """Of the next step."""
    skipped: bool
    """Whether the gradient overflowed; parameters and momentum buffers are then the old ones."""


def loss_gradients(
    parameters: Parameters,
    images: Array,
    boxes: list[Array],
    labels: list[Array],
    config: Config,
    scale: float | None = None,
) -> tuple[Loss, Parameters, Parameters]:
    """The loss of a batch, its gradients times the loss scale, and the new statistics.

    In float16 all gradients are infinite if a gradient with respect to the heads, times the
    scale, exceeds 65504. A backend may overflow inside the network, too.

    Args:
        parameters, images: as ``spec.network.forward``.
        boxes, labels: as ``spec.losses.detector_loss``.
        scale: the loss scale; None is the config's.
    """
    heads, statistics, backward = forward_and_backward(parameters, images, config)
    loss = detector_loss(heads, boxes, labels, config)
    factor = images.dtype.type(config.optimizer.scale if scale is None else scale)
    by_heads = (
        loss.arm.offsets_gradient,
        loss.arm.logits_gradient,
        loss.odm.offsets_gradient,
        loss.odm.logits_gradient,
    )
    scaled = Heads(*(factor * d for d in by_heads))
    largest = max(float(np.abs(d).max()) for d in scaled)
    if config.optimizer.precision == "float16" and largest > LARGEST_FLOAT16:
        trained = trained_parameters(config)
        return loss, {p.name: np.full(p.shape, np.inf, factor.dtype) for p in trained}, statistics
    return loss, backward(scaled), statistics


def training_step(
    parameters: Parameters,
    momentum_buffers: Parameters,
    images: Array,
    boxes: list[Array],
    labels: list[Array],
    step: int,
    config: Config,
    scale: LossScale | None = None,
) -> Step:
    """Step number ``step``, counted from 0; the arguments stay as they are.

    Args:
        scale: as the last step returned it; None at the start.
    Raises:
        SpecError: see ``forward``, ``detector_loss`` and ``momentum_step``.
    Source: those of the parts; see their modules.
    """
    options = config.optimizer
    now = scale or LossScale(options.scale)
    loss, gradients, statistics = loss_gradients(
        parameters, images, boxes, labels, config, now.scale
    )
    finite = all(np.isfinite(g).all() for g in gradients.values())
    after = next_loss_scale(now, finite, options.loss_scale_window)
    if options.precision == "float16" and not finite:
        return Step(loss, parameters | statistics, momentum_buffers, after, skipped=True)
    rate = learning_rate(step, config.schedule)
    new, moved = momentum_step(parameters, gradients, momentum_buffers, rate, config, now.scale)
    return Step(loss, new | statistics, moved, after, skipped=False)
