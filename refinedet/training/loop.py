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

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
from tqdm import tqdm

from refinedet.backends.interface import (
    Backend,
    BackendError,
    Batch,
    HalfTrainer,
    Network,
    require_precision,
)
from refinedet.backends.process_group import ALONE, Group, by_first, group_of, share
from refinedet.data.dataset import DataError, Dataset, Record
from refinedet.data.images import read_image
from refinedet.data.samples import places, training_objects
from refinedet.evaluation.metrics import Evaluation, Evaluator, evaluation_table
from refinedet.evaluation.resume_journal import Ledger
from refinedet.inference.drawing import curves, draw_detections, read_metrics, sheet
from refinedet.inference.predictor import Predictor, confident
from refinedet.models.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoints,
    newest_checkpoint,
    require_match,
    save_checkpoint,
)
from refinedet.settings import Settings, to_yaml
from refinedet.spec.detection import Detections
from refinedet.spec.errors import Array
from refinedet.spec.network import Parameters, initial_parameters
from refinedet.spec.schedule import learning_rate
from refinedet.support.files import write_atomically, write_json

Predict = Callable[[Iterable[Array]], Iterator[Detections]]
"""Images in, detections in their own pixels out; one for each, in order."""

SAMPLES = 12
"""Images on the sheet of sample detections."""
SAMPLE_SCORE = 0.5
"""Detections below this are not drawn on it."""
PATIENCE = 15.0
"""Seconds between two lines of progress where there is no terminal."""
METRICS = "metrics.jsonl"
OVERFLOWS = 40
"""Steps skipped in a row after which a run ends: 24 halvings lead from the largest loss scale
to the smallest."""
PROFILED = 3
"""Steps under the profiler; one before them compiles the graph."""
BEGUN = "step-00000000"
"""Name of the checkpoint from which a run with foreign weights begins."""


class TrainingError(RuntimeError):
    """A run that cannot start or go on; one line, with what to do."""


class Silence:
    """The journal of a worker that is not the first."""

    def say(self, line: str) -> None:
        """See ``Journal``."""

    def note(self, row: dict[str, Any]) -> None:
        """See ``Journal``."""

    def close(self) -> None:
        """See ``Journal``."""


class Journal(Silence):
    """What a run says: to the terminal, to ``log.txt`` and to ``metrics.jsonl``."""

    def __init__(self, folder: Path, steps_done: int) -> None:
        path, kept = folder / METRICS, []
        if path.exists():  # what follows the checkpoint happens again
            kept = [r for r in read_metrics(path) if r["step"] <= steps_done]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(path, lines)
        self.log: TextIO = (folder / "log.txt").open("a")
        self.metrics: TextIO = path.open("a")

    def say(self, line: str) -> None:
        """Print a line above the progress bar and keep it."""
        tqdm.write(line)
        self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self.log.flush()

    def note(self, row: dict[str, Any]) -> None:
        """Keep a row of metrics."""
        self.metrics.write(json.dumps(row) + "\n")
        self.metrics.flush()

    def close(self) -> None:
        """End both files."""
        self.log.close()
        self.metrics.close()


def evaluate(
    network: Network, dataset: Dataset, batch_size: int = 8, group: Group = ALONE
) -> Evaluator:
    """Detect on every image of a data set by the network's own settings."""
    predict = Predictor(network, min(batch_size, len(dataset))).predict
    return collect(predict, dataset, group=group)


def collect(
    predict: Predict, dataset: Dataset, ledger: Ledger | None = None, group: Group = ALONE
) -> Evaluator:
    """Detect on every image of a data set; keeps the final detections alone.

    Args:
        predict: as ``Predictor.predict``.
        ledger: images that are done according to it are not run again; is told the others.
        group: each worker detects on its share; all get what all have found.
    """
    evaluator = Evaluator(dataset)
    for image_id, detections in ledger.finished() if ledger else ():
        evaluator.add(image_id, detections)
    done = len(evaluator.found)
    mine = dataset.records[share(len(dataset), group)]
    remaining = [record for record in mine if record.image_id not in evaluator.found]
    found = predict(read_image(record.path) for record in remaining)
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
    for record, detections in zip(bar, found, strict=True):
        evaluator.add(record.image_id, detections)
        if ledger:
            ledger.add(record.image_id, detections)
    for found_there in group.gather(evaluator.found):
        for image_id, detections in found_there.items():
            if image_id not in evaluator.found:
                evaluator.add(image_id, detections)
    return evaluator


