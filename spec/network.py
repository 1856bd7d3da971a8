"""The network: a VGG16 trunk, transfer connection blocks, two detection heads.

    picture -> VGG16 conv1_1 .. conv5_3 -> fc6, fc7 as convolutions -> conv6_1, conv6_2
    sources: conv4_3, conv5_3 (both L2-normalised), fc7, conv6_2; strides 8, 16, 32, 64

The ARM reads the sources. Each source also passes a transfer connection block
(TCB), which adds what the next coarser block says, upsampled; the ODM reads the
blocks. Every level has one 3x3 convolution a head for offsets and one for classes.

Arrays are batch, channel, row, column; all is computed in the dtype of the parameters
and pictures (see ``spec.layers``).

Sources: RefineDet, arXiv:1711.06897, figure 1, figure 2, section 3; layer details
(2x2 upsampling, ReLU after the sum, L2 scales 10 and 8) from the authors' release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from refinedet.spec.config import VGG16_BLOCKS, Config
from refinedet.spec.errors import Array, ContractError, check_float, check_shape
from refinedet.spec.layers import (
    Tape,
    add,
    add_bias,
    anchor_rows,
    batch_normalise,
    conv2d,
    depthwise_conv2d,
    l2_normalise,
    max_pool2x2,
    plainly,
    relu,
    relu6,
    upsample2x2,
)

Parameters = dict[str, Array]


class Parameter(NamedTuple):
    """A row of the table of parameters.

    ``group`` is ``decay``, ``no_decay``, ``bias`` (no decay, own learning rate) or
    ``statistic`` (a running mean or variance, not trained). ``initialiser`` is
    ``xavier``, ``normal``, or a number for a constant.
    """

    name: str
    shape: tuple[int, ...]
    group: str
    initialiser: str | float


class Conv(NamedTuple):
    """A convolution with what follows it, up to but without the activation."""

    name: str
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    batch_norm: bool = False
    bias: bool = True
    """Where there is no batch normalisation."""
    depthwise: bool = False
    """Every channel alone."""


class Heads(NamedTuple):
    """The raw outputs: A anchors in the order of ``spec.anchors``, K classes."""

    arm_offsets: Array
    """(N, A, 4): x, y, w, h from the anchors."""
    arm_logits: Array
    """(N, A, 2): background, object."""
    odm_offsets: Array
    """(N, A, 4): x, y, w, h from the refined anchors."""
    odm_logits: Array
    """(N, A, K): background, classes."""


def backbone_convs(config: Config) -> list[Conv]:
    """The trunk's convolutions, in order; conv1_1 to conv5_3, fc6, fc7, conv6_1, conv6_2."""
    net = config.network
    kind = {"batch_norm": net.batch_norm, "bias": net.conv_bias}
    convs: list[Conv] = []
    inputs = 3
    for block, (full, count) in enumerate(VGG16_BLOCKS, start=1):
        for index in range(1, count + 1):
            outputs = net.channels(full)
            convs.append(Conv(f"backbone.conv{block}_{index}", inputs, outputs, **kind))
            inputs = outputs
    wide, narrow, last = net.channels(1024), net.channels(256), net.channels(512)
    return [
        *convs,
        Conv("backbone.fc6", inputs, wide, padding=3, dilation=3, **kind),
        Conv("backbone.fc7", wide, wide, kernel=1, padding=0, **kind),
        Conv("backbone.conv6_1", wide, narrow, kernel=1, padding=0, **kind),
        Conv("backbone.conv6_2", narrow, last, stride=2, **kind),
    ]


SOURCES = ("backbone.conv4_3", "backbone.conv5_3", "backbone.fc7", "backbone.conv6_2")
"""The layers whose activations the ARM and the TCBs read, finest first."""

NORMALISED = 2
"""The first so many sources are L2-normalised."""


def source_channels(config: Config) -> list[int]:
    """Channels of each source, finest first."""
    outputs = {conv.name: conv.outputs for conv in backbone_convs(config)}
    return [outputs[name] for name in SOURCES]


