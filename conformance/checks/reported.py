"""Level *reported mAP*: a published detector reaches its published metrics.

The evaluation is that of ``refinedet eval --protocol``, by the protocol of the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from refinedet.conformance.judge import NotImplementedByBackend, Subject, Violation, in_a_line
from refinedet.conformance.registry import check
from refinedet.errors import DataError
from refinedet.evaluation.model_run import Reported
from refinedet.evaluation.published import TOLERANCE, Comparison, compare, find_published
from refinedet.models.embedded_settings import is_exported


def asked(
    model: Path | None,
    annotations: Path | None,
    images: Path | None,
    expect: str | None,
    retrained: bool,
) -> Reported | None:
    """What the user gave, by the options' names; None for nothing.

    Raises:
        DataError, ExpectationError: a part only, or no such row.
    """
    needed = {
        "--model": model,
        "--annotations": annotations,
        "--images": images,
        "--expect": expect,
    }
    given = [name for name, value in (*needed.items(), ("--retrained", retrained)) if value]
    if not given:
        return None
    if not (model and annotations and images and expect):
        missing = next(name for name, value in needed.items() if not value)
        raise DataError(f"level reported mAP needs it beside {given[0]}", key=missing)
    return Reported(model, annotations, images, find_published(expect), retrained)


class _Watched:
    """A backend that tells before each batch that it gets on."""

    def __init__(self, backend: Any, alive: Callable[[], object]) -> None:
        self.name = "watched"
        self._backend = backend
        self._alive = alive

    def network(self, *arguments: Any) -> Any:
        return self._tell_of(self._backend.network(*arguments))

    def load(self, *arguments: Any) -> Any:
        return self._tell_of(self._backend.load(*arguments))

    def _tell_of(self, network: Any) -> Any:
        def scored_boxes(images: Any) -> Any:
            self._alive()
            return network.scored_boxes(images)

        return SimpleNamespace(config=network.config, scored_boxes=scored_boxes)


@check("reported mAP", "reported.map", given=True)
def reported_map(subject: Subject, case: Reported) -> None:
    """A published detector, evaluated by its protocol, has its published metrics."""
    needed = "load" if is_exported(case.model) else "network"
    if not hasattr(subject.backend, needed):
        raise NotImplementedByBackend(needed)
    watched: Any = _Watched(subject.backend, subject.alive)
    try:
        metrics = case.evaluate(watched).metrics
    except Exception as error:
        raise Violation(f"evaluating raises {in_a_line(error)}") from error
    compared = compare(metrics, case.row, case.retrained)
    judged = [c for c in compared if c.verdict in ("within", "outside")]
    errors = {c.metric: _error(c, case.retrained) for c in judged}
    furthest = max(errors.values())
    allowed = case.row.metrics[case.row.main] - case.row.retrained_at_least
    allowed = allowed if case.retrained else TOLERANCE
    subject.worst = furthest / allowed
    if outside := [_shown(c, case) for c in judged if c.verdict == "outside"]:
        raise Violation(
            f"{case.row.name}, protocol {case.row.protocol}: {'; '.join(outside)}",
            {c.metric: c.measured for c in compared},
            dict(case.row.metrics),
            furthest,
            allowed,
        )


def _error(one: Comparison, retrained: bool) -> float:
    """How far away; of a detector trained anew, how far below."""
    if math.isnan(one.measured):
        return math.inf
    return max(one.published - one.measured, 0.0 if retrained else one.measured - one.published)


def _shown(one: Comparison, case: Reported) -> str:
    if math.isnan(one.measured):
        return f"{one.metric} has no value, published {one.published:.4f}"
    least = f", expected at least {case.row.retrained_at_least:.4f}" if case.retrained else ""
    return (
        f"{one.metric} is {one.measured:.4f}, published {one.published:.4f}, "
        f"difference {one.measured - one.published:+.4f}{least}"
    )
