"""What the ONNX Runtime backend computes with; importing it imports ONNX and its runtime."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime

from refinedet.adapters.onnxruntime.graph import HEADS, SCORED_BOXES, detector
from refinedet.backend import BackendError
from refinedet.files import write_atomically
from refinedet.settings import Settings, SettingsError, differences, from_yaml, shown, to_yaml
from refinedet.spec.anchors import anchors
from refinedet.spec.config import Config
from refinedet.spec.errors import Array, check_shape
from refinedet.spec.network import Heads, Parameters

SETTINGS = "settings"
"""Under this name a file's metadata hold its settings, as YAML."""


def session_of(model: bytes | str) -> onnxruntime.InferenceSession:
    """A model, or the file of that name, on as many cores as this process may use."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


class OnnxNetwork:
    """``refinedet.backend.Network``, its model in memory."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        self.config = config
        self.parameters = {name: tensor.copy() for name, tensor in parameters.items()}
        model = detector(config, self.parameters, (*HEADS, *SCORED_BOXES))
        self.session = session_of(model.SerializeToString())

    def heads(self, pictures: Array) -> Heads:
        """The raw outputs."""
        return Heads(*self._run(HEADS, pictures))

    def scored_boxes(self, pictures: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor."""
        boxes, scores = self._run(SCORED_BOXES, pictures)
        return boxes, scores

    def _run(self, outputs: tuple[str, ...], pictures: Array) -> list[Array]:
        check_shape(pictures, "pictures", None, 3, *self.config.image_size)
        found: list[Array] = self.session.run(outputs, {"pictures": pictures})
        return found


class OnnxFile(OnnxNetwork):
    """An exported detector, run from its file."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.config = settings.model
        try:
            self.session = session_of(str(path))
        except Exception as error:  # those of ONNX Runtime have no other class in common
            reason = str(error).strip().splitlines()[0]
            raise BackendError(f"{path}: not an ONNX file that can be run: {reason}") from error
        _require_settings(path, self.session, settings)
        _require_shapes(path, self.session, settings.model)

    def heads(self, pictures: Array) -> Heads:
        """Raises: an exported detector has no raw outputs."""
        raise NotImplementedError("an exported file gives scored boxes, not the raw heads")


def _require_settings(
    path: Path, session: onnxruntime.InferenceSession, settings: Settings
) -> None:
    """The file holds these settings, too."""
    text = session.get_modelmeta().custom_metadata_map.get(SETTINGS)
    if text is None:
        raise BackendError(f"{path}: holds no settings; it was not written by refinedet export")
    try:
        own = from_yaml(text)
    except SettingsError as error:
        raise BackendError(f"{path}: its settings are not usable here: {error}") from error
    for key, inside, beside in differences(own, settings):
        raise BackendError(
            f"{path}: {key} is {shown(inside)} in it, and {shown(beside)} in {path.name}.yaml, "
            "which belongs to another file; export again"
        )


def _require_shapes(path: Path, session: onnxruntime.InferenceSession, config: Config) -> None:
    """Inputs and outputs of the file are those that ``export`` writes for this config."""
    rows = len(anchors(config))
    wanted = [
        ("pictures", [3, *config.image_size]),
        ("boxes", [rows, 4]),
        ("scores", [rows, config.num_classes]),
    ]
    found = [*session.get_inputs(), *session.get_outputs()]
    for value, (name, shape) in zip(found, wanted, strict=False): ...


def export(network: OnnxNetwork, path: Path, settings: Settings) -> None:
    """Write the detector with its decoding and its settings."""
    model = detector(network.config, network.parameters, SCORED_BOXES)
    model.metadata_props.add(key=SETTINGS, value=to_yaml(settings))
    write_atomically(path, model.SerializeToString())
