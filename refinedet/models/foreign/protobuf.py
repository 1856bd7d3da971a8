"""The part of protobuf's wire format that files of weights need, read and written.

Readers go through the bytes once and return views of them. Every length is checked against the
number of bytes.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from refinedet.errors import FormatError
from refinedet.spec.types import Array

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MOST_DIMENSIONS = 8


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number, and an int or the bytes."""
    at = 0
    while at < len(data):
        start = at
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise FormatError(f"a field without a number at byte {start} of a message")
        if wire == VARINT:
            value, at = varint(data, at)
            yield number, value
            continue
        if wire == BYTES:
            size, at = varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise FormatError(f"an unknown kind of field at byte {start} of a message")
        if size > len(data) - at:
            raise FormatError(f"cut off: a field of {size} bytes has {len(data) - at}")
        yield number, data[at : at + size]
        at += size


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of at most 64 bits, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise FormatError("cut off in a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise FormatError("a number of more than 64 bits")


def message(value: int | memoryview) -> memoryview:
    """The bytes of a field that should hold a message, string or array."""
    if isinstance(value, int):
        raise FormatError("a number where a message should be")
    return value


def shaped(what: str, chunks: Sequence[memoryview], dtype: str, shape: list[int]) -> Array:
    """The concatenated numbers of all chunks, as an array of this shape.

    Raises:
        FormatError: the shape has another number of elements; ``what`` is the error's key.
    """
    content = chunks[0] if len(chunks) == 1 else memoryview(b"".join(chunks))
    size = np.dtype(dtype).itemsize
    if len(shape) <= MOST_DIMENSIONS and math.prod(shape) * size == len(content):
        try:
            return np.frombuffer(content, dtype).reshape(shape)
        except (ValueError, OverflowError):  # no elements, in sizes too large for NumPy
            pass
    shown = "x".join(map(str, shape[:MOST_DIMENSIONS])) or "that of one number"
    raise FormatError(f"its shape is {shown}, it holds {len(content) // size} numbers", key=what)


def written_varint(value: int) -> bytes:
    """A number of at least 0, as ``varint`` reads it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def written_field(number: int, value: int | bytes) -> bytes:
    """One field: a number, or bytes with their length."""
    if isinstance(value, int):
        return written_varint(number << 3 | VARINT) + written_varint(value)
    return written_varint(number << 3 | BYTES) + written_varint(len(value)) + value
