"""COCO's layout: one JSON file for all images, boxes as x, y, width, height.

Of the file are read: ``images`` (id, file_name, width, height), ``categories`` (id,
name) and ``annotations`` (image_id, category_id, bbox; if present id, iscrowd, area).
Everything else is ignored. Source: https://cocodataset.org/#format-data.

``CocoFile`` parses the file and validates its rows. What happens at a faulty row is up to
its caller: a data set to train on collects findings, the scoring of a results file stops.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from refinedet.data.dataset import Dataset, Location, Object, make_record
from refinedet.data.files import ImageFinder, read_file
from refinedet.data.findings import Findings, require_names
from refinedet.errors import DataError
from refinedet.support.text import is_class_name, shown_json

TABLES = ("images", "annotations", "categories")

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's 80 categories in the order of their ids, as in the authors' labelmap_coco."""

MAX_SIDE = 2**24
"""Pixels, beyond any image: up to here float32 holds every whole number."""
MAX_AREA = float(MAX_SIDE) ** 2
"""Square pixels."""


class RowError(Exception):
    """Why a row of a table cannot be used."""

    def __init__(self, reason: str, kind: str = "malformed annotation") -> None:
        """Args: kind: one of ``refinedet.data.findings.POLICY``."""
        super().__init__(reason)
        self.reason = reason
        self.kind = kind


OnFault = Callable[[Location, RowError], None]
"""Receives each faulty row. If it returns, reading goes on without that row."""


class Annotation(NamedTuple):
    """A valid row of ``annotations``."""

    where: Location
    image_id: int
    category_id: int
    bbox: list[float]
    """x_min, y_min, width, height in pixels; not yet checked: any floats."""
    crowd: bool
    area: float | None
    """Square pixels, from 0; None where the row has none."""


class CocoFile:
    """An annotation file in COCO's "instances" format."""

    def __init__(self, path: Path, on_fault: OnFault) -> None:
        """Read and parse the file.

        Raises:
            DataError: no such file, not JSON, or not the three tables.
        """
        content = read_json(path)
        for table in TABLES:
            if not isinstance(content, dict) or table not in content:
                raise DataError(f'no "{table}"; COCO\'s "instances" format is expected', path=path)
            if not isinstance(content[table], list):
                raise DataError(f'"{table}" is not a list', path=path)
        self.path = path
        self._tables: dict[str, list[Any]] = content
        self._on_fault = on_fault

    def rows(self, table: str) -> Iterator[tuple[Location, int, dict[str, Any]]]:
        """Location, id and content of each row that has an id of its own."""
        ids: dict[int, int] = {}
        for index, where, row in self._objects(table):
            try:
                yield where, _new_id(row, table, index, ids), row
            except RowError as fault:
                self._on_fault(where, fault)

    def categories(self, *, unnamed: bool = False) -> dict[int, str]:
        """Name of each category id, in the file's order.

        Args:
            unnamed: a category without a name is called by its id; otherwise it is a fault.
        """
        categories: dict[int, str] = {}
        for where, category_id, row in self.rows("categories"):
            name = row.get("name", str(category_id) if unnamed else None)
            if not is_class_name(name):
                reason = f"name {shown_json(name)} is not a name of one line"
                self._on_fault(where, RowError(reason))
            elif name in categories.values():
                reason = f"a second category is called {shown_json(name)}"
                self._on_fault(where, RowError(reason, "duplicate id"))
            else:
                categories[category_id] = name
        return categories

    def annotations(
        self, image_ids: Collection[int], category_ids: Collection[int]
    ) -> Iterator[Annotation]:
        """The valid rows of ``annotations``, whose ids are among these."""
        ids: dict[int, int] = {}
        for index, where, row in self._objects("annotations"):
            try:
                if "id" in row:
                    _new_id(row, "annotations", index, ids)
                yield Annotation(
                    where,
                    known_id(row, "image_id", image_ids, "images"),
                    known_id(row, "category_id", category_ids, "categories"),
                    bbox_of(row),
                    _crowd(row),
                    _area(row),
                )
            except RowError as fault:
                self._on_fault(where, fault)

    def _objects(self, table: str) -> Iterator[tuple[int, Location, dict[str, Any]]]:
        """Index, location and content of each row that is a JSON object."""
        for index, row in enumerate(self._tables[table]):
            where = Location(self.path, f"{table}[{index}]")
            if isinstance(row, dict):
                yield index, where, row
            else:
                self._on_fault(where, RowError(f"{shown_json(row)} is not an object"))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: no such file, empty, or not JSON.
    """
    data = read_file(path)
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not JSON: {error}; repair or replace it", path=path) from error
    except (ValueError, RecursionError) as error:  # a ValueError: thousands of digits
        reason = "not JSON: nesting too deep, or a number out of range"
        raise DataError(reason, path=path) from error


def field_of(row: dict[str, Any], field: str) -> Any:
    """A field of a row; ``RowError`` where it is missing."""
    if field not in row:
        raise RowError(f"{field} is missing")
    return row[field]


def known_id(row: dict[str, Any], field: str, known: Collection[int], table: str) -> int:
    """An id that refers to another table; ``RowError`` where it is not ``known`` there."""
    value = field_of(row, field)
    if type(value) is not int or value not in known:
        kind = "unknown image" if field == "image_id" else "unknown class"
        raise RowError(f"{field} {shown_json(value)} is not in {table}", kind)
    return value


def bbox_of(row: dict[str, Any]) -> list[float]:
    """x_min, y_min, width, height of a row: any floats; ``RowError`` where they are not four."""
    value = field_of(row, "bbox")
    if not isinstance(value, list) or len(value) != 4:
        raise RowError(f"bbox {shown_json(value)} is not x, y, width, height")
    numbers = [json_number(v) for v in value]
    if None in numbers:
        wrong = shown_json(value[numbers.index(None)])
        raise RowError(f"bbox holds {wrong}; a number is expected")
    return [v for v in numbers if v is not None]


def json_number(value: object) -> float | None:
    """A JSON number as a float, infinite where it is too large; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _new_id(row: dict[str, Any], table: str, index: int, ids: dict[int, int]) -> int:
    """The row's id; enters its index into ``ids``. ``RowError`` where an earlier row has it."""
    value = field_of(row, "id")
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise RowError(f"id {shown_json(value)} is not a whole number of 64 bits")
    if value in ids:
        raise RowError(f"id {value} is also that of {table}[{ids[value]}]", "duplicate id")
    ids[value] = index
    return value


