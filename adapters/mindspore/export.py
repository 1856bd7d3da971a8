"""Exported detectors: MindIR, written and run, and AIR, written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from refinedet.adapters.mindspore.network import MindSporeNetwork
from refinedet.backends.interface import ExportedFile, Network
from refinedet.errors import BackendError
from refinedet.models.embedded_settings import with_settings
from refinedet.settings import Settings
from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.detection import scored_boxes
from refinedet.spec.errors import check_shape
from refinedet.spec.network import Heads
from refinedet.spec.types import Array
from refinedet.support.files import write_atomically

AIR = ".air"


class MindIRNetwork:
    """An exported detector, run from its file, which holds its settings."""

    def __init__(self, file: ExportedFile) -> None:
        path = file.path
        if path.suffix == AIR:
            raise BackendError(
                "AIR is for CANN's own compiler; give the .mindir, or the run", path=path
            )
        if not file.embedded:
            raise BackendError(
                "holds no settings; it was not written by refinedet export", path=path
            )
        self.config = config = file.settings.model
        try:
            self.graph = nn.GraphCell(ms.load(str(path)))
            outputs = self._run(np.zeros((1, 3, *config.image_size), np.float32))
        except (RuntimeError, ValueError, TypeError) as error:
            raise BackendError("not a MindIR that this MindSpore reads", path=path) from error
        rows, classes = len(all_anchors(config)), config.num_classes
        boxes = [f"float32 (1, {rows}, {width})" for width in (4, classes)]
        raw = [f"float32 (1, {rows}, {width})" for width in (4, 2, 4, classes)]
        actual = [f"{output.dtype} {output.shape}" for output in outputs]
        if actual not in (boxes, raw):
            shown = f"{', '.join(actual)}; its settings need {', '.join(boxes)}"
            raise BackendError(f"gives {shown}; export again", path=path)
        self.raw = actual == raw

    def _run(self, images: Array) -> list[Array]:
        check_shape(images, "images", None, 3, *self.config.image_size)
        return [output.asnumpy() for output in self.graph(ms.Tensor(images))]

    def heads(self, images: Array) -> Heads:
        """The raw outputs, if they were exported."""
        if not self.raw:
            raise NotImplementedError("this MindIR gives scored boxes, not the raw heads")
        return Heads(*self._run(images))

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor; of raw outputs, decoded on the host."""
        if self.raw:
            return scored_boxes(self.heads(images), self.config)
        boxes, scores = self._run(images)
        return boxes, scores


def export(
    network: Network,
    path: Path,
    settings: Settings,
    heads: bool,
    device: str,
) -> None:
    """Write the detector: as MindIR for any batch size, or as AIR for one image.

    Args:
        heads: the raw outputs in place of boxes and scores.
        device: MindSpore's name of the one that is set.
    """
    if not isinstance(network, MindSporeNetwork):
        raise BackendError("the model is exported already; copy its file, and its .yaml", path=path)
    if path.suffix == ".onnx":
        raise BackendError("this backend writes MindIR; onnxruntime writes ONNX", path=path)
    if path.suffix not in (".mindir", AIR):
        raise BackendError("is not named as a MindIR is; give it the suffix .mindir", path=path)
    if path.suffix == AIR and device != "Ascend":
        raise BackendError(
            "AIR is written on Ascend alone; use the backend mindspore-ascend, or export .mindir",
            path=path,
        )
    kind, suffix, count = ("AIR", AIR, 1) if path.suffix == AIR else ("MINDIR", ".mindir", None)
    images = ms.Tensor(shape=[count, 3, *network.config.image_size], dtype=ms.float32)
    if count is not None:  # AIR has static shapes
        images = ms.Tensor(np.zeros(images.shape, np.float32))
    cell = network.detector if heads else network.scored
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        fresh = Path(folder) / f"model{suffix}"
        try:
            ms.export(cell, images, file_name=str(fresh), file_format=kind)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BackendError(f"MindSpore cannot write it: {reason}", path=path) from error
        content = fresh.read_bytes()
    if path.suffix != AIR:
        content = with_settings(content, settings)
    write_atomically(path, content)
