"""A ``.ckpt``: MindSpore's Checkpoint in protobuf's wire format, without MindSpore.

    Checkpoint     value = 1
    Value          tag = 1, tensor = 2, maptensor = 3
    TensorProto    dims = 1, tensor_type = 2, tensor_content = 3

A large tensor is stored in consecutive slices, each with the tag and dimensions of the whole
tensor. A scalar has no dimensions or, in old files, the dimension 0. The last value may be
followed by a checksum of everything before it: ``crc_num`` and ten bytes.

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
from refinedet.support.text import shown

TYPES = {
    "Float16": "<f2", "Float32": "<f4", "Float64": "<f8", "Bool": "|b1",
    "Int8": "|i1", "Int16": "<i2", "Int32": "<i4", "Int64": "<i8",
    "UInt8": "|u1", "UInt16": "<u2", "UInt32": "<u4", "UInt64": "<u8",
}  # fmt: skip
CHECKSUM = b"crc_num"
CHECKSUM_BYTES = len(CHECKSUM) + 10


@dataclass
class _Value:
    """A tensor, to which more slices may be added."""

    dims: list[int]
    kind: str
    slices: list[memoryview] = field(default_factory=list)


def is_ckpt(start: bytes) -> bool:
    """Whether a file that begins so is a checkpoint: a value that holds a tag, then a tensor."""
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
            raise FormatError("its content does not match its checksum")
    values: dict[str, _Value] = {}
    last = None
    for number, part in fields(data):
        if number != 1:
            continue
        tag, value = _value(message(part))
        if tag not in values:
            values[tag] = value
        elif tag != last:
            raise FormatError(f"tensor {shown(tag, 60)} is there twice")
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
        raise FormatError(f"{shown(tag, 60)} is not a tensor")
    value = _Value([], "")
    for number, part in fields(tensor):
        if number == 1 and isinstance(part, int):
            value.dims.append(part)
        elif number == 1:  # packed
            at, packed = 0, message(part)
            while at < len(packed):
                one, at = varint(packed, at)
                value.dims.append(one)
        elif number == 2:
            value.kind = bytes(message(part)).decode("utf-8", "backslashreplace")
        elif number == 3:
            value.slices.append(message(part))
    return tag, value


def _array(tag: str, value: _Value) -> Array:
    if value.kind not in TYPES:
        raise FormatError(f"has the type {shown(value.kind, 60)}", key=f"tensor {shown(tag, 60)}")
    shape = [] if value.dims == [0] and any(map(len, value.slices)) else value.dims
    return shaped(f"tensor {shown(tag, 60)}", value.slices, TYPES[value.kind], shape)


def written_ckpt(tensors: Mapping[str, Array]) -> bytes:
    """The file that MindSpore's ``save_checkpoint`` writes for float32 tensors, in this order."""
    out = []
    for tag, tensor in tensors.items():
        proto = b"".join(written_field(1, size) for size in tensor.shape)
        proto += written_field(2, b"Float32")
        proto += written_field(3, np.ascontiguousarray(tensor, "<f4").tobytes())
        out.append(written_field(1, written_field(1, tag.encode()) + written_field(2, proto)))
    return b"".join(out)
