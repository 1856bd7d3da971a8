"""What may be wrong with a data set, and what each fault means.

``POLICY`` is the whole policy: a fault that would teach or measure something false is
refused, one that only makes the data set smaller is skipped and counted. The readers
state facts to a ``Findings``; the level comes from here. ``docs/data.md`` shows the
table with its reasons.
"""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from refinedet.data.dataset import Dataset, Finding
from refinedet.data.images import read_image
from refinedet.errors import DataError
from refinedet.spec.types import Array
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
"""Pixels by which a box may leave the image without a finding: coordinates are
rounded, and count from 0 or from 1. It is clipped all the same."""

Box = tuple[float, float, float, float]


class Findings:
    """Collects the faults of a data set."""

    def __init__(self) -> None:
        self._all: list[Finding] = []
        self.listed: dict[str, str] = {}
        """Where each image is listed, by its real path."""

    def add(self, kind: str, where: str, what: str) -> None:
        """Note a fault. ``kind`` is one of ``POLICY``; the texts may quote the file."""
        self._all.append(Finding(POLICY[kind], one_line(where), one_line(what), kind))

    def all(self) -> tuple[Finding, ...]:
        """What was noted, in its order."""
        return tuple(self._all)

    def box(self, where: str, corners: Sequence[float], size: tuple[int, int]) -> Box | None:
        """The part of a box within the image, or None and a finding.

        Args:
            where: file and row.
            corners: x_min, y_min, x_max, y_max in pixels; any floats.
            size: width and height of the image.
        Returns:
            Corners within the image, sides above 0 in float32.
        """
        x_min, y_min, x_max, y_max = corners
        shown = "[" + ", ".join(f"{c:g}" for c in corners) + "]"
        if not all(map(math.isfinite, corners)):
            self.add("non-finite box", where, f"{shown} is not finite; correct it")
            return None
        if x_max < x_min or y_max < y_min:
            self.add("crossed box", where, f"{shown} ends before it begins; correct it")
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
            self.add("box clipped", where, f"{shown} reaches out of {width}x{height}: clipped")
        kept = np.asarray(box, np.float32)
        if not (kept[2:] > kept[:2]).all():
            self.add("zero-area box", where, f"{shown} has no area in float32: left out")
            return None
        return box


class Folder:
    """A folder whose files are found by names in annotations, which may not leave it."""

    def __init__(self, root: Path, findings: Findings, what: str = "image") -> None:
        """Args: what: ``image`` or ``annotation``, for the findings.

        Raises:
            DataError: no such folder.
        """
        require_folder(root)
        self.root = root
        self._inside = os.path.realpath(root).rstrip(os.sep) + os.sep
        self._findings = findings
        self._what = what

    def find(self, where: str, name: str) -> Path | None:
        """The file of that name, which exists; or None and a finding.

        An image is not empty, and was not found before: not by another name either.
        """
        try:
            path = self.root / name
            real = os.path.realpath(path)  # follows links: they may not lead out either
            if Path(name).is_absolute() or ".." in path.parts[len(self.root.parts) :]:
                return self._no("path leaves the folder", where, f"{name} is not below {self.root}")
            if not real.startswith(self._inside):
                return self._no("path leaves the folder", where, f"{name} leads to {real}")
            status = path.stat()
        except FileNotFoundError:
            return self._no(f"missing {self._what}", where, f"there is no {self.root / name}")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a file's name"
            return self._no(f"missing {self._what}", where, f"{name}: {reason}")
        if not stat.S_ISREG(status.st_mode):
            return self._no(f"missing {self._what}", where, f"{path} is not a file")
        if self._what == "image":
            if not status.st_size:
                return self._no("unreadable image", where, f"{path} is empty")
            if first := self._findings.listed.get(real):
                what = f"{name} is the image of {first}; list each image once"
                self._findings.add("duplicate id", where, what)
                return None
            self._findings.listed[real] = where
        return path

    def _no(self, kind: str, where: str, what: str) -> Path | None:
        done = ": left out" if POLICY[kind] == "skip" else "; keep all files in one folder"
        self._findings.add(kind, where, what + done)
        return None


def plain(text: str) -> str:
    """The text of a number, for ``float`` and ``int``: they take 1_0 and any script's digits too.

    Raises:
        ValueError: no number as other programs write it.
    """
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is not a number")
    return text


def require_folder(path: Path) -> None:
    """Raise a ``DataError`` unless there is such a folder and something is in it."""
    try:
        if not any(path.iterdir()):
            raise DataError("empty folder", path=path)
    except OSError as error:
        raise DataError(f"cannot read the folder: {error.strerror}", path=path) from None


