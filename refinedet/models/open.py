"""Opening trained detectors: from a run, a checkpoint, weights or an exported file.

``read_model`` reads and verifies a file once, without a backend; ``open_network`` loads the
result into a backend. ``open_model`` does both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from refinedet.backends.interface import Backend, ExportedFile, Network
from refinedet.errors import BackendError, CheckpointError
from refinedet.models import run_folder
from refinedet.models.checkpoint import Checkpoint, newest_checkpoint
from refinedet.models.embedded_settings import HOLDING, read_exported, settings_file
from refinedet.models.foreign.import_weights import import_weights
from refinedet.settings import Settings
from refinedet.spec.config import Config


@dataclass(frozen=True)
class ModelFile:
    """A trained detector that was read from a file and verified."""

    path: Path
    """The argument of ``read_model``."""
    content: Checkpoint | ExportedFile

    @property
    def settings(self) -> Settings:
        """The detector's settings; its class names are among them."""
        return self.content.settings

    @property
    def class_names(self) -> tuple[str, ...]:
        """Without the background: label 1 is the first."""
        return self.settings.class_names

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the detector, in hexadecimal; the file is not read again."""
        return self.content.digest

    @property
    def capability(self) -> str:
        """The capability that a backend needs to run it: ``load`` or ``network``."""
        return "load" if isinstance(self.content, ExportedFile) else "network"


@dataclass(frozen=True)
class Model:
    """A detector that a backend runs."""

    network: Network
    file: ModelFile
    rebuild: Callable[[Config], Network]
    """Build the network with the same parameters and another ``image_size`` in its config.

    Raises BackendError for an exported detector, whose size is fixed.
    """

    @property
    def settings(self) -> Settings:
        """See ``ModelFile``."""
        return self.file.settings

    @property
    def class_names(self) -> tuple[str, ...]:
        """See ``ModelFile``."""
        return self.file.class_names

    @property
    def digest(self) -> str:
        """See ``ModelFile``."""
        return self.file.digest


def read_model(path: Path) -> ModelFile:
    """Read and verify the detector in a file or a run.

    Args:
        path: folder of a run (its newest checkpoint), a file that ``export_model`` wrote, or
            a checkpoint or weights that ``import_weights`` reads without other arguments.
    Raises:
        BackendError, CheckpointError, DataError, SettingsError: the file is missing or of
            another kind.
    """
    if path.is_dir():
        checkpoint = newest_checkpoint(path / run_folder.CHECKPOINTS)
        if checkpoint is None:
            raise CheckpointError(
                "no checkpoint in it; it is not a run, or has none yet", path=path
            )
        return ModelFile(path, checkpoint)
    if exported := read_exported(path):
        return ModelFile(path, exported)
    try:
        return ModelFile(path, import_weights(path)[0])
    except CheckpointError as error:
        if path.suffix == ".safetensors" or not path.exists():
            raise
        reason = (
            f"{error.reason}; nor an exported detector: "
            f"there is no {settings_file(path).name} beside it"
        )
        if path.suffix in HOLDING:
            reason += ", and no settings are in it"
        raise CheckpointError(reason, path=error.path, key=error.key) from error


def open_network(backend: Backend, file: ModelFile) -> Model:
    """Load a detector that ``read_model`` returned into a backend.

    Raises:
        BackendError: the backend cannot run this kind of file.
    """
    content = file.content
    if isinstance(content, Checkpoint):
        parameters = content.parameters

        def rebuild(config: Config) -> Network:
            return backend.network(config, parameters)

        return Model(rebuild(content.config), file, rebuild)
    if file.capability not in backend.capabilities:
        raise BackendError(f"backend {backend.name} reads no exported detectors", path=file.path)
    height, width = content.settings.model.image_size

    def refuse(config: Config) -> Network:
        raise BackendError(
            f"an exported detector, which takes only {height}x{width} pixels; for "
            "other sizes give the run or checkpoint that it was exported from",
            path=file.path,
        )

    return Model(backend.load(content), file, refuse)


def open_model(backend: Backend, path: Path) -> Model:
    """Read a detector and load it into a backend; see ``read_model``, ``open_network``."""
    return open_network(backend, read_model(path))
