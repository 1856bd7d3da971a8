"""``refinedet.spec.matching`` in MindSpore, for batches: static shapes, plain operations.

The ODM is matched inside the graph, because its anchors are the ARM's output.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import ops

from refinedet.adapters.mindspore.boxes import centres_to_corners, encode, pairwise_iou
from refinedet.spec.config import Config


def match(iou: ms.Tensor, threshold: float, lowest: float) -> ms.Tensor:
    """``spec.matching.match`` for a batch.

    The specification joins the pair with the largest overlap, again and again. Here a few
    rounds do the same: a pair in which each is the best that is left for the other is joined
    whatever happens elsewhere, so each round joins all such pairs.

    Args:
        iou: (N, T, A) float32, 0 in the rows of padded slots.
    Returns:
        (N, A) int32, the object of each anchor, or -1.
    """
    n, t, a = iou.shape
    overlap = ops.select(iou > lowest, iou, ops.zeros_like(iou))
    rows = ops.broadcast_to(ops.range(0, t, 1).astype(ms.int32).reshape((1, t)), (n, t))
    # Column a takes the objects that are not joined in a round.
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
        slot = ops.select(joined, best, ops.full_like(best, a))
        matched = ops.tensor_scatter_elements(matched, slot, rows, 1)
        anchor_free = ops.tensor_scatter_elements(anchor_free, slot, ops.zeros_like(value), 1)
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
    anchors = ops.range(0, a, 1).astype(ms.int32).reshape((1, a))
    matched = ops.full((n, a), -1, dtype=ms.int32)
    held = ops.zeros((n, a), ms.float32)
    for slot in range(t):
        overlap = iou[:, slot]
        best = ops.argmax(overlap, 1).astype(ms.int32).reshape((n, 1))
        some = ops.amax(overlap, 1, True) > lowest
        forced = ops.select(anchors == best, ops.full_like(overlap, 2.0), overlap)
        taken = ops.logical_and(forced > threshold, forced > held)
        taken = ops.logical_and(taken, ops.broadcast_to(some, taken.shape))
        matched = ops.select(taken, ops.full_like(matched, slot), matched)
        held = ops.select(taken, forced, held)
    return matched


def targets(
    anchors: ms.Tensor, boxes: ms.Tensor, labels: ms.Tensor, config: Config
) -> tuple[ms.Tensor, ms.Tensor]:
    """``spec.matching.targets`` for a batch.

    Args:
        anchors: (N, A, 4), centre form.
        boxes: (N, T, 4), corner form, and labels: (N, T); 0 marks a padded slot.
    """
    n, a, _ = anchors.shape
    iou = pairwise_iou(boxes, centres_to_corners(anchors))
    iou = iou * (labels > 0).astype(iou.dtype).expand_dims(2)
    rule = match if config.matching.rule == "bipartite" else match_in_order
    matched = rule(iou, config.matching.iou, config.matching.lowest_iou)
    positive = matched >= 0
    index = ops.maximum(matched, 0)
    box = ops.gather_elements(boxes, 1, ops.broadcast_to(index.expand_dims(2), (n, a, 4)))
    # Unmatched anchors get themselves: finite offsets, which nothing reads.
    mask = ops.broadcast_to(positive.expand_dims(2), (n, a, 4))
    box = ops.select(mask, box, centres_to_corners(anchors))
    centre, size = config.anchors.variances
    label = ops.gather_elements(labels, 1, index)
    target = encode(box, anchors, centre, size)
    return target, ops.select(positive, label, ops.zeros_like(label))
