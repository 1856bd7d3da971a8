"""Groups of related command-line options that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Command = Callable[..., None]

ModelOption = Annotated[
    Path,
    typer.Option("--model", help="Folder of a run, a checkpoint, or an exported detector."),
]


def option_group(
    command: Command, argument: str, options: Mapping[str, Any], make: Callable[..., Any]
) -> Command:
    """Replace an argument of a command by options from which it is built.

    Args:
        command: all its parameters are passed by keyword.
        argument: one of them.
        options: annotations for Typer by the name of the option's value; all default to None.
        make: takes these values by keyword and returns the argument.
    Returns:
        A command with a signature that Typer reads.
    """

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        made = make(**{name: values.pop(name) for name in options})
        command(**values, **{argument: made})

    own = inspect.signature(command, eval_str=True).parameters
    parameters = [p for p in own.values() if p.name != argument]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in options.items()
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options
