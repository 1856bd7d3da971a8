"""A ``.caffemodel``: Caffe's NetParameter in protobuf's wire format, read without Caffe.

Five messages and twelve fields are all that weights need, and those of a wire format that
does not change; the generated classes of Caffe's 1,500 lines of schema would be one more
thing to ship, and protobuf's parser copies every number. The arrays are views of the
bytes (see ``protobuf``), and every shape is checked against the numbers that are there.

    NetParameter       layers = 2 (V1LayerParameter), layer = 100 (LayerParameter)
    LayerParameter     name = 1, blobs = 7
    V1LayerParameter   name = 4, blobs = 6
    BlobProto          num, channels, height, width = 1..4; data = 5, shape = 7,
                       double_data = 8
    BlobShape          dim = 1

Source: src/caffe/proto/caffe.proto of BVLC Caffe.
"""

from __future__ import annotations

from collections.abc import Iterator

from refinedet.spec.errors import Array
from refinedet.weights.errors import FormatError, brief
from refinedet.weights.protobuf import fields, message, shaped, varint

LAYERS = {2: (4, 6), 100: (1, 7)}
"""Field of a layer in the net: the layer's fields of name and blobs."""


def read_caffemodel(data: memoryview) -> dict[str, Array]:
    """Every blob of every layer, as ``LAYER/INDEX``; float32 or float64, read-only.

    A shape of the old form, num x channels x height x width, whose first three are 1, is
    that of a vector, as Caffe itself takes it.

    Raises:
        FormatError: cut off, or not such a file.
    """
    blobs: dict[str, Array] = {}
    layers = 0
    for number, value in fields(data):
        if number not in LAYERS:
            continue
        layers += 1
        name_field, blob_field = LAYERS[number]
        name, found = "", []
        for inner, part in fields(message(value)):
            if inner == name_field:
                name = bytes(message(part)).decode("utf-8", "backslashreplace")
            elif inner == blob_field:
                found.append(message(part))
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
    return shaped(f"blob {brief(name)}", chunks, dtype, shape)


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
