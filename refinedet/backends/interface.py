"""The interface that a backend implements.

A backend is one framework on one device, a subclass of ``Backend``. Its inputs and outputs are
NumPy arrays as the specification (``refinedet.spec``) defines them: parameters under canonical
names, normalised images (N, 3, H, W) float32, anchors in the specification's order.

A backend is registered under the entry-point group ``refinedet.backends``, by any distribution,
or named as ``module:attribute``. The class is instantiated with those of the arguments
``device_id``, ``streams`` and ``lite_python`` that the user gave; an argument that it does not
accept is an error.

``name`` and ``missing`` are required. All other members are optional, and a backend lists in
``capabilities`` those that it implements:

=================  ==========================================================
capability         required by
=================  ==========================================================
``operations``     conformance, level *operations*
``network``        conformance, *network* and *detections*; ``eval``, ``detect``
``trainer``        conformance, *training step*; ``train``
``batches``        ``train``
``profiler``       ``train --profile``
``export``         ``export``
``export_heads``   ``export --heads``: ``export`` takes the argument ``heads``
``load``           ``eval`` and ``detect`` of an exported file
=================  ==========================================================

Checks that need an undeclared capability are reported as not implemented, never as passed. The
registry refuses a class that declares a capability without implementing it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from refinedet.backends.process_group import ALONE, Group
from refinedet.data.batch import Batch
from refinedet.data.dataset import Dataset
from refinedet.errors import BackendError
from refinedet.settings import InputSettings, Settings
from refinedet.spec.config import Config
from refinedet.spec.network import Heads, Parameters
from refinedet.spec.optimizer import LossScale
from refinedet.spec.types import Array


@dataclass(frozen=True)
class Limitation:
    """A declared limitation: a check that is expected to fail, and why."""

    check: str
    reason: str
    crashes: bool = False
    """Whether the check would crash the process; it is then not run."""


class StepLosses(NamedTuple):
    """The four parts of the loss of one step, before its update, and their sum."""

    arm_offsets: float
    arm_logits: float
    odm_offsets: float
    odm_logits: float
    total: float
    skipped: bool = False
    """The gradient overflowed float16: parameters and momentum buffers are unchanged."""


class ExportedFile(NamedTuple):
    """An exported detector, read and verified before a backend loads it."""

    path: Path
    settings: Settings
    embedded: bool
    """Whether the settings are embedded in the file, not only in the file beside it."""
    digest: str
    """SHA-256 of the file and its settings, in hexadecimal."""


class Network(Protocol):
    """The detector with its parameters, for inference on N images; N is any number from 1."""

    config: Config

    def heads(self, images: Array) -> Heads:
        """The raw outputs, float32: ``spec.network.forward``."""

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Boxes (N, A, 4) and scores (N, A, K), float32: ``spec.detection.scored_boxes``."""


class Trainer(Protocol):
    """A training in progress: parameters, optimizer, position in the schedule."""

    def step(self, batch: Batch) -> StepLosses:
        """One optimizer step (``spec.optimizer``, ``spec.losses``) at the next learning rate."""

    def parameters(self) -> Parameters:
        """Copies of all parameters, running statistics included, float32."""

    def momentum_buffers(self) -> Parameters:
        """Copies of the momentum of every trained parameter, float32."""


class HalfTrainer(Trainer, Protocol):
    """A training in float16."""

    def loss_scale(self) -> LossScale:
        """The loss scale of the next step."""


CAPABILITIES = (
    "operations",
    "network",
    "trainer",
    "batches",
    "profiler",
    "export",
    "export_heads",
    "load",
)
"""All capabilities: members of ``Backend``, and the argument ``heads`` of ``export``."""


class Backend(ABC):
    """One framework on one device."""

    name: str = ""
    """The name by which users select it."""

    capabilities: frozenset[str] = frozenset()
    """Subset of ``CAPABILITIES`` that it implements."""

    @abstractmethod
    def missing(self) -> str | None:
        """Return why it cannot run here and how to fix that, or None. Must be fast."""

    def describe(self) -> str:
        """Set the backend up; return the framework's version and the device.

        Raises:
            BackendError: the device cannot be used.
        """
        return "ready"

    @property
    def limitations(self) -> tuple[Limitation, ...]:
        """Checks of the conformance suite that it is known to fail."""
        return ()

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment variables that it sets for its framework, unless the user has set them."""
        return MappingProxyType({})

    @property
    def precisions(self) -> tuple[str, ...]:
        """Values of ``optimizer.precision`` that its trainer supports."""
        return ("float32",)

    @property
    def group(self) -> Group:
        """The ranks that compute together with this process."""
        return ALONE

    @property
    def operations(self) -> object:
        """An object with the functions of ``refinedet.backends.operations.OPERATIONS``, by name.

        Each takes the arguments of the specification's function and returns the same structure
        of new float32 arrays, C-contiguous and writable. It does not modify its arguments.
        """
        raise self._has_no("operations")

    def network(self, config: Config, parameters: Parameters) -> Network:
        """The detector with these parameters; inference is always in float32."""
        raise self._has_no("network")

    def trainer(
        self,
        config: Config,
        parameters: Parameters,
        momentum_buffers: Parameters | None = None,
        steps_done: int = 0,
        loss_scale: LossScale | None = None,
    ) -> Trainer:
        """Start or resume a training from this state; in float16, return a ``HalfTrainer``.

        A backend without float16 in ``precisions`` never receives ``loss_scale``, and may omit
        the parameter.
        """
        raise self._has_no("trainer")

    def profiler(self, folder: Path) -> AbstractContextManager[object]:
        """A context in which the framework's profiler records every step.

        Args:
            folder: folder for the profiler's files; new or empty.
        """
        raise self._has_no("profiler")

    def batches(
        self,
        dataset: Dataset,
        config: Config,
        settings: InputSettings,
        cache: Path,
        first_step: int = 0,
    ) -> Iterator[Batch]:
        """The batches from ``first_step`` on; they depend only on data, settings and seed."""
        raise self._has_no("batches")

    def export(self, network: Network, path: Path, settings: Settings, heads: bool = False) -> None:
        """Write the detector, decoding included, in the backend's file format.

        ``settings`` are embedded if the format allows it. With ``heads``, the file has the raw
        outputs; a backend without the capability ``export_heads`` never receives this argument.
        """
        raise self._has_no("export")

    def load(self, file: ExportedFile) -> Network:
        """Load a detector that ``export`` wrote; its settings have been checked.

        The network may lack ``heads``. If the file has raw outputs, ``scored_boxes`` applies
        ``spec.detection.scored_boxes`` to them.

        Raises:
            BackendError: a file of another format, or tensors that do not match its settings.
        """
        raise self._has_no("load")

    def _has_no(self, capability: str) -> BackendError:
        return BackendError(f"has no {capability}; use another backend", key=f"backend {self.name}")

    def require(self, *capabilities: str) -> None:
        """Raise a ``BackendError`` unless it has all of these capabilities."""
        for capability in capabilities:
            if capability not in self.capabilities:
                raise self._has_no(capability)
