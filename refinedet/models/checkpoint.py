"""Checkpoints: everything that a training needs to continue, in one file without code.

A checkpoint is a safetensors file: parameters as ``parameter/NAME``, momentum buffers as
``momentum_buffer/NAME``. Its metadata hold the settings, the step, the versions that wrote it,
a digest of everything else, and with float16 the loss scale and its number of good steps. The
order of the images, their augmentation and the learning rate depend on the seed and the step
alone (``refinedet.data.samples``, ``refinedet.spec.schedule``), so there is no further state.
Weights for deployment are the same without momentum buffers.

A file is written under another name, read back and compared, forced to the disk and renamed;
only then is an older one removed. Tensors are written without a copy and read back one at a
time, so that saving needs little memory.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from refinedet.errors import CheckpointError, SettingsError
from refinedet.settings import Settings, differences, from_yaml, to_yaml
from refinedet.spec.config import Config
from refinedet.spec.errors import SpecError
from refinedet.spec.network import Parameters, check_parameters, parameter_table
from refinedet.spec.optimizer import LossScale
from refinedet.spec.types import Array
from refinedet.support.files import open_regular_file, replacing
from refinedet.support.text import Report, shown, to_stderr
from refinedet.version import __version__

FORMAT = "refinedet checkpoint 3"
NAME = re.compile(r"step-(\d{8,})\.safetensors")
LARGEST_HEADER = 8 << 20
"""Largest size of a header in bytes; a real one has about 50,000."""


@dataclass(frozen=True)
class Checkpoint:
    """A detector, and the state of its training."""

    settings: Settings
    parameters: Parameters
    momentum_buffers: Parameters | None
    """By canonical name; None at the start, and in weights for deployment."""
    steps_done: int
    loss_scale: LossScale | None = None
    """Of the next step of a training in float16; None at the start."""
    stored_digest: str | None = field(default=None, compare=False, repr=False)
    """The digest in the file that it was read from, which was verified."""

    @property
    def config(self) -> Config:
        """The detector's own part of the settings."""
        return self.settings.model

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its content in hexadecimal: the file's own, if it was read from one."""
        settings = {"settings": to_yaml(self.settings)}
        return self.stored_digest or _digest(settings, sorted(self.parameters.items()))


def _digest(metadata: dict[str, str], tensors: Iterable[tuple[str, Array]]) -> str:
    """SHA-256 of the metadata without the digest, and of the tensors in the given order."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {"sha256"}):
        digest.update(f"{key}={metadata[key]}\0".encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\0".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def _versions() -> str:
    """Versions of the libraries in use, for whoever examines a checkpoint later."""
    versions = [f"refinedet {__version__}", f"python {platform.python_version()}"]
    for name in ("numpy", "safetensors", "mindspore"):
        with suppress(installed.PackageNotFoundError):
            versions.append(f"{name} {installed.version(name)}")
    return ", ".join(versions)


def _check(checkpoint: Checkpoint) -> None:
    """Require exactly the network's parameters and momentum buffers, float32 and finite."""
    check_parameters(checkpoint.parameters, checkpoint.config)
    parts = {
        "parameter": checkpoint.parameters,
        "momentum buffer": checkpoint.momentum_buffers or {},
    }
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            if tensor.dtype != np.float32:
                raise SpecError(f"expected float32, got {tensor.dtype}", key=f"{part} {name}")
            if not np.isfinite(tensor).all():
                raise SpecError("not finite", key=f"{part} {name}")
    if checkpoint.momentum_buffers is not None:
        table = parameter_table(checkpoint.config)
        expected = {p.name: p.shape for p in table if p.group != "statistic"}
        actual = {name: v.shape for name, v in checkpoint.momentum_buffers.items()}
        for name in sorted(expected.keys() | actual.keys()):
            if expected.get(name) != actual.get(name):
                raise SpecError(
                    f"expected shape {expected.get(name)}, got {actual.get(name)}",
                    key=f"momentum buffer {name}",
                )


