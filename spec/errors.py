"""The errors of the specification, and the checks of arguments that its modules share.

A function of the specification accepts exactly what its docstring says. Anything
else is a ``SpecError`` that names the argument and, where there is one,
the row: a wrong number that travels on is worse than a stop.
"""

from __future__ import annotations

import numpy as np

from refinedet.spec.types import Array


class RefineDetError(Exception):
    """Base of every error that a user of the project can cause; ``str`` of it is one line.

    Attributes:
        reason: what is wrong, and what to do about it.
        path: the file or folder, or None.
        key: what in it, or which argument, settings key or step; or None.
    """

    def __init__(self, reason: str, *, path: object = None, key: object = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path
        self.key = key

    def __str__(self) -> str:
        parts = (self.path, self.key, self.reason)
        return ": ".join(str(part) for part in parts if part is not None)


class SpecError(RefineDetError, ValueError):
    """An argument or a configuration outside the specification's domain; ``key`` names it."""


def check_float(**arrays: Array) -> None:
    """Every array is float32 or float64, all of one dtype, and finite."""
    dtypes = set()
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
            kind = getattr(array, "dtype", type(array).__name__)
            raise SpecError(f"expected a float32 or float64 array, got {kind}", key=name)
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise SpecError(f"not finite at {where}", key=name)
        dtypes.add(array.dtype)
    if len(dtypes) > 1:
        reason = f"expected one dtype, got {sorted(map(str, dtypes))}"
        raise SpecError(reason, key=", ".join(arrays))


def check_shape(array: Array, name: str, *shape: int | None) -> None:
    """``array`` has this shape; None stands for any length."""
    if not isinstance(array, np.ndarray):
        raise SpecError(f"expected an array, got {type(array).__name__}", key=name)
    expected = ["any" if n is None else str(n) for n in shape]
    if array.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, array.shape, strict=True)
    ):
        raise SpecError(f"expected shape ({', '.join(expected)}), got {array.shape}", key=name)


def check_boxes(**boxes: Array) -> None:
    """Every argument is (M, 4), finite, of one float dtype, corners not crossed."""
    check_float(**boxes)
    for name, array in boxes.items():
        check_shape(array, name, None, 4)
        crossed = np.flatnonzero((array[:, 2:] < array[:, :2]).any(axis=1))
        if crossed.size:
            row = int(crossed[0])
            raise SpecError(f"row {row} has crossed corners {array[row].tolist()}", key=name)


def check_labels(labels: Array, name: str, classes: int, *, lowest: int = 0) -> None:
    """``labels`` holds integers from ``lowest`` to ``classes`` - 1."""
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise SpecError(f"expected an integer array, got {kind}", key=name)
    bad = np.argwhere((labels < lowest) | (labels >= classes))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise SpecError(
            f"{int(labels[where])} at {where} is outside {lowest}..{classes - 1}", key=name
        )
