"""The command ``export``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from refinedet.backends.registry import BackendChoice
from refinedet.cli.backend_options import with_backend
from refinedet.cli.option_groups import ModelOption
from refinedet.errors import UsageError
from refinedet.models.export import export_model
from refinedet.models.open import open_model

Output = Annotated[Path, typer.Option(help="The file to write, e.g. detector.mindir.")]
Heads = Annotated[
    bool, typer.Option("--heads", help="Export the raw outputs, not boxes and scores.")
]


@with_backend
def export(
    backend: BackendChoice, model: ModelOption, output: Output, heads: Heads = False
) -> None:
    """Export a trained detector in the backend's file format (MindIR, AIR, ONNX)."""
    if os.path.realpath(output) == os.path.realpath(model):
        raise UsageError(f"{output} is the model, which it would replace", key="output")
    engine = backend.find("network", "export")
    export_model(engine, open_model(engine, model), output, heads=heads)
    typer.echo(f"wrote {output} and its settings, {output}.yaml")
