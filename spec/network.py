"""The network: a trunk, transfer connection blocks, two detection heads.

The anchor refinement module (ARM) reads the trunk's four sources, feature maps of strides 8
to 64. Each source also passes a transfer connection block (TCB), which adds the output of the
next coarser block, upsampled. The object detection module (ODM) reads the blocks' outputs. At
every level each module has layers for offsets and layers for classes. All layers are listed
in ``spec.architecture``.

Arrays are batch, channel, row, column; all is computed in the dtype of the parameters
and images (see ``spec.layers``).

Sources: RefineDet, arXiv:1711.06897, figure 1, figure 2, section 3; layer details
(2x2 upsampling, ReLU after the sum, L2 scales 10 and 8) from the authors' release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from refinedet.spec.architecture import (
    LEVELS,
    Bottleneck,
    Conv,
    Pool,
    backbone_convs,
    convs_of,
    head,
    normalised_sources,
    sources,
    sources_before_relu,
    tcb_convs,
    trunk,
    upsampling,
)
from refinedet.spec.config import Config
from refinedet.spec.errors import SpecError, check_float, check_shape
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
    max_pool3x3,
    relu,
    relu6,
    upsample2x2,
    without_tape,
)
from refinedet.spec.types import Array

Parameters = dict[str, Array]


class Parameter(NamedTuple):
    """A row of the table of parameters.

    ``group`` is ``decay``, ``no_decay``, ``bias`` (no decay, own learning rate) or
    ``statistic`` (a running mean or variance, not trained). ``initialiser`` is
    ``xavier``, ``gaussian``, ``normal``, or a number for a constant.
    """

    name: str
    shape: tuple[int, ...]
    group: str
    initialiser: str | float


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


def _conv_parameters(conv: Conv, initialiser: str) -> Iterator[Parameter]:
    sides = (conv.outputs, 1 if conv.depthwise else conv.inputs)
    shape = (*(sides[::-1] if conv.transposed else sides), conv.kernel, conv.kernel)
    if initialiser == "gaussian" and not conv.batch_norm:
        initialiser = "xavier"
    yield Parameter(f"{conv.name}.weight", shape, "decay", initialiser)
    if conv.batch_norm:
        yield Parameter(f"{conv.name}.gamma", (conv.outputs,), "no_decay", conv.gamma)
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

    def of(convs: list[Conv]) -> list[Parameter]:
        return [p for conv in convs for p in _conv_parameters(conv, net.initialiser)]

    table = of(backbone_convs(config))
    for source, scale in zip(sources(config), net.l2_scales or (), strict=False):
        initialiser = "normal" if net.initialiser == "normal" else scale
        table.append(Parameter(f"{source.name}.l2_scale", (source.outputs,), "decay", initialiser))
    for level in range(LEVELS):
        table += of(tcb_convs(level, config))
        if level < LEVELS - 1:
            table += of([upsampling(level, config)])
    for module in ("arm", "odm"):
        for level in range(LEVELS):
            layers = head(module, level, config)
            table += of([*convs_of(layers.shared), *layers.offsets, *layers.logits])
    return table


def trained_parameters(config: Config) -> list[Parameter]:
    """The table without the running statistics."""
    return [p for p in parameter_table(config) if p.group != "statistic"]


def parameter_count(config: Config) -> int:
    """How many numbers are trained; running statistics are not counted."""
    return sum(int(np.prod(p.shape)) for p in trained_parameters(config))


def initial_parameters(config: Config, seed: int) -> Parameters:
    """Fresh parameters, float32; the same seed gives the same bits.

    ``xavier`` draws uniformly from -b to b, b = sqrt(3 / fan-in), where the
    fan-in is the numbers that one output adds up. ``gaussian`` has a deviation of 0.01,
    ``normal`` of 0.02 before what lies beyond two of them is drawn again.

    Source: Caffe's "xavier" filler, after Glorot and Bengio, AISTATS 2010; "gaussian" of
        the authors' convolutions before batch normalisation; "normal" of the model
        zoo's ``init_params.py``, which draws the L2 scales, too.
    """
    rng = np.random.default_rng(seed)
    parameters = {}
    for p in parameter_table(config):
        if p.initialiser == "xavier":
            fan_in = p.shape[0] if ".upsample." in p.name else np.prod(p.shape[1:])
            bound = np.sqrt(3 / fan_in)
            parameters[p.name] = rng.uniform(-bound, bound, p.shape).astype(np.float32)
        elif p.initialiser == "gaussian":
            parameters[p.name] = (0.01 * rng.normal(size=p.shape)).astype(np.float32)
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
        SpecError: lists what is missing, unknown or misshapen.
    """
    check_tensors("parameters", parameters, parameter_table(config))


