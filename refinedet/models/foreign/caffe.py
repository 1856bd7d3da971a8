"""A ``.caffemodel``: Caffe's NetParameter in protobuf's wire format, read without Caffe.

Five messages and thirteen fields are all that weights need, and those of a wire format that
does not change; the generated classes of Caffe's 1,500 lines of schema would be one more
thing to ship, and protobuf's parser copies every number. The arrays are views of the
bytes (see ``protobuf``), and every shape is checked against the numbers that are there.

    NetParameter       layers = 2 (V1LayerParameter), layer = 100 (LayerParameter)
    LayerParameter     name = 1, type = 2, blobs = 7
    V1LayerParameter   name = 4, blobs = 6
    BlobProto          num, channels, height, width = 1..4; data = 5, shape = 7,
                       double_data = 8
    BlobShape          dim = 1

A BatchNorm layer stores its mean and variance as sums, and as a third blob the factor that
both are to be divided by; 0 of a layer that has seen nothing. Here they are divided.

Source: src/caffe/proto/caffe.proto and src/caffe/layers/batch_norm_layer.cpp of BVLC Caffe.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refinedet.errors import FormatError
from refinedet.models.foreign.protobuf import fields, message, shaped, varint
from refinedet.spec.types import Array
from refinedet.support.text import one_line, shown

LAYERS = {2: (4, None, 6), 100: (1, 2, 7)}
"""Field of a layer in the net: the layer's fields of name, type where it is a text, blobs."""


def read_caffemodel(data: memoryview) -> dict[str, Array]:
    """Every blob of every layer, as ``LAYER/INDEX``; float32 or float64, read-only.

    A shape of the old form, num x channels x height x width, whose first three are 1, is
    that of a vector, as Caffe itself takes it. Of a BatchNorm layer, 0 is the mean and 1 the
    variance, divided by their factor, in memory of their own.

    Raises:
        FormatError: cut off, or not such a file.
    """
    blobs: dict[str, Array] = {}
    layers = 0
    for number, value in fields(data):
        if number not in LAYERS:
            continue
        layers += 1
        name_field, kind_field, blob_field = LAYERS[number]
        name, kind, found = "", b"", []
        for inner, part in fields(message(value)):
            if inner == name_field:
                name = bytes(message(part)).decode("utf-8", "backslashreplace")
            elif inner == kind_field:
                kind = bytes(message(part))
            elif inner == blob_field:
                found.append(message(part))
        arrays = [_blob(blob, f"{name}/{index}") for index, blob in enumerate(found)]
        if kind == b"BatchNorm" and arrays:
            arrays = _divided(arrays, name)
        if arrays and f"{name}/0" in blobs:
            raise FormatError(f"layer {shown(name, 60)} stands twice")
        blobs |= {f"{name}/{index}": array for index, array in enumerate(arrays)}
    if not layers:
        raise FormatError("no layers in it")
    return blobs


def _divided(arrays: list[Array], name: str) -> list[Array]:
    """Mean and variance of a BatchNorm layer, from what is stored of it."""
    where = f"BatchNorm layer {shown(name, 60)}"
    if len(arrays) != 3:
        raise FormatError(
            f"{len(arrays)} blobs, expected 3: mean, variance, their factor", key=where
        )
    *sums, factor = arrays
    if factor.size != 1:
        raise FormatError(f"its factor has {factor.size} numbers, expected one", key=where)
    by = factor.item()
    if not 0 <= by < np.inf:
        raise FormatError(f"its factor is {by}, expected a number from 0", key=where)
    if by == 0:
        return [np.zeros_like(array) for array in sums]
    with np.errstate(all="ignore"):  # what overflows is not finite, and told
        return [array / array.dtype.type(by) for array in sums]


def _blob(data: memoryview, name: str) -> Array:
    """One array, in either form of its shape."""
    old: dict[int, int] = {}
    new: list[int] | None = None
    singles: list[memoryview] = []
    doubles: list[memoryview] = []
    for number, value in fields(data):
        if number <= 4 and isinstance(value, int):
            old[number] = value
        elif number == 5:
            singles.append(message(value))
        elif number == 7:
            new = [*(new or []), *_dimensions(message(value))]
        elif number == 8:
            doubles.append(message(value))
    shape = new if new is not None else [old.get(i, 0) for i in range(1, 5)] if old else []
    if new is None and shape[:3] == [1, 1, 1]:
        shape = shape[3:]
    chunks, dtype = (singles, "<f4") if singles else (doubles, "<f8")
    return shaped(f"blob {one_line(name, 60)}", chunks, dtype, shape)


def _dimensions(data: memoryview) -> Iterator[int]:
    """The ``dim`` of a BlobShape: packed, or one by one."""
    for number, value in fields(data):
        if number != 1:
            continue
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            one, at = varint(value, at)
            yield one
