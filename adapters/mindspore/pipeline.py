"""Training batches through MindRecord and ``mindspore.dataset``.

The images' files and their objects are written once to a MindRecord cache, which is read in
the order of ``refinedet.data.samples``. MindSpore's loader threads decode and augment in
parallel.
"""

from __future__ import annotations

import functools
import json
import operator
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import mindspore.dataset as ds
import numpy as np
from mindspore.mindrecord import FileWriter

from refinedet.backends.process_group import ALONE, Group, by_first
from refinedet.data.batch import Batch, slot_count, training_objects
from refinedet.data.batches import fingerprint, report_left_out, training_images
from refinedet.data.dataset import Dataset
from refinedet.data.samples import SampleMaker, reading_order
from refinedet.data.sharding import of_rank
from refinedet.errors import DataError
from refinedet.settings import InputSettings
from refinedet.spec.config import Config

FORMAT = 1
"""Counts up when the cache's content changes its meaning."""

SCHEMA = {
    "image": {"type": "bytes"},
    "boxes": {"type": "float32", "shape": [-1, 4]},
    "labels": {"type": "int32", "shape": [-1]},
}
STEPS_A_CHUNK = 500
"""Steps that one MindSpore pipeline serves; bounds its list of indices."""


def build_cache(dataset: Dataset, folder: Path) -> tuple[Path, int, int]:
    """The MindRecord file of a data set, made unless it is there already.

    It is written in a folder beside the goal and renamed when complete. Images
    that cannot be decoded, or have no object to train on, are left out.

    Args:
        folder: where the cache lives; replaced if made from something else.
    Returns:
        The file, the number of images in it, and of those left out as unreadable.
    Raises:
        DataError: nothing to train on, or the disk is full.
    """
    mark = f"{FORMAT}-{fingerprint(dataset)}"
    note, file = folder / "cache.json", folder / "images.mindrecord"
    try:
        known = json.loads(note.read_text())
        if known["fingerprint"] == mark and file.exists():
            return file, int(known["images"]), int(known["unreadable"])
    except (OSError, ValueError, KeyError):
        pass

    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        written, unreadable = _write_records(dataset, fresh / file.name)
        content = {"fingerprint": mark, "images": written, "unreadable": unreadable}
        (fresh / note.name).write_text(json.dumps(content))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot write the image cache: {error}", path=folder) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return file, written, unreadable


def _write_records(dataset: Dataset, file: Path) -> tuple[int, int]:
    writer = FileWriter(str(file), shard_num=1)
    writer.add_schema(SCHEMA, "images with their objects")
    written = unreadable = 0
    objects = training_objects(dataset)
    for index, encoded in training_images(dataset):
        if encoded is None:
            unreadable += 1
            continue
        boxes, labels = objects[index]
        row = {"image": encoded, "boxes": boxes, "labels": labels.astype(np.int32)}
        writer.write_raw_data([row])
        written += 1
    writer.commit()
    return written, unreadable


def batches(
    dataset: Dataset,
    config: Config,
    settings: InputSettings,
    cache: Path,
    first_step: int,
    group: Group = ALONE,
) -> Iterator[Batch]:
    """See ``Backend.batches``; with several ranks, this rank's share."""
    max_objects = slot_count(training_objects(dataset), settings.max_objects)
    file, count, unreadable = by_first(group, lambda: build_cache(dataset, cache))
    report_left_out(dataset, unreadable)
    cv2.setNumThreads(1)  # MindSpore's loader threads run in parallel
    make = SampleMaker(config, settings, max_objects)
    for step in range(first_step, config.schedule.steps, STEPS_A_CHUNK):
        last_step = min(step + STEPS_A_CHUNK, config.schedule.steps)
        first, last = (s * settings.batch_size for s in (step, last_step))
        parts = [
            of_rank(part, settings.batch_size, group.rank, group.size)
            for part in reading_order(count, settings.seed, first, last)
        ]
        parts = [part for part in parts if len(part.indices)]
        images = [
            ds.MindDataset(
                str(file),
                list(SCHEMA),
                num_parallel_workers=1,
                sampler=ds.SubsetSampler(part.indices.tolist()),
            )
            for part in parts
        ]
        positions = ds.NumpySlicesDataset(
            np.concatenate([part.positions for part in parts]), ["position"], shuffle=False
        )
        rows = ds.zip((functools.reduce(operator.add, images), positions))
        samples = rows.map(
            make,
            input_columns=["image", "boxes", "labels", "position"],
            output_columns=list(Batch._fields),
            num_parallel_workers=settings.workers,
        )
        batched = samples.project(list(Batch._fields)).batch(settings.batch_size // group.size)
        for arrays in batched.create_tuple_iterator(num_epochs=1, output_numpy=True):
            yield Batch(*arrays)
