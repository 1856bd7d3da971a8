"""The command ``bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from refinedet.backends.registry import BackendChoice
from refinedet.benchmark.run import measure, table
from refinedet.cli.backend_options import with_backend
from refinedet.spec.presets import preset as named_preset
from refinedet.support.files import require_replaceable, write_json

Preset = Annotated[str, typer.Option(help="Preset to measure.")]
Repeat = Annotated[int, typer.Option(min=1, help="Measurements per row.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the rows to this file.")]


@with_backend
def bench(
    preset: Preset = "refinedet_vgg16_320",
    repeat: Repeat = 3,
    json_file: JsonFile = None,
    backends: Sequence[BackendChoice] = (),
) -> None:
    """Measure the input pipeline, postprocessing, and the network on each backend."""
    if json_file is not None:
        require_replaceable(json_file)
    rows = list(
        tqdm(
            measure(backends, named_preset(preset), repeat),
            "measuring",
            disable=None,
            unit="row",
        )
    )
    typer.echo(table(rows))
    if json_file is not None:
        write_json(json_file, [row._asdict() for row in rows])
