"""The .bin files that the model zoo's program for Ascend 310 writes, evaluated.

Two files an image, numbers of 4 bytes (float32, low byte first) and nothing else. With A
anchors and K classes, the background included:

    NAME_0.bin    (A, 4) boxes: y_min, x_min, y_max, x_max as fractions of the image
    NAME_1.bin    (A, K) scores

NAME is the image's, up to its first dot. One image's files are in memory at a time.

Source: MindSpore model zoo, research/cv/RefineDet: ascend310_infer/src/utils.cc (WriteResult),
postprocess.py, src/box_utils.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from refinedet.data.dataset import Dataset, Record
from refinedet.data.files import read_file
from refinedet.errors import DataError, UsageError
from refinedet.evaluation.coco_results import write_results
from refinedet.evaluation.dataset_run import scoring_bar, write_evaluation
from refinedet.evaluation.metrics import Evaluation, Evaluator
from refinedet.evaluation.protocols import Protocol, counted_images, protocol_detection
from refinedet.inference.postprocessing import postprocess
from refinedet.inference.predictor import in_pixels
from refinedet.models import run_folder
from refinedet.spec.anchors import anchors
from refinedet.spec.config import replace
from refinedet.spec.errors import SpecError
from refinedet.spec.presets import preset
from refinedet.spec.types import Array
from refinedet.support.files import make_folder

ZOO = "modelzoo_vgg16_320"
"""The preset whose files the zoo's postprocess.py reads."""
ROUNDING = 1e-3
"""By how much a score may be outside 0 to 1: an Ascend 310 computes in float16."""


def evaluate_modelzoo_bins(
    folder: Path,
    dataset: Dataset,
    preset_name: str = ZOO,
    protocol: Protocol | None = None,
    output: Path | None = None,
) -> Evaluation:
    """Evaluate .bin files; write metrics and detections if an output folder is given.

    Args:
        folder: with two files of every image that counts.
        dataset: its classes are the detector's, in their order.
        preset_name: of the detector; gives the number of anchors and the detection settings.
        protocol: None takes all images, and the preset's own detection settings.
    Raises:
        SpecError: no such preset.
        UsageError: a protocol that fuses several views of an image; an output that is a
            file.
        DataError: no folder; a file that is missing, of another size or with wrong numbers;
            images that share files.
    """
    config = replace(preset(preset_name), num_classes=len(dataset.class_names) + 1)
    dataset.require_usable()
    detection = config.detection
    if protocol is not None:
        if protocol.fusions:
            raise UsageError(
                f"{protocol.name} fuses detections of several views; .bin files hold one view",
                key="protocol",
            )
        detection = protocol_detection(protocol, detection)
        dataset = counted_images(protocol, dataset)
    if not folder.is_dir():
        raise DataError("no such folder", path=folder)
    if output is not None and output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; choose a folder", key="output")
    count, evaluator = len(anchors(config)), Evaluator(dataset)
    paths = list(_paths(folder, dataset))
    bar = tqdm(paths, "evaluating", disable=None, delay=2, unit="image", leave=False)
    for record, (boxes_file, scores_file) in zip(dataset.records, bar, strict=True):
        boxes = _read(boxes_file, count, 4, config.num_classes, preset_name)
        scores = _read(scores_file, count, config.num_classes, config.num_classes, preset_name)
        _require_plausible(boxes_file, boxes, scores_file, scores)
        size = record.height, record.width
        corners = np.ascontiguousarray(boxes[:, [1, 0, 3, 2]])
        try:
            detections = postprocess(corners, scores, detection, size)
        except SpecError as error:
            raise DataError(error.reason, path=boxes_file, key=error.key) from error
        evaluator.add(record.image_id, in_pixels(detections, size))
    if output is None:
        return evaluator.result(scoring_bar)
    make_folder(output)
    write_results(output / run_folder.RESULTS, dataset.category_ids, evaluator.detections)
    return write_evaluation(output, evaluator)


def _paths(folder: Path, dataset: Dataset) -> Iterator[tuple[Path, Path]]:
    """The files of every image."""
    names: dict[str, Record] = {}
    for record in dataset.records:
        name = record.path.name.split(".")[0]
        other = names.setdefault(name, record)
        if other is not record:
            raise DataError(
                f"{other.path.name} and {record.path.name} share the files {name}_0.bin "
                f"and {name}_1.bin; keep the images in two data sets, or rename one",
                path=folder,
            )
        yield folder / f"{name}_0.bin", folder / f"{name}_1.bin"


def _require_plausible(boxes_file: Path, boxes: Array, scores_file: Path, scores: Array) -> None:
    """Refuse numbers of another kind, whose metrics would be meaningless."""
    wrong = np.flatnonzero((scores < -ROUNDING).any(axis=1) | (scores > 1 + ROUNDING).any(axis=1))
    if wrong.size:
        raise DataError(
            f"row {int(wrong[0])} holds a number that is not from 0 to 1; scores "
            "are expected, after sigmoid or softmax",
            path=scores_file,
        )
    # A decoder need not clip, but boxes of background stay near their anchors: in the image.
    outside = (boxes[:, :2] > 1).any(axis=1) | (boxes[:, 2:] < 0).any(axis=1)
    if 2 * np.count_nonzero(outside) > len(boxes):
        raise DataError(
            f"{np.count_nonzero(outside)} of {len(boxes)} boxes are outside the "
            "image; fractions of it are expected, not pixels",
            path=boxes_file,
        )


def _read(path: Path, rows: int, columns: int, classes: int, preset_name: str) -> Array:
    """The (rows, columns) float32 of a file, all finite."""
    data = read_file(path)
    if len(data) != rows * columns * 4:
        raise DataError(
            f"has {len(data)} bytes, {rows} x {columns} numbers of 4 bytes are expected; is "
            f"{preset_name} the detector, with {classes - 1} classes?",
            path=path,
        )
    numbers: Array = np.frombuffer(data, "<f4").astype(np.float32).reshape(rows, columns)
    wrong = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if wrong.size:
        raise DataError(f"row {int(wrong[0])} holds a number that is not finite", path=path)
    return numbers
