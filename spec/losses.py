"""Losses: the training objective and its gradient.

The objective is the same for both modules. An anchor is positive if it is assigned to an
object. Positives contribute a regression loss of their offsets (smooth L1) and a
classification loss (cross entropy). Of the negatives, only the hardest of each image
contribute to the classification loss:

1. Negatives of an image without objects do not contribute.
2. For the ODM, an anchor that the ARM classifies as background (probability of
   "object" below ``loss.objectness``) is not a negative either. Positives are unaffected.
3. Of the remaining negatives, those with the largest loss contribute. Their number is
   ``negatives_per_positive`` times the image's positives, rounded down; ties go to the
   lowest anchor.

With ``loss.classes`` set to ``sigmoid`` (the model zoo's), the classification loss is a focal
loss of every anchor and every class instead, and rules 1 to 3 do not apply.

Each module's sum is divided by the number of its positives in the whole batch, or by 1 if
there are none. The loss is the sum of the four parts. No gradient flows through the selection of
negatives, the matching or the refined anchors.

Source: RefineDet, arXiv:1711.06897, section 3.3 and equation 1; rules 1 to 3 and
    the divisor as in the multi-box loss of the authors' release.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refinedet.spec import coding
from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.config import Config
from refinedet.spec.errors import SpecError, check_float, check_labels, check_shape
from refinedet.spec.matching import targets
from refinedet.spec.network import Heads
from refinedet.spec.types import Array


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis, same dtype; computed in float64."""
    check_float(logits=logits)
    x = logits.astype(np.float64)
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    probabilities: Array = (x / x.sum(axis=-1, keepdims=True)).astype(logits.dtype)
    return probabilities


def sigmoid(logits: Array) -> Array:
    """The sigmoid of each logit, same dtype; computed in float64."""
    check_float(logits=logits)
    probabilities: Array = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
    return probabilities.astype(logits.dtype)


def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Softmax cross entropy of each row, and its gradient.

    Args:
        logits: (M, K) float32 or float64.
        labels: (M,) integers from 0 to K - 1.
    Returns:
        Losses (M,) and their gradients with respect to the logits (M, K), same dtype.
        Computed in float64.
    Raises:
        SpecError: shapes, dtypes, or a label out of range.
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


def smooth_l1(predicted: Array, target: Array) -> tuple[Array, Array]:
    """Smooth L1 of each row, summed over its offsets, and its gradient.

    d^2 / 2 where |d| < 1, |d| - 1/2 elsewhere; both agree at |d| = 1.

    Args:
        predicted, target: (M, 4) float32 or float64.
    Returns:
        Losses (M,) and their gradients with respect to ``predicted`` (M, 4), same dtype.
        Computed in float64.
    Raises:
        SpecError: shapes, dtypes or non-finite values.
    Source: Fast R-CNN, arXiv:1504.08083, equation 3.
    """
    check_float(predicted=predicted, target=target)
    check_shape(predicted, "predicted", None, 4)
    check_shape(target, "target", *predicted.shape)
    d = predicted.astype(np.float64) - target
    loss = np.where(abs(d) < 1, d * d / 2, abs(d) - 0.5).sum(axis=1)
    return loss.astype(predicted.dtype), d.clip(-1, 1).astype(predicted.dtype)


def hard_negatives(losses: Array, positive: Array, eligible: Array, ratio: float) -> Array:
    """Hard-negative mining: the negatives of one image that contribute to the loss.

    Args:
        losses: (A,) float, the class loss of every anchor.
        positive: (A,) bool.
        eligible: (A,) bool, negatives that may be chosen; positives are never chosen.
        ratio: negatives for each positive; the product, in float64, is rounded down.
    Returns:
        (A,) bool: the eligible negatives with the largest loss; ties go to the lowest anchor.
    Source: SSD, arXiv:1512.02325, section 2.2, "Hard negative mining"; ratio 3.
    """
    candidates = np.flatnonzero(eligible & ~positive)
    order = candidates[np.argsort(-losses[candidates].astype(np.float64), kind="stable")]
    chosen = np.zeros(len(losses), bool)
    chosen[order[: int(ratio * positive.sum())]] = True
    return chosen


