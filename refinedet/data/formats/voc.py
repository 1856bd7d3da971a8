"""PASCAL VOC's layout: ``Annotations/NAME.xml``, ``JPEGImages/``, ``ImageSets/Main/SET.txt``.

The root is either one such folder, or a ``VOCdevkit`` that holds several, ``VOC2007``,
``VOC2012``; their splits can be joined, as the paper trains on 07+12.

Coordinates are taken as they are written. VOC counts pixels from 1 and means the last
one to belong to the box; detections trained on such boxes are of the same kind, and
VOC's own measure adds the pixel back (see ``refinedet.evaluation.metrics``).
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from refinedet.data.dataset import Dataset, Object, Record, make_record
from refinedet.data.findings import (
    Findings,
    Folder,
    plain,
    read_bytes,
    read_lines,
    require_names,
    sizes,
)
from refinedet.data.images import image_size
from refinedet.errors import DataError
from refinedet.support.text import is_class_name

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""VOC's own twenty, in the devkit's order."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG", ".BMP")
"""Of images; VOC's own are ``.jpg``."""
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
        The images in the order of the lists, under ids 1, 2, ... The image's
        real size counts; an annotation that says another is a finding.
    Raises:
        DataError: no such folder or list.
    """
    findings = Findings()
    listed = [entry for part in split.split(",") for entry in _listed(root, part.strip(), findings)]
    parsed = [entry for entry in (_parse(*entry, findings) for entry in listed) if entry]
    found = {name for _, _, objects in parsed for _, name, _, _ in objects}
    if class_names is not None:
        require_names(class_names)
        names = class_names
    else:
        names = CLASSES if found <= set(CLASSES) else tuple(sorted(found))
    labels = {name: label for label, name in enumerate(names, start=1)}
    records: list[Record] = []
    for path, size, rows in parsed:
        objects = []
        for where, name, corners, difficult in rows:
            if name not in labels:
                what = f"class {name!r} is not among {', '.join(names)}; add or correct it"
                findings.add("unknown class", where, what)
            elif box := findings.box(where, corners, size):
                objects.append(Object(box, labels[name], difficult))
        records.append(make_record(len(records) + 1, path, size, objects))
    return Dataset(f"voc {root} {split}", names, records, findings.all())


def _listed(root: Path, part: str, findings: Findings) -> list[tuple[str, str, Folder, Folder]]:
    """Of each image of one list: the line, its name, and where to look for its two files."""
    year, colon, name = part.rpartition(":")
    folder = root / f"VOC{year.removeprefix('VOC')}" if colon else root
    if not name:
        raise DataError("--split expected the name of a list in ImageSets/Main", path=root)
    path = folder / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        have = sorted(p.stem for p in path.parent.glob("*.txt")) if path.parent.is_dir() else []
        known = f"; there are {', '.join(have[:20])}" if have else ""
        raise DataError(f"no such list{known}", path=path)
    annotations = Folder(folder / "Annotations", findings, "annotation")
    image_folder = Folder(folder / "JPEGImages", findings)
    return [
        # A class's own list has a flag behind the name.
        (f"{path}: line {number}", line.split()[0], annotations, image_folder)
        for number, line in enumerate(read_lines(path), start=1)
        if line
    ]


Row = tuple[str, str, tuple[float, float, float, float], bool]
"""Where an object stands, its class, corners, and whether it is difficult."""


def _parse(
    where: str, stem: str, annotations: Folder, image_folder: Folder, findings: Findings
) -> tuple[Path, tuple[int, int], list[Row]] | None:
    """An image's file and size, and its objects; None and a finding if it has none."""
    file = annotations.find(where, f"{stem}.xml")
    if file is None:
        return None
    try:
        root: Element = fromstring(read_bytes(file))
    except (DefusedXmlException, ParseError, ValueError, LookupError, RecursionError) as error:
        what = "declares entities" if isinstance(error, DefusedXmlException) else f"{error}"
        findings.add("malformed annotation", str(file), f"not usable XML: {what}; correct it")
        return None
    except DataError as error:
        reason = str(error).removeprefix(f"{file}: ")
        findings.add("malformed annotation", str(file), f"{reason}; correct it")
        return None
    # The name in the file is not followed: other tools leave a name of theirs there.
    named = (f"{stem}{suffix}" for suffix in SUFFIXES)
    name = next((n for n in named if (image_folder.root / n).exists()), f"{stem}.jpg")
    path = image_folder.find(where, name)
    if path is None:
        return None
    try:
        size = image_size(path)
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ")
        findings.add("unreadable image", str(path), f"{reason}: left out")
        return None
    try:
        width, height = (_number(root, f"size/{side}", "0") for side in ("width", "height"))
    except ValueError as error:
        findings.add("malformed annotation", str(file), f"{error}; correct it")
        width = height = 0.0
    if not (math.isfinite(width) and math.isfinite(height)):
        what = f"size {width:g}x{height:g} is not finite; correct it"
        findings.add("malformed annotation", str(file), what)
    elif width and height and (width, height) != size:
        findings.add("size disagrees", str(file), sizes((int(width), int(height)), size))
    return path, size, _objects(root, file, findings)


def _objects(root: Element, file: Path, findings: Findings) -> list[Row]:
    rows: list[Row] = []
    for number, element in enumerate(root.findall("object"), start=1):
        where = f"{file}: object {number}"
        name = (element.findtext("name") or "").strip()
        difficult = (element.findtext("difficult") or "0").strip()
        if not is_class_name(name):
            what = f"name {name!r:.40} is not a name of one line; correct it"
            findings.add("malformed annotation", where, what)
        elif difficult not in ("0", "1"):
            what = f"difficult is {difficult!r:.40}, expected 0 or 1; correct it"
            findings.add("malformed annotation", where, what)
        else:
            try:
                x_min, y_min, x_max, y_max = (_number(element, f"bndbox/{side}") for side in SIDES)
            except ValueError as error:
                findings.add("malformed annotation", where, f"{error}; correct it")
                continue
            rows.append((where, name, (x_min, y_min, x_max, y_max), difficult == "1"))
    return rows


def _number(element: Element, path: str, missing: str = "") -> float:
    """The number in a child element, ``missing`` where it is not there or empty; may be infinite.

    Raises:
        ValueError: it is no number.
    """
    text = (element.findtext(path) or "").strip()
    try:
        return float(plain(text or missing))
    except ValueError:
        raise ValueError(f"{path} {text!r:.40} is not a number") from None
