"""The architecture: which layers the network has, with which channels, in which order.

    image -> VGG16 conv1_1 .. conv5_3 -> fc6, fc7 as convolutions -> conv6_1, conv6_2
    sources: conv4_3, conv5_3 (both L2-normalised), fc7, conv6_2; strides 8, 16, 32, 64
    image -> ResNet conv1, res2 .. res5, and one more bottleneck, res6
    sources: the last bottlenecks of res3, res4, res5, and res6; the same strides

Sources: RefineDet, arXiv:1711.06897, figure 1, section 3; VGG, arXiv:1409.1556, table 1, D;
ResNet, arXiv:1512.03385, table 1 and figure 5. The extra layers, and what the heads of a
ResNet have in front: the authors' ResNet101_COCO_320.py and model_libs.py. The model zoo's:
its vgg16_for_refinedet.py, resnet101_for_refinedet.py and multibox.py.
"""

from __future__ import annotations

from typing import NamedTuple

from refinedet.spec.config import NETWORK_STRIDES, VGG16_BLOCKS, Config, NetworkConfig


class Conv(NamedTuple):
    """A convolution and its batch normalisation or bias, without the activation."""

    name: str
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    far: int = 0
    """Additional rows and columns of zeros after the last ones."""
    batch_norm: bool = False
    momentum: float = 0.9
    """Of its running statistics."""
    gamma: float = 1.0
    """Its initial gamma."""
    bias: bool = True
    """Where there is no batch normalisation."""
    depthwise: bool = False
    """Each channel has a kernel of its own."""
    transposed: bool = False
    """Upsampling: every pixel becomes a patch of the kernel's size."""


class Bottleneck(NamedTuple):
    """Three convolutions with ReLUs between them; the input, or its projection, is added."""

    name: str
    convs: tuple[Conv, Conv, Conv]
    projection: Conv | None

    @property
    def outputs(self) -> int:
        """Channels."""
        return self.convs[-1].outputs


class Pool(NamedTuple):
    """Max pooling with stride 2."""

    kernel: int
    """2 or 3."""
    before: int = 0
    """As ``spec.layers.max_pool3x3`` takes it."""


Step = Conv | Bottleneck | Pool
"""A step of the trunk; a ReLU follows each convolution and bottleneck."""


class Head(NamedTuple):
    """One module's layers at one level."""

    shared: Bottleneck | None
    """Before both outputs; a ReLU follows."""
    offsets: list[Conv]
    """A ReLU6 follows each but the last."""
    logits: list[Conv]


LEVELS = len(NETWORK_STRIDES)
NORMALISED = 2
"""How many sources are L2-normalised, if any is: the first ones."""


def trunk(config: Config) -> list[list[Step]]:
    """The trunk in four stages; each ends in a source, finest first."""
    return _vgg16(config.network) if config.network.backbone == "vgg16" else _resnet(config.network)


def _vgg16(net: NetworkConfig) -> list[list[Step]]:
    blocks: list[list[Conv]] = []
    inputs = 3
    for block, (full, count) in enumerate(VGG16_BLOCKS, start=1):
        blocks.append([])
        for index in range(1, count + 1):
            name, outputs = f"backbone.conv{block}_{index}", net.channels(full)
            blocks[-1].append(_conv(net, name, inputs, outputs))
            inputs = outputs
    one, two, three, four, five = blocks
    wide, narrow, last = net.channels(1024), net.channels(256), net.channels(512)
    fc6 = _conv(net, "backbone.fc6", inputs, wide, padding=3, dilation=3)
    fc7 = _conv(net, "backbone.fc7", wide, wide, kernel=1, padding=0)
    conv6_1 = _conv(net, "backbone.conv6_1", wide, narrow, kernel=1, padding=0)
    conv6_2 = _conv(net, "backbone.conv6_2", narrow, last, stride=2)
    pool = Pool(2)
    return [
        [*one, pool, *two, pool, *three, pool, *four],
        [pool, *five],
        [pool, fc6, fc7],
        [conv6_1, conv6_2],
    ]


def _conv(
    net: NetworkConfig,
    name: str,
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
) -> Conv:
    """A convolution of VGG16 or of a transfer connection block."""
    return Conv(
        name,
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        batch_norm=net.batch_norm,
        momentum=net.batch_norm_momentum,
        bias=net.conv_bias,
    )


def _resnet(net: NetworkConfig) -> list[list[Step]]:
    stages: list[list[Step]] = []
    first = _strided("backbone.conv1", 3, net.channels(64), 7, 2, net)
    inputs = first.outputs
    for stage, count in enumerate(net.blocks, start=2):
        inner = net.channels(2 ** (stage + 4))
        blocks: list[Step] = []
        for index in range(1, count + 1):
            stride = 2 if stage > 2 and index == 1 else 1
            name = f"backbone.res{stage}_{index}"
            blocks.append(_bottleneck(name, inputs, inner, 4 * inner, net, stride, index == 1))
            inputs = 4 * inner
        stages.append(blocks)
    two, three, four, five = stages
    inner, outputs = net.channels(net.extra_width), net.channels(512)
    six = _bottleneck("backbone.res6_1", inputs, inner, outputs, net, 2)
    return [[first, Pool(3, int(net.pool_centred)), *two, *three], four, five, [six]]