def tcb_convs(level: int, config: Config) -> list[Conv]:
    """The convolutions of a transfer connection block: two before the sum, the rest after."""
    net = config.network
    kind = {"batch_norm": net.batch_norm, "bias": net.conv_bias}
    inside, source = net.channels(net.tcb_channels), source_channels(config)[level]
    names = ["lateral2", "output"]
    if net.tcb == "relu_sum_conv_conv" and level < len(SOURCES) - 1:
        names.append("output2")
    return [
        Conv(f"tcb.{level}.lateral1", source, inside, **kind),
        *(Conv(f"tcb.{level}.{name}", inside, inside, **kind) for name in names),
    ]


def head_convs(module: str, level: int, config: Config) -> list[list[Conv]]:
    """One module (``arm`` or ``odm``) at one level: the convolutions of offsets, of logits."""
    net = config.network
    if module == "arm":
        inputs, classes = source_channels(config)[level], 2
    else:
        inputs, classes = net.channels(net.tcb_channels), config.num_classes
    cell = len(config.anchors.aspect_ratios)

    def convs(name: str, outputs: int) -> list[Conv]:
        if net.heads == "conv":
            return [Conv(name, inputs, outputs)]
        alone = Conv(f"{name}.depthwise", inputs, inputs, batch_norm=True, depthwise=True)
        return [alone, Conv(name, inputs, outputs, kernel=1, padding=0)]

    return [
        convs(f"{module}.{level}.offsets", cell * 4),
        convs(f"{module}.{level}.logits", cell * classes),
    ]


def _conv_parameters(conv: Conv, initialiser: str) -> Iterator[Parameter]:
    shape = (conv.outputs, 1 if conv.depthwise else conv.inputs, conv.kernel, conv.kernel)
    yield Parameter(f"{conv.name}.weight", shape, "decay", initialiser)
    if conv.batch_norm:
        yield Parameter(f"{conv.name}.gamma", (conv.outputs,), "no_decay", 1.0)
        yield Parameter(f"{conv.name}.beta", (conv.outputs,), "no_decay", 0.0)
        yield Parameter(f"{conv.name}.moving_mean", (conv.outputs,), "statistic", 0.0)
        yield Parameter(f"{conv.name}.moving_variance", (conv.outputs,), "statistic", 1.0)
    elif conv.bias:
        yield Parameter(f"{conv.name}.bias", (conv.outputs,), "bias", 0.0)


def parameter_table(config: Config) -> list[Parameter]:
    """Every parameter of the network: canonical name, shape, group, initialiser.

    Convolution weights are (outputs, inputs, rows, columns); those of the 2x2
    upsampling are (inputs, outputs, rows, columns).
    """
    net = config.network
    levels = range(len(SOURCES))

    def of(convs: list[Conv]) -> list[Parameter]:
        return [p for conv in convs for p in _conv_parameters(conv, net.initialiser)]

    table = of(backbone_convs(config))
    for level in range(NORMALISED):
        channels = source_channels(config)[level]
        scale = net.l2_scales[level] if net.initialiser == "xavier" else net.initialiser
        table.append(Parameter(f"{SOURCES[level]}.l2_scale", (channels,), "decay", scale))
    inside = net.channels(net.tcb_channels)
    for level in levels:
        table += of(tcb_convs(level, config))
        if level < len(SOURCES) - 1:
            name, shape = f"tcb.{level}.upsample", (inside, inside, 2, 2)
            table.append(Parameter(f"{name}.weight", shape, "decay", net.initialiser))
            if net.conv_bias:
                table.append(Parameter(f"{name}.bias", (inside,), "bias", 0.0))
    for module in ("arm", "odm"):
        for level in levels:
            for convs in head_convs(module, level, config):
                table += of(convs)
    return table


def trained_parameters(config: Config) -> list[Parameter]:
    """The table without the running statistics."""
    return [p for p in parameter_table(config) if p.group != "statistic"]


