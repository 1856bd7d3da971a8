"""The PyTorch backend on one kind of device. PyTorch is imported at first use."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from refinedet.backends.interface import Backend, Network, Trainer
from refinedet.data.batch import Batch
from refinedet.data.batches import batches
from refinedet.data.dataset import Dataset
from refinedet.errors import BackendError
from refinedet.settings import InputSettings
from refinedet.spec.config import PRECISIONS, Config
from refinedet.spec.network import Parameters
from refinedet.spec.optimizer import LossScale

OLDEST = (2, 4)


class TorchBackend(Backend):
    """``Backend`` for one of PyTorch's devices; it exports nothing."""

    capabilities = frozenset({"operations", "network", "trainer", "batches"})
    precisions = PRECISIONS

    def __init__(self, device: str) -> None:
        self.device = device

    def missing(self) -> str | None:
        """Why it cannot run here, from the installed version alone."""
        try:
            installed = version("torch")
        except PackageNotFoundError:
            return "PyTorch is not installed; run: pip install 'refinedet[torch]'"
        if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST:
            return f"PyTorch {installed} is installed; 2.4 or newer is supported"
        return None

    def describe(self) -> str:
        """See ``Backend``."""
        device = self._ready()
        import torch

        on = "the CPU" if device == "cpu" else f"{device}, {torch.cuda.get_device_name(device)}"
        return f"PyTorch {torch.__version__} on {on}"

    def _ready(self) -> str:
        """The device, once it is there and set up.

        Raises:
            BackendError: it is missing.
        """
        if reason := self.missing():
            raise BackendError(f"{reason}", key=f"backend {self.name}")
        import torch

        # The specification's tolerances are those of float32, and one training gives one result.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        return self.device

    @property
    def operations(self) -> Any:
        """See ``Backend``."""
        device = self._ready()
        from refinedet.adapters.torch.operations import Operations

        return Operations(device)

    def network(self, config: Config, parameters: Parameters) -> Network:
        """See ``Backend``."""
        device = self._ready()
        from refinedet.adapters.torch.network import TorchNetwork

        return TorchNetwork(config, parameters, device)

    def trainer(
        self,
        config: Config,
        parameters: Parameters,
        momentum_buffers: Parameters | None = None,
        steps_done: int = 0,
        loss_scale: LossScale | None = None,
    ) -> Trainer:
        """See ``Backend``."""
        device = self._ready()
        from refinedet.adapters.torch.trainer import TorchTrainer

        return TorchTrainer(config, parameters, momentum_buffers, steps_done, loss_scale, device)

    def batches(
        self,
        dataset: Dataset,
        config: Config,
        settings: InputSettings,
        cache: Path,
        first_step: int = 0,
    ) -> Iterator[Batch]:
        """See ``Backend``."""
        return batches(dataset, config, settings, cache, first_step)


class TorchCPU(TorchBackend):
    """Trains and detects on the processor's cores."""

    name = "torch-cpu"

    def __init__(self) -> None:
        super().__init__("cpu")


class TorchCUDA(TorchBackend):
    """Trains and detects on an NVIDIA GPU, of those that ``CUDA_VISIBLE_DEVICES`` shows."""

    name = "torch-cuda"

    def __init__(self, device_id: int = 0) -> None:
        super().__init__(f"cuda:{device_id}")
        self.device_id = device_id

    def missing(self) -> str | None:
        """Why it cannot run here; PyTorch itself has to find the device."""
        if reason := super().missing():
            return reason
        import torch

        if torch.version.cuda is None:
            return (
                f"PyTorch {torch.__version__} is built without CUDA; install a build with it, from "
                "pytorch.org/get-started, or use the backend torch-cpu"
            )
        if not torch.cuda.is_available():
            return (
                f"PyTorch finds no CUDA device; it expected an NVIDIA GPU and a driver for CUDA "
                f"{torch.version.cuda} (nvidia-smi shows both), or use the backend torch-cpu"
            )
        if self.device_id >= (count := torch.cuda.device_count()):
            return f"device_id {self.device_id}: there are {count}, from 0"
        return None
