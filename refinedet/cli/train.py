"""The command ``train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refinedet.backends.registry import BackendChoice, profiler_of
from refinedet.cli.backend_options import with_backend
from refinedet.cli.data_options import DataOptions, HeldOutOptions, with_data, with_held_out
from refinedet.cli.settings_options import (
    SettingsOptions,
    WeightsOptions,
    with_settings,
    with_weights,
)
from refinedet.errors import UsageError
from refinedet.models.run_copy import RunCopy
from refinedet.training.dry_run import describe
from refinedet.training.loop import train as run_training
from refinedet.training.preparation import TrainingOptions, prepare

Run = Annotated[Path, typer.Option(help="Folder of the run; new, unless --resume.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")]
TrainUrl = Annotated[
    str | None,
    typer.Option(help="file://, s3:// or obs:// folder to copy the run to at every checkpoint."),
]
Profile = Annotated[
    Path | None,
    typer.Option(help="Folder for the framework's profile of steps 2 to 4; new or empty."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, describe the run, write nothing.")
]


@with_backend
@with_weights
@with_settings
@with_held_out
@with_data
def train(
    backend: BackendChoice,
    data: DataOptions,
    held_out: HeldOutOptions,
    settings: SettingsOptions,
    weights: WeightsOptions,
    run: Run,
    resume: Resume = False,
    train_url: TrainUrl = None,
    profile: Profile = None,
    dry_run: DryRun = False,
) -> None:
    """Train a detector; evaluate it if an evaluation set is given."""
    if dry_run and (data.url is not None or train_url is not None):
        raise UsageError("writes nothing; leave out --data-url and --train-url", key="dry_run")
    if dry_run and profile is not None:
        raise UsageError("is not written by a dry run; leave it out", key="profile")
    source = data.source()
    options = TrainingOptions(
        run=run,
        data=source,
        evaluation=held_out.source(source),
        preset=settings.preset,
        settings=settings.settings,
        assignments=tuple(settings.assignments or ()),
        resume=resume,
        backbone=weights.backbone,
        initial=weights.initial,
        partial=weights.partial,
    )
    options.check()
    engine = backend.find("network", "trainer", "batches")
    profiler = None if profile is None else profiler_of(engine, profile)
    copy = None
    if train_url is not None and engine.group.rank == 0:
        copy = RunCopy(train_url, run, resume=resume)
    prepared = prepare(engine, options, typer.echo)
    if dry_run:
        typer.echo(describe(prepared))
        return
    run_training(prepared, on_checkpoint=copy.save if copy else None, profiler=profiler)
    if copy:
        copy.finish()
