"""What a failure's snippet imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from refinedet.backends.registry import find_backend
from refinedet.conformance.judge import Subject, Violation
from refinedet.conformance.registry import CHECKS
from refinedet.conformance.source import source
from refinedet.evaluation.model_run import Reported
from refinedet.evaluation.published import Published
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
    "Path",
    "Published",
    "Reported",
    "ScheduleConfig",
    "np",
    "replay",
]


def replay(backend: str, check: str, case: Any) -> None:
    """Run one check on one case, and print what comes of it."""
    import refinedet.conformance.checks  # noqa: F401 - fills the registry

    try:
        CHECKS[check].run(Subject(find_backend(backend)), case)
    except Violation as violation:
        print(f"{check}: {violation.said}")
        print(f"got    {source(violation.got)}")
        print(f"expected {source(violation.expected)}")
        if violation.error is not None:
            print(f"error  {violation.error:g}, allowed {violation.tolerance:g}")
    else:
        print(f"{check}: holds")