def _strided(
    name: str,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    net: NetworkConfig,
    gamma: float = 1.0,
) -> Conv:
    """A convolution of a ResNet; with a stride of 1 the feature map keeps its size."""
    far = int(net.same_padding and stride > 1 and kernel > 1)
    return Conv(
        name,
        inputs,
        outputs,
        kernel,
        stride,
        padding=kernel // 2 - far,
        far=far,
        batch_norm=True,
        momentum=net.batch_norm_momentum,
        gamma=gamma,
    )


def _bottleneck(
    name: str,
    inputs: int,
    inner: int,
    outputs: int,
    net: NetworkConfig,
    stride: int = 1,
    projected: bool = True,
) -> Bottleneck:
    first, middle = (stride, 1) if net.bottleneck_stride == "1x1" else (1, stride)
    convs = (
        _strided(f"{name}.conv1", inputs, inner, 1, first, net),
        _strided(f"{name}.conv2", inner, inner, 3, middle, net),
        _strided(f"{name}.conv3", inner, outputs, 1, 1, net, net.residual_gamma),
    )
    projection = _strided(f"{name}.projection", inputs, outputs, 1, stride, net)
    return Bottleneck(name, convs, projection if projected else None)


def convs_of(step: Step | None) -> list[Conv]:
    """The convolutions of a step, in order; of a bottleneck, the projection comes last."""
    if isinstance(step, Bottleneck):
        return [*step.convs, *([step.projection] if step.projection else [])]
    return [step] if isinstance(step, Conv) else []


def backbone_convs(config: Config) -> list[Conv]:
    """The trunk's convolutions, in order."""
    return [conv for stage in trunk(config) for step in stage for conv in convs_of(step)]


def sources(config: Config) -> list[Conv | Bottleneck]:
    """The layers whose activations the ARM and the TCBs read, finest first."""
    return [stage[-1] for stage in trunk(config) if not isinstance(stage[-1], Pool)]


def normalised_sources(config: Config) -> list[str]:
    """Names of the sources that are L2-normalised: the first ones."""
    names = [source.name for source in sources(config)]
    return names[:NORMALISED] if config.network.l2_scales else []


def sources_before_relu(config: Config) -> list[str]:
    """Names of the sources that are taken before their ReLU; the next layer reads them after."""
    return [] if config.network.fc7_relu else ["backbone.fc7"]


def tcb_convs(level: int, config: Config) -> list[Conv]:
    """The convolutions of a transfer connection block: two before the sum, the rest after."""
    net = config.network
    inside, source = net.channels(net.tcb_channels), sources(config)[level].outputs
    names = ["lateral2", "output"]
    if net.tcb == "relu_sum_conv_conv" and level < LEVELS - 1:
        names.append("output2")
    return [
        _conv(net, f"tcb.{level}.lateral1", source, inside),
        *(_conv(net, f"tcb.{level}.{name}", inside, inside) for name in names),
    ]


def upsampling(level: int, config: Config) -> Conv:
    """The upsampling of the next coarser block to this one's size; the coarsest has none."""
    net = config.network
    inside = net.channels(net.tcb_channels)
    return Conv(
        f"tcb.{level}.upsample",
        inside,
        inside,
        kernel=2,
        stride=2,
        padding=0,
        batch_norm=net.upsample_batch_norm,
        momentum=net.batch_norm_momentum,
        bias=net.conv_bias,
        transposed=True,
    )


def head(module: str, level: int, config: Config) -> Head:
    """The layers of one module (``arm`` or ``odm``) at one level."""
    net = config.network
    if module == "arm":
        inputs, classes = sources(config)[level].outputs, 2
    else:
        inputs, classes = net.channels(net.tcb_channels), config.num_classes
    cell = len(config.anchors.aspect_ratios)
    shared = None
    if net.heads == "bottleneck":
        inner, outputs = net.channels(256), net.channels(1024)
        shared = _bottleneck(f"{module}.{level}.shared", inputs, inner, outputs, net)
        inputs = outputs
    momentum = net.batch_norm_momentum if net.head_momentum is None else net.head_momentum

    def convs(output: str, outputs: int) -> list[Conv]:
        name = f"{module}.{level}.{output}"
        if net.heads != "separable":
            return [Conv(name, inputs, outputs)]
        alone = Conv(
            f"{name}.depthwise",
            inputs,
            inputs,
            batch_norm=True,
            momentum=momentum,
            depthwise=True,
        )
        return [alone, Conv(name, inputs, outputs, kernel=1, padding=0)]

    return Head(shared, convs("offsets", cell * 4), convs("logits", cell * classes))
