"""Random augmentation of one training image and its objects.

In the order of the authors' release (SSD's, arXiv:1512.02325, section 2.2):

1. Distort: brightness, contrast, saturation, hue.
2. Expand: place the image on a larger canvas of the mean colour.
3. Crop: whole canvas, or a part that overlaps some object enough.
4. Resize to the network's input. 5. Mirror, and flip.

Steps 2 to 5 only move pixels, so their geometry is composed first: the visible part of the
image (``source``, in whole pixels) is resized once onto its rectangle in the output
(``target``, in whole pixels), and boxes are mapped in the same way. Step 1 is then applied
to the pixels of that rectangle only, not to the fill. Brightness and contrast are linear, so
this order gives the same image up to rounding and clipping; saturation and hue
differ from the paper's order only where neighbouring pixels of different colours are blended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from refinedet.settings import AugmentSettings
from refinedet.spec.boxes import area
from refinedet.spec.config import ImageConfig
from refinedet.spec.errors import SpecError, check_shape
from refinedet.spec.images import normalise
from refinedet.spec.types import Array

BRIGHTNESS = 32.0
"""Largest change, of 0 to 255. This and the next: the authors' ``distort_param``."""
CONTRAST = SATURATION = (0.5, 1.5)
"""Factors of the image, and of the saturation in HSV."""
HUE = 18.0
"""Largest shift in OpenCV's units of 2 degrees. It wraps around the circle."""
HUE_CIRCLE = 180
"""The same units for the whole circle."""

CROP_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
"""Smallest overlap of a crop with some object, one for each sampler; one more keeps the image."""
CROP_SCALE = (0.3, 1.0)
"""Root of a crop's share of the image."""
CROP_RATIO = (0.5, 2.0)
"""Width over height, both as shares of the image."""
CROP_TRIALS = 50

INTERPOLATIONS = (
    cv2.INTER_LINEAR,
    cv2.INTER_AREA,
    cv2.INTER_NEAREST_EXACT,
    cv2.INTER_CUBIC,
    cv2.INTER_LANCZOS4,
)
"""Of these one is chosen uniformly to resize a training image."""


class Window(NamedTuple):
    """A rectangle in whole pixels of an image; may reach outside it."""

    x_min: int
    y_min: int
    x_max: int
    y_max: int


def augment(
    image: Array,
    boxes: Array,
    labels: Array,
    rng: np.random.Generator,
    settings: AugmentSettings,
    size: tuple[int, int],
    config: ImageConfig,
) -> tuple[Array, Array, Array]:
    """An augmented image of the network's size, and the objects that are left in it.

    A function of its arguments and of the generator's state alone. An object whose
    centre is outside the crop is dropped, the others are clipped. A crop that would
    leave no object is not used; an image without objects is not cropped. With every
    augmentation turned off this is ``resize_only``.

    Args:
        image: (H, W, 3) uint8, R, G, B.
        boxes: (T, 4) float32, pixels, corner form, within the image, sides above 0.
        labels: (T,) integers.
        size: height and width of the result.
        config: its mean colour fills the canvas.
    Returns:
        Image (height, width, 3) uint8, boxes (T', 4) float32, corner form, fractions,
        sides above 0, and labels (T',).
    Raises:
        SpecError: shape or dtype of the image.
    Source: SSD, arXiv:1512.02325, section 2.2, and the numbers of the authors' release.
    """
    _check_image(image)
    exact = boxes.astype(np.float64)
    window = Window(0, 0, image.shape[1], image.shape[0])
    if rng.random() < settings.expand:
        window = expanded(window, settings.expand_ratio, rng)
    if settings.crop and len(boxes):
        window = cropped(window, exact, rng)
    interpolation = cv2.INTER_LINEAR
    if settings.crop or any((settings.distort, settings.expand, settings.mirror, settings.flip)):
        interpolation = INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))]
    source, target = _visible(image, window, size)
    pixels = _resize(
        image[source.y_min : source.y_max, source.x_min : source.x_max],
        (target.y_max - target.y_min, target.x_max - target.x_min),
        interpolation,
    )
    pixels = distort(pixels, settings.distort, rng)
    if pixels.shape[:2] != size:
        edges = target.y_min, size[0] - target.y_max, target.x_min, size[1] - target.x_max
        pixels = cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_CONSTANT, value=_fill(config))

    inside = _centres_inside(exact, np.array(window, np.float64)[None])[:, 0]
    moved = _move(exact[inside], source, target, size)
    mirror, flip = rng.random() < settings.mirror, rng.random() < settings.flip
    pixels, moved = _mirrored(pixels, moved, mirror, flip)
    result = moved.astype(np.float32)
    kept = (result[:, 2:] > result[:, :2]).all(axis=1)
    return pixels, result[kept], labels[inside][kept]


