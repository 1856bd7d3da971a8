"""Anchors: the boxes from which every detection starts.

Level by level, from the finest feature map to the coarsest; within a level
row-major over cells; within a cell one anchor for each aspect ratio, in the
order of the config. The centre of cell (row i, column j) lies at
((j + 0.5) * stride, (i + 0.5) * stride) pixels. An anchor of side s and aspect
ratio r is s * sqrt(r) wide and s / sqrt(r) high, so that all anchors of a level
have the same area, unless its squares have a side of their own. Anchors may reach
outside the image; they are not clipped.
"""

from __future__ import annotations

import numpy as np

from refinedet.spec.boxes import centres_to_corners
from refinedet.spec.config import Config, feature_sizes
from refinedet.spec.types import Array


def level_anchors(
    feature_size: tuple[int, int],
    stride: int,
    side: float,
    aspect_ratios: tuple[float, ...],
    image_size: tuple[int, int],
    square_side: float | None = None,
) -> Array:
    """The anchors of one feature map.

    Args:
        feature_size: rows and columns of the feature map.
        stride: pixels of the image from one cell to the next.
        side: side of the square with the anchors' area, in pixels.
        square_side: of the anchors of ratio 1, if another.
        aspect_ratios: width over height, one anchor a cell for each.
        image_size: height and width of the network's input, in pixels.
    Returns:
        (rows * columns * len(aspect_ratios), 4) float32, corner form,
        fractions of the image. Computed in float64.
    Source: RefineDet, arXiv:1711.06897, section 3.2 (anchor design), and the
        prior-box layer of the authors' release (offset 0.5, no clipping).
    """
    rows, columns = feature_size
    height, width = image_size
    y, x = np.mgrid[0.5:rows, 0.5:columns] * stride  # pixel centres, (rows, columns)
    ratios = np.asarray(aspect_ratios, np.float64)
    root = np.sqrt(ratios)
    sides = np.where(ratios == 1, side if square_side is None else square_side, side)
    centres = np.empty((rows, columns, len(root), 4))
    centres[..., 0] = x[..., None] / width
    centres[..., 1] = y[..., None] / height
    centres[..., 2] = sides * root / width
    centres[..., 3] = sides / root / height
    return centres_to_corners(centres.reshape(-1, 4)).astype(np.float32)


def anchors(config: Config) -> Array:
    """All anchors of a configuration, finest level first.

    Returns:
        (A, 4) float32, corner form, fractions of the image.
    """
    options = config.anchors
    squares = options.square_sides or options.sides
    levels = zip(feature_sizes(config), options.strides, options.sides, squares, strict=True)
    return np.concatenate(
        [
            level_anchors(size, stride, side, options.aspect_ratios, config.image_size, square)
            for size, stride, side, square in levels
        ]
    )
