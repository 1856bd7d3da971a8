"""Tensors from NumPy arrays and back, always as copies."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from refinedet.spec.network import Parameters
from refinedet.spec.types import Array


def to_tensor(array: Array, device: str) -> Tensor:
    """A copy on the device."""
    return torch.tensor(array, device=device)


def to_numpy(tensor: Tensor) -> Array:
    """A copy that NumPy owns, C-contiguous."""
    array: Array = np.array(tensor.detach().cpu().numpy(), order="C")
    return array


def to_parameters(tensors: dict[str, Tensor]) -> Parameters:
    """Copies by canonical name."""
    return {name: to_numpy(tensor) for name, tensor in tensors.items()}
