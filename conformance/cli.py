"""The command ``conformance``."""

from __future__ import annotations

import sys
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from refinedet.backends.registry import BackendChoice
from refinedet.cli.backend_options import with_backend
from refinedet.cli.option_groups import Command, option_group
from refinedet.conformance import reported
from refinedet.conformance.options import SuiteOptions, suite_options
from refinedet.conformance.registry import Check
from refinedet.conformance.report import Report, as_data, as_text
from refinedet.conformance.report_html import as_html
from refinedet.conformance.reported import ReportedOutcome, reported_case, run_reported
from refinedet.conformance.runner import FAILED, Outcome, run_suite, select
from refinedet.evaluation.model_run import Reported
from refinedet.support.files import write_atomically, write_json

PANEL = "Level reported mAP: an evaluation, run after the checks"
REPORTED_OPTIONS: dict[str, Any] = {
    "model": Annotated[
        Path | None,
        typer.Option(
            help="Folder of a run, a checkpoint, weights, or an exported detector.",
            rich_help_panel=PANEL,
        ),
    ],
    "annotations": Annotated[
        Path | None, typer.Option(help="COCO's JSON file.", rich_help_panel=PANEL)
    ],
    "images": Annotated[
        Path | None, typer.Option(help="Folder of the images.", rich_help_panel=PANEL)
    ],
    "expect": Annotated[
        str | None,
        typer.Option(
            help="Published metrics to reach, e.g. modelzoo-ascend910.", rich_help_panel=PANEL
        ),
    ],
    "retrained": Annotated[
        bool | None,
        typer.Option(
            "--retrained",
            help="Require only what a retrained detector must reach.",
            rich_help_panel=PANEL,
        ),
    ],
}


def _typer_option(name: str, default: Any, metadata: Any) -> Any:
    """One of the suite's options for Typer; None selects its default."""
    repeatable, choices = isinstance(default, tuple), metadata["choices"]
    names = {choice: choice for choice in choices}
    single: Any = str if repeatable else type(default)
    kind: Any = Enum(f"{name}s", names, type=str) if choices else single
    return Annotated[
        (list[kind] if repeatable else kind) | None,
        typer.Option(
            f"--{name}",
            help=metadata["help"] + ("" if repeatable else f" (default: {default})"),
            min=metadata["least"],
        ),
    ]


def _takes_options(command: Command) -> Command:
    """Give a command the suite's options, and those of the evaluation."""
    suite = {
        one.name: _typer_option(one.name, one.default, one.metadata) for one in fields(SuiteOptions)
    }
    command = option_group(command, "options", suite, suite_options)
    return option_group(command, "case", REPORTED_OPTIONS, reported_case)


@with_backend
@_takes_options
def conformance(
    backends: list[BackendChoice],
    options: SuiteOptions,
    case: Reported | None,
    words: Annotated[
        list[str] | None,
        typer.Option("-k", help="Run only checks with one of these words in the name; repeatable."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes that share the checks of a backend.")
    ] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the report to this file as JSON.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Also write the report to this file as HTML.")
    ] = None,
) -> None:
    """Check backends against the specification; exit status 1 if a check failed."""
    text = " ".join(words or ())
    checks = select(options.level, text)
    if not checks:
        raise typer.BadParameter(f"-k: no check of these levels has {text!r} in its name")
    _require_writable(json_file, html_file)
    if case is not None:
        case.require_usable()
    outcomes = _run(backends, checks, options, jobs)
    evaluations = {} if case is None else _evaluate(backends, case)
    report = Report(options.profile, options.seed, tuple(outcomes), evaluations)
    typer.echo(as_text(report))
    if json_file is not None:
        write_json(json_file, as_data(report))
    if html_file is not None:
        write_atomically(html_file, as_html(as_data(report)))
    if report.failed():
        raise typer.Exit(1)


def _require_writable(*files: Path | None) -> None:
    given = [file.absolute() for file in files if file is not None]
    if len(set(given)) < len(given):
        raise typer.BadParameter(f"{given[0]}: is named for two reports; choose another name")
    for file in files:
        if file is not None and file.exists() and not (file.is_file() or file.is_dir()):
            raise typer.BadParameter(f"{file}: is not a file; choose the name of a file")
        if file is not None and file.is_dir():
            raise typer.BadParameter(f"{file}: is a folder; choose the name of a file")
        if file is not None and not file.absolute().parent.is_dir():
            raise typer.BadParameter(f"{file}: there is no folder {file.parent}; create it first")


def _run(
    backends: list[BackendChoice], checks: list[Check], options: SuiteOptions, jobs: int
) -> list[Outcome]:
    """All outcomes; progress on standard error: a bar on a terminal, otherwise lines."""
    done = []
    waiting = [f"{backend.name} {check.name}" for backend in backends for check in checks]
    with tqdm(total=len(waiting), disable=None, unit="check") as bar:
        bar.set_description(waiting[0])
        for outcome in run_suite(backends, checks, options, jobs):
            done.append(outcome)
            line = f"{waiting[len(done) - 1]}: {outcome.state}, {outcome.seconds:.1f} s"
            if bar.disable:
                print(line, file=sys.stderr, flush=True)
            elif outcome.state == FAILED:
                bar.write(line, file=sys.stderr)
            bar.set_description([*waiting, ""][len(done)])
            bar.update()
    return done


def _evaluate(backends: list[BackendChoice], case: Reported) -> dict[str, ReportedOutcome]:
    """The evaluations by the backend's name; a line on standard error for each."""
    evaluations = {}
    for name, outcome in run_reported(backends, case):
        line = f"{name} {reported.LEVEL}: {outcome.state}, {outcome.seconds:.1f} s"
        print(line, file=sys.stderr, flush=True)
        evaluations[name] = outcome
    return evaluations
