"""Export of a trained detector as a backend's own kind of file."""

from __future__ import annotations

from pathlib import Path

from refinedet.backends.interface import Backend
from refinedet.errors import DataError, UsageError
from refinedet.models.embedded_settings import settings_file
from refinedet.models.open import Model
from refinedet.settings import Settings, to_yaml
from refinedet.support.files import write_atomically


def export_model(backend: Backend, model: Model, path: Path, *, heads: bool = False) -> None:
    """Write a detector as the backend's own kind of file, and its settings beside it.

    Args:
        heads: export the raw outputs instead of boxes and scores.
    Raises:
        BackendError: the backend exports no files.
        UsageError: it exports no raw outputs.
        DataError: a file cannot be written there under this name.
    """
    if heads and "export_heads" not in backend.capabilities:
        raise UsageError(
            f"backend {backend.name} exports no raw outputs; leave it out", key="heads"
        )
    other = path.exists() and not path.is_file()  # a folder, a pipe or a device
    if other or not path.parent.is_dir():
        raise DataError("expected the name of a file in a folder that exists", path=path)
    if path.suffix == ".safetensors":  # it would be read as a checkpoint, and could replace one
        raise DataError("is the name of a checkpoint; choose another suffix", path=path)
    settings = Settings(model=model.network.config, class_names=model.class_names)
    backend.export(model.network, path, settings, **({"heads": True} if heads else {}))
    try:
        write_atomically(settings_file(path), to_yaml(settings))
    except OSError:  # without settings it could not be used
        path.unlink()
        raise
