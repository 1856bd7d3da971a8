"""The command ``vectors``: test vectors for programs in any language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refinedet.conformance.vectors import (
    FAILED,
    NOT_IMPLEMENTED,
    PASSED,
    STATES,
    check_results,
    summary,
    write_vectors,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Test vectors: the specification's inputs and outputs as files.",
)
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the vectors.")]


@app.command("write")
def write_command(folder: FolderArgument) -> None:
    """Write inputs and expected outputs of every operation and of a small network."""
    count = write_vectors(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    typer.echo(f"wrote {count} cases to {folder}, {size / 1e6:.1f} MB; see manifest.json")


@app.command("check")
def check_command(
    folder: FolderArgument,
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Folder of the files with your outputs.")
    ],
) -> None:
    """Check outputs that any program wrote; status 1 if one of them is wrong."""
    checked = check_results(folder, results)
    for result in checked:
        if result.state == FAILED:
            typer.echo(f"FAILED {result.case}: {result.message}")
    typer.echo(
        f"{'operation':22}{PASSED:>8}{FAILED:>8}{NOT_IMPLEMENTED:>17}  worst error / allowed"
    )
    for operation, row in summary(checked).items():
        passed, failed, missing = (row.counts[state] for state in STATES)
        worst = f"{row.worst:.2g}" if passed + failed else "-"
        typer.echo(f"{operation:22}{passed:8}{failed:8}{missing:17}  {worst:>21}")
    total = {state: sum(result.state == state for result in checked) for state in STATES}
    typer.echo(f"{len(checked)} cases: {', '.join(f'{n} {s}' for s, n in total.items())}")
    if total[FAILED]:
        raise typer.Exit(1)
