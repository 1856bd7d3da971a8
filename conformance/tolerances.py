"""How far a backend may be from the contract: one table, by operation and dtype.

A number ``got`` agrees with ``wanted`` if ``abs(got - wanted) <= atol + rtol *
abs(wanted)``. Whole numbers, truth values, shapes and dtypes agree exactly.
"""

from __future__ import annotations

from typing import NamedTuple


class Tolerance(NamedTuple):
    """Allowed error, and where it comes from."""

    atol: float
    rtol: float
    reason: str


TOLERANCES: dict[tuple[str, str], Tolerance] = {
    ("normalise", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("anchors", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("pixels", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("corners_to_centres", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("centres_to_corners", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("clip_boxes", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("box_iou", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("encode", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("decode", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("cascaded_decode", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("targets", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("softmax", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("cross_entropy", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("smooth_l1", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("module_loss", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("detector_loss", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("scored_boxes", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("detect", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("learning_rate", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("momentum_step", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("decode of encode", "float32"): Tolerance(2e-6, 2e-6, "todo"),
    ("heads", "float32"): Tolerance(1e-4, 1e-4, "todo"),
    ("network.scored_boxes", "float32"): Tolerance(1e-4, 1e-4, "todo"),
    ("training.loss", "float32"): Tolerance(1e-4, 1e-4, "todo"),
    ("one step velocities", "float32"): Tolerance(1e-4, 1e-4, "todo"),
    ("one step parameters", "float32"): Tolerance(1e-4, 1e-4, "todo"),
    ("ten steps loss", "float32"): Tolerance(1e-4, 1e-4, "todo"),
    ("ten steps velocities", "float32"): Tolerance(1e-4, 1e-4, "todo"),
    ("ten steps parameters", "float32"): Tolerance(1e-4, 1e-4, "todo"),
    ("training.gradient", "float32"): Tolerance(1e-4, 1e-4, "todo"),
    ("detections", "float32"): Tolerance(1e-4, 1e-4, "todo"),
    ("detections.map", "float32"): Tolerance(1e-4, 1e-4, "todo"),
}
