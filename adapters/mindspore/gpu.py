"""MindSpore on NVIDIA GPUs: backend ``mindspore-gpu``. Not run on hardware."""

from __future__ import annotations

from refinedet.adapters.mindspore.backend import MindSporeBackend


class MindSporeGPU(MindSporeBackend):
    """Trains and detects on one GPU; ``device_id`` counts those that CUDA shows."""

    def __init__(self, device_id: int | None = None) -> None:
        super().__init__("mindspore-gpu", "GPU", device_id)
