"""The suite's options, and the processes of the backends, for pytest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refinedet.backends.registry import BackendChoice
from refinedet.conformance.checks.reported import asked
from refinedet.conformance.registry import LEVELS
from refinedet.conformance.report import Report, as_data, summary
from refinedet.conformance.runner import LIMIT, PROFILES, Outcome, Worker, select
from refinedet.errors import BackendError
from refinedet.evaluation.model_run import Reported

OUTCOMES = pytest.StashKey[list[Outcome]]()
CASE = pytest.StashKey[Reported | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the command ``refinedet conformance``; ``-k`` is pytest's own."""
    group = parser.getgroup("refinedet conformance")
    group.addoption("--backend", action="append", default=[], help="backend to judge; repeatable")
    group.addoption(
        "--level",
        action="append",
        default=[],
        choices=LEVELS,
        help="judge this level alone; repeatable",
    )
    group.addoption("--profile", choices=list(PROFILES), default="default", help="how many inputs")
    group.addoption("--seed", type=int, default=0, help="of the drawn inputs")
    group.addoption("--limit", type=float, default=LIMIT, help="seconds a check may take")
    for name, what in (
        ("--model", "published detector, for level reported mAP"),
        ("--annotations", "COCO's JSON"),
        ("--images", "folder of the images"),
    ):
        group.addoption(name, type=Path, help=what)
    group.addoption("--expect", help="published metrics to reach")
    group.addoption("--retrained", action="store_true", help="of a detector trained anew")


def pytest_configure(config: pytest.Config) -> None:
    """A place for the outcomes, and for the files of the user."""
    config.stash[OUTCOMES], config.stash[CASE] = [], None


def pytest_sessionstart(session: pytest.Session) -> None:
    """There is no default backend; the files of the user are read before anything runs."""
    option = session.config.getoption
    if not option("backend"):
        raise pytest.UsageError("say which backend to judge: --backend NAME")
    given = (option(name) for name in ("model", "annotations", "images", "expect", "retrained"))
    try:
        if case := asked(*given):
            case.require_usable()
    except (ValueError, OSError) as error:
        raise pytest.UsageError(str(error)) from error
    session.config.stash[CASE] = case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """An item for each check on each backend."""
    if "judged" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    # pytest knows no option of a conftest.py that it meets deep in a folder: then all is skipped
    backends = list(dict.fromkeys(option("backend", [])))
    metafunc.parametrize("worker", backends, indirect=True, scope="session")
    checks = select(option("level", []), case=metafunc.config.stash[CASE])
    metafunc.parametrize("judged", checks, ids=lambda check: check.name)


@pytest.fixture(scope="session")
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """The process of a backend: one for the session, unless a check ends it."""
    option = request.config.getoption
    made = Worker(BackendChoice(request.param), option("profile"), option("seed"), option("limit"))
    try:
        made.start()
    except BackendError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    yield made
    made.close()


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> list[Outcome]:
    """Where the outcomes are kept for the table at the end."""
    return request.config.stash[OUTCOMES]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table by level, and the level reached."""
    if found := config.stash[OUTCOMES]:
        option = config.getoption
        data = as_data(Report(option("profile"), option("seed"), tuple(found)))
        terminalreporter.section("conformance")
        for line in ["", *summary(data["backends"])]:
            terminalreporter.write_line(line)
