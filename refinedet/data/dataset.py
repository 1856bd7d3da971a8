"""A data set in memory: which images, which objects, and what is wrong with it.

Every layout (COCO, PASCAL VOC, text list, generated shapes) is read into the same
``Dataset``. Reading never stops at the first fault: each becomes a ``Finding``,
so that all can be shown at once.

A ``refuse`` finding would corrupt a training or an evaluation, which therefore does
not start. A ``skip`` finding names what was left out or clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from refinedet.errors import DataError
from refinedet.spec.types import Array
from refinedet.support.text import one_line


class Location(NamedTuple):
    """A file, or a row, object or line in it."""

    path: Path
    key: str | None = None

    def __str__(self) -> str:
        return one_line(str(self.path) if self.key is None else f"{self.path}: {self.key}")


@dataclass(frozen=True)
class Finding:
    """One fault of a data set."""

    level: Literal["refuse", "skip"]
    where: Location
    reason: str
    """What is wrong and what to do about it."""
    kind: str
    """One of ``refinedet.data.findings.POLICY``, by which findings are grouped."""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"

    def as_error(self, more: str = "") -> DataError:
        """The same as an error, with ``more`` behind its reason."""
        return DataError(self.reason + more, path=self.where.path, key=self.where.key)


@dataclass(frozen=True)
class Record:
    """One image and its objects."""

    image_id: int
    """Unique in the data set; COCO's own id, elsewhere 1, 2, ..."""
    path: Path
    width: int
    height: int
    """Pixels of the image as it is shown, that is after EXIF rotation."""
    boxes: Array
    """(T, 4) float32, pixels, corner form, within the image, sides above 0."""
    labels: Array
    """(T,) int64, from 1: position in ``Dataset.class_names`` plus 1."""
    difficult: Array
    """(T,) bool: VOC's flag; ignored by VOC evaluation."""
    crowd: Array
    """(T,) bool: COCO's flag; not trained on."""
    areas: Array
    """(T,) float32, square pixels; COCO's own area (of the mask), elsewhere the box's."""


@dataclass(frozen=True)
class Dataset:
    """Images with their objects, in a fixed order."""

    name: str
    """Layout and path, for log lines, errors and the cache."""
    class_names: tuple[str, ...]
    """Without the background; label 1 is the first."""
    records: Sequence[Record]
    findings: tuple[Finding, ...] = ()
    category_ids: tuple[int, ...] = field(default=())
    """COCO's category id of each class; 1, 2, ... where the layout has none."""

    def __post_init__(self) -> None:
        if not self.category_ids:
            ids = tuple(range(1, len(self.class_names) + 1))
            object.__setattr__(self, "category_ids", ids)

    def __len__(self) -> int:
        return len(self.records)

    def refusals(self) -> list[Finding]:
        """The findings for which training must not start."""
        return [f for f in self.findings if f.level == "refuse"]

    def skipped_summary(self) -> str | None:
        """One line about what was left out or clipped; None if nothing was."""
        skipped = [f for f in self.findings if f.level == "skip"]
        if not skipped:
            return None
        return f"{self.name}: left out or clipped {len(skipped)}, the first: {skipped[0]}"

    def require_usable(self) -> None:
        """Raise a ``DataError`` naming the first refusal, or an empty data set."""
        if refusals := self.refusals():
            more = f" ({len(refusals) - 1} more: run `refinedet data check`)"
            raise refusals[0].as_error(more if len(refusals) > 1 else "")
        if not self.records:
            reason = f"; {self.findings[0]}" if self.findings else ""
            raise DataError(f"no usable image{reason}", key=self.name)


class Object(NamedTuple):
    """One object, before it becomes a row of a ``Record``; units as there."""

    box: tuple[float, float, float, float]
    label: int
    difficult: bool = False
    crowd: bool = False
    area: float | None = None
    """None: the box's."""


def make_record(
    image_id: int, path: Path, size: tuple[int, int], objects: Sequence[Object]
) -> Record:
    """A record from its objects.

    Args:
        size: width and height.
    """
    boxes = np.array([o.box for o in objects], np.float32).reshape(-1, 4)
    areas = [box_area(o.box) if o.area is None else o.area for o in objects]
    return Record(
        image_id=image_id,
        path=path,
        width=size[0],
        height=size[1],
        boxes=boxes,
        labels=np.array([o.label for o in objects], np.int64),
        difficult=np.array([o.difficult for o in objects], bool),
        crowd=np.array([o.crowd for o in objects], bool),
        areas=np.array(areas, np.float32),
    )


def box_area(box: tuple[float, float, float, float]) -> float:
    """Square pixels of a box in corner form."""
    return (box[2] - box[0]) * (box[3] - box[1])
