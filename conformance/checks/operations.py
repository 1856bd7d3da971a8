"""Level *operations*: every function of the specification by itself.

Parity: the backend's result is the specification's, for drawn inputs and for every edge case of
the specification, which are pinned. Other laws hold for all numbers, so that a failure shows not
only where a result is wrong, but what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refinedet.conformance import inputs
from refinedet.conformance.comparison import CheckedBackend
from refinedet.conformance.margin import is_arm_filter_decided, is_match_decided, perturbed
from refinedet.conformance.registry import check
from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.boxes import box_iou, lengthened
from refinedet.spec.config import (
    Config,
    DetectionConfig,
    ImageConfig,
    MatchingConfig,
    ScheduleConfig,
    feature_sizes,
    replace,
)
from refinedet.spec.detection import scored_boxes
from refinedet.spec.losses import detector_loss
from refinedet.spec.matching import targets
from refinedet.spec.network import Heads, trained_parameters
from refinedet.spec.presets import preset
from refinedet.spec.types import Array


def box(*rows: tuple[float, ...]) -> Array:
    """Boxes (M, 4) float32 from their rows."""
    return np.array(rows, np.float32).reshape(-1, 4)


def numbers(*values: object) -> Array:
    """A float32 array."""
    return np.array(values, np.float32)


NONE = box()
WHOLE, LEFT, RIGHT = (0, 0, 1, 1), (0, 0, 0.5, 1), (0.5, 0, 1, 1)
POINT, LINE = (0.25, 0.5, 0.25, 0.5), (0.25, 0.5, 0.75, 0.5)
BESIDE = (1.5, -0.5, 2, 0.25)


def parity(
    operation: str, draws: st.SearchStrategy[Any], pinned: Sequence[Any], share: float = 1.0
) -> None:
    """Register the check that an operation's result is the specification's.

    A case is the operation's arguments.
    """

    def law(backend: CheckedBackend, case: Any) -> None:
        backend.require_agreement(operation, *case)

    law.__doc__ = f"The result of {operation} is the specification's."
    check("operations", f"{operation}.parity", draws, pinned, share)(law)


# Images and anchors

parity(
    "normalise",
    inputs.eight_bit(),
    [
        (np.arange(18, dtype=np.uint8).reshape(2, 3, 3), ImageConfig()),
        (np.full((1, 2, 3), 255, np.uint8), ImageConfig("RGB", (0, 0, 0), (2, 4, 8))),
    ],
)
parity(
    "anchors",
    inputs.anchor_configs().map(lambda config: (config,)),
    [
        (preset("refinedet_vgg16_320"),),
        (preset("refinedet_vgg16_512"),),
        (preset("modelzoo_vgg16_320"),),
        (replace(preset("refinedet_vgg16_320"), image_size=(320, 512)),),
    ],
)


@check("operations", "anchors.first_cell", inputs.anchor_configs(), share=0.5)
def first_cell(backend: CheckedBackend, config: Config) -> None:
    """The first anchor of a level is centred half a stride from the top and left edges."""
    boxes = backend.call("anchors", config).astype(np.float64)
    start = 0
    height, width = config.image_size
    for (rows, columns), stride in zip(feature_sizes(config), config.anchors.strides, strict=True):
        x, y = (boxes[start, :2] + boxes[start, 2:]) / 2 * (width, height)
        backend.require_near(x, stride / 2, "pixels", f"x of the first centre at stride {stride}")
        backend.require_near(y, stride / 2, "pixels", f"y of the first centre at stride {stride}")
        start += rows * columns * len(config.anchors.aspect_ratios)


@check("operations", "anchors.area", inputs.anchor_configs(), share=0.5)
def equal_areas(backend: CheckedBackend, config: Config) -> None:
    """All anchors of a level have the area of its square one, in pixels."""
    config = replace(config, anchors={"square_sides": None})
    boxes = backend.call("anchors", config).astype(np.float64)
    height, width = config.image_size
    sizes = (boxes[:, 2:] - boxes[:, :2]) * (width, height)
    start = 0
    for (rows, columns), side in zip(feature_sizes(config), config.anchors.sides, strict=True):
        count = rows * columns * len(config.anchors.aspect_ratios)
        areas = sizes[start : start + count].prod(axis=1)
        worst = areas[np.abs(areas - side * side).argmax()]
        backend.require_near(worst / side**2, 1, "pixels", f"area of an anchor of side {side}")
        start += count


# Boxes

parity(
    "corners_to_centres",
    inputs.wide_boxes().map(lambda b: (b,)),
    [(NONE,), (box(WHOLE, POINT, LINE, BESIDE),)],
)
parity(
    "centres_to_corners",
    st.integers(0, 8).flatmap(inputs.offsets).map(lambda a: (np.abs(a),)),
    [(NONE,), (box((0.5, 0.25, 1, 0.5), (0.5, 0.25, 0, 0), (-1, 2, 0.5, 0)),)],
)
parity(
    "clip_boxes",
    inputs.wide_boxes().map(lambda b: (b,)),
    [(NONE,), (box(WHOLE, POINT, BESIDE, (-1, -1, -0.5, 2)),)],
)
parity(
    "box_iou",
    inputs.box_pairs(),
    [
        (NONE, NONE),
        (NONE, box(WHOLE)),
        (box(WHOLE, LEFT), NONE),
        (box(WHOLE, LEFT, RIGHT, POINT, LINE), box(WHOLE, LEFT, RIGHT, POINT, LINE, BESIDE)),
        (box((0, 0, 0.5, 0.25)), box((0.25, 0.125, 0.75, 0.375))),
    ],
)


@check("operations", "corners_to_centres.inverse", inputs.wide_boxes())
def forms_invert(backend: CheckedBackend, boxes: Array) -> None:
    """Converting corners to centres and back gives the original box."""
    centres = backend.call("corners_to_centres", boxes)
    backend.compare("corners_to_centres", backend.call("centres_to_corners", centres), boxes)


@check("operations", "box_iou.symmetry", inputs.box_pairs())
def iou_symmetry(backend: CheckedBackend, pair: tuple[Array, Array]) -> None:
    """The overlap of a with b is that of b with a."""
    first, second = pair
    overlaps = backend.call("box_iou", first, second)
    transposed = np.ascontiguousarray(backend.call("box_iou", second, first).T)
    backend.compare("box_iou", overlaps, transposed)


@check("operations", "box_iou.range", inputs.box_pairs())
def iou_range(backend: CheckedBackend, pair: tuple[Array, Array]) -> None:
    """An overlap is from 0 to 1; that of a box with itself is 1, or 0 without area."""
    first, second = pair
    overlaps = backend.call("box_iou", first, second)
    backend.require(
        bool(((overlaps >= 0) & (overlaps <= 1)).all()), "an overlap outside 0 to 1", overlaps
    )
    own = np.diagonal(backend.call("box_iou", first, first)).copy()
    size = first[:, 2:] - first[:, :2]
    expected = (size.prod(axis=1) > 0).astype(np.float32)
    backend.compare("box_iou of boxes with themselves", own, expected, "box_iou")


# Coding

parity(
    "encode",
    inputs.coded(),
    [
        (NONE, NONE, (0.1, 0.2)),
        (box(LEFT, WHOLE), box(LEFT, RIGHT), (0.1, 0.2)),
        (box((0.25, 0.5, 0.5, 0.625)), box((0.125, 0.125, 0.875, 0.25)), (0.1, 0.2)),
    ],
)
parity(
    "decode",
    inputs.decodable(),
    [
        (NONE, NONE, (0.1, 0.2)),
        (box((0, 0, 0, 0), (1, -2, 3, -4)), box(POINT, LINE), (0.1, 0.2)),
        (box((1, -2, 3, -4)), box((0.125, 0.125, 0.875, 0.25)), (0.1, 0.2)),
    ],
)
parity(
    "cascaded_decode",
    inputs.cascades(),
    [
        (NONE, NONE, NONE, (0.1, 0.2)),
        (box((1, 2, 3, 4)), box((-4, 3, -2, 1)), box((0.125, 0.125, 0.875, 0.25)), (0.1, 0.2)),
    ],
)


@check("operations", "decode.inverts_encode", inputs.coded())
def decode_inverts_encode(backend: CheckedBackend, case: tuple[Array, Array, Any]) -> None:
    """Decoding an encoded box gives the original box."""
    boxes, anchors, variances = case
    offsets = backend.call("encode", boxes, anchors, variances)
    backend.compare(
        "decode of encode",
        backend.call("decode", offsets, anchors, variances),
        boxes,
        "decode of encode",
    )


@check("operations", "decode.zeros", inputs.boxes())
def decode_zeros(backend: CheckedBackend, anchors: Array) -> None:
    """Offsets of zero decode to the anchor."""
    actual = backend.call("decode", np.zeros_like(anchors), anchors, (0.1, 0.2))
    backend.compare("decode", actual, anchors)


@check("operations", "cascaded_decode.two_steps", inputs.cascades())
def cascade_is_two_steps(backend: CheckedBackend, case: tuple[Array, Array, Array, Any]) -> None:
    """The second step of the cascade decodes against the result of the first."""
    arm, odm, anchors, variances = case
    refined = backend.call("decode", arm, anchors, variances)
    expected = backend.call("decode", odm, refined, variances)
    backend.compare("cascaded_decode", backend.call("cascaded_decode", *case), expected)


# Matching

EIGHTHS = MatchingConfig(0.5, 0.0)
IN_ORDER = MatchingConfig(0.5, 0.0, "in_order")
parity(
    "match",
    inputs.overlaps(),
    [
        (np.zeros((0, 3), np.float32), EIGHTHS),
        (np.zeros((4, 0), np.float32), EIGHTHS),
        (np.zeros((4, 2), np.float32), EIGHTHS),  # no overlap
        (numbers([0.5], [0.625], [0.375]), EIGHTHS),  # equality at the threshold
        (numbers([0.75, 0.875], [0.125, 0.25]), EIGHTHS),  # one anchor, two objects
        (numbers([0.25, 0.25], [0.25, 0.25], [0.25, 0.25]), EIGHTHS),  # all tie
        (numbers([0.125], [0.125]), MatchingConfig(0.5, 0.125)),  # equality at the lowest
        (numbers([0.5, 0.5, 0.5]), EIGHTHS),  # more objects than anchors
        (numbers([0.125], [0.25]), MatchingConfig(0.125, 0.125)),
        (numbers([0.75, 0.125], [0.125, 0.75], [0.5, 0.5]), EIGHTHS),  # objects tie
        (numbers([0.875, 0.5], [0.75, 0.125]), EIGHTHS),  # its own, though another overlaps more
        (numbers([0.5, 0.75], [0.25, 0.875]), IN_ORDER),  # the earlier keeps its anchor
        (numbers([0.75, 0.625], [0.875, 0.625], [0.625, 0.75]), IN_ORDER),  # taken and retaken
        (numbers([0.75], [0.5], [0.125]), IN_ORDER),  # more than the threshold
        (numbers([0.875, 0.125], [0.125, 0.875], [0.75, 0.75]), IN_ORDER),  # the earlier of equals
        (numbers([0.125], [0.0]), MatchingConfig(0.5, 0.125, "in_order")),
    ],
)


@st.composite
def distinct_overlaps(draw: st.DrawFn) -> tuple[Array, list[int]]:
    """Overlaps (A, T), all different, and an order of the objects."""
    a, t = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    values = draw(st.permutations(range(1, a * t + 1)))
    return (np.array(values, np.float32) / 32).reshape(a, t), draw(st.permutations(range(t)))


@check("operations", "match.permutation", distinct_overlaps())
def match_permutation(backend: CheckedBackend, case: tuple[Array, list[int]]) -> None:
    """The match does not depend on the order of the objects if no overlaps are equal."""
    iou, order = case
    match = backend.call("match", iou, EIGHTHS)
    again = backend.call("match", np.ascontiguousarray(iou[:, order]), EIGHTHS)
    back = np.where(again < 0, -1, np.array(order)[again])
    backend.require(
        bool((back == match).all()), "the match depends on the order of the objects", back, match
    )


@check("operations", "match.every_object", inputs.overlaps())
def every_object_is_matched(backend: CheckedBackend, case: tuple[Array, MatchingConfig]) -> None:
    """An object that overlaps as many anchors as there are objects is matched to one."""
    iou, config = case
    config = MatchingConfig(config.iou, config.lowest_iou)  # the rule "in_order" guarantees less
    match = backend.call("match", iou, config)
    touched = (iou > config.lowest_iou).sum(axis=0)
    for t in np.flatnonzero(touched >= max(1, iou.shape[1])):
        backend.require(bool((match == t).any()), f"object {t} is matched to no anchor", match)


parity(
    "targets",
    inputs.target_cases(),
    [
        (box(LEFT, RIGHT), NONE, np.zeros(0, np.int64), inputs.SMALL),
        (NONE, box(LEFT), np.array([1]), inputs.SMALL),
        (box(LEFT, WHOLE), box(LEFT), np.array([3]), inputs.SMALL),  # one exactly, one at 0.5
        (box(LEFT), box(POINT), np.array([2]), inputs.SMALL),  # without area: unmatched
        (box((0.125, 0.25, 0.5, 0.375)), box((0.25, 0.25, 0.5, 0.5)), np.array([1]), inputs.SMALL),
    ],
)


@check(
    "operations",
    "targets.on_anchors",
    st.tuples(st.integers(0, 4), st.integers(0, 2**16)),
    share=0.2,
    max_undecided=0.02,
)
def targets_on_anchors(backend: CheckedBackend, case: tuple[int, int]) -> None:
    """On a detector's anchors and any objects, targets equal the specification's."""
    count, seed = case
    config = replace(inputs.SMALL, image_size=(128, 64))
    anchors = all_anchors(config)
    (boxes,), (labels,) = inputs.seeded_objects(config, (count,), seed)
    expected = targets(anchors, boxes, labels, config)
    decided = is_match_decided(anchors, boxes, config.matching, seed)
    actual = backend.call("targets", anchors, boxes, labels, config)
    backend.compared += len(decided)
    backend.undecided += int((~decided).sum())
    backend.compare(
        "targets", [part[decided] for part in actual], [part[decided] for part in expected]
    )


# Losses

parity(
    "softmax",
    st.tuples(st.integers(0, 5), st.integers(2, 5)).flatmap(
        lambda shape: st.tuples(inputs.logits(*shape))
    ),
    [
        (np.zeros((0, 3), np.float32),),
        (numbers([0, 0, 0, 0]),),
        (numbers([1000, 999], [-1000, -1000], [88, -88]),),
        (np.arange(12, dtype=np.float32).reshape(2, 2, 3),),
    ],
)
parity(
    "sigmoid",
    st.tuples(st.integers(0, 5), st.integers(2, 5)).flatmap(
        lambda shape: st.tuples(inputs.logits(*shape))
    ),
    [(np.zeros((0, 3), np.float32),), (numbers([1000, -1000], [0, 1], [88, -88]),)],
)
parity(
    "focal",
    st.tuples(
        inputs.labelled_logits(), st.sampled_from([0.75, 0.25]), st.sampled_from([2.0, 0.0, 1.5])
    ).map(lambda case: (*case[0], *case[1:])),
    [
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int64), 0.75, 2.0),
        (numbers([0, 0], [1, -2], [3, 0.5]), np.array([0, 1, 2]), 0.75, 2.0),  # 2: no column
        (numbers([100, -100], [100, -100]), np.array([0, 1]), 0.75, 2.0),
    ],
)
parity(
    "cross_entropy",
    inputs.labelled_logits(),
    [
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int64)),
        (numbers([1000, 0], [1000, 0], [-88, 88]), np.array([0, 1, 1])),
        (numbers([0, 0, 0], [1, 2, 3]), np.array([2, 0])),
    ],
)
parity(
    "smooth_l1",
    inputs.offset_pairs(),
    [
        (NONE, NONE),
        (box((1, -1, 0, 0.5)), box((0, 0, 0, 0))),  # |d| = 1, and 0
        (box((2, -3, 1.5, 100)), box((0, 0, 0, 0))),
    ],
)
MINING = [
    (np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, bool), 3.0),
    (numbers(1, 2, 3), np.zeros(3, bool), np.ones(3, bool), 3.0),  # no positives
    (numbers(1, 1, 1, 1, 1), np.array([1, 0, 0, 0, 0], bool), np.ones(5, bool), 3.0),  # ties
    (numbers(9, 1, 2, 3), np.array([1, 0, 0, 0], bool), np.array([1, 1, 1, 0], bool), 1.5),
    (numbers(0, 0), np.array([1, 0], bool), np.ones(2, bool), 3.0),  # a loss of 0 counts
]
parity("hard_negatives", inputs.mining_cases(), MINING)
parity(
    "module_loss",
    inputs.module_cases(),
    [
        (  # no positives at all: the divisor is 1, and nothing counts
            np.ones((1, 2, 4), np.float32),
            np.zeros((1, 2, 3), np.float32),
            np.zeros((1, 2, 4), np.float32),
            np.zeros((1, 2), np.int64),
            np.ones((1, 2), bool),
            3.0,
        ),
        (  # an image with positives beside one without
            np.full((2, 3, 4), 0.5, np.float32),
            np.arange(18, dtype=np.float32).reshape(2, 3, 3) / 4,
            np.zeros((2, 3, 4), np.float32),
            np.array([[2, 0, 1], [0, 0, 0]]),
            np.ones((2, 3), bool),
            1.0,
        ),
        (  # positives that are not eligible stay; negatives that are not do not
            np.full((1, 3, 4), 2, np.float32),
            np.zeros((1, 3, 2), np.float32),
            np.zeros((1, 3, 4), np.float32),
            np.array([[1, 0, 0]]),
            np.array([[False, False, True]]),
            3.0,
        ),
    ],
)


@check("operations", "softmax.sum", st.integers(1, 5).flatmap(lambda n: inputs.logits(n, 3)))
def softmax_sums(backend: CheckedBackend, logits: Array) -> None:
    """The probabilities of a row sum to 1."""
    total = backend.call("softmax", logits).sum(axis=-1)
    backend.compare("sum of softmax", total, np.ones_like(total), "softmax")


@check("operations", "cross_entropy.gradient_sum", inputs.labelled_logits())
def cross_entropy_gradient_sums(backend: CheckedBackend, case: tuple[Array, Array]) -> None:
    """The gradient of a row sums to 0, as adding a constant to all logits changes nothing."""
    total = backend.call("cross_entropy", *case)[1].sum(axis=1)
    backend.compare("sum of the gradient", total, np.zeros_like(total), "cross_entropy")


@check("operations", "hard_negatives.count", inputs.mining_cases(), MINING)
def mining_counts(backend: CheckedBackend, case: tuple[Array, Array, Array, float]) -> None:
    """The number of negatives is ratio times positives, rounded down, or all; none is positive."""
    _, positive, eligible, ratio = case
    chosen = backend.call("hard_negatives", *case)
    candidates = int((eligible & ~positive).sum())
    expected = min(candidates, int(ratio * positive.sum()))
    backend.require(not (chosen & positive).any(), "a positive is chosen as negative", chosen)
    backend.require(
        int(chosen.sum()) == expected, "the number of negatives differs", chosen, expected
    )


def is_loss_decided(
    heads: Heads, boxes: list[Array], labels: list[Array], config: Config, seed: int
) -> bool:
    """Whether the loss uses the same offsets and logits for perturbed heads and anchors."""

    def used(outputs: Heads) -> list[Array]:
        loss = detector_loss(outputs, boxes, labels, config)
        return [gradient != 0 for module in loss for gradient in module[2:]]

    expected, plain = used(heads), all_anchors(config)
    return all(is_match_decided(plain, b, config.matching, seed).all() for b in boxes) and all(
        all(map(np.array_equal, expected, used(other))) for other in perturbed(heads, seed)
    )


ZOO_LOSSY = replace(
    inputs.SMALL,
    anchors={"refined": False},
    matching={"rule": "in_order"},
    loss={"classes": "sigmoid", "objectness": 0.0, "arm_first_class": True},
)


def loss_arguments(
    counts: list[int], seed: int, like_the_zoo: bool
) -> tuple[Heads, list[Array], list[Array], Config]:
    """Arguments of ``detector_loss``, for these numbers of objects in the images."""
    config = ZOO_LOSSY if like_the_zoo else inputs.SMALL
    boxes, labels = inputs.seeded_objects(config, tuple(counts), seed)
    return inputs.seeded_heads(config, len(counts), seed), boxes, labels, config


COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=3)


@check(
    "operations",
    "detector_loss.parity",
    st.tuples(COUNTS, st.integers(0, 2**16), st.booleans()),
    [([0], 0, False), ([0, 2], 1, False), ([2, 0], 3, True)],
    share=0.3,
    max_undecided=0.25,
)
def whole_loss(backend: CheckedBackend, case: tuple[list[int], int, bool]) -> None:
    """The loss of both modules and its gradients for the heads are the specification's."""
    heads, boxes, labels, config = loss_arguments(*case)
    seed = case[1]
    actual = backend.call("detector_loss", heads, boxes, labels, config)
    backend.compared += 1
    if is_loss_decided(heads, boxes, labels, config, seed):
        backend.compare("detector_loss", actual, detector_loss(heads, boxes, labels, config))
    else:
        backend.undecided += 1