def resize_only(image: Array, size: tuple[int, int]) -> Array:
    """The whole image stretched to a size, as in evaluation.

    Args:
        image: (H, W, 3) uint8.
        size: height and width of the result.
    Returns:
        (height, width, 3) uint8; bilinear, pixel centres at halves.
    Raises:
        SpecError: shape or dtype of the image.
    """
    _check_image(image)
    return _resize(image, size, cv2.INTER_LINEAR)


def normaliser(config: ImageConfig) -> Callable[[Array], Array]:
    """``spec.images.normalise`` for one config, as a table of 256 values a channel.

    Returns:
        A function from (H, W, 3) uint8, R, G, B, to (3, H, W) float32; the same bits as
        the specification's. Threads may share it.
    """
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    tables = normalise(grey, config)  # (3, 1, 256), channels in the config's order
    order = (2, 1, 0) if config.channels == "BGR" else (0, 1, 2)

    def apply(image: Array) -> Array:
        _check_image(image)
        result = np.empty((3, *image.shape[:2]), np.float32)
        channels = cv2.split(image)
        for plane, table, channel in zip(result, tables, order, strict=True):
            cv2.LUT(channels[channel], table, plane)
        return result

    return apply


def expanded(window: Window, largest: float, rng: np.random.Generator) -> Window:
    """A canvas 1 to ``largest`` times as wide and high, with ``window`` somewhere on it."""
    ratio = rng.uniform(1, largest)
    width, height = window.x_max - window.x_min, window.y_max - window.y_min
    canvas_width, canvas_height = int(width * ratio), int(height * ratio)
    left = math.floor(rng.uniform(0, canvas_width - width + 1))
    top = math.floor(rng.uniform(0, canvas_height - height + 1))
    x_min, y_min = window.x_min - left, window.y_min - top
    return Window(x_min, y_min, x_min + canvas_width, y_min + canvas_height)


def cropped(window: Window, boxes: Array, rng: np.random.Generator) -> Window:
    """The window, or a part of it, by a sampler chosen among those that succeed.

    A sampler takes the first of its trials that overlaps some object enough and contains
    the centre of some object. Samplers are tried in random order, so the choice is uniform
    over those that succeed.

    Args:
        boxes: (T, 4) float64, pixels, corner form. T from 1.
    """
    for sampler in rng.permutation(len(CROP_IOUS) + 1).tolist():
        if sampler == len(CROP_IOUS):
            break
        crops = _trials(window, rng)
        good = _centres_inside(boxes, crops).any(axis=0)
        if CROP_IOUS[sampler] > 0:
            good &= _best_iou(boxes, crops) >= CROP_IOUS[sampler]
        if good.any():
            return Window(*crops[good.argmax()].astype(int).tolist())
    return window


def _trials(window: Window, rng: np.random.Generator) -> Array:
    """Crops of a window, (CROP_TRIALS, 4) float64, whole pixels."""
    draws = rng.random((4, CROP_TRIALS))
    scale = CROP_SCALE[0] + draws[0] * (CROP_SCALE[1] - CROP_SCALE[0])
    square = scale * scale
    lowest, highest = np.maximum(CROP_RATIO[0], square), np.minimum(CROP_RATIO[1], 1 / square)
    root = np.sqrt(lowest + draws[1] * (highest - lowest))
    crops = np.empty((CROP_TRIALS, 4))
    for axis, share in ((0, scale * root), (1, scale / root)):  # shares are at most 1
        full = window[axis + 2] - window[axis]
        side = np.maximum(np.rint(share * full), 1)
        crops[:, axis] = window[axis] + np.floor(draws[2 + axis] * (full - side + 1))
        crops[:, axis + 2] = crops[:, axis] + side
    return crops


def _centres_inside(boxes: Array, crops: Array) -> Array:
    """Whether each box's centre is inside each crop, (T, C)."""
    centre = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    between = (crops[:, :2] < centre) & (centre < crops[:, 2:])
    inside: Array = between[..., 0] & between[..., 1]
    return inside


def _best_iou(boxes: Array, crops: Array) -> Array:
    """The largest overlap of each crop with a box, (C,)."""
    b = boxes[:, None]
    sides = np.minimum(b[..., 2:], crops[:, 2:]) - np.maximum(b[..., :2], crops[:, :2])
    np.maximum(sides, 0, out=sides)
    shared = sides[..., 0] * sides[..., 1]
    areas = area(b) + area(crops)
    best: Array = (shared / (areas - shared)).max(axis=0)
    return best