def focal(logits: Array, labels: Array, alpha: float, gamma: float) -> tuple[Array, Array]:
    """Sigmoid focal loss of each row, summed over its columns, and its gradient.

    With p the sigmoid of a logit: in the column of the label
    -alpha (1 - p)^gamma log p, in the others -(1 - alpha) p^gamma log(1 - p).

    Args:
        logits: (M, K) float32 or float64.
        labels: (M,) integers from 0; a label of K or more matches no column.
        alpha: weight of the label's column; the other columns have weight 1 - ``alpha``.
        gamma: focusing parameter: the larger, the less a well-classified logit contributes.
    Returns:
        Losses (M,) and their gradients with respect to the logits (M, K), same dtype.
        Computed in float64.
    Raises:
        SpecError: shapes or dtypes.
    Source: RetinaNet, arXiv:1708.02002, equation 5; the background is a column like
        the others, as in the model zoo.
    """
    check_float(logits=logits)
    check_shape(logits, "logits", None, None)
    check_shape(labels, "labels", len(logits))
    here = labels[:, None] == np.arange(logits.shape[1])
    x = logits.astype(np.float64) * np.where(here, 1, -1)  # p: of the right answer
    weight = np.where(here, alpha, 1 - alpha)
    log_p = -np.logaddexp(0, -x)
    wrong = np.exp(-np.logaddexp(0, x))
    losses = -weight * wrong**gamma * log_p
    slope = weight * wrong**gamma * (gamma * np.exp(log_p) * log_p - wrong)
    gradient = slope * np.where(here, 1, -1)
    return losses.sum(axis=1).astype(logits.dtype), gradient.astype(logits.dtype)


class ModuleLoss(NamedTuple):
    """Loss of one module over a batch: two scalars, and their gradients."""

    offsets: float
    classes: float
    offsets_gradient: Array
    """(N, A, 4), with respect to the module's offsets."""
    logits_gradient: Array
    """(N, A, K), with respect to the module's logits."""


def module_loss(
    offsets: Array, logits: Array, target: Array, labels: Array, eligible: Array, ratio: float
) -> ModuleLoss:
    """Loss of the ARM or the ODM over a batch.

    Args:
        offsets: (N, A, 4) float32 or float64, predicted; N from 1.
        logits: (N, A, K), same dtype.
        target: (N, A, 4), same dtype; read where ``labels`` is above 0.
        labels: (N, A) integers from 0 to K - 1; 0 is negative.
        eligible: (N, A) bool, negatives that may be chosen.
        ratio: negatives for each positive.
    Returns:
        Each anchor's loss is rounded to the dtype of the arguments, and the sums are in
        float64; negatives are also chosen by the rounded losses. Gradients have the dtype
        of the arguments.
    Raises:
        SpecError: shapes, dtypes, non-finite values, or a label out of range.
    """
    _check_module(offsets, logits, target, labels)
    check_shape(eligible, "eligible", *labels.shape)
    positive = labels > 0
    class_loss, class_gradient = cross_entropy(_rows(logits), labels.reshape(-1))
    by_anchor = class_loss.reshape(labels.shape)
    counted = positive | np.stack(
        [hard_negatives(*row, ratio) for row in zip(by_anchor, positive, eligible, strict=True)]
    )
    return _module_loss(offsets, logits, target, positive, class_loss, class_gradient, counted)


def _check_module(offsets: Array, logits: Array, target: Array, labels: Array) -> None:
    """Check the arguments of a module's loss."""
    check_float(offsets=offsets, logits=logits, target=target)
    check_shape(logits, "logits", None, None, None)
    images, anchors, _ = logits.shape
    if images == 0:
        raise SpecError("expected at least one image, got none", key="logits")
    check_shape(offsets, "offsets", images, anchors, 4)
    check_shape(target, "target", images, anchors, 4)
    check_shape(labels, "labels", images, anchors)


def _rows(array: Array) -> Array:
    """(N, A, K) as (N * A, K)."""
    return array.reshape(-1, array.shape[2])


def _module_loss(
    offsets: Array,
    logits: Array,
    target: Array,
    positive: Array,
    class_loss: Array,
    class_gradient: Array,
    counted: Array,
) -> ModuleLoss:
    """Offset losses of the ``positive``, class losses of the ``counted`` anchors (N, A).

    Both are divided by the number of positives.
    """
    box_loss, box_gradient = smooth_l1(_rows(offsets), _rows(target))
    divisor = max(1, int(positive.sum()))
    share = offsets.dtype.type(divisor)
    return ModuleLoss(
        float(box_loss[positive.ravel()].sum(dtype=np.float64) / divisor),
        float(class_loss[counted.ravel()].sum(dtype=np.float64) / divisor),
        box_gradient.reshape(offsets.shape) * positive[..., None] / share,
        class_gradient.reshape(logits.shape) * counted[..., None] / share,
    )


