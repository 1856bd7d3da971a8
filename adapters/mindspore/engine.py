"""What the MindSpore backend computes with; importing it imports MindSpore."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from refinedet.adapters.mindspore.network import Detector, ScoredBoxes, load_parameters
from refinedet.backend import BackendError
from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.config import Config
from refinedet.spec.errors import Array
from refinedet.spec.network import Heads, Parameters, check_parameters


class MindSporeNetwork:
    """``refinedet.backend.Network`` in graph mode; one graph is compiled a batch size."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        check_parameters(parameters, config)
        self.config = config
        self.detector = Detector(config).set_train(False)
        load_parameters(self.detector, parameters)
        self.scored = ScoredBoxes(self.detector, config).set_train(False)

    def heads(self, pictures: Array) -> Heads:
        """The raw outputs."""
        return Heads(*(output.asnumpy() for output in self.detector(ms.Tensor(pictures))))

    def scored_boxes(self, pictures: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor."""
        boxes, scores = self.scored(ms.Tensor(pictures))
        return boxes.asnumpy(), scores.asnumpy()


class MindIRNetwork:
    """An exported detector, run from its file."""

    def __init__(self, path: Path, config: Config) -> None:
        self.config = config
        try:
            self.graph = nn.GraphCell(ms.load(str(path)))
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"{path}: not a MindIR that this MindSpore reads") from error
        beside = f"{path}: the settings beside it, {path.name}.yaml, are not its own"
        try:
            boxes, scores = self.scored_boxes(np.zeros((1, 3, *config.image_size), np.float32))
        except (RuntimeError, ValueError) as error:
            raise BackendError(beside) from error
        anchors = len(all_anchors(config))
        if boxes.shape != (1, anchors, 4) or scores.shape != (1, anchors, config.num_classes):
            raise BackendError(beside)

    def heads(self, pictures: Array) -> Heads:
        """Raises: an exported detector has no raw outputs."""
        raise NotImplementedError("a MindIR gives scored boxes, not the raw heads")

    def scored_boxes(self, pictures: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor."""
        boxes, scores = self.graph(ms.Tensor(pictures))
        return boxes.asnumpy(), scores.asnumpy()


def export(network: MindSporeNetwork | MindIRNetwork, path: Path) -> None:
    """Write the detector with its decoding as MindIR, for any batch size."""
    if isinstance(network, MindIRNetwork):
        raise BackendError("the model is exported already; copy its file, and its .yaml")
    if path.suffix == ".onnx":
        raise BackendError(f"{path}: this backend writes MindIR; give --backend onnxruntime")
    pictures = ms.Tensor(shape=[None, 3, *network.config.image_size], dtype=ms.float32)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        fresh = Path(folder) / "model.mindir"
        ms.export(network.scored, pictures, file_name=str(fresh), file_format="MINDIR")
        fresh.chmod(0o644)  # MindSpore leaves it to its owner alone
        fresh.replace(path)
