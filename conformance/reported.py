"""Level *reported mAP*: whether a backend reaches the published metrics of a detector.

This is an evaluation, not a law: the command runs it after the checks, if it is given the
detector and the data. It is the evaluation of ``refinedet eval``.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from refinedet.backends.interface import Backend
from refinedet.backends.registry import BackendChoice
from refinedet.conformance.comparison import in_a_line
from refinedet.conformance.options import LIMIT
from refinedet.conformance.process import BackendProcess, ProcessEndedError
from refinedet.conformance.runner import FAILED, NOT_IMPLEMENTED, PASSED
from refinedet.errors import ExpectationError, UsageError
from refinedet.evaluation.model_run import Reported
from refinedet.evaluation.published import (
    Comparison,
    compare,
    comparison_table,
    find_published,
    require_agreement,
)
from refinedet.models.open import read_model

LEVEL = "reported mAP"
NOT_RUN = "not run"


@dataclass(frozen=True)
class ReportedOutcome:
    """The result of the evaluation on one backend."""

    state: str
    reason: str = ""
    """Why it failed or was not run, or what the backend does not implement."""
    metrics: tuple[Comparison, ...] = ()
    """Each metric beside its published value; empty if nothing was measured."""
    table: str = ""
    """The same as text."""
    seconds: float = 0.0


NOT_EVALUATED = ReportedOutcome(NOT_RUN, "no published detector and data set were given")


def reported_case(
    model: Path | None,
    annotations: Path | None,
    images: Path | None,
    expect: str | None,
    retrained: bool | None,
) -> Reported | None:
    """The evaluation that the user's arguments describe, or None if none is given.

    Raises:
        UsageError: some of the arguments, but not all that are needed.
        ExpectationError: no published row called ``expect``.
    """
    needed = {"model": model, "annotations": annotations, "images": images, "expect": expect}
    given = [name for name, value in (*needed.items(), ("retrained", retrained)) if value]
    if not given:
        return None
    if not (model and annotations and images and expect):
        missing = next(name for name, value in needed.items() if not value)
        raise UsageError(f"is needed for level {LEVEL}, as well as {given[0]}", key=missing)
    return Reported(model, annotations, images, find_published(expect), bool(retrained))


def run_reported(
    backends: Iterable[BackendChoice], case: Reported
) -> Iterator[tuple[str, ReportedOutcome]]:
    """Evaluate with each backend, in a process of its own; yield its name and outcome.

    Raises:
        BackendError: a backend that is unknown or cannot run here.
    """
    for chosen in backends:
        process = BackendProcess(chosen, LIMIT)
        try:
            yield chosen.name, process.call(evaluate_reported, case)
        except ProcessEndedError as error:
            yield chosen.name, ReportedOutcome(FAILED, f"the evaluation {error}")
        finally:
            process.close()


def evaluate_reported(backend: Backend, case: Reported) -> ReportedOutcome:
    """Evaluate a detector by the protocol of its published row, and compare the metrics.

    Whatever the evaluation raises is a failure.
    """
    began = time.perf_counter()
    try:
        model = read_model(case.model)
        if model.capability not in backend.capabilities:
            return ReportedOutcome(NOT_IMPLEMENTED, model.capability)
        metrics = case.evaluate(backend, model).metrics
    except Exception as error:
        traceback.print_exc()
        return ReportedOutcome(FAILED, f"the evaluation raises {in_a_line(error)}")
    return replace(compare_reported(metrics, case), seconds=time.perf_counter() - began)


def compare_reported(metrics: Mapping[str, float], case: Reported) -> ReportedOutcome:
    """Compare measured metrics with the published ones."""
    compared = compare(metrics, case.row, case.retrained)
    table = comparison_table(compared, case.row, case.retrained)
    state, reason = PASSED, ""
    try:
        require_agreement(compared, case.row, case.retrained)
    except ExpectationError as error:
        state, reason = FAILED, error.reason
    return ReportedOutcome(state, reason, tuple(compared), table)
