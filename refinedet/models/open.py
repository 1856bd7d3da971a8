"""Trained detectors, opened from a run, a checkpoint, weights, or an export of a backend."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refinedet.backends.interface import Backend, Network
from refinedet.errors import BackendError, CheckpointError
from refinedet.models import run_folder
from refinedet.models.checkpoint import Checkpoint, newest_checkpoint
from refinedet.models.embedded_settings import HOLDING, is_exported, settings_file, settings_of
from refinedet.models.foreign.loading import import_weights
from refinedet.settings import Settings
from refinedet.spec.config import Config
from refinedet.spec.network import Parameters
from refinedet.support.files import file_digest


@dataclass(frozen=True)
class Model:
    """A detector ready to run, and what its labels mean."""

    network: Network
    class_names: tuple[str, ...]
    remade: Callable[[Config], Network]
    """The same parameters under a config with another ``image_size``.

    Raises BackendError for an exported detector, which has one size.
    """
    digest: Callable[[], str]
    """SHA-256 that identifies its parameters; computed from those in memory where they are."""


def open_model(backend: Backend, path: Path) -> Model:
    """The detector in a file or a run.

    Args:
        path: folder of a run (its newest checkpoint), what ``export_model`` wrote, or a
            checkpoint or weights as ``import_weights`` takes them without more words.
    Raises:
        BackendError, CheckpointError, DataError, SettingsError: nothing there, or not
            such a file.
    """
    checkpoint = _checkpoint(path)
    if checkpoint is None:
        return _open_exported(backend, path)

    def rebuild(config: Config) -> Network:
        return backend.network(config, checkpoint.parameters)

    return Model(
        rebuild(checkpoint.config),
        checkpoint.settings.class_names,
        rebuild,
        lambda: _parameters_digest(checkpoint.parameters),
    )


def model_settings(path: Path) -> Settings:
    """The settings of the detector that ``open_model`` would open; needs no backend.

    Raises:
        CheckpointError, DataError, SettingsError: as ``open_model``.
    """
    checkpoint = _checkpoint(path)
    return settings_of(path) if checkpoint is None else checkpoint.settings


def _checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint in a file or a run; None for an exported detector."""
    if path.is_dir():
        checkpoint = newest_checkpoint(path / run_folder.CHECKPOINTS)
        if checkpoint is None:
            raise CheckpointError(
                "no checkpoint in it; it is not a run, or has none yet", path=path
            )
        return checkpoint
    if is_exported(path):
        return None
    try:
        return import_weights(path)[0]
    except CheckpointError as error:
        if path.suffix == ".safetensors" or not path.exists():
            raise
        beside = f"nor an exported detector: there is no {settings_file(path).name} beside it"
        if path.suffix in HOLDING:
            beside += ", and no settings are in it"
        raise CheckpointError(f"{error}; {beside}") from error


def _open_exported(backend: Backend, path: Path) -> Model:
    if "load" not in backend.capabilities:
        raise BackendError(f"backend {backend.name} reads no exported detectors", path=path)
    settings = settings_of(path)
    height, width = settings.model.image_size

    def fixed(config: Config) -> Network:
        raise BackendError(
            f"an exported detector, which takes {height}x{width} pixels alone; for "
            "other sizes give the run or checkpoint that it was exported from",
            path=path,
        )

    network = backend.load(path, settings)
    return Model(network, settings.class_names, fixed, lambda: _exported_digest(path))


def _parameters_digest(parameters: Parameters) -> str:
    digest = hashlib.sha256()
    for name in sorted(parameters):
        tensor = np.ascontiguousarray(parameters[name])
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\0".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def _exported_digest(path: Path) -> str:
    """Of the file, and of the settings beside it if there are any."""
    beside = settings_file(path)
    files = [path, beside] if beside.exists() else [path]
    return hashlib.sha256(b"".join(map(file_digest, files))).hexdigest()
