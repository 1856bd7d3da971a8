"""The operations of the specification in NumPy, all in float32.

The function of the same name in ``refinedet.spec`` defines each. Thresholds are rounded to
float32 before anything is compared with them, and plain numbers become ``np.float32``, because a
Python float and a NumPy number together may give float64.
"""

from __future__ import annotations

import numpy as np

from refinedet.spec.config import (
    Config,
    DetectionConfig,
    ImageConfig,
    LossConfig,
    MatchingConfig,
    ScheduleConfig,
)
from refinedet.spec.detection import Detections
from refinedet.spec.losses import Loss, ModuleLoss
from refinedet.spec.network import Heads, Parameters, parameter_table
from refinedet.spec.types import Array

F = np.float32
HALF, ONE = F(0.5), F(1)


# Images and anchors


def normalise(image: Array, config: ImageConfig) -> Array:
    """The network's input for one image."""
    channels = image.astype(F).transpose(2, 0, 1)
    if config.channels == "BGR":
        channels = channels[::-1]
    mean, std = (np.array(v, F)[:, None, None] for v in (config.mean, config.std))
    return np.ascontiguousarray((channels - mean) / std)


def anchors(config: Config) -> Array:
    """All anchors, finest level first."""
    height, width = config.image_size
    image = np.array([width, height], F)
    options, levels = config.anchors, []
    ratios = np.array(options.aspect_ratios, F)
    root = np.sqrt(ratios)
    squares = options.square_sides or options.sides
    for stride, side, square in zip(options.strides, options.sides, squares, strict=True):
        rows, columns = height // stride, width // stride
        cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)
        centres = (cells.astype(F) + HALF) * F(stride)  # pixels: (rows, columns, x and y)
        sides = np.where(ratios == 1, F(square / 2), F(side / 2))
        half = np.stack([root, ONE / root], axis=1) * sides[:, None]  # (ratios, x and y)
        low, high = centres[:, :, None] - half, centres[:, :, None] + half
        levels.append(np.concatenate([low / image, high / image], axis=3).reshape(-1, 4))
    return np.concatenate(levels)


# Boxes


