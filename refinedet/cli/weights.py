"""The commands ``weights ...``: import, export and list weights of other programs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from safetensors.numpy import save

from refinedet.cli.data_options import named_classes
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
    Path, typer.Argument(metavar="FILE", help="A .caffemodel, .pth, .ckpt or .safetensors file.")
]


class Names(str, Enum):
    """Naming schemes of exported tensors."""

    canonical = "canonical"
    port = "port"
    modelzoo = "modelzoo"


def _require_another(source: Path, output: Path) -> None:
    if output.exists() and source.exists() and output.samefile(source):
        raise DataError("is the file to read; choose another --output", path=output)


@app.command("import")
def import_command(
    file: FileArgument,
    output: Annotated[Path, typer.Option(help="The file to write, e.g. vgg.safetensors.")],
    preset: Annotated[
        str | None, typer.Option(help="Preset of the detector; by default the file's, at 320x320.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class names in order, separated by commas; no background.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE that overrides a setting; repeatable."),
    ] = None,
    partial: Annotated[
        str | None,
        typer.Option(
            help="Tensors that may be missing: names or layers, with commas; * matches any."
        ),
    ] = None,
) -> None:
    """Convert weights to a file that eval, detect and export accept as --model."""
    _require_another(file, output)
    names = () if classes is None else named_classes(classes)
    checkpoint, description = import_weights(
        file, preset, names, assignments or (), patterns(partial)
    )
    write_checkpoint(output, checkpoint)
    typer.echo(f"wrote {output}: {description}")


@app.command("export")
def export_command(
    model: Annotated[Path, typer.Option(help="Folder of a run, a checkpoint or weights.")],
    output: Annotated[Path, typer.Option(help="The file to write; .ckpt for --names modelzoo.")],
    names: Annotated[
        Names, typer.Option(help="Naming scheme: ours, the PyTorch port's or the model zoo's.")
    ] = Names.canonical,
) -> None:
    """Write the weights for other programs, as safetensors or as a .ckpt file."""
    _require_another(model, output)
    if names is Names.modelzoo and output.suffix != ".ckpt":
        raise DataError("MindSpore reads only .ckpt files; end --output with .ckpt", path=output)
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
    else:  # PyTorch's readers expect "pt"
        content = save(tensors, {"format": "pt", "settings": to_yaml(checkpoint.settings)})
    write_atomically(output, content)
    typer.echo(f"wrote {output}: {len(tensors)} tensors, {names.value} names")


@app.command("show")
def show_command(file: FileArgument) -> None:
    """Print the format of a file and its tensors: name, dtype, shape, canonical name."""
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
