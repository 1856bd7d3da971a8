"""Files of MindSpore Lite: converting a detector, writing it, loading it.

An exported file holds its settings (``refinedet.models.embedded_settings``); Lite 2.0.0 reads
it with and without. A file that another program compiled holds none: its names, shapes and dtypes
are checked.
"""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refinedet.adapters.lite.network import LiteNetwork
from refinedet.adapters.lite.process import THIS, InProcess, LiteProcess, Remote, Runner
from refinedet.backends.interface import ExportedFile, Network
from refinedet.errors import BackendError
from refinedet.models.embedded_settings import with_settings
from refinedet.settings import Settings
from refinedet.spec.anchors import anchors
from refinedet.spec.config import Config
from refinedet.spec.network import Heads, Parameters, check_parameters
from refinedet.support.files import write_atomically

if TYPE_CHECKING:
    from refinedet.adapters.lite.backend import LiteBackend


def converted(backend: LiteBackend, config: Config, parameters: Parameters) -> LiteNetwork:
    """The detector with these parameters, by Lite's converter in a process of its own."""
    check_parameters(parameters, config)
    try:
        version("onnx")
    except PackageNotFoundError as error:
        raise BackendError(
            "onnx, from which it converts, is not installed; run: pip install 'refinedet[lite]'",
            key=f"backend {backend.name}",
        ) from error
    from refinedet.adapters.onnx.export import detector

    with tempfile.TemporaryDirectory(prefix="refinedet-lite-") as name:
        onnx, output = Path(name) / "detector.onnx", Path(name) / "detector"
        write_atomically(onnx, detector(config, parameters, Heads._fields).SerializeToString())
        given = {
            "onnx": str(onnx),
            "output": str(output),
            "device": "Ascend" if backend.target == "ascend" else None,
            "shape": [backend.batch, 3, *config.image_size],
        }
        LiteProcess(backend.python or THIS).ask("convert", given)
        mindir = output.with_suffix(".mindir")
        network = _opened(backend, mindir, config)
        network.mindir = mindir.read_bytes()
    return network


def export(network: Network, path: Path, settings: Settings) -> None:
    """Write the converted model with its settings."""
    if not isinstance(network, LiteNetwork) or network.mindir is None:
        raise BackendError("the model is exported already; copy its file, and its .yaml", path=path)
    write_atomically(path, with_settings(network.mindir, settings))


def load(backend: LiteBackend, file: ExportedFile) -> LiteNetwork:
    """The detector in a MindIR."""
    return _opened(backend, file.path, file.settings.model)


def _opened(backend: LiteBackend, path: Path, config: Config) -> LiteNetwork:
    """The network of a file, whose inputs and outputs must be those of this config."""
    given = {
        "target": backend.target,
        "device_id": backend.device_id,
        "threads": max(1, len(os.sched_getaffinity(0)) // backend.streams),
    }
    python = backend.python
    if python is None and backend.streams > 1:
        python = THIS
    try:
        runners: list[Runner] = [
            InProcess(path, **given) if python is None else Remote(python, path, **given)
            for _ in range(backend.streams)
        ]
    except BackendError as error:
        raise BackendError(f"cannot be loaded: {error}", path=path) from error
    size = _compiled_size(path, runners[0].inputs, config)
    _require_outputs(path, runners[0], config, size)
    return LiteNetwork(config, runners, size)


def _compiled_size(path: Path, inputs: list[list[Any]], config: Config) -> int:
    """The number of images that a file takes at a time."""
    if len(inputs) == 1:
        name, shape, dtype = inputs[0]
        if (name, shape[1:], dtype) == ("images", [3, *config.image_size], "FLOAT32"):
            size: int = shape[0]
            if size > 0:
                return size
            raise BackendError(
                "leaves open how many images it takes; convert it for a number of them", path=path
            )
    expected = ["images", ["N", 3, *config.image_size], "FLOAT32"]
    raise BackendError(f"takes {inputs}, its settings need [{expected}]; export again", path=path)


def _require_outputs(path: Path, runner: Runner, config: Config, size: int) -> None:
    """Raise a BackendError unless the outputs have names, shapes and dtypes of the heads."""
    outputs = runner.run(np.zeros((size, 3, *config.image_size), np.float32))
    rows = len(anchors(config))
    for name, width in zip(Heads._fields, (4, 2, 4, config.num_classes), strict=True):
        expected = f"float32 ({size}, {rows}, {width})"
        actual = "missing"
        if name in outputs:
            actual = f"{outputs[name].dtype} {outputs[name].shape}"
        if actual != expected:
            raise BackendError(
                f"{name} is {actual}, its settings need {expected}; export again", path=path
            )
