"""The suite under pytest: ``pytest --pyargs refinedet.conformance --backend NAME``."""

from __future__ import annotations

import pytest

from refinedet.conformance.registry import Check
from refinedet.conformance.report import failure_text
from refinedet.conformance.runner import FAILED, LIMITED, MISSING, NOT_RUN, Outcome, Worker


def test_conformance(worker: Worker, judged: Check, outcomes: list[Outcome]) -> None:
    """A law of the specification, on a backend."""
    outcome = worker.run(judged)
    outcomes.append(outcome)
    if outcome.state == FAILED:
        pytest.fail(failure_text(outcome), pytrace=False)
    if outcome.state == MISSING:
        pytest.skip(f"not implemented: {outcome.reason}")
    if outcome.state == NOT_RUN:
        pytest.skip(f"not run: {outcome.reason}")
    if outcome.state == LIMITED:
        pytest.xfail(outcome.reason)
