"""Backends by name: finding one, and checking what it declares."""

from __future__ import annotations

import importlib
import inspect
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from refinedet.backends.interface import CAPABILITIES, Backend
from refinedet.errors import BackendError, UsageError
from refinedet.spec.config import Config

GROUP = "refinedet.backends"
"""The entry-point group under which distributions register backends."""

DEFAULT = "mindspore-cpu"
"""What computes where nothing else is asked for."""


class BackendChoice(NamedTuple):
    """A backend by name, and the keyword arguments that it is made with."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def find(self, *needs: str) -> Backend:
        """``find_backend`` of it."""
        return find_backend(self.name, *needs, **dict(self.options))


def require_precision(backend: Backend, config: Config) -> None:
    """Raise a ``BackendError`` unless the backend trains in the precision of the config."""
    able = backend.precisions
    if config.optimizer.precision not in able:
        raise BackendError(
            f"trains in {' and '.join(able)} only; set "
            f"model.optimizer.precision={able[0]}, or use another backend",
            key=f"backend {backend.name}",
        )


def backend_names() -> list[str]:
    """The registered backends, sorted."""
    return sorted(point.name for point in entry_points(group=GROUP))


def profiler_of(backend: Backend, folder: Path) -> AbstractContextManager[object]:
    """The backend's profiler, which writes into a folder that is new or empty.

    Raises:
        UsageError: it has none, or the folder is in use.
    """
    if "profiler" not in backend.capabilities:
        raise UsageError(f"backend {backend.name} has no profiler; leave it out", key="profile")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty; choose another folder", key="profile")
    return backend.profiler(folder)


def lacking(name: str) -> str | None:
    """Why a backend cannot run here, or None."""
    try:
        find_backend(name)
    except BackendError as error:
        return error.reason
    return None


def find_backend(name: str, *needs: str, **options: Any) -> Backend:
    """The backend of that name, ready to run here.

    Args:
        name: a registered name, or ``module:attribute``.
        needs: capabilities that it must have.
        options: the keyword arguments that its class is called with.
    Raises:
        BackendError: unknown, not importable, without a needed capability, or its device is
            missing. Nothing falls back to another device.
        UsageError: an option that its class does not take.
    """
    kind = _backend_class(name)
    for option in options:
        if option not in inspect.signature(kind).parameters:
            raise UsageError(f"backend {name} does not take it; leave it out", key=option)
    backend = kind(**options)
    backend.require(*needs)
    if reason := backend.missing():
        raise BackendError(reason, key=f"backend {name}")
    return backend


def _backend_class(name: str) -> type[Backend]:
    """The class of that name, which implements what it declares."""
    kind = _imported(name)
    if not (inspect.isclass(kind) and issubclass(kind, Backend)):
        raise BackendError(
            "is no backend: that is a subclass of refinedet.backends.interface.Backend, see "
            "docs/write-a-backend.md",
            key=f"backend {name}",
        )
    if reason := _incomplete(kind):
        raise BackendError(reason, key=f"backend {name}")
    return kind


def _imported(name: str) -> Any:
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points and ":" not in name:
        known = ", ".join(backend_names())
        raise BackendError(f"no {name!r}; there are {known}, or MODULE:ATTRIBUTE", key="backend")
    try:
        if name in points:
            return points[name].load()
        module, attribute = name.split(":", 1)
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        reason = str(error)
        if not isinstance(error, ImportError | AttributeError):
            reason = f"{type(error).__name__}: {reason}"
        raise BackendError(reason, key=f"backend {name}") from error


def _incomplete(kind: type[Backend]) -> str | None:
    """What the class declares, or must have, and does not implement."""
    if inspect.isabstract(kind):
        return "has no method missing"
    if not kind.name:
        return "has no name"
    if unknown := sorted(kind.capabilities.difference(CAPABILITIES)):
        return f"declares {unknown[0]!r}; the capabilities are {', '.join(CAPABILITIES)}"
    for capability in sorted(kind.capabilities):
        member = capability.removesuffix("_heads")
        if getattr(kind, member) is getattr(Backend, member):
            return f"declares {capability} and does not implement {member}"
    return None
