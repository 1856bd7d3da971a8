"""One training step: from a batch to new parameters.

1. Forward in training: heads, new running statistics. 2. The loss and its gradient
by the heads, times the loss scale. 3. Back through the network. 4. The optimizer, at
the schedule's rate.
"""

from __future__ import annotations

from typing import NamedTuple

from refinedet.spec.config import Config
from refinedet.spec.errors import Array
from refinedet.spec.losses import Loss, detector_loss
from refinedet.spec.network import Heads, Parameters, forward_and_back
from refinedet.spec.optimizer import momentum_step
from refinedet.spec.schedule import learning_rate


class Step(NamedTuple):
    """What one step leaves behind."""

    loss: Loss
    """Before the update."""
    parameters: Parameters
    """All of them, running statistics included."""
    velocities: Parameters
    """Of every trained parameter."""


def loss_gradients(
    parameters: Parameters,
    pictures: Array,
    boxes: list[Array],
    labels: list[Array],
    config: Config,
) -> tuple[Loss, Parameters, Parameters]:
    """The loss of a batch, its gradients times the loss scale, and the new statistics.

    Args:
        parameters, pictures: as ``spec.network.forward``.
        boxes, labels: as ``spec.losses.detector_loss``.
    """
    heads, statistics, back = forward_and_back(parameters, pictures, config)
    loss = detector_loss(heads, boxes, labels, config)
    scale = pictures.dtype.type(config.optimizer.loss_scale)
    by_heads = (
        loss.arm.offsets_gradient,
        loss.arm.logits_gradient,
        loss.odm.offsets_gradient,
        loss.odm.logits_gradient,
    )
    return loss, back(Heads(*(scale * d for d in by_heads))), statistics


def training_step(
    parameters: Parameters,
    velocities: Parameters,
    pictures: Array,
    boxes: list[Array],
    labels: list[Array],
    step: int,
    config: Config,
) -> Step:
    """Step number ``step``, counted from 0; the arguments stay as they are.

    Raises:
        ContractError: what the network, the loss or the optimizer refuses.
    Source: as of each part; see their modules.
    """
    loss, gradients, statistics = loss_gradients(parameters, pictures, boxes, labels, config)
    rate = learning_rate(step, config.schedule)
    new, moved = momentum_step(parameters, gradients, velocities, rate, config)
    return Step(loss, new | statistics, moved)
