"""A ``.caffemodel``: Caffe's NetParameter in protobuf's wire format, read without Caffe.

Weights need five messages and thirteen fields of Caffe's schema, so this reads the wire format
itself instead of shipping the classes generated from 1,500 lines of schema; it also avoids
protobuf's copy of every number. Arrays are views of the bytes (see ``protobuf``), and every
shape is checked against the number of values.

    NetParameter       layers = 2 (V1LayerParameter), layer = 100 (LayerParameter)
    LayerParameter     name = 1, type = 2, blobs = 7
    V1LayerParameter   name = 4, blobs = 6
    BlobProto          num, channels, height, width = 1..4; data = 5, shape = 7,
                       double_data = 8
    BlobShape          dim = 1

A BatchNorm layer stores sums of mean and variance, and as a third blob the factor to divide
both by: 0 in an untrained layer. The arrays returned here are divided.

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
"""By the net's field of a layer: the layer's fields of name, type (if a string) and blobs."""


def read_caffemodel(data: memoryview) -> dict[str, Array]:
    """Every blob of every layer, as ``LAYER/INDEX``; float32 or float64, read-only.

    As in Caffe, an old shape (num, channels, height, width) whose first three sizes are 1 is
    that of a vector. Of a BatchNorm layer, blob 0 is the mean and 1 the variance, both
    divided by their factor.

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
        name, kind, layer_blobs = "", b"", []
        for inner, part in fields(message(value)):
            if inner == name_field:
                name = bytes(message(part)).decode("utf-8", "backslashreplace")
            elif inner == kind_field:
                kind = bytes(message(part))
            elif inner == blob_field:
                layer_blobs.append(message(part))
        arrays = [_blob(blob, f"{name}/{index}") for index, blob in enumerate(layer_blobs)]
        if kind == b"BatchNorm" and arrays:
            arrays = _divided(arrays, name)
        if arrays and f"{name}/0" in blobs:
            raise FormatError(f"layer {shown(name, 60)} is there twice")
        blobs |= {f"{name}/{index}": array for index, array in enumerate(arrays)}
    if not layers:
        raise FormatError("no layers in it")
    return blobs


def _divided(arrays: list[Array], name: str) -> list[Array]:
    """Mean and variance of a BatchNorm layer, from its three blobs."""
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
    with np.errstate(all="ignore"):  # an overflow is not finite, and reported later
        return [array / array.dtype.type(by) for array in sums]


def _blob(data: memoryview, name: str) -> Array:
    """One array, whose shape has the old or the new form."""
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
    """The ``dim`` of a BlobShape: packed, or one field each."""
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
