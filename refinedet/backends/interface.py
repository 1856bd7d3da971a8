"""The interface that a backend implements.

A backend is one framework on one device, a subclass of ``Backend``. NumPy arrays go in and come
out; the specification (``refinedet.spec``) defines what they hold: parameters under canonical
names, images (N, 3, H, W) float32 normalised, anchors in the specification's order.

A backend is registered under the entry-point group ``refinedet.backends``, by any distribution,
or named as ``module:attribute``. Its class is called with those of the arguments ``device_id``,
``streams`` and ``lite_python`` that the user gave; one that it does not have is refused.

``name`` and ``missing`` are required. All else is optional, and a backend lists in
``capabilities`` what it implements:

=================  ==========================================================
capability         what needs it
=================  ==========================================================
``operations``     conformance, level *operations*; the application needs none
``network``        conformance, *network* and *detections*; ``eval``, ``detect``
``trainer``        conformance, *training step*; ``train``
``batches``        ``train``
``profiler``       ``train --profile``
``export``         ``export``
``export_heads``   ``export --heads``: ``export`` takes the argument ``heads``
``load``           ``eval`` and ``detect`` of an exported file
=================  ==========================================================

What is not declared is reported as not implemented, never as passed. The registry refuses a
class that declares what it does not implement.
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
    """A declared gap: exactly this check fails, for this reason."""

    check: str
    reason: str
    crashes: bool = False
    """Running it would end the process: it is not run."""


class StepLosses(NamedTuple):
    """The four parts of the loss of one step, before its update, and their sum."""

    arm_offsets: float
    arm_logits: float
    odm_offsets: float
    odm_logits: float
    total: float
    skipped: bool = False
    """The gradient overflowed float16: parameters and momentum buffers stayed."""


class ExportedFile(NamedTuple):
    """An exported detector on the disk, read and verified before a backend loads it."""

    path: Path
    settings: Settings
    embedded: bool
    """Whether the file itself holds these settings, not the file beside it alone."""
    digest: str
    """SHA-256 of the file and its settings, in hexadecimal."""


class Network(Protocol):
    """The detector with its parameters, for inference. Any N from 1."""

    config: Config

    def heads(self, images: Array) -> Heads:
        """The raw outputs, float32: ``spec.network.forward``."""

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Boxes (N, A, 4) and scores (N, A, K), float32: ``spec.detection.scored_boxes``."""


class Trainer(Protocol):
    """A training in progress: parameters, optimizer, position in the schedule."""

    def step(self, batch: Batch) -> StepLosses:
        """One step of ``spec.optimizer`` on ``spec.losses``, at the schedule's next rate."""

    def parameters(self) -> Parameters:
        """Copies of all parameters, running statistics included, float32."""

    def momentum_buffers(self) -> Parameters:
        """Copies of the momentum of every trained parameter, float32."""


class HalfTrainer(Trainer, Protocol):
    """A training in float16."""

    def loss_scale(self) -> LossScale:
        """That of the next step."""


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
"""What a backend may implement: members of ``Backend``, and ``heads`` of its ``export``."""


class Backend(ABC):
    """One framework on one device."""

    name: str = ""
    """As users type it."""

    capabilities: frozenset[str] = frozenset()
    """Those of ``CAPABILITIES`` that it implements."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot run here and what to do about it, or None. Cheap to call."""

    def describe(self) -> str:
        """The framework's version and the device, once it is set up.

        Raises:
            BackendError: the device is missing after all.
        """
        return "ready"

    @property
    def limitations(self) -> tuple[Limitation, ...]:
        """Checks of the conformance suite that it is known to fail."""
        return ()

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that it sets for its framework, unless the user has."""
        return MappingProxyType({})

    @property
    def precisions(self) -> tuple[str, ...]:
        """Each ``optimizer.precision`` in which its trainer computes."""
        return ("float32",)

    @property
    def group(self) -> Group:
        """The ranks that compute together with this process."""
        return ALONE

    @property
    def operations(self) -> object:
        """Any object with functions of ``refinedet.backends.operations.OPERATIONS`` by their names.

        Each has the arguments and results of the specification's function, which its
        docstring gives: float32 arrays, C-contiguous and writable, new ones, in the
        same tuples. Arguments are left as they are.
        """
        raise self._has_no("operations")

    def network(self, config: Config, parameters: Parameters) -> Network:
        """The detector with these parameters; it computes in float32, however it was trained."""
        raise self._has_no("network")

    def trainer(
        self,
        config: Config,
        parameters: Parameters,
        momentum_buffers: Parameters | None = None,
        steps_done: int = 0,
        loss_scale: LossScale | None = None,
    ) -> Trainer:
        """A training that starts, or goes on, from here; in float16 a ``HalfTrainer``.

        Without float16 among its ``precisions``, a backend is never given a ``loss_scale``,
        and need not take one.
        """
        raise self._has_no("trainer")

    def profiler(self, folder: Path) -> AbstractContextManager[object]:
        """Within it, the framework's own profiler records every step.

        Args:
            folder: for the profiler's files; new or empty.
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
        """The batches of a training from a step on: a function of data, settings and seed."""
        raise self._has_no("batches")

    def export(self, network: Network, path: Path, settings: Settings, heads: bool = False) -> None:
        """Write the detector, decoding included, as a file of the backend's own kind.

        A kind of file with room for ``settings`` holds them too. ``heads`` asks for the raw
        outputs instead; without the capability ``export_heads`` it is never passed.
        """
        raise self._has_no("export")

    def load(self, file: ExportedFile) -> Network:
        """The detector that ``export`` wrote; its settings are checked already.

        ``heads`` may be missing from such a network. ``scored_boxes`` of raw outputs are made by
        ``spec.detection.scored_boxes``.

        Raises:
            BackendError: not such a file, or its tensors are not those of its settings.
        """
        raise self._has_no("load")

    def _has_no(self, capability: str) -> BackendError:
        return BackendError(f"has no {capability}; use another backend", key=f"backend {self.name}")

    def require(self, *capabilities: str) -> None:
        """Raise a ``BackendError`` unless it has all of these capabilities."""
        for capability in capabilities:
            if capability not in self.capabilities:
                raise self._has_no(capability)
