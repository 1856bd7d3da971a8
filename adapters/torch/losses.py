"""``refinedet.spec.losses`` and ``refinedet.spec.matching`` in PyTorch, for whole batches.

What the specification decides by ties and thresholds (matching, mining) is decided here by
PyTorch's documented order: ``argmax`` and ``max`` take the first of equals, and ``sort`` is
stable on demand. All of it is constant for the gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor

from refinedet.adapters.torch.network import Outputs, decode, to_centres, to_corners
from refinedet.spec.config import Config, MatchingConfig


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Overlap (N, T, A) of boxes (N, T, 4) with anchors (N, A, 4), corner form."""
    bx0, by0, bx1, by1 = boxes[:, :, None].unbind(-1)  # each (N, T, 1)
    ax0, ay0, ax1, ay1 = anchors[:, None].unbind(-1)  # each (N, 1, A)
    wide = (torch.minimum(bx1, ax1) - torch.maximum(bx0, ax0)).clamp(min=0)
    high = (torch.minimum(by1, ay1) - torch.maximum(by0, ay0)).clamp(min=0)
    shared = wide * high
    union = (bx1 - bx0) * (by1 - by0) + (ax1 - ax0) * (ay1 - ay0) - shared
    return torch.where(union > 0, shared / union, 0)


def match(iou: Tensor, config: MatchingConfig) -> Tensor:
    """``spec.matching.match`` for a batch.

    Args:
        iou: (N, T, A) float32, T and A from 1; 0 in the rows of padded slots.
    Returns:
        (N, A) int64, the object of each anchor, or -1.
    """
    if config.rule == "in_order":
        return _match_in_order(iou, config)
    overlap = torch.where(iou > config.lowest_iou, iou, 0)
    matched = _bipartite(overlap)
    value, best = overlap.max(1)
    answers = (value >= config.iou) & (value > 0)
    return torch.where((matched < 0) & answers, best, matched)


def _bipartite(overlap: Tensor) -> Tensor:
    """For each anchor (N, A) the object whose own it is, or -1.

    The specification joins the pair of largest overlap, again and again. A pair in which each is
    the best that the other can still get is joined whatever happens elsewhere, so that each
    round joins all such pairs.
    """
    n, t, a = overlap.shape
    objects = torch.arange(t, device=overlap.device)
    matched = torch.full((n, a), -1, device=overlap.device)
    free = overlap.clone()
    while True:
        value, best = free.max(2)  # of each object
        suitor = free.argmax(1)  # of each anchor
        joined = (suitor.gather(1, best) == objects) & (value > 0)
        image, row = joined.nonzero(as_tuple=True)
        if len(row) == 0:
            return matched
        anchor = best[image, row]
        matched[image, anchor] = row
        free[image, row] = 0
        free[image, :, anchor] = 0


def _match_in_order(iou: Tensor, config: MatchingConfig) -> Tensor:
    """``match`` by the model zoo's rule: object after object."""
    n, t, a = iou.shape
    matched = torch.full((n, a), -1, device=iou.device)
    held = torch.zeros((n, a), device=iou.device)
    for row in range(t):
        value, best = iou[:, row].max(1, keepdim=True)
        overlap = iou[:, row].scatter(1, best, 2.0)
        taken = (overlap > config.iou) & (overlap > held) & (value > config.lowest_iou)
        matched = torch.where(taken, row, matched)
        held = torch.where(taken, overlap, held)
    return matched


def encode(boxes: Tensor, anchors: Tensor, variances: tuple[float, ...]) -> Tensor:
    """``spec.coding.encode``: boxes (..., 4) corner form, anchors (..., 4) centre form."""
    (centre, sides), (origin, units) = to_centres(boxes).split(2, -1), anchors.split(2, -1)
    offset = (centre - origin) / (units * variances[0])
    return torch.cat((offset, torch.log(sides / units) / variances[1]), -1)


def targets(
    anchors: Tensor, boxes: Tensor, labels: Tensor, config: Config
) -> tuple[Tensor, Tensor]:
    """``spec.matching.targets`` for a batch.

    Args:
        anchors: (N, A, 4), centre form.
        boxes: (N, T, 4), corner form. labels: (N, T) int64; 0 marks an empty place.
    """
    iou = pairwise_iou(boxes, to_corners(anchors)) * (labels > 0)[:, :, None]
    matched = match(iou, config.matching)
    positive, index = matched >= 0, matched.clamp(min=0)
    box = boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
    target = encode(box, anchors, config.anchors.variances)
    return (
        torch.where(positive[:, :, None], target, 0),
        torch.where(positive, labels.gather(1, index), 0),
    )


