"""The suite under pytest: ``pytest --pyargs refinedet.conformance --backend NAME``."""

from __future__ import annotations

import pytest

from refinedet.conformance.registry import Check
from refinedet.conformance.report import failure_text
from refinedet.conformance.runner import FAILED, LIMITED, NOT_IMPLEMENTED, Outcome, SuiteProcess


def test_conformance(suite_process: SuiteProcess, check: Check, outcomes: list[Outcome]) -> None:
    """A law of the specification holds on a backend."""
    outcome = suite_process.run(check)
    outcomes.append(outcome)
    if outcome.state == FAILED:
        pytest.fail(failure_text(outcome), pytrace=False)
    if outcome.state == NOT_IMPLEMENTED:
        pytest.skip(f"not implemented: {outcome.reason}")
    if outcome.state == LIMITED:
        pytest.xfail(outcome.reason)