def read_bytes(path: Path) -> bytes:
    """The bytes of an annotation file; ``DataError`` where there are none."""
    try:
        if path.exists() and not path.is_file():
            raise DataError("not a file", path=path)
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path=path) from None
    if not data.strip():
        raise DataError("empty file", path=path)
    return data


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, ends stripped; ``DataError`` names the line that is not."""
    data = read_bytes(path)
    try:
        return [line.strip() for line in data.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("not UTF-8 text; save it as UTF-8", path=path, key=f"line {line}") from None


def require_names(class_names: Sequence[str]) -> None:
    """Raise a ``DataError`` for a list of classes that is empty, names one twice, or badly."""
    if not class_names:
        raise DataError("names no class", key="class_names")
    name, times = Counter(class_names).most_common(1)[0]
    if times > 1:
        raise DataError(f"names {name!r} {times} times", key="class_names")
    for name in class_names:
        if not is_class_name(name):
            raise DataError(f"{name!r:.40} is not a name of one line", key="class_names")


def check_images(dataset: Dataset, progress: bool = False) -> Dataset:
    """The data set without the images that cannot be decoded, and with findings for them.

    Also finds images of another size than the annotations say.

    Args:
        progress: show a bar.
    """
    findings = Findings()
    kept = []
    for record in tqdm(dataset.records, "images", disable=None if progress else True, delay=2):
        try:
            height, width = read_image(record.path).shape[:2]
        except DataError as error:
            reason = str(error).removeprefix(f"{record.path}: ")
            findings.add("unreadable image", str(record.path), f"{reason}: left out")
            continue
        said = (record.width, record.height)
        if said != (width, height):
            findings.add("size disagrees", str(record.path), sizes(said, (width, height)))
        kept.append(record)
    return replace(dataset, records=kept, findings=(*dataset.findings, *findings.all()))


def sizes(said: tuple[int, int], real: tuple[int, int]) -> str:
    """The words for an image of another size than its annotation's."""
    turned = ", turned as its EXIF data say" if said == real[::-1] else ""
    return (
        f"annotated as {said[0]}x{said[1]}, but the file has {real[0]}x{real[1]} pixels"
        f"{turned}; its boxes may belong to another image"
    )


def report(dataset: Dataset, examples: int = 5) -> str:
    """A data set in words: what is in it, what is wrong with it.

    Args:
        examples: findings shown of each kind.
    """
    records = dataset.records
    counts = np.array([len(r.labels) for r in records], np.int64)
    lines = [f"{dataset.name}: {_many(len(records), 'image')}, {_many(counts.sum(), 'object')}"]
    crowds = sum(int(r.crowd.sum()) for r in records)
    difficult = sum(int(r.difficult.sum()) for r in records)
    if crowds:
        lines.append(f"  {_many(crowds, 'crowd')}: not trained on")
    if difficult:
        lines.append(f"  {difficult:,} difficult: ignored by VOC evaluation")
    if empty := int((counts == 0).sum()):
        lines.append(f"  {_many(empty, 'image')} without objects: evaluated, not trained on")
    if len(records):
        lines += ["", *_ranges(dataset, counts)]
    lines += ["", *_classes(dataset)]
    for level, meaning in (
        ("refuse", "training and evaluation do not start"),
        ("skip", "left out or trimmed"),
    ):
        lines += _grouped(
            (f for f in dataset.findings if f.level == level), level, meaning, examples
        )
    if not dataset.findings:
        lines += ["", "Nothing is wrong with it."]
    return "\n".join(lines)


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _ranges(dataset: Dataset, counts: Array) -> list[str]:
    boxes = np.concatenate([r.boxes for r in dataset.records])
    rows = [
        ("image width", np.array([r.width for r in dataset.records])),
        ("image height", np.array([r.height for r in dataset.records])),
        ("objects an image", counts),
        ("object width", boxes[:, 2] - boxes[:, 0]),
        ("object height", boxes[:, 3] - boxes[:, 1]),
    ]
    lines = [f"{'':<18}{'least':>9}{'median':>9}{'most':>9}"]
    for name, values in rows:
        if values.size:
            figures = (values.min(), np.median(values), values.max())
            lines.append(f"{name:<18}" + "".join(f"{float(v):>9.5g}" for v in figures))
    return lines


def _classes(dataset: Dataset) -> list[str]:
    objects: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for record in dataset.records:
        labels = record.labels.tolist()
        objects.update(labels)
        images.update(set(labels))
    names = [one_line(name) for name in dataset.class_names]
    width = max([len("class"), *map(len, names)])
    lines = [f"{'class':<{width}}{'objects':>10}{'images':>10}"]
    for label, name in enumerate(names, start=1):
        lines.append(f"{name:<{width}}{objects[label]:>10,}{images[label]:>10,}")
    return lines


def _grouped(findings: Iterable[Finding], level: str, meaning: str, examples: int) -> list[str]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.kind, []).append(finding)
    if not groups:
        return []
    total = sum(map(len, groups.values()))
    lines = ["", f"{level}: {_many(total, 'finding')}; {meaning}"]
    for kind, found in groups.items():
        lines.append(f"  {kind}: {len(found):,}")
        lines += [f"    {finding}" for finding in found[:examples]]
        if len(found) > examples:
            lines.append(f"    ... and {len(found) - examples:,} more")
    return lines
