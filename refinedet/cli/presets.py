"""The commands ``presets ...``."""

from __future__ import annotations

from typing import Annotated

import typer

from refinedet.settings import resolve, to_yaml
from refinedet.spec.network import parameter_count
from refinedet.spec.presets import PRESETS

app = typer.Typer(no_args_is_help=True, help="List the named detectors and their settings.")


@app.command("list")
def list_presets() -> None:
    """List the presets, with the size of their input and their number of parameters."""
    for name, config in PRESETS.items():
        height, width = config.image_size
        millions = parameter_count(config) / 1e6
        typer.echo(f"{name:24}{height}x{width:<8}{millions:6.1f} M parameters at 81 classes")


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Name of a preset.")]) -> None:
    """Print a preset as YAML, to edit and pass to --settings."""
    typer.echo(to_yaml(resolve(name, None, ())), nl=False)