def check_tensors(what: str, tensors: Parameters, table: list[Parameter]) -> None:
    """``tensors`` has exactly the names of the table, in their shapes, finite.

    Raises:
        SpecError: lists what is missing, unknown or misshapen.
    """
    shapes = {p.name: p.shape for p in table}
    faults = [f"{name} is missing" for name in shapes.keys() - tensors.keys()]
    faults += [f"{name} is unknown" for name in tensors.keys() - shapes.keys()]
    faults += [
        f"{name} has shape {np.shape(tensors[name])}, expected {shape}"
        for name, shape in shapes.items()
        if name in tensors and np.shape(tensors[name]) != shape
    ]
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise SpecError(f"{'; '.join(sorted(faults)[:5])}{more}", key=what)
    check_float(**tensors)


def forward(
    parameters: Parameters, images: Array, config: Config, *, training: bool = False
) -> tuple[Heads, Parameters]:
    """The whole network.

    Args:
        parameters: by canonical name, see ``parameter_table``.
        images: (N, 3, H, W), normalised, H and W of the config; N from 1.
        training: batch normalisation uses the batch's mean and variance, not the
            running ones.
    Returns:
        The heads, and the running statistics after this batch (empty unless
        ``training``): momentum * old + (1 - momentum) * new, where the new
        variance divides by M - 1, the batch's own by M, M = N * rows * columns.
        Where M is 1, both variances are 0.
    Raises:
        SpecError: parameters that are not those of the table, or images of
            another shape or dtype.
    Source: batch normalisation, arXiv:1502.03167, algorithms 1 and 2.
    """
    _check_inputs(parameters, images, config)
    network = _Network(without_tape, parameters, config, training)
    return network.heads(images), network.statistics


def forward_and_backward(
    parameters: Parameters, images: Array, config: Config
) -> tuple[Heads, Parameters, Callable[[Heads], Parameters]]:
    """``forward`` in training, and its backward pass.

    Returns:
        Heads and statistics as ``forward``; and a function from the gradients of the loss
        with respect to the four heads to those with respect to every trained parameter, in
        the parameters' dtype.
    """
    _check_inputs(parameters, images, config)
    tape = Tape()
    network = _Network(tape, parameters, config, training=True)
    heads = network.heads(images)
    trained = {p.name: parameters[p.name] for p in trained_parameters(config)}

    def backward(gradients: Heads) -> Parameters:
        return tape.backward(list(zip(heads, gradients, strict=True)), trained)

    return heads, network.statistics, backward


def _check_inputs(parameters: Parameters, images: Array, config: Config) -> None:
    check_parameters(parameters, config)
    first = backbone_convs(config)[0].name
    check_float(images=images, weight=parameters[f"{first}.weight"])
    check_shape(images, "images", None, 3, *config.image_size)
    if len(images) == 0:
        raise SpecError("expected at least one, got none", key="images")