def scoring_bar(classes: Iterable[int]) -> Iterator[int]:
    """A bar for the classes that ``Evaluator.result`` and ``score_results`` go through."""
    return iter(tqdm(classes, "scoring", disable=None, delay=2, unit="class", leave=False))


def write_evaluation(folder: Path, evaluator: Evaluator) -> Evaluation:
    """Write ``evaluation.json``, ``evaluation.txt`` and ``detections.png``."""
    evaluation = evaluator.result(scoring_bar)
    write_json(folder / "evaluation.json", evaluation.as_dict(by_class=True))
    table = evaluation_table(evaluation, by_class=True)
    write_atomically(folder / "evaluation.txt", table + "\n")
    records = evaluator.dataset.records
    chosen = np.unique(np.linspace(0, len(records) - 1, SAMPLES).round().astype(int))
    sheet([_drawn(records[i], evaluator) for i in chosen], 4, folder / "detections.png")
    return evaluation


def _drawn(record: Record, evaluator: Evaluator) -> Array:
    found = confident(evaluator.found[record.image_id], SAMPLE_SCORE)
    names = evaluator.dataset.class_names
    image = read_image(record.path)
    return draw_detections(image, found.boxes, found.labels, found.scores, names)


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
    group = group_of(backend)

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
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        if start.parameters is initial:
            save_checkpoint(folder / "checkpoints", start, settings.train.keep)
        write_atomically(folder / "settings.yaml", to_yaml(settings))
        return new

    new = by_first(group, open_folder)
    start = begin(settings, folder, resume, initial)
    journal = Silence() if group.rank else Journal(folder, start.steps_done)
    try:
        return _train(
            backend, training, evaluation, settings, folder, start, journal, saved, profiler
        )
    except (BackendError, DataError, MemoryError):
        made = [path for path in checkpoints(folder / "checkpoints") if path.stem != BEGUN]
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
    places(training_objects(training), settings.input.max_objects)
    if settings.input.batch_size % workers:
        raise TrainingError(
            f"input.batch_size: {settings.input.batch_size} images cannot be shared among "
            f"{workers} workers alike; make it a multiple"
        )
    if resume:
        if not (folder / "settings.yaml").exists():
            raise TrainingError(f"{folder}: no run to resume; leave out --resume to begin one")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TrainingError(f"{folder}: is not empty; choose another --run, or --resume")
    return begin(settings, folder, resume, initial)


def begin(settings: Settings, folder: Path, resume: bool, initial: Parameters | None) -> Checkpoint:
    """The newest checkpoint of a run that goes on; else the initial or fresh parameters."""
    if resume and (found := newest_checkpoint(folder / "checkpoints", tqdm.write)):
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
    group = group_of(backend)
    first = group.rank == 0
    step = start.steps_done
    newest = start
    skipped = 0

    def not_finite(what: str) -> TrainingError:
        first = step * settings.input.batch_size
        return TrainingError(
            f"step {step}: {what}; its batch holds positions {first} to "
            f"{first + settings.input.batch_size - 1} of the reading order. The newest checkpoint "
            f"is of step {newest.steps_done}; lower model.schedule.rate or set "
            f"model.optimizer.clip_norm{' or model.optimizer.precision=float32' if half else ''}, "
            f"and begin another run"
        )

    def save() -> Checkpoint:
        scale = cast(HalfTrainer, trainer).loss_scale() if half else None
        checkpoint = Checkpoint(
            settings, trainer.parameters(), trainer.momentum_buffers(), step, scale
        )
        try:
            if first:
                save_checkpoint(folder / "checkpoints", checkpoint, settings.train.keep)
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
    batches = backend.batches(training, config, settings.input, folder / "cache", step)
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
                f"step {step}: the gradient overflowed float16 in {skipped} steps in a row, the "
                f"last with a loss scale of {scale['loss_scale']:g}; lower "
                f"model.optimizer.loss_scale, set a model.optimizer.loss_scale_window or "
                f"model.optimizer.precision=float32, and begin another run"
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
        curves(folder / METRICS, folder / "curves.png")
    return newest
