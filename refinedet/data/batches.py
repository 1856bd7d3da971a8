"""Batches in NumPy, for every backend without an input pipeline of its own.

All images are decoded once, to leave out those that cannot be read. Then threads
make the samples of ``refinedet.data.samples``, a few ahead of the reader.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from refinedet.data.batch import Batch, slot_count, training_objects
from refinedet.data.dataset import Dataset
from refinedet.data.findings import size_disagrees
from refinedet.data.images import decode_image
from refinedet.data.samples import SampleMaker, reading_order
from refinedet.errors import DataError
from refinedet.settings import InputSettings
from refinedet.spec.config import Config
from refinedet.spec.types import Array
from refinedet.support.files import write_json

READABLE = "readable.json"
"""File in the cache: which images can be read."""
AHEAD = 2
"""Batches that are made ahead of the reader."""

T = TypeVar("T")
R = TypeVar("R")


def fingerprint(dataset: Dataset) -> str:
    """A digest of a data set: path, size and time of every image file, and all objects.

    Raises:
        DataError: a file is missing.
    """
    digest = hashlib.sha256(json.dumps(dataset.class_names).encode())
    for record, (boxes, labels) in zip(dataset.records, training_objects(dataset), strict=True):
        try:
            status = record.path.stat()
        except OSError as error:
            raise DataError(f"{error.strerror}", path=record.path) from error
        digest.update(f"{record.path}|{status.st_size}|{status.st_mtime_ns}".encode())
        digest.update(boxes.tobytes() + labels.tobytes())
    return digest.hexdigest()


def training_images(dataset: Dataset) -> Iterator[tuple[int, bytes | None]]:
    """Index and encoded image of every record with an object to train on; None if unreadable.

    Raises:
        DataError: an image has another size than annotated; at the end, if none is readable.
    """
    readable = False
    rows = list(zip(dataset.records, training_objects(dataset), strict=True))
    bar = tqdm(rows, "reading images", disable=None, delay=2)
    for index, (record, (_, labels)) in enumerate(bar):
        if len(labels) == 0:
            continue
        try:
            encoded = record.path.read_bytes()
            height, width = decode_image(encoded, str(record.path)).shape[:2]
        except (OSError, DataError):
            yield index, None
            continue
        if (record.width, record.height) != (width, height):
            annotated = record.width, record.height
            raise DataError(size_disagrees(annotated, (width, height)), path=record.path)
        readable = True
        yield index, encoded
    if not readable:
        raise DataError("no readable image with an object to train on", key=dataset.name)


def report_left_out(dataset: Dataset, unreadable: int) -> None:
    """Print on standard error how many images are left out, if any."""
    if unreadable:
        print(f"{dataset.name}: left out {unreadable} images that cannot be read", file=sys.stderr)


def readable_images(dataset: Dataset, cache: Path) -> list[int]:
    """Indices of the records to train on; cached until the data set changes.

    Raises:
        DataError: as ``fingerprint`` and ``training_images``.
        OSError: the cache cannot be written.
    """
    state, file = fingerprint(dataset), cache / READABLE
    try:
        known = json.loads(file.read_text())
        if known["fingerprint"] != state:
            raise ValueError
        readable, unreadable = list(known["readable"]), int(known["unreadable"])
    except (OSError, ValueError, KeyError, TypeError):
        checked = [(index, encoded is not None) for index, encoded in training_images(dataset)]
        readable = [index for index, is_readable in checked if is_readable]
        unreadable = len(checked) - len(readable)
        cache.mkdir(parents=True, exist_ok=True)
        write_json(file, {"fingerprint": state, "readable": readable, "unreadable": unreadable})
    report_left_out(dataset, unreadable)
    return readable


def batches(
    dataset: Dataset, config: Config, settings: InputSettings, cache: Path, first_step: int = 0
) -> Iterator[Batch]:
    """See ``Backend.batches``; ``cache`` is a folder with one small file."""
    objects = training_objects(dataset)
    make = SampleMaker(config, settings, slot_count(objects, settings.max_objects))
    readable = readable_images(dataset, cache)
    cv2.setNumThreads(1)  # the pool below uses the processor cores

    def sample(item: tuple[int, int]) -> tuple[Array, ...]:
        position, index = item
        path = dataset.records[index].path
        try:
            return make(np.fromfile(path, np.uint8), *objects[index], np.array(position))
        except OSError as error:
            raise DataError(f"{error.strerror}", path=path) from error
        except DataError as error:
            raise DataError(error.reason, path=path, key=error.key) from error

    size = settings.batch_size
    first, last = (step * size for step in (first_step, config.schedule.steps))
    order = (
        (position, readable[index])
        for part in reading_order(len(readable), settings.seed, first, last)
        for index, position in zip(part.indices, part.positions, strict=True)
    )
    with ThreadPoolExecutor(settings.workers) as pool:
        samples = _in_order(pool, sample, order, AHEAD * size)
        for _ in range(first_step, config.schedule.steps):
            rows = [next(samples) for _ in range(size)]
            yield Batch(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[T], R], arguments: Iterable[T], ahead: int
) -> Iterator[R]:
    """``map`` in the pool's threads, at most ``ahead`` results ahead of the reader."""
    waiting: deque[Future[R]] = deque()
    for argument in arguments:
        waiting.append(pool.submit(function, argument))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
