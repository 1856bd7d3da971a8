"""A detector run on a data set: detections of every image, metrics, and the result files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from refinedet.backends.interface import Network
from refinedet.backends.process_group import ALONE, Group
from refinedet.data.dataset import Dataset, Record
from refinedet.data.images import read_image
from refinedet.data.sharding import share
from refinedet.evaluation.metrics import Evaluation, Evaluator, evaluation_table
from refinedet.evaluation.resume_journal import ResumeJournal
from refinedet.inference.drawing import draw_detections, sheet
from refinedet.inference.predictor import Predictor, confident
from refinedet.models.run_folder import DETECTIONS_IMAGE, EVALUATION_JSON, EVALUATION_TABLE
from refinedet.spec.detection import Detections
from refinedet.spec.types import Array
from refinedet.support.files import write_atomically, write_json

Predict = Callable[[Iterable[Array]], Iterator[Detections]]
"""Images in, detections in their own pixels out; one for each, in order."""

SAMPLES = 12
"""Images on the sheet of sample detections."""
SAMPLE_SCORE = 0.5
"""Detections below this are not drawn on it."""


def evaluate(
    network: Network, dataset: Dataset, batch_size: int = 8, group: Group = ALONE
) -> Evaluator:
    """Run a network on every image of a data set, with its own detection settings."""
    predict = Predictor(network, min(batch_size, len(dataset))).predict
    return collect_detections(predict, dataset, group=group)


def collect_detections(
    predict: Predict, dataset: Dataset, journal: ResumeJournal | None = None, group: Group = ALONE
) -> Evaluator:
    """Detect on every image of a data set; keeps the final detections alone.

    Args:
        predict: as ``Predictor.predict``.
        journal: images in it are not run again; the others are added to it.
        group: each rank detects on its share; every rank gets the detections of all.
    """
    evaluator = Evaluator(dataset)
    for image_id, detections in journal.finished() if journal else ():
        evaluator.add(image_id, detections)
    done = len(evaluator.detections)
    mine = dataset.records[share(len(dataset), group.rank, group.size)]
    remaining = [record for record in mine if record.image_id not in evaluator.detections]
    results = predict(read_image(record.path) for record in remaining)
    bar = tqdm(
        remaining,
        "evaluating",
        total=done + len(remaining),
        initial=done,
        disable=None,
        delay=2,
        unit="image",
        leave=False,
    )
    for record, detections in zip(bar, results, strict=True):
        evaluator.add(record.image_id, detections)
        if journal:
            journal.add(record.image_id, detections)
    for of_rank in group.gather(evaluator.detections):
        for image_id, detections in of_rank.items():
            if image_id not in evaluator.detections:
                evaluator.add(image_id, detections)
    return evaluator


def scoring_bar(classes: Iterable[int]) -> Iterator[int]:
    """A progress bar over the classes, for ``Evaluator.result`` and ``evaluate_coco_results``."""
    return iter(tqdm(classes, "scoring", disable=None, delay=2, unit="class", leave=False))


def write_evaluation(folder: Path, evaluator: Evaluator) -> Evaluation:
    """Compute the metrics; write ``evaluation.json``, ``evaluation.txt`` and ``detections.png``."""
    evaluation = evaluator.result(scoring_bar)
    write_json(folder / EVALUATION_JSON, evaluation.as_dict(by_class=True))
    table = evaluation_table(evaluation, by_class=True)
    write_atomically(folder / EVALUATION_TABLE, table + "\n")
    records = evaluator.dataset.records
    chosen = np.unique(np.linspace(0, len(records) - 1, SAMPLES).round().astype(int))
    sheet([_drawn(records[i], evaluator) for i in chosen], 4, folder / DETECTIONS_IMAGE)
    return evaluation


def _drawn(record: Record, evaluator: Evaluator) -> Array:
    boxes, scores, labels = confident(evaluator.detections[record.image_id], SAMPLE_SCORE)
    names = evaluator.dataset.class_names
    return draw_detections(read_image(record.path), boxes, labels, scores, names)