def corners_to_centres(boxes: Array) -> Array:
    """Corner form to centre form."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([(low + high) * HALF, high - low], axis=1)


def centres_to_corners(boxes: Array) -> Array:
    """Centre form to corner form."""
    centre, half = boxes[:, :2], boxes[:, 2:] * HALF
    return np.concatenate([centre - half, centre + half], axis=1)


def box_iou(anchors: Array, ground_truth: Array) -> Array:
    """Overlap of every anchor with every ground truth."""
    ax, ay, ax2, ay2 = (column[:, None] for column in anchors.T)
    tx, ty, tx2, ty2 = ground_truth.T
    wide = np.maximum(np.minimum(ax2, tx2) - np.maximum(ax, tx), F(0))
    high = np.maximum(np.minimum(ay2, ty2) - np.maximum(ay, ty), F(0))
    shared = wide * high
    union = (ax2 - ax) * (ay2 - ay) + (tx2 - tx) * (ty2 - ty) - shared
    return np.where(union > 0, shared / np.where(union > 0, union, ONE), F(0))


def clip_boxes(boxes: Array) -> Array:
    """Every coordinate brought into [0, 1]."""
    return np.minimum(np.maximum(boxes, F(0)), ONE)


# Coding


def encode(boxes: Array, anchors: Array, variances: tuple[float, ...]) -> Array:
    """Offsets that lead from each anchor to its box."""
    b, a = corners_to_centres(boxes), corners_to_centres(anchors)
    offset = (b[:, :2] - a[:, :2]) / a[:, 2:] / F(variances[0])
    ratio = np.log(b[:, 2:] / a[:, 2:]) / F(variances[1])
    return np.concatenate([offset, ratio], axis=1)


def decode(offsets: Array, anchors: Array, variances: tuple[float, ...]) -> Array:
    """The box to which each row of offsets leads."""
    a = corners_to_centres(anchors)
    centre = a[:, :2] + offsets[:, :2] * F(variances[0]) * a[:, 2:]
    size = a[:, 2:] * np.exp(offsets[:, 2:] * F(variances[1]))
    return centres_to_corners(np.concatenate([centre, size], axis=1))


def cascaded_decode(
    arm_offsets: Array, odm_offsets: Array, anchors: Array, variances: tuple[float, ...]
) -> Array:
    """Refine the anchors, then decode against them."""
    return decode(odm_offsets, decode(arm_offsets, anchors, variances), variances)


# Matching


def match(iou: Array, config: MatchingConfig) -> Array:
    """The object that each anchor is matched to, or -1."""
    count, objects = iou.shape
    matched = np.full(count, -1, np.int64)
    if iou.size == 0:
        return matched
    if config.rule == "in_order":
        return _match_in_order(iou, config)
    touches = iou > F(config.lowest_iou)
    # All pairs, best first; a stable sort leaves ties to the lowest anchor, then object.
    pairs = np.argsort(-iou, axis=None, kind="stable")[: np.count_nonzero(touches)]
    is_matched = np.zeros(objects, bool)
    for pair in pairs:
        anchor, ground_truth = divmod(int(pair), objects)
        if matched[anchor] < 0 and not is_matched[ground_truth]:
            matched[anchor], is_matched[ground_truth] = ground_truth, True
            if is_matched.all():
                break
    best = iou.argmax(axis=1)
    enough = ((iou >= F(config.iou)) & touches).any(axis=1)
    return np.where((matched < 0) & enough, best, matched)


def _match_in_order(iou: Array, config: MatchingConfig) -> Array:
    matched, held = np.full(len(iou), -1, np.int64), np.zeros(len(iou), F)
    for ground_truth, overlaps in enumerate(iou.T):
        best = overlaps.argmax()
        if overlaps[best] > F(config.lowest_iou):
            claim = np.where(np.arange(len(iou)) == best, F(2), overlaps)
            taken = (claim > F(config.iou)) & (claim > held)
            matched[taken], held[taken] = ground_truth, claim[taken]
    return matched


def targets(anchors: Array, boxes: Array, labels: Array, config: Config) -> tuple[Array, Array]:
    """Offsets and classes of each anchor of one image."""
    matched = match(box_iou(anchors, boxes), config.matching)
    offsets, classes = np.zeros_like(anchors), np.zeros(len(anchors), np.int64)
    rows = np.flatnonzero(matched >= 0)
    offsets[rows] = encode(boxes[matched[rows]], anchors[rows], config.anchors.variances)
    classes[rows] = labels[matched[rows]]
    return offsets, classes


# Losses


def _log_softmax(logits: Array) -> Array:
    shifted: Array = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis."""
    return np.exp(_log_softmax(logits))


def sigmoid(logits: Array) -> Array:
    """The probability of each logit by itself."""
    tail = np.exp(-np.abs(logits))
    return np.where(logits >= 0, ONE, tail) / (ONE + tail)


def focal(logits: Array, labels: Array, alpha: float, gamma: float) -> tuple[Array, Array]:
    """Sigmoid focal loss of each row, and its gradient by the logits."""
    hot = labels[:, None] == np.arange(logits.shape[1])
    sign = np.where(hot, ONE, -ONE)
    weight = np.where(hot, F(alpha), ONE - F(alpha))
    x = logits * sign
    log_p = np.minimum(x, F(0)) - np.log1p(np.exp(-np.abs(x)))
    p, wrong = sigmoid(x), sigmoid(-x)
    focus = weight * wrong ** F(gamma)
    return -(focus * log_p).sum(axis=1), sign * focus * (F(gamma) * p * log_p - wrong)


