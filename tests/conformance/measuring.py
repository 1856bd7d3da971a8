"""Two backends that measure what float32 costs, for the table of tolerances."""

from __future__ import annotations

from typing import Any

import numpy as np

from refinedet.backend import Batch, StepLosses
from refinedet.reference import SpecNetwork, SpecTrainer
from refinedet.spec.config import Config
from refinedet.spec.errors import Array
from refinedet.spec.network import Heads, Parameters


def single(tensors: Parameters) -> Parameters:
    """The tensors rounded to float32."""
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def double(tensors: Parameters) -> Parameters:
    """The tensors as float64."""
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


class Float64Network:
    """The contract in float64, rounded once."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        self.config = config
        self.exact = SpecNetwork(config, double(parameters))

    def heads(self, pictures: Array) -> Heads:
        return Heads(*(h.astype(np.float32) for h in self.exact.heads(pictures.astype(np.float64))))

    def scored_boxes(self, pictures: Array) -> tuple[Array, Array]:
        boxes, scores = self.exact.scored_boxes(pictures.astype(np.float64))
        return boxes.astype(np.float32), scores.astype(np.float32)


class Float64Trainer:
    """The contract's training in float64, rounded when it is read."""

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        velocities: Parameters | None = None,
        steps_done: int = 0,
    ) -> None:
        moments = velocities and double(velocities)
        self.exact = SpecTrainer(config, double(parameters), moments, steps_done)

    def step(self, batch: Batch) -> StepLosses:
        wide = {"pictures": batch.pictures, "boxes": batch.boxes}
        exact = {name: array.astype(np.float64) for name, array in wide.items()}
        return self.exact.step(batch._replace(**exact))

    def parameters(self) -> Parameters:
        return single(self.exact.parameters())

    def velocities(self) -> Parameters:
        return single(self.exact.velocities())


class Float64:
    """The contract in float64: how far it is from itself in float32."""

    name = "spec-float64"

    def missing(self) -> str | None:
        return None

    def network(self, config: Config, parameters: Parameters) -> Float64Network:
        return Float64Network(config, parameters)

    def trainer(self, *arguments: Any) -> Float64Trainer:
        return Float64Trainer(*arguments)
