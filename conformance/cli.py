"""The command ``conformance``."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from refinedet.backends.registry import BackendChoice
from refinedet.cli.backend_options import chooses_backend
from refinedet.conformance.checks.reported import asked
from refinedet.conformance.registry import LEVELS, Check
from refinedet.conformance.report import Report, as_data, as_text
from refinedet.conformance.report_html import as_html
from refinedet.conformance.runner import FAILED, LIMIT, PROFILES, Outcome, run, select
from refinedet.errors import DataError
from refinedet.support.files import write_atomically, write_json

Level = Enum("Level", {level: level for level in LEVELS}, type=str)  # type: ignore[misc]
REPORTED = "Level reported mAP"
Profile = Enum("Profile", {name: name for name in PROFILES}, type=str)  # type: ignore[misc]


@chooses_backend
def conformance(
    backends: list[BackendChoice],
    level: Annotated[
        list[Level] | None, typer.Option("--level", help="Judge this level alone; repeatable.")
    ] = None,
    profile: Annotated[Profile, typer.Option(help="How many inputs each check draws.")] = Profile[
        "default"
    ],
    words: Annotated[
        list[str] | None,
        typer.Option("-k", help="Judge checks with such words in their names; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawn inputs.")] = 0,
    limit: Annotated[
        float, typer.Option(min=1, help="Seconds after which a check counts as hanging.")
    ] = LIMIT,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes of a backend that judge side by side.")
    ] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report there as JSON too.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write the report there as a page too.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a run, a checkpoint, weights, or an exported detector.",
            rich_help_panel=REPORTED,
        ),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO's JSON.", rich_help_panel=REPORTED)
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images.", rich_help_panel=REPORTED)
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            help="Published metrics to reach, as modelzoo-ascend910.", rich_help_panel=REPORTED
        ),
    ] = None,
    retrained: Annotated[
        bool,
        typer.Option(
            "--retrained",
            help="Expect no more than of a detector trained anew.",
            rich_help_panel=REPORTED,
        ),
    ] = False,
) -> None:
    """Judge backends by the specification; status 1 if a check failed."""
    case = asked(model, annotations, images, expect, retrained)
    text = " ".join(words or ())
    checks = select((str(one.value) for one in level or ()), text, case)
    if not checks:
        raise typer.BadParameter(f"-k: no check of these levels has {text!r} in its name")
    for file in (json_file, html_file):
        if file is not None and file.is_dir():
            raise typer.BadParameter(f"{file}: is a folder; choose the name of a file")
        if file is not None and not file.absolute().parent.is_dir():
            raise typer.BadParameter(f"{file}: there is no folder {file.parent}; create it first")
    if case is not None:
        if not any(check.given for check in checks):
            raise DataError(
                "is for level reported mAP, which --level or -k leaves out", key="--model"
            )
        case.require_usable()
    outcomes = _run(backends, checks, str(profile.value), seed, limit, jobs)
    report = Report(str(profile.value), seed, tuple(outcomes))
    typer.echo(as_text(report))
    if json_file is not None:
        write_json(json_file, as_data(report))
    if html_file is not None:
        write_atomically(html_file, as_html(as_data(report)))
    if report.failed():
        raise typer.Exit(1)


def _run(
    backends: list[BackendChoice],
    checks: list[Check],
    profile: str,
    seed: int,
    limit: float,
    jobs: int,
) -> list[Outcome]:
    """All outcomes; tells of each on standard error: a bar on a terminal, otherwise lines."""
    done = []
    waiting = [f"{backend.name} {check.name}" for backend in backends for check in checks]
    with tqdm(total=len(waiting), disable=None, unit="check") as bar:
        bar.set_description(waiting[0])
        for outcome in run(backends, checks, profile, seed, limit, jobs):
            done.append(outcome)
            line = f"{waiting[len(done) - 1]}: {outcome.state}, {outcome.seconds:.1f} s"
            if bar.disable:
                print(line, file=sys.stderr, flush=True)
            elif outcome.state == FAILED:
                bar.write(line, file=sys.stderr)
            bar.set_description([*waiting, ""][len(done)])
            bar.update()
    return done
