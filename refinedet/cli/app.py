"""The program ``refinedet``: its commands, and the one-line report of every error.

A command is a function, or a Typer app with subcommands, in its own module. The module is
imported when the command is called. Other distributions add commands through an entry-point group.
"""

from __future__ import annotations

import importlib
import io
import sys
from importlib.metadata import entry_points
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from refinedet.errors import UsageError
from refinedet.spec.errors import RefineDetError
from refinedet.version import __version__

COMMANDS = {
    "demo": "refinedet.cli.demo:demo",
    "train": "refinedet.cli.train:train",
    "eval": "refinedet.cli.evaluate:evaluate",
    "detect": "refinedet.cli.detect:detect",
    "export": "refinedet.cli.export:export",
    "data": "refinedet.cli.data:app",
    "presets": "refinedet.cli.presets:app",
    "weights": "refinedet.cli.weights:app",
    "bench": "refinedet.cli.bench:bench",
    "backends": "refinedet.cli.backends:backends",
}
"""This program's own commands, in the order of the help: module and attribute."""

GROUP = "refinedet.commands"
"""Entry-point group of further commands: functions or Typer's apps."""

FLAGS = {
    "assignments": "--set",
    "cache": "--data-cache",
    "class_names": "--classes",
    "url": "--data-url",
}
"""The flags whose names differ from the library's arguments."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells."""


class Commands(TyperGroup):
    """All commands; each is imported when it is called or its help is shown."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, for the help."""
        return list(_targets())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        target = _targets().get(cmd_name)
        return None if target is None else _load(cmd_name, target)


def _targets() -> dict[str, str]:
    """The commands by name; an entry point does not replace one of this program's own."""
    added = {point.name: point.value for point in entry_points(group=GROUP)}
    return COMMANDS | {name: target for name, target in added.items() if name not in COMMANDS}


def _load(name: str, target: str) -> Any:
    """The command; if it cannot be imported, one that reports why when it is called."""
    made = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    module, attribute = target.split(":")
    try:
        loaded = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        reason = f"{name}: cannot load {target}: {error}"
        forgiving = {"ignore_unknown_options": True, "allow_extra_args": True}

        @made.command(name, help="Cannot be loaded.", context_settings=forgiving)
        def broken() -> None:
            _fail(reason)
    else:
        if isinstance(loaded, typer.Typer):
            made = loaded
        else:
            made.command(name)(loaded)
    command = typer.main.get_command(made)
    command.name = name
    return command


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="RefineDet: train, evaluate and run the detector.",
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"refinedet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """RefineDet: train, evaluate and run the detector."""


def error_line(error: BaseException) -> str:
    """The printed line of an error; for a usage error it begins with the flag."""
    if isinstance(error, UsageError) and error.key is not None:
        key = str(error.key)
        return f"{FLAGS.get(key, '--' + key.replace('_', '-'))}: {error.reason}"
    if isinstance(error, RefineDetError):
        return str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}; choose another path"
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}"
    return str(error)


def _fail(text: str) -> NoReturn:
    print(f"refinedet: error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(1)


def main() -> None:
    """The program ``refinedet``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Typer turns an interruption into an exit status; older versions raise Abort.
        status = app(standalone_mode=False)
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(status)
    except (RefineDetError, MemoryError, OSError) as error:
        _fail(error_line(error))
    except (KeyboardInterrupt, typer.Abort):
        print(
            "refinedet: interrupted; train, and eval with --output, continue with --resume",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
    except Exception as error:
        # Typer's own exceptions for a wrong option; their module is not public.
        if not hasattr(error, "format_message"):
            raise
        # A group without a command has printed its help, and its error is without a message.
        _fail(f"{error.format_message().strip() or 'give a command'}; see --help")
