"""The MindSpore backend on one kind of device. MindSpore is imported at first use."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from refinedet.adapters.mindspore.setup import Setup, apply, attached, decide, lacks
from refinedet.backends.interface import CAPABILITIES, Backend, ExportedFile, Network, Trainer
from refinedet.backends.process_group import ALONE, Group
from refinedet.data.batch import Batch
from refinedet.data.dataset import Dataset
from refinedet.errors import BackendError
from refinedet.settings import InputSettings, Settings
from refinedet.spec.config import PRECISIONS, Config
from refinedet.spec.network import Parameters
from refinedet.spec.optimizer import LossScale

OLDEST, NEWEST = (2, 7, 2), (2, 10)


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in version("mindspore").split(".")[:3] if part.isdigit())


class MindSporeBackend(Backend):
    """``Backend`` for one of MindSpore's devices.

    Args:
        device_id: which of its kind; None takes the launcher's, or else 0.
    """

    device: str
    """MindSpore's name of the kind: ``CPU``, ``GPU`` or ``Ascend``."""
    capabilities = frozenset(CAPABILITIES)
    precisions = PRECISIONS

    def __init__(self, device_id: int | None = None) -> None:
        self.device_id = device_id

    @property
    def setup(self) -> Setup:
        """What is set before anything is computed."""
        return decide(self.device, self.device_id, _version(), os.environ)

    @property
    def environment(self) -> Mapping[str, str]:
        """The cap on oneDNN's instruction set, where this version needs it."""
        return self.setup.environment

    def missing(self) -> str | None:
        """Why it cannot run here: MindSpore's version, then all that its device lacks."""
        try:
            installed = _version()
        except PackageNotFoundError:
            return "MindSpore is not installed; run: pip install 'refinedet[cpu]'"
        if installed < OLDEST or installed[:2] > NEWEST:
            shown = ".".join(map(str, installed))
            return f"MindSpore {shown} is installed; 2.7.2 to 2.10 are supported"
        if int(version("numpy").partition(".")[0]) >= 2:
            return (
                "MindSpore does not run with NumPy 2; run: pip install 'refinedet[cpu]' 'numpy<2'"
            )
        return "; ".join(lacks(self.device, self.setup.device_id)) or None

    def describe(self) -> str:
        """See ``Backend``."""
        self._set_up()
        on = f"{len(os.sched_getaffinity(0))} cores"
        if self.device != "CPU":
            on = f"device {self.setup.device_id} of {', '.join(attached(self.device))}"
        return f"MindSpore {version('mindspore')} on {self.device}, {on}"

    def _set_up(self) -> None:
        """Import MindSpore and set the device; again and again is as good as once.

        Raises:
            BackendError: the device is missing. Nothing runs on another one.
        """
        if reason := self.missing():
            raise BackendError(f"{reason}", key=f"backend {self.name}")
        if "mindspore" not in sys.modules:
            self._set_environment()
        try:
            apply(self.setup)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BackendError(f"no {self.device}: {reason}", key=f"backend {self.name}") from error

    def _set_environment(self) -> None:
        for name, value in self.environment.items():
            if name not in os.environ:
                os.environ[name] = value
                print(f"{self.name}: set {name}={value} for this MindSpore", file=sys.stderr)

    @functools.cached_property
    def group(self) -> Group:
        """The ranks that MindSpore's launcher started, this process among them."""
        library = self.setup.communication
        if library is None:
            return ALONE
        self._set_up()
        from refinedet.adapters.mindspore import collective

        return collective.join(library)

    @property
    def operations(self) -> ModuleType:
        """See ``Backend``."""
        self._set_up()
        from refinedet.adapters.mindspore import operations

        return operations

    def network(self, config: Config, parameters: Parameters) -> Network:
        """See ``Backend``."""
        self._set_up()
        from refinedet.adapters.mindspore.network import MindSporeNetwork

        return MindSporeNetwork(config, parameters)

    def trainer(
        self,
        config: Config,
        parameters: Parameters,
        momentum_buffers: Parameters | None = None,
        steps_done: int = 0,
        loss_scale: LossScale | None = None,
    ) -> Trainer:
        """See ``Backend``."""
        self._set_up()
        from refinedet.adapters.mindspore.trainer import MindSporeTrainer

        state = momentum_buffers, steps_done, loss_scale
        return MindSporeTrainer(config, parameters, *state, self.group)

    def profiler(self, folder: Path) -> AbstractContextManager[object]:
        """MindSpore's; see ``Backend``."""
        self._set_up()
        from refinedet.adapters.mindspore.trainer import profiler

        return profiler(folder, self.device)

    def batches(
        self,
        dataset: Dataset,
        config: Config,
        settings: InputSettings,
        cache: Path,
        first_step: int = 0,
    ) -> Iterator[Batch]:
        """See ``Backend``; ``cache`` becomes a folder of MindRecord files."""
        self._set_up()
        from refinedet.adapters.mindspore import pipeline

        return pipeline.batches(dataset, config, settings, cache, first_step, self.group)

    def export(self, network: Network, path: Path, settings: Settings, heads: bool = False) -> None:
        """Write a MindIR that holds its settings, or an AIR; see ``Backend``."""
        self._set_up()
        from refinedet.adapters.mindspore.export import export

        export(network, path, settings, heads, self.device)

    def load(self, file: ExportedFile) -> Network:
        """Read a MindIR; see ``Backend``."""
        if file.path.suffix == ".onnx":
            raise BackendError(
                "is no MindIR; an ONNX file runs with the backend onnxruntime", path=file.path
            )
        self._set_up()
        from refinedet.adapters.mindspore.export import MindIRNetwork

        return MindIRNetwork(file)


class MindSporeCPU(MindSporeBackend):
    """Trains and detects on the processor's cores."""

    name, device = "mindspore-cpu", "CPU"

    def __init__(self) -> None:
        super().__init__()


class MindSporeGPU(MindSporeBackend):
    """Trains and detects on one NVIDIA GPU. Not run on hardware."""

    name, device = "mindspore-gpu", "GPU"


class MindSporeAscend(MindSporeBackend):
    """Trains and detects on one Ascend 910. Not run on hardware."""

    name, device = "mindspore-ascend", "Ascend"