def focal_module_loss(
    offsets: Array, logits: Array, target: Array, labels: Array, alpha: float, gamma: float
) -> ModuleLoss:
    """``module_loss`` with a focal classification loss over all anchors.

    Args:
        labels: (N, A) integers from 0; above 0 is positive; see ``focal``.
        alpha, gamma: as in ``focal``; other arguments as in ``module_loss``.
    Source: the model zoo's ``refinedet_loss_cell.py``.
    """
    _check_module(offsets, logits, target, labels)
    class_loss, class_gradient = focal(_rows(logits), labels.reshape(-1), alpha, gamma)
    every = np.ones(labels.shape, bool)
    return _module_loss(offsets, logits, target, labels > 0, class_loss, class_gradient, every)


class Loss(NamedTuple):
    """The detector's loss over a batch."""

    arm: ModuleLoss
    odm: ModuleLoss

    @property
    def total(self) -> float:
        """The sum of the four parts: the training objective."""
        return self.arm.offsets + self.arm.classes + self.odm.offsets + self.odm.classes


class Targets(NamedTuple):
    """The constants of the loss of a batch of N images with A anchors."""

    arm_offsets: Array
    """(N, A, 4), dtype of the heads."""
    arm_labels: Array
    """(N, A) int64: 1 for an object, 0 for background; with ``arm_first_class`` the class."""
    odm_offsets: Array
    """(N, A, 4), relative to the refined anchors; without ``anchors.refined``, to the anchors."""
    odm_labels: Array
    """(N, A) int64: the class, 0 for background."""
    odm_eligible: Array
    """(N, A) bool: anchors that the ARM does not classify as background."""


def detector_targets(
    heads: Heads, boxes: list[Array], labels: list[Array], config: Config
) -> Targets:
    """Both modules' targets: the ARM's on the anchors, the ODM's on the refined ones.

    Args:
        heads: the network's outputs for N images, N from 1.
        boxes: for each image the ground-truth boxes (T, 4), dtype of the heads, corner form.
        labels: for each image their classes (T,), integers from 1.
    Raises:
        SpecError: lengths, shapes, dtypes, or the errors of ``targets`` and ``decode``.
    """
    if not len(heads.arm_offsets) == len(boxes) == len(labels) > 0:
        raise SpecError("expected one entry for each image, at least one", key="boxes, labels")
    anchors = all_anchors(config).astype(heads.arm_offsets.dtype)
    objects = list(zip(boxes, labels, strict=True))
    arm = [targets(anchors, b, c, config) for b, c in objects]
    odm = arm
    if config.anchors.refined:
        odm = [
            targets(coding.decode(offsets, anchors, config.anchors.variances), b, c, config)
            for offsets, (b, c) in zip(heads.arm_offsets, objects, strict=True)
        ]
    arm_labels = np.stack([classes for _, classes in arm])
    return Targets(
        np.stack([offsets for offsets, _ in arm]),
        arm_labels if config.loss.arm_first_class else arm_labels.clip(0, 1),
        np.stack([offsets for offsets, _ in odm]),
        np.stack([classes for _, classes in odm]),
        softmax(heads.arm_logits)[..., 1] >= config.loss.objectness,
    )


def loss_on_targets(heads: Heads, target: Targets, config: Config) -> Loss:
    """The loss of a batch for given targets, and its gradients."""
    options = config.loss
    arm = heads.arm_offsets, heads.arm_logits, target.arm_offsets, target.arm_labels
    odm = heads.odm_offsets, heads.odm_logits, target.odm_offsets, target.odm_labels
    if options.classes == "sigmoid":
        focus = options.focal_alpha, options.focal_gamma
        return Loss(focal_module_loss(*arm, *focus), focal_module_loss(*odm, *focus))
    everything = np.ones_like(target.odm_eligible)
    return Loss(
        module_loss(*arm, everything, options.negatives_per_positive),
        module_loss(*odm, target.odm_eligible, options.negatives_per_positive),
    )


def detector_loss(heads: Heads, boxes: list[Array], labels: list[Array], config: Config) -> Loss:
    """The whole loss of a batch, from the network's outputs.

    Arguments and errors as in ``detector_targets``.
    """
    return loss_on_targets(heads, detector_targets(heads, boxes, labels, config), config)
