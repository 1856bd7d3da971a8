"""Wrong backends: the specification with one realistic mistake each.

A defect is a piece of the specification's source and the mistake that replaces it. Copies of the
specification's modules, with that piece replaced, are imported under another name, and make a
backend with exactly that mistake.
"""

from __future__ import annotations

import importlib
import itertools
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import refinedet.backends.reference
import refinedet.spec.boxes

KEPT = "config", "errors"
"""Modules whose types the inputs have: not copied."""
_count = itertools.count()


class Defect(NamedTuple):
    """One mistake in one place."""

    name: str
    check: str
    """The check that must detect it."""
    module: str
    old: str
    """Occurs once in the module."""
    new: str


def wrong_backend(defect: Defect, folder: Path) -> Any:
    """The specification as a backend, with the defect."""
    package = f"wrong_{next(_count)}"
    target = folder / package
    target.mkdir()
    spec, application = Path(refinedet.spec.boxes.__file__).parent, Path(refinedet.__file__).parent
    files = [f for f in spec.glob("*.py") if f.stem not in KEPT]
    files += [application / "backends" / name for name in ("operations.py", "reference.py")]
    for file in files:
        text = file.read_text()
        if file.stem == defect.module:
            assert text.count(defect.old) == 1, f"{defect.name}: {text.count(defect.old)} places"
            text = text.replace(defect.old, defect.new)
        text = re.sub(rf"refinedet\.spec\.(?!{'|'.join(KEPT)})", f"{package}.", text)
        text = text.replace("from refinedet.spec import", f"from {package} import")
        text = text.replace(
            "from refinedet.backends.operations import", f"from {package}.operations import"
        )
        (target / file.name).write_text(text)
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(f"{package}.reference")
    finally:
        sys.path.remove(str(folder))
    return module.SpecBackend()


