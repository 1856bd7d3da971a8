"""The backend under test: mindspore-lite, or the one that REFINEDET_LITE_BACKEND names."""

import os

import pytest

from refinedet.adapters.lite import engine
from refinedet.backend import BackendError, find_backend

NAME = os.environ.get("REFINEDET_LITE_BACKEND", "mindspore-lite")


def pytest_report_header():
    """The Lite found; without it, or its device, nothing is run."""
    try:
        backend = find_backend(NAME)
        python = backend.python or engine.THIS
        found = engine.Worker(python).versions
    except BackendError as error:
        raise pytest.UsageError(str(error)) from error
    return f"{NAME}: {python}, {', '.join(f'{k} {v}' for k, v in found.items())}"


@pytest.fixture(scope="session")
def backend():
    """The backend; its device is there."""
    return find_backend(NAME)


@pytest.fixture
def python(backend):
    """The interpreter that has Lite."""
    return backend.python or engine.THIS
