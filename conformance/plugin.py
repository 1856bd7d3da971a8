"""Lets ``pytest --pyargs refinedet.conformance`` take the suite's options.

pytest reads the ``conftest.py`` of a folder before the command line, but not that of a
package named by ``--pyargs``. This plugin, which pytest finds through an entry point, gives
it the folder instead. It does nothing else, and nothing in any other run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PACKAGE = "refinedet.conformance"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: Any) -> None:
    """Before pytest itself looks for ``conftest.py`` files."""
    known = early_config.known_args_namespace
    if known.pyargs:
        folder = str(Path(__file__).parent)
        known.file_or_dir = [
            folder if str(name).partition("::")[0] == PACKAGE else name
            for name in known.file_or_dir
        ]
