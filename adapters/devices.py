"""What accelerators need on a machine, checked without any framework.

Each function gives one line for everything that is missing, with how to get it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path

DEVICES = Path("/dev")
"""Where drivers show their devices: ``davinci0``, ``davinci1``, ...; ``nvidia0``, ..."""
CANN = "libascendcl.so"
CUDA = ("libcudart.so.11.0", "libcublas.so.11", "libcufft.so.10", "libcusolver.so.11")
"""Of CUDA 11.6, what MindSpore's plug-in is linked with and other CUDAs do not have."""
CUDNN = "libcudnn.so.8"
DRIVER = "libcuda.so.1"


def loads(library: str) -> bool:
    """Whether the system's loader finds a library, and all that it needs."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def ascend_devices() -> list[str]:
    """Ascend devices by their names, as ``davinci0``."""
    return _devices("davinci")


def nvidia_devices(environment: Mapping[str, str] = os.environ) -> list[str]:
    """NVIDIA devices by their names, as ``nvidia0``: those of ``CUDA_VISIBLE_DEVICES`` alone."""
    devices = _devices("nvidia")
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return devices
    names = takewhile(lambda name: name and name[0] != "-", map(str.strip, shown.split(",")))
    return list(names)[: len(devices)]  # CUDA, too, shows none behind a number that is none


def _devices(kind: str) -> list[str]:
    devices = DEVICES.glob(f"{kind}[0-9]*")
    return [p.name for p in sorted(devices, key=lambda p: int("0" + p.name[len(kind) :]))]


def lacks_ascend(device_id: int) -> Iterator[str]:
    """Driver, the device of that number, CANN."""
    devices = ascend_devices()
    if not devices:
        yield (
            f"no Ascend driver ({DEVICES} has no davinci0): install the driver and firmware of "
            "the card, and give a container its devices"
        )
    else:
        yield from _lacks_number(device_id, devices)
    if not loads(CANN):
        yield f"no CANN ({CANN} is not found): install it, and source its set_env.sh"


def lacks_nvidia(device_id: int) -> Iterator[str]:
    """Driver, the device of that number, CUDA 11.6, cuDNN 8."""
    if not (DEVICES / "nvidiactl").exists() or not loads(DRIVER):
        yield (
            f"no NVIDIA driver ({DEVICES} has no nvidiactl, or {DRIVER} is not found): install "
            "that of the card, 510 or newer, and give a container its GPUs"
        )
    elif not (devices := nvidia_devices()):
        yield (
            f"no GPU is shown: {DEVICES} has no nvidia0, or CUDA_VISIBLE_DEVICES hides all; give "
            "a container its GPUs, or unset the variable"
        )
    else:
        yield from _lacks_number(device_id, devices)
    if lacking := [library for library in CUDA if not loads(library)]:
        yield (
            f"no CUDA 11.6 ({', '.join(lacking)} not found): install it from "
            "developer.nvidia.com/cuda-11-6-0-download-archive, and name its lib64 in "
            "LD_LIBRARY_PATH"
        )
    if not loads(CUDNN):
        yield (
            f"no cuDNN 8 for CUDA 11 ({CUDNN} is not found): install it from "
            "developer.nvidia.com/rdp/cudnn-archive, and name its folder in LD_LIBRARY_PATH"
        )


def _lacks_number(device_id: int, devices: list[str]) -> Iterator[str]:
    if device_id >= len(devices):
        yield f"device_id {device_id}: there are {len(devices)} ({', '.join(devices)})"
