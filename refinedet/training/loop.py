"""The training loop: step, save, evaluate, and resume after an interruption.

The result of a step depends only on its number, the data set and the settings (see
``refinedet.data.samples``), so a training that was resumed from a checkpoint ends with the same
parameters as an uninterrupted one. The files of a run are listed in
``refinedet.models.run_folder``.

With several ranks, each trains and evaluates on its share of the images. Only the first rank
writes to the folder.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import cast

from tqdm import tqdm

from refinedet.backends.interface import HalfTrainer, StepLosses
from refinedet.backends.process_group import by_first
from refinedet.data.batch import Batch
from refinedet.data.dataset import Dataset
from refinedet.errors import BackendError, CheckpointError, DataError, TrainingError
from refinedet.evaluation.dataset_run import evaluate, write_evaluation
from refinedet.models import run_folder
from refinedet.models.checkpoint import Checkpoint, checkpoints, save_checkpoint
from refinedet.settings import to_yaml
from refinedet.spec.schedule import learning_rate
from refinedet.support.files import write_atomically
from refinedet.training.curves import curves
from refinedet.training.journal import Journal
from refinedet.training.preparation import PreparedTraining

LOG_INTERVAL = 15.0
"""Seconds between progress lines if there is no terminal."""
OVERFLOWS = 40
"""Number of consecutive skipped steps that ends a run; 24 halvings reduce the largest loss scale
to the smallest."""
PROFILED = 3
"""Number of profiled steps; the step before them compiles the graph."""
FIRST_CHECKPOINT = "step-00000000"
"""Name of the checkpoint of a run's given initial weights."""


def train(
    prepared: PreparedTraining,
    *,
    on_checkpoint: Callable[[], None] | None = None,
    profiler: AbstractContextManager[object] | None = None,
) -> Checkpoint:
    """Train to the end of the schedule.

    Args:
        on_checkpoint: called after each checkpoint and its evaluation, on the first rank.
        profiler: the backend's profiler, which records some of the first steps.
    Returns:
        The last checkpoint, which is also in the folder.
    Raises:
        TrainingError: a loss that is not finite, or ``OVERFLOWS`` consecutive skipped steps.
        DataError: images that cannot be used.
        BackendError: the framework failed.
    """
    folder = prepared.folder
    new = by_first(prepared.group, lambda: _open_folder(prepared))
    journal = Journal(folder, prepared.start.steps_done, writes=prepared.group.rank == 0)
    try:
        return _Loop(prepared, journal).run(on_checkpoint, profiler)
    except (BackendError, DataError, MemoryError):
        saved = checkpoints(folder / run_folder.CHECKPOINTS)
        if new and all(path.stem == FIRST_CHECKPOINT for path in saved):
            shutil.rmtree(folder)  # nothing was trained
        raise
    finally:
        journal.close()


