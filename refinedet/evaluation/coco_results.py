"""Results files: detections in COCO's format, written, read and scored.

They may hold millions of entries, so one entry is in memory at a time, and what is kept
of it are its numbers.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from refinedet.data.findings import read_bytes
from refinedet.errors import DataError
from refinedet.evaluation.metrics import Evaluation, Found, GroundTruth, Progress, coco_metrics
from refinedet.evaluation.protocols import Protocol, chosen_ids
from refinedet.spec.detection import Detections
from refinedet.support.files import replacing
from refinedet.support.text import is_class_name, shown_json

MAX_COORDINATE = 1e100
"""Pixels, in a file: larger numbers overflow when areas are computed."""

CHUNK = 1 << 20
"""Characters of a results file that are read at a time."""

SPACE = re.compile(r"[ \t\n\r]*")
"""What JSON has between values."""


def write_results(path: Path, category_ids: Sequence[int], found: Mapping[int, Detections]) -> None:
    """Write detections as a COCO results file, whole or not at all.

    Numbers are written in full: the file scores as the detections themselves do.

    Args:
        category_ids: ``Dataset.category_ids``; label 1 is the first.
        found: image id to detections, boxes in pixels, as ``Evaluator.found``.
    Raises:
        WriteError: the file cannot be written.
    Source: cocodataset.org, "results format": image_id, category_id, bbox of x_min,
        y_min, width, height, and score.
    """
    with replacing(path) as draft, draft.open("w", encoding="utf-8") as file:
        before = "["
        for image_id in sorted(found):
            for entry in _result_entries(image_id, category_ids, found[image_id]):
                file.write(before + json.dumps(entry, allow_nan=False))
                before = ",\n"
        file.write("[]\n" if before == "[" else "]\n")


def _result_entries(
    image_id: int, category_ids: Sequence[int], found: Detections
) -> Iterator[dict[str, Any]]:
    """The entries of one image in a results file."""
    corners = found.boxes.astype(np.float64)
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
    for box, score, label in zip(boxes, found.scores.tolist(), found.labels.tolist(), strict=True):
        yield {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": box,
            "score": score,
        }


def score_results(
    results: Path,
    annotations: Path,
    progress: Progress = iter,
    protocol: Protocol | None = None,
) -> Evaluation:
    """COCO's metrics of a results file against an annotation file, without images.

    A results file with an empty list is legal: nothing was found, all metrics are 0.

    Args:
        progress: is shown_json the classes.
        results: COCO results, a list of image_id, category_id, bbox and score; other
            fields are not read.
        annotations: COCO's ``instances`` file. "area" may be missing (then it is the
            box's), "iscrowd" too (then 0).
        protocol: says which images count; None is all. The results are taken as they are.
    Raises:
        DataError: one line, the first fault: unreadable, not JSON, not a list, a field
            that is missing or of another kind, unknown or repeated ids, numbers that are
            not finite, boxes beyond any image, negative sides. Scores are any finite
            numbers: COCO ranks by them.
    """
    content = _read_json(annotations)
    images = _ids(annotations, content, "images")
    categories = _ids(annotations, content, "categories")
    ground_truth = _read_ground_truth(annotations, content, images, categories)
    names = tuple(
        _class_name(entry, where) for where, entry in _entries(annotations, content, "categories")
    )
    del content  # it may be large
    found = _read_found(results, images, categories)
    if protocol is not None:
        ids = np.asarray(list(images), np.int64)
        chosen = chosen_ids(
            protocol, ids, ground_truth.image_ids, ground_truth.crowd, str(annotations)
        )
        real, claimed = np.isin(ground_truth.image_ids, chosen), np.isin(found.image_ids, chosen)
        ground_truth = GroundTruth(*(column[real] for column in ground_truth))
        found = Found(*(column[claimed] for column in found))
    return Evaluation(names, *coco_metrics(ground_truth, found, len(names), progress))


def _read_ground_truth(
    path: Path, content: Any, images: Mapping[int, int], categories: Mapping[int, int]
) -> GroundTruth:
    image_ids, classes, boxes, areas, crowd = [], [], [], [], []
    for where, entry in _entries(path, content, "annotations"):
        image_ids.append(_known_id(entry, "image_id", images, where))
        classes.append(categories[_known_id(entry, "category_id", categories, where)])
        boxes.append(_box(entry, where))
        area = _number(entry["area"], where, "area") if "area" in entry else None
        areas.append(boxes[-1][2] * boxes[-1][3] if area is None else area)
        crowd.append(entry.get("iscrowd", 0))
        if crowd[-1] not in (0, 1):
            raise DataError(f"iscrowd is {shown_json(crowd[-1])}; 0 or 1 is expected", key=where)
    return GroundTruth(
        np.asarray(image_ids, np.int64),
        np.asarray(classes, np.int64),
        np.asarray(boxes, np.float64).reshape(-1, 4),
        np.asarray(areas, np.float64),
        np.asarray(crowd, bool),
        np.zeros(len(crowd), bool),
    )


def _read_found(path: Path, images: Mapping[int, int], categories: Mapping[int, int]) -> Found:
    image_ids, classes, boxes, scores = array("q"), array("q"), array("d"), array("d")
    for i, entry in enumerate(_results(path)):
        where = f"{path}: entry[{i}]"
        if not isinstance(entry, dict):
            raise DataError(f"{shown_json(entry)} is not an object", key=where)
        image_ids.append(_known_id(entry, "image_id", images, where))
        classes.append(categories[_known_id(entry, "category_id", categories, where)])
        boxes.extend(_box(entry, where))
        scores.append(_number(_field(entry, "score", where), where, "score"))
    return Found(
        np.asarray(image_ids),
        np.asarray(classes),
        np.asarray(boxes).reshape(-1, 4),
        np.asarray(scores),
    )


def _results(path: Path) -> Iterator[Any]:
    """What the list in a results file holds, one after the other."""
    read = 0
    if path.is_file():  # a pipe would wait for ever
        try:
            with path.open(encoding="utf-8") as file:
                for entry in _list_entries(file):
                    yield entry
                    read += 1
            return
        except (OSError, ValueError, RecursionError):
            pass  # reading it whole finds the right words for what is wrong
    content = _read_json(path)
    if not isinstance(content, list):
        raise DataError("the content is not a list", path=path)
    yield from content[read:]


def _list_entries(file: TextIO) -> Iterator[Any]:
    """The entries of a JSON list, a chunk of text at a time; ValueError where it is none."""
    decode = json.JSONDecoder().raw_decode
    text = file.read(CHUNK).lstrip()
    if not text.startswith("["):
        raise ValueError("not a list")
    start, size, separator = 1, CHUNK, ""
    while True:
        try:
            place = _after_space(text, start)
            if text[place] == "]":
                break
            if separator and text[place] != separator:
                raise ValueError("no comma")
            entry, end = decode(text, _after_space(text, place + len(separator)))
        except (IndexError, json.JSONDecodeError):  # perhaps it goes on in the next chunk
            chunk = file.read(size)
            if not chunk:
                raise ValueError("cut off") from None
            text, start, size = text[start:] + chunk, 0, 2 * size
        else:
            yield entry
            start, size, separator = end, CHUNK, ","
    if text[place + 1 :].strip() or file.read().strip():
        raise ValueError("more than a list")


def _after_space(text: str, place: int) -> int:
    """The place of the next character that is no space."""
    match = SPACE.match(text, place)
    return match.end() if match else place


def _read_json(path: Path) -> Any:
    data = read_bytes(path)
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error}", path=path) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            "not JSON of this world: nested too deeply, or a huge number", path=path
        ) from error


def _entries(path: Path, content: Any, name: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a list (``name`` of an object, or the whole), and where it stands."""
    if name is not None:
        if not isinstance(content, dict) or name not in content:
            raise DataError(f'{path}: no "{name}"; COCO\'s "instances" format is expected')
        content = content[name]
    if not isinstance(content, list):
        what = f'"{name}"' if name else "the content"
        raise DataError(f"{what} is not a list", path=path)
    for i, entry in enumerate(content):
        where = f"{path}: {name or 'entry'}[{i}]"
        if not isinstance(entry, dict):
            raise DataError(f"{shown_json(entry)} is not an object", key=where)
        yield where, entry


