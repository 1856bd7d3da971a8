"""Inputs as Python source, so that a printed failure can be pasted and run."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from refinedet.spec.types import Array


def source(value: object, limit: int | None = None) -> str:
    """Python source of arrays, numbers, configurations, and nested tuples, lists and dicts of them.

    Args:
        limit: characters; a longer array is described by dtype and shape, and then the
            source cannot be run.
    """
    if isinstance(value, np.ndarray):
        return _array_source(value, limit)
    if isinstance(value, np.generic):
        return source(value.item())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return f"{type(value).__name__}({', '.join(source(part, limit) for part in value)})"
    if isinstance(value, tuple):
        parts = [source(part, limit) for part in value]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(source(part, limit) for part in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {source(v, limit)}' for k, v in value.items())}}}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass_source(value)
    return repr(value)


def _dataclass_source(value: Any) -> str:
    """The fields that differ from their defaults, and those without a default."""
    shown = []
    for field in dataclasses.fields(value):
        now = getattr(value, field.name)
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if now != default:
            shown.append(f"{field.name}={source(now)}")
    return f"{type(value).__name__}({', '.join(shown)})"


def _array_source(array: Array, limit: int | None) -> str:
    dtype = "bool" if array.dtype == bool else f"np.{array.dtype}"
    if array.size == 0:
        return f"np.zeros({array.shape}, {dtype})"
    if limit is not None and array.size * 4 > limit:
        return f"<{array.dtype} array of shape {array.shape}>"
    return f"np.array({_nested(array)}, {dtype})"


def _nested(array: Array) -> str:
    if array.ndim == 0:  # the shortest text that gives the same number in its dtype
        return str(array[()])
    return f"[{', '.join(_nested(part) for part in array)}]"