def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Softmax cross entropy of each row, and its gradient by the logits."""
    logs = _log_softmax(logits)
    hot = labels[:, None] == np.arange(logits.shape[1])
    return -logs[hot], np.exp(logs) - hot.astype(F)


def smooth_l1(predicted: Array, target: Array) -> tuple[Array, Array]:
    """Smooth L1 of each row, and its gradient by ``predicted``."""
    d = predicted - target
    slope = np.minimum(np.maximum(d, -ONE), ONE)
    return (slope * (d - slope * HALF)).sum(axis=1), slope


def hard_negatives(losses: Array, positive: Array, eligible: Array, ratio: float) -> Array:
    """The negatives of one image that count."""
    candidates = eligible & ~positive
    target = min(int(ratio * int(positive.sum())), int(candidates.sum()))
    order = np.argsort(np.where(candidates, -losses, F(np.inf)), kind="stable")
    chosen = np.zeros(len(losses), bool)
    chosen[order[:target]] = True
    return chosen


def module_loss(
    offsets: Array, logits: Array, target: Array, labels: Array, eligible: Array, ratio: float
) -> ModuleLoss:
    """Loss of one module over a batch, and its gradients."""
    positive = labels > 0
    box_loss, by_offsets = smooth_l1(offsets.reshape(-1, 4), target.reshape(-1, 4))
    class_loss, by_logits = cross_entropy(logits.reshape(-1, logits.shape[2]), labels.ravel())
    counted = positive.copy()
    for n, losses in enumerate(class_loss.reshape(labels.shape)):
        counted[n] |= hard_negatives(losses, positive[n], eligible[n], ratio)
    weight = ONE / F(max(1, np.count_nonzero(positive)))
    return ModuleLoss(
        float(box_loss[positive.ravel()].sum() * weight),
        float(class_loss[counted.ravel()].sum() * weight),
        by_offsets.reshape(offsets.shape) * (positive * weight)[..., None],
        by_logits.reshape(logits.shape) * (counted * weight)[..., None],
    )


def focal_module_loss(
    offsets: Array, logits: Array, target: Array, labels: Array, options: LossConfig
) -> ModuleLoss:
    """Loss of one module whose anchors all pay for every class."""
    positive = labels.ravel() > 0
    box_loss, by_offsets = smooth_l1(offsets.reshape(-1, 4), target.reshape(-1, 4))
    rows = logits.reshape(-1, logits.shape[2])
    class_loss, by_logits = focal(rows, labels.ravel(), options.focal_alpha, options.focal_gamma)
    weight = ONE / F(max(1, np.count_nonzero(positive)))
    return ModuleLoss(
        float(box_loss[positive].sum() * weight),
        float(class_loss.sum() * weight),
        (by_offsets * (positive * weight)[:, None]).reshape(offsets.shape),
        (by_logits * weight).reshape(logits.shape),
    )


def detector_loss(heads: Heads, boxes: list[Array], labels: list[Array], config: Config) -> Loss:
    """The whole loss of a batch, from the network's outputs."""
    base, options = anchors(config), config.loss
    matches = [targets(base, b, c, config) for b, c in zip(boxes, labels, strict=True)]
    target, classes = (np.stack(part) for part in zip(*matches, strict=True))
    objects = classes if options.arm_first_class else np.minimum(classes, 1)
    arm = heads.arm_offsets, heads.arm_logits, target, objects
    if config.anchors.refined:
        matches = [
            targets(decode(offsets, base, config.anchors.variances), b, c, config)
            for offsets, b, c in zip(heads.arm_offsets, boxes, labels, strict=True)
        ]
        target, classes = (np.stack(part) for part in zip(*matches, strict=True))
    odm = heads.odm_offsets, heads.odm_logits, target, classes
    if options.classes == "sigmoid":
        return Loss(focal_module_loss(*arm, options), focal_module_loss(*odm, options))
    seen = softmax(heads.arm_logits)[..., 1] >= F(options.objectness)
    ratio = options.negatives_per_positive
    return Loss(module_loss(*arm, np.ones_like(seen), ratio), module_loss(*odm, seen, ratio))


# Detection


