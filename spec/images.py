"""Pictures: from eight bits a channel to the network's input."""

from __future__ import annotations

import numpy as np

from refinedet.spec.config import PictureConfig
from refinedet.spec.errors import Array, ContractError, check_shape


def normalise(picture: Array, config: PictureConfig) -> Array:
    """The network's input for one picture of the right size.

    Args:
        picture: (H, W, 3) uint8, R, G, B.
        config: channel order, mean and deviation, both in the order of ``channels``.
    Returns:
        (3, H, W) float32.
    Raises:
        ContractError: shape or dtype.
    Source: mean of the authors' release: B 104, G 117, R 123, no division.
    """
    check_shape(picture, "picture", None, None, 3)
    if picture.dtype != np.uint8:
        raise ContractError(f"picture: wants uint8, got {picture.dtype}")
    ordered = picture[..., ::-1] if config.channels == "BGR" else picture
    values = (ordered - np.asarray(config.mean, np.float64)) / np.asarray(config.std, np.float64)
    return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)
