"""``refinedet.spec.losses`` in PyTorch, for batches.

Mining decides ties as the specification does: PyTorch sorts stably when asked to. Its result is
constant for the gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor

from refinedet.adapters.torch.boxes import decode
from refinedet.adapters.torch.matching import targets
from refinedet.adapters.torch.network import Outputs
from refinedet.spec.config import Config


def smooth_l1(offsets: Tensor, target: Tensor) -> Tensor:
    """``spec.losses.smooth_l1``, (..., 4) to (...)."""
    return F.smooth_l1_loss(offsets, target, reduction="none").sum(-1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``spec.losses.cross_entropy``, logits (..., K) and labels (...) int64 to (...)."""
    return -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]


def focal(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """``spec.losses.focal``, logits (..., K) and labels (...) to (...)."""
    is_label = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    x = torch.where(is_label, logits, -logits)  # logit of the right answer
    weight = torch.where(is_label, alpha, 1 - alpha)
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
