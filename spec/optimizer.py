"""Optimizer: from a gradient to new parameters.

1. Divide by the loss scale. 2. If ``clip_norm`` is set and the L2 norm over all
gradients is larger, scale all of them down to it. 3. Add weight decay to the
parameters of the group "decay", or to all. 4. Momentum: ``buffer = momentum * buffer +
gradient``, ``parameter -= rate * buffer``; for biases the rate is multiplied by
``bias_rate``.

In float16 a scaled gradient may overflow: such a step is skipped (``refinedet.spec.training``),
and the next step may have another scale (``next_loss_scale``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refinedet.spec.config import SCALES, Config, is_number
from refinedet.spec.errors import SpecError
from refinedet.spec.network import check_tensors, parameter_table, trained_parameters
from refinedet.spec.types import Array

Tensors = dict[str, Array]


@dataclass(frozen=True)
class LossScale:
    """The loss scale of a step, and the count that decides the next one.

    Attributes:
        scale: multiplies the loss of this step.
        good_steps: without overflow, one after another, since the scale was last changed.
    Raises:
        SpecError: a scale that is not a number from 1e-6, or a count that is no whole
            number from 0.
    """

    scale: float
    good_steps: int = 0

    def __post_init__(self) -> None:
        if not is_number(self.scale, 1e-6):
            raise SpecError(f"expected a number above 0, got {self.scale!r}", key="loss scale")
        count = self.good_steps
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise SpecError(f"want a whole number from 0, got {count!r}", key="good steps")


def next_loss_scale(now: LossScale, finite: bool, window: int | None) -> LossScale:
    """The loss scale of the step after one with ``now``.

    Half of it after an overflow, twice of it after ``window`` steps without, but from 1 to
    2**24; without a window it stays.

    Args:
        finite: the gradient did not overflow.
        window: ``optimizer.loss_scale_window``.
    Source: MindSpore, ``nn.DynamicLossScaleUpdateCell``, which has no upper end.
    """
    if window is None:
        return now
    lowest, highest = SCALES
    if not finite:
        return LossScale(max(now.scale / 2, lowest))
    if now.good_steps + 1 < window:
        return LossScale(now.scale, now.good_steps + 1)
    return LossScale(min(now.scale * 2, highest))


def clip_by_global_norm(gradients: Tensors, norm: float) -> Tensors:
    """Gradients whose common L2 norm is at most ``norm``; computed in float64.

    A norm of exactly ``norm`` is left alone.
    """
    squares = [np.square(g.astype(np.float64)).sum() for g in gradients.values()]
    total = float(np.sqrt(sum(squares)))
    if total <= norm:
        return gradients
    scale = norm / total
    return {n: (g.astype(np.float64) * scale).astype(g.dtype) for n, g in gradients.items()}


def momentum_step(
    parameters: Tensors,
    gradients: Tensors,
    momentum_buffers: Tensors,
    rate: float,
    config: Config,
    scale: float | None = None,
) -> tuple[Tensors, Tensors]:
    """One update of all trained parameters.

    Args:
        parameters: by canonical name; running statistics pass through.
        gradients: of the scaled loss, for every trained parameter.
        momentum_buffers: as the last step returned them; zeros at the start.
        rate: learning rate of this step.
        scale: loss scale of this step; None is the config's.
    Returns:
        New parameters and new momentum buffers, in their dtype; the arguments stay as
        they are. Steps 1 and 2 each round to the dtype of the gradients, steps 3
        and 4 are computed in float64 and rounded once.
    Raises:
        SpecError: tensors that are not those of the table, or not finite.
    Source: Sutskever et al., ICML 2013; groups as in the authors' release.
    """
    options = config.optimizer
    table = parameter_table(config)
    trained = trained_parameters(config)
    check_tensors("parameters", parameters, table)
    check_tensors("gradients", gradients, trained)
    check_tensors("momentum_buffers", momentum_buffers, trained)
    scale = options.scale if scale is None else scale
    gradients = {name: g / g.dtype.type(scale) for name, g in gradients.items()}
    if options.clip_norm is not None:
        gradients = clip_by_global_norm(gradients, options.clip_norm)
    new, moved = dict(parameters), {}
    for entry in trained:
        p = parameters[entry.name].astype(np.float64)
        g = gradients[entry.name].astype(np.float64)
        if entry.group == "decay" or options.decay_all:
            g = g + options.weight_decay * p
        v = options.momentum * momentum_buffers[entry.name].astype(np.float64) + g
        step = rate * options.bias_rate if entry.group == "bias" else rate
        dtype = parameters[entry.name].dtype
        moved[entry.name] = v.astype(dtype)
        new[entry.name] = (p - step * v).astype(dtype)
    return new, moved
