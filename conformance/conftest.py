"""The suite's options, and the processes of the backends, for pytest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from refinedet.backends.registry import BackendChoice
from refinedet.conformance.options import SuiteOptions, suite_options
from refinedet.conformance.report import Report, as_data, summary
from refinedet.conformance.runner import Outcome, SuiteProcess, select
from refinedet.errors import BackendError

OUTCOMES = pytest.StashKey[list[Outcome]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the command ``refinedet conformance``; ``-k`` is pytest's own."""
    group = parser.getgroup("refinedet conformance")
    group.addoption("--backend", action="append", default=[], help="Backend to check; repeatable.")
    for one in fields(SuiteOptions):
        repeatable = isinstance(one.default, tuple)
        group.addoption(
            f"--{one.name}",
            action="append" if repeatable else "store",
            default=[] if repeatable else one.default,
            type=str if repeatable else type(one.default),
            choices=one.metadata["choices"] or None,
            help=one.metadata["help"],
        )


def _options(config: pytest.Config) -> SuiteOptions:
    return suite_options(**{one.name: config.getoption(one.name) for one in fields(SuiteOptions)})


def pytest_configure(config: pytest.Config) -> None:
    """Make the list of outcomes."""
    config.stash[OUTCOMES] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """Require a backend: there is no default."""
    if not session.config.getoption("backend"):
        raise pytest.UsageError("name the backend to check: --backend NAME")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make an item for each check on each backend."""
    if "check" not in metafunc.fixturenames:
        return
    config = metafunc.config
    # Where pytest meets this file deep in a folder it knows no option: then all is skipped.
    backends = list(dict.fromkeys(config.getoption("backend", [])))
    metafunc.parametrize("suite_process", backends, indirect=True, scope="session")
    levels = config.getoption("level", [])
    metafunc.parametrize("check", select(levels), ids=lambda check: check.name)


@pytest.fixture(scope="session")
def suite_process(request: pytest.FixtureRequest) -> Iterator[SuiteProcess]:
    """The process of a backend: one for the session, unless a check ends it."""
    process = SuiteProcess(BackendChoice(request.param), _options(request.config))
    try:
        process.start()
    except BackendError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    yield process
    process.close()


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> list[Outcome]:
    """The list of outcomes, for the table at the end."""
    return request.config.stash[OUTCOMES]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table by level, and the level reached."""
    if outcomes := config.stash[OUTCOMES]:
        options = _options(config)
        data = as_data(Report(options.profile, options.seed, tuple(outcomes)))
        terminalreporter.section("conformance")
        for line in ["", *summary(data["backends"])]:
            terminalreporter.write_line(line)
