"""The checks: their names, levels, laws, and the inputs they are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis.strategies import SearchStrategy, just

from refinedet.conformance.judge import Subject

LEVELS = ("operations", "network", "training", "detections", "reported mAP")
"""From the ground up; see the package's docstring."""

Law = Callable[[Subject, Any], None]


@dataclass(frozen=True)
class Check:
    """One law."""

    name: str
    """As ``box_iou.parity``; what stands before the dot is what it judges."""
    level: str
    law: str
    """The law in a sentence."""
    run: Law
    """Raises a ``Violation`` if a case breaks the law."""
    draws: SearchStrategy[Any]
    """Cases of the specification's domain."""
    pinned: tuple[Any, ...]
    """Cases that are always tried first: the edges of the specification."""
    share: float
    """Drawn cases, as a part of the profile's number; 0 for pinned ones alone."""
    masked: float
    """Largest part of the discrete results that may be undecided."""
    given: bool = False
    """Its one case is files of the user: without them it is not run, with them it takes
    however long it takes."""


CHECKS: dict[str, Check] = {}


def check(
    level: str,
    name: str,
    draws: SearchStrategy[Any] | None = None,
    pinned: Sequence[Any] = (),
    share: float = 1.0,
    masked: float = 0.0,
    given: bool = False,
) -> Callable[[Law], Law]:
    """Register a law; its docstring says it in a sentence."""

    def register(law: Law) -> Law:
        said = (law.__doc__ or "").strip().splitlines()[0]
        drawn = just(None) if draws is None else draws
        cases = 0.0 if draws is None else share
        if name in CHECKS:
            raise ValueError(f"two checks are called {name}")
        CHECKS[name] = Check(name, level, said, law, drawn, tuple(pinned), cases, masked, given)
        return law

    return register
