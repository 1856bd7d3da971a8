"""Checkpoints: everything a training needs to go on, in one file that runs no code.

A checkpoint is a safetensors file: parameters as ``parameter/NAME``, momentum as
``velocity/NAME``, and the detector's settings, the step and a digest of all numbers
in its metadata. The order of the pictures, their augmentation and the learning rate
are functions of the seed and the step (``refinedet.data.training``,
``refinedet.spec.schedule``): the seed is in the settings and the step is here, so
there is no further state. Weights for deployment are the same without momentum.

Files are written beside their goal, forced to the disk, renamed, read back and
compared; only then is an older one removed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from refinedet.files import replacing
from refinedet.settings import Settings, SettingsError, differences, from_yaml, to_yaml
from refinedet.spec.config import Config
from refinedet.spec.errors import ContractError
from refinedet.spec.network import Parameters, check_parameters, parameter_table

FORMAT = "refinedet checkpoint 1"
NAME = re.compile(r"step-(\d{8,})\.safetensors")
LARGEST_HEADER = 8 << 20
"""Bytes of a header that are believed; a real one has some 50,000."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; one line, with what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A detector, and where its training stands."""

    settings: Settings
    parameters: Parameters
    velocities: Parameters | None
    """Momentum by canonical name; None at the start, and in weights for deployment."""
    steps_done: int

    @property
    def config(self) -> Config:
        """The detector's own part of the settings."""
        return self.settings.model


def _digest(tensors: Parameters) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype}{tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _velocity_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    return {p.name: p.shape for p in parameter_table(config) if p.group != "statistic"}


def _check(checkpoint: Checkpoint) -> None:
    check_parameters(checkpoint.parameters, checkpoint.config)
    if checkpoint.velocities is not None:
        shapes = {name: v.shape for name, v in checkpoint.velocities.items()}
        if shapes != _velocity_shapes(checkpoint.config):
            raise ContractError("velocities: not those of the network's parameters")
        if not all(np.isfinite(v).all() for v in checkpoint.velocities.values()):
            raise ContractError("velocities: not finite")


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write one file, whole or not at all, and read it back.

    Raises:
        CheckpointError: numbers that are not finite or not the network's; the
            file that was there, if any, stays.
        WriteError: the disk is full, or the folder cannot be written to.
    """
    try:
        _check(checkpoint)
    except ContractError as error:
        raise CheckpointError(f"{path}: not written: {error}") from error
    tensors = {f"parameter/{name}": p for name, p in checkpoint.parameters.items()}
    tensors |= {f"velocity/{name}": v for name, v in (checkpoint.velocities or {}).items()}
    metadata = {
        "format": FORMAT,
        "settings": to_yaml(checkpoint.settings),
        "steps_done": str(checkpoint.steps_done),
        "sha256": _digest(tensors),
    }
    with replacing(path) as draft:
        try:
            save_file(tensors, draft, metadata)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(f"{path}: cannot write: {error}") from error
        _read(draft, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint or weights, and verify every number.

    Raises:
        CheckpointError: no such file, not a checkpoint, cut off or corrupt.
    """
    return _read(path, path)


def _read(path: Path, shown: Path) -> Checkpoint:
    """Read ``path``; errors speak of ``shown``."""
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if header > min(LARGEST_HEADER, size - 8):
            raise CheckpointError(f"{shown}: cut off, or not a safetensors file")
        with safe_open(path, "numpy") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or f"corrupt or cut off ({error})"
        raise CheckpointError(f"{shown}: cannot read: {reason}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{shown}: not a checkpoint of this program ({FORMAT})")
    if _digest(tensors) != metadata.get("sha256"):
        raise CheckpointError(f"{shown}: corrupt: its numbers do not match their digest")
    try:
        velocities = _part(tensors, "velocity/")
        checkpoint = Checkpoint(
            from_yaml(metadata["settings"]),
            _part(tensors, "parameter/"),
            velocities or None,
            int(metadata["steps_done"]),
        )
        _check(checkpoint)
    except (KeyError, ValueError, SettingsError) as error:
        raise CheckpointError(f"{shown}: corrupt: {error}") from error
    return checkpoint


def _part(tensors: Parameters, prefix: str) -> Parameters:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, newest step first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``step-N.safetensors`` and keep the newest ``keep``.

    Drafts that a killed process left are removed first. Errors: as ``write_checkpoint``.
    """
    for draft in folder.glob(".step-*.safetensors"):
        with suppress(OSError):
            draft.unlink()
    path = folder / f"step-{checkpoint.steps_done:08d}.safetensors"
    write_checkpoint(path, checkpoint)
    for old in checkpoints(folder)[keep:]:
        old.unlink()
    return path


def newest_checkpoint(
    folder: Path, passed_over: Callable[[str], None] = lambda line: None
) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None; tells which it passed over."""
    for path in checkpoints(folder):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            passed_over(f"passed over {error}")
    return None


def require_match(checkpoint: Checkpoint, settings: Settings) -> None:
    """Raise a ``CheckpointError`` unless a training may go on under these settings.

    What is computed, on which classes and in which order must be the same; when to
    save and evaluate, and the number of workers, may differ.
    """
    found = differences(checkpoint.settings, settings)
    for key, old, new in found:
        if not key.startswith("train.") and key != "input.workers":
            raise CheckpointError(
                f"checkpoint of step {checkpoint.steps_done}: has {key}={old!r}, "
                f"the settings say {new!r}; go on with the run's own settings.yaml"
            )
