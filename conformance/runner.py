"""Runs checks: in this process, or in one of its own that may crash or hang."""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import functools
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import Flaky
from tqdm import tqdm

import refinedet.conformance.checks  # noqa: F401 - fills the registry
from refinedet.backends.interface import Limitation
from refinedet.backends.registry import BackendChoice
from refinedet.conformance.judge import (
    NotImplementedByBackend,
    NotRun,
    Subject,
    Violation,
    in_a_line,
)
from refinedet.conformance.registry import CHECKS, LEVELS, Check
from refinedet.conformance.source import source
from refinedet.errors import BackendError

PROFILES = {"quick": 10, "default": 50, "thorough": 500}
"""Drawn cases of a check, before its share."""
SHRINKS = 0.1
"""Least share of a check whose failing cases are made smaller: others take seconds a case."""
LIMIT = 300.0
"""Seconds after which a check counts as hanging; of one that may take hours, between two
signs of life."""
FILES = "--model, --annotations, --images and --expect"
"""What the check with the user's files needs."""

PASSED, FAILED, MISSING, LIMITED = "passed", "failed", "not implemented", "limited"
"""``LIMITED``: failed, as the backend declares."""
NOT_RUN = "not run"
"""It needs files, which were not given."""
ALIVE = "alive"
"""What a check's process says between question and outcome."""


@dataclass(frozen=True)
class Failure:
    """Why a check failed, with the smallest input that shows it."""

    said: str
    got: str = ""
    expected: str = ""
    error: float | None = None
    tolerance: float | None = None
    case: str = ""
    """Python source of the input."""
    snippet: str = ""
    """Python source that shows the failure."""


@dataclass(frozen=True)
class Outcome:
    """What became of one check on one backend."""

    backend: str
    check: str
    level: str
    law: str
    state: str
    seconds: float
    worst: float = 0.0
    """Largest error found, as a fraction of its tolerance."""
    cases: int = 0
    masked: int = 0
    """Of the discrete results compared, those left undecided by the specification's margin."""
    reason: str = ""
    """Of a limitation, what is not implemented, or what to give."""
    failure: Failure | None = None


def judge(
    check: Check,
    subject: Subject,
    profile: str = "default",
    number: int = 0,
    shrink: bool = True,
) -> None:
    """One check in this process.

    Args:
        number: seed of the drawn cases.
        shrink: look for the smallest case once one has failed.
    Raises:
        Violation: with the smallest case found, as ``case``.
        NotImplementedByBackend: the backend lacks what the check needs.
        NotRun: the check needs files of the user and has none.
    """
    if check.given and not check.pinned:
        raise NotRun(f"give {FILES}")
    try:
        for case in check.pinned:
            _tell_case(check, subject, case)
    except Violation as violation:
        if shrink and check.share >= SHRINKS:
            _find_smaller(check, subject, profile, number, violation)
        raise
    _judge_drawn(check, subject, profile, number, shrink)
    if subject.masked > check.masked * subject.cases:
        part = subject.masked / subject.cases
        raise Violation(
            f"{part:.0%} of the discrete results are undecided, more than {check.masked:.0%}"
        )


def _judge_drawn(check: Check, subject: Subject, profile: str, number: int, shrink: bool) -> None:
    """The drawn cases; raises what the smallest one that fails raises."""
    if check.share == 0:
        return
    shrinks = [Phase.shrink] if shrink and check.share >= SHRINKS else []

    @seed(number)
    @settings(
        max_examples=max(1, round(PROFILES[profile] * check.share)),
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *shrinks],
    )
    @given(check.draws)
    def drawn(case: Any) -> None:
        _tell_case(check, subject, case)

    drawn()


def _find_smaller(
    check: Check, subject: Subject, profile: str, number: int, pinned: Violation
) -> None:
    """Raise the violation of a drawn case, if there is one shorter than the pinned one's."""
    try:
        _judge_drawn(check, subject, profile, number, shrink=True)
    except Violation as drawn:
        if len(source(drawn.case)) < len(source(pinned.case)):
            raise drawn from None


def _tell_case(check: Check, subject: Subject, case: Any) -> None:
    try:
        check.run(subject, copy.deepcopy(case))  # a backend may write into what it is given
    except Exception as error:
        error.case = case  # type: ignore[attr-defined]  # of whatever the backend raised
        raise


