"""Losses: what training lowers, and the gradient of it.

Both modules are trained alike. An anchor is positive if it answers for an object.
Positives pay for their offsets (smooth L1) and their class (cross entropy);
negatives pay for their class, but only the hardest few of each picture do:

1. Negatives of a picture without objects never count.
2. For the ODM, an anchor that the ARM holds for background (probability of
   "object" below ``loss.objectness``) is no negative either. Positives stay.
3. Of the rest, as many as ``negatives_per_positive`` times the picture's
   positives, rounded down, in order of falling loss; ties to the lowest anchor.

Each module's sum is divided by its positives in the whole batch, or by 1 if there
are none; the four parts are added. What is selected, what is matched and the
refined anchors are constants for the gradient.

Source: RefineDet, arXiv:1711.06897, section 3.3 and equation 1; rules 1 to 3 and
    the divisor as in the multi-box loss of the authors' release.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refinedet.spec import coding
from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.config import Config
from refinedet.spec.errors import Array, ContractError, check_float, check_labels, check_shape
from refinedet.spec.matching import targets
from refinedet.spec.network import Heads


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis, same dtype; computed in float64."""
    check_float(logits=logits)
    x = logits.astype(np.float64)
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    probabilities: Array = (x / x.sum(axis=-1, keepdims=True)).astype(logits.dtype)
    return probabilities


def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Softmax cross entropy of each row, and its gradient.

    Args:
        logits: (M, K) float32 or float64.
        labels: (M,) integers from 0 to K - 1.
    Returns:
        Losses (M,) and their gradients by the logits (M, K), same dtype.
        Computed in float64.
    Raises:
        ContractError: shapes, dtypes, or a label out of range.
    """
    check_float(logits=logits)
    check_shape(logits, "logits", None, None)
    check_shape(labels, "labels", len(logits))
    check_labels(labels, "labels", logits.shape[1])
    x = logits.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    total = np.exp(x).sum(axis=1)
    rows = np.arange(len(x))
    loss = np.log(total) - x[rows, labels]
    gradient = np.exp(x) / total[:, None]
    gradient[rows, labels] -= 1
    return loss.astype(logits.dtype), gradient.astype(logits.dtype)


def smooth_l1(predicted: Array, wanted: Array) -> tuple[Array, Array]:
    """Smooth L1 of each row, summed over its offsets, and its gradient.

    d^2 / 2 where |d| < 1, |d| - 1/2 elsewhere; both agree at |d| = 1.

    Args:
        predicted, wanted: (M, 4) float32 or float64.
    Returns:
        Losses (M,) and their gradients by ``predicted`` (M, 4), same dtype.
        Computed in float64.
    Raises:
        ContractError: shapes, dtypes or non-finite values.
    Source: Fast R-CNN, arXiv:1504.08083, equation 3.
    """
    check_float(predicted=predicted, wanted=wanted)
    check_shape(predicted, "predicted", None, 4)
    check_shape(wanted, "wanted", *predicted.shape)
    d = predicted.astype(np.float64) - wanted
    loss = np.where(abs(d) < 1, d * d / 2, abs(d) - 0.5).sum(axis=1)
    return loss.astype(predicted.dtype), d.clip(-1, 1).astype(predicted.dtype)


def hard_negatives(losses: Array, positive: Array, eligible: Array, ratio: float) -> Array:
    """The negatives of one picture that count.

    Args:
        losses: (A,) float, the class loss of every anchor.
        positive: (A,) bool.
        eligible: (A,) bool, negatives that may be chosen; positives are never.
        ratio: negatives for each positive; the product, in float64, is rounded down.
    Returns:
        (A,) bool: the eligible negatives of largest loss; ties to the lowest anchor.
    Source: SSD, arXiv:1512.02325, section 2.2, "Hard negative mining"; ratio 3.
    """
    candidates = np.flatnonzero(eligible & ~positive)
    order = candidates[np.argsort(-losses[candidates].astype(np.float64), kind="stable")]
    chosen = np.zeros(len(losses), bool)
    chosen[order[: int(ratio * positive.sum())]] = True
    return chosen


class ModuleLoss(NamedTuple):
    """Loss of one module over a batch: two scalars, and their gradients."""

    offsets: float
    classes: float
    offsets_gradient: Array
    """(N, A, 4), by the module's offsets."""
    logits_gradient: Array
    """(N, A, K), by the module's logits."""


