"""Benchmarks: what each part costs here, side by side in one run.

Every row that runs a network is measured in a process of its own, so that its peak
memory is its own. Times drift with the machine: compare rows of one run.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from refinedet.backends.registry import BackendChoice
from refinedet.data.augment import augment, normaliser
from refinedet.data.batch import Batch
from refinedet.data.images import decode_image
from refinedet.data.samples import SampleMaker
from refinedet.data.targets import ArmTargets
from refinedet.errors import BackendError
from refinedet.inference.postprocessing import postprocess
from refinedet.settings import InputSettings
from refinedet.spec import config as configs
from refinedet.spec.anchors import anchors
from refinedet.spec.config import Config
from refinedet.spec.network import initial_parameters
from refinedet.spec.types import Array

OBJECTS = 7
"""Objects in an image, about COCO's mean."""
IMAGE = (480, 640)
"""Height and width of an image of the input pipeline."""
SLOTS = 32
"""Padded slots for objects in a training batch."""
UNLIMITED = "ALL"
"""oneDNN's word for no limit."""


class Row(NamedTuple):
    """One figure."""

    name: str
    seconds: float
    """Median of the repetitions; for a network, of one batch."""
    first: float | None = None
    """Seconds of the first call, in which a graph is compiled."""
    peak_bytes: int | None = None
    """Largest resident size of the row's process."""
    backend: str = ""
    """What computed it, for a network."""


def median_seconds(work: Callable[[], object], repeat: int) -> float:
    """Median duration of ``repeat`` calls after one that does not count."""
    work()
    durations = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def random_objects(rng: np.random.Generator, config: Config) -> tuple[Array, Array]:
    """A typical image's objects: boxes (7, 4) float32 fractions, labels (7,) int32."""
    size = rng.uniform(0.05, 0.5, (OBJECTS, 2))
    low = rng.uniform(0, 1 - size)
    labels = rng.integers(1, config.num_classes, OBJECTS).astype(np.int32)
    return np.hstack([low, low + size]).astype(np.float32), labels


def random_batch(config: Config, size: int) -> Batch:
    """A batch of noise with random objects."""
    rng = np.random.default_rng(0)
    match = ArmTargets(config)
    rows = []
    for _ in range(size):
        image = rng.normal(0, 50, (3, *config.image_size)).astype(np.float32)
        boxes, labels = random_objects(rng, config)
        padding = SLOTS - OBJECTS
        padded = np.pad(boxes, ((0, padding), (0, 0))), np.pad(labels, (0, padding))
        rows.append((image, *padded, *match(boxes, labels)))
    return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))


def network_row(work: str, chosen: BackendChoice, config: Config, repeat: int) -> Row:
    """``forward N`` or ``train N`` in this process, N images a batch."""
    kind, size = work.split()
    backend = chosen.find()
    parameters = initial_parameters(config, 0)
    batch = random_batch(config, int(size))
    if kind == "forward":
        network = backend.network(config, parameters)

        def run() -> object:
            return network.scored_boxes(batch.images)
    else:
        trainer = backend.trainer(config, parameters)

        def run() -> object:
            return trainer.step(batch)

    began = time.perf_counter()
    run()
    first = time.perf_counter() - began
    seconds = median_seconds(run, repeat)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Row(work, seconds, first, peak, chosen.name)


def input_rows(config: Config, repeat: int) -> Iterator[Row]:
    """The input pipeline by stage, one thread, a 640x480 JPEG with 7 objects."""
    rng = np.random.default_rng(0)
    height, width = IMAGE
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    encoded = cv2.imencode(".jpg", cv2.resize(coarse, (width, height)))[1].tobytes()
    image = decode_image(encoded, "benchmark")
    fractions, labels = random_objects(rng, config)
    boxes = fractions * np.array([width, height, width, height], np.float32)
    settings = InputSettings()
    match, normalise = ArmTargets(config), normaliser(config.image)
    make = SampleMaker(config, settings, SLOTS)
    small = cv2.resize(image, config.image_size[::-1])
    positions = iter(range(10**9))

    def augmented() -> object:
        seeded = np.random.default_rng(next(positions))
        return augment(
            image, boxes, labels, seeded, settings.augment, config.image_size, config.image
        )

    def sample() -> object:
        position = np.int64(next(positions))
        return make(np.frombuffer(encoded, np.uint8), boxes, labels, position)

    stages: dict[str, Callable[[], object]] = {
        "input: decode": lambda: decode_image(encoded, "benchmark"),
        "input: augment and resize": augmented,
        "input: normalise": lambda: normalise(small),
        "input: match and encode": lambda: match(fractions, labels),
        "input: whole sample": sample,
    }
    for name, work in stages.items():
        yield Row(name, median_seconds(work, repeat * 40))


