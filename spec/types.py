"""The one type that every signature of the specification uses."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
"""A NumPy array; shape and dtype are in each docstring."""
