"""Published metrics, and their comparison with measured ones.

The metrics are the JSON files of ``published_tables``: each a table with its source, what
it was measured on and by which protocol (``refinedet.evaluation.protocols``), and rows by name. A
metric that its table calls unverified is shown beside the measured one, but not compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import NamedTuple

from refinedet.errors import ExpectationError, UsageError
from refinedet.evaluation.metrics import aligned

TOLERANCE = 0.0015
"""Largest difference between a published metric and the measured one. Half a thousandth of
it is the rounding of the published value."""

RETRAINED = 0.005
"""By how much a retrained detector may be below the published main metric."""

ROUNDING = 1e-9
"""Of the comparison itself: a difference of exactly the tolerance is within it."""


@dataclass(frozen=True)
class Published:
    """A row of a table."""

    name: str
    what: str
    """Description of the detector."""
    metrics: Mapping[str, float]
    """Some of ``coco_metrics.COCO_METRICS``, VOC07 and VOC12; the first is the main one."""
    unverified: frozenset[str]
    """Metrics that were recalled from memory."""
    retrained_at_least: float
    """What a retrained detector must reach in the main metric."""
    protocol: str
    """Name of the protocol it was measured by."""
    measured_on: str
    source: str

    @property
    def main(self) -> str:
        """The metric by which detectors are compared: AP, VOC07 or VOC12."""
        return next(iter(self.metrics))


class Comparison(NamedTuple):
    """One metric beside its published value."""

    metric: str
    measured: float
    published: float
    verdict: str
    """"within", "outside", or why it is not compared."""


@cache
def published() -> dict[str, Published]:
    """All rows by name, in the order of the files' names and of their rows."""
    rows = {}
    folder = resources.files("refinedet.evaluation") / "published_tables"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            table = json.loads(file.read_text("utf-8"))
            for name, row in table["rows"].items():
                main = next(iter(row["metrics"].values()))
                rows[name] = Published(
                    name=name,
                    what=row["what"],
                    metrics=row["metrics"],
                    unverified=frozenset(row.get("unverified", ())),
                    retrained_at_least=table.get("retrained_at_least", main - RETRAINED),
                    protocol=row.get("protocol", table["protocol"]),
                    measured_on=table["measured_on"],
                    source=table["source"],
                )
    return rows


def find_published(name: str) -> Published:
    """The row of that name.

    Raises:
        UsageError: no such row; lists those there are.
    """
    if name not in published():
        raise UsageError(f"no {name!r}; there are {', '.join(published())}", key="expect")
    return published()[name]


def compare(
    measured: Mapping[str, float], row: Published, retrained: bool = False
) -> list[Comparison]:
    """Every metric of the row beside the measured one, in the row's order.

    Args:
        measured: metrics by name; nan, and one that is not there, is outside.
        retrained: compare the main metric alone, and only that it is not too low.
    """
    return list(_compared(measured, row, retrained))


def _compared(
    measured: Mapping[str, float], row: Published, retrained: bool
) -> Iterator[Comparison]:
    for metric, expected in row.metrics.items():
        x = measured.get(metric, math.nan)
        if retrained and metric != row.main:
            verdict = "not compared"
        elif metric in row.unverified:
            verdict = "not compared: unverified"
        elif retrained:
            verdict = "within" if x >= row.retrained_at_least - ROUNDING else "outside"
        else:
            verdict = "within" if abs(x - expected) <= TOLERANCE + ROUNDING else "outside"
        yield Comparison(metric, x, expected, verdict)


def comparison_table(compared: list[Comparison], row: Published, retrained: bool = False) -> str:
    """The comparison as lines of text: the published row, then one line for every metric."""
    allowed = (
        f"{row.main} at least {row.retrained_at_least:.4f}"
        if retrained
        else f"within {TOLERANCE:.4f}"
    )
    rows = [("metric", "measured", "published", "difference", "verdict")]
    for metric, x, expected, verdict in compared:
        difference = "-" if math.isnan(x) else f"{x - expected:+.4f}"
        shown = "-" if math.isnan(x) else f"{x:.4f}"
        rows.append((metric, shown, f"{expected:.4f}", difference, verdict))
    return (
        f"{row.name}: {row.what}; {row.measured_on}\nexpected: {allowed}\n{aligned(rows, left=1)}"
    )


def require_agreement(
    compared: list[Comparison],
    row: Published,
    retrained: bool = False,
) -> None:
    """Raise unless every compared metric is within the tolerance.

    Raises:
        ExpectationError: the first metric outside, and how many there are.
    """
    outside = [c for c in compared if c.verdict == "outside"]
    if not outside:
        return
    metric, x, expected, _ = outside[0]
    shown = "has no value" if math.isnan(x) else f"is {x:.4f}"
    limit = (
        f"at least {row.retrained_at_least:.4f}" if retrained else f"{expected:.4f} ± {TOLERANCE}"
    )
    more = f" (and {len(outside) - 1} more)" if len(outside) > 1 else ""
    raise ExpectationError(f"{metric} {shown}, expected {limit}{more}", key=row.name)
