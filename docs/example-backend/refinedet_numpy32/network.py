"""The network in NumPy, all in float32: convolutions as products of two matrices.

It is built from the parameters: their names give the place of each layer, their shapes its
width. Batch normalisation is folded into the convolution before it.
"""

from __future__ import annotations

import numpy as np

from refinedet.spec.config import VGG16_BLOCKS, Config
from refinedet.spec.network import Heads, Parameters
from refinedet.spec.types import Array
from refinedet_numpy32 import operations

F = np.float32


def conv2d(
    x: Array,
    weight: Array,
    bias: Array,
    stride: int = 1,
    sides: tuple[int, int] = (1, 1),
    dilation: int = 1,
) -> Array:
    """Cross-correlation with zero padding: im2col, then one matrix product for each image."""
    outputs, _, k, _ = weight.shape
    matrix = weight.reshape(outputs, -1)
    x = np.pad(x, ((0, 0), (0, 0), sides, sides))
    rows, columns = ((side - dilation * (k - 1) - 1) // stride + 1 for side in x.shape[2:])
    starts = [(i * dilation, j * dilation) for i, j in np.ndindex(k, k)]
    out = np.empty((len(x), outputs, rows, columns), F)
    for n, image in enumerate(x):
        taps = [
            image[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            for i, j in starts
        ]
        read = np.stack(taps, axis=1).reshape(matrix.shape[1], -1)  # a column for each pixel
        out[n] = (matrix @ read + bias[:, None]).reshape(outputs, rows, columns)
    return out


def depthwise(x: Array, weight: Array, bias: Array) -> Array:
    """3x3 cross-correlation of every channel alone, with zero padding."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    out: Array = np.einsum("ncrsij,cij->ncrs", windows, weight[:, 0])
    return out + bias[:, None, None]


def upsample(x: Array, weight: Array, bias: Array) -> Array:
    """Transposed convolution, kernel 2, stride 2."""
    n, channels, h, w = x.shape
    matrix = weight.reshape(channels, -1).T  # (outputs and places in the patch, inputs)
    patches = (matrix @ x.reshape(n, channels, h * w)).reshape(n, -1, 2, 2, h, w)
    whole = patches.transpose(0, 1, 4, 2, 5, 3).reshape(n, -1, 2 * h, 2 * w)
    biased: Array = whole + bias[:, None, None]
    return biased


def max_pool(x: Array) -> Array:
    """Largest of each 2x2 patch."""
    rows = np.maximum(x[:, :, ::2], x[:, :, 1::2])
    return np.maximum(rows[..., ::2], rows[..., 1::2])


def max_pool_of_threes(x: Array, centred: bool) -> Array:
    """Largest of each 3x3 window, stride 2; what lies outside does not count."""
    for axis in (2, 3):
        even, odd = (np.take(x, range(first, x.shape[axis], 2), axis) for first in (0, 1))
        third, far = (odd, -1) if centred else (even, 1)
        beside = np.roll(third, -far, axis)
        edge = [slice(None)] * 4
        edge[axis] = slice(0, 1) if centred else slice(-1, None)
        beside[tuple(edge)] = -np.inf
        x = np.maximum(np.maximum(even, odd), beside)
    return x


def relu(x: Array) -> Array:
    """The positive part."""
    return np.maximum(x, F(0))


class Float32Network:
    """``Network`` in NumPy."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        self.config = config
        self.layers: dict[str, tuple[Array, Array]] = {}
        self.scales = {
            name.removesuffix(".l2_scale"): scale[:, None, None].copy()
            for name, scale in parameters.items()
            if name.endswith(".l2_scale")
        }
        for name in [n.removesuffix(".weight") for n in parameters if n.endswith(".weight")]:
            weight = parameters[f"{name}.weight"].copy()
            if f"{name}.gamma" in parameters:
                gamma, beta, mean, variance = (
                    parameters[f"{name}.{part}"]
                    for part in ("gamma", "beta", "moving_mean", "moving_variance")
                )
                scale = gamma / np.sqrt(variance + F(config.network.batch_norm_eps))
                bias = beta - mean * scale
                turned = name.endswith(".upsample")  # its outputs are the second axis
                weight *= scale[:, None, None] if turned else scale[:, None, None, None]
            elif f"{name}.bias" in parameters:
                bias = parameters[f"{name}.bias"].copy()
            else:
                outputs = 1 if name.endswith(".upsample") else 0
                bias = np.zeros(weight.shape[outputs], F)
            self.layers[name] = weight, bias

    def _conv(
        self, name: str, x: Array, stride: int = 1, dilation: int = 1, far: bool = False
    ) -> Array:
        """``far``: at stride 2, one zero less before and none less behind."""
        weight, bias = self.layers[name]
        behind = dilation * (weight.shape[2] - 1) // 2  # the output is as large, at stride 1
        before = behind - int(far and stride > 1 and behind > 0)
        return conv2d(x, weight, bias, stride, (before, behind), dilation)

    def _bottleneck(self, name: str, x: Array, stride: int = 1) -> Array:
        net = self.config.network
        first, middle = (stride, 1) if net.bottleneck_stride == "1x1" else (1, stride)
        y = relu(self._conv(f"{name}.conv1", x, first))
        y = relu(self._conv(f"{name}.conv2", y, middle, far=net.same_padding))
        y = self._conv(f"{name}.conv3", y)
        if f"{name}.projection" in self.layers:
            x = self._conv(f"{name}.projection", x, stride)
        return relu(x + y)

    def _normalised(self, name: str, x: Array) -> Array:
        net, squares = self.config.network, (x * x).sum(axis=1, keepdims=True)
        least = F(net.l2_eps)
        norm = np.sqrt(np.maximum(squares, least) if net.l2_floor else squares + least)
        normalised: Array = x * (self.scales[name] / norm)
        return normalised

    def _vgg16(self, x: Array) -> dict[str, Array]:
        features = {}
        for block, (_, count) in enumerate(VGG16_BLOCKS, start=1):
            for index in range(1, count + 1):
                x = relu(self._conv(f"backbone.conv{block}_{index}", x))
            features[f"backbone.conv{block}_{count}"] = x
            x = max_pool(x)
        x = relu(self._conv("backbone.fc6", x, dilation=3))
        fc7 = self._conv("backbone.fc7", x)
        features["backbone.fc7"] = relu(fc7) if self.config.network.fc7_relu else fc7
        x = relu(self._conv("backbone.conv6_1", relu(fc7)))
        features["backbone.conv6_2"] = relu(self._conv("backbone.conv6_2", x, stride=2))
        return dict(list(features.items())[-4:])

    def _resnet(self, x: Array) -> dict[str, Array]:
        net, features = self.config.network, {}
        x = relu(self._conv("backbone.conv1", x, stride=2, far=net.same_padding))
        x = max_pool_of_threes(x, net.pool_centred)
        for stage, count in enumerate((*net.blocks, 1), start=2):
            for index in range(1, count + 1):
                name = f"backbone.res{stage}_{index}"
                x = self._bottleneck(name, x, stride=2 if stage > 2 and index == 1 else 1)
            features[name] = x
        return dict(list(features.items())[-4:])

    def sources(self, images: Array) -> tuple[list[Array], list[Array]]:
        """The inputs of the ARM and of the transfer connection blocks, finest first."""
        net = self.config.network
        plain = self._vgg16(images) if net.backbone == "vgg16" else self._resnet(images)
        normalised = {
            name: self._normalised(name, x) if name in self.scales else x
            for name, x in plain.items()
        }
        for_arm = normalised if net.l2_in_arm else plain
        return list(for_arm.values()), list(normalised.values())

    def blocks(self, sources: list[Array]) -> list[Array]:
        """The ODM's inputs: each source combined with the next coarser block."""
        outputs: list[Array] = []
        for level in reversed(range(len(sources))):
            name = f"tcb.{level}"
            x = relu(self._conv(f"{name}.lateral1", sources[level]))
            x = self._conv(f"{name}.lateral2", x)
            if not outputs:
                x = relu(x)
            else:
                coarser = upsample(outputs[0], *self.layers[f"{name}.upsample"])
                zoo = self.config.network.tcb == "relu_sum_conv_conv"
                x = x + relu(coarser) if zoo else relu(x + coarser)
            for output in (f"{name}.output", f"{name}.output2"):
                if output in self.layers:
                    x = relu(self._conv(output, x))
            outputs.insert(0, x)
        return outputs

    def _rows(self, module: str, part: str, features: list[Array], per_anchor: int) -> Array:
        """One kind of head at all levels, with a row for each anchor."""
        rows = []
        for level, x in enumerate(features):
            name = f"{module}.{level}.{part}"
            if alone := self.layers.get(f"{name}.depthwise"):
                x = np.minimum(relu(depthwise(x, *alone)), F(6))
            y = self._conv(name, x)
            rows.append(y.transpose(0, 2, 3, 1).reshape(len(x), -1, per_anchor))
        return np.ascontiguousarray(np.concatenate(rows, axis=1))

    def _shared(self, module: str, features: list[Array]) -> list[Array]:
        """What both heads of a module read."""
        if self.config.network.heads != "bottleneck":
            return features
        return [self._bottleneck(f"{module}.{i}.shared", x) for i, x in enumerate(features)]

    def heads(self, images: Array) -> Heads:
        """The raw outputs."""
        for_arm, for_blocks = self.sources(images)
        arm, odm = self._shared("arm", for_arm), self._shared("odm", self.blocks(for_blocks))
        return Heads(
            self._rows("arm", "offsets", arm, 4),
            self._rows("arm", "logits", arm, 2),
            self._rows("odm", "offsets", odm, 4),
            self._rows("odm", "logits", odm, self.config.num_classes),
        )

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor."""
        return operations.scored_boxes(self.heads(images), self.config)
