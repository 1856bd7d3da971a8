"""Images: from eight bits a channel to the network's input."""

from __future__ import annotations

import numpy as np

from refinedet.spec.config import ImageConfig
from refinedet.spec.errors import SpecError, check_shape
from refinedet.spec.types import Array


def normalise(image: Array, config: ImageConfig) -> Array:
    """The network's input for one image of the right size.

    Args:
        image: (H, W, 3) uint8, R, G, B.
        config: channel order, mean and deviation, both in the order of ``channels``.
    Returns:
        (3, H, W) float32.
    Raises:
        SpecError: shape or dtype.
    Source: mean of the authors' release: B 104, G 117, R 123, no division.
    """
    check_shape(image, "image", None, None, 3)
    if image.dtype != np.uint8:
        raise SpecError(f"expected uint8, got {image.dtype}", key="image")
    ordered = image[..., ::-1] if config.channels == "BGR" else image
    values = (ordered - np.asarray(config.mean, np.float64)) / np.asarray(config.std, np.float64)
    return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)