def _open_folder(prepared: PreparedTraining) -> bool:
    """Create the run's folder with its settings; return whether it is new."""
    folder, settings = prepared.folder, prepared.settings
    new = not folder.exists()
    (folder / run_folder.CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    if prepared.given_weights:  # a resumed run starts from the same weights
        save_checkpoint(folder / run_folder.CHECKPOINTS, prepared.start, settings.train.keep)
    write_atomically(folder / run_folder.SETTINGS, to_yaml(settings))
    return new


class _Loop:
    """The state of a running training."""

    def __init__(self, prepared: PreparedTraining, journal: Journal) -> None:
        start, config = prepared.start, prepared.settings.model
        self.prepared = prepared
        self.journal = journal
        self.settings = prepared.settings
        self.half = config.optimizer.precision == "float16"
        scale = [start.loss_scale] if self.half else []
        self.trainer = prepared.backend.trainer(
            config, start.parameters, start.momentum_buffers, start.steps_done, *scale
        )
        self.step = start.steps_done
        self.newest = start
        self.skipped = 0

    def run(
        self,
        on_checkpoint: Callable[[], None] | None,
        profiler: AbstractContextManager[object] | None,
    ) -> Checkpoint:
        """Run every remaining step; save and evaluate at the intervals of the settings."""
        prepared, settings, config = self.prepared, self.settings, self.settings.model
        training, first = prepared.training, prepared.group.rank == 0
        self.journal.log(
            f"training on {training.name}, {len(training)} images, from step {self.step}"
        )
        cache = prepared.folder / run_folder.CACHE
        batches = prepared.backend.batches(training, config, settings.input, cache, self.step)
        if profiler is not None:
            batches = _profiled(batches, profiler)
        steps = config.schedule.steps
        for batch in self._with_progress(batches, steps):
            self._take_step(batch)
            every = settings.train.evaluate_every
            evaluates = bool(every) and self.step % every == 0 and self.step != steps
            saves = self.step % settings.train.checkpoint_every == 0 or self.step == steps
            if saves or evaluates:
                self._save()
            if evaluates and prepared.evaluation is not None:
                self._evaluate(prepared.evaluation)
            if (saves or evaluates) and first and on_checkpoint is not None:
                on_checkpoint()
        if prepared.evaluation is not None:
            self._evaluate(prepared.evaluation)
        if first:
            folder = prepared.folder
            curves(folder / run_folder.METRICS, folder / run_folder.CURVES)
        return self.newest

    def _take_step(self, batch: Batch) -> None:
        started = time.perf_counter()
        scale = cast(HalfTrainer, self.trainer).loss_scale().scale if self.half else None
        losses = self.trainer.step(batch)
        if not math.isfinite(losses.total):
            raise self._diverged(f"the loss is not finite ({losses})")
        rate = learning_rate(self.step, self.settings.model.schedule)
        self.step += 1
        row = {"step": self.step, "learning_rate": rate, **losses._asdict()}
        if scale is not None:
            row["loss_scale"] = scale
        self.journal.record({**row, "seconds": round(time.perf_counter() - started, 4)})
        self._require_progress(losses, scale)

    def _require_progress(self, losses: StepLosses, scale: float | None) -> None:
        self.skipped = self.skipped + 1 if losses.skipped else 0
        if self.skipped == min(OVERFLOWS, self.settings.model.schedule.steps):
            raise TrainingError(
                f"the gradient overflowed float16 in {self.skipped} steps in a row, the "
                f"last with a loss scale of {scale:g}; lower "
                "model.optimizer.loss_scale, set a model.optimizer.loss_scale_window or "
                "model.optimizer.precision=float32, and begin another run",
                key=f"step {self.step}",
            )

    def _save(self) -> None:
        scale = cast(HalfTrainer, self.trainer).loss_scale() if self.half else None
        checkpoint = Checkpoint(
            self.settings,
            self.trainer.parameters(),
            self.trainer.momentum_buffers(),
            self.step,
            scale,
        )
        if self.prepared.group.rank == 0:
            folder = self.prepared.folder / run_folder.CHECKPOINTS
            try:
                save_checkpoint(folder, checkpoint, self.settings.train.keep)
            except CheckpointError as error:
                raise self._diverged(str(error)) from error
        self.newest = checkpoint

    def _evaluate(self, held_out: Dataset) -> None:
        network = self.prepared.backend.network(self.settings.model, self.newest.parameters)
        evaluator = evaluate(network, held_out, group=self.prepared.group)
        if self.prepared.group.rank:
            return
        metrics = write_evaluation(self.prepared.folder, evaluator).metrics
        self.journal.record(
            {"step": self.step}
            | {name: None if math.isnan(value) else value for name, value in metrics.items()}
        )
        line = "  ".join(f"{name} {metrics[name]:.4f}" for name in ("AP", "AP50", "VOC07"))
        self.journal.log(f"step {self.step}: {line}")

    def _diverged(self, reason: str) -> TrainingError:
        size = self.settings.input.batch_size
        first = self.step * size
        half = " or model.optimizer.precision=float32" if self.half else ""
        return TrainingError(
            f"{reason}; its batch holds positions {first} to {first + size - 1} of the reading "
            f"order. The newest checkpoint is of step {self.newest.steps_done}; lower "
            f"model.schedule.rate or set model.optimizer.clip_norm{half}, and begin another run",
            key=f"step {self.step}",
        )

    def _with_progress(self, batches: Iterator[Batch], steps: int) -> Iterator[Batch]:
        """Yield the batches, with a progress bar on a terminal and progress lines elsewhere."""
        first = self.step
        bar = tqdm(batches, "training", total=steps, initial=first, disable=None, unit="step")
        started = logged = time.monotonic()
        for done, batch in enumerate(bar):
            yield batch
            now = time.monotonic()
            if done == 0:  # this step compiled the graph: its time is not counted
                started = now
            elif bar.disable and now - logged > LOG_INTERVAL:
                left = (now - started) / done * (steps - first - done - 1)
                minutes = f"about {left / 60:.0f} minutes left"
                self.journal.log(f"step {first + done + 1} of {steps}, {minutes}")
                logged = now


def _profiled(
    batches: Iterator[Batch], profiler: AbstractContextManager[object]
) -> Iterator[Batch]:
    """Yield the batches; profile ``PROFILED`` steps from the second on."""
    yield from islice(batches, 1)
    if (second := next(batches, None)) is not None:
        with profiler:
            yield second
            yield from islice(batches, PROFILED - 1)
    yield from batches
