"""The options that choose a backend, the same for every command."""

from __future__ import annotations

import inspect
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from refinedet.backends.registry import DEFAULT, BackendChoice
from refinedet.cli.option_groups import Command, option_group
from refinedet.errors import UsageError

PANEL = "Device"


class Target(str, Enum):
    """MindSpore's devices."""

    cpu = "cpu"
    gpu = "gpu"
    ascend = "ascend"
    ascend310 = "ascend310"


TargetOption = Annotated[
    Target | None,
    typer.Option(
        "--target",
        help="MindSpore on this device; --target gpu is short for --backend mindspore-gpu.",
        rich_help_panel=PANEL,
    ),
]
OPTIONS: dict[str, Any] = {
    "device_id": Annotated[
        int | None,
        typer.Option(
            "--device-id", min=0, help="Index of the device, from 0.", rich_help_panel=PANEL
        ),
    ],
    "streams": Annotated[
        int | None,
        typer.Option(
            "--streams", min=1, help="Lite: batches computed in parallel.", rich_help_panel=PANEL
        ),
    ],
    "lite_python": Annotated[
        Path | None,
        typer.Option(
            "--lite-python",
            help="Lite: Python interpreter that has mindspore_lite, if not this one.",
            rich_help_panel=PANEL,
        ),
    ],
}
"""Options by the backend's keyword argument."""


def with_backend(command: Command) -> Command:
    """Give a command the options that choose the backend.

    Args:
        command: has a keyword argument ``backend``, a ``BackendChoice``; or ``backends``, a list of
            them, which the user must give if it has no default.
    """
    own = inspect.signature(command).parameters
    several = "backends" in own
    required = several and own["backends"].default is inspect.Parameter.empty
    help_text = "Backend to use" + ("; repeatable" if several else "")
    help_text += "." if required else f"; default {DEFAULT}."
    kind: Any = list[str] | None if several else str | None
    backend_option = Annotated[
        kind, typer.Option("--backend", help=help_text, rich_help_panel=PANEL)
    ]

    def chosen(
        backend: str | list[str] | None, target: Target | None, **options: Any
    ) -> BackendChoice | list[BackendChoice]:
        given = tuple((name, value) for name, value in options.items() if value is not None)
        names = [backend] if isinstance(backend, str) else list(backend or ())
        if target is not None:
            if names:
                raise UsageError(
                    f"{target.value} is --backend mindspore-{target.value}; give one", key="target"
                )
            names = [f"mindspore-{target.value}"]
        if not names:
            if required:
                raise UsageError("give the backend to check, or --target", key="backend")
            names = [DEFAULT]
        choices = [BackendChoice(name, given) for name in dict.fromkeys(names)]
        return choices if several else choices[0]

    options = {"backend": backend_option, "target": TargetOption, **OPTIONS}
    return option_group(command, "backends" if several else "backend", options, chosen)
