"""Training steps in MindSpore: one compiled graph from batch to updated parameters."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from refinedet.adapters.mindspore.losses import DetectorLoss
from refinedet.adapters.mindspore.network import Detector, load_parameters, read_parameters
from refinedet.backend import Batch, StepLosses
from refinedet.spec.config import Config
from refinedet.spec.network import Parameters, parameter_table
from refinedet.spec.schedule import learning_rate


def momentum(detector: Detector, config: Config) -> nn.Momentum:
    """``spec.optimizer.momentum_step``: groups, decay, and the rate of every step."""
    options, schedule = config.optimizer, config.schedule
    rates = np.array([learning_rate(s, schedule) for s in range(schedule.steps)])
    groups = {p.name: p.group for p in parameter_table(config)}
    settings = {
        "decay": (options.weight_decay, 1.0),
        "no_decay": (0.0, 1.0),
        "bias": (0.0, options.bias_rate),
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


class TrainStep(nn.Cell):
    """Loss, gradient, clipping, update; returns the four parts of the loss."""

    def __init__(self, loss: DetectorLoss, optimizer: nn.Momentum, config: Config) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.optimizer = optimizer
        self.weights = optimizer.parameters
        self.grad = ops.value_and_grad(loss, None, self.weights, has_aux=True)
        self.unscale = 1 / config.optimizer.loss_scale
        self.clip_norm = config.optimizer.clip_norm

    def construct(self, *batch: ms.Tensor) -> ms.Tensor:
        (_, parts), gradients = self.grad(*batch)
        if self.unscale != 1:
            gradients = ops.HyperMap()(ops.partial(ops.mul, self.unscale), gradients)
        if self.clip_norm is not None:
            gradients = ops.clip_by_global_norm(gradients, self.clip_norm)
        return ops.depend(parts, self.optimizer(gradients))


class MindSporeTrainer:
    """``refinedet.backend.Trainer`` on the device that is set."""

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        velocities: Parameters | None = None,
        steps_done: int = 0,
    ) -> None:
        self.detector = Detector(config)
        load_parameters(self.detector, parameters)
        self.optimizer = momentum(self.detector, config)
        if velocities is not None:
            for weight, moment in zip(
                self.optimizer.parameters, self.optimizer.moments, strict=True
            ):
                moment.set_data(ms.Tensor(velocities[weight.name]))
        self.optimizer.global_step.set_data(ms.Tensor(np.array([steps_done], np.int32)))
        self.run = TrainStep(DetectorLoss(self.detector, config), self.optimizer, config)
        self.run.set_train()

    def step(self, batch: Batch) -> StepLosses:
        """One step; see ``refinedet.backend.Trainer``."""
        parts = self.run(*(ms.Tensor(array) for array in batch)).asnumpy()
        arm_offsets, arm_logits, odm_offsets, odm_logits = (float(x) for x in parts)
        total = arm_offsets + arm_logits + odm_offsets + odm_logits
        return StepLosses(arm_offsets, arm_logits, odm_offsets, odm_logits, total)

    def parameters(self) -> Parameters:
        """Copies of all parameters by canonical name."""
        return read_parameters(self.detector)

    def velocities(self) -> Parameters:
        """Copies of the momentum by canonical name."""
        return {
            weight.name: moment.asnumpy().copy()
            for weight, moment in zip(
                self.optimizer.parameters, self.optimizer.moments, strict=True
            )
        }
