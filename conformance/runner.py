"""Runs one check in this process, or all checks in child processes, which may crash or hang."""

from __future__ import annotations

import copy
import queue
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Flaky

import refinedet.conformance.checks  # noqa: F401 - fills the registry
from refinedet.backends.interface import Backend
from refinedet.backends.registry import BackendChoice
from refinedet.conformance.comparison import (
    CheckedBackend,
    CheckFailedError,
    NotImplementedByBackendError,
    in_a_line,
)
from refinedet.conformance.options import LIMIT, PROFILES, SuiteOptions
from refinedet.conformance.process import BackendProcess, ProcessEndedError
from refinedet.conformance.registry import CHECKS, LEVELS, Check, declared_limitations
from refinedet.conformance.source import source

SHRINKS = 0.1
"""Failing cases are shrunk if ``Check.share`` is at least this; below, a case takes seconds."""

PASSED, FAILED, NOT_IMPLEMENTED, LIMITED = "passed", "failed", "not implemented", "limited"
"""States of a check; ``LIMITED`` means that it failed as the backend declares."""


@dataclass(frozen=True)
class Failure:
    """Why a check failed, with the smallest input that shows it."""

    message: str
    actual: str = ""
    """Python source of the backend's result."""
    expected: str = ""
    """Python source of the specification's result."""
    error: float | None = None
    """Absolute error of the number that is furthest outside its tolerance."""
    tolerance: float | None = None
    """The absolute error allowed for that number."""
    case: str = ""
    """Python source of the input."""
    snippet: str = ""
    """Python program that reproduces the failure."""


@dataclass(frozen=True)
class Outcome:
    """The result of one check on one backend."""

    backend: str
    check: str
    level: str
    law: str
    state: str
    seconds: float
    worst: float = 0.0
    """Largest error as a fraction of its tolerance."""
    compared: int = 0
    """Discrete results compared."""
    undecided: int = 0
    """Of these, the results that the margin left undecided."""
    reason: str = ""
    """Why the backend is limited, or what it does not implement."""
    failure: Failure | None = None


def run_check(
    check: Check,
    backend: CheckedBackend,
    profile: str = "default",
    seed: int = 0,
    shrink: bool = True,
) -> None:
    """Run one check in this process.

    Args:
        seed: random seed of the drawn cases.
        shrink: search for the smallest failing case once one has failed.
    Raises:
        CheckFailedError: with the smallest failing case, as ``case``.
        NotImplementedByBackendError: the backend lacks what the check needs.
    """
    try:
        for case in check.pinned:
            _run_case(check, backend, case)
    except CheckFailedError as error:
        if shrink and check.share >= SHRINKS:
            _raise_if_smaller(check, backend, profile, seed, error)
        raise
    _run_drawn(check, backend, profile, seed, shrink)
    if backend.undecided > check.max_undecided * backend.compared:
        fraction = backend.undecided / backend.compared
        raise CheckFailedError(
            f"{fraction:.0%} of the discrete results are undecided, "
            f"more than {check.max_undecided:.0%}"
        )


def _run_drawn(
    check: Check, backend: CheckedBackend, profile: str, seed: int, shrink: bool
) -> None:
    """Run the drawn cases; raise the error of the smallest failing one."""
    if check.share == 0:
        return
    shrinking = [Phase.shrink] if shrink and check.share >= SHRINKS else []

    @hypothesis.seed(seed)
    @settings(
        max_examples=max(1, round(PROFILES[profile] * check.share)),
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *shrinking],
    )
    @given(check.draws)
    def run_drawn(case: Any) -> None:
        _run_case(check, backend, case)

    run_drawn()


def _raise_if_smaller(
    check: Check, backend: CheckedBackend, profile: str, seed: int, pinned: CheckFailedError
) -> None:
    """Raise the error of a drawn case if one fails that is shorter than the pinned case."""
    try:
        _run_drawn(check, backend, profile, seed, shrink=True)
    except CheckFailedError as drawn:
        if len(source(drawn.case)) < len(source(pinned.case)):
            raise drawn from None


def _run_case(check: Check, backend: CheckedBackend, case: Any) -> None:
    try:
        check.run(backend, copy.deepcopy(case))  # a backend may write into its arguments
    except Exception as error:
        error.case = case  # type: ignore[attr-defined]  # whatever type the backend raised
        raise


def outcome_of(
    backend: Backend,
    check: Check,
    profile: str = "default",
    seed: int = 0,
    name: str = "",
) -> Outcome:
    """Run one check in this process and return the result as data.

    A check that the backend declares as a limitation is expected to fail.

    Args:
        name: the backend's name as the user gave it; empty for ``backend.name``.
    """
    name = name or backend.name
    began = time.perf_counter()
    declared = declared_limitations(backend).get(check.name)
    checked = CheckedBackend(backend)
    state, reason, failure = LIMITED, "", None
    if declared is None or not declared.crashes:
        state, reason, failure = _attempt(check, checked, profile, seed, name)
    if declared and state == PASSED:
        message = f"passes, but is declared as a limitation: {declared.reason}"
        state, failure = FAILED, Failure(message)
    elif declared and (declared.crashes or (failure and failure.case)):
        state, reason = LIMITED, declared.reason
    return Outcome(
        name,
        check.name,
        check.level,
        check.law,
        state,
        time.perf_counter() - began,
        checked.worst,
        checked.compared,
        checked.undecided,
        reason,
        failure,
    )


