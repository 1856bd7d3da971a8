"""Lets ``pytest --pyargs refinedet.conformance`` accept the suite's options.

pytest reads the ``conftest.py`` of a folder before it parses the command line, but not that of a
package named by ``--pyargs``. This plugin, which pytest loads through an entry point, replaces
the package by its folder. It does nothing in other runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PACKAGE = "refinedet.conformance"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: Any) -> None:
    """Replace the package by its folder, before pytest searches for ``conftest.py`` files."""
    known = early_config.known_args_namespace
    if known.pyargs:
        folder = str(Path(__file__).parent)
        known.file_or_dir = [
            folder if str(name).partition("::")[0] == PACKAGE else name
            for name in known.file_or_dir
        ]
