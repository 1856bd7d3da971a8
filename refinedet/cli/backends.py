"""The command ``backends``."""

from __future__ import annotations

from typing import Annotated

import typer

from refinedet.backends.registry import backend_names, find_backend, lacking
from refinedet.errors import UsageError

Name = Annotated[str | None, typer.Argument(help="Backend to set up; prints the device it uses.")]
DeviceId = Annotated[int | None, typer.Option(min=0, help="Index of the device, from 0.")]


def backends(name: Name = None, device_id: DeviceId = None) -> None:
    """List the installed backends and what each lacks here; with NAME, print its device."""
    if name is not None:
        options = {} if device_id is None else {"device_id": device_id}
        typer.echo(f"{name}: {find_backend(name, **options).describe()}")
        return
    if device_id is not None:
        raise UsageError("is read for one backend only; give its name", key="device_id")
    for known in backend_names():
        typer.echo(f"{known:24}{lacking(known) or 'ready'}")