# Detection


@check(
    "operations",
    "scored_boxes.parity",
    st.tuples(st.integers(1, 2), st.integers(0, 2**16), st.booleans()),
    [(1, 0, False), (1, 0, True)],
    share=0.2,
    max_undecided=0.01,
)
def scoring(backend: CheckedBackend, case: tuple[int, int, bool]) -> None:
    """Boxes, scores, and which anchors the ARM filters out, are the specification's."""
    count, seed, like_the_zoo = case
    config = replace(ZOO_LOSSY if like_the_zoo else inputs.SMALL, loss={"objectness": 0.3})
    heads = inputs.seeded_heads(config, count, seed)
    boxes, scores = scored_boxes(heads, config)
    decided = is_arm_filter_decided(heads, config, seed)
    actual_boxes, actual_scores = backend.call("scored_boxes", heads, config)
    backend.compared += decided.size
    backend.undecided += int((~decided).sum())
    backend.compare(
        "scored_boxes", (actual_boxes, actual_scores[decided]), (boxes, scores[decided])
    )


parity(
    "nms",
    inputs.suppressions(),
    [
        (NONE, numbers(), 0.5),
        (box(WHOLE, LEFT), numbers(0.5, 0.75), 0.5),  # an overlap of exactly the threshold
        (box(POINT, LINE), numbers(0.5, 0.75), 0.0, (0.125, 0.25)),  # a pixel gives them area
        (box(LEFT, LEFT, LEFT), numbers(0.5, 0.5, 0.5), 0.5),  # all tie
        (box(POINT, POINT), numbers(0.5, 0.25), 0.0),  # no area, no overlap
        (box(LEFT, WHOLE, RIGHT), numbers(0.25, 0.5, 0.75), 0.25),  # a chain
    ],
)
parity(
    "detect",
    inputs.detection_cases(),
    [
        (NONE, np.zeros((0, 2), np.float32), DetectionConfig()),
        (box(WHOLE), numbers([1, 0.25]), DetectionConfig(score=0.25)),  # equality: no detection
        (box(WHOLE), numbers([1, 0]), DetectionConfig(score=0)),  # background alone
        (box(BESIDE), numbers([0, 0.5]), DetectionConfig()),  # outside the image: clipped, and kept
        (box(BESIDE), numbers([0, 0.5]), DetectionConfig(clip=False)),
        (  # classes do not suppress each other
            box(LEFT, LEFT),
            numbers([0, 0.5, 0.75], [0, 0.75, 0.5]),
            DetectionConfig(),
        ),
        (  # a pixel more on each side makes neighbours overlap
            box((0, 0, 0.5, 0.25), (0.5, 0, 1, 0.25)),
            numbers([0, 0.5], [0, 0.75]),
            DetectionConfig(nms_iou=0.08, pixel=1.0),
            (16, 8),
        ),
        (  # clipped before: then both are the same
            box((-1, 0, 0.5, 1), (0, 0, 0.5, 1)),
            numbers([0, 0.5], [0, 0.75]),
            DetectionConfig(clip_first=True),
        ),
        (  # only the best candidate
            box(LEFT, RIGHT),
            numbers([0, 0.5], [0, 0.75]),
            DetectionConfig(top_before_nms=1),
        ),
        (  # limits before, between and after, with ties
            box(LEFT, RIGHT, WHOLE, (0, 0, 1, 0.25)),
            np.full((4, 3), 0.5, np.float32),
            DetectionConfig(0.25, 7, 3, 0.25, 2, 3),
        ),
        (  # suppression before the limit of a class
            box(LEFT, LEFT, RIGHT),
            numbers([0, 0.875], [0, 0.75], [0, 0.5]),
            DetectionConfig(top_per_class=2),
        ),
    ],
)