def parameter_count(config: Config) -> int:
    """Trained numbers; running statistics are not among them."""
    return sum(int(np.prod(p.shape)) for p in trained_parameters(config))


def initial_parameters(config: Config, seed: int) -> Parameters:
    """Fresh parameters, float32; the same seed gives the same bits.

    ``xavier`` draws uniformly from -b to b, b = sqrt(3 / fan-in), where the
    fan-in is the numbers that one output adds up. ``normal`` has a deviation of 0.02
    before what lies beyond two of them is drawn again.

    Source: Caffe's "xavier" filler, after Glorot and Bengio, AISTATS 2010; the model
        zoo's ``init_params.py``, which draws the L2 scales, too.
    """
    rng = np.random.default_rng(seed)
    parameters = {}
    for p in parameter_table(config):
        if p.initialiser == "xavier":
            fan_in = p.shape[0] if ".upsample." in p.name else np.prod(p.shape[1:])
            bound = np.sqrt(3 / fan_in)
            parameters[p.name] = rng.uniform(-bound, bound, p.shape).astype(np.float32)
        elif p.initialiser == "normal":
            drawn = rng.normal(size=p.shape)
            while (far := np.abs(drawn) > 2).any():
                drawn[far] = rng.normal(size=int(far.sum()))
            parameters[p.name] = (0.02 * drawn).astype(np.float32)
        else:
            parameters[p.name] = np.full(p.shape, p.initialiser, np.float32)
    return parameters


def check_parameters(parameters: Parameters, config: Config) -> None:
    """Exactly the parameters of the table, in their shapes, finite.

    Raises:
        ContractError: lists what is missing, unknown or misshapen.
    """
    check_tensors("parameters", parameters, parameter_table(config))


def check_tensors(what: str, tensors: Parameters, table: list[Parameter]) -> None:
    """``tensors`` has exactly the names of the table, in their shapes, finite.

    Raises:
        ContractError: lists what is missing, unknown or misshapen.
    """
    shapes = {p.name: p.shape for p in table}
    faults = [f"{name} is missing" for name in shapes.keys() - tensors.keys()]
    faults += [f"{name} is unknown" for name in tensors.keys() - shapes.keys()]
    faults += [
        f"{name} has shape {np.shape(tensors[name])}, wants {shape}"
        for name, shape in shapes.items()
        if name in tensors and np.shape(tensors[name]) != shape
    ]
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ContractError(f"{what}: {'; '.join(sorted(faults)[:5])}{more}")
    check_float(**tensors)


def forward(
    parameters: Parameters, pictures: Array, config: Config, *, training: bool = False
) -> tuple[Heads, Parameters]:
    """The whole network.

    Args:
        parameters: by canonical name, see ``parameter_table``.
        pictures: (N, 3, H, W), normalised, H and W of the config; N from 1.
        training: batch normalisation uses the batch's mean and variance, not the
            running ones.
    Returns:
        The heads, and the running statistics after this batch (empty unless
        ``training``): momentum * old + (1 - momentum) * new, where the new
        variance divides by M - 1, the batch's own by M, M = N * rows * columns.
        Where M is 1, both variances are 0.
    Raises:
        ContractError: parameters that are not those of the table, or pictures of
            another shape or dtype.
    Source: batch normalisation, arXiv:1502.03167, algorithms 1 and 2.
    """
    return _run(plainly, parameters, pictures, config, training)


def forward_and_back(
    parameters: Parameters, pictures: Array, config: Config
) -> tuple[Heads, Parameters, Callable[[Heads], Parameters]]:
    """``forward`` in training, and the way back.

    Returns:
        Heads and statistics as ``forward``; and a function from the loss's gradients
        by the four heads to those by every trained parameter, in their dtype.
    """
    tape = Tape()
    heads, statistics = _run(tape, parameters, pictures, config, training=True)
    trained = {p.name: parameters[p.name] for p in trained_parameters(config)}

    def back(gradients: Heads) -> Parameters:
        return tape.back(list(zip(heads, gradients, strict=True)), trained)

    return heads, statistics, back


