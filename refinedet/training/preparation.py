"""Everything that is read and checked before a training begins.

``prepare`` turns the user's ``TrainingOptions`` into a ``PreparedTraining``. Contradictory options
are reported first, before any data are read; the checkpoint or the initial weights are read once;
nothing is written. ``training.loop.train`` runs the
result, and ``training.dry_run.describe`` describes it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from refinedet.backends.interface import Backend
from refinedet.backends.process_group import Group, by_first
from refinedet.backends.registry import require_precision
from refinedet.data.batch import slot_count, training_objects
from refinedet.data.dataset import Dataset
from refinedet.data.source import DataSource, read_dataset
from refinedet.errors import TrainingError, UsageError
from refinedet.models import run_folder
from refinedet.models.checkpoint import Checkpoint, newest_checkpoint, require_match
from refinedet.models.foreign.import_weights import patterns, with_backbone, with_detector
from refinedet.settings import Settings, resolve
from refinedet.spec.network import Parameters, initial_parameters
from refinedet.support.text import Report, to_stderr


@dataclass(frozen=True)
class TrainingOptions:
    """The user's options for a training.

    Attributes:
        run: folder of the run; new or empty unless ``resume``.
        data: images to train on.
        evaluation: images to evaluate on, or None.
        preset: name of the preset that provides the initial settings.
        settings: YAML file of settings that override the preset.
        assignments: ``KEY=VALUE`` that override both.
        resume: continue from the run's newest checkpoint.
        backbone: file of initial weights of the backbone.
        initial: file of initial weights of the whole detector.
        partial: patterns, separated by commas, of tensors that may be missing from that file.
    """

    run: Path
    data: DataSource
    evaluation: DataSource | None = None
    preset: str | None = None
    settings: Path | None = None
    assignments: tuple[str, ...] = ()
    resume: bool = False
    backbone: Path | None = None
    initial: Path | None = None
    partial: str | None = None

    def check(self) -> None:
        """Check that the options are consistent; read no file.

        Raises:
            UsageError: options that are missing or mutually exclusive.
        """
        self.data.check()
        self.data.require_class_names()
        if self.evaluation is not None:
            self.evaluation.check()
        if self.backbone is not None and self.initial is not None:
            raise UsageError(
                "the initial detector has a backbone already; give one of the two", key="backbone"
            )
        for name in ("backbone", "initial"):
            if self.resume and getattr(self, name) is not None:
                raise UsageError("applies to a new run only; leave it out to resume", key=name)
        if self.partial is not None and self.backbone is None and self.initial is None:
            raise UsageError(
                "names tensors that may be missing from a backbone or an initial detector; "
                "give one of them too",
                key="partial",
            )


@dataclass(frozen=True)
class PreparedTraining:
    """A training ready to start: all inputs are read and checked, nothing is written yet."""

    backend: Backend
    group: Group
    """The ranks that share each batch."""
    training: Dataset
    evaluation: Dataset | None
    settings: Settings
    folder: Path
    """Folder of the run."""
    start: Checkpoint
    """The newest checkpoint of a resumed run; otherwise given or newly initialised parameters."""
    given_weights: bool
    """Whether ``start`` holds given weights, which are saved as the checkpoint of step 0."""


def prepare(
    backend: Backend, options: TrainingOptions, report: Report = to_stderr
) -> PreparedTraining:
    """Read and check everything that a training needs.

    Args:
        report: called with a line about copied data, skipped data and given weights.
    Raises:
        UsageError, SettingsError, BackendError, TrainingError: invalid options; those that can
            be checked without data are checked first.
        DataError, CheckpointError, RemoteError: data or weights that cannot be used.
    """
    options.check()
    group = backend.group
    settings = resolve(options.preset, options.settings, options.assignments, ())
    _require_possible(backend, settings, group)
    by_first(group, lambda: _require_folder(options.run, options.resume))
    training = _read(by_first(group, lambda: options.data.fetched(report)), report)
    evaluation = None
    if options.evaluation is not None:
        held_out = replace(options.evaluation, class_names=training.class_names)
        held_out = by_first(group, partial(held_out.fetched, report))
        evaluation = _read(held_out, report, check_images=True)
    settings = resolve(options.preset, options.settings, options.assignments, training.class_names)
    initial = _given_weights(options, settings, report)
    return prepare_datasets(
        backend,
        training,
        evaluation,
        settings,
        options.run,
        resume=options.resume,
        initial=initial,
    )


def prepare_datasets(
    backend: Backend,
    training: Dataset,
    evaluation: Dataset | None,
    settings: Settings,
    folder: Path,
    *,
    resume: bool = False,
    initial: Parameters | None = None,
) -> PreparedTraining:
    """As ``prepare``, for data sets and settings that have been read already.

    Args:
        training: images with objects to train on.
        evaluation: images to evaluate on, or None.
        settings: ``model.num_classes`` must be that of ``training``.
        folder: folder of the run; new or empty unless ``resume``.
        initial: initial parameters; None to initialise them.
    """
    group = backend.group
    _require_possible(backend, settings, group)
    by_first(group, lambda: _require_folder(folder, resume))
    training.require_usable()
    if evaluation is not None:
        evaluation.require_usable()
    slot_count(training_objects(training), settings.input.max_objects)
    start = newest_checkpoint(folder / run_folder.CHECKPOINTS) if resume else None
    given_weights = start is None and initial is not None
    if start is not None:
        require_match(start, settings)
    else:
        parameters = initial or initial_parameters(settings.model, settings.input.seed)
        start = Checkpoint(settings, parameters, None, 0)
    return PreparedTraining(
        backend, group, training, evaluation, settings, folder, start, given_weights
    )


def _require_possible(backend: Backend, settings: Settings, group: Group) -> None:
    require_precision(backend, settings.model)
    if settings.input.batch_size % group.size:
        raise TrainingError(
            f"{settings.input.batch_size} images cannot be shared equally among {group.size} "
            "ranks; make it a multiple",
            key="input.batch_size",
        )


def _require_folder(folder: Path, resume: bool) -> None:
    if resume:
        if not (folder / run_folder.SETTINGS).exists():
            raise TrainingError("no run to resume; to start one, do not resume", path=folder)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TrainingError("is not empty; choose a new folder, or resume the run", path=folder)
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise TrainingError(f"cannot be created in {parent}; choose another folder", path=folder)


def _read(source: DataSource, report: Report, *, check_images: bool = False) -> Dataset:
    dataset = read_dataset(source, check_images=check_images)
    dataset.require_usable()
    if summary := dataset.skipped_summary():
        report(summary)
    return dataset


def _given_weights(
    options: TrainingOptions, settings: Settings, report: Report
) -> Parameters | None:
    for file, read in ((options.backbone, with_backbone), (options.initial, with_detector)):
        if file is not None:
            parameters, description = read(file, settings, patterns(options.partial))
            report(description)
            return parameters
    return None