def _ids(path: Path, content: Any, name: str) -> dict[int, int]:
    """The ids of a list, each with its position."""
    ids: dict[int, int] = {}
    for where, entry in _entries(path, content, name):
        value = _field(entry, "id", where)
        if type(value) is not int or abs(value) >= 2**63:
            raise DataError(f"id {shown_json(value)} is not a whole number of 64 bits", key=where)
        if value in ids:
            raise DataError(f"id {value} is also that of {name}[{ids[value]}]", key=where)
        ids[value] = len(ids)
    if not ids:
        raise DataError(f'{path}: "{name}" is empty')
    return ids


def _known_id(entry: dict[str, Any], field: str, known: Mapping[int, int], where: str) -> int:
    value = _field(entry, field, where)
    if type(value) is not int or value not in known:
        raise DataError(f"{field} {shown_json(value)} is not in the annotations", key=where)
    return value


def _class_name(entry: dict[str, Any], where: str) -> str:
    """The name of a category; its id where it has none."""
    name: object = entry.get("name", str(entry["id"]))
    if not is_class_name(name):
        raise DataError(f"name {shown_json(name)} is not a name of one line", key=where)
    return name


def _box(entry: dict[str, Any], where: str) -> list[float]:
    value = _field(entry, "bbox", where)
    if not isinstance(value, list) or len(value) != 4:
        raise DataError(f"bbox {shown_json(value)} is not x, y, width, height", key=where)
    box = [_number(x, where, "bbox") for x in value]
    if min(box[2:]) < 0:
        raise DataError(f"bbox {shown_json(value)} has a negative side", key=where)
    if max(map(abs, box)) > MAX_COORDINATE:
        raise DataError(f"bbox {shown_json(value)} is beyond any image", key=where)
    return box


def _field(entry: dict[str, Any], field: str, where: str) -> Any:
    if field not in entry:
        raise DataError(f"{field} is missing", key=where)
    return entry[field]


def _number(value: Any, where: str, field: str) -> float:
    if type(value) in (int, float):
        with contextlib.suppress(OverflowError):
            if math.isfinite(number := float(value)):
                return number
    raise DataError(f"{field} holds {shown_json(value)}; a finite number is expected", key=where)
