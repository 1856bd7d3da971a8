"""Unread fields: those to which the other fields of a configuration leave no meaning.

A VGG16 has no bottlenecks: to set ``blocks`` for one is a mistake, and it is refused. A field
that is not read has to have its default. ``RULES`` lists all such fields.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Container, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from refinedet.spec.errors import SpecError


class Rule(NamedTuple):
    """When some fields of a section are read."""

    fields: tuple[str, ...]
    deciders: tuple[str, ...]
    """The fields that decide it; an error shows their values."""
    are_read: Callable[[Any], bool]
    """Called with the section."""


Rules = Mapping[str, tuple[Rule, ...]]
"""By the name of the section's class."""

RULES: Rules = {
    "NetworkConfig": (
        Rule(
            ("blocks", "bottleneck_stride", "same_padding", "pool_centred", "extra_width"),
            ("backbone",),
            lambda net: net.backbone == "resnet",
        ),
        Rule(("fc7_relu",), ("backbone",), lambda net: net.backbone == "vgg16"),
        Rule(
            ("residual_gamma",),
            ("backbone", "heads"),
            lambda net: net.backbone == "resnet" or net.heads == "bottleneck",
        ),
        Rule(
            ("batch_norm_eps", "batch_norm_momentum"),
            ("backbone", "batch_norm", "upsample_batch_norm", "heads"),
            lambda net: (
                net.backbone == "resnet"
                or net.batch_norm
                or net.upsample_batch_norm
                or net.heads != "conv"
            ),
        ),
        Rule(
            ("batch_norm_momentum",),
            ("backbone", "batch_norm", "upsample_batch_norm", "head_momentum"),
            lambda net: (
                net.backbone == "resnet"
                or net.batch_norm
                or net.upsample_batch_norm
                or net.head_momentum is None
            ),
        ),
        Rule(("head_momentum",), ("heads",), lambda net: net.heads == "separable"),
        Rule(
            ("conv_bias",),
            ("batch_norm", "upsample_batch_norm"),
            lambda net: not (net.batch_norm and net.upsample_batch_norm),
        ),
        Rule(
            ("l2_scales",),
            ("initialiser",),  # which draws the scales; null still means that there are none
            lambda net: net.initialiser != "normal" or net.l2_scales is None,
        ),
        Rule(
            ("l2_eps", "l2_floor", "l2_in_arm"),
            ("l2_scales",),
            lambda net: net.l2_scales is not None,
        ),
    ),
    "AnchorsConfig": (
        Rule(("square_sides",), ("aspect_ratios",), lambda anchors: 1 in anchors.aspect_ratios),
    ),
    "LossConfig": (
        Rule(("negatives_per_positive",), ("classes",), lambda loss: loss.classes == "softmax"),
        Rule(
            ("focal_alpha", "focal_gamma", "arm_first_class"),
            ("classes",),
            lambda loss: loss.classes == "sigmoid",
        ),
    ),
    "DetectionConfig": (
        Rule(("clip",), ("clip_first",), lambda detection: not detection.clip_first),
    ),
    "OptimizerConfig": (
        Rule(
            ("loss_scale_window",),
            ("precision",),
            lambda optimizer: optimizer.precision == "float16",
        ),
    ),
    "ScheduleConfig": (
        Rule(
            ("milestones",),
            ("kind",),
            lambda schedule: schedule.kind == "multistep" or not schedule.milestones,
        ),
        Rule(
            ("factor",),
            ("kind", "milestones"),
            lambda schedule: schedule.kind == "multistep" and schedule.milestones != (),
        ),
        Rule(("final_rate",), ("kind",), lambda schedule: schedule.kind == "cosine"),
        Rule(("warmup_rate",), ("warmup_steps",), lambda schedule: schedule.warmup_steps > 0),
    ),
}


def unread(kind: type, values: Any, rules: Rules = RULES) -> dict[str, str]:
    """The fields that are not read although they differ from their defaults.

    Args:
        kind: the section's dataclass.
        values: has an attribute for each of its fields: the section, or what may become one.
    Returns:
        For each such field the reason of the error.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    faults = {}
    for rule in rules.get(kind.__name__, ()):
        if rule.are_read(values):
            continue
        state = ", ".join(f"{name} {_shown(getattr(values, name))}" for name in rule.deciders)
        for name in rule.fields:
            if getattr(values, name) != defaults[name]:
                faults[name] = f"is not read with {state}; leave it out"
    return faults


def without_unread(
    kind: type, values: Mapping[str, Any], explicit: Container[str], rules: Rules = RULES
) -> dict[str, Any]:
    """The values of a section's fields; those that are not read have given way to defaults.

    A preset's ``blocks`` mean nothing once its backbone has been replaced.

    Args:
        kind: the section's dataclass.
        values: one for each of its fields.
        explicit: fields that stay as they are, for the section to refuse them.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    inherited = [
        name for name in unread(kind, SimpleNamespace(**values), rules) if name not in explicit
    ]
    return {**values, **{name: defaults[name] for name in inherited}}


def refuse_unread(section: object, place: str) -> None:
    """Raise for a field that is not read although it differs from its default.

    Args:
        place: what the error puts before the field's name, as ``network``.
    Raises:
        SpecError: names the first such field.
    """
    for name, reason in unread(type(section), section).items():
        raise SpecError(reason, key=f"{place}.{name}")


def _shown(value: object) -> str:
    """As YAML has it: ``null``, ``true``, ``[1, 2]``; a text without quotes."""
    return json.dumps(value).strip('"')
