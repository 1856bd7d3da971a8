"""Level *detections*: the same parameters and images give the same detections and mAP."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from refinedet.backends.reference import SpecNetwork
from refinedet.conformance import inputs
from refinedet.conformance.checks.network import WITH_BATCH_NORM
from refinedet.conformance.comparison import CheckedBackend, CheckFailedError, in_a_line
from refinedet.conformance.margin import MARGIN, perturbed
from refinedet.conformance.registry import check
from refinedet.data.augment import normaliser, resize_only
from refinedet.data.dataset import Dataset, Object, make_record
from refinedet.evaluation.metrics import Evaluator
from refinedet.inference.predictor import Predictor
from refinedet.spec.config import replace
from refinedet.spec.detection import Detections, detect
from refinedet.spec.network import Parameters
from refinedet.spec.types import Array

CONFIG = replace(
    WITH_BATCH_NORM,
    loss={"objectness": 0.2},
    detection={"score": 0.3, "top_before_nms": None, "nms_iou": 0.3, "top": 40},
)
SIZES = [(48, 100), (150, 90), (64, 128), (33, 70)]
"""Height and width of the images, in pixels."""


def confident_parameters(seed: int) -> Parameters:
    """Parameters whose scores are far apart."""
    parameters = inputs.seeded_parameters(CONFIG, seed)
    for name in parameters:
        if name.startswith(("arm.", "odm.")) and "logits" in name:
            parameters[name] = parameters[name] * np.float32(6)
    return parameters


def eight_bit_images(seed: int) -> list[Array]:
    """Noise of several sizes, (H, W, 3) uint8."""
    rng = np.random.default_rng([seed, 5])
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def expected_detections(seed: int) -> tuple[list[Detections], list[bool]]:
    """The specification's detections in pixels, and for each image whether all are decided."""
    network = SpecNetwork(CONFIG, confident_parameters(seed))
    normalise = normaliser(CONFIG.image)
    expected, decided = [], []
    for image in eight_bit_images(seed):
        batch = normalise(resize_only(image, CONFIG.image_size))[None]
        boxes, scores = (part[0] for part in network.scored_boxes(batch))
        one = detect(boxes, scores, CONFIG.detection)
        again = [
            detect(b, s, CONFIG.detection)
            for b, s in zip(perturbed(boxes, seed), perturbed(scores, seed + 1), strict=True)
        ]
        decided.append(all(_same_objects(one, other) for other in again))
        height, width = image.shape[:2]
        expected.append(one._replace(boxes=one.boxes * np.array([width, height] * 2, np.float32)))
    return expected, decided


def _same_objects(one: Detections, other: Detections) -> bool:
    return np.array_equal(one.labels, other.labels) and np.allclose(
        one.boxes, other.boxes, rtol=0, atol=10 * MARGIN
    )


@check("detections", "detections.objects", pinned=[0, 1, 2], max_undecided=0.5)
def objects(backend: CheckedBackend, seed: int) -> None:
    """In images of any size the detections are the specification's, in pixels and in order."""
    expected, decided = expected_detections(seed)
    network = backend.network(CONFIG, confident_parameters(seed))
    predictor = Predictor(network, batch_size=3)

    def predict(images: list[Array]) -> list[Detections]:
        return list(predictor.predict(images))

    try:
        actual = predict(eight_bit_images(seed))
    except Exception as error:
        raise CheckFailedError(f"predicting raises {in_a_line(error)}") from error
    for n, (one, other, is_decided) in enumerate(zip(actual, expected, decided, strict=True)):
        backend.compared += 1
        backend.undecided += not is_decided
        if is_decided:
            backend.require(
                np.array_equal(one.labels, other.labels),
                f"the labels in image {n} differ",
                one,
                other,
            )
            backend.compare("detections", one, other)


@check("detections", "detections.map", pinned=[0])
def mean_average_precision(backend: CheckedBackend, seed: int) -> None:
    """COCO's mAP on a small data set is the specification's, within 1e-4.

    The ground truth is half of the specification's detections, shifted a little, so that the mAP
    is neither 0 nor 1.
    """
    expected, _ = expected_detections(seed)
    rng = np.random.default_rng(seed)
    records = []
    for n, (size, one) in enumerate(zip(SIZES, expected, strict=True)):
        height, width = size
        ground_truth = []
        for b, label in list(zip(one.boxes, one.labels, strict=True))[::2]:
            sides = np.tile(b[2:] - b[:2], 2)
            shifted = (b + rng.uniform(-0.12, 0.12, 4) * sides).clip(0, (width, height) * 2)
            x0, y0, x1, y1 = (float(x) for x in shifted)
            ground_truth.append(Object((x0, y0, x1, y1), int(label)))
        records.append(make_record(n + 1, Path(f"{n}.png"), (width, height), ground_truth))
    names = tuple("abc"[: CONFIG.num_classes - 1])
    dataset = Dataset("conformance", names, records)
    predictor = Predictor(backend.network(CONFIG, confident_parameters(seed)))
    metrics = []
    for detections in (predictor.predict(eight_bit_images(seed)), iter(expected)):
        evaluator = Evaluator(dataset)
        for record, one in zip(records, detections, strict=True):
            evaluator.add(record.image_id, one)
        metrics.append(evaluator.result().metrics["AP"])
    backend.require_near(metrics[0], metrics[1], "detections.map", "COCO mAP")