@check("operations", "nms.twice_is_once", inputs.suppressions())
def nms_twice(backend: CheckedBackend, case: tuple[Array, Array, float, Any]) -> None:
    """Suppressing the kept boxes again keeps them all."""
    boxes, scores, iou, pixel = case
    kept = backend.call("nms", *case)
    again = backend.call("nms", boxes[kept], scores[kept], iou, pixel)
    expected = np.arange(len(kept))
    backend.require(
        np.array_equal(again, expected), "a kept box is suppressed the second time", again, expected
    )


@check(
    "operations",
    "nms.separation",
    inputs.suppressions(),
    [
        (box(LEFT, RIGHT, LEFT), numbers(0.75, 0.5, 0.25), 0.5, (0.0, 0.0))
    ],  # a box between them in rank
)
def nms_separates(backend: CheckedBackend, case: tuple[Array, Array, float, Any]) -> None:
    """No two kept boxes overlap by more than the threshold; the best box is kept first."""
    boxes, scores, iou, pixel = case
    kept = backend.call("nms", *case)
    longer = lengthened(boxes[kept], pixel)
    shared = box_iou(longer, longer).astype(np.float32)
    np.fill_diagonal(shared, 0)
    backend.require(
        bool((shared <= iou).all()), "kept boxes overlap by more than the threshold", kept
    )
    best = [int(scores.argmax())] if len(scores) else []
    backend.require(kept[:1].tolist() == best, "the best box is not first", kept, best)


