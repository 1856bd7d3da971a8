"""``refinedet.spec.matching`` in PyTorch, for batches.

Ties are decided by PyTorch's documented order: ``argmax`` and ``max`` take the first of equals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refinedet.adapters.torch.boxes import centres_to_corners, encode, pairwise_iou
from refinedet.spec.config import Config, MatchingConfig


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
    above = (value >= config.iou) & (value > 0)
    return torch.where((matched < 0) & above, best, matched)


def _bipartite(overlap: Tensor) -> Tensor:
    """The object that each anchor (N, A) is joined with, or -1.

    The specification joins the pair with the largest overlap, again and again. A pair in which
    each is the best that is left for the other is joined whatever happens elsewhere, so each
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


def targets(
    anchors: Tensor, boxes: Tensor, labels: Tensor, config: Config
) -> tuple[Tensor, Tensor]:
    """``spec.matching.targets`` for a batch.

    Args:
        anchors: (N, A, 4), centre form.
        boxes: (N, T, 4), corner form. labels: (N, T) int64; 0 marks a padded slot.
    """
    iou = pairwise_iou(boxes, centres_to_corners(anchors)) * (labels > 0)[:, :, None]
    matched = match(iou, config.matching)
    positive, index = matched >= 0, matched.clamp(min=0)
    box = boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
    target = encode(box, anchors, config.anchors.variances)
    return (
        torch.where(positive[:, :, None], target, 0),
        torch.where(positive, labels.gather(1, index), 0),
    )
