"""Setting MindSpore up for a device: what it lacks, what is to be set, and setting it.

1. ``lacks``: what the machine has to have, checked before MindSpore is imported.
2. ``decide``: everything that is set, a function of its arguments alone.
3. ``apply``: hand that to MindSpore.

The graphs' shapes are static in training, and one graph is compiled a batch size. Nothing here
sinks data into the device: MindSpore's data sink loops over one data set, and the batches of a
run are a function of the step (``refinedet.data.samples``), in epochs that differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from refinedet.adapters import devices
from refinedet.errors import BackendError

CAPPED_FROM = (2, 9)
CAP = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
"""From MindSpore 2.9 on, oneDNN falls back to a reference convolution on processors with
AVX-512, 150 times slower. The limit is read when MindSpore is imported."""
CALL_DEPTH = 10_000
"""Calls within calls in a graph while it is compiled. MindSpore's own 1,000 are too few for the
gradient of a ResNet101."""
COLLECTIVES = {"CPU": "mccl", "GPU": "nccl", "Ascend": "hccl"}
"""MindSpore's libraries for several ranks, by device."""
PLUGINS = {"GPU": "libmindspore_gpu.so.11.6", "Ascend": "libmindspore_ascend.so.2"}
"""In ``lib/plugin`` of MindSpore's package; without it, it knows no such device."""


@dataclass(frozen=True)
class Setup:
    """All that is set."""

    device: str
    """MindSpore's name: ``CPU``, ``GPU`` or ``Ascend``."""
    device_id: int
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that MindSpore reads when it is imported; those that the user has set stay."""
    mode: str = "GRAPH_MODE"
    max_call_depth: int = CALL_DEPTH
    communication: str | None = None
    """The library that sums over several ranks; None with one rank."""
    rank: int = 0
    ranks: int = 1


def decide(
    device: str, device_id: int | None, version: tuple[int, ...], environment: Mapping[str, str]
) -> Setup:
    """What is set for a device.

    Args:
        device: MindSpore's name of it.
        device_id: as the user gave it; None takes that of the launcher, or else 0.
        version: MindSpore's.
        environment: variables of this process: those of MindSpore's launcher, ``msrun``, hold
            its rank, their number, and its device.
    Raises:
        BackendError: variables of a launcher that are no numbers.
    """
    launched = environment.get("MS_ROLE") == "MS_WORKER"
    ranks = _number(environment, "MS_WORKER_NUM", 1) if launched else 1
    if device_id is None:
        device_id = _number(environment, "DEVICE_ID", 0) if launched and device != "CPU" else 0
    return Setup(
        device,
        device_id,
        CAP if device == "CPU" and version >= CAPPED_FROM else {},
        communication=COLLECTIVES[device] if ranks > 1 else None,
        rank=_number(environment, "RANK_ID", 0) if ranks > 1 else 0,
        ranks=ranks,
    )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, str(default))
    if not value.isdecimal():
        raise BackendError(f"is {value}, not a number from 0; refinedet launch sets it", key=name)
    return int(value)


def lacks(device: str, device_id: int) -> Iterator[str]:
    """A line for everything that the machine lacks; nothing for the CPU."""
    if device == "GPU":
        yield from devices.lacks_nvidia(device_id)
    elif device == "Ascend":
        yield from devices.lacks_ascend(device_id)
    plugin = PLUGINS.get(device)
    if plugin is not None and not (plugin_folder() / plugin).exists():
        yield (
            f"this MindSpore has no plug-in for {device} ({plugin_folder() / plugin} is missing): "
            "install a wheel for Linux that has it, see docs/"
            f"{device.lower()}.md"
        )


def attached(device: str) -> list[str]:
    """The devices of a kind on this machine, by the driver's names."""
    return devices.nvidia_devices() if device == "GPU" else devices.ascend_devices()


def plugin_folder() -> Path:
    """Where the installed MindSpore has its devices; it is not imported."""
    spec = find_spec("mindspore")
    assert spec is not None  # its version was asked before
    assert spec.origin is not None
    return Path(spec.origin).parent / "lib" / "plugin"


def apply(setup: Setup) -> None:
    """Hand it to MindSpore.

    Once the ranks have joined, the device is set and stays. A program that has computed with
    MindSpore before stays on the CPU where it is: then MindSpore refuses even that.

    Raises:
        RuntimeError, ValueError: MindSpore's own; the device is not there.
    """
    import mindspore as ms

    from refinedet.adapters.mindspore.collective import joined

    on_cpu = ms.get_context("device_target") == setup.device == "CPU"
    if not joined() and not on_cpu:
        ms.set_device(setup.device, setup.device_id)
    ms.set_context(mode=getattr(ms, setup.mode))
    ms.set_recursion_limit(setup.max_call_depth)