def outcome(
    check: Check,
    backend: Any,
    profile: str = "default",
    number: int = 0,
    name: str = "",
    alive: Callable[[], object] = int,
) -> Outcome:
    """``judge`` with its result as data; declared limitations are expected failures.

    Args:
        name: how the user calls the backend, if not by its own name.
        alive: as ``Subject`` has it.
    """
    name = name or str(getattr(backend, "name", "nameless"))
    began = time.perf_counter()
    declared = {x.check: x for x in limitations(backend)}.get(check.name)
    subject = Subject(backend, alive=alive)
    state, reason, failure = PASSED, "", None
    if declared and declared.crashes:
        state, reason = LIMITED, declared.reason
    else:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                judge(check, subject, profile, number)
            if declared:
                state = FAILED
                failure = Failure(f"passes, but is declared a limitation: {declared.reason}")
        except NotImplementedByBackend as error:
            state, reason = MISSING, str(error)
        except NotRun as error:
            state, reason = NOT_RUN, str(error)
        except Violation as violation:
            state, failure = FAILED, _failure(check, name, violation)
        except Flaky as error:
            state, failure = FAILED, _failure(check, name, _unsteady(error))
        except Exception as error:  # an answer that the check did not expect, or its own fault
            traceback.print_exc()
            state, failure = FAILED, _failure(check, name, _raised(error))
        if declared and state == FAILED and failure and failure.case:
            state, reason = LIMITED, declared.reason
    return Outcome(
        name,
        check.name,
        check.level,
        check.law,
        state,
        time.perf_counter() - began,
        subject.worst,
        subject.cases,
        subject.masked,
        reason,
        failure,
    )


def limitations(backend: Any) -> tuple[Limitation, ...]:
    """What the backend declares.

    Raises:
        BackendError: a limitation of a check that does not exist.
    """
    declared: tuple[Limitation, ...] = getattr(backend, "limitations", ())
    for limitation in declared:
        if limitation.check not in CHECKS:
            raise BackendError("there is no such check", key=f"limitation {limitation.check!r}")
    return declared


def _unsteady(error: Exception) -> Violation:
    said = "the same input does not give the same result again"
    for found in getattr(error, "exceptions", ()):
        if isinstance(found, Violation):
            found.said += f"; {said}"
            return found
    return Violation(said)


def _raised(error: Exception) -> Violation:
    violation = Violation(f"the check cannot judge the answer: {in_a_line(error)}")
    violation.case = getattr(error, "case", None)
    return violation


def _failure(check: Check, backend: str, violation: Violation) -> Failure:
    case = "" if violation.case is None else source(violation.case)
    snippet = f"""from refinedet.conformance.replay import *

replay({backend!r}, {check.name!r}, {case})"""
    return Failure(
        violation.said,
        "" if violation.got is None else source(violation.got, limit=2000),
        "" if violation.expected is None else source(violation.expected, limit=2000),
        violation.error,
        violation.tolerance,
        case,
        snippet if case else "",
    )


