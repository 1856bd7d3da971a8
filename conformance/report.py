"""The report of a run of the suite: as text for a terminal, and as data for other programs.

``docs/conformance.md`` describes the data. They hold no date, so that two reports can be
compared.
"""

from __future__ import annotations

import math
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from refinedet.conformance import reported
from refinedet.conformance.registry import CHECKS, LEVELS
from refinedet.conformance.reported import NOT_EVALUATED, ReportedOutcome
from refinedet.conformance.runner import FAILED, LIMITED, NOT_IMPLEMENTED, PASSED, Outcome
from refinedet.version import __version__

SCHEMA = "refinedet conformance 3"
STATES = (PASSED, FAILED, NOT_IMPLEMENTED, LIMITED)
CUT = 400
"""Characters of an array or a case that the terminal shows."""
LARGEST_WORST = 1e9
"""Larger errors, as fractions of a tolerance, are reported as this: JSON has no infinity."""


@dataclass(frozen=True)
class Report:
    """A whole run."""

    profile: str
    seed: int
    outcomes: tuple[Outcome, ...]
    reported: Mapping[str, ReportedOutcome] = field(default_factory=dict)
    """Level *reported mAP* by the backend's name; without an entry it was not run."""

    def backends(self) -> dict[str, list[Outcome]]:
        """The outcomes of each backend, in the order of the run."""
        by_name: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            by_name.setdefault(outcome.backend, []).append(outcome)
        return by_name

    def failed(self) -> bool:
        """Whether a check or an evaluation failed."""
        states = [outcome.state for outcome in self.outcomes]
        states += [evaluation.state for evaluation in self.reported.values()]
        return FAILED in states