@check(
    "operations",
    "detect.order",
    inputs.detection_cases(),
    [(box(LEFT, RIGHT), numbers([0, 0.5, 0.75], [0, 0.625, 0.875]), DetectionConfig())],
)
def detections_in_order(backend: CheckedBackend, case: tuple[Any, ...]) -> None:
    """Detections have falling scores above the threshold, and no background."""
    config = case[2]
    _, scores, labels = backend.call("detect", *case)
    backend.require(bool((np.diff(scores) <= 0).all()), "scores increase", scores)
    backend.require(bool((scores > config.score).all()), "a score not above the threshold", scores)
    backend.require(bool((labels > 0).all()), "the background is detected", labels)


# Training

parity(
    "learning_rate",
    inputs.schedules(),
    [
        (step, ScheduleConfig("multistep", 12, 1.0, 4, 0.125, (6, 9), 0.5))
        for step in (0, 1, 3, 4, 5, 6, 8, 9, 11)
    ]
    + [
        (step, ScheduleConfig("cosine", 12, 1.0, 4, 0.0, (), 0.1, 0.25))
        for step in (0, 3, 4, 8, 11)
    ],
)


@check(
    "operations",
    "learning_rate.after_warmup",
    inputs.schedules().filter(lambda case: case[1].steps > case[1].warmup_steps),
)
def full_rate(backend: CheckedBackend, case: tuple[int, ScheduleConfig]) -> None:
    """The first step after the warm-up has the base rate."""
    config = case[1]
    rate = backend.call("learning_rate", config.warmup_steps, config)
    backend.require_near(rate, config.rate, "learning_rate", "the rate after the warm-up")


