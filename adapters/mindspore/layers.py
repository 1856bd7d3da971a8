"""Layers of the detector as MindSpore cells: ``refinedet.spec.layers``.

Every parameter carries its canonical name.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from refinedet.adapters.mindspore.collective import batch_norm
from refinedet.spec.architecture import Bottleneck, Conv, Pool
from refinedet.spec.config import NetworkConfig


class ConvLayer(nn.Cell):
    """A convolution and its batch normalisation or bias, without activation."""

    def __init__(self, conv: Conv, net: NetworkConfig) -> None:
        super().__init__()
        self.canonical = conv.name
        before, behind = conv.padding, conv.padding + conv.far
        plain = {
            "stride": conv.stride,
            "has_bias": conv.bias and not conv.batch_norm,
            "weight_init": "zeros",
            "bias_init": "zeros",
        }
        channels = conv.inputs, conv.outputs, conv.kernel
        if conv.transposed:
            self.conv = nn.Conv2dTranspose(*channels, pad_mode="valid", **plain)
        else:
            self.conv = nn.Conv2d(
                *channels,
                pad_mode="pad",
                padding=(before, behind, before, behind),
                dilation=conv.dilation,
                group=conv.inputs if conv.depthwise else 1,
                **plain,
            )
        self.norm = nn.Identity()
        if conv.batch_norm:
            self.norm = batch_norm(conv.outputs, net.batch_norm_eps, conv.momentum)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.norm(self.conv(x))


class BottleneckLayer(nn.Cell):
    """A bottleneck, without the ReLU behind the sum."""

    def __init__(self, block: Bottleneck, net: NetworkConfig) -> None:
        super().__init__()
        first, middle, last = (ConvLayer(conv, net) for conv in block.convs)
        self.convs = nn.SequentialCell([first, nn.ReLU(), middle, nn.ReLU(), last])
        self.shortcut = ConvLayer(block.projection, net) if block.projection else nn.Identity()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.convs(x) + self.shortcut(x)


def layer(step: Conv | Bottleneck, net: NetworkConfig) -> nn.Cell:
    """A step of the trunk, without activation."""
    return ConvLayer(step, net) if isinstance(step, Conv) else BottleneckLayer(step, net)


def pool(step: Pool) -> nn.Cell:
    """``spec.layers.max_pool2x2`` or ``max_pool3x3``; the input has passed a ReLU.

    Its border is therefore as good with zeros, and the plain operation, whose gradient is
    fast on CPU, needs no padding of its own.
    """
    if step.kernel == 2:
        return nn.MaxPool2d(2, 2)
    sides = (step.before, 1 - step.before)
    return nn.SequentialCell([nn.Pad(((0, 0), (0, 0), sides, sides)), nn.MaxPool2d(3, 2)])


class L2Normalise(nn.Cell):
    """``spec.layers.l2_normalise`` in plain operations.

    The fused operation's gradient takes a thousand times as long on CPU.
    """

    def __init__(self, name: str, channels: int, net: NetworkConfig) -> None:
        super().__init__()
        self.canonical = name
        self.l2_scale = ms.Parameter(np.zeros(channels, np.float32))
        self.eps, self.floor = net.l2_eps, net.l2_floor

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        squares = (x * x).sum(1, keepdims=True)
        squares = ops.maximum(squares, self.eps) if self.floor else squares + self.eps
        return x / ops.sqrt(squares) * self.l2_scale.reshape((1, -1, 1, 1))


class InFloat32(nn.Cell):
    """A cell that computes in float32, between others in float16."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell = cell

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.cell(x.astype(ms.float32)).astype(ms.float16)
