"""Kinds of faults in a data set, and how each is handled.

``POLICY`` sets the level of every kind: a fault that would make training or metrics wrong is
refused; one that only reduces the data set is skipped and counted. The readers report faults
to a ``Findings``, which looks up the level. ``docs/data.md`` shows the table with its reasons.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from refinedet.data.dataset import Finding, Location
from refinedet.errors import UsageError
from refinedet.support.text import is_class_name, one_line

POLICY: dict[str, Literal["refuse", "skip"]] = {
    "malformed annotation": "refuse",
    "duplicate id": "refuse",
    "unknown image": "refuse",
    "unknown class": "refuse",
    "non-finite box": "refuse",
    "crossed box": "refuse",
    "box outside": "refuse",
    "path leaves the folder": "refuse",
    "size disagrees": "refuse",
    "box clipped": "skip",
    "zero-area box": "skip",
    "missing annotation": "skip",
    "missing image": "skip",
    "unreadable image": "skip",
}
"""Every kind of finding and its level."""

ROUNDING = 1.0
"""Pixels by which a box may exceed the image without a finding, because coordinates are
rounded and start at 0 or 1. The box is clipped nevertheless."""

Box = tuple[float, float, float, float]


class Findings:
    """Collects the faults of a data set."""

    def __init__(self) -> None:
        self._all: list[Finding] = []
        self.images_listed: dict[str, Location] = {}
        """The first row that lists each image, by the image's real path."""

    def add(self, kind: str, where: Location, reason: str) -> None:
        """Add a fault.

        Args:
            kind: one of ``POLICY``.
            reason: what is wrong and what to do about it; may quote the file.
        """
        self._all.append(Finding(POLICY[kind], where, one_line(reason), kind))

    def all(self) -> tuple[Finding, ...]:
        """All findings, in the order in which they were added."""
        return tuple(self._all)

    def box(self, where: Location, corners: Sequence[float], size: tuple[int, int]) -> Box | None:
        """Clip a box to the image; add a finding and return None if it is invalid.

        Args:
            where: the row that holds the box.
            corners: x_min, y_min, x_max, y_max in pixels; any floats.
            size: width and height of the image.
        Returns:
            Corners within the image; both sides are above 0 in float32.
        """
        x_min, y_min, x_max, y_max = corners
        shown = "[" + ", ".join(f"{c:g}" for c in corners) + "]"
        if not all(map(math.isfinite, corners)):
            self.add("non-finite box", where, f"{shown} is not finite; correct it")
            return None
        if x_max < x_min or y_max < y_min:
            self.add("crossed box", where, f"{shown} has crossed corners; correct it")
            return None
        if x_max == x_min or y_max == y_min:
            self.add("zero-area box", where, f"{shown} has no area: left out")
            return None
        width, height = size
        box = (max(x_min, 0.0), max(y_min, 0.0), min(x_max, width), min(y_max, height))
        if box[0] >= box[2] or box[1] >= box[3]:
            self.add("box outside", where, f"{shown} is outside {width}x{height}; correct it")
            return None
        if max(abs(c - b) for c, b in zip(corners, box, strict=True)) > ROUNDING:
            self.add("box clipped", where, f"{shown} exceeds {width}x{height}: clipped")
        kept = np.asarray(box, np.float32)
        if not (kept[2:] > kept[:2]).all():
            self.add("zero-area box", where, f"{shown} has no area in float32: left out")
            return None
        return box


def require_names(class_names: Sequence[str]) -> None:
    """Raise a ``UsageError`` unless there are names, distinct and of one line each."""
    if not class_names:
        raise UsageError("names no class", key="class_names")
    name, times = Counter(class_names).most_common(1)[0]
    if times > 1:
        raise UsageError(f"names {name!r} {times} times", key="class_names")
    for name in class_names:
        if not is_class_name(name):
            raise UsageError(f"{name!r:.40} is not a name of one line", key="class_names")


def size_disagrees(annotated: tuple[int, int], actual: tuple[int, int]) -> str:
    """The reason of a finding: the image's size differs from the annotated size."""
    rotated = " (rotated by its EXIF orientation)" if annotated == actual[::-1] else ""
    return (
        f"annotated as {annotated[0]}x{annotated[1]}, but the image has "
        f"{actual[0]}x{actual[1]} pixels{rotated}; its boxes may belong to another image"
    )
