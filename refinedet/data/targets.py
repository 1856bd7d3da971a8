"""The ARM's regression targets and labels for the anchors of a training image, fast.

The result equals that of ``spec.matching.targets`` on the config's anchors. Anchors lie on
grids, so along each axis there are few different intervals, and the overlaps of all pairs are
products of short tables. These are first computed approximately, in float32. Only pairs
near or above the threshold, and pairs near the best of their object, are then computed as
the specification does, so that ties and thresholds are decided as in the specification.
This holds for the rule ``bipartite``; ``in_order`` calls the specification.
"""

from __future__ import annotations

import heapq

import numpy as np

from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.boxes import area, corners_to_centres
from refinedet.spec.config import Config, feature_sizes
from refinedet.spec.errors import SpecError, check_boxes, check_labels, check_shape
from refinedet.spec.matching import targets
from refinedet.spec.types import Array

DOUBT = np.float32(0.999)
"""A pair is computed exactly if its approximate overlap is at least this share of the largest.
Float32 anchors of one level differ in area by up to 1e-4 where they are smallest."""


class ArmTargets:
    """Matches and encodes the objects of one image; threads may share it."""

    def __init__(self, config: Config) -> None:
        self.anchors = all_anchors(config)
        """(A, 4) float32, corner form."""
        self._config = config
        self._classes = config.num_classes
        self._matching = config.matching
        self._variances = config.anchors.variances
        self._exact = self.anchors.astype(np.float64)
        self._centres = corners_to_centres(self._exact)
        self._grid = _Grid(self.anchors, config)

    def __call__(self, boxes: Array, labels: Array) -> tuple[Array, Array]:
        """Offsets and classes of every anchor.

        Args:
            boxes: (T, 4) float32, corner form, fractions of the image. T may be 0.
            labels: (T,) integers from 1 to ``num_classes`` - 1.
        Returns:
            Offsets (A, 4) float32, zero where unmatched; and classes (A,) int32, 0
            where unmatched.
        Raises:
            SpecError: shapes, dtypes, crossed corners, or a label out of range.
        """
        check_boxes(boxes=boxes)
        if boxes.dtype != np.float32:
            raise SpecError(f"expected float32, got {boxes.dtype}", key="boxes")
        check_shape(labels, "labels", len(boxes))
        check_labels(labels, "labels", self._classes, lowest=1)
        if self._matching.rule == "in_order":
            offsets, classes = targets(self.anchors, boxes, labels, self._config)
            return offsets, classes.astype(np.int32)
        offsets = np.zeros((len(self.anchors), 4), np.float32)
        classes = np.zeros(len(self.anchors), np.int32)
        if len(boxes):
            exact = boxes.astype(np.float64)
            anchors, objects = self._match(exact, self._grid.overlaps(boxes))
            offsets[anchors] = self._encode(exact, anchors, objects)
            classes[anchors] = labels[objects]
        return offsets, classes

    def _match(self, boxes: Array, rough: Array) -> tuple[Array, Array]:
        """Matched pairs: anchors and their objects. The last pair of an anchor counts.

        Args:
            boxes: (T, 4) float64.
            rough: (T, A) float32, as ``_Grid.overlaps``; is modified.
        """
        config = self._matching
        floor = np.minimum(rough.max(axis=1), _as_rough(config.iou))
        floor = np.maximum(floor, _as_rough(config.lowest_iou)) * DOUBT
        flat = np.flatnonzero(rough >= floor[:, None])
        objects, anchors = np.divmod(flat, len(self.anchors))
        values = self._overlaps_of_pairs(boxes[objects], anchors)

        # Best pairs first; of equals the lowest object, then the lowest anchor.
        order = np.argsort(-values, kind="stable")
        values, objects, anchors = values[order], objects[order], anchors[order]
        enough = np.flatnonzero((values >= config.iou) & (values > config.lowest_iou))
        own_anchors, own_objects = self._bipartite(boxes, rough, values, objects, anchors)
        # The anchors of the bipartite step come last, so they override; before them the best.
        return (
            np.concatenate([anchors[enough[::-1]], own_anchors]),
            np.concatenate([objects[enough[::-1]], own_objects]),
        )

    def _bipartite(
        self, boxes: Array, rough: Array, values: Array, objects: Array, anchors: Array
    ) -> tuple[Array, Array]:
        """One anchor for every object that overlaps an unmatched one, largest overlap first.

        The heap holds the best pair of each object: ties go to the lowest anchor, then to
        the lowest object. A pair whose anchor is taken is replaced by the object's next best.

        Args:
            boxes: (T, 4) float64.
            rough: (T, A), is modified.
            values, objects, anchors: pairs, best first; each object's best is among them.
        """
        rows, first = np.unique(objects, return_index=True)
        heap = list(
            zip((-values[first]).tolist(), anchors[first].tolist(), rows.tolist(), strict=True)
        )
        heapq.heapify(heap)
        taken: dict[int, int] = {}
        while heap:
            value, anchor, row = heapq.heappop(heap)
            if -value <= self._matching.lowest_iou:
                break
            if anchor not in taken:
                taken[anchor] = row
                continue
            rough[row, list(taken)] = 0
            near = np.flatnonzero(rough[row] >= rough[row].max() * DOUBT)
            overlaps = self._overlaps_of_pairs(boxes[row], near)
            overlaps[rough[row, near] <= 0] = 0  # every overlapping anchor is taken
            best = int(overlaps.argmax())
            heapq.heappush(heap, (-float(overlaps[best]), int(near[best]), row))
        return np.array(list(taken), np.int64), np.array(list(taken.values()), np.int64)

    def _overlaps_of_pairs(self, boxes: Array, anchors: Array) -> Array:
        """``spec.boxes.box_iou`` of pairs: float64 inside, (P,) float32.

        Args:
            boxes: (P, 4) or (4,) float64.
            anchors: (P,) rows.
        """
        a = self._exact[anchors]
        sides = (np.minimum(a[:, 2:], boxes[..., 2:]) - np.maximum(a[:, :2], boxes[..., :2])).clip(
            0
        )
        shared = sides[:, 0] * sides[:, 1]
        overlaps: Array = (shared / (area(a) + area(boxes) - shared)).astype(np.float32)
        return overlaps

    def _encode(self, boxes: Array, anchors: Array, objects: Array) -> Array:
        """``spec.coding.encode`` of pairs, (P, 4) float64; boxes (T, 4) float64."""
        low, high = boxes[objects, :2], boxes[objects, 2:]
        centre, size = self._centres[anchors, :2], self._centres[anchors, 2:]
        offsets = np.empty((len(anchors), 4))
        offsets[:, :2] = ((low + high) / 2 - centre) / (size * self._variances[0])
        offsets[:, 2:] = np.log((high - low) / size) / self._variances[1]
        return offsets