def scored_boxes(heads: Heads, config: Config) -> tuple[Array, Array]:
    """Boxes and class scores of every anchor."""
    count = len(heads.arm_offsets)
    variances, boxes = config.anchors.variances, np.tile(anchors(config), (count, 1))
    if config.anchors.refined:
        boxes = decode(heads.arm_offsets.reshape(-1, 4), boxes, variances)
    boxes = decode(heads.odm_offsets.reshape(-1, 4), boxes, variances)
    seen = softmax(heads.arm_logits)[..., 1:] >= F(config.loss.objectness)
    probability = softmax if config.loss.classes == "softmax" else sigmoid
    return boxes.reshape(count, -1, 4), probability(heads.odm_logits) * seen


def nms(boxes: Array, scores: Array, iou: float, pixel: tuple[float, float] = (0.0, 0.0)) -> Array:
    """The boxes of one class that are kept, as rows by falling score."""
    order = np.argsort(-scores, kind="stable")
    longer = boxes[order] + np.array([0, 0, *pixel], F)
    suppresses = box_iou(longer, longer) > F(iou)
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~suppresses[i, i + 1 :]
    kept: Array = order[alive]
    return kept


def detect(
    boxes: Array, scores: Array, config: DetectionConfig, size: tuple[int, int] | None = None
) -> Detections:
    """The detections of one image."""
    height, width = size or (1, 1)  # without a size no pixel is added
    pixel = (config.pixel / width, config.pixel / height)
    if config.clip_first:
        boxes = clip_boxes(boxes)
    foreground = np.ascontiguousarray(scores[:, 1:]).ravel()  # by anchor, then class
    candidates = np.flatnonzero(foreground > F(config.score))
    best = np.argsort(-foreground[candidates], kind="stable")[: config.top_before_nms]
    candidates = candidates[best]
    anchor, label = np.divmod(candidates, scores.shape[1] - 1)
    keep = np.zeros(len(candidates), bool)
    for c in np.unique(label):
        rows = np.flatnonzero(label == c)[: config.top_before_nms_per_class]
        alive = nms(boxes[anchor[rows]], foreground[candidates[rows]], config.nms_iou, pixel)
        keep[rows[alive[: config.top_per_class]]] = True
    rows = np.flatnonzero(keep)[: config.top]
    kept = boxes[anchor[rows]]
    return Detections(
        clip_boxes(kept) if config.clip else kept, foreground[candidates[rows]], label[rows] + 1
    )


# Training


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """The learning rate of one step."""
    full, done = F(config.rate), step - config.warmup_steps
    if done < 0:
        start = F(config.warmup_rate)
        return float(start + (full - start) * F(step / config.warmup_steps))
    if config.kind == "multistep":
        passed = sum(milestone <= step for milestone in config.milestones)
        return float(full * F(config.factor) ** F(passed))
    angle = F(np.pi) * F(done) / F(config.steps - config.warmup_steps)
    last = F(config.final_rate)
    return float(last + (full - last) * (ONE + np.cos(angle)) * HALF)


def momentum_step(
    parameters: Parameters,
    gradients: Parameters,
    momentum_buffers: Parameters,
    rate: float,
    config: Config,
    scale: float | None = None,
) -> tuple[Parameters, Parameters]:
    """One update of all trained parameters."""
    options = config.optimizer
    scale = ONE / F(options.scale if scale is None else scale)
    if options.clip_norm is not None:
        squares = [np.vdot(g, g) for g in gradients.values()]
        norm = np.sqrt(np.sum(squares, dtype=F)) * scale
        if norm > F(options.clip_norm):
            scale = scale * F(options.clip_norm) / norm
    new, moved = {}, {}
    for name, _, group, _ in parameter_table(config):
        p = parameters[name]
        if group == "statistic":
            new[name] = p.copy()
            continue
        step = F(rate * options.bias_rate) if group == "bias" else F(rate)
        decay = F(options.weight_decay) if group == "decay" or options.decay_all else F(0)
        moved[name] = (
            momentum_buffers[name] * F(options.momentum) + gradients[name] * scale + decay * p
        )
        new[name] = p - step * moved[name]
    return new, moved
