"""How much memory an evaluation of COCO's size needs, without COCO.

    python tests/evaluation/memory.py --protocol paper

A fake network draws scores for 6,375 anchors and 80 classes; everything after it is real:
selection, suppression, the journal, the results file, metrics, tables and samples. Then the
results file is scored alone. Each part runs in a process of its own.

    python tests/evaluation/memory.py --lite refinedet_eighth_128
    python tests/evaluation/memory.py --results-bin

The first runs a real network of that preset on MindSpore Lite, whose processes it measures
too; REFINEDET_LITE_PYTHON names their interpreter. The second reads the model zoo's result
files, 2.1 MB an image; all images share two files on the disk.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refinedet.backends.registry import find_backend
from refinedet.data.formats.coco import read_coco
from refinedet.evaluation.coco_results import evaluate_coco_results, write_results
from refinedet.evaluation.dataset_run import collect_detections, write_evaluation
from refinedet.evaluation.modelzoo_bins import evaluate_modelzoo_bins
from refinedet.evaluation.protocols import find_protocol, with_protocol
from refinedet.evaluation.resume_journal import ResumeJournal, evaluation_subject
from refinedet.inference.multiscale import MultiScalePredictor
from refinedet.inference.predictor import Predictor
from refinedet.spec.anchors import anchors
from refinedet.spec.network import initial_parameters
from refinedet.spec.presets import preset
from refinedet.support.files import write_json

OBJECTS = 7
WIDTH, HEIGHT = 640, 480
CANDIDATES = 4000
"""Scores above 0 of an image."""


class FakeNetwork:
    """Random scores, for boxes that are the anchors."""

    def __init__(self) -> None:
        self.config = preset("refinedet_vgg16_320")
        self.boxes = anchors(self.config).astype(np.float32)
        self.rng = np.random.default_rng(0)

    def scored_boxes(self, images: Any) -> tuple[Any, Any]:
        """Of the shapes that a real network gives."""
        scores = np.zeros((len(images), len(self.boxes), 81), np.float32)
        for table in scores.reshape(len(images), -1):
            table[self.rng.integers(0, table.size, CANDIDATES)] = self.rng.random(CANDIDATES)
        return np.repeat(self.boxes[None], len(images), 0), scores


def write_data(folder: Path, count: int) -> None:
    """COCO's layout: ``count`` identical images."""
    rng = np.random.default_rng(1)
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "image.jpg"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    images: list[Any] = []
    annotations: list[Any] = []
    for image_id in range(1, count + 1):
        (folder / "images" / f"{image_id}.jpg").hardlink_to(folder / "image.jpg")
        size = {"width": WIDTH, "height": HEIGHT}
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", **size})
        for _ in range(OBJECTS):
            box = [*rng.integers(0, 300, 2).tolist(), *rng.integers(8, 170, 2).tolist()]
            category = int(rng.integers(1, 81))
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "bbox": box}
            annotations.append(annotation | {"category_id": category, "iscrowd": 0})
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "annotations.json", document)


def megabytes(field: str) -> float:
    """A field of the process's status: VmRSS now, VmHWM the highest so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not report a process's memory")


def measured(what: str, work: Callable[[], Any]) -> None:
    """Print by how much the memory rises in ``work``, and how long it takes."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is the present
    before, began = megabytes("VmRSS"), time.monotonic()
    work()
    rise = megabytes("VmHWM") - before
    print(f"{what}: +{rise:.0f} MB over {before:.0f} MB, {time.monotonic() - began:.0f} s")


def evaluation(folder: Path, name: str, images: int, lite: str | None = None) -> None:
    """Evaluate the fake network, or one on Lite, as ``refinedet eval --output`` does."""
    dataset = read_coco(folder / "annotations.json", folder / "images")
    dataset = replace(dataset, records=dataset.records[:images])
    if lite is None:
        network = FakeNetwork()
    else:
        config = preset(lite)
        config = replace(config, num_classes=81)
        network = find_backend("mindspore-lite", "network").network(
            config, initial_parameters(config, 0)
        )
    network = with_protocol(find_protocol(name), network)
    fusion, predict = find_protocol(name).fusion(network.config), Predictor(network).predict
    if fusion is not None:
        predict = MultiScalePredictor(network, fusion, lambda _: network).predict

    def work() -> None:
        subject = evaluation_subject("fake", network.config, "fake", dataset, fusion)
        journal = ResumeJournal(folder / "unfinished.jsonl", subject)
        evaluator = collect_detections(predict, dataset, journal)
        count = sum(len(one.labels) for one in evaluator.detections.values())
        print(f"{len(dataset)} images, {count} detections")
        write_results(folder / "results.json", dataset.category_ids, evaluator.detections)
        write_evaluation(folder, evaluator)
        journal.close()

    measured("evaluation", work)
    if lite is not None:
        del network, predict, work
        gc.collect()  # ends the Lite process; the system then reports its peak
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"Lite's processes: {peak:.0f} MB")


def modelzoo_bins(folder: Path, name: str) -> None:
    """Evaluate result files, as ``refinedet eval --results-bin`` does."""
    dataset = read_coco(folder / "annotations.json", folder / "images")
    network, files = FakeNetwork(), folder / "result_Files"
    files.mkdir()
    boxes, scores = network.scored_boxes(np.zeros((1, 3, 320, 320), np.float32))
    corners = np.sort(boxes.clip(0, 1).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    for number, content in enumerate((corners[:, [1, 0, 3, 2]], scores)):
        one = files / f"any_{number}.bin"
        one.write_bytes(np.ascontiguousarray(content).tobytes())
        for record in dataset.records:
            (files / f"{record.path.stem}_{number}.bin").hardlink_to(one)
    measured(
        "result files",
        lambda: evaluate_modelzoo_bins(files, dataset, protocol=find_protocol(name), output=folder),
    )


def scoring(folder: Path) -> None:
    """Score the results file, as ``refinedet eval --results`` does."""
    size = (folder / "results.json").stat().st_size / 2**20
    work = lambda: evaluate_coco_results(folder / "results.json", folder / "annotations.json")  # noqa: E731
    measured(f"scoring a results file of {size:.0f} MB", work)


def main() -> None:
    """Make the data, then measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--protocol", default="paper")
    parser.add_argument("--lite", metavar="PRESET", help="a network on MindSpore Lite")
    parser.add_argument("--results-bin", action="store_true", help="the model zoo's files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, arguments.images)
        steps: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
            (
                evaluation,
                (folder, arguments.protocol, arguments.images, arguments.lite),
            ),
            (scoring, (folder,)),
        ]
        if arguments.results_bin:
            steps = [(modelzoo_bins, (folder, arguments.protocol))]
        for step, given in steps:
            process = multiprocessing.get_context("spawn").Process(target=step, args=given)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