def _as_rough(iou: float) -> np.float32:
    """The value of ``_Grid.overlaps`` that corresponds to an intersection over union."""
    rough: np.float32 = np.float32(iou / (1 + iou))
    return rough


class _Grid:
    """The anchors as pairs of an interval in x and one in y, level by level."""

    def __init__(self, anchors: Array, config: Config) -> None:
        ratios = len(config.anchors.aspect_ratios)
        x, y, y_index, self._levels = [], [], [], []
        start = x_count = y_count = 0
        for rows, columns in feature_sizes(config):
            shape = rows, columns * ratios
            part = slice(start, start + rows * columns * ratios)
            level = anchors[part].reshape(*shape, 4)
            x.append(level[0])
            y.append(level[:, :ratios].reshape(-1, 4))
            index = np.arange(y_count, y_count + rows * ratios).reshape(rows, ratios)
            y_index.append(np.tile(index, columns).ravel())
            self._levels.append((shape, part, slice(x_count, x_count + columns * ratios)))
            start, x_count, y_count = part.stop, x_count + shape[1], y_count + rows * ratios
        self._x, self._y = np.concatenate(x).T.copy(), np.concatenate(y).T.copy()
        self._areas = area(self._y.T)
        self._y_index = np.concatenate(y_index)

    def overlaps(self, boxes: Array) -> Array:
        """Intersection over the sum of both areas, (T, A) float32: rises with the IoU.

        All anchors with one interval in y have one area but for rounding, so that the
        division is done in the short table. Accurate to ``DOUBT``.
        """
        x_min, y_min, x_max, y_max = boxes.T[:, :, None]
        width = np.minimum(self._x[2], x_max) - np.maximum(self._x[0], x_min)
        height = np.minimum(self._y[3], y_max) - np.maximum(self._y[1], y_min)
        np.maximum(width, 0, out=width)
        np.maximum(height, 0, out=height)
        height /= self._areas + area(boxes)[:, None]
        overlaps: Array = height.take(self._y_index, axis=1)
        for shape, part, columns in self._levels:
            level = overlaps[:, part].reshape(-1, *shape)  # a view
            level *= width[:, None, columns]
        return overlaps