def select(levels: Iterable[str] = (), text: str = "", case: Any = None) -> list[Check]:
    """Checks of these levels (all, if none), with a word of ``text`` in their names.

    Args:
        case: the files of the user, if given, for the check that needs them.
    """
    expected, words = set(levels) or set(LEVELS), text.split()
    return sorted(
        (
            c if case is None or not c.given else replace(c, pinned=(case,))
            for c in CHECKS.values()
            if c.level in expected and (not words or any(word in c.name for word in words))
        ),
        key=lambda c: LEVELS.index(c.level),
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that start here compute NumPy's products on one thread, unless the user chose.

    Sums are then made in one order on every machine; and where others use the cores too, the
    threads of OpenBLAS that wait for each other take four times as long.
    """
    chosen = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = chosen or "1"
    try:
        yield
    finally:
        if chosen is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = chosen


STARTING = threading.Lock()
"""Held while a process starts, which inherits this one's variables."""


class _GoneError(Exception):
    """The process does not answer; the message ends a sentence about what it did."""


class Worker:
    """A process with one backend. If it dies or hangs, the check that ran has failed."""

    def __init__(
        self, backend: BackendChoice, profile: str, number: int, limit: float = LIMIT
    ) -> None:
        self.arguments = backend, profile, number
        self.limit = limit
        self._process: Any = None
        self._folder: Any = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        """Load the backend in a new process, if there is none.

        Raises:
            BackendError: it is unknown or cannot run here.
        """
        if self._pipe is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._folder = tempfile.TemporaryDirectory(prefix="refinedet-")
        arguments = (there, self._folder.name, *self.arguments)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        with STARTING, _one_thread():
            self._process.start()
        there.close()
        try:
            refused = self._answer(None, max(self.limit, LIMIT))  # a framework may load slowly
        except _GoneError as gone:
            refused = f"backend {self.arguments[0].name}: loading it {gone}"
        if refused is not None:
            self.close()
            raise BackendError(str(refused))

    def run(self, check: Check) -> Outcome:
        """The outcome of one check; starts the process if there is none."""
        self.start()
        began = time.perf_counter()
        try:
            question = check.name, check.pinned if check.given else None
            answered: Outcome = self._answer(question, self.limit)
            return answered
        except _GoneError as gone:
            self.close()
            seconds = time.perf_counter() - began
            name, failure = self.arguments[0].name, Failure(f"{check.name} {gone}")
        return Outcome(name, check.name, check.level, check.law, FAILED, seconds, failure=failure)

    def _answer(self, question: tuple[str, Any] | None, limit: float) -> Any:
        """The answer; each sign of life before it begins the limit anew."""
        assert self._pipe is not None
        lacking = "does not end"
        try:
            if question:
                self._pipe.send(question)
            while self._pipe.poll(limit):
                answer = self._pipe.recv()
                if answer != ALIVE:
                    return answer
                lacking = "shows no progress"
            raise _GoneError(f"{lacking} within {limit:g} s")
        except (EOFError, OSError):
            self._process.join(10)
            code = self._process.exitcode
            how = f"signal {-code}" if code and code < 0 else f"status {code}"
            raise _GoneError(f"ends the process ({how})") from None

    def close(self) -> None:
        """End the process."""
        if self._pipe is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._pipe = None
            self._folder.cleanup()


def _serve(pipe: Connection, folder: str, chosen: BackendChoice, profile: str, number: int) -> None:
    """The process: says None once the backend is ready, or why it is not; then answers."""
    faulthandler.enable()
    set_hypothesis_home_dir(folder)  # otherwise it leaves its own in the user's folder
    tqdm.set_lock(threading.RLock())  # its own is for processes, and this one is killed with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, interrupted too, ends this process
    try:
        backend = chosen.find()
        limitations(backend)
    except BackendError as error:
        pipe.send(str(error))
        return
    except Exception as error:
        traceback.print_exc()
        pipe.send(f"backend {chosen.name}: raises {type(error).__name__}: {error}")
        return
    pipe.send(None)
    with contextlib.suppress(EOFError):
        while True:
            asked, given = pipe.recv()
            check = CHECKS[asked] if given is None else replace(CHECKS[asked], pinned=given)
            alive = functools.partial(pipe.send, ALIVE)
            pipe.send(outcome(check, backend, profile, number, chosen.name, alive))


def run(
    backends: Iterable[BackendChoice],
    checks: list[Check],
    profile: str = "default",
    number: int = 0,
    limit: float = LIMIT,
    jobs: int = 1,
) -> Iterator[Outcome]:
    """Every check on every backend, in this order, each as soon as it and those before it end.

    Args:
        jobs: processes of a backend that judge side by side.
    Raises:
        BackendError: a backend that is unknown or cannot run here.
    """
    pools = [[Worker(chosen, profile, number, limit) for _ in range(jobs)] for chosen in backends]
    for later, *_ in pools[1:]:  # told at once, not after hours on the others
        later.start()
        later.close()
    for workers in pools:
        yield from _share(workers[: len(checks)], checks)


def _share(workers: list[Worker], checks: list[Check]) -> Iterator[Outcome]:
    """The outcomes in the order of the checks; a worker that is idle takes the next check."""
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def judge_by_next(check: Check) -> Outcome:
        worker = idle.get()
        try:
            return worker.run(check)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            yield from pool.map(judge_by_next, checks)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.close()
