"""A training described before it begins: length, learning rates, memory and disk."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refinedet.data.batch import training_objects
from refinedet.data.dataset import Dataset
from refinedet.models.checkpoint import Checkpoint
from refinedet.settings import Settings
from refinedet.spec.config import NETWORK_STRIDES, Config, ScheduleConfig, replace
from refinedet.spec.network import Parameters, forward_and_backward, parameter_count
from refinedet.spec.schedule import learning_rate
from refinedet.training.preparation import PreparedTraining

FLOAT32_BYTES = 4


def describe(prepared: PreparedTraining) -> str:
    """A training in words: its data, length, learning rates, and the memory and disk it needs."""
    training, settings, ranks = prepared.training, prepared.settings, prepared.group.size
    objects = zip(training.records, training_objects(training), strict=True)
    paths = [record.path for record, (_, labels) in objects if len(labels)]
    counts = f"{len(paths):,} images with objects of {len(training.class_names)} classes"
    rows = [
        ("training", f"{training.name}: {counts}"),
        ("evaluation", _evaluation(prepared.evaluation, settings.train.evaluate_every)),
        *_steps(prepared.backend.name, len(paths), settings, prepared.start, ranks),
        *_memory(settings, prepared.start, ranks),
        *_disk(paths, settings, prepared.start, prepared.folder),
    ]
    return "\n".join(f"{name:<14}{text}" for name, text in rows)


def _evaluation(evaluation: Dataset | None, every: int) -> str:
    if evaluation is None:
        return "none"
    when = f"every {every:,} steps and after the last" if every else "after the last step"
    return f"{evaluation.name}: {len(evaluation):,} images, {when}"


def _steps(
    backend_name: str, images: int, settings: Settings, start: Checkpoint, ranks: int
) -> Iterator[tuple[str, str]]:
    schedule, batch = settings.model.schedule, settings.input.batch_size
    epochs = schedule.steps * batch / images
    batches = f"{batch:,} image{'s' if batch > 1 else ''}"
    devices = f"{ranks} devices" if ranks > 1 else "one device"
    yield (
        "steps",
        f"{schedule.steps:,}, each of {batches} on {devices} ({backend_name}): "
        f"{epochs:,.2f} epochs",
    )
    if start.steps_done:
        yield "", f"{start.steps_done:,} of the steps are done"
    name = "learning rate"
    for step in turning_points(schedule):
        last = " (the last step)" if step == schedule.steps - 1 else ""
        yield name, f"{learning_rate(step, schedule):<10.4g}after {step:,} steps{last}"
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


def _memory(settings: Settings, start: Checkpoint, ranks: int) -> Iterator[tuple[str, str]]:
    config, batch = settings.model, settings.input.batch_size // ranks
    trained, stored = parameter_count(config), _stored(start)
    yield "parameters", f"{trained:,} trained; {stored:,} with running statistics"
    fixed = FLOAT32_BYTES * (stored + 2 * trained)
    image = activation_bytes(config, start.parameters)
    half = config.optimizer.precision == "float16"
    least = "about" if half else "at least"
    device = " per device" if ranks > 1 else ""
    less = ", less in float16" if half else ""
    yield "memory", f"{least} {_bytes(fixed + batch * image)}{device} in float32{less}:"
    yield "", f"{_bytes(fixed)} for parameters, gradients and momentum buffers, and"
    yield "", f"{_bytes(image)} per image for the activations that the backward pass needs."
    yield "", "A framework's own buffers come on top: MindSpore on a CPU peaked at 8.1 GB"
    yield "", "with refinedet_vgg16_320 at batch 8."


def _disk(
    paths: list[Path], settings: Settings, start: Checkpoint, run: Path
) -> Iterator[tuple[str, str]]:
    # While one checkpoint is written, all that are kept are still there.
    file = FLOAT32_BYTES * (_stored(start) + parameter_count(settings.model))
    files = settings.train.keep + 1
    cache = sum(path.stat().st_size for path in paths)
    existing = next(p for p in (run, *run.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    enough = "" if files * file + cache <= free else ": not enough"
    yield "disk", f"{_bytes(files * file + cache)}: {_bytes(cache)} for the cache of the images,"
    yield "", f"{_bytes(file)} for each of {files} checkpoints, one of them being written;"
    yield "", f"{_bytes(free)} are free in {existing}{enough}"


def _stored(start: Checkpoint) -> int:
    return sum(parameter.size for parameter in start.parameters.values())


def activation_bytes(config: Config, parameters: Parameters) -> int:
    """Bytes of float32 activations per image that the backward pass needs.

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
        tape = forward_and_backward(parameters, image, small)
        counted = tracemalloc.get_traced_memory()[0]
        del tape
    finally:
        tracemalloc.stop()
    height, width = config.image_size
    return counted * height * width // side**2


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