def _attempt(
    check: Check, backend: CheckedBackend, profile: str, seed: int, name: str
) -> tuple[str, str, Failure | None]:
    """State, reason and failure of a check; declared limitations are not considered."""
    try:
        run_check(check, backend, profile, seed)
    except NotImplementedByBackendError as error:
        return NOT_IMPLEMENTED, str(error), None
    except CheckFailedError as error:
        return FAILED, "", _failure(check, name, error)
    except Flaky as error:
        return FAILED, "", _failure(check, name, _not_repeatable(error))
    except Exception as error:  # an unforeseen result of the backend, or a fault of the check
        traceback.print_exc()
        unforeseen = CheckFailedError(f"the check cannot use the result: {in_a_line(error)}")
        unforeseen.case = getattr(error, "case", None)
        return FAILED, "", _failure(check, name, unforeseen)
    return PASSED, "", None


def _not_repeatable(error: Exception) -> CheckFailedError:
    message = "two runs on the same input give different results"
    for cause in getattr(error, "exceptions", ()):
        if isinstance(cause, CheckFailedError):
            cause.message += f"; {message}"
            return cause
    return CheckFailedError(message)


def _failure(check: Check, backend: str, error: CheckFailedError) -> Failure:
    case = "" if error.case is None else source(error.case)
    snippet = f"""from refinedet.conformance.replay import *

replay({backend!r}, {check.name!r}, {case})"""
    return Failure(
        error.message,
        "" if error.actual is None else source(error.actual, limit=2000),
        "" if error.expected is None else source(error.expected, limit=2000),
        error.error,
        error.tolerance,
        case,
        snippet if case else "",
    )


def select(levels: Iterable[str] = (), text: str = "") -> list[Check]:
    """The checks of these levels, or of all, with one of the words of ``text`` in their names."""
    chosen, words = set(levels) or set(LEVELS), text.split()
    return sorted(
        (
            check
            for check in CHECKS.values()
            if check.level in chosen and (not words or any(word in check.name for word in words))
        ),
        key=lambda check: LEVELS.index(check.level),
    )


class SuiteProcess:
    """Runs checks in a child process. A check during which it crashes or hangs has failed."""

    def __init__(self, backend: BackendChoice, options: SuiteOptions) -> None:
        self.options = options
        self._process = BackendProcess(backend, max(options.limit, LIMIT))

    def start(self) -> None:
        """Load the backend; see ``BackendProcess.start``."""
        self._process.start()

    def run(self, check: Check) -> Outcome:
        """The outcome of one check; starts the process if it is not running."""
        self.start()
        began = time.perf_counter()
        name, options = self._process.backend.name, self.options
        try:
            outcome: Outcome = self._process.call(
                _outcome_by_name,
                check.name,
                options.profile,
                options.seed,
                name,
                limit=options.limit,
            )
            return outcome
        except ProcessEndedError as error:
            seconds = time.perf_counter() - began
            failure = Failure(f"{check.name} {error}")
        return Outcome(name, check.name, check.level, check.law, FAILED, seconds, failure=failure)

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _outcome_by_name(backend: Backend, check: str, profile: str, seed: int, name: str) -> Outcome:
    return outcome_of(backend, CHECKS[check], profile, seed, name)


def run_suite(
    backends: Iterable[BackendChoice], checks: list[Check], options: SuiteOptions, jobs: int = 1
) -> Iterator[Outcome]:
    """Run every check on every backend; yield the outcomes in this order as they arrive.

    Args:
        jobs: number of processes that share the checks of a backend.
    Raises:
        BackendError: a backend that is unknown or cannot run here.
    """
    pools = [[SuiteProcess(chosen, options) for _ in range(jobs)] for chosen in backends]
    for first, *_ in pools[1:]:  # report a backend that cannot start before hours of checks
        first.start()
        first.close()
    for processes in pools:
        yield from _share(processes[: len(checks)], checks)


def _share(processes: list[SuiteProcess], checks: list[Check]) -> Iterator[Outcome]:
    """The outcomes in the order of the checks; an idle process takes the next check."""
    idle: queue.SimpleQueue[SuiteProcess] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def run_on_idle(check: Check) -> Outcome:
        process = idle.get()
        try:
            return process.run(check)
        finally:
            idle.put(process)

    with ThreadPoolExecutor(len(processes)) as pool:
        try:
            yield from pool.map(run_on_idle, checks)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.close()
