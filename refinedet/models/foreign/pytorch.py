"""PyTorch's files of tensors, old and new, read without PyTorch.

Since PyTorch 1.6 a file is an uncompressed zip archive: ``NAME/data.pkl``, and the numbers of
each storage in ``NAME/data/KEY``. Older files are five consecutive pickles (a magic number, a
protocol, the writer's sizes, the tensors, the keys of the storages), then for each storage a
count in 8 bytes and the numbers.

Source: PyTorch, torch/serialization.py.
"""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import numpy as np

from refinedet.errors import FormatError
from refinedet.models.foreign.pickles import Storage, Tensor, read_pickle
from refinedet.spec.types import Array
from refinedet.support.text import one_line, shown

MAGIC = 0x1950A86A20F9469CFC6C
LARGEST_PICKLE = 4 << 20
"""Largest size of the pickles in bytes; those of a detector have about 20,000."""
MOST_DIMENSIONS = 8
WRAPPERS = ("state_dict", "model")
"""Keys under which the file of a training holds its tensors."""
PARALLEL = "module."
"""Prefix of all names that DataParallel saves."""


def read_zip(data: bytes) -> dict[str, Array]:
    """The tensors of a file of PyTorch 1.6 or newer, by name; read-only.

    Raises:
        FormatError: cut off, corrupt, compressed, or not such a file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _from_archive(archive, len(data))
    except FormatError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise FormatError(f"cut off or corrupt: {error}") from error


def _from_archive(archive: zipfile.ZipFile, size: int) -> dict[str, Array]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise FormatError("a zip archive, but not of PyTorch: there is no data.pkl in it")
    folder = pickles[0].removesuffix("data.pkl")
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries.values()):
        raise FormatError("its entries are compressed, which PyTorch never does")
    if sum(e.file_size for e in entries.values()) > size:
        raise FormatError("its entries are larger than the file")
    if entries[pickles[0]].file_size > LARGEST_PICKLE:
        raise FormatError(f"its pickle has more than {LARGEST_PICKLE} bytes")
    order = f"{folder}byteorder"
    if order in entries and archive.read(order) != b"little":
        raise FormatError("its numbers are not little-endian")

    def content(storage: Storage) -> bytes:
        name = f"{folder}data/{storage.key}"
        if name not in entries:
            raise FormatError(f"there is no {one_line(name, 60)} in it")
        return archive.read(name)

    tensors = _named(read_pickle(io.BytesIO(archive.read(pickles[0]))))
    read: dict[str, bytes] = {}
    for tensor in tensors.values():
        key = tensor.storage.key
        if key not in read:
            read[key] = content(tensor.storage)
    return {name: _array(name, t, read[t.storage.key]) for name, t in tensors.items()}


def read_legacy(data: bytes) -> dict[str, Array]:
    """The tensors of a file of PyTorch before 1.6, by name; read-only.

    Raises:
        FormatError: cut off, or not such a file.
    """
    stream = io.BytesIO(data[:LARGEST_PICKLE])
    if read_pickle(stream) != MAGIC:
        raise FormatError("a pickle, but not of PyTorch")
    read_pickle(stream)
    sizes = read_pickle(stream)
    if not isinstance(sizes, dict) or sizes.get("little_endian") is not True:
        raise FormatError("its numbers are not little-endian")
    tensors = _named(read_pickle(stream))
    keys = read_pickle(stream)
    dtypes = {t.storage.key: np.dtype(t.storage.dtype) for t in tensors.values()}
    if not isinstance(keys, list) or {*map(str, keys)} != dtypes.keys():
        raise FormatError("its storages are not those of its tensors")
    at = stream.tell()
    read: dict[str, memoryview] = {}
    for key in keys:
        count = int.from_bytes(data[at : at + 8], "little")
        size = count * dtypes[key].itemsize
        at += 8
        if size > len(data) - at:
            raise FormatError(f"cut off: storage {one_line(key, 60)} has {size} bytes")
        read[key] = memoryview(data)[at : at + size]
        at += size
    return {name: _array(name, t, read[t.storage.key]) for name, t in tensors.items()}


def _named(value: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, also of a wrapped one; other values are dropped."""
    if isinstance(value, dict):
        for wrapper in WRAPPERS:
            if isinstance(value.get(wrapper), dict):
                value = value[wrapper]
        tensors = {name: t for name, t in value.items() if isinstance(t, Tensor)}
        if tensors and all(isinstance(name, str) for name in tensors):
            whole = all(name.startswith(PARALLEL) for name in tensors)
            return {
                name.removeprefix(PARALLEL) if whole else name: t for name, t in tensors.items()
            }
    raise FormatError("it holds no tensors by name (a state dict)")


def _array(name: str, tensor: Tensor, content: bytes | memoryview) -> Array:
    """A tensor as a view of its storage."""
    dtype = np.dtype(tensor.storage.dtype)
    shape, strides = tensor.shape, tensor.strides
    count = tensor.storage.count
    last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=False))
    if (
        count * dtype.itemsize != len(content)
        or len(shape) != len(strides)
        or len(shape) > MOST_DIMENSIONS
        or math.prod(shape) > count
        or (0 not in shape and last >= count)
        or tensor.offset > count
    ):
        raise FormatError(f"tensor {shown(name, 60)} is not inside its storage")
    flat = np.frombuffer(content, dtype)[tensor.offset :]
    steps = tuple(s * dtype.itemsize for s in strides)
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