def smooth_l1(offsets: Tensor, target: Tensor) -> Tensor:
    """``spec.losses.smooth_l1``, (..., 4) to (...)."""
    return F.smooth_l1_loss(offsets, target, reduction="none").sum(-1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``spec.losses.cross_entropy``, logits (..., K) and labels (...) int64 to (...)."""
    return -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]


def focal(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """``spec.losses.focal``, logits (..., K) and labels (...) to (...)."""
    here = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    x = torch.where(here, logits, -logits)  # of the probability of being right
    weight = torch.where(here, alpha, 1 - alpha)
    # A power of the probability of being wrong, taken by its logarithm: at 0 it has a slope.
    wrong = torch.exp(gamma * F.logsigmoid(-x))
    return -(weight * wrong * F.logsigmoid(x)).sum(-1)


def hard_negatives(losses: Tensor, positive: Tensor, eligible: Tensor, ratio: float) -> Tensor:
    """``spec.losses.hard_negatives`` for a batch, all (N, A)."""
    candidate = eligible & ~positive
    losses = torch.where(candidate, losses, -torch.inf)
    order = losses.argsort(dim=1, descending=True, stable=True)
    most = (positive.sum(1, keepdim=True).double() * ratio).floor()
    first = torch.arange(losses.shape[1], device=losses.device) < most
    return torch.zeros_like(candidate).scatter(1, order, first) & candidate


def over_positives(
    offsets: Tensor, target: Tensor, positive: Tensor, class_loss: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of the offsets of ``positive`` (N, A) and ``class_loss``, over their number."""
    box_loss = (smooth_l1(offsets, target) * positive).sum()
    divisor = positive.sum().clamp(min=1)
    return box_loss / divisor, class_loss / divisor


def module_loss(
    offsets: Tensor, logits: Tensor, target: Tensor, labels: Tensor, eligible: Tensor, ratio: float
) -> tuple[Tensor, Tensor]:
    """``spec.losses.module_loss``: the loss of the offsets and that of the classes."""
    positive = labels > 0
    class_loss = cross_entropy(logits, labels)
    counted = positive | hard_negatives(class_loss.detach(), positive, eligible, ratio)
    return over_positives(offsets, target, positive, (class_loss * counted).sum())


def focal_module_loss(
    offsets: Tensor, logits: Tensor, target: Tensor, labels: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """``spec.losses.focal_module_loss``: the loss of the offsets and that of the classes."""
    class_loss = focal(logits, labels, alpha, gamma).sum()
    return over_positives(offsets, target, labels > 0, class_loss)


def detector_loss(
    outputs: Outputs,
    boxes: Tensor,
    labels: Tensor,
    arm_target: Tensor,
    arm_labels: Tensor,
    anchors: Tensor,
    config: Config,
) -> Tensor:
    """``spec.losses.detector_loss``: its four parts, (4,), in the order of ``StepLosses``.

    Args:
        boxes, labels, arm_target, arm_labels: as in ``refinedet.data.batch.Batch``.
        anchors: (A, 4), centre form.
    """
    arm_offsets, arm_logits, odm_offsets, odm_logits = outputs
    options = config.loss
    labels, arm_labels = labels.long(), arm_labels.long()
    odm_target, odm_labels = arm_target, arm_labels
    if config.anchors.refined:
        refined = decode(arm_offsets.detach(), anchors, config.anchors.variances)
        odm_target, odm_labels = targets(refined, boxes, labels, config)
    if not options.arm_first_class:
        arm_labels = arm_labels.clamp(max=1)
    arm = arm_offsets, arm_logits, arm_target, arm_labels
    odm = odm_offsets, odm_logits, odm_target, odm_labels
    if options.classes == "sigmoid":
        focus = options.focal_alpha, options.focal_gamma
        return torch.stack((*focal_module_loss(*arm, *focus), *focal_module_loss(*odm, *focus)))
    objectness = arm_logits.detach().softmax(-1)[..., 1]
    every, eligible = objectness >= 0, objectness >= options.objectness
    ratio = options.negatives_per_positive
    return torch.stack((*module_loss(*arm, every, ratio), *module_loss(*odm, eligible, ratio)))
