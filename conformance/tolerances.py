"""The tolerances of all backends: one table, by operation and dtype.

A number ``actual`` agrees with ``expected`` if ``abs(actual - expected) <= atol + rtol *
abs(expected)``. For whole tensors (momentum buffers, parameters), ``rtol`` is a fraction of the
tensor's largest number. Integers, bools, shapes and dtypes agree exactly.

``observed`` is the largest error that was measured, absolute below 1 and relative above (for
tensors, relative to the largest number):

- of operations, which the specification computes in float64: an independent NumPy backend that
  computes everything in float32, over eleven seeds;
- of network, training and detections: the specification in float32 against itself in float64;
- of training in float16: the specification with every activation and its gradient rounded to
  float16, against itself in float32.

The tolerances allow for other orders of addition, approximate exponentials and fused kernels.
Where the reason names MindSpore, that is the error of its 2.8.0 on a CPU (default profile, seed 0).
"""

from __future__ import annotations

from typing import NamedTuple


class Tolerance(NamedTuple):
    """Absolute and relative tolerance, the largest error measured, and the reason."""

    atol: float
    rtol: float
    observed: float
    reason: str


_EXACT = "sums and products of numbers on a grid of powers of two: no rounding"
_ROUNDED = "a few operations, each rounded once"

FLOAT32: dict[str, Tolerance] = {
    # Operations
    "normalise": Tolerance(1e-6, 1e-6, 0, "one difference, one quotient"),
    "anchors": Tolerance(1e-6, 1e-6, 1.2e-7, _ROUNDED),
    "pixels": Tolerance(1e-5, 1e-5, 1.8e-6, "float32 fractions, measured in pixels"),
    "corners_to_centres": Tolerance(1e-6, 1e-6, 0, _EXACT),
    "centres_to_corners": Tolerance(1e-6, 1e-6, 0, _EXACT),
    "clip_boxes": Tolerance(1e-6, 1e-6, 0, _EXACT),
    "box_iou": Tolerance(1e-6, 1e-6, 0, "exact areas, one quotient"),
    "encode": Tolerance(2e-6, 2e-6, 3e-7, "a logarithm; MindSpore 4.4e-7"),
    "decode": Tolerance(
        4e-6, 4e-6, 2.4e-7, "an exponential; the error grows with the box; MindSpore 2.1e-6"
    ),
    "cascaded_decode": Tolerance(
        2e-5, 2e-5, 8.9e-7, "two exponentials, one of the other's; MindSpore 1.1e-5"
    ),
    "decode of encode": Tolerance(4e-6, 4e-6, 1.2e-7, "as decode"),
    "targets": Tolerance(
        1e-5, 2e-6, 2.5e-6, "eps over 0.1 of an anchor's side, which is small; MindSpore 1.2e-6"
    ),
    "softmax": Tolerance(
        2e-6, 2e-6, 1.8e-7, "exponentials; some devices approximate them; MindSpore 3.6e-7"
    ),
    "cross_entropy": Tolerance(
        6e-6, 2e-6, 2.4e-7, "approximate exponential and logarithm; MindSpore 3.4e-6"
    ),
    "sigmoid": Tolerance(2e-6, 2e-6, 1.2e-7, "an exponential; some devices approximate it"),
    "focal": Tolerance(1e-5, 1e-5, 5e-7, "exponentials and a logarithm, summed over classes"),
    "smooth_l1": Tolerance(1e-6, 1e-6, 0, _EXACT),
    "module_loss": Tolerance(6e-6, 4e-6, 1.5e-7, "sums of cross entropies; MindSpore 2.1e-6"),
    "detector_loss": Tolerance(
        2e-5, 4e-6, 1.2e-6, "sums over small anchors, see targets; MindSpore 1.7e-6"
    ),
    "scored_boxes": Tolerance(
        6e-6, 6e-6, 3.6e-7, "as cascaded_decode, and softmax; MindSpore 1.5e-6"
    ),
    "detect": Tolerance(1e-6, 1e-6, 0, "boxes and scores are copied"),
    "learning_rate": Tolerance(1e-6, 1e-6, 6.3e-8, "one number, perhaps held in float32"),
    "momentum_step": Tolerance(1e-6, 1e-6, 1.2e-7, "a norm over all gradients"),
    # Network
    "heads": Tolerance(
        1e-5, 1e-5, 4.8e-6, "a hundred layers of sums of up to 9,216 products; MindSpore 5.8e-6"
    ),
    "network.scored_boxes": Tolerance(
        1e-5, 1e-5, 3e-7, "as heads, then scored_boxes; MindSpore 7.5e-7"
    ),
    # Training
    "training.loss": Tolerance(
        1e-5, 1e-5, 5.7e-7, "as heads, then detector_loss; MindSpore 2.6e-6"
    ),
    "training.gradient": Tolerance(
        1e-4, 1e-4, 1.9e-7, "and the central difference's own error; MindSpore 1e-5"
    ),
    "one step momentum_buffers": Tolerance(
        1e-6, 1e-4, 1.7e-5, "batch normalisation of few numbers; MindSpore 4.2e-5"
    ),
    "one step parameters": Tolerance(
        1e-9, 2e-5, 1.3e-6, "momentum buffers times a rate of 0.004; MindSpore 3.5e-6"
    ),
    "ten steps loss": Tolerance(1e-5, 1e-5, 2.4e-7, "ten updates; MindSpore 3e-6"),
    "ten steps momentum_buffers": Tolerance(1e-6, 1e-4, 8.6e-7, "ten gradients; MindSpore 1.8e-5"),
    "ten steps parameters": Tolerance(1e-9, 2e-5, 3.3e-7, "ten updates; MindSpore 3.1e-6"),
    # Detections
    "detections": Tolerance(
        1e-4, 1e-5, 2.2e-6, "as scored_boxes, in pixels up to 150; MindSpore 4.1e-6"
    ),
    "detections.map": Tolerance(1e-4, 0, 0, "the same detections; the project guarantees 1e-4"),
}
FLOAT16: dict[str, Tolerance] = {
    # Training, of parameters in float32
    "training.loss": Tolerance(5e-4, 5e-4, 3.5e-5, "every activation is rounded to 11 bits"),
    "one step momentum_buffers": Tolerance(
        1e-6, 0.2, 0.072, "rounded activations change sides of ReLUs; so do few of many gradients"
    ),
    "one step parameters": Tolerance(
        1e-9,
        4e-3,
        1.2e-3,
        "momentum buffers times a rate of 0.004; statistics of rounded activations",
    ),
}
TOLERANCES: dict[tuple[str, str], Tolerance] = {
    (name, dtype): row
    for dtype, rows in (("float32", FLOAT32), ("float16", FLOAT16))
    for name, row in rows.items()
}
"""By operation (or result of a check) and dtype."""
