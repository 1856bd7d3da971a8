"""The commands ``data ...``."""

from __future__ import annotations

import typer

from refinedet.cli.data_options import DataOptions, with_data
from refinedet.data.report import dataset_report
from refinedet.data.source import read_dataset
from refinedet.support.text import to_stderr

app = typer.Typer(no_args_is_help=True, help="Check data sets.")


@app.callback()
def data() -> None:
    """Check data sets."""


@app.command("check")
@with_data
def check(data: DataOptions) -> None:
    """Report the faults of a data set; exit status 1 if training would refuse it."""
    dataset = read_dataset(data.source().fetched(to_stderr), check_images=True)
    typer.echo(dataset_report(dataset))
    if dataset.refusals() or not dataset.records:
        raise typer.Exit(1)
