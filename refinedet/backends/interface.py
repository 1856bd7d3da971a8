"""The interface that a backend implements, and how backends are found.

A backend is one framework on one device. NumPy arrays go in and come out; what they
hold is the specification's business (``refinedet.spec``): parameters under canonical
names, images (N, 3, H, W) float32 normalised, anchors in the specification's order.

A backend is registered under the entry-point group ``refinedet.backends``, by any
distribution, or named as ``module:attribute``. The object is called without arguments, or
with those of ``device_id``, ``streams`` and ``lite_python`` that the user gave; one that it
does not have is refused.

It may implement a part of ``Backend``. Only ``name`` and ``missing`` must be there:

========================  ==========================================================
member                    what needs it
========================  ==========================================================
``operations``            conformance, level *operations*; the application needs none
``network``               conformance, *network* and *detections*; ``eval``, ``detect``
``trainer``               conformance, *training step*; ``train``
``batches``               ``train``
``profiler``              ``train --profile``
``export``, ``load``      ``export``; ``eval`` and ``detect`` of an exported file
``group``                 ``launch``: a ``refinedet.backends.process_group.Group``; without it, it works alone
========================  ==========================================================

What is not there is reported as not implemented, never as passed. A trainer in float16
is there if ``precisions`` says so.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from refinedet.data.dataset import Dataset
from refinedet.settings import InputSettings, Settings
from refinedet.spec.config import Config
from refinedet.spec.errors import Array
from refinedet.spec.network import Heads, Parameters
from refinedet.spec.optimizer import LossScale

GROUP = "refinedet.backends"


class BackendError(RuntimeError):
    """A backend that is unknown, or cannot run here; one line, with what to do."""


@dataclass(frozen=True)
class Limitation:
    """A declared gap: exactly this check fails, for this reason."""

    check: str
    reason: str
    crashes: bool = False
    """Running it would end the process: it is not run."""


class Batch(NamedTuple):
    """What one training step reads. N images, A anchors, T places for objects."""

    images: Array
    """(N, 3, H, W) float32, normalised."""
    boxes: Array
    """(N, T, 4) float32, corner form, fractions; zero where ``labels`` is 0."""
    labels: Array
    """(N, T) int32: classes from 1; 0 marks an empty place, after all objects."""
    arm_offsets: Array
    """(N, A, 4) float32: ``spec.matching.targets`` on the anchors, offsets."""
    arm_labels: Array
    """(N, A) int32: the same, classes; 0 is background."""


class StepLosses(NamedTuple):
    """The four parts of the loss of one step, before its update, and their sum."""

    arm_offsets: float
    arm_logits: float
    odm_offsets: float
    odm_logits: float
    total: float
    skipped: bool = False
    """The gradient overflowed float16: parameters and momentum buffers stayed."""


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


class Backend(Protocol):
    """One framework on one device."""

    name: str
    """As users type it."""

    def missing(self) -> str | None:
        """Why it cannot run here and what to do about it, or None. Cheap to call."""

    def found(self) -> str:
        """The framework's version and the device, once it is set up; may be absent.

        Raises:
            BackendError: the device is missing after all.
        """

    @property
    def limitations(self) -> tuple[Limitation, ...]:
        """Checks of the conformance suite that it is known to fail; none if absent."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that it sets for its framework, unless the user has; none if absent."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """The ``optimizer.precision`` that its trainer has; float32 alone if absent."""

    @property
    def operations(self) -> object:
        """Any object with functions of ``refinedet.backends.operations.OPERATIONS`` by their names.

        Each has the arguments and results of the specification's function, which its
        docstring gives: float32 arrays, C-contiguous and writable, new ones, in the
        same tuples. Arguments are left as they are.
        """

    def network(self, config: Config, parameters: Parameters) -> Network:
        """The detector with these parameters; it computes in float32, however it was trained."""

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

    def profiler(self, folder: Path) -> AbstractContextManager[object]:
        """Within it, steps are profiled by the framework's means; may be absent.

        Args:
            folder: for what it writes; new or empty.
        """

    def batches(
        self,
        dataset: Dataset,
        config: Config,
        settings: InputSettings,
        cache: Path,
        first_step: int = 0,
    ) -> Iterator[Batch]:
        """The batches of a training from a step on: a function of data, settings and seed."""

    def export(self, network: Network, path: Path, settings: Settings, heads: bool = False) -> None:
        """Write the detector, decoding included, as a file of the backend's own kind.

        A kind that has a place for ``settings`` holds them too. ``heads`` asks for the raw
        outputs instead; a backend that has no such file leaves the argument out.
        """

    def load(self, path: Path, settings: Settings) -> Network:
        """Read what ``export`` wrote with these settings.

        ``heads`` may be missing from such a network. ``scored_boxes`` of raw outputs are made by
        ``spec.detection.scored_boxes``.

        Raises:
            BackendError: not such a file, or, as far as it tells, one of other settings.
        """