def _run(
    run: Callable[..., Array],
    parameters: Parameters,
    pictures: Array,
    config: Config,
    training: bool,
) -> tuple[Heads, Parameters]:
    """The network, each layer called through ``run``."""
    check_parameters(parameters, config)
    check_float(pictures=pictures, weight=parameters["backbone.conv1_1.weight"])
    check_shape(pictures, "pictures", None, 3, *config.image_size)
    if len(pictures) == 0:
        raise ContractError("pictures: want at least one")
    statistics: Parameters = {}
    net = config.network

    def apply(conv: Conv, x: Array) -> Array:
        weight = parameters[f"{conv.name}.weight"]
        if conv.depthwise:
            x = run(depthwise_conv2d, x, weight, padding=conv.padding)
        else:
            shape = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
            x = run(conv2d, x, weight, **shape)
        if not conv.batch_norm:
            return run(add_bias, x, parameters[f"{conv.name}.bias"]) if conv.bias else x
        gamma, beta, mean, variance = (
            parameters[f"{conv.name}.{part}"]
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        if training:
            old, count = (mean, variance), x.size // x.shape[1]
            mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
            keep = x.dtype.type(net.batch_norm_momentum)
            unbiased = variance * x.dtype.type(count / max(1, count - 1))
            statistics[f"{conv.name}.moving_mean"] = keep * old[0] + (1 - keep) * mean
            statistics[f"{conv.name}.moving_variance"] = keep * old[1] + (1 - keep) * unbiased
        return run(batch_normalise, x, gamma, beta, mean, variance, eps=net.batch_norm_eps)

    for_arm: list[Array] = []
    for_tcb: list[Array] = []
    x = pictures
    last_of_block = {f"backbone.conv{b}_{n}" for b, (_, n) in enumerate(VGG16_BLOCKS, start=1)}
    for conv in backbone_convs(config):
        plain = apply(conv, x)
        x = run(relu, plain)
        if conv.name in SOURCES:
            level = len(for_tcb)
            source = plain if conv.name == "backbone.fc7" and not net.fc7_relu else x
            normalised = source
            if level < NORMALISED:
                scale = parameters[f"{conv.name}.l2_scale"]
                normalised = run(l2_normalise, source, scale, eps=net.l2_eps, floor=net.l2_floor)
            for_tcb.append(normalised)
            for_arm.append(normalised if net.l2_in_arm else source)
        if conv.name in last_of_block:
            x = run(max_pool2x2, x)

    def upsampled(level: int, coarser: Array) -> Array:
        name = f"tcb.{level}.upsample"
        y = run(upsample2x2, coarser, parameters[f"{name}.weight"])
        return run(add_bias, y, parameters[f"{name}.bias"]) if net.conv_bias else y

    blocks: list[Array] = []
    for level in reversed(range(len(SOURCES))):
        lateral1, lateral2, *outputs = tcb_convs(level, config)
        x = apply(lateral2, run(relu, apply(lateral1, for_tcb[level])))
        if not blocks:
            x = run(relu, x)
        elif net.tcb == "sum_relu_conv":
            x = run(relu, run(add, x, upsampled(level, blocks[0])))
        else:
            x = run(add, x, run(relu, upsampled(level, blocks[0])))
        for conv in outputs:
            x = run(relu, apply(conv, x))
        blocks.insert(0, x)

    cell = len(config.anchors.aspect_ratios)

    def head(module: str, features: list[Array]) -> list[Array]:
        rows = []
        for output in range(2):  # offsets, logits
            levels = []
            for level, y in enumerate(features):
                *before, last = head_convs(module, level, config)[output]
                for conv in before:
                    y = run(relu6, apply(conv, y))
                levels.append(apply(last, y))
            rows.append(run(anchor_rows, *levels, per_anchor=last.outputs // cell))
        return rows

    return Heads(*head("arm", for_arm), *head("odm", blocks)), statistics
