"""Results files: detections in COCO's format, written, read and evaluated.

They may hold millions of entries, so one entry is in memory at a time, and only its
numbers are kept.
"""

from __future__ import annotations

import io
import json
import math
import re
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np

from refinedet.data.dataset import Location
from refinedet.data.formats.coco import (
    CocoFile,
    RowError,
    bbox_of,
    field_of,
    json_number,
    known_id,
    read_json,
)
from refinedet.errors import DataError
from refinedet.evaluation.box_tables import DetectionTable, GroundTruthTable
from refinedet.evaluation.coco_metrics import Progress, coco_metrics
from refinedet.evaluation.metrics import Evaluation
from refinedet.evaluation.protocols import Protocol, counted_image_ids
from refinedet.spec.detection import Detections
from refinedet.support.files import open_regular_file, replacing
from refinedet.support.text import shown_json

MAX_COORDINATE = 1e100
"""Pixels, in a file: larger numbers overflow when areas are computed."""

CHUNK = 1 << 20
"""Characters of a results file that are read at once."""

SPACE = re.compile(r"[ \t\n\r]*")
"""White space as JSON has it between values."""


def write_results(
    path: Path, category_ids: Sequence[int], detections: Mapping[int, Detections]
) -> None:
    """Write detections as a COCO results file, whole or not at all.

    Numbers are written in full: the file gives the same metrics as the detections.

    Args:
        category_ids: ``Dataset.category_ids``; label 1 is the first.
        detections: by image id, boxes in pixels, as ``Evaluator.detections``.
    Raises:
        WriteError: the file cannot be written.
    Source: cocodataset.org, "results format": image_id, category_id, bbox of x_min,
        y_min, width, height, and score.
    """
    with replacing(path) as draft, draft.open("w", encoding="utf-8") as file:
        before = "["
        for image_id in sorted(detections):
            for entry in _result_entries(image_id, category_ids, detections[image_id]):
                file.write(before + json.dumps(entry, allow_nan=False))
                before = ",\n"
        file.write("[]\n" if before == "[" else "]\n")


def _result_entries(
    image_id: int, category_ids: Sequence[int], detections: Detections
) -> Iterator[dict[str, Any]]:
    """The entries of one image in a results file."""
    corners = detections.boxes.astype(np.float64)
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
    scores, labels = detections.scores.tolist(), detections.labels.tolist()
    for box, score, label in zip(boxes, scores, labels, strict=True):
        yield {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": box,
            "score": score,
        }


def evaluate_coco_results(
    results: Path,
    annotations: Path,
    progress: Progress = iter,
    protocol: Protocol | None = None,
) -> Evaluation:
    """COCO's metrics of a results file against an annotation file, without images.

    An empty list of results is valid: nothing was detected, so all metrics are 0.

    Args:
        progress: receives the classes.
        results: COCO results, a list of image_id, category_id, bbox and score; other
            fields are not read.
        annotations: COCO's ``instances`` file. "area" may be missing (then it is the
            box's), "iscrowd" too (then 0).
        protocol: decides which images count; None is all. Its detection settings are not
            applied: the results are final detections.
    Raises:
        DataError: the first fault: unreadable, not JSON, not a list, a field
            that is missing or of another type, unknown or repeated ids, numbers that are
            not finite, boxes beyond any image, negative sides. Scores are any finite
            numbers: COCO only ranks by them.
    """
    file = CocoFile(annotations, _raise_fault)
    image_ids = {image_id for _, image_id, _ in file.rows("images")}
    categories = file.categories(unnamed=True)
    for table, rows in (("images", image_ids), ("categories", categories)):
        if not rows:
            raise DataError(f'"{table}" is empty', path=annotations)
    classes = {category_id: index for index, category_id in enumerate(categories)}
    ground_truth = _ground_truth_rows(file, image_ids, classes)
    del file  # it may be large
    detections = _detection_rows(results, image_ids, classes)
    if protocol is not None:
        counted = counted_image_ids(
            protocol,
            np.array(sorted(image_ids), np.int64),
            ground_truth.image_ids,
            ground_truth.crowd,
            str(annotations),
        )
        kept = np.isin(ground_truth.image_ids, counted)
        ground_truth = GroundTruthTable(*(column[kept] for column in ground_truth))
        kept = np.isin(detections.image_ids, counted)
        detections = DetectionTable(*(column[kept] for column in detections))
    metrics = coco_metrics(ground_truth, detections, len(categories), progress)
    return Evaluation(tuple(categories.values()), *metrics)