def _crowd(row: dict[str, Any]) -> bool:
    value = row.get("iscrowd", 0)
    if value not in (0, 1):
        raise RowError(f"iscrowd is {shown_json(value)}; 0 or 1 is expected")
    return bool(value)


def _area(row: dict[str, Any]) -> float | None:
    if "area" not in row:
        return None
    area = json_number(row["area"])
    if area is None or not 0 <= area < MAX_AREA:
        wrong = shown_json(row["area"])
        raise RowError(f"area holds {wrong}; a number of square pixels is expected")
    return area


def read_coco(
    annotations: Path, image_folder: Path, class_names: tuple[str, ...] | None = None
) -> Dataset:
    """Read a data set in COCO's layout.

    Args:
        annotations: the JSON file.
        image_folder: the folder that each ``file_name`` is relative to.
        class_names: the classes to keep, in the order of their labels; None keeps all,
            by ascending category id.
    Returns:
        The images in the file's order, under COCO's ids. Every image file is looked up but
        not opened: its size is taken from the annotations.
    Raises:
        DataError: no such file or folder, not JSON, not the three tables, or a class
            that the file does not have.
    """
    findings = Findings()

    def note(where: Location, fault: RowError) -> None:
        findings.add(fault.kind, where, f"{fault.reason}; correct or remove it")

    file = CocoFile(annotations, note)
    finder = ImageFinder(image_folder, findings)
    categories = dict(sorted(file.categories().items()))
    labels = _labels(categories, class_names, annotations)
    images = _images(file, finder, note)
    objects: dict[int, list[Object]] = {image_id: [] for image_id in images}
    for row in file.annotations(images, categories):
        x, y, width, height = row.bbox
        box = findings.box(row.where, (x, y, x + width, y + height), images[row.image_id][1])
        if box is not None and row.category_id in labels:
            label = labels[row.category_id]
            objects[row.image_id].append(Object(box, label, crowd=row.crowd, area=row.area))
    return Dataset(
        name=f"coco {annotations}",
        class_names=tuple(categories[category_id] for category_id in labels),
        records=[
            make_record(image_id, path, size, objects[image_id])
            for image_id, (path, size) in images.items()
            if path is not None
        ],
        findings=findings.all(),
        category_ids=tuple(labels),
    )


def _labels(
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
            raise DataError(f"has no class {name!r}; it has {known}", path=path)
    return {by_name[name]: label for label, name in enumerate(class_names, start=1)}


def _images(
    file: CocoFile, finder: ImageFinder, on_fault: OnFault
) -> dict[int, tuple[Path | None, tuple[int, int]]]:
    """Path (None where it cannot be used) and width and height of each image id."""
    images: dict[int, tuple[Path | None, tuple[int, int]]] = {}
    for where, image_id, row in file.rows("images"):
        name, width, height = row.get("file_name"), row.get("width"), row.get("height")
        if not isinstance(name, str) or not name:
            on_fault(where, RowError(f"file_name {shown_json(name)} is not a name"))
        elif not _is_side(width) or not _is_side(height):
            wrong = shown_json([width, height], 60)
            on_fault(where, RowError(f"width and height {wrong} are not whole numbers of pixels"))
        else:
            images[image_id] = finder.find(where, name), (width, height)
    return images


def _is_side(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value < MAX_SIDE
