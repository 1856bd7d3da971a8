"""What several tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the project; without it the test is skipped, or fails where it must run."""
    path = (Path(__file__).resolve().parents[1] / "../shared/data").resolve()
    if not path.is_dir():
        if os.environ.get("REFINEDET_REQUIRE_DATA") == "1":
            pytest.fail(f"REFINEDET_REQUIRE_DATA=1, but there is no {path}")
        pytest.skip(f"real data is not there: {path}")
    return path
