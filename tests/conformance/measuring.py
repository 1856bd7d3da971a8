"""Backends that measure the errors of float32 and float16, for the table of tolerances."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np

from refinedet.backends.interface import Backend, StepLosses
from refinedet.backends.reference import SpecNetwork, SpecTrainer
from refinedet.data.batch import Batch
from refinedet.spec.config import Config
from refinedet.spec.layers import GRADIENTS, Tape, batch_normalise, l2_normalise
from refinedet.spec.network import Heads, Parameters
from refinedet.spec.optimizer import LossScale
from refinedet.spec.types import Array

NORMALISING = batch_normalise, l2_normalise


def single(tensors: Parameters) -> Parameters:
    """The tensors rounded to float32."""
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def double(tensors: Parameters) -> Parameters:
    """The tensors as float64."""
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


class Float64Network:
    """The specification in float64, rounded once."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        self.config = config
        self.exact = SpecNetwork(config, double(parameters))

    def heads(self, images: Array) -> Heads:
        return Heads(*(h.astype(np.float32) for h in self.exact.heads(images.astype(np.float64))))

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        boxes, scores = self.exact.scored_boxes(images.astype(np.float64))
        return boxes.astype(np.float32), scores.astype(np.float32)


class Float64Trainer:
    """The specification's training in float64, rounded when it is read."""

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        momentum_buffers: Parameters | None = None,
        steps_done: int = 0,
    ) -> None:
        moments = momentum_buffers and double(momentum_buffers)
        self.exact = SpecTrainer(config, double(parameters), moments, steps_done)

    def step(self, batch: Batch) -> StepLosses:
        wide = {"images": batch.images, "boxes": batch.boxes}
        exact = {name: array.astype(np.float64) for name, array in wide.items()}
        return self.exact.step(batch._replace(**exact))

    def parameters(self) -> Parameters:
        return single(self.exact.parameters())

    def momentum_buffers(self) -> Parameters:
        return single(self.exact.momentum_buffers())


class Float64(Backend):
    """The specification in float64: measures the error of its float32."""

    name = "spec-float64"
    capabilities = frozenset({"network", "trainer"})

    def missing(self) -> str | None:
        return None

    def network(self, config: Config, parameters: Parameters) -> Float64Network:
        return Float64Network(config, parameters)

    def trainer(self, *arguments: Any) -> Float64Trainer:
        return Float64Trainer(*arguments)


def half(array: Array) -> Array:
    """The numbers rounded to float16, held in float32."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float32)


class HalfTape(Tape):
    """Every activation and every gradient rounded to float16; sums and normalisation are not."""

    def __call__(self, layer: Any, *arrays: Array, **options: Any) -> Array:
        out = half(layer(*self._read(layer, arrays), **options))
        self._steps.append((out, layer, arrays, options))
        return out

    def backward(self, outputs: list[tuple[Array, Array]], expected: Parameters) -> Parameters:
        gradients = {id(out): half(d) for out, d in outputs}
        for out, layer, arrays, options in reversed(self._steps):
            d = gradients.pop(id(out), None)
            if d is None:
                continue
            gradients_in = GRADIENTS[layer](d, *self._read(layer, arrays), **options)
            for array, g in zip(arrays, gradients_in, strict=False):
                before = gradients.get(id(array))
                exact = layer in NORMALISING and array.ndim == 1  # float32 parameters
                g = g if exact else half(g)
                gradients[id(array)] = g if before is None else half(before + g)
        return {n: gradients.get(id(a), np.zeros_like(a)) for n, a in expected.items()}

    @staticmethod
    def _read(layer: Any, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        return arrays if layer in NORMALISING else tuple(half(a) for a in arrays)


class Float16Trainer(SpecTrainer):
    """The specification's training with activations in float16."""

    def step(self, batch: Batch) -> StepLosses:
        quiet = np.errstate(over="ignore", invalid="ignore")  # of a gradient that overflows
        with quiet, mock.patch("refinedet.spec.network.Tape", HalfTape):
            return super().step(batch)


class Float16(Backend):
    """The specification with the activations of a training in float16."""

    name = "spec-float16"
    capabilities = frozenset({"trainer"})
    precisions = ("float16",)

    def missing(self) -> str | None:
        return None

    def trainer(
        self,
        config: Config,
        parameters: Parameters,
        momentum_buffers: Parameters | None = None,
        steps_done: int = 0,
        loss_scale: LossScale | None = None,
    ) -> Float16Trainer:
        return Float16Trainer(config, parameters, momentum_buffers, steps_done, loss_scale)
