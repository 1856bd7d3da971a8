"""The judge: calls a backend, says in words what is wrong with an answer, measures it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refinedet.backends.operations import OPERATIONS
from refinedet.backends.registry import precisions
from refinedet.conformance.tolerances import TOLERANCES, Tolerance
from refinedet.spec.types import Array


@dataclass(eq=False)  # arrays have no one ground truth value, and an exception is itself
class Violation(AssertionError):  # noqa: N818 - a verdict, not a mistake of the program
    """A law that a backend broke, on one input."""

    said: str
    """What is wrong, in words."""
    got: object = None
    expected: object = None
    error: float | None = None
    """Largest absolute error, of the number furthest outside its tolerance."""
    tolerance: float | None = None
    """What was allowed for that number."""
    case: object = None
    """The input, once the runner has noted it."""

    def __str__(self) -> str:
        return self.said


class NotImplementedByBackend(Exception):  # noqa: N818
    """The backend lacks what a check needs."""


class NotRun(Exception):  # noqa: N818
    """The check needs files, which the user did not give; says which options do."""


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


def _check_leaf(what: str, got: Any, expected: Any) -> None:
    """Kind, dtype, shape, layout and finiteness of one result."""
    if isinstance(expected, np.ndarray):
        if not isinstance(got, np.ndarray):
            raise Violation(f"{what} is a {type(got).__name__}, not a NumPy array", got, expected)
        if got.dtype != expected.dtype:
            raise Violation(f"{what} has dtype {got.dtype}, not {expected.dtype}", got, expected)
        if got.shape != expected.shape:
            raise Violation(f"{what} has shape {got.shape}, not {expected.shape}", got, expected)
        if not got.flags.c_contiguous:
            raise Violation(f"{what} is not C-contiguous", got, expected)
        if not got.flags.writeable:
            raise Violation(f"{what} is read-only", got, expected)
    elif isinstance(got, np.ndarray) or not isinstance(got, (bool, int, float, np.generic)):
        raise Violation(f"{what} is a {type(got).__name__}, not a number", got, expected)
    if not np.isfinite(np.asarray(got)).all():
        raise Violation(f"{what} is not finite", got, expected)


@dataclass
class Subject:
    """A backend before the judge, and what was measured of it in one check."""

    backend: Any
    worst: float = 0.0
    """Largest error as a fraction of its tolerance."""
    cases: int = 0
    """Discrete results compared."""
    masked: int = 0
    """Of these, the ones that the specification's own margin left undecided."""
    observed: dict[tuple[str, str], float] = field(default_factory=dict)
    """By row of the table of tolerances: the largest error, absolute below 1, relative above;
    of tensors, relative to the tensor's largest number."""
    precision: str = "float32"
    """Of the trainer that was made last: the rows of the table that apply."""
    alive: Callable[[], object] = int
    """A check that may take hours calls it while it gets on; does nothing if nobody waits."""

    def operation(self, name: str) -> Callable[..., Any]:
        """The backend's own; raises if it has none."""
        found = getattr(getattr(self.backend, "operations", None), name, None)
        if found is None:
            raise NotImplementedByBackend(f"operation {name}")
        function: Callable[..., Any] = found
        return function

    def call(self, name: str, *arguments: Any) -> Any:
        """An operation's result, sound in kind, dtype, shape and layout.

        Raises:
            Violation: it raises, changes its arguments, or its result is not sound.
        """
        return self.sound(
            name, self.operation(name), OPERATIONS[name](*copy.deepcopy(arguments)), *arguments
        )

    def sound(
        self, name: str, function: Callable[..., Any], expected: object, *arguments: Any
    ) -> Any:
        """What ``function`` makes of the arguments, if it is of the kind of ``expected``."""
        before = copy.deepcopy(arguments)
        try:
            got = function(*arguments)
        except Exception as error:
            raise Violation(f"{name} raises {in_a_line(error)}") from error
        for (path, old), (_, new) in zip(leaves(before), leaves(arguments), strict=True):
            if not _same(old, new):
                raise Violation(f"{name} changes its argument {path}", new, old)
        parts, want = dict(leaves(got)), dict(leaves(expected))
        if parts.keys() != want.keys():
            raise Violation(f"{name} gives {_shown(got)}, not {_shown(expected)}", got, expected)
        for path, part in parts.items():
            _check_leaf(f"{name}{path}", part, want[path])
        return got

    def agrees(self, name: str, *arguments: Any) -> None:
        """The operation gives what the specification gives, within its tolerance."""
        function, expected = self.operation(name), OPERATIONS[name](*copy.deepcopy(arguments))
        self.compare(name, self.sound(name, function, expected, *arguments), expected)

    def compare(self, name: str, got: object, expected: object, tolerance: str = "") -> None:
        """Sound results are equal: whole numbers exactly, others within the tolerance."""
        want = dict(leaves(expected))
        for path, part in leaves(got):
            self._compare_leaf(f"{name}{path}", part, want[path], tolerance or name)

    def _compare_leaf(self, what: str, got: Any, expected: Any, tolerance: str) -> None:
        g, w = np.asarray(got), np.asarray(expected)
        if w.dtype.kind in "biu":
            if not np.array_equal(g, w):
                raise Violation(f"{what} differs{_first(g != w)}", got, expected)
            return
        if w.size == 0:
            return
        allowed = allowance(self.row(tolerance), w)
        error = np.abs(g.astype(np.float64) - w.astype(np.float64))
        fraction = error / allowed
        self._note(tolerance, float((error / np.maximum(1, np.abs(w))).max()), fraction.max())
        if fraction.max() > 1:
            at = np.unravel_index(int(fraction.argmax()), fraction.shape)
            raise Violation(
                f"{what} differs{_first(fraction > 1)}",
                got,
                expected,
                float(error[at]),
                float(allowed[at]),
            )

    def compare_tensors(self, what: str, got: Any, expected: Any, tolerance: str) -> None:
        """Sound tensors by name are equal; errors are measured by each tensor's largest."""
        row = self.row(tolerance)
        for name, w in expected.items():
            if w.size == 0:
                continue
            allowed = row.atol + row.rtol * float(np.abs(w).max())
            error = float(np.abs(got[name].astype(np.float64) - w).max())
            self._note(tolerance, error / (float(np.abs(w).max()) or 1.0), error / allowed)
            if error > allowed:
                raise Violation(f"{what} {name} differs", got[name], w, error, allowed)

    def require(self, holds: bool, said: str, got: object = None, expected: object = None) -> None:
        """A law, in words, that must hold."""
        if not holds:
            raise Violation(said, got, expected)

    def near(self, got: float, expected: float, tolerance: str, said: str) -> None:
        """Two numbers agree within the named tolerance."""
        allowed = float(allowance(self.row(tolerance), np.asarray(expected)))
        error = abs(float(got) - float(expected))
        if not math.isfinite(error):
            raise Violation(f"{said}: not finite", got, expected)
        self._note(tolerance, error / max(1.0, abs(expected)), error / allowed)
        if error > allowed:
            raise Violation(said, got, expected, error, allowed)

    def row(self, name: str) -> Tolerance:
        """Of the table of tolerances."""
        return TOLERANCES[name, self.precision]

    def _note(self, row: str, error: float, fraction: float) -> None:
        key = row, self.precision
        self.observed[key] = max(self.observed.get(key, 0.0), error)
        self.worst = max(self.worst, float(fraction))

    def network(self, config: Any, parameters: Any) -> Any:
        """The backend's network with these parameters."""
        return self._make("network", config, parameters)

    def trainer(self, config: Any, parameters: Any, *state: Any) -> Any:
        """A trainer at its first step, or in ``state``: momentum buffers, steps done, loss scale.

        Raises:
            NotImplementedByBackend: it has none, or none in this precision.
        """
        expected = config.optimizer.precision
        if hasattr(self.backend, "trainer") and expected not in precisions(self.backend):
            raise NotImplementedByBackend(f"trainer in {expected}")
        self.precision = expected
        return self._make("trainer", config, parameters, *state)

    def _make(self, member: str, config: Any, parameters: Any, *state: Any) -> Any:
        make = getattr(self.backend, member, None)
        if make is None:
            raise NotImplementedByBackend(member)
        try:
            return make(config, {name: p.copy() for name, p in parameters.items()}, *state)
        except Exception as error:
            raise Violation(f"{member} raises {in_a_line(error)}") from error


def in_a_line(error: Exception) -> str:
    """Kind and first line of an exception."""
    line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {line}"


def allowance(row: Tolerance, expected: Array) -> Array:
    """The allowed error of each number, never 0."""
    allowed: Array = row.atol + row.rtol * np.abs(expected.astype(np.float64)) + 1e-300
    return allowed


def _first(wrong: Array) -> str:
    if wrong.ndim == 0:
        return ""
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f" at {at[0] if len(at) == 1 else at}"


def _shown(value: object) -> str:
    names = [path or "one value" for path, _ in leaves(value)]
    return f"{len(names)} results ({', '.join(names[:6])})" if len(names) != 1 else names[0]
