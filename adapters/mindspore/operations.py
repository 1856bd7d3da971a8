"""The specification's operations, one by one, as this backend computes them.

They call the functions and cells of its network and trainer; what runs on the host (preparing
images, the ARM's targets, suppression) is called as in the application.
Importing this imports MindSpore. Arguments and results: ``refinedet.backends.operations``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from refinedet.adapters.mindspore import boxes as geometry
from refinedet.adapters.mindspore import losses, matching, network
from refinedet.adapters.mindspore.trainer import (
    Update,
    learning_rates,
    load_momentum_buffers,
    momentum,
    read_momentum_buffers,
)
from refinedet.data.augment import normaliser
from refinedet.data.batch import padded
from refinedet.data.targets import ArmTargets
from refinedet.inference import postprocessing
from refinedet.spec.config import (
    Config,
    DetectionConfig,
    ImageConfig,
    MatchingConfig,
    ScheduleConfig,
    replace,
)
from refinedet.spec.detection import Detections
from refinedet.spec.losses import Loss, ModuleLoss
from refinedet.spec.network import Heads, Parameters
from refinedet.spec.types import Array

SLOTS = 8
"""Slots for objects in a batch: few shapes, few graphs."""
ROWS = 8
"""Rows of logits or offsets are filled up to a multiple of it, for the same reason."""
IMAGES = 4
"""So are images of a batch."""


def _numpy(tensor: ms.Tensor) -> Array:
    """A copy that NumPy owns."""
    array: Array = np.array(tensor.asnumpy(), order="C")
    return array


def _one(function: Callable[..., ms.Tensor], *arrays: Array, rows: int | None = None) -> Array:
    """``function`` on the arrays as a batch of one; where there is no row, nothing is run."""
    if (len(arrays[0]) if rows is None else rows) == 0:
        return np.zeros_like(arrays[0])
    return _numpy(function(*(ms.Tensor(array[None]) for array in arrays))[0])


# Images, anchors, boxes


def normalise(image: Array, config: ImageConfig) -> Array:
    return normaliser(config)(image)


def anchors(config: Config) -> Array:
    return _numpy(geometry.centres_to_corners(geometry.centre_anchors(config))[0])


def corners_to_centres(boxes: Array) -> Array:
    return _one(geometry.corners_to_centres, boxes)


def centres_to_corners(boxes: Array) -> Array:
    return _one(geometry.centres_to_corners, boxes)


def box_iou(anchors: Array, ground_truth: Array) -> Array:
    if len(anchors) == 0 or len(ground_truth) == 0:
        return np.zeros((len(anchors), len(ground_truth)), np.float32)
    return np.ascontiguousarray(_one(geometry.pairwise_iou, ground_truth, anchors).T)


clip_boxes = postprocessing.clip_boxes


# Coding


def encode(boxes: Array, anchors: Array, variances: tuple[float, ...]) -> Array:
    def run(b: ms.Tensor, a: ms.Tensor) -> ms.Tensor:
        return geometry.encode(b, geometry.corners_to_centres(a), *variances)

    return _one(run, boxes, anchors)


def decode(offsets: Array, anchors: Array, variances: tuple[float, ...]) -> Array:
    def run(o: ms.Tensor, a: ms.Tensor) -> ms.Tensor:
        return geometry.centres_to_corners(
            geometry.decode(o, geometry.corners_to_centres(a), *variances)
        )

    return _one(run, offsets, anchors)


def cascaded_decode(
    arm_offsets: Array, odm_offsets: Array, anchors: Array, variances: tuple[float, ...]
) -> Array:
    def run(arm: ms.Tensor, odm: ms.Tensor, a: ms.Tensor) -> ms.Tensor:
        boxes = geometry.cascaded_decode(arm, odm, geometry.corners_to_centres(a), *variances)
        return geometry.centres_to_corners(boxes)

    return _one(run, arm_offsets, odm_offsets, anchors)


# Matching


def match(iou: Array, config: MatchingConfig) -> Array:
    anchors, objects = iou.shape
    if anchors == 0:
        return np.zeros(0, np.int64)
    padded = np.zeros((1, max(objects, 1), anchors), np.float32)
    padded[0, :objects] = iou.T
    rule = matching.match if config.rule == "bipartite" else matching.match_in_order
    matched = rule(ms.Tensor(padded), config.iou, config.lowest_iou)
    return _numpy(matched[0]).astype(np.int64)


def targets(anchors: Array, boxes: Array, labels: Array, config: Config) -> tuple[Array, Array]:
    if len(anchors) == 0:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    padded, classes = _padded([boxes], [labels])
    target, assigned = matching.targets(
        geometry.corners_to_centres(ms.Tensor(anchors[None])),
        ms.Tensor(padded),
        ms.Tensor(classes),
        config,
    )
    label = _numpy(assigned[0]).astype(np.int64)
    offsets = _numpy(target[0])
    offsets[label == 0] = 0  # nothing reads them
    return offsets, label


def _padded(boxes: list[Array], labels: list[Array]) -> tuple[Array, Array]:
    """Objects of each image as a batch has them: (N, T, 4) and (N, T) int32."""
    images = [padded(b, c, SLOTS) for b, c in zip(boxes, labels, strict=True)]
    all_boxes, all_labels = (np.stack(part) for part in zip(*images, strict=True))
    return all_boxes, all_labels


# Losses


def softmax(logits: Array) -> Array:
    return _one(lambda x: ops.softmax(x, -1), logits)


def _filled(array: Array, *multiples: int) -> Array:
    """The array with zeros behind, so that its first dimensions are multiples of these."""
    more = [(0, -size % multiple) for size, multiple in zip(array.shape, multiples, strict=False)]
    return np.pad(array, more + [(0, 0)] * (array.ndim - len(more)))


@functools.lru_cache
def _gradient(function: Callable[..., ms.Tensor]) -> Callable[..., Any]:
    """A graph for losses of rows and their gradient by the first argument."""

    def total(*arguments: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        rows = function(*arguments)
        return rows.sum(), rows

    run: Callable[..., Any] = ops.value_and_grad(total, 0, has_aux=True)
    return run


def _with_gradient(
    function: Callable[..., ms.Tensor], arrays: tuple[Array, ...], *constants: float
) -> tuple[Array, Array]:
    """Losses of rows (M,) and their gradients by the first array (M, K)."""
    count = len(arrays[0])
    if count == 0:
        return np.zeros(0, np.float32), np.zeros_like(arrays[0])
    tensors = [ms.Tensor(_filled(array, ROWS)[None]) for array in arrays]
    given = [ms.Tensor(constant, ms.float32) for constant in constants]
    (_, rows), gradient = _gradient(function)(*tensors, *given)
    return _numpy(rows[0, :count]), _numpy(gradient[0, :count])


def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    return _with_gradient(losses.cross_entropy, (logits, labels.astype(np.int32)))


def sigmoid(logits: Array) -> Array:
    return _one(ops.sigmoid, logits)


def focal(logits: Array, labels: Array, alpha: float, gamma: float) -> tuple[Array, Array]:
    return _with_gradient(losses.focal, (logits, labels.astype(np.int32)), alpha, gamma)


def smooth_l1(predicted: Array, target: Array) -> tuple[Array, Array]:
    return _with_gradient(losses.smooth_l1, (predicted, target))


def hard_negatives(losses_: Array, positive: Array, eligible: Array, ratio: float) -> Array:
    if len(losses_) == 0:
        return np.zeros(0, bool)
    most = losses.most_negatives(ms.Tensor(positive[None]), ratio)
    candidate = ms.Tensor((eligible & ~positive)[None])
    return _numpy(losses.hard_negatives(ms.Tensor(losses_[None]), candidate, most)[0])


@functools.lru_cache(maxsize=1)
def _module_gradient() -> Callable[..., Any]:
    """A graph for the two losses of a module and the gradients of their sum."""

    def total(*arguments: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        box, label = losses.module_loss(*arguments)
        return box + label, box, label

    run: Callable[..., Any] = ops.value_and_grad(total, (0, 1), has_aux=True)
    return run


def module_loss(
    offsets: Array, logits: Array, target: Array, labels: Array, eligible: Array, ratio: float
) -> ModuleLoss:
    n, a = labels.shape
    arrays = offsets, logits, target, labels.astype(np.int32), eligible
    # Anchors without an object that are not eligible count for nothing.
    tensors = [ms.Tensor(_filled(array, IMAGES, ROWS)) for array in arrays]
    (_, box, label), gradients = _module_gradient()(*tensors, ms.Tensor(ratio, ms.float32))
    return ModuleLoss(float(box), float(label), *(_numpy(g[:n, :a]) for g in gradients))


class _LossOfHeads(nn.Cell):
    """The loss with its gradients by the four outputs, as one graph."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.grad = ops.value_and_grad(losses.HeadsLoss(config), (0, 1, 2, 3), has_aux=True)

    def construct(self, *batch: ms.Tensor) -> Any:
        return self.grad(*batch)


