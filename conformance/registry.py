"""The registry of checks: their names, levels, laws, and the inputs they draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis.strategies import SearchStrategy, just

from refinedet.backends.interface import Backend, Limitation
from refinedet.conformance.comparison import CheckedBackend
from refinedet.errors import BackendError

LEVELS = ("operations", "network", "training", "detections")
"""From the lowest to the highest; see the package's docstring."""

Law = Callable[[CheckedBackend, Any], None]


@dataclass(frozen=True)
class Check:
    """One law, and the inputs it is tested on."""

    name: str
    """As ``box_iou.parity``; the part before the dot names what is checked."""
    level: str
    law: str
    """The law in a sentence."""
    run: Law
    """Raises a ``CheckFailedError`` if a case breaks the law."""
    draws: SearchStrategy[Any]
    """Cases from the domain of the specification."""
    pinned: tuple[Any, ...]
    """Cases that always run first: the edge cases of the specification."""
    share: float
    """Number of drawn cases, as a fraction of the profile's number; 0 for pinned cases only."""
    max_undecided: float
    """Largest fraction of the discrete results that may be undecided."""


CHECKS: dict[str, Check] = {}


def check(
    level: str,
    name: str,
    draws: SearchStrategy[Any] | None = None,
    pinned: Sequence[Any] = (),
    share: float = 1.0,
    max_undecided: float = 0.0,
) -> Callable[[Law], Law]:
    """Register a law; the first line of its docstring states it in a sentence."""

    def register(law: Law) -> Law:
        sentence = (law.__doc__ or "").strip().splitlines()[0]
        drawn = just(None) if draws is None else draws
        cases = 0.0 if draws is None else share
        if name in CHECKS:
            raise ValueError(f"two checks are called {name}")
        CHECKS[name] = Check(name, level, sentence, law, drawn, tuple(pinned), cases, max_undecided)
        return law

    return register


def declared_limitations(backend: Backend) -> dict[str, Limitation]:
    """The limitations that a backend declares, by the name of the check.

    Raises:
        BackendError: a limitation of a check that does not exist.
    """
    declared = {one.check: one for one in backend.limitations}
    for name in declared:
        if name not in CHECKS:
            raise BackendError("there is no such check", key=f"limitation {name!r}")
    return declared