def module_loss(
    offsets: Array, logits: Array, wanted: Array, labels: Array, eligible: Array, ratio: float
) -> ModuleLoss:
    """Loss of the ARM or the ODM over a batch.

    Args:
        offsets: (N, A, 4) float32 or float64, predicted; N from 1.
        logits: (N, A, K), same dtype.
        wanted: (N, A, 4), same dtype; read where ``labels`` is above 0.
        labels: (N, A) integers from 0 to K - 1; 0 is negative.
        eligible: (N, A) bool, negatives that may count.
        ratio: negatives for each positive.
    Returns:
        Sums over the batch in float64, of losses rounded to the dtype; negatives
        are chosen by the rounded losses, too. Gradients have the dtype.
    Raises:
        ContractError: shapes, dtypes, non-finite values, or a label out of range.
    """
    check_float(offsets=offsets, logits=logits, wanted=wanted)
    check_shape(logits, "logits", None, None, None)
    pictures, anchors, classes = logits.shape
    if pictures == 0:
        raise ContractError("logits: want at least one picture")
    check_shape(offsets, "offsets", pictures, anchors, 4)
    check_shape(wanted, "wanted", pictures, anchors, 4)
    check_shape(labels, "labels", pictures, anchors)
    check_shape(eligible, "eligible", pictures, anchors)
    positive = labels > 0
    class_loss, class_gradient = cross_entropy(logits.reshape(-1, classes), labels.reshape(-1))
    box_loss, box_gradient = smooth_l1(offsets.reshape(-1, 4), wanted.reshape(-1, 4))
    class_loss, box_loss = class_loss.reshape(labels.shape), box_loss.reshape(labels.shape)
    counted = positive | np.stack(
        [hard_negatives(*row, ratio) for row in zip(class_loss, positive, eligible, strict=True)]
    )
    divisor = max(1, int(positive.sum()))
    return ModuleLoss(
        float(box_loss[positive].sum(dtype=np.float64) / divisor),
        float(class_loss[counted].sum(dtype=np.float64) / divisor),
        box_gradient.reshape(offsets.shape) * positive[..., None] / offsets.dtype.type(divisor),
        class_gradient.reshape(logits.shape) * counted[..., None] / offsets.dtype.type(divisor),
    )


class Loss(NamedTuple):
    """The detector's loss over a batch."""

    arm: ModuleLoss
    odm: ModuleLoss

    @property
    def total(self) -> float:
        """The sum of the four parts: what training lowers."""
        return self.arm.offsets + self.arm.classes + self.odm.offsets + self.odm.classes


class Targets(NamedTuple):
    """What the loss of a batch holds constant. N pictures, A anchors."""

    arm_offsets: Array
    """(N, A, 4), dtype of the heads."""
    arm_labels: Array
    """(N, A) int64: 1 where an object is, 0 elsewhere."""
    odm_offsets: Array
    """(N, A, 4), from the refined anchors."""
    odm_labels: Array
    """(N, A) int64: classes, 0 is background."""
    odm_eligible: Array
    """(N, A) bool: what the ARM does not hold for background."""


def detector_targets(
    heads: Heads, boxes: list[Array], labels: list[Array], config: Config
) -> Targets:
    """Both modules' targets: the ARM's on the anchors, the ODM's on the refined ones.

    Args:
        heads: the network's outputs for N pictures, N from 1.
        boxes: for each picture its objects (T, 4), dtype of the heads, corner form.
        labels: for each picture their classes (T,), integers from 1.
    Raises:
        ContractError: lengths, shapes, dtypes, or what ``targets`` and ``decode`` refuse.
    """
    if not len(heads.arm_offsets) == len(boxes) == len(labels) > 0:
        raise ContractError("boxes, labels: want one entry for each picture, at least one")
    anchors = all_anchors(config).astype(heads.arm_offsets.dtype)
    objects = list(zip(boxes, labels, strict=True))
    arm = [targets(anchors, b, c, config) for b, c in objects]
    odm = [
        targets(coding.decode(offsets, anchors, config.anchors.variances), b, c, config)
        for offsets, (b, c) in zip(heads.arm_offsets, objects, strict=True)
    ]
    return Targets(
        np.stack([offsets for offsets, _ in arm]),
        np.stack([classes for _, classes in arm]).clip(0, 1),
        np.stack([offsets for offsets, _ in odm]),
        np.stack([classes for _, classes in odm]),
        softmax(heads.arm_logits)[..., 1] >= config.loss.objectness,
    )


def loss_on_targets(heads: Heads, wanted: Targets, config: Config) -> Loss:
    """The loss of a batch with its targets given; what its gradients differentiate."""
    ratio = config.loss.negatives_per_positive
    everything = np.ones_like(wanted.odm_eligible)
    return Loss(
        module_loss(
            heads.arm_offsets,
            heads.arm_logits,
            wanted.arm_offsets,
            wanted.arm_labels,
            everything,
            ratio,
        ),
        module_loss(
            heads.odm_offsets,
            heads.odm_logits,
            wanted.odm_offsets,
            wanted.odm_labels,
            wanted.odm_eligible,
            ratio,
        ),
    )


def detector_loss(heads: Heads, boxes: list[Array], labels: list[Array], config: Config) -> Loss:
    """The whole loss of a batch, from the network's outputs.

    Arguments and errors as in ``detector_targets``.
    """
    return loss_on_targets(heads, detector_targets(heads, boxes, labels, config), config)
