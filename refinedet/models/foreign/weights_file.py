"""Files of weights in any known format: their tensors, under their own and canonical names.

The format is recognised by the content, never by the file's name. No code in a file is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from refinedet.errors import CheckpointError, FormatError, SettingsError
from refinedet.models.checkpoint import FORMAT as CHECKPOINT_FORMAT
from refinedet.models.checkpoint import LARGEST_HEADER, load_checkpoint
from refinedet.models.foreign.caffe import read_caffemodel
from refinedet.models.foreign.known_schemes import recognise
from refinedet.models.foreign.mindspore_ckpt import is_ckpt, read_ckpt
from refinedet.models.foreign.naming_scheme import Scheme
from refinedet.models.foreign.pytorch import read_legacy, read_zip
from refinedet.settings import Settings, from_yaml
from refinedet.spec.network import Parameters
from refinedet.spec.types import Array
from refinedet.support.files import open_regular_file
from refinedet.support.text import one_line

LARGEST_FILE = 2 << 30
"""Largest size in bytes; also the limit of protobuf."""


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file.

    Attributes:
        container: the file's format, in words.
        tensors: by the names in the file, of any dtype of the format; read-only.
        scheme: the program that the names are of.
        settings: those in it, if this program wrote it.
        digest: that in it, verified, of a checkpoint of this program.
    """

    path: Path
    container: str
    tensors: dict[str, Array]
    scheme: Scheme
    settings: Settings | None = None
    digest: str | None = None

    @cached_property
    def parameters(self) -> Parameters:
        """The tensors that have a canonical name, under it; contiguous float32 copies.

        Raises:
            CheckpointError: one whose dtype is not a floating-point one.
        """
        parameters = {}
        for name, tensor in self.tensors.items():
            ours = self.scheme.canonical(name)
            if ours is not None:
                if tensor.dtype.kind != "f":
                    raise CheckpointError(
                        f"{one_line(name, 60)} has the type {tensor.dtype}, expected floats",
                        path=self.path,
                    )
                with np.errstate(over="ignore"):  # reported later, as not finite
                    parameters[ours] = np.array(
                        self.scheme.convert(ours, tensor), np.float32, order="C"
                    )
        return parameters

    def dropped(self) -> int:
        """Number of tensors that are known and not needed."""
        return sum(map(self.scheme.is_ignored, self.tensors))

    def unexpected(self) -> list[str]:
        """Names that are not known."""
        scheme = self.scheme
        return [n for n in self.tensors if not scheme.canonical(n) and not scheme.is_ignored(n)]


def read_weights(path: Path) -> WeightsFile:
    """Read a file of weights, or a checkpoint.

    Raises:
        CheckpointError: no such file; damaged; an unknown format or network.
    """
    try:
        content = _read(path)
    except OSError as error:
        raise CheckpointError(f"cannot read: {error.strerror}", path=path) from error
    except (FormatError, SettingsError) as error:
        raise CheckpointError(one_line(error.reason), path=path, key=error.key) from error
    tensors = content.tensors
    scheme = recognise(list(tensors))
    if scheme is None:
        names = ", ".join(one_line(name, 60) for name in list(tensors)[:3])
        raise CheckpointError(
            f"{content.container} with {len(tensors)} tensors of an unknown network, as {names}",
            path=path,
        )
    theirs: dict[str, str] = {}
    for name in tensors:
        ours = scheme.canonical(name)
        if ours is not None and theirs.setdefault(ours, name) != name:
            both = f"{one_line(theirs[ours], 60)} and {one_line(name, 60)}"
            raise CheckpointError(f"{both} are both {ours}", path=path)
    return WeightsFile(path, content.container, tensors, scheme, content.settings, content.digest)


class _Content(NamedTuple):
    """A ``WeightsFile`` whose scheme is not known yet."""

    container: str
    tensors: dict[str, Array]
    settings: Settings | None = None
    digest: str | None = None


def _read(path: Path) -> _Content:
    with open_regular_file(path) as file:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise FormatError(f"larger than {LARGEST_FILE} bytes; not a file of weights")
        start = file.read(512)
        header = int.from_bytes(start[:8], "little")
        if start[8:9] == b"{" and header <= LARGEST_HEADER:
            return _read_safetensors(path)
        file.seek(0)
        data = file.read(size)
    if start[:4] == b"PK\x03\x04":
        return _Content("PyTorch's zip format", read_zip(data))
    if start[:1] == b"\x80":
        return _Content("PyTorch's format before 1.6", read_legacy(data))
    if start[257:262] == b"ustar":
        raise FormatError("a tar archive; unpack it, or save the weights with a newer PyTorch")
    if is_ckpt(start):
        try:
            return _Content("a MindSpore checkpoint", read_ckpt(memoryview(data)))
        except FormatError as error:
            raise FormatError(str(error), key="a MindSpore checkpoint") from error
    try:
        return _Content("a caffemodel", read_caffemodel(memoryview(data)))
    except FormatError as error:
        raise FormatError(
            f"neither safetensors nor PyTorch's nor MindSpore's; read as a caffemodel: {error}"
        ) from error


def _read_safetensors(path: Path) -> _Content:
    try:
        with safe_open(path, "numpy") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") == CHECKPOINT_FORMAT:
                tensors = {}
            else:
                tensors = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
    except (SafetensorError, AttributeError, TypeError, ValueError) as error:
        # The last three: a dtype or a shape that NumPy does not support.
        raise FormatError(f"corrupt or cut off ({error})") from error
    if not tensors and metadata.get("format") == CHECKPOINT_FORMAT:
        checkpoint = load_checkpoint(path)
        return _Content(
            "a checkpoint", checkpoint.parameters, checkpoint.settings, checkpoint.digest
        )
    settings = from_yaml(metadata["settings"]) if "settings" in metadata else None
    return _Content("safetensors", tensors, settings)
