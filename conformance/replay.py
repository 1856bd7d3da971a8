"""What the snippet of a failure imports."""

from __future__ import annotations

from typing import Any

import numpy as np

import refinedet.conformance.checks  # noqa: F401 - fills the registry
from refinedet.backends.registry import find_backend
from refinedet.conformance.comparison import CheckedBackend, CheckFailedError
from refinedet.conformance.registry import CHECKS
from refinedet.conformance.source import source
from refinedet.spec.config import (
    AnchorsConfig,
    Config,
    DetectionConfig,
    ImageConfig,
    LossConfig,
    MatchingConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from refinedet.spec.network import Heads

__all__ = [
    "AnchorsConfig",
    "Config",
    "DetectionConfig",
    "Heads",
    "ImageConfig",
    "LossConfig",
    "MatchingConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "np",
    "replay",
]


def replay(backend: str, check: str, case: Any) -> None:
    """Run one check on one case, and print the result."""
    try:
        CHECKS[check].run(CheckedBackend(find_backend(backend)), case)
    except CheckFailedError as failure:
        print(f"{check}: {failure.message}")
        print(f"actual   {source(failure.actual)}")
        print(f"expected {source(failure.expected)}")
        if failure.error is not None:
            print(f"error    {failure.error:g}, allowed {failure.tolerance:g}")
    else:
        print(f"{check}: passed")
