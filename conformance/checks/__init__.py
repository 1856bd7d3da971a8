"""The checks, one module for each level; importing this package fills the registry."""

from refinedet.conformance.checks import detections, network, operations, training

__all__ = ["detections", "network", "operations", "training"]
