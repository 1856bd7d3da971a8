"""Layers of the network, each with its gradient.

Arrays are batch, channel, row, column. Convolutions are cross-correlations with zero
padding. All is computed in the dtype of the arguments: backends are compared with float32;
float64 is for finite differences.

``<layer>_gradient`` takes the upstream gradient ``d`` (of the loss with respect to the layer's
output), then the layer's own arguments. It returns the gradient with respect to each of
the layer's arrays, in their order. ``GRADIENTS`` maps each layer to its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refinedet.spec.types import Array


def _taps(
    x: Array, shape: tuple[int, ...], stride: int, dilation: int
) -> Iterator[tuple[int, int, tuple[slice, ...]]]:
    """For each tap (i, j) of a k x k kernel, the part of the padded input that it reads.

    Args:
        x: (N, C, H, W), padded. shape: of the output, (N, D, H', W') and then k.
    """
    _, _, rows, columns, k = shape
    for i, j in np.ndindex(k, k):
        down = slice(i * dilation, i * dilation + stride * rows, stride)
        right = slice(j * dilation, j * dilation + stride * columns, stride)
        yield i, j, (slice(None), slice(None), down, right)


def _pad(x: Array, padding: int, far: int = 0) -> Array:
    sides = (padding, padding + far)
    return np.pad(x, ((0, 0), (0, 0), sides, sides))


def conv2d(
    x: Array, weight: Array, stride: int = 1, padding: int = 0, dilation: int = 1, far: int = 0
) -> Array:
    """Cross-correlation with zero padding.

    Args:
        x: (N, C, H, W). weight: (D, C, k, k).
        padding: rows and columns of zeros on every side.
        far: additional rows and columns of zeros after the last ones.
    Returns:
        (N, D, H', W'), H' = (H + 2 padding + far - dilation (k - 1) - 1) // stride + 1.
    """
    k = weight.shape[2]
    x = _pad(x, padding, far)
    reach = dilation * (k - 1) + 1
    rows = (x.shape[2] - reach) // stride + 1
    columns = (x.shape[3] - reach) // stride + 1
    out = np.zeros((len(x), len(weight), rows, columns), x.dtype)
    for i, j, part in _taps(x, (*out.shape, k), stride, dilation):  # add up the kernel's taps
        out += np.einsum("dc,ncrs->ndrs", weight[:, :, i, j], x[part], optimize=True)
    return out


def conv2d_gradient(
    d: Array,
    x: Array,
    weight: Array,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    far: int = 0,
) -> tuple[Array, Array]:
    """With respect to the input (N, C, H, W) and the weight (D, C, k, k)."""
    padded = _pad(x, padding, far)
    by_input, by_weight = np.zeros_like(padded), np.zeros_like(weight)
    for i, j, part in _taps(padded, (*d.shape, weight.shape[2]), stride, dilation):
        by_weight[:, :, i, j] = np.einsum("ndrs,ncrs->dc", d, padded[part], optimize=True)
        by_input[part] += np.einsum("dc,ndrs->ncrs", weight[:, :, i, j], d, optimize=True)
    height, width = x.shape[2:]
    return by_input[:, :, padding : padding + height, padding : padding + width], by_weight


def depthwise_conv2d(x: Array, weight: Array, padding: int) -> Array:
    """Depthwise cross-correlation, stride 1, with zero padding.

    Args:
        x: (N, C, H, W). weight: (C, 1, k, k).
    Returns:
        (N, C, H', W'), H' = H + 2 padding - k + 1.
    """
    k = weight.shape[2]
    x = _pad(x, padding)
    out = np.zeros((*x.shape[:2], x.shape[2] - k + 1, x.shape[3] - k + 1), x.dtype)
    for i, j, part in _taps(x, (*out.shape, k), 1, 1):
        out += weight[:, :, i, j, None] * x[part]
    return out


def depthwise_conv2d_gradient(
    d: Array, x: Array, weight: Array, padding: int
) -> tuple[Array, Array]:
    """With respect to the input and the weight (C, 1, k, k)."""
    padded = _pad(x, padding)
    by_input, by_weight = np.zeros_like(padded), np.zeros_like(weight)
    for i, j, part in _taps(padded, (*d.shape, weight.shape[2]), 1, 1):
        by_weight[:, 0, i, j] = (d * padded[part]).sum(axis=(0, 2, 3))
        by_input[part] += weight[:, :, i, j, None] * d
    height, width = x.shape[2:]
    return by_input[:, :, padding : padding + height, padding : padding + width], by_weight


def add_bias(x: Array, bias: Array) -> Array:
    """The sum of x (N, C, H, W) and one number for each channel (C,)."""
    biased: Array = x + bias[:, None, None]
    return biased


def add_bias_gradient(d: Array, x: Array, bias: Array) -> tuple[Array, Array]:
    """With respect to the input and the bias (C,)."""
    return d, d.sum(axis=(0, 2, 3))


def upsample2x2(x: Array, weight: Array) -> Array:
    """Transposed convolution, kernel 2, stride 2: each pixel becomes a 2x2 patch.

    Args:
        x: (N, C, H, W). weight: (C, D, 2, 2).
    Returns:
        (N, D, 2H, 2W).
    """
    n, _, h, w = x.shape
    patches: Array = np.einsum("nchw,cdij->ndhiwj", x, weight, optimize=True)
    return patches.reshape(n, -1, 2 * h, 2 * w)


def upsample2x2_gradient(d: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """With respect to the input and the weight (C, D, 2, 2)."""
    n, _, h, w = x.shape
    patches = d.reshape(n, -1, h, 2, w, 2)
    return (
        np.einsum("ndhiwj,cdij->nchw", patches, weight, optimize=True),
        np.einsum("ndhiwj,nchw->cdij", patches, x, optimize=True),
    )


def max_pool2x2(x: Array) -> Array:
    """Largest value of each 2x2 patch, stride 2; sides are even."""
    n, c, h, w = x.shape
    pooled: Array = x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    return pooled


def max_pool2x2_gradient(d: Array, x: Array) -> tuple[Array]:
    """With respect to the input: all to the largest value; of equal ones to the first."""
    n, c, h, w = x.shape
    patches = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5)
    flat = patches.reshape(-1, 4)
    by_patch = np.zeros_like(flat)
    by_patch[np.arange(len(flat)), flat.argmax(axis=1)] = d.ravel()
    return (by_patch.reshape(patches.shape).transpose(0, 1, 2, 4, 3, 5).reshape(x.shape),)


def _pool_taps(x: Array, before: int) -> list[tuple[Array, tuple[slice, ...]]]:
    """For each tap of 3x3 windows, stride 2: the values it reads, and their padded position."""
    sides = (before, 1 - before)
    padded = np.pad(x, ((0, 0), (0, 0), sides, sides), constant_values=-np.inf)
    n, c, h, w = x.shape
    return [(padded[part], part) for _, _, part in _taps(padded, (n, c, h // 2, w // 2, 3), 2, 1)]


def max_pool3x3(x: Array, before: int) -> Array:
    """Largest value of each 3x3 window, stride 2; sides are even.

    Args:
        x: (N, C, H, W).
        before: 1: windows are centred on rows 0, 2, 4, and so on; 0: on rows 1, 3, 5.
            Columns likewise. Positions outside the input do not count.
    Returns:
        (N, C, H / 2, W / 2).
    """
    pooled: Array = np.maximum.reduce([seen for seen, _ in _pool_taps(x, before)])
    return pooled


def max_pool3x3_gradient(d: Array, x: Array, before: int) -> tuple[Array]:
    """With respect to the input: all to the largest value; of equal ones to the first."""
    taps = _pool_taps(x, before)
    first = np.argmax([seen for seen, _ in taps], axis=0)
    n, c, h, w = x.shape
    by_padded = np.zeros((n, c, h + 1, w + 1), x.dtype)
    for tap, (_, part) in enumerate(taps):
        by_padded[part] += d * (first == tap)
    return (by_padded[:, :, before : before + h, before : before + w],)


def l2_normalise(x: Array, scale: Array, eps: float, floor: bool = False) -> Array:
    """Each pixel's channels divided by their L2 norm, times a scale for each channel.

    The norm is sqrt(sum of squares + eps); with ``floor``, sqrt(max(sum of squares, eps)).
    Source: ParseNet, arXiv:1506.04579, section 3.3; eps of the authors' layer; floor of
        the model zoo's.
    """
    normalised: Array = x / _norm(x, eps, floor) * scale[:, None, None]
    return normalised


def _norm(x: Array, eps: float, floor: bool) -> Array:
    squares = np.square(x).sum(axis=1, keepdims=True)
    least = x.dtype.type(eps)
    norm: Array = np.sqrt(np.maximum(squares, least) if floor else squares + least)
    return norm


def l2_normalise_gradient(
    d: Array, x: Array, scale: Array, eps: float, floor: bool = False
) -> tuple[Array, Array]:
    """With respect to the input and the scale (C,)."""
    norm = _norm(x, eps, floor)
    unit = x / norm
    scaled = d * scale[:, None, None]
    along = (scaled * unit).sum(axis=1, keepdims=True)
    if floor:  # a norm that is the floor does not depend on the input
        along = along * (np.square(x).sum(axis=1, keepdims=True) > x.dtype.type(eps))
    return (scaled - unit * along) / norm, (d * unit).sum(axis=(0, 2, 3))


def batch_normalise(
    x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, eps: float
) -> Array:
    """(x - mean) / sqrt(variance + eps) * gamma + beta, channel by channel."""

    def by_channel(values: Array) -> Array:
        return values[:, None, None]

    scale = gamma / np.sqrt(variance + variance.dtype.type(eps))
    return (x - by_channel(mean)) * by_channel(scale) + by_channel(beta)


def batch_normalise_gradient(
    d: Array, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, eps: float
) -> tuple[Array, Array, Array]:
    """With respect to the input, gamma and beta; ``mean`` and ``variance`` are those of ``x``.

    They depend on ``x``, which the gradient with respect to the input takes into account.
    Source: arXiv:1502.03167, section 3.
    """
    count = x.size // x.shape[1]
    deviation = np.sqrt(variance + variance.dtype.type(eps))[:, None, None]
    unit = (x - mean[:, None, None]) / deviation
    by_beta = d.sum(axis=(0, 2, 3))
    by_gamma = (d * unit).sum(axis=(0, 2, 3))
    common = (by_beta[:, None, None] + unit * by_gamma[:, None, None]) / x.dtype.type(count)
    return (d - common) * gamma[:, None, None] / deviation, by_gamma, by_beta


def relu(x: Array) -> Array:
    """The positive part."""
    return np.maximum(x, 0)


def relu_gradient(d: Array, x: Array) -> tuple[Array]:
    """With respect to the input; 0 where the input is 0."""
    return (d * (x > 0),)


def relu6(x: Array) -> Array:
    """The input limited to the range from 0 to 6."""
    return x.clip(0, 6)


def relu6_gradient(d: Array, x: Array) -> tuple[Array]:
    """With respect to the input; 0 where the input is 0, 6 or outside."""
    return (d * ((x > 0) & (x < 6)),)


def add(x: Array, y: Array) -> Array:
    """The sum of two arrays of one shape."""
    total: Array = x + y
    return total


def add_gradient(d: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """With respect to both."""
    return d, d


def anchor_rows(*outputs: Array, per_anchor: int) -> Array:
    """The outputs of all levels as rows, one for each anchor, in the order of the anchors.

    Args:
        outputs: for each level (N, anchors * per_anchor, H, W).
    Returns:
        (N, A, per_anchor).
    """
    rows = [y.transpose(0, 2, 3, 1).reshape(len(y), -1, per_anchor) for y in outputs]
    return np.ascontiguousarray(np.concatenate(rows, axis=1))


def anchor_rows_gradient(d: Array, *outputs: Array, per_anchor: int) -> tuple[Array, ...]:
    """With respect to the output of each level."""
    ends = np.cumsum([y[0].size // per_anchor for y in outputs])
    return tuple(
        part.reshape(y.transpose(0, 2, 3, 1).shape).transpose(0, 3, 1, 2)
        for part, y in zip(np.split(d, ends[:-1], axis=1), outputs, strict=True)
    )


GRADIENTS: dict[Callable[..., Array], Callable[..., tuple[Array, ...]]] = {
    conv2d: conv2d_gradient,
    depthwise_conv2d: depthwise_conv2d_gradient,
    add_bias: add_bias_gradient,
    upsample2x2: upsample2x2_gradient,
    max_pool2x2: max_pool2x2_gradient,
    max_pool3x3: max_pool3x3_gradient,
    l2_normalise: l2_normalise_gradient,
    batch_normalise: batch_normalise_gradient,
    relu: relu_gradient,
    relu6: relu6_gradient,
    add: add_gradient,
    anchor_rows: anchor_rows_gradient,
}


class Tape:
    """Calls layers and records each call, for the backward pass through all of them."""

    def __init__(self) -> None:
        self._steps: list[tuple[Array, Callable[..., Array], tuple[Array, ...], Any]] = []

    def __call__(self, layer: Callable[..., Array], *arrays: Array, **options: Any) -> Array:
        """The layer's output."""
        out = layer(*arrays, **options)
        self._steps.append((out, layer, arrays, options))
        return out

    def backward(
        self, outputs: list[tuple[Array, Array]], expected: dict[str, Array]
    ) -> dict[str, Array]:
        """The gradients of the ``expected`` arrays, from the upstream gradients of some outputs.

        An array that several layers read gets the sum of their gradients; one that
        none reads gets zeros.
        """
        gradients: dict[int, Array] = {id(out): d for out, d in outputs}
        for out, layer, arrays, options in reversed(self._steps):
            d = gradients.pop(id(out), None)
            if d is None:
                continue
            for array, g in zip(arrays, GRADIENTS[layer](d, *arrays, **options), strict=False):
                before = gradients.get(id(array))
                gradients[id(array)] = g if before is None else before + g
        return {n: gradients.get(id(a), np.zeros_like(a)) for n, a in expected.items()}


def without_tape(layer: Callable[..., Array], *arrays: Array, **options: Any) -> Array:
    """The layer's output; no backward pass will follow."""
    return layer(*arrays, **options)
