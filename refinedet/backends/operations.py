"""The specification's operations: what a backend may implement one by one.

The functions are those of ``refinedet.spec``; their docstrings say what goes in and
comes out. A backend's ``operations`` has functions of these names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refinedet.spec import (
    anchors,
    boxes,
    coding,
    detection,
    images,
    losses,
    matching,
    optimizer,
    schedule,
)

OPERATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        images.normalise,
        anchors.anchors,
        boxes.corners_to_centres,
        boxes.centres_to_corners,
        boxes.box_iou,
        boxes.clip_boxes,
        coding.encode,
        coding.decode,
        coding.cascaded_decode,
        matching.match,
        matching.targets,
        losses.softmax,
        losses.sigmoid,
        losses.cross_entropy,
        losses.focal,
        losses.smooth_l1,
        losses.hard_negatives,
        losses.module_loss,
        losses.detector_loss,
        detection.scored_boxes,
        detection.nms,
        detection.detect,
        schedule.learning_rate,
        optimizer.momentum_step,
    )
}
"""By name, from an image to an update."""
