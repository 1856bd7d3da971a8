"""MindSpore on the CPU: backend ``mindspore-cpu``."""

from __future__ import annotations

from refinedet.adapters.mindspore.backend import MindSporeBackend


class MindSporeCPU(MindSporeBackend):
    """Trains and detects on the processor's cores."""

    def __init__(self) -> None:
        super().__init__("mindspore-cpu", "CPU")
