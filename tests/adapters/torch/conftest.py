"""The backend under test: torch-cpu, or the one that REFINEDET_TORCH_BACKEND names."""

import os

import pytest

from refinedet.backends.registry import find_backend
from refinedet.errors import BackendError

NAME = os.environ.get("REFINEDET_TORCH_BACKEND", "torch-cpu")


def pytest_report_header():
    """The device found; without it nothing is run."""
    try:
        backend = find_backend(NAME)
    except BackendError as error:
        raise pytest.UsageError(str(error)) from error
    import torch

    cuda = backend.device.startswith("cuda")
    device = (
        torch.cuda.get_device_name(backend.device) if cuda else f"{torch.get_num_threads()} threads"
    )
    return f"{NAME}: PyTorch {torch.__version__}, {device}"


@pytest.fixture(scope="session")
def backend():
    """The backend; its device is there."""
    return find_backend(NAME)