def _raise_fault(where: Location, fault: RowError) -> NoReturn:
    raise DataError(fault.reason, path=where.path, key=where.key) from fault


def _ground_truth_rows(
    file: CocoFile, image_ids: Collection[int], classes: Mapping[int, int]
) -> GroundTruthTable:
    """The annotations of a file. ``classes``: class from 0 of each category id."""
    ids, labels, boxes, areas, crowd = [], [], [], [], []
    for row in file.annotations(image_ids, classes):
        try:
            require_scorable(row.bbox)
        except RowError as fault:
            _raise_fault(row.where, fault)
        ids.append(row.image_id)
        labels.append(classes[row.category_id])
        boxes.append(row.bbox)
        areas.append(row.bbox[2] * row.bbox[3] if row.area is None else row.area)
        crowd.append(row.crowd)
    return GroundTruthTable(
        np.array(ids, np.int64),
        np.array(labels, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(areas, np.float64),
        np.array(crowd, bool),
        np.zeros(len(ids), bool),
    )


def _detection_rows(
    path: Path, image_ids: Collection[int], classes: Mapping[int, int]
) -> DetectionTable:
    """The detections of a results file. ``classes``: class from 0 of each category id."""
    ids, labels, boxes, scores = array("q"), array("q"), array("d"), array("d")
    for index, entry in enumerate(_results(path)):
        try:
            if not isinstance(entry, dict):
                raise RowError(f"{shown_json(entry)} is not an object")
            ids.append(known_id(entry, "image_id", image_ids, "the annotations"))
            category_id = known_id(entry, "category_id", classes, "the annotations")
            labels.append(classes[category_id])
            bbox = bbox_of(entry)
            require_scorable(bbox)
            boxes.extend(bbox)
            scores.append(_score(entry))
        except RowError as fault:
            _raise_fault(Location(path, f"entry[{index}]"), fault)
    return DetectionTable(
        np.asarray(ids),
        np.asarray(labels),
        np.asarray(boxes).reshape(-1, 4),
        np.asarray(scores),
    )


def require_scorable(bbox: Sequence[float]) -> None:
    """Raise a ``RowError`` for a box of which no overlap can be computed."""
    if not all(map(math.isfinite, bbox)):
        raise RowError(f"bbox holds {shown_json(list(bbox))}; finite numbers are expected")
    if min(bbox[2:]) < 0:
        raise RowError(f"bbox {shown_json(list(bbox))} has a negative side")
    if max(map(abs, bbox)) > MAX_COORDINATE:
        raise RowError(f"bbox {shown_json(list(bbox))} is beyond any image")


def _score(entry: dict[str, Any]) -> float:
    value = field_of(entry, "score")
    score = json_number(value)
    if score is None or not math.isfinite(score):
        raise RowError(f"score holds {shown_json(value)}; a finite number is expected")
    return score


def _results(path: Path) -> Iterator[Any]:
    """The entries of the list in a results file, one after the other."""
    read = 0
    try:
        with io.TextIOWrapper(open_regular_file(path), encoding="utf-8") as file:
            for entry in _list_entries(file):
                yield entry
                read += 1
        return
    except (OSError, ValueError, RecursionError):
        pass
    content = read_json(path)  # raises, with the right reason, unless it is in another encoding
    if not isinstance(content, list):
        raise DataError("the content is not a list", path=path)
    yield from content[read:]


def _list_entries(file: TextIO) -> Iterator[Any]:
    """The entries of a JSON list, read in chunks of text; ValueError where it is not a list."""
    decode = json.JSONDecoder().raw_decode
    text = file.read(CHUNK).lstrip()
    if not text.startswith("["):
        raise ValueError("not a list")
    start, size, separator = 1, CHUNK, ""
    while True:
        try:
            position = _after_space(text, start)
            if text[position] == "]":
                break
            if separator and text[position] != separator:
                raise ValueError("no comma")
            entry, end = decode(text, _after_space(text, position + len(separator)))
        except (IndexError, json.JSONDecodeError):  # it may continue in the next chunk
            chunk = file.read(size)
            if not chunk:
                raise ValueError("cut off") from None
            text, start, size = text[start:] + chunk, 0, 2 * size
        else:
            yield entry
            start, size, separator = end, CHUNK, ","
    if text[position + 1 :].strip() or file.read().strip():
        raise ValueError("more than a list")


def _after_space(text: str, position: int) -> int:
    """The position of the next character that is not white space."""
    match = SPACE.match(text, position)
    return match.end() if match else position
