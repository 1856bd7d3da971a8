"""The specification's operations, one by one, as this backend computes them.

They call the functions of its network and trainer; what runs on the host (preparing images, the
ARM's targets, suppression, the schedule) is called as in the application. Arguments and
results: ``refinedet.backends.operations``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from refinedet.adapters.torch import boxes as geometry
from refinedet.adapters.torch import losses, matching, network, trainer
from refinedet.adapters.torch.boxes import centres_to_corners, corners_to_centres
from refinedet.adapters.torch.tensors import to_numpy, to_parameters, to_tensor
from refinedet.data.augment import normaliser
from refinedet.data.batch import padded
from refinedet.data.targets import ArmTargets
from refinedet.inference.postprocessing import clip_boxes, nms, postprocess
from refinedet.spec import schedule
from refinedet.spec.config import Config, ImageConfig, MatchingConfig
from refinedet.spec.losses import Loss, ModuleLoss
from refinedet.spec.network import Heads, Parameters, trained_parameters
from refinedet.spec.types import Array


class Operations:
    """The functions of ``refinedet.backends.operations.OPERATIONS`` on one device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def _tensors(self, *arrays: Array) -> tuple[Tensor, ...]:
        return tuple(to_tensor(array, self.device) for array in arrays)

    def _run(self, function: Callable[..., Tensor], *arrays: Array) -> Array:
        return to_numpy(function(*self._tensors(*arrays)))

    def _with_gradients(
        self, function: Callable[..., tuple[Tensor, ...]], *arrays: Array
    ) -> tuple[list[Tensor], list[Array]]:
        """The losses that ``function`` gives, and the gradients of their sum by the arrays."""
        tensors = [tensor.requires_grad_() for tensor in self._tensors(*arrays)]
        losses_ = function(*tensors)
        total = torch.stack([part.sum() for part in losses_]).sum()
        gradients = torch.autograd.grad(total, tensors)
        return [part.detach() for part in losses_], [to_numpy(g) for g in gradients]

    # Images, anchors, boxes

    def normalise(self, image: Array, config: ImageConfig) -> Array:
        return normaliser(config)(image)

    def anchors(self, config: Config) -> Array:
        return to_numpy(centres_to_corners(geometry.centre_anchors(config, self.device)))

    def corners_to_centres(self, boxes: Array) -> Array:
        return self._run(corners_to_centres, boxes)

    def centres_to_corners(self, boxes: Array) -> Array:
        return self._run(centres_to_corners, boxes)

    def box_iou(self, anchors: Array, ground_truth: Array) -> Array:
        return self._run(
            lambda a, t: geometry.pairwise_iou(t[None], a[None])[0].T, anchors, ground_truth
        )

    clip_boxes = staticmethod(clip_boxes)

    # Coding

    def encode(self, boxes: Array, anchors: Array, variances: tuple[float, ...]) -> Array:
        return self._run(
            lambda b, a: geometry.encode(b, corners_to_centres(a), variances), boxes, anchors
        )

    def decode(self, offsets: Array, anchors: Array, variances: tuple[float, ...]) -> Array:
        def run(o: Tensor, a: Tensor) -> Tensor:
            return centres_to_corners(geometry.decode(o, corners_to_centres(a), variances))

        return self._run(run, offsets, anchors)

    def cascaded_decode(
        self, arm_offsets: Array, odm_offsets: Array, anchors: Array, variances: tuple[float, ...]
    ) -> Array:
        def run(arm: Tensor, odm: Tensor, a: Tensor) -> Tensor:
            boxes = geometry.cascaded_decode(arm, odm, corners_to_centres(a), variances)
            return centres_to_corners(boxes)

        return self._run(run, arm_offsets, odm_offsets, anchors)

    # Matching

    def match(self, iou: Array, config: MatchingConfig) -> Array:
        if iou.size == 0:
            return np.full(len(iou), -1, np.int64)
        return self._run(lambda x: matching.match(x.T[None], config)[0], iou)

    def targets(
        self, anchors: Array, boxes: Array, labels: Array, config: Config
    ) -> tuple[Array, Array]:
        if len(anchors) == 0:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        a, b, c = self._tensors(anchors, *_padded([boxes], [labels]))
        offsets, assigned = matching.targets(corners_to_centres(a)[None], b, c.long(), config)
        return to_numpy(offsets[0]), to_numpy(assigned[0])

    # Losses

    def softmax(self, logits: Array) -> Array:
        return self._run(lambda x: x.softmax(-1), logits)

    def sigmoid(self, logits: Array) -> Array:
        return self._run(torch.sigmoid, logits)

    def cross_entropy(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        (classes,) = self._tensors(labels)
        return self._rows(lambda x: losses.cross_entropy(x, classes.long()), logits)

    def focal(
        self, logits: Array, labels: Array, alpha: float, gamma: float
    ) -> tuple[Array, Array]:
        (classes,) = self._tensors(labels)
        return self._rows(lambda x: losses.focal(x, classes, alpha, gamma), logits)

    def smooth_l1(self, predicted: Array, target: Array) -> tuple[Array, Array]:
        (goal,) = self._tensors(target)
        return self._rows(lambda x: losses.smooth_l1(x, goal), predicted)

    def _rows(self, function: Callable[[Tensor], Tensor], by: Array) -> tuple[Array, Array]:
        """Losses of rows (M,) and their gradients by ``by`` (M, K)."""
        (rows,), (gradient,) = self._with_gradients(lambda x: (function(x),), by)
        return to_numpy(rows), gradient

    def hard_negatives(
        self, losses_: Array, positive: Array, eligible: Array, ratio: float
    ) -> Array:
        def run(x: Tensor, p: Tensor, e: Tensor) -> Tensor:
            return losses.hard_negatives(x[None], p[None], e[None], ratio)[0]

        return self._run(run, losses_, positive, eligible)

    def module_loss(
        self,
        offsets: Array,
        logits: Array,
        target: Array,
        labels: Array,
        eligible: Array,
        ratio: float,
    ) -> ModuleLoss:
        goal, classes, may = self._tensors(target, labels, eligible)

        def run(o: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            return losses.module_loss(o, x, goal, classes.long(), may, ratio)

        (box, label), gradients = self._with_gradients(run, offsets, logits)
        return ModuleLoss(float(box), float(label), *gradients)

    def detector_loss(
        self, heads: Heads, boxes: list[Array], labels: list[Array], config: Config
    ) -> Loss:
        match = ArmTargets(config)
        arm = [match(b, c) for b, c in zip(boxes, labels, strict=True)]
        arm_target, arm_labels = (np.stack(part) for part in zip(*arm, strict=True))
        padded, classes, target, assigned = self._tensors(
            *_padded(boxes, labels), arm_target, arm_labels
        )
        constants = padded, classes, target, assigned, geometry.centre_anchors(config, self.device)

        def run(*outputs: Tensor) -> tuple[Tensor, ...]:
            return losses.detector_loss(outputs, *constants, config).unbind()

        parts, (g0, g1, g2, g3) = self._with_gradients(run, *heads)
        arm_box, arm_class, odm_box, odm_class = (float(part) for part in parts)
        return Loss(ModuleLoss(arm_box, arm_class, g0, g1), ModuleLoss(odm_box, odm_class, g2, g3))

    # Detection

    def scored_boxes(self, heads: Heads, config: Config) -> tuple[Array, Array]:
        anchors = geometry.centre_anchors(config, self.device)
        arm, seen, odm, logits = self._tensors(*heads)
        boxes, scores = network.scored_boxes((arm, seen, odm, logits), anchors, config)
        return to_numpy(boxes), to_numpy(scores)

    nms = staticmethod(nms)

    detect = staticmethod(postprocess)

    # Training

    learning_rate = staticmethod(schedule.learning_rate)

    def momentum_step(
        self,
        parameters: Parameters,
        gradients: Parameters,
        momentum_buffers: Parameters,
        rate: float,
        config: Config,
        scale: float | None = None,
    ) -> tuple[Parameters, Parameters]:
        new, by, moved = (
            {name: to_tensor(array, self.device) for name, array in arrays.items()}
            for arrays in (parameters, gradients, momentum_buffers)
        )
        trained = trained_parameters(config)
        options = config.optimizer
        trainer.momentum_step(new, by, moved, rate, trained, options, scale or options.scale)
        return to_parameters(new), to_parameters(moved)


def _padded(boxes: list[Array], labels: list[Array]) -> tuple[Array, Array]:
    """Objects of each image as a batch has them: (N, T, 4) and (N, T) int32, T from 1."""
    most = max(1, *map(len, labels))
    images = [padded(b, c, most) for b, c in zip(boxes, labels, strict=True)]
    all_boxes, all_labels = (np.stack(part) for part in zip(*images, strict=True))
    return all_boxes, all_labels
