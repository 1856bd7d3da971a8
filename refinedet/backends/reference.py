"""The specification as a backend: ``spec``. Exact and slow."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from refinedet.backends.interface import Backend, StepLosses
from refinedet.backends.operations import OPERATIONS
from refinedet.data.batch import Batch
from refinedet.spec.config import PRECISIONS, Config
from refinedet.spec.detection import scored_boxes
from refinedet.spec.network import (
    Heads,
    Parameters,
    check_parameters,
    forward,
    trained_parameters,
)
from refinedet.spec.optimizer import LossScale
from refinedet.spec.training import training_step
from refinedet.spec.types import Array


class SpecNetwork:
    """``Network`` by ``refinedet.spec``."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        check_parameters(parameters, config)
        self.config = config
        self.tensors = parameters

    def heads(self, images: Array) -> Heads:
        """The raw outputs."""
        return forward(self.tensors, images, self.config)[0]

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor."""
        return scored_boxes(self.heads(images), self.config)


class SpecTrainer:
    """``Trainer`` by ``refinedet.spec``."""

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        momentum_buffers: Parameters | None,
        steps_done: int,
        loss_scale: LossScale | None = None,
    ) -> None:
        check_parameters(parameters, config)
        self.config = config
        self.tensors = parameters
        self.moments = momentum_buffers or {
            p.name: parameters[p.name] * 0 for p in trained_parameters(config)
        }
        self.steps_done = steps_done
        self.scale = loss_scale or LossScale(config.optimizer.scale)

    def step(self, batch: Batch) -> StepLosses:
        """One step; the ARM's targets are computed anew, not read from the batch."""
        counts = (batch.labels > 0).sum(axis=1)
        done = training_step(
            self.tensors,
            self.moments,
            batch.images,
            [boxes[:count] for boxes, count in zip(batch.boxes, counts, strict=True)],
            [labels[:count] for labels, count in zip(batch.labels, counts, strict=True)],
            self.steps_done,
            self.config,
            self.scale,
        )
        self.tensors, self.moments = done.parameters, done.momentum_buffers
        self.scale = done.scale
        self.steps_done += 1
        arm, odm = done.loss
        return StepLosses(
            arm.offsets, arm.classes, odm.offsets, odm.classes, done.loss.total, done.skipped
        )

    def parameters(self) -> Parameters:
        """Copies of all parameters by canonical name."""
        return {name: tensor.copy() for name, tensor in self.tensors.items()}

    def momentum_buffers(self) -> Parameters:
        """Copies of the momentum by canonical name."""
        return {name: tensor.copy() for name, tensor in self.moments.items()}

    def loss_scale(self) -> LossScale:
        """Of the next step."""
        return self.scale


class SpecBackend(Backend):
    """``Backend`` by ``refinedet.spec``; it reads and writes no files."""

    name = "spec"
    capabilities = frozenset({"operations", "network", "trainer"})
    precisions = PRECISIONS
    operations = SimpleNamespace(**OPERATIONS)

    def missing(self) -> str | None:
        """None: NumPy is all it needs."""
        return None

    def describe(self) -> str:
        """NumPy's version."""
        return f"NumPy {np.__version__}"

    def network(self, config: Config, parameters: Parameters) -> SpecNetwork:
        """See ``Backend``."""
        return SpecNetwork(config, parameters)

    def trainer(
        self,
        config: Config,
        parameters: Parameters,
        momentum_buffers: Parameters | None = None,
        steps_done: int = 0,
        loss_scale: LossScale | None = None,
    ) -> SpecTrainer:
        """See ``Backend``."""
        return SpecTrainer(config, parameters, momentum_buffers, steps_done, loss_scale)