@st.composite
def updates(draw: st.DrawFn) -> tuple[int, Config]:
    """A seed and the options of an update."""
    options = {
        "momentum": draw(st.sampled_from([0.0, 0.5, 0.9])),
        "weight_decay": draw(st.sampled_from([0.0, 0.25])),
        "decay_all": draw(st.booleans()),
        "bias_rate": draw(st.sampled_from([1.0, 2.0])),
        "clip_norm": draw(st.sampled_from([None, 1.0, 1e6])),
        "loss_scale": draw(st.sampled_from([1.0, 8.0])),
    }
    batch_norm = draw(st.booleans())
    config = replace(inputs.SMALL, network={"batch_norm": batch_norm}, optimizer=options)
    return draw(st.integers(0, 2**16)), config


PLAIN = replace(
    inputs.SMALL,
    network={"batch_norm": True},
    optimizer={"clip_norm": None, "weight_decay": 0.25, "bias_rate": 2.0},
)


@check(
    "operations",
    "momentum_step.parity",
    updates(),
    [
        (0, PLAIN),
        (1, replace(PLAIN, optimizer={"clip_norm": 1.0, "loss_scale": 8.0})),
        (2, replace(PLAIN, network={"batch_norm": False}, optimizer={"loss_scale": 8.0})),
        (3, replace(PLAIN, optimizer={"clip_norm": 1e6})),
        (4, replace(PLAIN, optimizer={"decay_all": True})),
    ],
    share=0.1,
)
def update(backend: CheckedBackend, case: tuple[int, Config]) -> None:
    """The new parameters and momentum buffers of each group are the specification's."""
    seed, config = case
    rng = np.random.default_rng(seed)
    parameters = inputs.seeded_parameters(config, seed)
    gradients, momentum_buffers = (
        {p.name: rng.normal(0, 0.1, p.shape).astype(np.float32) for p in trained_parameters(config)}
        for _ in range(2)
    )
    backend.require_agreement(
        "momentum_step", parameters, gradients, momentum_buffers, 0.25, config
    )
