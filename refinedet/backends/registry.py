"""How a backend is found by name, set up, and asked what it can do."""

from __future__ import annotations

import importlib
import inspect
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, cast

from refinedet.backends.interface import Backend
from refinedet.errors import BackendError
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


def precisions(backend: Any) -> tuple[str, ...]:
    """What the backend can train in."""
    found: tuple[str, ...] = getattr(backend, "precisions", ("float32",))
    return found


def require_precision(backend: Any, config: Config) -> None:
    """Raise a ``BackendError`` unless the backend trains in the precision of the config."""
    expected, able = config.optimizer.precision, precisions(backend)
    if expected not in able:
        raise BackendError(
            f"trains in {' and '.join(able)} alone; set "
            f"model.optimizer.precision={able[0]}, or use another --backend",
            key=f"backend {backend.name}",
        )


def backend_names() -> list[str]:
    """The registered backends, sorted."""
    return sorted(point.name for point in entry_points(group=GROUP))


def device_found(backend: Backend) -> str:
    """What the backend found here, once it is set up; that it is ready, if it says no more."""
    told: str = backend.found() if hasattr(backend, "found") else "ready"
    return told


def profiler_of(backend: Backend, folder: Path) -> AbstractContextManager[object]:
    """The backend's profiler, which writes into a folder that is new or empty.

    Raises:
        BackendError: it has none, or the folder is in use.
    """
    if not hasattr(backend, "profiler"):
        raise BackendError("has no profiler; leave out --profile", key=f"backend {backend.name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BackendError("is not empty; choose another folder", key=f"--profile {folder}")
    return backend.profiler(folder)


def lacking(name: str) -> str | None:
    """Why a backend cannot run here, or None."""
    try:
        find_backend(name)
    except BackendError as error:
        return str(error).removeprefix(f"backend {name}: ")
    return None


def find_backend(name: str, *needs: str, **options: Any) -> Backend:
    """The backend of that name, ready to run here.

    Args:
        name: a registered name, or ``module:attribute``.
        needs: members of ``Backend`` that it must implement.
        options: what it is called with, by keyword.
    Raises:
        BackendError: unknown, not importable, without what is needed or an option, or its
            device is missing. Nothing falls back to another device.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    try:
        if name in points:
            made: Any = points[name].load()
        elif ":" in name:
            module, attribute = name.split(":", 1)
            made = getattr(importlib.import_module(module), attribute)
        else:
            known = ", ".join(backend_names())
            raise BackendError(
                f"no {name!r}; there are {known}, or MODULE:ATTRIBUTE", key="backend"
            )
    except BackendError:
        raise
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        kind = (
            "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        )
        raise BackendError(f"{kind}{error}", key=f"backend {name}") from error
    if not (inspect.isclass(made) and callable(getattr(made, "missing", None))):
        raise BackendError(
            "is no backend: that is a class with a method missing, see docs/write-a-backend.md",
            key=f"backend {name}",
        )
    for option in options:
        if option not in inspect.signature(made).parameters:
            spelt = option.replace("_", "-")
            raise BackendError(f"takes no --{spelt}; leave it out", key=f"backend {name}")
    backend = cast(Backend, made(**options))
    for member in needs:
        if not hasattr(made, member):
            raise BackendError(f"has no {member}; use another --backend", key=f"backend {name}")
    if reason := backend.missing():
        raise BackendError(f"{reason}", key=f"backend {name}")
    return backend
