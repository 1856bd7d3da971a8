"""Trained detectors as files: a run, a checkpoint, weights, or an export of a backend.

An export has its settings beside it, as ``NAME.yaml``: classes, preparation of pictures
and all else that not every backend's kind of file has a place for. A file that has one holds
them too, and is refused beside others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from refinedet.backend import Backend, BackendError, Network
from refinedet.checkpoint import CheckpointError, newest_checkpoint
from refinedet.data.dataset import DataError
from refinedet.files import write_atomically
from refinedet.settings import Settings, SettingsError, differences, from_yaml, shown, to_yaml
from refinedet.spec.config import Config
from refinedet.weights.loading import import_weights


@dataclass(frozen=True)
class Model:
    """A detector ready to run, and what its labels mean."""

    network: Network
    class_names: tuple[str, ...]
    remade: Callable[[Config], Network]
    """The same parameters under a config with another ``image_size``.

    Raises BackendError for an exported detector, which has one size.
    """


def _settings_file(path: Path) -> Path:
    return path.with_name(path.name + ".yaml")


def is_exported(path: Path) -> bool:
    """Whether this is what ``export_model`` wrote, by the settings beside it."""
    return path.is_file() and path.suffix != ".safetensors" and _settings_file(path).exists()


def open_model(backend: Backend, path: Path) -> Model:
    """The detector in a file or a run.

    Args:
        path: folder of a run (its newest checkpoint), what ``export_model`` wrote, or a
            checkpoint or weights as ``import_weights`` takes them without more words.
    Raises:
        BackendError, CheckpointError, DataError, SettingsError: nothing there, or not
            such a file.
    """
    if path.is_dir():
        checkpoint = newest_checkpoint(path / "checkpoints")
        if checkpoint is None:
            raise CheckpointError(f"{path}: no checkpoint in it; it is not a run, or has none yet")
    elif not is_exported(path):
        try:
            checkpoint, _ = import_weights(path)
        except CheckpointError as error:
            if path.suffix == ".safetensors" or not path.exists():
                raise
            beside = f"nor an exported detector: there is no {_settings_file(path).name} beside it"
            raise CheckpointError(f"{error}; {beside}") from error
    else:
        if not hasattr(backend, "load"):
            raise BackendError(f"{path}: backend {backend.name} reads no exported detectors")
        settings = from_yaml(_settings_file(path))
        height, width = settings.model.image_size

        def fixed(config: Config) -> Network:
            raise BackendError(
                f"{path}: an exported detector, which takes {height}x{width} pixels alone; for "
                "other sizes give the run or checkpoint that it was exported from"
            )

        return Model(backend.load(path, settings), settings.class_names, fixed)

    def made(config: Config) -> Network:
        return backend.network(config, checkpoint.parameters)

    return Model(made(checkpoint.config), checkpoint.settings.class_names, made)


def export_model(backend: Backend, model: Model, path: Path) -> None:
    """Write a detector as the backend's own kind of file, and its settings beside it."""
    if path.is_dir() or not path.parent.is_dir():
        raise DataError(f"{path}: wants the name of a file in a folder that exists")
    if path.suffix == ".safetensors":  # as which it would be read, and may replace one
        raise DataError(f"{path}: is the name of a checkpoint; choose another suffix")
    settings = Settings(model=model.network.config, class_names=model.class_names)
    backend.export(model.network, path, settings)
    try:
        write_atomically(_settings_file(path), to_yaml(settings))
    except OSError:  # without its settings it is none
        path.unlink()
        raise


def require_own_settings(path: Path, text: str, settings: Settings) -> None:
    """An exported file that holds settings was exported with these.

    Args:
        path: the file.
        text: the settings in it, as YAML.
        settings: those beside it.
    Raises:
        BackendError: others, or none that can be used here.
    """
    try:
        own = from_yaml(text)
    except SettingsError as error:
        raise BackendError(f"{path}: its settings are not usable here: {error}") from error
    for key, inside, beside in differences(own, settings):
        raise BackendError(
            f"{path}: {key} is {shown(inside)} in it, and {shown(beside)} in {path.name}.yaml, "
            "which belongs to another file; export again"
        )
