"""COCO's layout: one JSON file for all images, boxes as x, y, width, height.

Of the file are read: ``images`` (id, file_name, width, height), ``categories`` (id,
name) and ``annotations`` (image_id, category_id, bbox; if present id, iscrowd, area).
Everything else is ignored. Source: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refinedet.data.dataset import Dataset, Object, make_record
from refinedet.data.findings import Findings, Folder, read_bytes, require_names
from refinedet.errors import DataError
from refinedet.support.text import is_class_name

TABLES = ("images", "annotations", "categories")

MAX_AREA = 2.0**48
"""Square pixels, beyond any image; a larger number would overflow float32."""


def read_coco(
    annotations: Path, image_folder: Path, class_names: tuple[str, ...] | None = None
) -> Dataset:
    """Read a data set in COCO's layout.

    Args:
        annotations: the JSON file.
        image_folder: the folder that the ``file_name``s start from.
        class_names: the classes to keep, in the order of their labels; None keeps all,
            by ascending category id.
    Returns:
        The images in the file's order, under COCO's ids. Whether an image exists
        is looked up; its size is believed.
    Raises:
        DataError: no such file or folder, not JSON, not the three tables, or a class
            that the file does not have.
    """
    findings = Findings()
    document = _load(annotations)
    folder = Folder(image_folder, findings)
    categories = _categories(document, annotations, findings)
    chosen = _choose(categories, class_names, annotations)
    images = _images(document, annotations, folder, findings)
    objects: dict[int, list[Object]] = {image_id: [] for image_id in images}
    ids: set[int] = set()
    for where, row in _rows(document, "annotations", annotations, findings):
        if "id" in row and not _new_id(where, row, ids, findings):
            continue
        image_id, category_id = row.get("image_id"), row.get("category_id")
        if not _is_id(image_id) or image_id not in images:
            what = f"image_id {image_id!r} is not in images"
            findings.add("unknown image", where, f"{what}; correct or remove it")
        elif not _is_id(category_id) or category_id not in categories:
            what = f"category_id {category_id!r} is not in categories"
            findings.add("unknown class", where, f"{what}; correct or remove it")
        else:
            found = _object(where, row, images[image_id][1], findings)
            if found is not None and category_id in chosen:
                objects[image_id].append(found._replace(label=chosen[category_id]))
    return Dataset(
        name=f"coco {annotations}",
        class_names=tuple(categories[i] for i in chosen),
        records=[
            make_record(image_id, path, size, objects[image_id])
            for image_id, (path, size) in images.items()
            if path is not None
        ],
        findings=findings.all(),
        category_ids=tuple(chosen),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_bytes(path))
    except RecursionError:
        raise DataError("nested too deeply for COCO's format", path=path) from None
    except ValueError as error:  # also: not UTF-8, an integer of thousands of digits
        if isinstance(error, DataError):
            raise
        raise DataError(f"not JSON: {error}; repair or replace it", path=path) from None
    for table in TABLES:
        if not isinstance(document, dict) or not isinstance(document.get(table), list):
            raise DataError(f'{path}: no list "{table}"; COCO\'s "instances" format is expected')
    return dict(document)


def _rows(
    document: dict[str, Any], table: str, path: Path, findings: Findings
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table that are objects, and where they stand."""
    for index, row in enumerate(document[table]):
        where = f"{path}: {table}[{index}]"
        if isinstance(row, dict):
            yield where, row
        else:
            findings.add("malformed annotation", where, f"{row!r:.40} is not an object")


def _is_id(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _new_id(where: str, row: dict[str, Any], ids: set[int], findings: Findings) -> bool:
    """Whether the row has an id that no earlier row had; remembers it."""
    value = row.get("id")
    if not _is_id(value):
        what = f"id {value!r:.40} is not a whole number of 64 bits"
        findings.add("malformed annotation", where, what)
        return False
    if value in ids:
        findings.add("duplicate id", where, f"id {value} was there before; make ids unique")
        return False
    ids.add(value)  # type: ignore[arg-type]  # _is_id
    return True


def _categories(document: dict[str, Any], path: Path, findings: Findings) -> dict[int, str]:
    """Name of each category id, by ascending id."""
    categories: dict[int, str] = {}
    ids: set[int] = set()
    for where, row in _rows(document, "categories", path, findings):
        if not _new_id(where, row, ids, findings):
            continue
        name = row.get("name")
        if not is_class_name(name):
            what = f"name {name!r:.40} is not a name of one line; correct it"
            findings.add("malformed annotation", where, what)
        elif name in categories.values():
            findings.add("duplicate id", where, f"a second category is called {name!r}")
        else:
            categories[row["id"]] = name
    return dict(sorted(categories.items()))


def _choose(
    categories: dict[int, str], class_names: tuple[str, ...] | None, path: Path
) -> dict[int, int]:
    """Label of each chosen category id, by ascending label."""
    if class_names is None:
        return {category_id: label for label, category_id in enumerate(categories, start=1)}
    require_names(class_names)
    by_name = {name: category_id for category_id, name in categories.items()}
    for name in class_names:
        if name not in by_name:
            known = ", ".join(list(by_name)[:100])
            raise DataError(f"{path} has no {name!r}; it has {known}", key="class_names")
    return {by_name[name]: label for label, name in enumerate(class_names, start=1)}


def _images(
    document: dict[str, Any], path: Path, folder: Folder, findings: Findings
) -> dict[int, tuple[Path | None, tuple[int, int]]]:
    """File (None where it cannot be used) and size of each image id."""
    images: dict[int, tuple[Path | None, tuple[int, int]]] = {}
    ids: set[int] = set()
    for where, row in _rows(document, "images", path, findings):
        if not _new_id(where, row, ids, findings):
            continue
        name, size = row.get("file_name"), (row.get("width"), row.get("height"))
        if not isinstance(name, str) or not name:
            what = f"file_name {name!r:.40} is not a name"
            findings.add("malformed annotation", where, what)
        elif not all(isinstance(n, int) and _is_id(n) and 0 < n < 2**24 for n in size):
            what = f"width and height {size!r:.60} are not whole numbers of pixels"
            findings.add("malformed annotation", where, what)
        else:
            images[row["id"]] = (folder.find(where, name), size)  # type: ignore[assignment]
    return images


def _object(
    where: str, row: dict[str, Any], size: tuple[int, int], findings: Findings
) -> Object | None:
    """The object of a row, without its label."""
    bbox = [_number(v) for v in row["bbox"]] if isinstance(row.get("bbox"), list) else []
    crowd = row.get("iscrowd", 0)
    area = _number(row["area"]) if "area" in row else None
    if len(bbox) != 4 or None in bbox:
        wrong = f"bbox {row.get('bbox')!r:.60} is not x, y, width, height"
    elif isinstance(crowd, (list, dict)) or crowd not in (0, 1):
        wrong = f"iscrowd {crowd!r:.40} is not 0 or 1"
    elif "area" in row and (area is None or not 0 <= area < MAX_AREA):
        wrong = f"area {row['area']!r:.40} is not a number of square pixels"
    else:
        x, y, width, height = (float(v) for v in bbox if v is not None)
        box = findings.box(where, (x, y, x + width, y + height), size)
        return box and Object(box, 0, crowd=bool(crowd), area=area)
    findings.add("malformed annotation", where, f"{wrong}; correct it")
    return None


def _number(value: object) -> float | None:
    """A JSON number as a float, infinite where it is too large; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
