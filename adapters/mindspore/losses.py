"""``refinedet.spec.losses`` as MindSpore cells: static shapes, plain operations.

The ODM is matched inside the graph, because its anchors are the ARM's output.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
from mindspore import nn, ops

from refinedet.adapters.mindspore.collective import over_workers
from refinedet.adapters.mindspore.network import (
    Detector,
    centre_anchors,
    decode,
    to_centres,
    to_corners,
)
from refinedet.spec.config import Config

Total = Callable[[ms.Tensor], ms.Tensor]


def pairwise_iou(boxes: ms.Tensor, anchors: ms.Tensor) -> ms.Tensor:
    """Overlap (N, T, A) of boxes (N, T, 4) with anchors (N, A, 4), corner form."""
    bx0, by0, bx1, by1 = ops.split(boxes, 1, 2)  # each (N, T, 1)
    ax0, ay0, ax1, ay1 = ops.split(anchors.transpose((0, 2, 1)), 1, 1)  # each (N, 1, A)
    wide = ops.relu(ops.minimum(bx1, ax1) - ops.maximum(bx0, ax0))
    high = ops.relu(ops.minimum(by1, ay1) - ops.maximum(by0, ay0))
    shared = wide * high
    union = (bx1 - bx0) * (by1 - by0) + (ax1 - ax0) * (ay1 - ay0) - shared
    some = union > 0
    return ops.select(some, shared / ops.select(some, union, ops.ones_like(union)), shared)


def match(iou: ms.Tensor, threshold: float, lowest: float) -> ms.Tensor:
    """``spec.matching.match`` for a batch.

    The greedy choice of the largest overlap, again and again, is found in a few
    rounds: a pair can be joined as soon as each is the best that the other can still
    get, whatever happens elsewhere. Each round joins all such pairs.

    Args:
        iou: (N, T, A) float32, 0 in the rows of padded slots.
    Returns:
        (N, A) int32, the object of each anchor, or -1.
    """
    n, t, a = iou.shape
    overlap = ops.select(iou > lowest, iou, ops.zeros_like(iou))
    rows = ops.broadcast_to(ops.arange(t).astype(ms.int32).reshape((1, t)), (n, t))
    # Column a is a bin for the objects that are not joined in a round.
    matched = ops.full((n, a + 1), -1, dtype=ms.int32)
    anchor_free = ops.ones((n, a + 1), ms.float32)
    object_free = ops.ones((n, t), ms.float32)
    free = overlap
    left = ops.amax(free)
    while left > 0:
        best = ops.argmax(free, 2).astype(ms.int32)  # (N, T), first of equals
        value = ops.amax(free, 2)
        rivals = ops.gather_elements(free, 2, ops.broadcast_to(best[:, None, :], (n, t, t)))
        joined = ops.logical_and(ops.argmax(rivals, 1).astype(ms.int32) == rows, value > 0)
        place = ops.select(joined, best, ops.full_like(best, a))
        matched = ops.tensor_scatter_elements(matched, place, rows, 1)
        anchor_free = ops.tensor_scatter_elements(anchor_free, place, ops.zeros_like(value), 1)
        object_free = ops.select(joined, ops.zeros_like(value), object_free)
        free = overlap * anchor_free[:, None, :a] * object_free[:, :, None]
        left = ops.amax(free)
    matched = matched[:, :a]
    best = ops.argmax(overlap, 1).astype(ms.int32)
    by_threshold = ops.select(ops.amax(overlap, 1) >= threshold, best, ops.full_like(best, -1))
    return ops.select(matched >= 0, matched, by_threshold)


def match_in_order(iou: ms.Tensor, threshold: float, lowest: float) -> ms.Tensor:
    """``match`` by the model zoo's rule: object after object, which is a loop over slots."""
    n, t, a = iou.shape
    anchors = ops.arange(a).astype(ms.int32).reshape((1, a))
    matched = ops.full((n, a), -1, dtype=ms.int32)
    held = ops.zeros((n, a), ms.float32)
    for place in range(t):
        overlap = iou[:, place]
        best = ops.argmax(overlap, 1).astype(ms.int32).reshape((n, 1))
        some = ops.amax(overlap, 1, True) > lowest
        forced = ops.select(anchors == best, ops.full_like(overlap, 2.0), overlap)
        taken = ops.logical_and(forced > threshold, forced > held)
        taken = ops.logical_and(taken, ops.broadcast_to(some, taken.shape))
        matched = ops.select(taken, ops.full_like(matched, place), matched)
        held = ops.select(taken, forced, held)
    return matched


