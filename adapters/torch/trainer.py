"""Training steps in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from refinedet.adapters.torch.losses import detector_loss
from refinedet.adapters.torch.network import Detector
from refinedet.adapters.torch.tensors import to_parameters, to_tensor
from refinedet.backends.interface import StepLosses
from refinedet.data.batch import Batch
from refinedet.spec.config import Config, OptimizerConfig
from refinedet.spec.network import Parameter, Parameters, trained_parameters
from refinedet.spec.optimizer import LossScale, next_loss_scale
from refinedet.spec.schedule import learning_rate

Tensors = dict[str, Tensor]
"""By canonical name."""


@torch.no_grad()
def momentum_step(
    tensors: Tensors,
    gradients: Tensors,
    momentum_buffers: Tensors,
    rate: float,
    trained: list[Parameter],
    options: OptimizerConfig,
    scale: float,
) -> None:
    """``spec.optimizer.momentum_step``, in the tensors and momentum buffers themselves."""
    gradients = {name: g / scale for name, g in gradients.items()}
    if options.clip_norm is not None:
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients.values()]
        shrink = (options.clip_norm / torch.stack(norms).norm()).clamp(max=1)
        gradients = {name: g * shrink for name, g in gradients.items()}
    for entry in trained:
        decay = options.weight_decay if entry.group == "decay" or options.decay_all else 0.0
        factor = options.bias_rate if entry.group == "bias" else 1.0
        tensor, momentum_buffer = tensors[entry.name], momentum_buffers[entry.name]
        momentum_buffer.mul_(options.momentum).add_(gradients[entry.name]).add_(tensor, alpha=decay)
        tensor.sub_(momentum_buffer, alpha=rate * factor)


class TorchTrainer:
    """``Trainer`` on one device."""

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        momentum_buffers: Parameters | None,
        steps_done: int,
        loss_scale: LossScale | None,
        device: str,
    ) -> None:
        options = config.optimizer
        self._half = options.precision == "float16"
        self._scale = loss_scale or LossScale(options.scale)
        self.config = config
        self.device = device
        self.steps_done = steps_done
        self.detector = Detector(config, parameters, device, training=True, half=self._half)
        self._trained = trained_parameters(config)
        self._weights = {p.name: self.detector.tensors[p.name] for p in self._trained}
        for weight in self._weights.values():
            weight.requires_grad_()
        if momentum_buffers is None:
            self._moments = {name: torch.zeros_like(w) for name, w in self._weights.items()}
        else:
            self._moments = {
                name: to_tensor(momentum_buffers[name], device) for name in self._weights
            }

    def step(self, batch: Batch) -> StepLosses:
        """One step; see ``Trainer``."""
        images, boxes, labels, target, assigned = (to_tensor(x, self.device) for x in batch)
        constants = boxes, labels, target, assigned, self.detector.anchors
        parts = detector_loss(self.detector(images), *constants, self.config)
        scale, options = self._scale, self.config.optimizer
        gradients = torch.autograd.grad(parts.sum() * scale.scale, list(self._weights.values()))
        finite = not self._half or all(bool(g.isfinite().all()) for g in gradients)
        if finite:
            momentum_step(
                self._weights,
                dict(zip(self._weights, gradients, strict=True)),
                self._moments,
                learning_rate(self.steps_done, self.config.schedule),
                self._trained,
                options,
                scale.scale,
            )
        self._scale = next_loss_scale(scale, finite, options.loss_scale_window)
        self.steps_done += 1
        arm_offsets, arm_logits, odm_offsets, odm_logits = parts.tolist()
        total = arm_offsets + arm_logits + odm_offsets + odm_logits
        return StepLosses(arm_offsets, arm_logits, odm_offsets, odm_logits, total, not finite)

    def parameters(self) -> Parameters:
        """Copies of all parameters by canonical name."""
        return to_parameters(self.detector.tensors)

    def momentum_buffers(self) -> Parameters:
        """Copies of the momentum by canonical name."""
        return to_parameters(self._moments)

    def loss_scale(self) -> LossScale:
        """Of the next step, in float16."""
        return self._scale
