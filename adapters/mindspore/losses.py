"""``refinedet.spec.losses`` as MindSpore functions and cells: static shapes, plain operations."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
from mindspore import nn, ops

from refinedet.adapters.mindspore.boxes import centre_anchors, decode
from refinedet.adapters.mindspore.collective import sum_over_ranks
from refinedet.adapters.mindspore.matching import targets
from refinedet.adapters.mindspore.network import Detector
from refinedet.spec.config import Config

Total = Callable[[ms.Tensor], ms.Tensor]


def hard_negatives(losses: ms.Tensor, candidate: ms.Tensor, limit: ms.Tensor) -> ms.Tensor:
    """``spec.losses.hard_negatives`` for a batch.

    Args:
        losses: (N, A) float32, from 0.
        candidate: (N, A) bool.
        limit: (N, 1) int32, how many of each image at most.
    Returns:
        (N, A) bool. Sorting values alone, then counting equals from the lowest anchor,
        leaves no tie to a device's sorting.
    """
    a = losses.shape[1]
    losses = ops.select(candidate, losses, ops.full_like(losses, -1.0))
    falling = ops.sort(losses, 1, True)[0]
    last = ops.gather_elements(falling, 1, ops.clip_by_value(limit - 1, 0, a - 1))
    above = losses > last
    equal = ops.logical_and(losses == last, candidate)
    room = limit - above.astype(ms.int32).sum(1, keepdims=True)
    among = ops.logical_and(equal, ops.cumsum(equal.astype(ms.int32), 1) <= room)
    chosen = ops.logical_and(ops.logical_or(above, among), candidate)
    return ops.logical_and(chosen, limit > 0)


def most_negatives(positive: ms.Tensor, ratio: float) -> ms.Tensor:
    """How many negatives of each image may count, (N, 1) int32; ``positive`` (N, A) bool."""
    count = positive.astype(ms.int32).sum(1, keepdims=True)
    return ops.floor(count.astype(ms.float32) * ratio).astype(ms.int32)


def smooth_l1(offsets: ms.Tensor, target: ms.Tensor) -> ms.Tensor:
    """``spec.losses.smooth_l1``, (..., 4) to (...)."""
    far = ops.abs(offsets - target)
    return ops.select(far < 1, far * far / 2, far - 0.5).sum(-1)


def cross_entropy(logits: ms.Tensor, labels: ms.Tensor) -> ms.Tensor:
    """``spec.losses.cross_entropy``, logits (N, A, K) and labels (N, A) to (N, A)."""
    picked = ops.gather_elements(ops.log_softmax(logits, 2), 2, labels.expand_dims(2))
    return -picked.squeeze(2)


def of_one_rank(x: ms.Tensor) -> ms.Tensor:
    """The sum over the ranks where there is one rank."""
    return x


def over_positives(
    offsets: ms.Tensor,
    target: ms.Tensor,
    positive: ms.Tensor,
    class_loss: ms.Tensor,
    total: Total,
) -> tuple[ms.Tensor, ms.Tensor]:
    """The loss of the offsets of ``positive`` (N, A) and ``class_loss``, over their number.

    Args:
        total: gives the sum over all ranks; the losses are this rank's parts.
    """
    mask = ops.broadcast_to(positive.expand_dims(2), offsets.shape)
    box_loss = smooth_l1(ops.select(mask, offsets, target), target).sum()
    divisor = ops.maximum(total(positive.astype(ms.float32).sum()), 1.0)
    return box_loss / divisor, class_loss / divisor


def module_loss(
    offsets: ms.Tensor,
    logits: ms.Tensor,
    target: ms.Tensor,
    labels: ms.Tensor,
    eligible: ms.Tensor,
    ratio: float,
    total: Total = of_one_rank,
) -> tuple[ms.Tensor, ms.Tensor]:
    """``spec.losses.module_loss``: the loss of the offsets and that of the classes."""
    positive = labels > 0
    class_loss = cross_entropy(logits, labels)
    candidate = ops.logical_and(eligible, ops.logical_not(positive))
    most = most_negatives(positive, ratio)
    negative = hard_negatives(ops.stop_gradient(class_loss), candidate, most)
    counted = ops.logical_or(positive, negative).astype(ms.float32)
    return over_positives(offsets, target, positive, (class_loss * counted).sum(), total)


def focal(logits: ms.Tensor, labels: ms.Tensor, alpha: float, gamma: float) -> ms.Tensor:
    """``spec.losses.focal``, logits (N, A, K) and labels (N, A) to (N, A)."""
    is_label = labels.expand_dims(2) == ops.range(0, logits.shape[2], 1).astype(labels.dtype)
    x = ops.select(is_label, logits, -logits)  # logit of the right answer
    # log(1 + exp(-|x|)) has no overflow; MindSpore's softplus and log-sigmoid are approximate.
    tail = ops.log(1 + ops.exp(-ops.abs(x)))
    log_p, log_wrong = ops.minimum(x, 0) - tail, ops.minimum(-x, 0) - tail
    one = ops.ones_like(x)
    weight = ops.select(is_label, one * alpha, one * (1 - alpha))
    return -(weight * ops.exp(gamma * log_wrong) * log_p).sum(2)


def focal_module_loss(
    offsets: ms.Tensor,
    logits: ms.Tensor,
    target: ms.Tensor,
    labels: ms.Tensor,
    alpha: float,
    gamma: float,
    total: Total = of_one_rank,
) -> tuple[ms.Tensor, ms.Tensor]:
    """``spec.losses.focal_module_loss``: the loss of the offsets and that of the classes."""
    class_loss = focal(logits, labels, alpha, gamma).sum()
    return over_positives(offsets, target, labels > 0, class_loss, total)


class HeadsLoss(nn.Cell):
    """``spec.losses.detector_loss``: from the four outputs and a batch's objects.

    Returns the sum times the loss scale (the config's, unless one that changes is given), and
    the four parts as (4,) float32: with several ranks those of this rank, whose sum over the ranks
    is the loss of the whole batch.
    """

    def __init__(self, config: Config, scale: ms.Parameter | None = None) -> None:
        super().__init__()
        self.config = config
        self.anchors = centre_anchors(config)
        self.centre, self.size = config.anchors.variances
        self.refined = config.anchors.refined
        options = config.loss
        self.ratio, self.objectness = options.negatives_per_positive, options.objectness
        self.focal, self.arm_first_class = options.classes == "sigmoid", options.arm_first_class
        self.alpha, self.gamma = options.focal_alpha, options.focal_gamma
        self.scale = config.optimizer.scale if scale is None else scale
        self.total = sum_over_ranks()

    def construct(
        self,
        arm_offsets: ms.Tensor,
        arm_logits: ms.Tensor,
        odm_offsets: ms.Tensor,
        odm_logits: ms.Tensor,
        boxes: ms.Tensor,
        labels: ms.Tensor,
        arm_target: ms.Tensor,
        arm_labels: ms.Tensor,
    ) -> tuple[ms.Tensor, ms.Tensor]:
        odm_target, odm_labels = arm_target, arm_labels
        if self.refined:
            anchors = decode(arm_offsets, self.anchors, self.centre, self.size)
            odm_target, odm_labels = targets(ops.stop_gradient(anchors), boxes, labels, self.config)
        odm_target = ops.stop_gradient(odm_target)
        if not self.arm_first_class:
            arm_labels = ops.minimum(arm_labels, 1)
        arm = arm_offsets, arm_logits, arm_target, arm_labels
        odm = odm_offsets, odm_logits, odm_target, odm_labels
        if self.focal:
            arm_box, arm_class = focal_module_loss(*arm, self.alpha, self.gamma, self.total)
            odm_box, odm_class = focal_module_loss(*odm, self.alpha, self.gamma, self.total)
        else:
            objectness = ops.stop_gradient(ops.softmax(arm_logits, 2)[:, :, 1])
            arm_box, arm_class = module_loss(*arm, objectness >= 0, self.ratio, self.total)
            odm_box, odm_class = module_loss(
                *odm, objectness >= self.objectness, self.ratio, self.total
            )
        parts = ops.stack((arm_box, arm_class, odm_box, odm_class))
        return parts.sum() * self.scale, parts


class DetectorLoss(nn.Cell):
    """``HeadsLoss`` behind the detector: from a batch."""

    def __init__(
        self, detector: Detector, config: Config, scale: ms.Parameter | None = None
    ) -> None:
        super().__init__(auto_prefix=False)
        self.detector = detector
        self.loss = HeadsLoss(config, scale)

    def construct(
        self,
        images: ms.Tensor,
        boxes: ms.Tensor,
        labels: ms.Tensor,
        arm_target: ms.Tensor,
        arm_labels: ms.Tensor,
    ) -> tuple[ms.Tensor, ms.Tensor]:
        heads = self.detector(images)
        return self.loss(*heads, boxes, labels, arm_target, arm_labels)
