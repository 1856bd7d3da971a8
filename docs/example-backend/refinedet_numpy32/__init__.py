"""An example backend: NumPy, all in float32. It detects; it does not train."""

from __future__ import annotations

from refinedet.backends.interface import Backend
from refinedet.spec.config import Config
from refinedet.spec.network import Parameters
from refinedet_numpy32 import operations
from refinedet_numpy32.network import Float32Network


class NumPyFloat32(Backend):
    """``Backend`` without a trainer, batches and files."""

    name = "numpy-float32"
    capabilities = frozenset({"operations", "network"})
    operations = operations  # any object will do that has the functions: here, the module

    def missing(self) -> str | None:
        """None: NumPy is all it needs."""
        return None

    def network(self, config: Config, parameters: Parameters) -> Float32Network:
        """The detector with these parameters."""
        return Float32Network(config, parameters)
