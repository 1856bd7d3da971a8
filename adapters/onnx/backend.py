"""ONNX Runtime on the CPU: backend ``onnxruntime``, which detects and does not train.

ONNX and its runtime are imported at first use.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from refinedet.backends.interface import Backend, ExportedFile, Network
from refinedet.errors import BackendError
from refinedet.settings import Settings
from refinedet.spec.config import Config
from refinedet.spec.network import Parameters

PACKAGES = ("onnx", "onnxruntime")


class OnnxRuntime(Backend):
    """``Backend`` for detection: no ``operations``, no ``trainer``."""

    name = "onnxruntime"
    capabilities = frozenset({"network", "export", "export_heads", "load"})

    def missing(self) -> str | None:
        """Which package it lacks."""
        for package in PACKAGES:
            try:
                version(package)
            except PackageNotFoundError:
                return f"{package} is not installed; run: pip install 'refinedet[onnxruntime]'"
        return None

    def describe(self) -> str:
        """See ``Backend``."""
        import onnxruntime

        return f"ONNX Runtime {onnxruntime.__version__} on {onnxruntime.get_device()}"

    def network(self, config: Config, parameters: Parameters) -> Network:
        """See ``Backend``."""
        from refinedet.adapters.onnx.network import OnnxNetwork

        return OnnxNetwork(config, parameters)

    def export(self, network: Network, path: Path, settings: Settings, heads: bool = False) -> None:
        """Write an ONNX file that holds its settings; see ``Backend``."""
        from refinedet.adapters.onnx.export import export
        from refinedet.adapters.onnx.network import OnnxNetwork

        if not isinstance(network, OnnxNetwork):
            raise BackendError(
                "the model is exported already; copy its file, and its .yaml", path=path
            )
        export(network.config, network.parameters, path, settings, heads)

    def load(self, file: ExportedFile) -> Network:
        """Read an ONNX file; see ``Backend``."""
        from refinedet.adapters.onnx.network import OnnxFile

        return OnnxFile(file)
