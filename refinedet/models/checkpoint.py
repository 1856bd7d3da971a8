"""Checkpoints: everything a training needs to go on, in one file that runs no code.

A checkpoint is a safetensors file: parameters as ``parameter/NAME``, momentum as
``momentum_buffer/NAME``, and in its metadata the settings, the step, in float16 the loss scale
and the steps it has been good for, the versions that wrote it and a digest of all of this.
The order of the images, their augmentation and the learning rate are functions of the seed and
the step (``refinedet.data.samples``, ``refinedet.spec.schedule``): the seed is in the settings
and the step is here, so there is no further state.
Weights for deployment are the same without momentum.

Files are written beside their goal, read back and compared, forced to the disk and
renamed; only then is an older one removed. Numbers are written from where they are and
read back one tensor at a time, so that saving needs little memory of its own.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from collections.abc import Callable, Iterable
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
from refinedet.support.text import shown
from refinedet.version import __version__

FORMAT = "refinedet checkpoint 3"
NAME = re.compile(r"step-(\d{8,})\.safetensors")
LARGEST_HEADER = 8 << 20
"""Bytes of a header that are believed; a real one has some 50,000."""


@dataclass(frozen=True)
class Checkpoint:
    """A detector, and where its training stands."""

    settings: Settings
    parameters: Parameters
    momentum_buffers: Parameters | None
    """Momentum by canonical name; None at the start, and in weights for deployment."""
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
    """SHA-256 of the metadata, but for the digest itself, and of the tensors as they come."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {"sha256"}):
        digest.update(f"{key}={metadata[key]}\0".encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\0".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def _versions() -> str:
    """What writes here, for whoever has to explain a checkpoint later."""
    found = [f"refinedet {__version__}", f"python {platform.python_version()}"]
    for name in ("numpy", "safetensors", "mindspore"):
        with suppress(installed.PackageNotFoundError):
            found.append(f"{name} {installed.version(name)}")
    return ", ".join(found)


def _check(checkpoint: Checkpoint) -> None:
    """Exactly the parameters of the network and their momentum, float32 and finite."""
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
        got = {name: v.shape for name, v in checkpoint.momentum_buffers.items()}
        for name in sorted(expected.keys() | got.keys()):
            if expected.get(name) != got.get(name):
                raise SpecError(
                    f"expected shape {expected.get(name)}, got {got.get(name)}",
                    key=f"momentum buffer {name}",
                )


def _write(path: Path, tensors: Parameters, metadata: dict[str, str]) -> None:
    """Write contiguous float32 tensors, in their order, as safetensors.

    The library's own writer would go through a file of a name and permissions of its
    own, which a killed process leaves behind; and older ones copy every number first.

    Source: safetensors, README, section "Format".
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.data)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write one file, whole or not at all, and read it back.

    Raises:
        CheckpointError: numbers that are not finite or not the network's; the
            file that was there, if any, stays.
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
    # What lies in memory as the file wants it is not copied.
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
            back = _digest(stored.metadata(), ((n, stored.get_tensor(n)) for n in tensors))
        if back != metadata["sha256"]:
            raise CheckpointError("not written: what was read back differs", path=path)


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
                found = shown(metadata.get("format"))
                raise CheckpointError(f"expected the format {FORMAT!r}, got {found}", path=path)
            tensors = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
    except (OSError, SafetensorError, AttributeError, TypeError, ValueError) as error:
        # The last three: a dtype that NumPy does not have, a shape that it refuses.
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
    if "loss_scale" not in metadata:  # of float32, or from before there was float16
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
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``step-N.safetensors``, then remove all but it and the newest others.

    Drafts that a killed process left are removed first.

    Args:
        keep: files that stay, from 1; the one just written, which is known to be good,
            is always among them.
    Raises:
        CheckpointError, WriteError: as ``write_checkpoint``; the older ones stay. Also
            an older one that cannot be removed.
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


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def newest_checkpoint(
    folder: Path, passed_over: Callable[[str], None] = _to_stderr
) -> Checkpoint | None:
    """The newest checkpoint that verifies; None where there is no file at all.

    Args:
        passed_over: is told, a line each, which newer ones cannot be used and why.
    Raises:
        CheckpointError: there are files, and none can be used.
    """
    paths = checkpoints(folder)
    for path in paths:
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            passed_over(f"passed over {error}")
    if paths:
        raise CheckpointError(f"none of its {len(paths)} checkpoints can be used", path=folder)
    return None


def require_match(checkpoint: Checkpoint, settings: Settings) -> None:
    """Raise a ``CheckpointError`` unless a training may go on under these settings.

    What is computed, on which classes and in which order must be the same; when to
    save and evaluate, and the number of workers, may differ; so may how a loss scale is written
    (older programs wrote 1 where null means it).
    """
    scales = {config.optimizer.scale for config in (checkpoint.config, settings.model)}
    for key, old, new in differences(checkpoint.settings, settings):
        if key == "model.optimizer.loss_scale" and len(scales) == 1:
            continue
        if not key.startswith("train.") and key != "input.workers":
            raise CheckpointError(
                f"has {key}={shown(old)}, "
                f"the settings say {shown(new)}; go on with the run's own settings.yaml",
                key=f"checkpoint of step {checkpoint.steps_done}",
            )