def _write(path: Path, tensors: Parameters, metadata: dict[str, str]) -> None:
    """Write contiguous float32 tensors, in their order, as safetensors.

    The library's writer uses a temporary file with a name and permissions of its own, which a
    killed process leaves behind; older versions also copy every tensor.

    Source: safetensors, README, section "Format".
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.data)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write one file, whole or not at all, and read it back.

    Raises:
        CheckpointError: tensors that are not finite or not the network's; an existing
            file stays.
        WriteError: the disk is full, or the folder cannot be written to.
    """
    try:
        _check(checkpoint)
    except SpecError as error:
        raise CheckpointError(f"not written: {error}", path=path) from error
    tensors = {f"parameter/{name}": p for name, p in checkpoint.parameters.items()}
    tensors |= {
        f"momentum_buffer/{name}": v for name, v in (checkpoint.momentum_buffers or {}).items()
    }
    # Not a copy if the tensor is in this form already.
    tensors = {name: np.ascontiguousarray(tensors[name], "<f4") for name in sorted(tensors)}
    metadata = {
        "format": FORMAT,
        "settings": to_yaml(checkpoint.settings),
        "steps_done": str(checkpoint.steps_done),
        "versions": _versions(),
    }
    if checkpoint.loss_scale is not None:
        metadata["loss_scale"] = repr(checkpoint.loss_scale.scale)
        metadata["good_steps"] = str(checkpoint.loss_scale.good_steps)
    metadata["sha256"] = _digest(metadata, tensors.items())
    with replacing(path) as draft:
        _write(draft, tensors, metadata)
        with safe_open(draft, "numpy") as stored:
            read_back = _digest(stored.metadata(), ((n, stored.get_tensor(n)) for n in tensors))
        if read_back != metadata["sha256"]:
            raise CheckpointError("not written: the file differs from what was written", path=path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint or weights, and verify every number.

    Raises:
        CheckpointError: no such file, not a checkpoint, of another format, cut off
            or corrupt.
    """
    try:
        with open_regular_file(path) as file:
            header = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if header > min(LARGEST_HEADER, size - 8):
            raise CheckpointError("cut off, or not a safetensors file", path=path)
        with safe_open(path, "numpy") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                actual = shown(metadata.get("format"))
                raise CheckpointError(f"expected the format {FORMAT!r}, got {actual}", path=path)
            tensors = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
    except (OSError, SafetensorError, AttributeError, TypeError, ValueError) as error:
        # The last three: a dtype or a shape that NumPy does not support.
        reason = getattr(error, "strerror", None) or f"corrupt or cut off ({error})"
        raise CheckpointError(f"cannot read: {reason}", path=path) from error
    if _digest(metadata, tensors.items()) != metadata.get("sha256"):
        raise CheckpointError("corrupt: its content does not match its digest", path=path)
    try:
        checkpoint = Checkpoint(
            from_yaml(metadata["settings"]),
            _part(tensors, "parameter/"),
            _part(tensors, "momentum_buffer/") or None,
            int(metadata["steps_done"]),
            _loss_scale(metadata),
            metadata["sha256"],
        )
        _check(checkpoint)
    except KeyError as error:
        raise CheckpointError(f"its metadata has no {error}", path=path) from error
    except (SpecError, SettingsError, ValueError) as error:
        author = metadata.get("versions", "another program")
        raise CheckpointError(
            f"{error}", path=path, key=f"written by {author}, not usable here"
        ) from error
    return checkpoint


def _loss_scale(metadata: dict[str, str]) -> LossScale | None:
    if "loss_scale" not in metadata:  # a training in float32, or of a version without float16
        return None
    return LossScale(float(metadata["loss_scale"]), int(metadata["good_steps"]))


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
    numbered = [(int(m[1]), p) for p in folder.iterdir() if (m := NAME.fullmatch(p.name))]
    return [path for _, path in sorted(numbered, reverse=True)]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``step-N.safetensors``, then remove old checkpoints.

    Temporary files of a killed process are removed first.

    Args:
        keep: number of files that stay, at least 1: the one just written and the newest
            others.
    Raises:
        CheckpointError, WriteError: as ``write_checkpoint``, and the older ones stay; or an
            older one cannot be removed.
    """
    for draft in folder.glob(".step-*.safetensors"):
        with suppress(OSError):
            draft.unlink()
    path = folder / f"step-{checkpoint.steps_done:08d}.safetensors"
    write_checkpoint(path, checkpoint)
    others = [other for other in checkpoints(folder) if other != path]
    for old in others[max(keep, 1) - 1 :]:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot remove: {error.strerror}", path=old) from error
    return path


def newest_checkpoint(folder: Path, report: Report = to_stderr) -> Checkpoint | None:
    """The newest checkpoint that is valid; None if there is no checkpoint file.

    Args:
        report: called with one line for each newer checkpoint that is not valid.
    Raises:
        CheckpointError: there are files, but none is valid; the reason is that of the newest.
    """
    faults: list[CheckpointError] = []
    for path in checkpoints(folder):
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            faults.append(error)
            continue
        for fault in faults:
            report(f"passed over {fault}")
        return checkpoint
    if faults:
        raise CheckpointError(
            f"none of its {len(faults)} checkpoints can be used, the newest: {faults[0]}",
            path=folder,
        )
    return None


def require_match(checkpoint: Checkpoint, settings: Settings) -> None:
    """Raise a ``CheckpointError`` unless a training can continue with these settings.

    What is computed, the classes and the order of the images must be the same. When to save and
    evaluate and the number of workers may differ, and so may two spellings of one loss scale
    (older programs wrote 1 for null).
    """
    scales = {config.optimizer.scale for config in (checkpoint.config, settings.model)}
    for key, old, new in differences(checkpoint.settings, settings):
        if key == "model.optimizer.loss_scale" and len(scales) == 1:
            continue
        if not key.startswith("train.") and key != "input.workers":
            raise CheckpointError(
                f"has {key}={shown(old)}, "
                f"the settings have {shown(new)}; use the run's own settings.yaml",
                key=f"checkpoint of step {checkpoint.steps_done}",
            )
