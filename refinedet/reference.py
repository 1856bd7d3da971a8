"""The contract as a backend: ``spec``. Exact and slow; it does not train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from refinedet.backend import BackendError, Batch, Limitation, Network, Trainer
from refinedet.data.dataset import Dataset
from refinedet.settings import InputSettings
from refinedet.spec import detection
from refinedet.spec.config import Config
from refinedet.spec.errors import Array
from refinedet.spec.network import Heads, Parameters, check_parameters, forward


class SpecNetwork:
    """``refinedet.backend.Network`` by ``refinedet.spec``."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        check_parameters(parameters, config)
        self.config = config
        self.tensors = parameters

    def heads(self, pictures: Array) -> Heads:
        """The raw outputs."""
        return forward(self.tensors, pictures, self.config)[0]

    def scored_boxes(self, pictures: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor."""
        return detection.scored_boxes(self.heads(pictures), self.config)


class SpecBackend:
    """``refinedet.backend.Backend`` by ``refinedet.spec``: inference only."""

    name = "spec"
    limitations: tuple[Limitation, ...] = ()
    environment: Mapping[str, str] = {}

    def missing(self) -> str | None:
        """None: NumPy is all it needs."""
        return None

    def network(self, config: Config, parameters: Parameters) -> Network:
        """See ``refinedet.backend.Backend``."""
        return SpecNetwork(config, parameters)

    def trainer(
        self,
        config: Config,
        parameters: Parameters,
        velocities: Parameters | None = None,
        steps_done: int = 0,
    ) -> Trainer:
        """Raises: the contract has no backward pass."""
        raise BackendError("backend spec: does not train; use another --backend")

    def batches(
        self,
        dataset: Dataset,
        config: Config,
        settings: InputSettings,
        cache: Path,
        first_step: int = 0,
    ) -> Iterator[Batch]:
        """Raises: there is nothing to train."""
        raise BackendError("backend spec: does not train; use another --backend")

    def export(self, network: Network, path: Path) -> None:
        """Raises: the contract has no file format."""
        raise BackendError("backend spec: does not export; use another --backend")

    def load(self, path: Path, config: Config) -> Network:
        """Raises: the contract has no file format."""
        raise BackendError("backend spec: does not load exported files; use another --backend")
