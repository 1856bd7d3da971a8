"""What several tests share."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("tests", deadline=None)  # no test is about time
settings.load_profile("tests")


def pytest_report_header(config):
    """Lists the folders that are run only where they are named, by a tox environment."""
    here = Path(__file__).parent
    names = set(config.getini("norecursedirs"))
    folders = sorted(p.relative_to(here) for p in here.rglob("*") if p.is_dir() and p.name in names)
    return [f"not run unless named, see tox.ini: tests/{folder}" for folder in folders]


SLOWEST = (
    "adapters/launch/test_launch.py",
    "adapters/mindspore/test_operators.py",
    "adapters/mindspore/test_trainer.py",
    "conformance/test_strength.py",
    "training/test_loop.py",
    "conformance/test_tolerances.py",
    "conformance/test_reported.py",
    "adapters/mindspore/test_export.py",
)
"""They begin first: at the end of a run in several processes, none waits long for another."""


def pytest_collection_modifyitems(items):
    """The slowest files first, otherwise in pytest's order."""
    here = Path(__file__).parent
    rank = {here / name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path, len(SLOWEST)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the project; without it the test is skipped, or fails where it must run."""
    path = (Path(__file__).resolve().parents[1] / "../shared/data").resolve()
    if not path.is_dir():
        if os.environ.get("REFINEDET_REQUIRE_DATA") == "1":
            pytest.fail(f"REFINEDET_REQUIRE_DATA=1, but there is no {path}")
        pytest.skip(f"real data is not there: {path}")
    return path


@pytest.fixture
def noise(tmp_path):
    """Ten noisy images, 80 wide and 48 high, with one to three objects of two classes."""
    import cv2  # the specification's own tests run without it

    from refinedet.data.dataset import Dataset, Object, make_record

    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = []
    for i in range(10):
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (48, 80, 3), dtype=np.uint8))
        objects = [Object((2.0 + j, 3.0, 30.0 + j, 40.0), 1 + j % 2) for j in range(1 + i % 3)]
        records.append(make_record(i + 1, path, (80, 48), objects))
    return Dataset("noise", ("a", "b"), records)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the program; gives its status, what it printed, and its errors."""
    from refinedet.cli.app import main  # the specification's own tests run without OpenCV

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["refinedet", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
