"""A ``.ckpt``: MindSpore's Checkpoint in protobuf's wire format, without MindSpore.

    Checkpoint     value = 1
    Value          tag = 1, tensor = 2, maptensor = 3
    TensorProto    dims = 1, tensor_type = 2, tensor_content = 3

A large tensor stands in slices, one after the other, each with the tag and the dimensions of
the whole. One number has no dimensions, or, of old, the dimension 0. A checksum of all that is
before may follow the last value: ``crc_num`` and ten bytes.

Source: MindSpore, mindspore/ccsrc/utils/checkpoint.proto and train/serialization.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from refinedet.errors import FormatError
from refinedet.models.foreign.protobuf import fields, message, shaped, varint, written_field
from refinedet.spec.types import Array
from refinedet.support.text import one_line, shown

TYPES = {
    "Float16": "<f2", "Float32": "<f4", "Float64": "<f8", "Bool": "|b1",
    "Int8": "|i1", "Int16": "<i2", "Int32": "<i4", "Int64": "<i8",
    "UInt8": "|u1", "UInt16": "<u2", "UInt32": "<u4", "UInt64": "<u8",
}  # fmt: skip
CHECKSUM = b"crc_num"
CHECKSUM_BYTES = len(CHECKSUM) + 10


@dataclass
class _Value:
    """A tensor, of which more slices may come."""

    dims: list[int]
    kind: str
    slices: list[memoryview] = field(default_factory=list)


def is_ckpt(start: bytes) -> bool:
    """Whether a file that begins so is a checkpoint: a value, in it a tag, then a tensor."""
    data = memoryview(start)
    try:
        outer, at = varint(data, 0)
        _, at = varint(data, at)
        inner, at = varint(data, at)
        size, at = varint(data, at)
    except FormatError:
        return False
    after = data[at + size : at + size + 1].tobytes()
    return outer == inner == 0x0A and after in (b"\x12", b"\x1a")


def read_ckpt(data: memoryview) -> dict[str, Array]:
    """Every tensor by its tag, of any dtype, read-only.

    Raises:
        FormatError: cut off, or not such a file.
    """
    if bytes(data[-CHECKSUM_BYTES:-10]) == CHECKSUM:
        expected = int.from_bytes(data[-10:], "big")
        data = data[:-CHECKSUM_BYTES]
        if zlib.crc32(data) != expected:
            raise FormatError("its checksum is that of other bytes")
    values: dict[str, _Value] = {}
    last = None
    for number, part in fields(data):
        if number != 1:
            continue
        tag, value = _value(message(part))
        if tag not in values:
            values[tag] = value
        elif tag != last:
            raise FormatError(f"tensor {shown(tag, 60)} stands twice")
        elif (value.dims, value.kind) != (values[tag].dims, values[tag].kind):
            raise FormatError("its slices do not agree", key=f"tensor {shown(tag, 60)}")
        else:
            values[tag].slices += value.slices
        last = tag
    return {tag: _array(tag, value) for tag, value in values.items()}


def _value(data: memoryview) -> tuple[str, _Value]:
    tag, tensor = None, None
    for number, part in fields(data):
        if number == 1:
            tag = bytes(message(part)).decode("utf-8", "backslashreplace")
        elif number == 2:
            tensor = message(part)
    if tag is None:
        raise FormatError("a value without a tag")
    if tensor is None:
        raise FormatError(f"{shown(tag, 60)} is no tensor")
    found = _Value([], "")
    for number, part in fields(tensor):
        if number == 1 and isinstance(part, int):
            found.dims.append(part)
        elif number == 1:  # packed
            at, packed = 0, message(part)
            while at < len(packed):
                one, at = varint(packed, at)
                found.dims.append(one)
        elif number == 2:
            found.kind = bytes(message(part)).decode("utf-8", "backslashreplace")
        elif number == 3:
            found.slices.append(message(part))
    return tag, found


def _array(tag: str, value: _Value) -> Array:
    if value.kind not in TYPES:
        raise FormatError(
            f"of the type {shown(value.kind, 60)}", key=f"tensor {one_line(tag, 60)!r}"
        )
    shape = [] if value.dims == [0] and any(map(len, value.slices)) else value.dims
    return shaped(f"tensor {shown(tag, 60)}", value.slices, TYPES[value.kind], shape)


def written_ckpt(tensors: Mapping[str, Array]) -> bytes:
    """Tensors of float32 as MindSpore's ``save_checkpoint`` writes them, in their order."""
    out = []
    for tag, tensor in tensors.items():
        proto = b"".join(written_field(1, size) for size in tensor.shape)
        proto += written_field(2, b"Float32")
        proto += written_field(3, np.ascontiguousarray(tensor, "<f4").tobytes())
        out.append(written_field(1, written_field(1, tag.encode()) + written_field(2, proto)))
    return b"".join(out)
