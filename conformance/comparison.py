"""Compares the results of a backend with those of the specification, and measures the errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from refinedet.backends.interface import Backend
from refinedet.backends.operations import OPERATIONS
from refinedet.conformance.tolerances import TOLERANCES, Tolerance
from refinedet.spec.types import Array


@dataclass(eq=False)  # arrays have no single truth value; an exception equals only itself
class CheckFailedError(AssertionError):
    """A backend broke a law on one input."""

    message: str
    actual: object = None
    expected: object = None
    error: float | None = None
    """Absolute error of the number that is furthest outside its tolerance."""
    tolerance: float | None = None
    """The absolute error allowed for that number."""
    case: object = None
    """The input; the runner sets it."""

    def __str__(self) -> str:
        return self.message


class NotImplementedByBackendError(Exception):
    """The backend lacks what a check needs."""


def leaves(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays and numbers in nested tuples, lists and dictionaries, with their paths."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        for name, part in zip(value._fields, value, strict=True):
            yield from leaves(part, f"{path}.{name}")
    elif isinstance(value, (tuple, list)):
        for i, part in enumerate(value):
            yield from leaves(part, f"{path}[{i}]")
    elif isinstance(value, dict):
        for name in sorted(value):
            yield from leaves(value[name], f"{path}[{name!r}]")
    else:
        yield path, value


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return bool(a == b)


def _require_valid_leaf(name: str, actual: Any, expected: Any) -> None:
    """Raise unless one result has the expected type, dtype, shape and layout, and is finite."""

    def require(holds: bool, fault: str) -> None:
        if not holds:
            raise CheckFailedError(f"{name} {fault}", actual, expected)

    kind = type(actual).__name__
    if isinstance(expected, np.ndarray):
        require(isinstance(actual, np.ndarray), f"is a {kind}, not a NumPy array")
        require(actual.dtype == expected.dtype, f"has dtype {actual.dtype}, not {expected.dtype}")
        require(actual.shape == expected.shape, f"has shape {actual.shape}, not {expected.shape}")
        require(actual.flags.c_contiguous, "is not C-contiguous")
        require(actual.flags.writeable, "is read-only")
    else:
        is_number = isinstance(actual, (bool, int, float, np.generic))
        require(is_number, f"is a {kind}, not a number")
    require(bool(np.isfinite(np.asarray(actual)).all()), "is not finite")


@dataclass
class CheckedBackend:
    """A backend in one check, and the errors measured there."""

    backend: Backend
    worst: float = 0.0
    """Largest error as a fraction of its tolerance."""
    compared: int = 0
    """Discrete results compared."""
    undecided: int = 0
    """Of these, the results that the margin left undecided."""
    observed: dict[tuple[str, str], float] = field(default_factory=dict)
    """Largest error by row of the table of tolerances: absolute below 1, relative above;
    of tensors, relative to the tensor's largest number."""
    precision: str = "float32"
    """Precision of the trainer made last; it selects the rows of the table of tolerances."""

    def operation(self, name: str) -> Callable[..., Any]:
        """The backend's function of that name.

        Raises:
            NotImplementedByBackendError: it has none.
        """
        function: Any = None
        if "operations" in self.backend.capabilities:
            function = getattr(self.backend.operations, name, None)
        if function is None:
            raise NotImplementedByBackendError(f"operation {name}")
        return cast(Callable[..., Any], function)

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of an operation, valid in type, dtype, shape and layout.

        Raises:
            CheckFailedError: the call raises or changes its arguments, or its result is invalid.
        """
        expected = OPERATIONS[name](*copy.deepcopy(arguments))
        return self.valid(name, self.operation(name), expected, *arguments)

    def valid(
        self, name: str, function: Callable[..., Any], expected: object, *arguments: Any
    ) -> Any:
        """The result of ``function``, whose types, dtypes and shapes are those of ``expected``.

        Raises:
            CheckFailedError: as ``call`` does.
        """
        before = copy.deepcopy(arguments)
        try:
            actual = function(*arguments)
        except Exception as error:
            raise CheckFailedError(f"{name} raises {in_a_line(error)}") from error
        for (path, old), (_, new) in zip(leaves(before), leaves(arguments), strict=True):
            if not _same(old, new):
                raise CheckFailedError(f"{name} changes its argument {path}", new, old)
        actual_parts, expected_parts = dict(leaves(actual)), dict(leaves(expected))
        if actual_parts.keys() != expected_parts.keys():
            message = f"{name} returns {_structure(actual)}, not {_structure(expected)}"
            raise CheckFailedError(message, actual, expected)
        for path, part in actual_parts.items():
            _require_valid_leaf(f"{name}{path}", part, expected_parts[path])
        return actual

    def require_agreement(self, name: str, *arguments: Any) -> None:
        """Raise unless the operation's result is the specification's, within its tolerance."""
        function, expected = self.operation(name), OPERATIONS[name](*copy.deepcopy(arguments))
        self.compare(name, self.valid(name, function, expected, *arguments), expected)

    def compare(self, name: str, actual: object, expected: object, tolerance: str = "") -> None:
        """Raise unless valid results are equal: integers exactly, others within the tolerance.

        Args:
            tolerance: row of the table of tolerances; empty for the row called ``name``.
        """
        expected_parts = dict(leaves(expected))
        for path, part in leaves(actual):
            self._compare_leaf(f"{name}{path}", part, expected_parts[path], tolerance or name)

    def _compare_leaf(self, name: str, actual: Any, expected: Any, tolerance: str) -> None:
        a, e = np.asarray(actual), np.asarray(expected)
        if e.dtype.kind in "biu":
            if not np.array_equal(a, e):
                raise CheckFailedError(f"{name} differs{_first(a != e)}", actual, expected)
            return
        if e.size == 0:
            return
        allowed = allowance(self.row(tolerance), e)
        error = np.abs(a.astype(np.float64) - e.astype(np.float64))
        fraction = error / allowed
        self._record(tolerance, float((error / np.maximum(1, np.abs(e))).max()), fraction.max())
        if fraction.max() > 1:
            at = np.unravel_index(int(fraction.argmax()), fraction.shape)
            raise CheckFailedError(
                f"{name} differs{_first(fraction > 1)}",
                actual,
                expected,
                float(error[at]),
                float(allowed[at]),
            )

    def compare_tensors(self, kind: str, actual: Any, expected: Any, tolerance: str) -> None:
        """Raise unless valid tensors by name are equal within the tolerance.

        The relative tolerance is a fraction of each tensor's largest number.
        """
        row = self.row(tolerance)
        for name, e in expected.items():
            if e.size == 0:
                continue
            largest = float(np.abs(e).max())
            allowed = row.atol + row.rtol * largest
            error = float(np.abs(actual[name].astype(np.float64) - e).max())
            self._record(tolerance, error / (largest or 1.0), error / allowed)
            if error > allowed:
                raise CheckFailedError(f"{kind} {name} differs", actual[name], e, error, allowed)

    def require(
        self, holds: bool, message: str, actual: object = None, expected: object = None
    ) -> None:
        """Raise ``CheckFailedError`` with the message unless a law holds."""
        if not holds:
            raise CheckFailedError(message, actual, expected)

    def require_near(self, actual: float, expected: float, tolerance: str, name: str) -> None:
        """Raise unless two numbers agree within the row ``tolerance``."""
        allowed = float(allowance(self.row(tolerance), np.asarray(expected)))
        error = abs(float(actual) - float(expected))
        if not math.isfinite(error):
            raise CheckFailedError(f"{name} is not finite", actual, expected)
        self._record(tolerance, error / max(1.0, abs(expected)), error / allowed)
        if error > allowed:
            raise CheckFailedError(f"{name} differs", actual, expected, error, allowed)

    def row(self, name: str) -> Tolerance:
        """The row of the table of tolerances in this precision."""
        return TOLERANCES[name, self.precision]

    def _record(self, row: str, error: float, fraction: float) -> None:
        key = row, self.precision
        self.observed[key] = max(self.observed.get(key, 0.0), error)
        self.worst = max(self.worst, float(fraction))

    def network(self, config: Any, parameters: Any) -> Any:
        """The backend's network with these parameters."""
        return self._make("network", config, parameters)

    def trainer(self, config: Any, parameters: Any, *state: Any) -> Any:
        """The backend's trainer.

        Args:
            state: momentum buffers, steps done and loss scale; none for a first step.
        Raises:
            NotImplementedByBackendError: it has no trainer, or none in this precision.
        """
        precision = config.optimizer.precision
        if "trainer" in self.backend.capabilities and precision not in self.backend.precisions:
            raise NotImplementedByBackendError(f"trainer in {precision}")
        self.precision = precision
        return self._make("trainer", config, parameters, *state)

    def _make(self, member: str, config: Any, parameters: Any, *state: Any) -> Any:
        if member not in self.backend.capabilities:
            raise NotImplementedByBackendError(member)
        try:
            make = getattr(self.backend, member)
            return make(config, {name: p.copy() for name, p in parameters.items()}, *state)
        except Exception as error:
            raise CheckFailedError(f"{member} raises {in_a_line(error)}") from error


def in_a_line(error: Exception) -> str:
    """Type and first line of an exception."""
    line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {line}"


def allowance(row: Tolerance, expected: Array) -> Array:
    """The allowed absolute error of each number, never 0."""
    allowed: Array = row.atol + row.rtol * np.abs(expected.astype(np.float64)) + 1e-300
    return allowed


def _first(wrong: Array) -> str:
    if wrong.ndim == 0:
        return ""
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f" at {at[0] if len(at) == 1 else at}"


def _structure(value: object) -> str:
    names = [path or "one value" for path, _ in leaves(value)]
    return f"{len(names)} results ({', '.join(names[:6])})" if len(names) != 1 else names[0]
