"""The checks, one module a level; importing this package fills the registry."""

from refinedet.conformance.checks import detections, network, operations, reported, training

__all__ = ["detections", "network", "operations", "reported", "training"]
