"""A ``.caffemodel``: Caffe's NetParameter in protobuf's wire format, read without Caffe.

Five messages and twelve fields are all that weights need, and those of a wire format that
does not change; the generated classes of Caffe's 1,500 lines of schema would be one more
thing to ship, and protobuf's parser copies every number. The reader goes through the bytes
once and the arrays are views of them. Every length is checked against the bytes that are
there, every shape against the numbers that are there.

    NetParameter       layers = 2 (V1LayerParameter), layer = 100 (LayerParameter)
    LayerParameter     name = 1, blobs = 7
    V1LayerParameter   name = 4, blobs = 6
    BlobProto          num, channels, height, width = 1..4; data = 5, shape = 7,
                       double_data = 8
    BlobShape          dim = 1

Sources: protobuf.dev, "Encoding"; src/caffe/proto/caffe.proto of BVLC Caffe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from refinedet.spec.errors import Array
from refinedet.weights.errors import FormatError, brief

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
LAYERS = {2: (4, 6), 100: (1, 7)}
"""Field of a layer in the net: the layer's fields of name and blobs."""
MOST_DIMENSIONS = 8


def read_caffemodel(data: memoryview) -> dict[str, Array]:
    """Every blob of every layer, as ``LAYER/INDEX``; float32 or float64, read-only.

    A shape of the old form, num x channels x height x width, whose first three are 1, is
    that of a vector, as Caffe itself takes it.

    Raises:
        FormatError: cut off, or not such a file.
    """
    blobs: dict[str, Array] = {}
    layers = 0
    for number, value in _fields(data):
        if number not in LAYERS:
            continue
        layers += 1
        name_field, blob_field = LAYERS[number]
        name, found = "", []
        for inner, part in _fields(_message(value)):
            if inner == name_field:
                name = bytes(_message(part)).decode("utf-8", "backslashreplace")
            elif inner == blob_field:
                found.append(_message(part))
        for index, blob in enumerate(found):
            key = f"{name}/{index}"
            if key in blobs:
                raise FormatError(f"layer {brief(name)!r} stands twice")
            blobs[key] = _blob(blob, key)
    if not layers:
        raise FormatError("no layers in it")
    return blobs


def _blob(data: memoryview, name: str) -> Array:
    """One array, in either form of its shape."""
    old: dict[int, int] = {}
    new: list[int] | None = None
    singles: list[memoryview] = []
    doubles: list[memoryview] = []
    for number, value in _fields(data):
        if number <= 4 and isinstance(value, int):
            old[number] = value
        elif number == 5:
            singles.append(_message(value))
        elif number == 7:
            new = [*(new or []), *_dimensions(_message(value))]
        elif number == 8:
            doubles.append(_message(value))
    shape = new if new is not None else [old.get(i, 0) for i in range(1, 5)] if old else []
    if new is None and shape[:3] == [1, 1, 1]:
        shape = shape[3:]
    chunks, dtype = (singles, "<f4") if singles else (doubles, "<f8")
    content = chunks[0] if len(chunks) == 1 else memoryview(b"".join(chunks))
    count = len(content) // np.dtype(dtype).itemsize
    if len(shape) > MOST_DIMENSIONS or math.prod(shape) * np.dtype(dtype).itemsize != len(content):
        raise FormatError(
            f"blob {brief(name)}: its shape is {_shown(shape)}, it holds {count} numbers"
        )
    return np.frombuffer(content, dtype).reshape(shape)


def _dimensions(data: memoryview) -> Iterator[int]:
    """The ``dim`` of a BlobShape: packed, or one by one."""
    for number, value in _fields(data):
        if number != 1:
            continue
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            one, at = _varint(value, at)
            yield one


def _shown(shape: list[int]) -> str:
    return "x".join(map(str, shape[:MOST_DIMENSIONS])) or "that of one number"


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number, and an int or the bytes."""
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise FormatError(f"a field without a number at byte {start} of a message")
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise FormatError(f"no such field at byte {start} of a message")
        if size > len(data) - at:
            raise FormatError(f"cut off: a field of {size} bytes, {len(data) - at} are there")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of at most 64 bits, and where the next field begins."""
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


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise FormatError("a number where a message should be")
    return value