_TABLE: dict[tuple[str, str], list[tuple[str, str, str]]] = {
    # (check that must detect it, module): (name, old, new)
    ("network.blank_image", "layers"): [
        ("no end at 6", "return x.clip(0, 6)", "return x.clip(0)"),
    ],
    ("sigmoid.parity", "losses"): [
        (
            "large logits overflow",
            "np.exp(-np.logaddexp(0, -logits.astype(np.float64)))",
            "1 / (1 + np.exp(-logits))",
        ),
        ("of the other sign", "np.logaddexp(0, -logits", "np.logaddexp(0, logits"),
    ],
    ("focal.parity", "losses"): [
        (
            "alpha on the other columns",
            "np.where(here, alpha, 1 - alpha)",
            "np.where(here, 1 - alpha, alpha)",
        ),
        ("the focus held constant", "(gamma * np.exp(log_p) * log_p - wrong)", "(-wrong)"),
        ("mean over columns", "losses.sum(axis=1)", "losses.mean(axis=1)"),
        ("focus on what is known", "wrong**gamma * log_p", "np.exp(log_p)**gamma * log_p"),
    ],
    ("normalise.parity", "images"): [
        ("RGB for BGR", '== "BGR"', '== "RGB"'),
        (
            "mean after deviation",
            "(ordered - np.asarray(config.mean, np.float64)) / np.asarray(config.std, np.float64)",
            "ordered / np.asarray(config.std, np.float64) - np.asarray(config.mean, np.float64)",
        ),
        ("columns before rows", ".transpose(2, 0, 1)", ".transpose(2, 1, 0)"),
        ("pixels from 0 to 1", "(ordered -", "(ordered / 255 -"),
        (
            "mean in the other order",
            "np.asarray(config.mean, np.float64)",
            "np.asarray(config.mean, np.float64)[::-1]",
        ),
        (
            "a view, not an array",
            "np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)",
            "values.astype(np.float32).transpose(2, 0, 1)",
        ),
    ],
    ("anchors.first_cell", "anchors"): [
        (
            "cells' corners as centres",
            "np.mgrid[0.5:rows, 0.5:columns]",
            "np.mgrid[0:rows, 0:columns]",
        ),
        ("x by the height", "x[..., None] / width", "x[..., None] / height"),
    ],
    ("anchors.area", "anchors"): [
        ("sides grow together", "sides / root / height", "sides * root / height"),
        ("sides by the width", "sides / root / height", "sides / root / width"),
    ],
    ("anchors.parity", "anchors"): [
        ("squares like the others", "side if square_side is None else square_side", "side"),
        (
            "ratio without its root",
            "np.sqrt(ratios)",
            "ratios",
        ),
        (
            "rows and columns exchanged",
            "y, x = np.mgrid[0.5:rows, 0.5:columns]",
            "x, y = np.mgrid[0.5:rows, 0.5:columns]",
        ),
        (
            "ratio is height over width",
            "root = np.sqrt(ratios)",
            "root = 1 / np.sqrt(ratios)",
        ),
        (
            "anchors clipped",
            "centres_to_corners(centres.reshape(-1, 4)).astype",
            "centres_to_corners(centres.reshape(-1, 4)).clip(0, 1).astype",
        ),
        (
            "coarsest level first",
            "for size, stride, side, square in levels",
            "for size, stride, side, square in reversed(list(levels))",
        ),
        (
            "ratio by ratio",
            "centres.reshape(-1, 4)",
            "centres.transpose(2, 0, 1, 3).reshape(-1, 4)",
        ),
        (
            "height and width of the image exchanged",
            "height, width = image_size",
            "width, height = image_size",
        ),
    ],
    ("box_iou.parity", "boxes"): [
        ("+ 1 in areas", "boxes[..., 2:] - boxes[..., :2]", "boxes[..., 2:] - boxes[..., :2] + 1"),
        (
            "negative sides multiply",
            "(high - low).clip(0).prod(axis=-1)",
            "(high - low).prod(axis=-1)",
        ),
        (
            "union counts the shared part twice",
            "area(a) + area(t) - shared",
            "area(a) + area(t)",
        ),
        (
            "over the smaller area",
            "area(a) + area(t) - shared",
            "np.minimum(area(a), area(t))",
        ),
        (
            "an empty union divides",
            "np.divide(shared, union, out=np.zeros_like(union), where=union > 0)",
            "shared / (union + (union == 0) * float('nan'))",
        ),
        (
            "the box around both",
            "low = np.maximum(a[..., :2], t[..., :2])",
            "low = np.minimum(a[..., :2], t[..., :2])",
        ),
        (
            "width for height",
            "(high - low).clip(0).prod(axis=-1)",
            "(high - low).clip(0)[..., 0] ** 2",
        ),
        ("double precision comes out", "return iou.astype(anchors.dtype)", "return iou"),
    ],
    ("corners_to_centres.parity", "boxes"): [
        (
            "the corner for the centre",
            "np.hstack([(low + high) / 2, high - low])",
            "np.hstack([low, high - low])",
        ),
        (
            "width and height exchanged",
            "np.hstack([(low + high) / 2, high - low])",
            "np.hstack([(low + high) / 2, (high - low)[:, ::-1]])",
        ),
    ],
    ("centres_to_corners.parity", "boxes"): [
        (
            "x and y exchanged",
            "np.hstack([centre - size / 2, centre + size / 2])",
            "np.hstack([centre[:, ::-1] - size / 2, centre + size / 2])",
        ),
        (
            "whole sides from the centre",
            "np.hstack([centre - size / 2, centre + size / 2])",
            "np.hstack([centre - size, centre + size])",
        ),
    ],
    ("clip_boxes.parity", "boxes"): [
        ("clipped from below alone", "return boxes.clip(0, 1)", "return boxes.clip(0)"),
        ("clipped in place", "return boxes.clip(0, 1)", "return boxes.clip(0, 1, out=boxes)"),
    ],
    ("encode.parity", "coding"): [
        ("variances in the other order", "(a[:, 2:] * variances[0])", "(a[:, 2:] * variances[1])"),
        (
            "multiplied by the variance",
            "np.log(b[:, 2:] / a[:, 2:]) / variances[1]",
            "np.log(b[:, 2:] / a[:, 2:]) * variances[1]",
        ),
        ("measured in sides of the box", "(a[:, 2:] * variances[0])", "(b[:, 2:] * variances[0])"),
        ("logarithm to base 2", "np.log(b[:, 2:]", "np.log2(b[:, 2:]"),
        ("y before x", "np.hstack([offset, ratio])", "np.hstack([offset[:, ::-1], ratio])"),
        ("sizes before centres", "np.hstack([offset, ratio])", "np.hstack([ratio, offset])"),
    ],
    ("decode.parity", "coding"): [
        (
            "variances in the other order",
            "t[:, :2] * variances[0] * a[:, 2:]",
            "t[:, :2] * variances[1] * a[:, 2:]",
        ),
        ("size without its variance", "np.exp(t[:, 2:] * variances[1])", "np.exp(t[:, 2:])"),
        (
            "the exponential's first terms",
            "np.exp(t[:, 2:] * variances[1])",
            "(1 + t[:, 2:] * variances[1])",
        ),
        ("width and height exchanged", "a[:, 2:] * np.exp", "a[:, :1:-1] * np.exp"),
        (
            "centre not in sides of the anchor",
            "t[:, :2] * variances[0] * a[:, 2:]",
            "t[:, :2] * variances[0]",
        ),
        (
            "clipped",
            "np.hstack([centre - size / 2, centre + size / 2]).astype",
            "np.hstack([centre - size / 2, centre + size / 2]).clip(0, 1).astype",
        ),
    ],
    ("cascaded_decode.two_steps", "coding"): [
        (
            "one step",
            "decode(odm_offsets, decode(arm_offsets, anchors, variances), variances)",
            "decode(odm_offsets, anchors, variances)",
        ),
        (
            "modules exchanged",
            "decode(odm_offsets, decode(arm_offsets, anchors, variances), variances)",
            "decode(arm_offsets, decode(odm_offsets, anchors, variances), variances)",
        ),
        (
            "offsets added",
            "decode(odm_offsets, decode(arm_offsets, anchors, variances), variances)",
            "decode(arm_offsets + odm_offsets, anchors, variances)",
        ),
    ],
    ("match.parity", "matching"): [
        (">= for > in order", "(overlaps > config.iou)", "(overlaps >= config.iou)"),
        ("the later takes ties", "(overlaps > held)", "(overlaps >= held)"),
        ("in order, without an anchor of one's own", "overlaps[best] = 2", "pass"),
        ("> for >= at the threshold", "(overlap >= config.iou)", "(overlap > config.iou)"),
        (
            "the threshold takes served anchors",
            "rest = (matched == UNMATCHED) & (overlap",
            "rest = (overlap",
        ),
        (
            "equality with the lowest counts",
            "free[free <= config.lowest_iou] = -1",
            "free[free < config.lowest_iou] = -1",
        ),
        ("the lowest does not bind the threshold", " & (overlap > config.lowest_iou)", ""),
        (
            "ties to the last pair",
            "np.argmax(free)",
            "free.size - 1 - np.argmax(free.ravel()[::-1])",
        ),
        ("an anchor serves several objects", "free[anchor, :] = -1", "pass"),
        ("an object takes several anchors", "free[:, ground_truth] = -1", "pass"),
        (
            "ties to the last object",
            "best = iou.argmax(axis=1)",
            "best = ground_truth - 1 - iou[:, ::-1].argmax(axis=1)",
        ),
        ("the overlaps are overwritten", "free = iou.copy()", "free = iou"),
    ],
    ("match.every_object", "matching"): [
        (
            "no anchor of one's own",
            "for _ in range(min(anchor_count, object_count)):",
            "for _ in range(0):",
        ),
    ],
    ("match.permutation", "matching"): [
        (
            "object after object",
            "anchor, ground_truth = np.unravel_index(np.argmax(free), free.shape)",
            "anchor, ground_truth = free[:, _].argmax(), _",
        ),
    ],
    ("targets.parity", "matching"): [
        (
            "labels count from 0",
            "classes[positive] = labels[objects]",
            "classes[positive] = labels[objects] - 1",
        ),
        (
            "from the box to the anchor",
            "encode(boxes[objects], anchors[positive],",
            "encode(anchors[positive], boxes[objects],",
        ),
        (
            "the first object is nothing",
            "positive = matched != UNMATCHED",
            "positive = matched > 0",
        ),
        (
            "short whole numbers",
            "classes = np.zeros(len(anchors), np.int64)",
            "classes = np.zeros(len(anchors), np.int32)",
        ),
    ],
    ("softmax.parity", "losses"): [
        (
            "large logits overflow",
            "np.exp(x - x.max(axis=-1, keepdims=True))",
            "np.exp(x.clip(-80, 80))",
        ),
    ],
    ("softmax.sum", "losses"): [
        (
            "over the wrong axis",
            "(x / x.sum(axis=-1, keepdims=True))",
            "(x / x.sum(axis=0, keepdims=True))",
        ),
    ],
    ("cross_entropy.parity", "losses"): [
        ("logarithm to base 2", "np.log(total)", "np.log2(total)"),
        ("the background for the label", "- x[rows, labels]\n", "- x[rows, 0 * labels]\n"),
    ],
    ("cross_entropy.gradient_sum", "losses"): [
        (
            "gradient of the normaliser alone",
            "gradient[rows, labels] -= 1",
            "gradient[rows, labels] -= 0",
        ),
    ],
    ("smooth_l1.parity", "losses"): [
        ("square without its half", "d * d / 2", "d * d"),
        ("a step at 1", "abs(d) - 0.5)", "abs(d))"),
        ("mean for sum", "abs(d) - 0.5).sum(axis=1)", "abs(d) - 0.5).mean(axis=1)"),
        ("gradient not limited", "d.clip(-1, 1)", "d"),
        ("gradient of the other sign", "d.clip(-1, 1)", "-d.clip(-1, 1)"),
    ],
    ("hard_negatives.parity", "losses"): [
        (
            "ties to the highest anchor",
            'np.argsort(-losses[candidates].astype(np.float64), kind="stable")',
            'np.argsort(losses[candidates].astype(np.float64), kind="stable")[::-1]',
        ),
        ("the easiest", "-losses[candidates]", "losses[candidates]"),
        ("the filtered count", "np.flatnonzero(eligible & ~positive)", "np.flatnonzero(~positive)"),
    ],
    ("hard_negatives.count", "losses"): [
        ("rounded up", "int(ratio * positive.sum())", "int(np.ceil(ratio * positive.sum()))"),
        ("one at least", "int(ratio * positive.sum())", "max(1, int(ratio * positive.sum()))"),
        (
            "positives among them",
            "np.flatnonzero(eligible & ~positive)",
            "np.flatnonzero(eligible)",
        ),
        ("ratio of all anchors", "int(ratio * positive.sum())", "int(ratio * len(positive) / 4)"),
    ],
    ("module_loss.parity", "losses"): [
        (
            "mining over the batch",
            "np.stack(\n        [hard_negatives(*row, ratio) for row in zip(by_anchor, positive, eligible, strict=True)]\n    )",
            "hard_negatives(\n        by_anchor.ravel(), positive.ravel(), eligible.ravel(), ratio\n    ).reshape(positive.shape)",
        ),
        (
            "divided by the images",
            "max(1, int(positive.sum()))",
            "len(positive)",
        ),
        (
            "no positives divide by 0",
            "max(1, int(positive.sum()))",
            "int(positive.sum())",
        ),
        (
            "divided by all that counts",
            "max(1, int(positive.sum()))",
            "max(1, int(counted.sum()))",
        ),
        ("filtered positives", "counted = positive | np", "counted = (positive & eligible) | np"),
        (
            "negatives pay for offsets",
            "box_loss[positive.ravel()].sum(dtype=np.float64)",
            "box_loss.sum(dtype=np.float64)",
        ),
        (
            "mean for sum",
            "float(class_loss[counted.ravel()].sum(dtype=np.float64) / divisor)",
            "float(class_loss[counted.ravel()].mean()) if counted.any() else 0.0",
        ),
        (
            "gradient not divided",
            "* positive[..., None] / share",
            "* positive[..., None]",
        ),
        (
            "gradient of all classes",
            "class_gradient.reshape(logits.shape) * counted[..., None]",
            "class_gradient.reshape(logits.shape)",
        ),
    ],
    ("detector_loss.parity", "losses"): [
        (
            "the ARM holds all classes for one",
            "arm_labels if config.loss.arm_first_class else arm_labels.clip(0, 1)",
            "arm_labels.clip(0, 1)",
        ),
        (
            "focal loss of positives alone",
            "every = np.ones(labels.shape, bool)",
            "every = labels > 0",
        ),
        (
            "the ARM distinguishes classes",
            "arm_labels.clip(0, 1)",
            "(arm_labels == 1).astype(np.int64)",
        ),
        (
            "the ODM coded against plain anchors",
            "    if config.anchors.refined:\n        odm",
            "    if False:\n        odm",
        ),
        (
            "the filter turned round",
            "softmax(heads.arm_logits)[..., 1] >= config",
            "softmax(heads.arm_logits)[..., 1] < config",
        ),
        (
            "the filter reads the background",
            "softmax(heads.arm_logits)[..., 1] >= config",
            "softmax(heads.arm_logits)[..., 0] >= config",
        ),
        (
            "the refined anchors pass the gradient on",
            "return loss_on_targets(heads, detector_targets(heads, boxes, labels, config), config)",
            "loss = loss_on_targets(heads, detector_targets(heads, boxes, labels, config), config)\n    through = loss.arm.offsets_gradient - loss.odm.offsets_gradient\n    return Loss(loss.arm._replace(offsets_gradient=through), loss.odm)",
        ),
        ("the ODM is not filtered", "*odm, target.odm_eligible,", "*odm, everything,"),
    ],
    ("scored_boxes.parity", "detection"): [
        (
            "two steps where there is one",
            "    if config.anchors.refined:\n        boxes",
            "    if True:\n        boxes",
        ),
        (
            "sigmoid for softmax",
            'softmax if config.loss.classes == "softmax" else sigmoid',
            "sigmoid",
        ),
        ("no filter", " * (objectness >= config.loss.objectness)[..., None]", ""),
        (
            "weighted by objectness",
            "(objectness >= config.loss.objectness)[..., None]",
            "objectness[..., None]",
        ),
        (
            "one step of the cascade",
            "coding.cascaded_decode(arm, odm, anchors, variances)",
            "coding.decode(odm, anchors, variances)",
        ),
        (
            "the background is the object",
            "softmax(heads.arm_logits)[..., 1]",
            "softmax(heads.arm_logits)[..., 0]",
        ),
    ],
    ("nms.parity", "boxes"): [
        ("the pixel at the wrong corner", "[0, 0, *pixel]", "[*pixel, 0, 0]"),
    ],
    ("nms.parity", "detection"): [
        (
            "< for <= at the threshold",
            "(overlaps[row, kept] <= iou)",
            "(overlaps[row, kept] < iou)",
        ),
        (
            "ties to the higher row",
            'np.argsort(-scores, kind="stable")',
            'np.argsort(scores, kind="stable")[::-1]',
        ),
        (
            "suppressed boxes suppress",
            "(overlaps[row, kept] <= iou).all()",
            "(overlaps[row, scores > scores[row]] <= iou).all()",
        ),
        (
            "in the order of rows",
            "return np.asarray(kept, np.int64)",
            "return np.sort(np.asarray(kept, np.int64))",
        ),
    ],
    ("nms.separation", "detection"): [
        ("worst first", 'np.argsort(-scores, kind="stable")', 'np.argsort(scores, kind="stable")'),
        (
            "the last kept alone suppresses",
            "(overlaps[row, kept] <= iou).all()",
            "(overlaps[row, kept[-1:]] <= iou).all()",
        ),
    ],
    ("detect.parity", "detection"): [
        ("no pixel", "pixel = pixel_sides(config, size)", "pixel = (0.0, 0.0)"),
        (
            "the pixel's width for its height",
            "config.pixel / width, config.pixel / height",
            "config.pixel / height, config.pixel / width",
        ),
        ("clipped at the end alone", "if config.clip_first:", "if False:"),
        (
            ">= for > at the threshold",
            "scores[:, 1:] > config.score",
            "scores[:, 1:] >= config.score",
        ),
        ("the background counted as a class", "label = label + 1", "label = label + 0"),
        (
            "limit before suppression",
            "[: config.top_before_nms_per_class]",
            "[: config.top_per_class]",
        ),
        (
            "classes suppress each other",
            "for c in np.unique(label):\n        rows = np.flatnonzero(label == c)",
            "for _ in range(1):\n        rows = np.arange(len(label))",
        ),
        (
            "no limit of an image",
            "np.sort(np.asarray(kept, np.int64))[: config.top]",
            "np.sort(np.asarray(kept, np.int64))",
        ),
        ("no limit of candidates", 'kind="stable")[: config.top_before_nms]', 'kind="stable")'),
        ("not clipped", "clip_boxes(found) if config.clip else found", "found"),
        ("always clipped", "clip_boxes(found) if config.clip else found", "clip_boxes(found)"),
        (
            "ties by class, then anchor",
            "np.argwhere(scores[:, 1:] > config.score).T",
            "np.argwhere(scores[:, 1:].T > config.score).T[::-1]",
        ),
    ],
    ("detect.order", "detection"): [
        (
            "class after class",
            "rows = np.sort(np.asarray(kept, np.int64))",
            "rows = np.asarray(kept, np.int64)",
        ),
    ],
    ("learning_rate.parity", "schedule"): [
        (
            "warm-up off by one",
            "rise * step / config.warmup_steps",
            "rise * (step + 1) / config.warmup_steps",
        ),
        ("milestone off by one", "sum(step >= m for", "sum(step > m for"),
        ("one milestone alone", "sum(step >= m for", "any(step >= m for"),
        (
            "cosine from the first step",
            "(step - config.warmup_steps) / (config.steps - config.warmup_steps)",
            "step / config.steps",
        ),
        (
            "a quarter of the circle",
            "(1 + math.cos(math.pi * done)) / 2",
            "math.cos(math.pi * done / 2)",
        ),
        (
            "cosine ends at the last step",
            "/ (config.steps - config.warmup_steps)",
            "/ max(1, config.steps - config.warmup_steps - 1)",
        ),
        ("down to 0", "config.final_rate + fall * (1", "fall * (1"),
    ],
    ("learning_rate.after_warmup", "schedule"): [
        (
            "the warm-up lasts a step longer",
            "if step < config.warmup_steps:",
            "if step <= config.warmup_steps > 0:\n        step -= 1",
        ),
    ],
    ("momentum_step.parity", "optimizer"): [
        ("not everything decays", " or options.decay_all", ""),
        (
            "weight decay on biases",
            'if entry.group == "decay" or options.decay_all:',
            'if entry.group != "no_decay":',
        ),
        (
            "weight decay on batch norm",
            'if entry.group == "decay" or options.decay_all:',
            'if entry.group != "bias":',
        ),
        ("no weight decay", "g = g + options.weight_decay * p", "g = g + 0 * p"),
        (
            "dampened momentum",
            "options.momentum * momentum_buffers[entry.name].astype(np.float64) + g",
            "options.momentum * momentum_buffers[entry.name].astype(np.float64) + (1 - options.momentum) * g",
        ),
        ("Nesterov's momentum", "(p - step * v)", "(p - step * (g + options.momentum * v))"),
        (
            "biases at the common rate",
            'rate * options.bias_rate if entry.group == "bias" else rate',
            "rate",
        ),
        ("clipped to the norm squared", "scale = norm / total", "scale = norm / total**2"),
        (
            "clipped by the sum of norms",
            "float(np.sqrt(sum(squares)))",
            "float(sum(np.sqrt(squares)))",
        ),
        ("clipped though small", "if total <= norm:", "if total < 0:"),
        ("loss scale left in", "g / g.dtype.type(scale)", "g"),
        (
            "clipped before unscaling",
            "    gradients = {name: g / g.dtype.type(scale) for name, g in gradients.items()}\n    if options.clip_norm is not None:\n        gradients = clip_by_global_norm(gradients, options.clip_norm)\n",
            "    if options.clip_norm is not None:\n        gradients = clip_by_global_norm(gradients, options.clip_norm)\n    gradients = {name: g / g.dtype.type(scale) for name, g in gradients.items()}\n",
        ),
    ],
    ("network.heads", "layers"): [
        (
            "the floor is added",
            "np.maximum(squares, least) if floor else squares + least",
            "squares + least",
        ),
        (
            "channels mixed in the heads",
            "out += weight[:, :, i, j, None] * x[part]",
            "out += weight[:, :, i, j, None] * x[part][:, ::-1]",
        ),
        (
            "L2 epsilon outside the root",
            "norm: Array = np.sqrt(np.maximum(squares, least) if floor else squares + least)",
            "norm: Array = np.sqrt(np.maximum(squares, least) if floor else squares) + (0 if floor else least)",
        ),
        (
            "L2 over the whole image",
            "    squares = np.square(x).sum(axis=1, keepdims=True)\n    least",
            "    squares = np.square(x).sum(axis=(1, 2, 3), keepdims=True)\n    least",
        ),
        (
            "L2 without its scale",
            "x / _norm(x, eps, floor) * scale[:, None, None]",
            "x / _norm(x, eps, floor) + 0 * scale[:, None, None]",
        ),
        (
            "deviation plus epsilon",
            "gamma / np.sqrt(variance + variance.dtype.type(eps))",
            "gamma / (np.sqrt(variance) + variance.dtype.type(eps))",
        ),
        ("mean for maximum in pooling", ".max(axis=(3, 5))", ".mean(axis=(3, 5))"),
        ("pooling takes the corner", ".max(axis=(3, 5))", "[:, :, :, 0, :, 0]"),
        (
            "kernels turned round",
            "weight[:, :, i, j], x[part]",
            "weight[:, :, -1 - i, -1 - j], x[part]",
        ),
        (
            "kernels with rows for columns",
            "weight[:, :, i, j], x[part]",
            "weight[:, :, j, i], x[part]",
        ),
        (
            "borders repeat the image",
            "return np.pad(x, ((0, 0), (0, 0), sides, sides))",
            'return np.pad(x, ((0, 0), (0, 0), sides, sides), mode="edge")',
        ),
        (
            "the border of the pooling on the other side",
            "sides = (before, 1 - before)",
            "sides = (1 - before, before)",
        ),
        ("upsampling with inputs for outputs", '"nchw,cdij->ndhiwj"', '"nchw,dcij->ndhiwj"'),
        ("upsampling with rows for columns", '"nchw,cdij->ndhiwj"', '"nchw,cdji->ndhiwj"'),
        (
            "anchors column by column",
            "rows = [y.transpose(0, 2, 3, 1)",
            "rows = [y.transpose(0, 3, 2, 1)",
        ),
        (
            "channels by coordinate, then anchor",
            "rows = [y.transpose(0, 2, 3, 1).reshape(len(y), -1, per_anchor) for y in outputs]",
            "rows = [\n        y.reshape(len(y), per_anchor, -1, *y.shape[2:])\n        .transpose(0, 3, 4, 2, 1)\n        .reshape(len(y), -1, per_anchor)\n        for y in outputs\n    ]",
        ),
        (
            "leaky activation",
            "return np.maximum(x, 0)",
            "return np.maximum(x, x.dtype.type(0.01) * x)",
        ),
    ],
    ("network.heads", "network"): [
        (
            "fc7 after its ReLU",
            "plain if source.name in before_relu else x",
            "x",
        ),
        (
            "the ARM reads what is normalised",
            "normalised if net.l2_in_arm else feature",
            "normalised",
        ),
        (
            "no ReLU on what is upsampled",
            "run(add, x, run(relu, conv(upsampling(level, config), blocks[0])))",
            "run(add, x, conv(upsampling(level, config), blocks[0]))",
        ),
        ("no ReLU6 in the heads", "y = run(relu6, self.conv(conv, y))", "y = self.conv(conv, y)"),
        (
            "a bottleneck adds what has passed a ReLU",
            "return run(add, conv(last, y),",
            "return run(add, run(relu, conv(last, y)),",
        ),
        (
            "a bottleneck without its input",
            "if block.projection else x)",
            "if block.projection else 0 * x)",
        ),
        (
            "no ReLU inside a bottleneck",
            "conv(middle, run(relu, conv(first, x)))",
            "conv(middle, conv(first, x))",
        ),
        (
            "no ReLU behind the bottleneck of a head",
            "feature = run(relu, self.bottleneck(layers.shared, feature))",
            "feature = self.bottleneck(layers.shared, feature)",
        ),
        (
            "ReLU before the sum",
            "x = conv(lateral2, run(relu, conv(lateral1, features[level])))",
            "x = run(relu, conv(lateral2, run(relu, conv(lateral1, features[level]))))",
        ),
        (
            "no ReLU after the sum",
            "x = run(relu, run(add, x, conv(upsampling(level, config), blocks[0])))",
            "x = run(add, x, conv(upsampling(level, config), blocks[0]))",
        ),
        (
            "no ReLU after a block",
            "            for output in outputs:\n                x = run(relu, conv(output, x))",
            "            for output in outputs:\n                x = conv(output, x)",
        ),
        (
            "the coarser block is not added",
            "x = run(relu, run(add, x, conv(upsampling(level, config), blocks[0])))",
            "x = run(relu, x)",
        ),
    ],
    ("network.heads", "architecture"): [
        ("dilation ignored", "padding=3, dilation=3)", "padding=1, dilation=1)"),
        ("one source not normalised", "return names[:NORMALISED]", "return names[:1]"),
        (
            "a bottleneck's stride in the other convolution",
            'if net.bottleneck_stride == "1x1"',
            'if net.bottleneck_stride == "3x3"',
        ),
        (
            "a border on both sides of strided convolutions",
            "far = int(net.same_padding and stride > 1 and kernel > 1)",
            "far = 0",
        ),
        (
            "the first convolution alone has its border behind",
            "stride > 1 and kernel > 1)",
            "stride > 1 and kernel > 3)",
        ),
    ],
    ("network.images_apart", "reference"): [
        (
            "the batch's statistics in prediction",
            "forward(self.tensors, images, self.config)[0]",
            "forward(self.tensors, images, self.config, training=True)[0]",
        ),
    ],
    ("network.scored_boxes", "reference"): [
        (
            "the scores of the first image",
            "return scored_boxes(self.heads(images), self.config)",
            "b, s = scored_boxes(self.heads(images), self.config)\n        return b, s[:1].repeat(len(s), axis=0) * 1",
        ),
    ],
    ("training.gradient", "layers"): [
        (
            "gradient of a depthwise kernel with rows for columns",
            "by_weight[:, 0, i, j] =",
            "by_weight[:, 0, j, i] =",
        ),
        ("statistics held constant", "return (d - common) * gamma", "return d * gamma"),
        (
            "pooling spreads the gradient",
            "by_patch[np.arange(len(flat)), flat.argmax(axis=1)] = d.ravel()",
            "by_patch[:] = d.ravel()[:, None] / 4",
        ),
        ("ReLU lets all back", "(d * (x > 0),)", "(d * 1,)"),
        (
            "gradient of a kernel with rows for columns",
            "by_weight[:, :, i, j] =",
            "by_weight[:, :, j, i] =",
        ),
        ("the norm held constant", "(scaled - unit * along) / norm", "scaled / norm"),
        (
            "mean for sum in a bias",
            "return d, d.sum(axis=(0, 2, 3))",
            "return d, d.mean(axis=(0, 2, 3))",
        ),
        ("the sum's second term forgotten", "    return d, d\n", "    return d, 0 * d\n"),
        ("the last reader alone is heard", "g if before is None else before + g", "g"),
    ],
    ("training.loss", "reference"): [
        (
            "parts in another order",
            "arm.offsets, arm.classes, odm.offsets,",
            "arm.classes, arm.offsets, odm.offsets,",
        ),
        (
            "the loss after the update",
            "return StepLosses(",
            "arm = arm._replace(offsets=arm.offsets * 0.99)\n        return StepLosses(",
        ),
    ],
    ("training.update", "network"): [
        (
            "running statistics turn too fast",
            "keep * old[0] + (1 - keep) * mean",
            "(1 - keep) * old[0] + keep * mean",
        ),
        (
            "one momentum for all batch normalisation",
            "x.dtype.type(conv.momentum)",
            "x.dtype.type(self.config.network.batch_norm_momentum)",
        ),
        (
            "running variance of the batch alone",
            "unbiased = variance * x.dtype.type(count / max(1, count - 1))",
            "unbiased = variance",
        ),
    ],
    ("training.update", "training"): [
        (
            "the rate of the next step",
            "learning_rate(step, config.schedule)",
            "learning_rate(step + 1, config.schedule)",
        ),
        (
            "running statistics lost",
            "Step(loss, new | statistics, moved,",
            "Step(loss, new, moved,",
        ),
        (
            "loss scale applied twice",
            "Heads(*(factor * d for d in by_heads))",
            "Heads(*(factor * factor * d for d in by_heads))",
        ),
        (
            "the ODM does not train",
            "        loss.odm.offsets_gradient,\n",
            "        0 * loss.odm.offsets_gradient,\n",
        ),
    ],
    ("training.update", "reference"): [
        (
            "momentum_buffers forgotten",
            "self.tensors, self.moments = done.parameters, done.momentum_buffers",
            "self.tensors = done.parameters",
        ),
    ],
    ("training.float16_update", "training"): [
        (
            "every step is skipped",
            'if options.precision == "float16" and not finite:',
            'if options.precision == "float16":',
        ),
    ],
    ("training.float16_update", "optimizer"): [
        (
            "not divided by the loss scale of float16",
            "scale = options.scale if scale is None else scale",
            "scale = options.loss_scale or 1.0",
        ),
    ],
    ("training.float16_overflow", "training"): [
        ("an overflow is not noticed", "largest > LARGEST_FLOAT16", "largest > np.inf"),
        (
            "a skipped step decays",
            "Step(loss, parameters | statistics, momentum_buffers,",
            "Step(loss, {n: p * p.dtype.type(0.9999) for n, p in parameters.items()} | statistics, momentum_buffers,",
        ),
        (
            "a skipped step loses the running statistics",
            "Step(loss, parameters | statistics, momentum_buffers,",
            "Step(loss, parameters, momentum_buffers,",
        ),
        (
            "a skipped step stops all motion",
            "Step(loss, parameters | statistics, momentum_buffers,",
            "Step(loss, parameters | statistics, {n: 0 * v for n, v in momentum_buffers.items()},",
        ),
        ("a skipped step is not reported", "skipped=True", "skipped=False"),
    ],
    ("training.float16_overflow", "reference"): [
        (
            "the schedule waits for skipped steps",
            "self.steps_done += 1",
            "self.steps_done += not done.skipped",
        ),
    ],
    ("training.float16_overflow", "optimizer"): [
        ("an overflow quarters the loss scale", "now.scale / 2", "now.scale / 4"),
        ("an overflow leaves the loss scale", "now.scale / 2", "now.scale"),
    ],
    ("training.loss_scale", "optimizer"): [
        ("it doubles a step late", "now.good_steps + 1 < window", "now.good_steps < window"),
        (
            "the window does not begin anew",
            "LossScale(min(now.scale * 2, highest))",
            "LossScale(min(now.scale * 2, highest), now.good_steps + 1)",
        ),
        ("it grows without a window", "return now\n", "window = 1\n"),
        ("it grows by four", "now.scale * 2", "now.scale * 4"),
    ],
    ("training.loss_scale", "training"): [
        ("divided by the first loss scale", "rate, config, now.scale)", "rate, config)"),
        (
            "the loss is multiplied by the first loss scale",
            "config.optimizer.scale if scale is None else scale",
            "config.optimizer.scale",
        ),
    ],
    ("training.float16_resume", "reference"): [
        (
            "the given loss scale is ignored",
            "loss_scale or LossScale(config.optimizer.scale)",
            "LossScale(config.optimizer.scale)",
        ),
        (
            "the age of the loss scale is forgotten",
            "loss_scale or LossScale(config.optimizer.scale)",
            "LossScale(loss_scale.scale if loss_scale else config.optimizer.scale)",
        ),
    ],
    ("training.resume", "reference"): [
        ("steps done are ignored", "self.steps_done = steps_done", "self.steps_done = 0"),
        (
            "given momentum_buffers are ignored",
            "self.moments = momentum_buffers or {",
            "self.moments = {",
        ),
    ],
    ("training.names", "reference"): [
        (
            "parameters start anew",
            "self.tensors = parameters\n        self.moments",
            "self.tensors = {n: p * 0 for n, p in parameters.items()}\n        self.moments",
        ),
    ],
    ("detections.objects", "reference"): [
        (
            "boxes in another corner order",
            "return scored_boxes(self.heads(images), self.config)",
            "b, s = scored_boxes(self.heads(images), self.config)\n        return b - 0.01, s",
        ),
    ],
    ("detections.map", "reference"): [
        (
            "boxes a little off",
            "return scored_boxes(self.heads(images), self.config)",
            "b, s = scored_boxes(self.heads(images), self.config)\n        return b + b.dtype.type(0.03), s",
        ),
    ],
}
DEFECTS = [
    Defect(name, check, module, old, new)
    for (check, module), rows in _TABLE.items()
    for name, old, new in rows
]
