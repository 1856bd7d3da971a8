"""MindSpore on Ascend 910: backend ``mindspore-ascend``. Not run on hardware."""

from __future__ import annotations

from refinedet.adapters.mindspore.backend import MindSporeBackend


class MindSporeAscend(MindSporeBackend):
    """Trains and detects on one Ascend, of the driver's number ``device_id``."""

    def __init__(self, device_id: int | None = None) -> None:
        super().__init__("mindspore-ascend", "Ascend", device_id)
