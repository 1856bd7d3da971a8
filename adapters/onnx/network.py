"""Detectors run by ONNX Runtime: from parameters, and from an exported file.

Importing this imports ONNX and its runtime.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime

from refinedet.adapters.onnx.export import HEADS, SCORED_BOXES, detector
from refinedet.backends.interface import ExportedFile
from refinedet.errors import BackendError
from refinedet.spec.anchors import anchors
from refinedet.spec.config import Config
from refinedet.spec.detection import scored_boxes
from refinedet.spec.errors import check_shape
from refinedet.spec.network import Heads, Parameters
from refinedet.spec.types import Array


def session_of(model: bytes | Path) -> onnxruntime.InferenceSession:
    """A model, or a file, on as many cores as this process may use."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are reported by the exception
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


class _Session:
    """A session that computes scored boxes."""

    def __init__(self, config: Config, session: onnxruntime.InferenceSession) -> None:
        self.config = config
        self.session = session

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor."""
        boxes, scores = self._run(SCORED_BOXES, images)
        return boxes, scores

    def _run(self, outputs: tuple[str, ...], images: Array) -> list[Array]:
        check_shape(images, "images", None, 3, *self.config.image_size)
        results: list[Array] = self.session.run(outputs, {"images": images})
        return results


class OnnxNetwork(_Session):
    """``Network``, its model in memory."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        model = detector(config, parameters, (*HEADS, *SCORED_BOXES))
        super().__init__(config, session_of(model.SerializeToString()))
        self.parameters = {name: tensor.copy() for name, tensor in parameters.items()}

    def heads(self, images: Array) -> Heads:
        """The raw outputs."""
        return Heads(*self._run(HEADS, images))


class OnnxFile(_Session):
    """An exported detector, run from its file."""

    def __init__(self, file: ExportedFile) -> None:
        path, settings = file.path, file.settings
        if not file.embedded:
            raise BackendError(
                "holds no settings; it was not written by refinedet export", path=path
            )
        try:
            session = session_of(path)
        except Exception as error:  # those of ONNX Runtime have no other class in common
            reason = " ".join(str(error).split())
            raise BackendError(f"not an ONNX file that can be run: {reason}", path=path) from error
        self.raw = HEADS[0] in {output.name for output in session.get_outputs()}
        _require_tensors(path, session, settings.model, raw=self.raw)
        super().__init__(settings.model, session)

    def heads(self, images: Array) -> Heads:
        """The raw outputs, if they were exported."""
        if not self.raw:
            raise NotImplementedError("this file gives scored boxes, not the raw heads")
        return Heads(*self._run(HEADS, images))

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor; of raw outputs, decoded on the host."""
        if self.raw:
            return scored_boxes(self.heads(images), self.config)
        return super().scored_boxes(images)


def _require_tensors(
    path: Path, session: onnxruntime.InferenceSession, config: Config, *, raw: bool
) -> None:
    """Raise a BackendError unless inputs and outputs are those of an export of this config."""
    rows = len(anchors(config))
    tensors = {v.name: (v.type, v.shape) for v in (*session.get_inputs(), *session.get_outputs())}
    widths = (4, 2, 4, config.num_classes) if raw else (4, config.num_classes)
    outputs = zip(HEADS if raw else SCORED_BOXES, widths, strict=True)
    for name, *shape in (
        ("images", "N", 3, *config.image_size),
        *((name, "N", rows, width) for name, width in outputs),
    ):
        kind, sides = tensors.get(name, ("missing", []))
        if (kind, sides) != ("tensor(float)", shape):
            raise BackendError(
                f"{name} is {kind} {sides}, its settings need tensor(float) {shape}; export again",
                path=path,
            )