def precisions(backend: Any) -> tuple[str, ...]:
    """What the backend can train in."""
    found: tuple[str, ...] = getattr(backend, "precisions", ("float32",))
    return found


def require_precision(backend: Any, config: Config) -> None:
    """Raise a ``BackendError`` unless the backend trains in the precision of the config."""
    expected, able = config.optimizer.precision, precisions(backend)
    if expected not in able:
        raise BackendError(
            f"backend {backend.name}: trains in {' and '.join(able)} alone; set "
            f"model.optimizer.precision={able[0]}, or use another --backend"
        )


def backend_names() -> list[str]:
    """The registered backends, sorted."""
    return sorted(point.name for point in entry_points(group=GROUP))


def device_found(backend: Backend) -> str:
    """What the backend found here, once it is set up; that it is ready, if it says no more."""
    told: str = backend.found() if hasattr(backend, "found") else "ready"
    return told


def profiler_of(backend: Backend, folder: Path) -> AbstractContextManager[object]:
    """The backend's profiler, which writes into a folder that is new or empty.

    Raises:
        BackendError: it has none, or the folder is in use.
    """
    if not hasattr(backend, "profiler"):
        raise BackendError(f"backend {backend.name}: has no profiler; leave out --profile")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BackendError(f"--profile {folder}: is not empty; choose another folder")
    return backend.profiler(folder)


def lacking(name: str) -> str | None:
    """Why a backend cannot run here, or None."""
    try:
        find_backend(name)
    except BackendError as error:
        return str(error).removeprefix(f"backend {name}: ")
    return None


def find_backend(name: str, *needs: str, **options: Any) -> Backend:
    """The backend of that name, ready to run here.

    Args:
        name: a registered name, or ``module:attribute``.
        needs: members of ``Backend`` that it must implement.
        options: what it is called with, by keyword.
    Raises:
        BackendError: unknown, not importable, without what is needed or an option, or its
            device is missing. Nothing falls back to another device.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    try:
        if name in points:
            made: Any = points[name].load()
        elif ":" in name:
            module, attribute = name.split(":", 1)
            made = getattr(importlib.import_module(module), attribute)
        else:
            known = ", ".join(backend_names())
            raise BackendError(f"backend: no {name!r}; there are {known}, or MODULE:ATTRIBUTE")
    except BackendError:
        raise
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        kind = (
            "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        )
        raise BackendError(f"backend {name}: {kind}{error}") from error
    if not (inspect.isclass(made) and callable(getattr(made, "missing", None))):
        raise BackendError(
            f"backend {name}: is no backend: that is a class with a method missing, see "
            "docs/write-a-backend.md"
        )
    for option in options:
        if option not in inspect.signature(made).parameters:
            spelt = option.replace("_", "-")
            raise BackendError(f"backend {name}: takes no --{spelt}; leave it out")
    backend = cast(Backend, made(**options))
    for member in needs:
        if not hasattr(made, member):
            raise BackendError(f"backend {name}: has no {member}; use another --backend")
    if reason := backend.missing():
        raise BackendError(f"backend {name}: {reason}")
    return backend
