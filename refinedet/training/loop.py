"""A run: train, save, watch, and go on after an interruption.

A run is a folder:

    settings.yaml     the resolved settings
    log.txt           what was printed
    metrics.jsonl     a JSON object for every step and every evaluation
    checkpoints/      the newest few, each complete
    curves.png        losses, learning rate and average precision over the steps
    detections.png    some images of the evaluation set with what was found
    evaluation.json   the last evaluation; evaluation.txt shows it as a table
    cache/            the training images, gathered

What a step computes depends on its number, the data set and the settings alone (see
``refinedet.data.samples``): a training that was interrupted and goes on from a
checkpoint arrives where an undisturbed one does.

Of several workers each trains and evaluates on its share of the images. The first alone
writes to the folder; the others read there what they go on from.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import cast

from tqdm import tqdm

from refinedet.backends.interface import Backend, HalfTrainer
from refinedet.backends.process_group import by_first
from refinedet.backends.registry import require_precision
from refinedet.data.batch import Batch, slot_count, training_objects
from refinedet.data.dataset import Dataset
from refinedet.errors import BackendError, CheckpointError, DataError, TrainingError
from refinedet.evaluation.dataset_run import evaluate, write_evaluation
from refinedet.models import run_folder
from refinedet.models.checkpoint import (
    Checkpoint,
    checkpoints,
    newest_checkpoint,
    require_match,
    save_checkpoint,
)
from refinedet.settings import Settings, to_yaml
from refinedet.spec.network import Parameters, initial_parameters
from refinedet.spec.schedule import learning_rate
from refinedet.support.files import write_atomically
from refinedet.training.curves import curves
from refinedet.training.journal import Journal, Silence

PATIENCE = 15.0
"""Seconds between two lines of progress where there is no terminal."""
OVERFLOWS = 40
"""Steps skipped in a row after which a run ends: 24 halvings lead from the largest loss scale
to the smallest."""
PROFILED = 3
"""Steps under the profiler; one before them compiles the graph."""
BEGUN = "step-00000000"
"""Name of the checkpoint from which a run with foreign weights begins."""


def train(
    backend: Backend,
    training: Dataset,
    evaluation: Dataset | None,
    settings: Settings,
    folder: Path,
    *,
    resume: bool = False,
    initial: Parameters | None = None,
    saved: Callable[[], None] | None = None,
    profiler: AbstractContextManager[object] | None = None,
) -> Checkpoint:
    """Train to the end of the schedule, or from the newest checkpoint on.

    Args:
        training: images with objects to train on.
        evaluation: images to evaluate on, or None.
        settings: ``model.num_classes`` is that of ``training``.
        folder: of the run; new or empty unless ``resume``.
        initial: parameters to begin with; None for fresh ones. They are kept as the
            checkpoint of step 0, so that ``resume`` never begins with others.
        saved: is called after each checkpoint, and the evaluation that goes with it; of
            several workers by the first.
        profiler: of the backend; some of the first steps are within it.
    Returns:
        The last checkpoint, which is also in the folder.
    Raises:
        TrainingError: a folder in use, nothing to resume, a batch that the workers cannot
            share, a loss that is not finite, or gradients that always overflow float16.
        DataError: a data set that cannot be used.
        BackendError: the backend does not train in this precision.
    """
    require_precision(backend, settings.model)
    group = backend.group

    def open_folder() -> bool:
        """Whether it is a new one, once the run may begin there."""
        start = starting_point(
            training,
            evaluation,
            settings,
            folder,
            resume=resume,
            initial=initial,
            workers=group.size,
        )
        new = not folder.exists()
        (folder / run_folder.CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        if start.parameters is initial:
            save_checkpoint(folder / run_folder.CHECKPOINTS, start, settings.train.keep)
        write_atomically(folder / run_folder.SETTINGS, to_yaml(settings))
        return new

    new = by_first(group, open_folder)
    start = begin(settings, folder, resume, initial)
    journal = Silence() if group.rank else Journal(folder, start.steps_done)
    try:
        return _train(
            backend, training, evaluation, settings, folder, start, journal, saved, profiler
        )
    except (BackendError, DataError, MemoryError):
        made = [path for path in checkpoints(folder / run_folder.CHECKPOINTS) if path.stem != BEGUN]
        if new and not made:  # nothing came of it
            shutil.rmtree(folder)
        raise
    finally:
        journal.close()


def starting_point(
    training: Dataset,
    evaluation: Dataset | None,
    settings: Settings,
    folder: Path,
    *,
    resume: bool = False,
    initial: Parameters | None = None,
    workers: int = 1,
) -> Checkpoint:
    """Where ``train`` begins, once it may begin. Arguments and errors are its; writes nothing.

    Args:
        workers: that share each batch.
    Returns:
        The newest checkpoint; at the beginning, the initial or fresh parameters.
    """
    training.require_usable()
    if evaluation is not None:
        evaluation.require_usable()
    slot_count(training_objects(training), settings.input.max_objects)
    if settings.input.batch_size % workers:
        raise TrainingError(
            f"{settings.input.batch_size} images cannot be shared among "
            f"{workers} workers alike; make it a multiple",
            key="input.batch_size",
        )
    if resume:
        if not (folder / run_folder.SETTINGS).exists():
            raise TrainingError("no run to resume; leave out --resume to begin one", path=folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TrainingError("is not empty; choose another --run, or --resume", path=folder)
    return begin(settings, folder, resume, initial)


def begin(settings: Settings, folder: Path, resume: bool, initial: Parameters | None) -> Checkpoint:
    """The newest checkpoint of a run that goes on; else the initial or fresh parameters."""
    if resume and (found := newest_checkpoint(folder / run_folder.CHECKPOINTS, tqdm.write)):
        require_match(found, settings)
        return found
    if initial is None:
        initial = initial_parameters(settings.model, settings.input.seed)
    return Checkpoint(settings, initial, None, 0)


def _with_progress(
    batches: Iterator[Batch], step: int, steps: int, journal: Silence
) -> Iterator[Batch]:
    """The batches, with a bar on a terminal and a line now and then elsewhere."""
    bar = tqdm(batches, "training", total=steps, initial=step, disable=None, unit="step")
    began = shown = time.monotonic()
    for done, batch in enumerate(bar):
        yield batch
        now = time.monotonic()
        if done == 0:  # the graph was compiled in it: it tells nothing of the others
            began = now
        elif bar.disable and now - shown > PATIENCE:
            left = (now - began) / done * (steps - step - done - 1)
            journal.say(f"step {step + done + 1} of {steps}, about {left / 60:.0f} minutes left")
            shown = now


def _profiled(
    batches: Iterator[Batch], profiler: AbstractContextManager[object]
) -> Iterator[Batch]:
    """The batches; the steps of the second and some after it are profiled."""
    yield from islice(batches, 1)
    if (second := next(batches, None)) is not None:
        with profiler:
            yield second
            yield from islice(batches, PROFILED - 1)
    yield from batches


def _train(
    backend: Backend,
    training: Dataset,
    evaluation: Dataset | None,
    settings: Settings,
    folder: Path,
    start: Checkpoint,
    journal: Silence,
    saved: Callable[[], None] | None,
    profiler: AbstractContextManager[object] | None,
) -> Checkpoint:
    config, steps = settings.model, settings.model.schedule.steps
    half = config.optimizer.precision == "float16"
    begun = [start.loss_scale] if half else []
    trainer = backend.trainer(
        config, start.parameters, start.momentum_buffers, start.steps_done, *begun
    )
    group = backend.group
    first = group.rank == 0
    step = start.steps_done
    newest = start
    skipped = 0

    def not_finite(what: str) -> TrainingError:
        first = step * settings.input.batch_size
        return TrainingError(
            f"{what}; its batch holds positions {first} to "
            f"{first + settings.input.batch_size - 1} of the reading order. The newest checkpoint "
            f"is of step {newest.steps_done}; lower model.schedule.rate or set "
            f"model.optimizer.clip_norm{' or model.optimizer.precision=float32' if half else ''}, "
            f"and begin another run",
            key=f"step {step}",
        )

    def save() -> Checkpoint:
        scale = cast(HalfTrainer, trainer).loss_scale() if half else None
        checkpoint = Checkpoint(
            settings, trainer.parameters(), trainer.momentum_buffers(), step, scale
        )
        try:
            if first:
                save_checkpoint(folder / run_folder.CHECKPOINTS, checkpoint, settings.train.keep)
        except CheckpointError as error:
            raise not_finite(str(error)) from error
        return checkpoint

    def look(held_out: Dataset) -> None:
        network = backend.network(config, newest.parameters)
        found = evaluate(network, held_out, group=group)
        if not first:
            return
        result = write_evaluation(folder, found)
        metrics = {name: None if math.isnan(x) else x for name, x in result.metrics.items()}
        journal.note({"step": step, **metrics})
        shown = "  ".join(f"{name} {result.metrics[name]:.4f}" for name in ("AP", "AP50", "VOC07"))
        journal.say(f"step {step}: {shown}")

    journal.say(f"training on {training.name}, {len(training)} images, from step {step}")
    batches = backend.batches(training, config, settings.input, folder / run_folder.CACHE, step)
    if profiler is not None:
        batches = _profiled(batches, profiler)
    for batch in _with_progress(batches, step, steps, journal):
        began = time.perf_counter()
        scale = {"loss_scale": cast(HalfTrainer, trainer).loss_scale().scale} if half else {}
        losses = trainer.step(batch)
        if not math.isfinite(losses.total):
            raise not_finite(f"the loss is not finite ({losses})")
        rate = learning_rate(step, config.schedule)
        step += 1
        journal.note(
            {
                "step": step,
                "learning_rate": rate,
                **losses._asdict(),
                **scale,
                "seconds": round(time.perf_counter() - began, 4),
            }
        )
        skipped = skipped + 1 if losses.skipped else 0
        if skipped == min(OVERFLOWS, steps):
            raise TrainingError(
                f"the gradient overflowed float16 in {skipped} steps in a row, the "
                f"last with a loss scale of {scale['loss_scale']:g}; lower "
                f"model.optimizer.loss_scale, set a model.optimizer.loss_scale_window or "
                f"model.optimizer.precision=float32, and begin another run",
                key=f"step {step}",
            )
        every = settings.train.evaluate_every
        due = bool(every) and step % every == 0 and step != steps  # after the last: below
        keep = due or step % settings.train.checkpoint_every == 0 or step == steps
        if keep:
            newest = save()
        if due and evaluation is not None:
            look(evaluation)
        if first and keep and saved is not None:
            saved()
    if evaluation is not None:
        look(evaluation)
    if first:
        curves(folder / run_folder.METRICS, folder / run_folder.CURVES)
    return newest
