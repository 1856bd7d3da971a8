"""MindSpore Lite: backends ``mindspore-lite`` on the CPU, ``mindspore-ascend310`` on Ascend 310.

They detect and do not train. Lite runs in this process if it is installed for this Python, or else
in a Lite process under the interpreter ``lite_python``. Several streams are several Lite processes,
which take turns with the images, because Lite holds Python's lock while it computes.

A detector becomes ONNX (``refinedet.adapters.onnx.export``), and that becomes a MindIR by
Lite's own converter. It holds the raw outputs: Lite 2.0.0 has no comparison with which to
silence anchors, and boxes need more digits than Ascend 310 computes with. The host makes
scored boxes of them as the specification does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from refinedet.adapters.devices import lacks_ascend
from refinedet.adapters.lite import process
from refinedet.backends.interface import Backend, ExportedFile, Limitation, Network
from refinedet.errors import UsageError
from refinedet.settings import Settings
from refinedet.spec.config import Config
from refinedet.spec.network import Parameters

MOST_STREAMS = 64
"""Each is a process with a model of its own; more are a slip, and would use up the machine."""


class LiteBackend(Backend):
    """``Backend`` for detection: no ``operations``, no ``trainer``.

    Args:
        target: Lite's, ``cpu`` or ``ascend``.
        device_id: which device, from 0; the CPU is one.
        streams: models that run side by side, up to ``MOST_STREAMS``.
        lite_python: an interpreter that has Lite; None takes that of the variable
            ``REFINEDET_LITE_PYTHON``, and without it this process.
        batch: images for which a detector is compiled; a file keeps its own number.
    Raises:
        UsageError: an argument is out of range.
    """

    capabilities = frozenset({"network", "export", "export_heads", "load"})

    def __init__(
        self,
        target: str,
        device_id: int,
        streams: int,
        lite_python: Path | None,
        batch: int,
    ) -> None:
        for option, value, least, most in (
            ("device_id", device_id, 0, None),
            ("streams", streams, 1, MOST_STREAMS),
            ("batch", batch, 1, None),
        ):
            if value < least or (most is not None and value > most):
                upto = "" if most is None else f" to {most}"
                raise UsageError(f"{value} is not a number from {least}{upto}", key=option)
        self.target = target
        self.device_id = device_id
        self.streams = streams
        self.batch = batch
        self.python = process.other_interpreter(lite_python)

    def missing(self) -> str | None:
        """Everything that it lacks: driver, CANN, Lite."""
        lacking = [*self._lacks_device(), process.lacks_lite(self.python)]
        return "; ".join(reason for reason in lacking if reason) or None

    def _lacks_device(self) -> Iterator[str]:
        return iter(())

    def describe(self) -> str:
        """See ``Backend``."""
        versions = process.LiteProcess(self.python or process.THIS).versions
        device = "the CPU" if self.target == "cpu" else f"Ascend 310, device {self.device_id}"
        return f"MindSpore Lite {versions['lite']} under Python {versions['python']} on {device}"

    def network(self, config: Config, parameters: Parameters) -> Network:
        """See ``Backend``."""
        from refinedet.adapters.lite.export import converted

        return converted(self, config, parameters)

    def export(self, network: Network, path: Path, settings: Settings, heads: bool = True) -> None:
        """Write a MindIR of the raw outputs, always; see ``Backend``."""
        from refinedet.adapters.lite.export import export

        export(network, path, settings)

    def load(self, file: ExportedFile) -> Network:
        """Read a MindIR; see ``Backend``."""
        from refinedet.adapters.lite.export import load

        return load(self, file)


class MindSporeLite(LiteBackend):
    """Detects on the processor's cores, which the streams share."""

    limitations = (
        Limitation(
            "network.full_size",
            "Lite 2.0.0's convolutions round more than the tolerance allows in the widest layers: "
            "outputs of refinedet_vgg16_320 differ by up to 1.4e-5 (1.24 times the tolerance), of "
            "refinedet_resnet101_320 by 5.9e-5 (5.0), of the model zoo's by 7.6e-6 (0.42)",
        ),
    )

    name = "mindspore-lite"

    def __init__(self, lite_python: Path | None = None, streams: int = 1, batch: int = 1) -> None:
        super().__init__("cpu", 0, streams, lite_python, batch)


class Ascend310(LiteBackend):
    """Detects on an Ascend 310. Not run on hardware."""

    name = "mindspore-ascend310"

    def __init__(
        self,
        device_id: int = 0,
        streams: int = 1,
        lite_python: Path | None = None,
        batch: int = 1,
    ) -> None:
        super().__init__("ascend", device_id, streams, lite_python, batch)

    def _lacks_device(self) -> Iterator[str]:
        return lacks_ascend(self.device_id)
