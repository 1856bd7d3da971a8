"""What a run of the suite says: as text for a terminal, and as data for other programs.

``docs/conformance.md`` describes the data. They hold no date, so that two reports can be
compared.
"""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refinedet import __version__
from refinedet.conformance.registry import CHECKS, LEVELS
from refinedet.conformance.runner import FAILED, LIMITED, MISSING, NOT_RUN, PASSED, Outcome

SCHEMA = "refinedet conformance 2"
STATES = (PASSED, FAILED, MISSING, LIMITED, NOT_RUN)
CUT = 400
"""Characters of an array or a case that a terminal shows."""
BOUND = 1e9
"""Larger errors, as fractions of a tolerance, are told as this: JSON knows no infinity."""


@dataclass(frozen=True)
class Report:
    """A whole run."""

    profile: str
    seed: int
    outcomes: tuple[Outcome, ...]

    def backends(self) -> dict[str, list[Outcome]]:
        """The outcomes of each backend, in the order of the run."""
        found: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            found.setdefault(outcome.backend, []).append(outcome)
        return found

    def failed(self) -> bool:
        """Whether any check failed."""
        return any(outcome.state == FAILED for outcome in self.outcomes)


def environment() -> dict[str, str]:
    """What the suite ran on."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "refinedet": __version__,
        "platform": platform.platform(),
    }


def reached(outcomes: Iterable[Outcome]) -> tuple[str | None, str]:
    """The highest level reached, and what stands in the way of the next.

    A level is reached if every check of it was run and passed, and the levels before it
    are reached. A declared limitation is not a pass, nor is what is not implemented or
    was not run.
    """
    states = {outcome.check: outcome.state for outcome in outcomes}
    highest = None
    for level in LEVELS:
        names = [check.name for check in CHECKS.values() if check.level == level]
        counts = Counter(states.get(name, NOT_RUN) for name in names)
        if not names or counts[PASSED] < len(names):
            parts = [f"{counts[state]} {state}" for state in STATES[1:] if counts[state]]
            return highest, f"{level}: {', '.join(parts) or 'has no checks'}"
        highest = level
    return highest, ""


def as_data(report: Report) -> dict[str, Any]:
    """The report as JSON holds it; nothing is cut."""
    return {
        "schema": SCHEMA,
        "environment": environment(),
        "profile": report.profile,
        "seed": report.seed,
        "backends": [_backend(name, found) for name, found in report.backends().items()],
    }


def _backend(name: str, outcomes: list[Outcome]) -> dict[str, Any]:
    level, obstacle = reached(outcomes)
    levels = []
    for level_name in LEVELS:
        if here := [outcome for outcome in outcomes if outcome.level == level_name]:
            counts = Counter(outcome.state for outcome in here)
            levels.append(
                {
                    "level": level_name,
                    "checks": len(here),
                    **{state: counts[state] for state in STATES},
                    "worst": min(max(outcome.worst for outcome in here), BOUND),
                    "cases": sum(outcome.cases for outcome in here),
                    "masked": sum(outcome.masked for outcome in here),
                }
            )
    return {
        "backend": name,
        "reached": level,
        "obstacle": obstacle,
        "levels": levels,
        "checks": [_check(outcome) for outcome in outcomes],
    }


def _check(outcome: Outcome) -> dict[str, Any]:
    row = asdict(outcome)
    del row["backend"]
    row["seconds"] = round(outcome.seconds, 3)
    row["worst"] = min(outcome.worst, BOUND)
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
    return "\n".join(lines)


def summary(backends: list[dict[str, Any]]) -> list[str]:
    """The table, what each backend reached, and the reasons of what did not pass."""
    lines = _table(backends)
    for backend in backends:
        lines += ["", conclusion(backend)]
        reasons: dict[str, list[str]] = {}
        for row in backend["checks"]:
            if row["state"] in (MISSING, LIMITED, NOT_RUN):
                reasons.setdefault(f"{row['state']}, {row['reason']}", []).append(row["check"])
        lines += [f"  {reason}: {', '.join(names)}" for reason, names in reasons.items()]
    return lines


def _table(backends: list[dict[str, Any]]) -> list[str]:
    """A row for every level of every backend."""
    width = max([7, *(len(backend["backend"]) for backend in backends)])
    columns = ("checks", *STATES, "undecided", "worst error")
    lines = [f"{'backend':{width}}  {'level':12}" + "".join(f"{c:>{len(c) + 2}}" for c in columns)]
    for backend in backends:
        name = backend["backend"]
        for row in backend["levels"]:
            values = (row["checks"], *(row[state] for state in STATES), share(row))
            cells = (*values, f"{row['worst']:.3g}")
            lines.append(
                f"{name:{width}}  {row['level']:12}"
                + "".join(f"{v!s:>{len(c) + 2}}" for v, c in zip(cells, columns, strict=True))
            )
            name = ""
    lines += [
        "",
        "undecided: of the discrete results compared, those too near a tie to be judged.",
        "worst error: the largest error found, as a fraction of its tolerance.",
    ]
    return lines


def share(row: dict[str, Any]) -> str:
    """The part of the discrete results that is left undecided."""
    return f"{row['masked'] / row['cases']:.2%}" if row["cases"] else "-"


def conclusion(backend: dict[str, Any]) -> str:
    """The level that a backend reached, in a sentence."""
    level = f"level {backend['reached']}" if backend["reached"] else "no level"
    rest = f"; {backend['obstacle']}" if backend["obstacle"] else ""
    return f"{backend['backend']} reaches {level}{rest}"


def failure_text(outcome: Outcome) -> str:
    """What broke, on what input, by how much, and how to see it again."""
    failure = outcome.failure
    assert failure is not None
    lines = [
        f"FAILED {outcome.check} on {outcome.backend}",
        f"  law     {outcome.law}",
        f"  broken  {failure.said}",
    ]
    for name, text in (
        ("input", failure.case),
        ("got", failure.got),
        ("expected", failure.expected),
    ):
        if text:
            lines.append(f"  {name:6}  {cut(text)}")
    if failure.error is not None:
        lines.append(f"  error   {failure.error:.3g}, allowed {failure.tolerance:.3g}")
    if failure.snippet and len(failure.case) <= CUT:
        lines += ["  to see it again:", ""]
        lines += [f"    {line}" for line in failure.snippet.splitlines() if line]
    elif failure.snippet:
        lines.append("  to see it again: the snippet is long; --json and --html write it")
    return "\n".join(lines)


def cut(text: str, limit: int = CUT) -> str:
    """A text that a terminal can bear."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(text):,} characters)"