def detection_rows(config: Config, repeat: int) -> Iterator[Row]:
    """Post-processing of an image with few and with many candidates.

    Sparse: 200 scores above the threshold. Dense: a fifth of all scores, as early in
    training; with the preset's limit before the suppression, and without.
    """
    rng = np.random.default_rng(0)
    boxes = anchors(config)
    shape = len(boxes), config.num_classes
    options = config.detection
    unlimited = configs.replace(config, detection={"top_before_nms": None}).detection

    def scores(above: Array) -> Array:
        low, high = rng.uniform(0, options.score, shape), rng.uniform(options.score, 1, shape)
        mixed: Array = np.where(above, high, low).astype(np.float32)
        return mixed

    few = np.zeros(shape, bool)
    few[:, 1:].flat[rng.choice(shape[0] * (shape[1] - 1), 200, replace=False)] = True
    sparse, dense = scores(few), scores(rng.random(shape) < 0.2)
    for name, case, limits in (
        ("detections: sparse", sparse, options),
        ("detections: dense", dense, options),
        ("detections: dense, no limit before NMS", dense, unlimited),
    ):

        def work(case: Array = case, limits: configs.DetectionConfig = limits) -> object:
            return postprocess(boxes, case, limits)

        yield Row(name, median_seconds(work, repeat * 2))


def measure(choices: Sequence[BackendChoice], config: Config, repeat: int) -> Iterator[Row]:
    """All rows, as they are measured; those of the same work by several backends in a row.

    Raises:
        BackendError: an unknown backend, or one that fails in a row's process.
    """
    engines = [(chosen, chosen.find("network")) for chosen in choices]
    yield from input_rows(config, repeat)
    yield from detection_rows(config, repeat)
    for work in ("forward 1", "forward 8", "train 8"):
        for chosen, backend in engines:
            if "trainer" in backend.capabilities or not work.startswith("train"):
                yield _in_process(work, chosen, config, repeat, {})
    for chosen, backend in engines:
        if own := backend.environment:  # what its own limits are worth
            row = _in_process("forward 1", chosen, config, 1, dict.fromkeys(own, UNLIMITED))
            shown = ", ".join(f"{name}={value}" for name, value in own.items())
            yield row._replace(name=f"forward 1, without {shown}")


def _in_process(
    work: str, chosen: BackendChoice, config: Config, repeat: int, environment: Mapping[str, str]
) -> Row:
    done = subprocess.run(
        [sys.executable, "-m", "refinedet.benchmark.run"],
        input=pickle.dumps((work, chosen, config, repeat)),
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"ended with status {done.returncode}: {last}", key=f"bench {work}")
    return Row(*json.loads(done.stdout.splitlines()[-1]))


def table(rows: list[Row]) -> str:
    """The rows as aligned text; each backend's time as a share of the first one's."""
    lines = [f"{'':44}{'median':>12}{'first call':>12}{'peak memory':>13}{'ratio':>8}"]
    of_the_first: dict[str, Row] = {}
    for row in rows:
        shown = f"{row.seconds * 1e3:.2f} ms" if row.seconds < 1 else f"{row.seconds:.2f} s"
        first = "" if row.first is None else f"{row.first:.1f} s"
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.2f} GB"
        other = of_the_first.setdefault(row.name, row)
        ratio = "" if other is row else f"{row.seconds / other.seconds:.2f}"
        name = f"{row.name}, {row.backend}" if row.backend else row.name
        lines.append(f"{name:44}{shown:>12}{first:>12}{peak:>13}{ratio:>8}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(network_row(*pickle.load(sys.stdin.buffer))))
