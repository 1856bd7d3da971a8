"""Detectors in MindSpore Lite, and their files.

An exported file holds its settings (``refinedet.models.embedded_settings``); Lite 2.0.0 reads
it with and without.
What another program compiled holds none: of it names, shapes and dtypes are checked.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from refinedet.adapters.lite.engine import THIS, InProcess, Remote, Runner, Worker
from refinedet.backends.interface import ExportedFile, Network
from refinedet.errors import BackendError
from refinedet.models.embedded_settings import with_settings
from refinedet.settings import Settings
from refinedet.spec.anchors import anchors
from refinedet.spec.config import Config
from refinedet.spec.detection import scored_boxes
from refinedet.spec.errors import check_shape
from refinedet.spec.network import Heads, Parameters, check_parameters
from refinedet.spec.types import Array
from refinedet.support.files import write_atomically

if TYPE_CHECKING:
    from refinedet.adapters.lite.backend import LiteBackend


class LiteNetwork:
    """``Network``, on one runner or on several that take turns.

    Args:
        size: images that a runner takes at a time; the last ones are filled up.
        mindir: the converted model, if it was not read from a file.
    """

    def __init__(
        self, config: Config, runners: list[Runner], size: int, mindir: bytes | None = None
    ) -> None:
        self.config = config
        self.runners = runners
        self.size = size
        self.mindir = mindir

    def heads(self, images: Array) -> Heads:
        """The raw outputs."""
        check_shape(images, "images", None, 3, *self.config.image_size)
        starts = range(0, len(images), self.size)
        pieces = [images[at : at + self.size] for at in starts]
        found = list(self._run(pieces))
        return Heads(*(np.concatenate([f[name] for f in found]) for name in Heads._fields))

    def _run(self, pieces: list[Array]) -> Iterable[dict[str, Array]]:
        if len(self.runners) == 1:  # in this thread: to others a device may be unknown
            return (self._outputs(self.runners[0], piece) for piece in pieces)
        free: SimpleQueue[Runner] = SimpleQueue()
        for runner in self.runners:
            free.put(runner)

        def run(piece: Array) -> dict[str, Array]:
            runner = free.get()
            try:
                return self._outputs(runner, piece)
            finally:
                free.put(runner)

        with ThreadPoolExecutor(len(self.runners)) as pool:
            return list(pool.map(run, pieces))

    def _outputs(self, runner: Runner, piece: Array) -> dict[str, Array]:
        count = len(piece)
        if count < self.size:
            blank = np.zeros((self.size - count, *piece.shape[1:]), piece.dtype)
            piece = np.concatenate([piece, blank])
        return {name: output[:count] for name, output in runner.run(piece).items()}

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor, from the raw outputs."""
        return scored_boxes(self.heads(images), self.config)


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
        Worker(backend.python or THIS).ask("convert", given)
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
    """Runners for a file, which takes and gives what belongs to this config."""
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
    """What the file gives for blank images has the names, shapes and dtypes of the heads."""
    found = runner.run(np.zeros((size, 3, *config.image_size), np.float32))
    rows = len(anchors(config))
    for name, width in zip(Heads._fields, (4, 2, 4, config.num_classes), strict=True):
        expected = f"float32 ({size}, {rows}, {width})"
        got = f"{found[name].dtype} {found[name].shape}" if name in found else "missing"
        if got != expected:
            raise BackendError(
                f"{name} is {got}, its settings need {expected}; export again", path=path
            )
