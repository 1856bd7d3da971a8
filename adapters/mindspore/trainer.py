"""Training steps in MindSpore: one compiled graph from batch to updated parameters."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from refinedet.adapters.mindspore.collective import over_workers, workers
from refinedet.adapters.mindspore.losses import DetectorLoss
from refinedet.adapters.mindspore.network import Detector, load_parameters, read_parameters
from refinedet.backend import Batch, StepLosses
from refinedet.group import ALONE, Group
from refinedet.spec.config import Config, ScheduleConfig
from refinedet.spec.errors import Array
from refinedet.spec.network import Parameters, parameter_table
from refinedet.spec.schedule import learning_rate


def learning_rates(config: ScheduleConfig) -> Array:
    """``spec.schedule.learning_rate`` of every step, (steps,) float64."""
    return np.array([learning_rate(step, config) for step in range(config.steps)])


def momentum(detector: Detector, config: Config) -> nn.Momentum:
    """``spec.optimizer.momentum_step``: groups, decay, and the rate of every step."""
    options, rates = config.optimizer, learning_rates(config.schedule)
    groups = {p.name: p.group for p in parameter_table(config)}
    rest = options.weight_decay if options.decay_all else 0.0
    settings = {
        "decay": (options.weight_decay, 1.0),
        "no_decay": (rest, 1.0),
        "bias": (rest, options.bias_rate),
    }
    members = {
        group: [p for p in detector.trainable_params() if groups[p.name] == group]
        for group in settings
    }
    return nn.Momentum(
        [
            {
                "params": members[group],
                "weight_decay": decay,
                "lr": ms.Tensor((rates * factor).astype(np.float32)),
            }
            for group, (decay, factor) in settings.items()
            if members[group]
        ],
        learning_rate=ms.Tensor(rates.astype(np.float32)),
        momentum=options.momentum,
    )


def load_velocities(optimizer: nn.Momentum, velocities: Parameters) -> None:
    """Give the optimizer its moments by the names of their parameters."""
    for weight, moment in zip(optimizer.parameters, optimizer.moments, strict=True):
        moment.set_data(ms.Tensor(velocities[weight.name]))


def read_velocities(optimizer: nn.Momentum) -> Parameters:
    """Copies of the moments by the names of their parameters."""
    pairs = zip(optimizer.parameters, optimizer.moments, strict=True)
    return {weight.name: moment.asnumpy().copy() for weight, moment in pairs}


class Update(nn.Cell):
    """From gradients of the scaled loss to new parameters: unscale, clip, momentum."""

    def __init__(self, optimizer: nn.Momentum, config: Config) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.unscale = 1 / config.optimizer.loss_scale
        self.clip_norm = config.optimizer.clip_norm

    def construct(self, gradients: tuple[ms.Tensor, ...]) -> bool:
        if self.unscale != 1:
            gradients = ops.HyperMap()(ops.partial(ops.mul, self.unscale), gradients)
        if self.clip_norm is not None:
            gradients = ops.clip_by_global_norm(gradients, self.clip_norm)
        return self.optimizer(gradients)


class TrainStep(nn.Cell):
    """Loss, gradient, update; returns the four parts of the loss, of all workers."""

    def __init__(self, loss: DetectorLoss, optimizer: nn.Momentum, config: Config) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.update = Update(optimizer, config)
        self.grad = ops.value_and_grad(loss, None, optimizer.parameters, has_aux=True)
        self.total, self.reduced = over_workers(), nn.Identity()
        if workers() > 1:
            self.reduced = nn.DistributedGradReducer(optimizer.parameters, mean=False)

    def construct(self, *batch: ms.Tensor) -> ms.Tensor:
        (_, parts), gradients = self.grad(*batch)
        return ops.depend(self.total(parts), self.update(self.reduced(gradients)))


class MindSporeTrainer:
    """``refinedet.backend.Trainer`` on the device that is set."""

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        velocities: Parameters | None = None,
        steps_done: int = 0,
        group: Group = ALONE,
    ) -> None:
        self.group = group
        self.detector = Detector(config)
        load_parameters(self.detector, parameters)
        self.optimizer = momentum(self.detector, config)
        if velocities is not None:
            load_velocities(self.optimizer, velocities)
        self.optimizer.global_step.set_data(ms.Tensor(np.array([steps_done], np.int32)))
        self.run = TrainStep(DetectorLoss(self.detector, config), self.optimizer, config)
        self.run.set_train()
        self.first = True

    def step(self, batch: Batch) -> StepLosses:
        """One step; see ``refinedet.backend.Trainer``."""
        tensors = [ms.Tensor(array) for array in batch]
        if self.group.size > 1 and self.first:
            # Compiling takes one worker longer than another, and a sum over workers on the
            # CPU waits half a minute for the last of them.
            self.run.compile(*tensors)
            self.group.gather(None)
        self.first = False
        parts = self.run(*tensors).asnumpy()
        arm_offsets, arm_logits, odm_offsets, odm_logits = (float(x) for x in parts)
        total = arm_offsets + arm_logits + odm_offsets + odm_logits
        return StepLosses(arm_offsets, arm_logits, odm_offsets, odm_logits, total)

    def parameters(self) -> Parameters:
        """Copies of all parameters by canonical name."""
        return read_parameters(self.detector)

    def velocities(self) -> Parameters:
        """Copies of the momentum by canonical name."""
        return read_velocities(self.optimizer)
