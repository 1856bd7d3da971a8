"""RefineDet: an object detector as a reference specification, its backends and application.

    detector = refinedet.load("runs/bccd")
    detections = detector("image.jpg")

``load``, ``dataset``, ``train``, ``evaluate`` and ``export`` do what the commands do; see
``refinedet.api``. They are imported when they are first used: importing this package loads
neither a framework nor NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refinedet.version import __version__

if TYPE_CHECKING:
    from refinedet.api import dataset, evaluate, export, load, train

__all__ = ["__version__", "dataset", "evaluate", "export", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__ and name != "__version__":
        from refinedet import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
