"""The commands ``weights ...``: import, export and list weights of other programs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from safetensors.numpy import save

from refinedet.errors import CheckpointError, DataError
from refinedet.models import run_folder
from refinedet.models.checkpoint import load_checkpoint, newest_checkpoint, write_checkpoint
from refinedet.models.foreign.import_weights import import_weights, patterns, renamed
from refinedet.models.foreign.mindspore_ckpt import written_ckpt
from refinedet.models.foreign.weights_file import read_weights
from refinedet.settings import to_yaml
from refinedet.support.files import write_atomically
from refinedet.support.text import one_line

app = typer.Typer(no_args_is_help=True, help="Import, export and list weights of other programs.")
FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A .caffemodel, .pth, .ckpt, .safetensors or ours.")
]


class Names(str, Enum):
    """Whose names the tensors get."""

    canonical = "canonical"
    port = "port"
    modelzoo = "modelzoo"


def _require_another(source: Path, output: Path) -> None:
    if output.exists() and source.exists() and output.samefile(source):
        raise DataError("is the file to read; choose another --output", path=output)


@app.command("import")
def import_command(
    file: FileArgument,
    output: Annotated[Path, typer.Option(help="The file to write, as vgg.safetensors.")],
    preset: Annotated[
        str | None, typer.Option(help="The detector; if not given, the file's, of 320x320.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class names with commas, in order; no background.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the settings; repeatable.")
    ] = None,
    partial: Annotated[
        str | None, typer.Option(help="Tensors that may be missing; commas, * and layers.")
    ] = None,
) -> None:
    """Write a detector that eval, detect and export take as --model."""
    _require_another(file, output)
    names = tuple(name.strip() for name in classes.split(",")) if classes else ()
    checkpoint, description = import_weights(
        file, preset, names, assignments or (), patterns(partial)
    )
    write_checkpoint(output, checkpoint)
    typer.echo(f"wrote {output}: {description}")


@app.command("export")
def export_command(
    model: Annotated[Path, typer.Option(help="Folder of a run, a checkpoint or weights.")],
    output: Annotated[Path, typer.Option(help="The file to write; a .ckpt for modelzoo.")],
    names: Annotated[
        Names, typer.Option(help="Whose names: ours, the PyTorch port's, the model zoo's.")
    ] = Names.canonical,
) -> None:
    """Write the weights alone, which other programs can read: safetensors, or a .ckpt."""
    _require_another(model, output)
    if names is Names.modelzoo and output.suffix != ".ckpt":
        raise DataError("MindSpore reads it only as .ckpt; choose such an --output", path=output)
    if model.is_dir():
        checkpoint = newest_checkpoint(model / run_folder.CHECKPOINTS)
        if checkpoint is None:
            raise CheckpointError(
                "no checkpoint in it; it is not a run, or has none yet", path=model
            )
    else:
        checkpoint = load_checkpoint(model)
    tensors = renamed(checkpoint.parameters, names.value)
    tensors = {name: np.ascontiguousarray(value, "<f4") for name, value in tensors.items()}
    if names is Names.modelzoo:
        content = written_ckpt(tensors)
    else:  # "pt" is what PyTorch's own readers look for
        content = save(tensors, {"format": "pt", "settings": to_yaml(checkpoint.settings)})
    write_atomically(output, content)
    typer.echo(f"wrote {output}: {len(tensors)} tensors, {names.value} names")


@app.command("show")
def show_command(file: FileArgument) -> None:
    """List the kind of a file, and its tensors: name, dtype, shape, our name."""
    content = read_weights(file)
    typer.echo(f"{file}: {content.container}; {content.scheme.kind}")
    for name, tensor in content.tensors.items():
        ours = content.scheme.canonical(name)
        if ours is None:
            ours = "(not used)" if content.scheme.is_ignored(name) else "(unexpected)"
        shape = "x".join(map(str, tensor.shape)) or "()"
        typer.echo(f"{one_line(name, 60):32} {tensor.dtype!s:9} {shape:18} {ours}")
    known = sum(content.scheme.canonical(name) is not None for name in content.tensors)
    typer.echo(f"{len(content.tensors)} tensors, {known} known here")
