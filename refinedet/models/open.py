"""Trained detectors as files: a run, a checkpoint, weights, or an export of a backend.

An export has its settings beside it, as ``NAME.yaml``: classes, preparation of images
and all else that not every backend's kind of file has a place for. MindIR and ONNX hold them
too, and are refused beside others; a file that stands alone is run by those in it.

Both kinds are protobuf messages. Of ONNX, the metadata hold the settings under a key. MindIR has
no such place, but its readers pass over fields that they do not know: the settings are in a field
of our own at its end, this program's version is in another, and a third has the digest of all
before them. (Other programs may work on an ONNX file, so that has no digest.)
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from refinedet import __version__
from refinedet.backends.interface import Backend, BackendError, Network
from refinedet.data.dataset import DataError
from refinedet.models.checkpoint import CheckpointError, newest_checkpoint
from refinedet.models.foreign.errors import FormatError
from refinedet.models.foreign.loading import import_weights
from refinedet.models.foreign.protobuf import fields, message, written_field
from refinedet.settings import Settings, SettingsError, differences, from_yaml, shown, to_yaml
from refinedet.spec.config import Config
from refinedet.support.files import write_atomically

HOLDING = (".mindir", ".onnx")
"""Kinds of files that hold their settings."""
SETTINGS, VERSION, DIGEST = 1000, 1001, 1002
"""Numbers of the fields of our own in a MindIR; its own go up to about 20."""
METADATA, KEY = 14, "settings"
"""The field with the metadata of an ONNX file, and under what the settings are in them."""


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
    """Whether this is what ``export_model`` wrote, by the settings beside it or in it.

    Raises:
        BackendError: a file of the kind that holds settings, and not a whole one.
    """
    if not path.is_file() or path.suffix == ".safetensors":
        return False
    if _settings_file(path).exists():
        return True
    return path.suffix in HOLDING and settings_in(path) is not None


def with_settings(mindir: bytes, settings: Settings) -> bytes:
    """A MindIR and our own fields: its SHA-256, this program's version, the settings as YAML."""
    return mindir + _own_fields(
        hashlib.sha256(mindir).digest(), __version__.encode(), to_yaml(settings).encode()
    )


def _own_fields(digest: bytes, version: bytes, settings: bytes) -> bytes:
    numbered = zip((DIGEST, VERSION, SETTINGS), (digest, version, settings), strict=True)
    return b"".join(written_field(number, value) for number, value in numbered)


def settings_in(path: Path) -> str | None:
    """The settings that a MindIR or an ONNX file holds, as YAML.

    Raises:
        BackendError: cannot be read, or is not a whole file of such a kind; a MindIR that was
            changed after it was exported.
    """
    try:
        content = memoryview(path.read_bytes())
        if path.suffix == ".onnx":
            found = list(_onnx_settings(content))
            return str(found[-1], "utf-8") if found else None
        own = {number: message(v) for number, v in fields(content) if number >= SETTINGS}
        if DIGEST in own:
            parts = [bytes(own.get(number, b"")) for number in (DIGEST, VERSION, SETTINGS)]
            body = content[: len(content) - len(_own_fields(*parts))]
            if hashlib.sha256(body).digest() != parts[0]:
                raise BackendError(f"{path}: was damaged after it was exported; export again")
        return str(own[SETTINGS], "utf-8") if SETTINGS in own else None
    except OSError as error:
        raise BackendError(f"{path}: cannot read: {error.strerror}") from error
    except (FormatError, UnicodeDecodeError) as error:
        kind = "ONNX file" if path.suffix == ".onnx" else "MindIR"
        raise BackendError(f"{path}: not a whole {kind}: {error}") from error


def _onnx_settings(content: memoryview) -> Iterator[memoryview]:
    for number, value in fields(content):
        if number == METADATA:
            entry = dict(fields(message(value)))
            if 1 in entry and 2 in entry and bytes(message(entry[1])) == KEY.encode():
                yield message(entry[2])


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
            if path.suffix in HOLDING:
                beside += ", and no settings are in it"
            raise CheckpointError(f"{error}; {beside}") from error
    else:
        if not hasattr(backend, "load"):
            raise BackendError(f"{path}: backend {backend.name} reads no exported detectors")
        settings = _settings_of(path)
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


def _settings_of(path: Path) -> Settings:
    """Those beside a file, or else in it."""
    if (beside := _settings_file(path)).exists():
        return from_yaml(beside)
    try:
        return from_yaml(settings_in(path) or "")
    except SettingsError as error:
        raise BackendError(f"{path}: its settings are not usable here: {error}") from error


def export_model(backend: Backend, model: Model, path: Path, *, heads: bool = False) -> None:
    """Write a detector as the backend's own kind of file, and its settings beside it.

    Args:
        heads: the raw outputs in place of boxes and scores.
    Raises:
        BackendError: the backend has no such file.
        DataError: not a place for a file.
    """
    options = {"heads": True} if heads else {}
    if heads and "heads" not in inspect.signature(backend.export).parameters:
        raise BackendError(f"backend {backend.name}: takes no --heads; leave it out")
    if path.is_dir() or not path.parent.is_dir():
        raise DataError(f"{path}: expected the name of a file in a folder that exists")
    if path.suffix == ".safetensors":  # as which it would be read, and may replace one
        raise DataError(f"{path}: is the name of a checkpoint; choose another suffix")
    settings = Settings(model=model.network.config, class_names=model.class_names)
    backend.export(model.network, path, settings, **options)
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
