"""PASCAL VOC's layout: ``Annotations/NAME.xml``, ``JPEGImages/``, ``ImageSets/Main/SET.txt``.

The root is one such folder, or a ``VOCdevkit`` with several, ``VOC2007`` and ``VOC2012``,
whose splits can be joined: the paper trains on 07+12.

Coordinates are used as they are written. VOC counts pixels from 1, and its boxes include
the last one; detections trained on such boxes have the same convention, and
VOC's own metric adds the pixel back (see ``refinedet.evaluation.voc_metrics``).
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from refinedet.data.dataset import Dataset, Location, Object, Record, make_record
from refinedet.data.files import FileFinder, ImageFinder, parse_float, read_file, read_lines
from refinedet.data.findings import Findings, require_names, size_disagrees
from refinedet.data.images import IMAGE_SUFFIXES, image_size
from refinedet.errors import DataError, UsageError
from refinedet.support.text import is_class_name

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""VOC's own twenty, in the devkit's order."""
SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(root: Path, split: str, class_names: tuple[str, ...] | None = None) -> Dataset:
    """Read a data set in VOC's layout.

    Args:
        root: the folder with ``Annotations``, or a ``VOCdevkit`` above several.
        split: names of lists, joined by commas: ``trainval`` in the root, ``2007:test`` or
            ``2007:trainval,2012:trainval`` in a devkit.
        class_names: the classes, in the order of their labels. None takes VOC's twenty if
            no others occur, else all that occur, sorted.
    Returns:
        The images in the order of the lists, with ids 1, 2 and so on. Each image's
        size is read from its file; another size in the annotation is a finding.
    Raises:
        UsageError: a name in ``split`` is missing.
        DataError: no such folder or list.
    """
    findings = Findings()
    listed = [entry for part in split.split(",") for entry in _listed(root, part.strip(), findings)]
    parsed = [entry for entry in (_parse(*entry, findings) for entry in listed) if entry]
    if class_names is not None:
        require_names(class_names)
        names = class_names
    else:
        occurring = {name for _, _, objects in parsed for _, name, _, _ in objects}
        names = CLASSES if occurring <= set(CLASSES) else tuple(sorted(occurring))
    labels = {name: label for label, name in enumerate(names, start=1)}
    records: list[Record] = []
    for path, size, rows in parsed:
        objects = []
        for where, name, corners, difficult in rows:
            if name not in labels:
                reason = f"class {name!r} is not among {', '.join(names)}; add or correct it"
                findings.add("unknown class", where, reason)
            elif box := findings.box(where, corners, size):
                objects.append(Object(box, labels[name], difficult))
        records.append(make_record(len(records) + 1, path, size, objects))
    return Dataset(f"voc {root} {split}", names, records, findings.all())


def _listed(
    root: Path, part: str, findings: Findings
) -> list[tuple[Location, str, FileFinder, ImageFinder]]:
    """Of each image of one list: its line, its name, and the finders of its two files."""
    year, colon, name = part.rpartition(":")
    folder = root / f"VOC{year.removeprefix('VOC')}" if colon else root
    if not name:
        raise UsageError("expected the names of lists in ImageSets/Main", key="split")
    path = folder / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        have = sorted(p.stem for p in path.parent.glob("*.txt")) if path.parent.is_dir() else []
        known = f"; there are {', '.join(have[:20])}" if have else ""
        raise DataError(f"no such list{known}", path=path)
    annotations = FileFinder(folder / "Annotations", findings)
    images = ImageFinder(folder / "JPEGImages", findings)
    return [
        # The list of a class has a flag behind each name.
        (Location(path, f"line {number}"), line.split()[0], annotations, images)
        for number, line in enumerate(read_lines(path), start=1)
        if line
    ]


Row = tuple[Location, str, tuple[float, float, float, float], bool]
"""An object's location, class, corners in pixels, and whether it is difficult."""


def _parse(
    where: Location, stem: str, annotations: FileFinder, images: ImageFinder, findings: Findings
) -> tuple[Path, tuple[int, int], list[Row]] | None:
    """An image's path, size and objects; None and a finding where it cannot be used."""
    file = annotations.find(where, f"{stem}.xml")
    if file is None:
        return None
    try:
        root: Element = fromstring(read_file(file))
    except DataError as error:
        findings.add("malformed annotation", Location(file), f"{error.reason}; correct it")
        return None
    except (DefusedXmlException, ParseError, ValueError, LookupError, RecursionError) as error:
        fault = "declares entities" if isinstance(error, DefusedXmlException) else f"{error}"
        findings.add("malformed annotation", Location(file), f"not usable XML: {fault}; correct it")
        return None
    # The <filename> in the file is not used: other tools leave a name of theirs there.
    path = images.find(where, _image_name(stem, images.root))
    if path is None:
        return None
    try:
        size = image_size(path)
    except DataError as error:
        findings.add("unreadable image", Location(path), f"{error.reason}: left out")
        return None
    _check_size(root, Location(file), size, findings)
    return path, size, _objects(root, file, findings)


def _image_name(stem: str, folder: Path) -> str:
    """The name of an image without its suffix, completed by the first suffix that exists."""
    suffixes = (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))
    names = (stem + suffix for suffix in suffixes)
    return next((name for name in names if (folder / name).exists()), f"{stem}.jpg")


def _check_size(
    root: Element, where: Location, actual: tuple[int, int], findings: Findings
) -> None:
    """A finding where the annotated width and height, if given, are not the image's."""
    try:
        width, height = (_number(root, f"size/{side}", "0") for side in ("width", "height"))
    except ValueError as error:
        findings.add("malformed annotation", where, f"{error}; correct it")
        return
    if not (math.isfinite(width) and math.isfinite(height)):
        reason = f"size {width:g}x{height:g} is not finite; correct it"
        findings.add("malformed annotation", where, reason)
    elif width and height and (width, height) != actual:
        findings.add("size disagrees", where, size_disagrees((int(width), int(height)), actual))


def _objects(root: Element, file: Path, findings: Findings) -> list[Row]:
    rows: list[Row] = []
    for number, element in enumerate(root.findall("object"), start=1):
        where = Location(file, f"object {number}")
        name = (element.findtext("name") or "").strip()
        difficult = (element.findtext("difficult") or "0").strip()
        if not is_class_name(name):
            reason = f"name {name!r:.40} is not a name of one line; correct it"
            findings.add("malformed annotation", where, reason)
        elif difficult not in ("0", "1"):
            reason = f"difficult is {difficult!r:.40}, expected 0 or 1; correct it"
            findings.add("malformed annotation", where, reason)
        else:
            try:
                x_min, y_min, x_max, y_max = (_number(element, f"bndbox/{side}") for side in SIDES)
            except ValueError as error:
                findings.add("malformed annotation", where, f"{error}; correct it")
                continue
            rows.append((where, name, (x_min, y_min, x_max, y_max), difficult == "1"))
    return rows


def _number(element: Element, path: str, missing: str = "") -> float:
    """The number in a child element, ``missing`` where there is none; may be infinite.

    Raises:
        ValueError: not a number.
    """
    text = (element.findtext(path) or "").strip()
    try:
        return parse_float(text or missing)
    except ValueError:
        raise ValueError(f"{path} {text!r:.40} is not a number") from None
