"""The backend under test: mindspore-lite, or the one that REFINEDET_LITE_BACKEND names."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from refinedet.adapters.lite import process
from refinedet.backends.registry import find_backend
from refinedet.errors import BackendError

NAME = os.environ.get("REFINEDET_LITE_BACKEND", "mindspore-lite")


def pytest_report_header():
    """The Lite found; without it, or its device, nothing is run."""
    try:
        backend = find_backend(NAME)
        python = backend.python or process.THIS
        found = process.LiteProcess(python).versions
    except BackendError as error:
        raise pytest.UsageError(str(error)) from error
    return f"{NAME}: {python}, {', '.join(f'{k} {v}' for k, v in found.items())}"


@pytest.fixture(scope="session")
def backend():
    """The backend; its device is there."""
    return find_backend(NAME)


@pytest.fixture(scope="session")
def python(backend):
    """The interpreter that has Lite."""
    return backend.python or process.THIS


@pytest.fixture(scope="session")
def made(backend, python):
    """Makes a backend of the same kind with other options."""
    return lambda **given: type(backend)(lite_python=Path(python.path), **given)


@pytest.fixture(scope="session")
def agrees(backend):
    """Compares a network's outputs with the specification's, as far as there are images.

    Ascend 310 multiplies in float16; its number is a guess, no such device was at hand.
    """
    atol = {"mindspore-lite": 1e-5, "mindspore-ascend310": 0.05}[backend.name]

    def compare(network, expected, images):
        for name, mine, want in zip(expected._fields, network.heads(images), expected, strict=True):
            want = want[: len(images)]
            assert (mine.shape, mine.dtype) == (want.shape, np.float32), name
            assert_allclose(mine, want, atol=atol, rtol=1e-5, err_msg=name)

    return compare