class _Network:
    """The network's parts, from its outputs down to a single convolution.

    Every layer is called through ``run``: plainly, or by a ``Tape`` that remembers it for
    the backward pass. In training, ``statistics`` receives the new running statistics.
    """

    def __init__(
        self, run: Callable[..., Array], parameters: Parameters, config: Config, training: bool
    ) -> None:
        self.run = run
        self.parameters = parameters
        self.config = config
        self.training = training
        self.statistics: Parameters = {}

    def heads(self, images: Array) -> Heads:
        """The raw outputs: sources, transfer connection blocks, then both modules."""
        for_arm, for_tcb = self.sources(images)
        blocks = self.transfer_connection_blocks(for_tcb)
        return Heads(*self.module("arm", for_arm), *self.module("odm", blocks))

    def sources(self, images: Array) -> tuple[list[Array], list[Array]]:
        """The trunk's feature maps for the ARM and for the TCBs, finest first."""
        run, config, net = self.run, self.config, self.config.network
        to_normalise, before_relu = normalised_sources(config), sources_before_relu(config)
        for_arm: list[Array] = []
        for_tcb: list[Array] = []
        x = images
        for stage, source in zip(trunk(config), sources(config), strict=True):
            for step in stage:
                if isinstance(step, Pool):
                    x = self.pool(step, x)
                    continue
                plain = self.conv(step, x) if isinstance(step, Conv) else self.bottleneck(step, x)
                x = run(relu, plain)
            feature = plain if source.name in before_relu else x
            normalised = feature
            if source.name in to_normalise:
                scale = self.parameters[f"{source.name}.l2_scale"]
                normalised = run(l2_normalise, feature, scale, eps=net.l2_eps, floor=net.l2_floor)
            for_tcb.append(normalised)
            for_arm.append(normalised if net.l2_in_arm else feature)
        return for_arm, for_tcb

    def transfer_connection_blocks(self, features: list[Array]) -> list[Array]:
        """The outputs of all TCBs, finest first; each adds the next coarser one, upsampled."""
        run, conv, config = self.run, self.conv, self.config
        blocks: list[Array] = []
        for level in reversed(range(LEVELS)):
            lateral1, lateral2, *outputs = tcb_convs(level, config)
            x = conv(lateral2, run(relu, conv(lateral1, features[level])))
            if not blocks:
                x = run(relu, x)
            elif config.network.tcb == "sum_relu_conv":
                x = run(relu, run(add, x, conv(upsampling(level, config), blocks[0])))
            else:
                x = run(add, x, run(relu, conv(upsampling(level, config), blocks[0])))
            for output in outputs:
                x = run(relu, conv(output, x))
            blocks.insert(0, x)
        return blocks

    def module(self, name: str, features: list[Array]) -> tuple[Array, Array]:
        """Offsets and logits of one module, ``arm`` or ``odm``: (N, A, 4) and (N, A, K)."""
        run = self.run
        offsets: list[Array] = []
        logits: list[Array] = []
        for level, feature in enumerate(features):
            layers = head(name, level, self.config)
            if layers.shared:
                feature = run(relu, self.bottleneck(layers.shared, feature))
            for convs, outputs in ((layers.offsets, offsets), (layers.logits, logits)):
                *before, last = convs
                y = feature
                for conv in before:
                    y = run(relu6, self.conv(conv, y))
                outputs.append(self.conv(last, y))
        classes = last.outputs // len(self.config.anchors.aspect_ratios)
        rows = run(anchor_rows, *offsets, per_anchor=4)
        return rows, run(anchor_rows, *logits, per_anchor=classes)

    def bottleneck(self, block: Bottleneck, x: Array) -> Array:
        """Three convolutions and the shortcut, without the last ReLU."""
        run, conv = self.run, self.conv
        first, middle, last = block.convs
        y = run(relu, conv(middle, run(relu, conv(first, x))))
        return run(add, conv(last, y), conv(block.projection, x) if block.projection else x)

    def pool(self, step: Pool, x: Array) -> Array:
        """Max pooling with stride 2."""
        if step.kernel == 2:
            return self.run(max_pool2x2, x)
        return self.run(max_pool3x3, x, before=step.before)

    def conv(self, conv: Conv, x: Array) -> Array:
        """A convolution, then its batch normalisation or its bias, without the ReLU."""
        run, weight = self.run, self.parameters[f"{conv.name}.weight"]
        if conv.transposed:
            x = run(upsample2x2, x, weight)
        elif conv.depthwise:
            x = run(depthwise_conv2d, x, weight, padding=conv.padding)
        else:
            shape = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
            x = run(conv2d, x, weight, **shape, far=conv.far)
        if conv.batch_norm:
            return self.batch_norm(conv, x)
        return run(add_bias, x, self.parameters[f"{conv.name}.bias"]) if conv.bias else x

    def batch_norm(self, conv: Conv, x: Array) -> Array:
        """Batch normalisation; in training by the batch, whose statistics are recorded."""
        gamma, beta, mean, variance = (
            self.parameters[f"{conv.name}.{part}"]
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        if self.training:
            old, count = (mean, variance), x.size // x.shape[1]
            mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
            keep = x.dtype.type(conv.momentum)
            unbiased = variance * x.dtype.type(count / max(1, count - 1))
            self.statistics |= {
                f"{conv.name}.moving_mean": keep * old[0] + (1 - keep) * mean,
                f"{conv.name}.moving_variance": keep * old[1] + (1 - keep) * unbiased,
            }
        eps = self.config.network.batch_norm_eps
        return self.run(batch_normalise, x, gamma, beta, mean, variance, eps=eps)