def environment() -> dict[str, str]:
    """The versions and the platform of this process."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "refinedet": __version__,
        "platform": platform.platform(),
    }


def reached(
    outcomes: Iterable[Outcome], evaluation: ReportedOutcome = NOT_EVALUATED
) -> tuple[str | None, str]:
    """The highest level reached, and the obstacle to the next one.

    A level is reached if every check of it was run and passed, and the levels before it
    are reached. A declared limitation is not a pass, nor is a check that is not implemented
    or was not run. The highest level, *reported mAP*, is reached if the evaluation passed.
    """
    states = {outcome.check: outcome.state for outcome in outcomes}
    highest = None
    for level in LEVELS:
        names = [check.name for check in CHECKS.values() if check.level == level]
        counts = Counter(states.get(name, reported.NOT_RUN) for name in names)
        if not names or counts[PASSED] < len(names):
            obstacles = (*STATES[1:], reported.NOT_RUN)
            parts = [f"{counts[state]} {state}" for state in obstacles if counts[state]]
            return highest, f"{level}: {', '.join(parts) or 'has no checks'}"
        highest = level
    if evaluation.state != PASSED:
        return highest, f"{reported.LEVEL}: {evaluation.state}"
    return reported.LEVEL, ""


def as_data(report: Report) -> dict[str, Any]:
    """The report as it is written to JSON, in full."""
    return {
        "schema": SCHEMA,
        "environment": environment(),
        "profile": report.profile,
        "seed": report.seed,
        "backends": [
            _backend(name, outcomes, report.reported.get(name, NOT_EVALUATED))
            for name, outcomes in report.backends().items()
        ],
    }


def _backend(name: str, outcomes: list[Outcome], evaluation: ReportedOutcome) -> dict[str, Any]:
    level, obstacle = reached(outcomes, evaluation)
    levels = []
    for level_name in LEVELS:
        if of_level := [outcome for outcome in outcomes if outcome.level == level_name]:
            counts = Counter(outcome.state for outcome in of_level)
            levels.append(
                {
                    "level": level_name,
                    "checks": len(of_level),
                    **{state: counts[state] for state in STATES},
                    "worst": min(max(outcome.worst for outcome in of_level), LARGEST_WORST),
                    "compared": sum(outcome.compared for outcome in of_level),
                    "undecided": sum(outcome.undecided for outcome in of_level),
                }
            )
    return {
        "backend": name,
        "reached": level,
        "obstacle": obstacle,
        "levels": levels,
        "reported": _reported(evaluation),
        "checks": [_check(outcome) for outcome in outcomes],
    }


def _reported(evaluation: ReportedOutcome) -> dict[str, Any]:
    metrics = [one._asdict() for one in evaluation.metrics]
    for row in metrics:
        row["measured"] = None if math.isnan(row["measured"]) else row["measured"]
    return asdict(evaluation) | {"metrics": metrics, "seconds": round(evaluation.seconds, 3)}


def _check(outcome: Outcome) -> dict[str, Any]:
    row = asdict(outcome)
    del row["backend"]
    row["seconds"] = round(outcome.seconds, 3)
    row["worst"] = min(outcome.worst, LARGEST_WORST)
    if row["failure"] is not None and row["failure"]["error"] is not None:
        row["failure"]["error"] = min(row["failure"]["error"], sys.float_info.max)
    return row


def as_text(report: Report) -> str:
    """The report for a terminal."""
    data = as_data(report)
    where = data["environment"]
    lines = [
        f"RefineDet conformance, profile {report.profile}, seed {report.seed}",
        f"refinedet {where['refinedet']}, Python {where['python']}, NumPy {where['numpy']}, "
        f"{where['platform']}",
        "",
        *summary(data["backends"]),
    ]
    for outcome in report.outcomes:
        if outcome.state == FAILED:
            lines += ["", failure_text(outcome)]
    for name, evaluation in report.reported.items():
        if evaluation.state == FAILED:
            lines += ["", f"FAILED {reported.LEVEL} on {name}: {evaluation.reason}"]
            lines += [f"  {line}" for line in evaluation.table.splitlines()]
    return "\n".join(lines)


def summary(backends: list[dict[str, Any]]) -> list[str]:
    """The table, the level that each backend reached, and why checks did not pass."""
    lines = _table(backends)
    for backend in backends:
        lines += ["", conclusion(backend)]
        reasons: dict[str, list[str]] = {}
        for row in backend["checks"]:
            if row["state"] in (NOT_IMPLEMENTED, LIMITED):
                reasons.setdefault(f"{row['state']}, {row['reason']}", []).append(row["check"])
        lines += [f"  {reason}: {', '.join(names)}" for reason, names in reasons.items()]
        lines.append(f"  {reported_line(backend)}")
    return lines


def _table(backends: list[dict[str, Any]]) -> list[str]:
    """A row for every level of every backend."""
    width = max([7, *(len(backend["backend"]) for backend in backends)])
    columns = ("checks", *STATES, "undecided", "worst error")
    lines = [f"{'backend':{width}}  {'level':12}" + "".join(f"{c:>{len(c) + 2}}" for c in columns)]
    for backend in backends:
        name = backend["backend"]
        for row in backend["levels"]:
            values = (row["checks"], *(row[state] for state in STATES), undecided_share(row))
            cells = (*values, f"{row['worst']:.3g}")
            lines.append(
                f"{name:{width}}  {row['level']:12}"
                + "".join(f"{v!s:>{len(c) + 2}}" for v, c in zip(cells, columns, strict=True))
            )
            name = ""
        lines.append(f"{name:{width}}  {reported.LEVEL}  {backend['reported']['state']}")
    lines += [
        "",
        "undecided: discrete results too close to a tie to be compared.",
        "worst error: the largest error, as a fraction of its tolerance.",
    ]
    return lines


def undecided_share(row: dict[str, Any]) -> str:
    """The fraction of the discrete results that is undecided."""
    return f"{row['undecided'] / row['compared']:.2%}" if row["compared"] else "-"


def conclusion(backend: dict[str, Any]) -> str:
    """A sentence with the level that a backend reached."""
    level = f"level {backend['reached']}" if backend["reached"] else "no level"
    rest = f"; {backend['obstacle']}" if backend["obstacle"] else ""
    return f"{backend['backend']} reaches {level}{rest}"


def reported_line(backend: dict[str, Any]) -> str:
    """A line with the state of level *reported mAP* and its reason."""
    row = backend["reported"]
    return f"{reported.LEVEL}: {row['state']}" + (f", {row['reason']}" if row["reason"] else "")


def failure_text(outcome: Outcome) -> str:
    """The law that failed, the input, the error, and how to reproduce it."""
    failure = outcome.failure
    assert failure is not None
    lines = [
        f"FAILED {outcome.check} on {outcome.backend}",
        f"  law       {outcome.law}",
        f"  failure   {failure.message}",
    ]
    for name, text in (
        ("input", failure.case),
        ("actual", failure.actual),
        ("expected", failure.expected),
    ):
        if text:
            lines.append(f"  {name:8}  {cut(text)}")
    if failure.error is not None:
        lines.append(f"  error     {failure.error:.3g}, allowed {failure.tolerance:.3g}")
    if failure.snippet and len(failure.case) <= CUT:
        lines += ["  to reproduce:", ""]
        lines += [f"    {line}" for line in failure.snippet.splitlines() if line]
    elif failure.snippet:
        lines.append("  to reproduce: the snippet is long; --json and --html write it")
    return "\n".join(lines)


def cut(text: str, limit: int = CUT) -> str:
    """The text, shortened for a terminal."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(text):,} characters)"