def encode(boxes: ms.Tensor, anchors: ms.Tensor, centre: float, size: float) -> ms.Tensor:
    """``spec.coding.encode``: boxes (N, A, 4) corner form, anchors (N, A, 4) centre form."""
    centres, sides = to_centres(boxes), anchors[:, :, 2:]
    offset = (centres[:, :, :2] - anchors[:, :, :2]) / (sides * centre)
    return ops.concat((offset, ops.log(centres[:, :, 2:] / sides) / size), 2)


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


def alone(x: ms.Tensor) -> ms.Tensor:
    """The sum over the workers where there is one."""
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
        total: gives the sum over all workers; the losses are this worker's parts.
    """
    paid = ops.broadcast_to(positive.expand_dims(2), offsets.shape)
    box_loss = smooth_l1(ops.select(paid, offsets, target), target).sum()
    divisor = ops.maximum(total(positive.astype(ms.float32).sum()), 1.0)
    return box_loss / divisor, class_loss / divisor


def module_loss(
    offsets: ms.Tensor,
    logits: ms.Tensor,
    target: ms.Tensor,
    labels: ms.Tensor,
    eligible: ms.Tensor,
    ratio: float,
    total: Total = alone,
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
    here = labels.expand_dims(2) == ops.arange(logits.shape[2]).astype(labels.dtype)
    x = ops.select(here, logits, -logits)  # of the probability of being right
    # log(1 + exp(-|x|)) has no overflow; MindSpore's softplus and log-sigmoid are approximate.
    tail = ops.log(1 + ops.exp(-ops.abs(x)))
    log_p, log_wrong = ops.minimum(x, 0) - tail, ops.minimum(-x, 0) - tail
    weight = ops.select(here, ops.full_like(x, alpha), ops.full_like(x, 1 - alpha))
    return -(weight * ops.exp(gamma * log_wrong) * log_p).sum(2)


def focal_module_loss(
    offsets: ms.Tensor,
    logits: ms.Tensor,
    target: ms.Tensor,
    labels: ms.Tensor,
    alpha: float,
    gamma: float,
    total: Total = alone,
) -> tuple[ms.Tensor, ms.Tensor]:
    """``spec.losses.focal_module_loss``: the loss of the offsets and that of the classes."""
    class_loss = focal(logits, labels, alpha, gamma).sum()
    return over_positives(offsets, target, labels > 0, class_loss, total)


def targets(
    anchors: ms.Tensor, boxes: ms.Tensor, labels: ms.Tensor, config: Config
) -> tuple[ms.Tensor, ms.Tensor]:
    """``spec.matching.targets`` for a batch.

    Args:
        anchors: (N, A, 4), centre form.
        boxes: (N, T, 4), corner form, and labels: (N, T); 0 marks an empty place.
    """
    n, a, _ = anchors.shape
    iou = pairwise_iou(boxes, to_corners(anchors))
    iou = iou * (labels > 0).astype(iou.dtype).expand_dims(2)
    rule = match if config.matching.rule == "bipartite" else match_in_order
    matched = rule(iou, config.matching.iou, config.matching.lowest_iou)
    positive = matched >= 0
    index = ops.maximum(matched, 0)
    box = ops.gather_elements(boxes, 1, ops.broadcast_to(index.expand_dims(2), (n, a, 4)))
    # Unmatched anchors get themselves: finite offsets, which nothing reads.
    mask = ops.broadcast_to(positive.expand_dims(2), (n, a, 4))
    box = ops.select(mask, box, to_corners(anchors))
    centre, size = config.anchors.variances
    label = ops.gather_elements(labels, 1, index)
    target = encode(box, anchors, centre, size)
    return target, ops.select(positive, label, ops.zeros_like(label))


class HeadsLoss(nn.Cell):
    """``spec.losses.detector_loss``: from the four outputs and a batch's objects.

    Returns the sum times the loss scale (the config's, unless one that changes is given), and
    the four parts as (4,) float32: with several workers this one's, whose sum over the workers
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
        self.total = over_workers()

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
