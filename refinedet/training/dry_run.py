"""What a training would be: its length, its learning rates, what it takes; nothing is written."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refinedet.data.batch import training_objects
from refinedet.data.dataset import Dataset
from refinedet.errors import TrainingError
from refinedet.models.checkpoint import Checkpoint
from refinedet.settings import Settings
from refinedet.spec.config import NETWORK_STRIDES, Config, ScheduleConfig, replace
from refinedet.spec.network import Parameters, forward_and_backward, parameter_count
from refinedet.spec.schedule import learning_rate
from refinedet.training.loop import starting_point

NUMBER = 4
"""Bytes of a float32."""


def plan(
    backend_name: str,
    training: Dataset,
    evaluation: Dataset | None,
    settings: Settings,
    folder: Path,
    *,
    resume: bool = False,
    initial: Parameters | None = None,
    workers: int = 1,
) -> str:
    """A run in words, after everything that ``train`` checks. Arguments and errors are its.

    Args:
        workers: that share each batch.
    """
    start = starting_point(
        training, evaluation, settings, folder, resume=resume, initial=initial, workers=workers
    )
    objects = zip(training.records, training_objects(training), strict=True)
    paths = [record.path for record, (_, labels) in objects if len(labels)]
    shown = f"{len(paths):,} images with objects of {len(training.class_names)} classes"
    rows = [
        ("training", f"{training.name}: {shown}"),
        ("evaluation", _evaluation(evaluation, settings.train.evaluate_every)),
        *_steps(backend_name, len(paths), settings, start, workers),
        *_needs(paths, settings, start, _place(folder), workers),
    ]
    return "\n".join(f"{name:<14}{text}" for name, text in rows)


def _evaluation(evaluation: Dataset | None, every: int) -> str:
    if evaluation is None:
        return "none"
    when = f"every {every:,} steps and after the last" if every else "after the last step"
    return f"{evaluation.name}: {len(evaluation):,} images, {when}"


def _steps(
    backend_name: str, images: int, settings: Settings, start: Checkpoint, workers: int
) -> Iterator[tuple[str, str]]:
    schedule, batch = settings.model.schedule, settings.input.batch_size
    epochs = schedule.steps * batch / images
    many = f"{batch:,} image{'s' if batch > 1 else ''}"
    on = f"{workers} devices" if workers > 1 else "one device"
    yield (
        "steps",
        f"{schedule.steps:,}, each of {many} on {on} ({backend_name}): {epochs:,.2f} epochs",
    )
    if start.steps_done:
        yield "", f"{start.steps_done:,} of the steps are done"
    name = "learning rate"
    for step in turning_points(schedule):
        last = "of the last step, " if step == schedule.steps - 1 else ""
        yield name, f"{learning_rate(step, schedule):<10.4g}{last}after {step:,} steps"
        name = ""


def turning_points(schedule: ScheduleConfig) -> list[int]:
    """The first step, the end of the warm-up, the milestones or quarters of the fall, the last."""
    if schedule.kind == "multistep":
        turns = list(schedule.milestones)
    else:
        fall = schedule.steps - schedule.warmup_steps
        turns = [schedule.warmup_steps + fall * quarter // 4 for quarter in (1, 2, 3)]
    last = schedule.steps - 1
    return sorted({step for step in (0, schedule.warmup_steps, *turns, last) if step <= last})


def _needs(
    paths: list[Path], settings: Settings, start: Checkpoint, place: Path, workers: int
) -> Iterator[tuple[str, str]]:
    config, batch = settings.model, settings.input.batch_size // workers
    trained = parameter_count(config)
    held = sum(parameter.size for parameter in start.parameters.values())
    yield "parameters", f"{trained:,} trained; with running statistics {held:,}"
    fixed = NUMBER * (held + 2 * trained)
    image = activation_bytes(config, start.parameters)
    half = config.optimizer.precision == "float16"
    least = "about" if half else "at least"
    each = " a device" if workers > 1 else ""
    saved = ", float16 takes less" if half else ""
    yield "memory", f"{least} {_bytes(fixed + batch * image)}{each}, in float32{saved}:"
    yield "", f"{_bytes(fixed)} for parameters, gradients and momentum, and"
    yield "", f"{_bytes(image)} an image for the activations that the way back needs,"
    yield "", "as the specification's forward pass keeps them. Buffers of a framework come on top:"
    yield "", "refinedet_vgg16_320 at batch 8 was seen to peak at 8.1 GB, with MindSpore on a CPU"
    # While one is written, all that are kept are still there.
    file, files = NUMBER * (held + trained), settings.train.keep + 1
    cache = sum(path.stat().st_size for path in paths)
    free = shutil.disk_usage(place).free
    enough = "" if files * file + cache <= free else ": not enough"
    yield "disk", f"{_bytes(files * file + cache)}: {_bytes(cache)} for the cache of the images,"
    yield "", f"{_bytes(file)} for each of {files} checkpoints, one of them being written;"
    yield "", f"{_bytes(free)} are free in {place}{enough}"


def activation_bytes(config: Config, parameters: Parameters) -> int:
    """Bytes that a training keeps of one image, in float32, to find the gradients.

    Counted while the specification's forward pass runs on the smallest image: every feature
    map grows with the image's area, as its sides are multiples of the coarsest stride.

    Args:
        parameters: any, of this config.
    """
    side = NETWORK_STRIDES[-1]
    small = replace(config, image_size=(side, side))
    image = np.zeros((1, 3, side, side), np.float32)
    tracemalloc.start()
    try:
        kept = forward_and_backward(parameters, image, small)
        counted = tracemalloc.get_traced_memory()[0]
        del kept
    finally:
        tracemalloc.stop()
    height, width = config.image_size
    return counted * height * width // side**2


def _place(folder: Path) -> Path:
    """The run's folder, or the nearest one above it, where it will be made."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise TrainingError(f"cannot be made in {place}; choose another --run", path=folder)
    return place


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