_loss_of_heads = functools.lru_cache(maxsize=4)(_LossOfHeads)


def detector_loss(heads: Heads, boxes: list[Array], labels: list[Array], config: Config) -> Loss:
    match = ArmTargets(config)
    arm = [match(b, c.astype(np.int32)) for b, c in zip(boxes, labels, strict=True)]
    arm_target, arm_labels = (np.stack(part) for part in zip(*arm, strict=True))
    batch = (*heads, *_padded(boxes, labels), arm_target, arm_labels)
    (_, parts), gradients = _loss_of_heads(config)(*(ms.Tensor(array) for array in batch))
    arm_box, arm_class, odm_box, odm_class = (float(part) for part in parts.asnumpy())
    g = [_numpy(gradient) / np.float32(config.optimizer.scale) for gradient in gradients]
    return Loss(ModuleLoss(arm_box, arm_class, g[0], g[1]), ModuleLoss(odm_box, odm_class, *g[2:]))


# Detection


@functools.lru_cache(maxsize=4)
def _scoring(config: Config) -> network.Scoring:
    return network.Scoring(config).set_train(False)


def scored_boxes(heads: Heads, config: Config) -> tuple[Array, Array]:
    boxes, scores = _scoring(config)(*(ms.Tensor(head) for head in heads))
    return _numpy(boxes), _numpy(scores)


nms = postprocessing.nms


def detect(
    boxes: Array, scores: Array, config: DetectionConfig, size: tuple[int, int] | None = None
) -> Detections:
    return postprocessing.postprocess(boxes, scores, config, size)


# Training


def learning_rate(step: int, config: ScheduleConfig) -> float:
    return float(learning_rates(config)[step].astype(np.float32))


def momentum_step(
    parameters: Parameters,
    gradients: Parameters,
    momentum_buffers: Parameters,
    rate: float,
    config: Config,
    scale: float | None = None,
) -> tuple[Parameters, Parameters]:
    constant = {"kind": "multistep", "steps": 1, "rate": rate, "warmup_steps": 0, "milestones": ()}
    config = replace(config, schedule=constant | {"final_rate": 0.0})
    config = replace(config, optimizer={"loss_scale": scale or config.optimizer.loss_scale})
    detector = network.Detector(config)
    network.load_parameters(detector, parameters)
    optimizer = momentum(detector, config)
    load_momentum_buffers(optimizer, momentum_buffers)
    Update(optimizer, config)(tuple(ms.Tensor(gradients[p.name]) for p in optimizer.parameters))
    return network.read_parameters(detector), read_momentum_buffers(optimizer)
