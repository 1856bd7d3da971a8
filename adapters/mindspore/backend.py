"""The MindSpore backend on one kind of device. MindSpore is imported at first use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from refinedet.backend import BackendError, Batch, Limitation, Network, Trainer
from refinedet.data.dataset import Dataset
from refinedet.settings import InputSettings, Settings
from refinedet.spec.config import PRECISIONS, Config
from refinedet.spec.network import Parameters
from refinedet.spec.optimizer import LossScale

OLDEST, NEWEST = (2, 7, 2), (2, 10)
CAPPED_FROM = (2, 9)
CAP = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
"""From MindSpore 2.9 on, oneDNN falls back to a reference convolution on processors with
AVX-512, 150 times slower. The limit is read when MindSpore is imported."""


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in version("mindspore").split(".")[:3] if part.isdigit())


class MindSporeBackend:
    """``refinedet.backend.Backend`` for one of MindSpore's devices."""

    limitations: tuple[Limitation, ...] = ()
    precisions = PRECISIONS

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.device = device

    @property
    def environment(self) -> Mapping[str, str]:
        """The cap on oneDNN's instruction set, where this version needs it."""
        return CAP if self.device == "CPU" and _version() >= CAPPED_FROM else {}

    def missing(self) -> str | None:
        """Why it cannot run here, from the installed version alone."""
        try:
            found = _version()
        except PackageNotFoundError:
            return "MindSpore is not installed; run: pip install 'refinedet[cpu]'"
        if found < OLDEST or found[:2] > NEWEST:
            shown = ".".join(map(str, found))
            return f"MindSpore {shown} is installed; 2.7.2 to 2.10 are supported"
        return None

    def _engine(self) -> ModuleType:
        if "mindspore" not in sys.modules:
            self._set_environment()
        from refinedet.adapters.mindspore import engine

        try:
            engine.use_device(self.device)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BackendError(f"backend {self.name}: no {self.device}: {reason}") from error
        return engine

    def _set_environment(self) -> None:
        for name, value in self.environment.items():
            if name not in os.environ:
                os.environ[name] = value
                print(f"{self.name}: set {name}={value} for this MindSpore", file=sys.stderr)

    @property
    def operations(self) -> ModuleType:
        """See ``refinedet.backend.Backend``."""
        self._engine()
        from refinedet.adapters.mindspore import operations

        return operations

    def network(self, config: Config, parameters: Parameters) -> Network:
        """See ``refinedet.backend.Backend``."""
        network: Network = self._engine().MindSporeNetwork(config, parameters)
        return network

    def trainer(
        self,
        config: Config,
        parameters: Parameters,
        velocities: Parameters | None = None,
        steps_done: int = 0,
        loss_scale: LossScale | None = None,
    ) -> Trainer:
        """See ``refinedet.backend.Backend``."""
        self._engine()
        from refinedet.adapters.mindspore.trainer import MindSporeTrainer

        return MindSporeTrainer(config, parameters, velocities, steps_done, loss_scale)

    def batches(
        self,
        dataset: Dataset,
        config: Config,
        settings: InputSettings,
        cache: Path,
        first_step: int = 0,
    ) -> Iterator[Batch]:
        """See ``refinedet.backend.Backend``; ``cache`` becomes a folder of MindRecord files."""
        self._engine()
        from refinedet.adapters.mindspore import pipeline

        return pipeline.batches(dataset, config, settings, cache, first_step)

    def export(self, network: Network, path: Path, settings: Settings) -> None:
        """Write a MindIR, which has no place for settings; see ``refinedet.backend.Backend``."""
        self._engine().export(network, path)

    def load(self, path: Path, settings: Settings) -> Network:
        """Read a MindIR; see ``refinedet.backend.Backend``."""
        network: Network = self._engine().MindIRNetwork(path, settings.model)
        return network