def _visible(image: Array, window: Window, size: tuple[int, int]) -> tuple[Window, Window]:
    """The part of the image in the window, and its rectangle in the output; never empty."""
    spans = []
    for low, high, length, out in (
        (window.x_min, window.x_max, image.shape[1], size[1]),
        (window.y_min, window.y_max, image.shape[0], size[0]),
    ):
        start = min(max(low, 0), length - 1)
        stop = max(min(high, length), start + 1)
        scale = out / (high - low)
        first = min(round((start - low) * scale), out - 1)
        last = max(round((stop - low) * scale), first + 1)
        spans.append((start, stop, first, last))
    (x0, x1, px0, px1), (y0, y1, py0, py1) = spans
    return Window(x0, y0, x1, y1), Window(px0, py0, px1, py1)


def _move(boxes: Array, source: Window, target: Window, size: tuple[int, int]) -> Array:
    """Boxes (T, 4) float64 in the image's pixels, to clipped fractions of the output."""
    moved = np.empty_like(boxes)
    for axis, out in ((0, size[1]), (1, size[0])):
        scale = (target[axis + 2] - target[axis]) / (source[axis + 2] - source[axis])
        moved[:, axis::2] = ((boxes[:, axis::2] - source[axis]) * scale + target[axis]) / out
    np.maximum(moved, 0, out=moved)
    return np.minimum(moved, 1, out=moved)


def _mirrored(pixels: Array, boxes: Array, mirror: bool, flip: bool) -> tuple[Array, Array]:
    """Pixels and boxes (T, 4), fractions, mirrored from left to right, and flipped upside down."""
    boxes = boxes.copy()
    if mirror:
        boxes[:, [0, 2]] = 1 - boxes[:, [2, 0]]
    if flip:
        boxes[:, [1, 3]] = 1 - boxes[:, [3, 1]]
    if mirror or flip:
        pixels = cv2.flip(pixels, -1 if mirror and flip else int(mirror))
    return pixels, boxes


def distort(pixels: Array, probability: float, rng: np.random.Generator) -> Array:
    """Brightness, contrast, saturation and hue, each with the same probability.

    Contrast is second or last, with equal probability. Every change is rounded and clipped
    to 0 to 255 before the next.

    Args:
        pixels: (H, W, 3) uint8, R, G, B.
    Returns:
        The same shape; the argument itself where nothing changed.
    """
    brightness, contrast, saturation, hue = (rng.random(4) < probability).tolist()
    contrast_early = rng.random() < 0.5
    shift, factor = rng.uniform(-BRIGHTNESS, BRIGHTNESS), rng.uniform(*CONTRAST)
    strength, turn = rng.uniform(*SATURATION), rng.uniform(-HUE, HUE)
    if brightness:
        amount = (abs(round(shift)),) * 3
        pixels = cv2.add(pixels, amount) if shift > 0 else cv2.subtract(pixels, amount)
    if contrast and contrast_early:
        pixels = cv2.convertScaleAbs(pixels, alpha=factor)
    if saturation or hue:
        pixels = _turn_colours(pixels, strength if saturation else 1.0, round(turn) if hue else 0)
    if contrast and not contrast_early:
        pixels = cv2.convertScaleAbs(pixels, alpha=factor)
    return pixels


def _turn_colours(pixels: Array, strength: float, turn: int) -> Array:
    """Saturation times ``strength`` and hue plus ``turn`` units of 2 degrees, in HSV."""
    hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
    if turn:
        hue = cv2.LUT(hue, ((np.arange(256) + turn) % HUE_CIRCLE).astype(np.uint8))
    if strength != 1:
        saturation = cv2.convertScaleAbs(saturation, alpha=strength)
    turned: Array = cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB)
    return turned


def _resize(image: Array, size: tuple[int, int], interpolation: int) -> Array:
    """An image stretched to a size, (height, width, 3) uint8."""
    resized: Array
    if interpolation == cv2.INTER_LANCZOS4:  # OpenCV is three times as fast in float32
        rough = cv2.resize(image.astype(np.float32), size[::-1], interpolation=interpolation)
        resized = cv2.convertScaleAbs(np.maximum(rough, 0, out=rough))  # rounds, clips at 255
    else:
        resized = cv2.resize(image, size[::-1], interpolation=interpolation)
    return resized


def _fill(config: ImageConfig) -> tuple[int, ...]:
    """The mean colour, rounded: R, G, B."""
    mean = tuple(round(value) for value in config.mean)
    return mean[::-1] if config.channels == "BGR" else mean


def _check_image(image: Array) -> None:
    check_shape(image, "image", None, None, 3)
    if image.dtype != np.uint8:
        raise SpecError(f"expected uint8, got {image.dtype}", key="image")
    if image.size == 0:
        raise SpecError(f"expected pixels, got shape {image.shape}", key="image")
