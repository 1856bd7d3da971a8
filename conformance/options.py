"""The options of the suite, declared once for the command line and for pytest."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from refinedet.conformance.registry import LEVELS

PROFILES = {"quick": 10, "default": 50, "thorough": 500}
"""Number of inputs that each check draws, before its share."""
LIMIT = 300.0
"""Seconds after which a check counts as hanging."""


def _option(
    default: Any, text: str, choices: tuple[str, ...] = (), least: float | None = None
) -> Any:
    return field(
        default=default,
        metadata={"help": text, "choices": choices, "least": least},
    )


@dataclass(frozen=True)
class SuiteOptions:
    """How the suite runs."""

    level: tuple[str, ...] = _option((), "Run the checks of this level only; repeatable.", LEVELS)
    profile: str = _option("default", "How many inputs each check draws.", tuple(PROFILES))
    seed: int = _option(0, "Seed of the drawn inputs.", least=0)
    limit: float = _option(LIMIT, "Seconds after which a check counts as hanging.", least=1)


def suite_options(**values: Any) -> SuiteOptions:
    """The options with these values; None and an empty list stand for the default."""
    given = {name: _plain(value) for name, value in values.items() if value not in (None, [])}
    return SuiteOptions(**given)


def _plain(value: Any) -> Any:
    """A value as the options hold it: tuples for lists, strings for members of an enumeration."""
    if isinstance(value, list):
        return tuple(_plain(one) for one in value)
    return value.value if isinstance(value, Enum) else value
