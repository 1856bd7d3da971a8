"""Configuration: every number that decides what the detector computes.

Frozen dataclasses, checked on construction: every ``Config`` object can run. Each field is
in its range and is read (see ``spec.unread``), and feature maps, strides and anchors agree.
Two detectors differ only by fields, never by the preset's name.

Sizes are (height, width), in pixels. Class 0 is the background.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from refinedet.spec.errors import SpecError
from refinedet.spec.unread import refuse_unread, without_unread

VGG16_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of 3x3 convolutions of each block: VGG, arXiv:1409.1556, table 1, D."""


def require(condition: bool, section: object, name: str, expected: str) -> None:
    """Raise a ``SpecError`` that names the field unless ``condition`` holds."""
    if not condition:
        place = _place(section)
        value = getattr(section, name)
        dotted = name if place == "" else f"{place}.{name}"
        raise SpecError(f"expected {expected}, got {value!r}", key=dotted)


def require_read(section: object) -> None:
    """Raise a ``SpecError`` that names a field which the section's others leave unread."""
    refuse_unread(section, _place(section))


def _place(section: object) -> str:
    return type(section).__name__.removesuffix("Config").lower()


def _is_whole(value: object, lowest: int = 1, highest: int = 10**9) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def is_number(value: object, low: float, high: float = float("inf")) -> bool:
    """A finite int or float from ``low`` to ``high``."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and low <= value <= high
        and abs(value) < float("inf")
    )


def _are_numbers(values: object, low: float, length: int | None = None) -> bool:
    return (
        isinstance(values, tuple)
        and (len(values) == length if length else len(values) > 0)
        and all(is_number(v, low) for v in values)
    )


@dataclass(frozen=True)
class ImageConfig:
    """How an image is converted to the network's input.

    Attributes:
        channels: order of the three channels, ``RGB`` or ``BGR``.
        mean: subtracted from each channel, in that order, 0 to 255.
        std: divides each channel afterwards.
    """

    channels: str = "BGR"
    mean: tuple[float, ...] = (104.0, 117.0, 123.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        require(self.channels in ("RGB", "BGR"), self, "channels", "'RGB' or 'BGR'")
        require(_are_numbers(self.mean, 0, 3), self, "mean", "three numbers from 0")
        require(_are_numbers(self.std, 1e-6, 3), self, "std", "three numbers above 0")


NETWORK_CHOICES = {
    "backbone": ("vgg16", "resnet"),
    "bottleneck_stride": ("1x1", "3x3"),
    "tcb": ("sum_relu_conv", "relu_sum_conv_conv"),
    "heads": ("conv", "separable", "bottleneck"),
    "initialiser": ("xavier", "gaussian", "normal"),
}


NETWORK_SWITCHES = (
    "same_padding",
    "pool_centred",
    "batch_norm",
    "upsample_batch_norm",
    "l2_floor",
    "l2_in_arm",
    "conv_bias",
    "fc7_relu",
)


@dataclass(frozen=True)
class NetworkConfig:
    """The architecture of the network.

    Attributes:
        backbone: ``vgg16``, with fc6 and fc7 as convolutions and two extra layers;
            ``resnet``, of bottlenecks, with an extra one.
        width: multiplies every channel count except those of the heads' outputs.
        blocks: ResNet only: number of bottlenecks in res2 to res5.
        bottleneck_stride: ResNet only: which convolution of a bottleneck has the stride.
        same_padding: ResNet only: TensorFlow's "same": a strided convolution has one row and
            column of zeros less before the first, and one more after the last.
        pool_centred: ResNet only: the windows of the 3x3 pooling are centred on the even rows
            and columns, as in torchvision; without, on the odd ones, as in Caffe.
        extra_width: ResNet only: channels inside the extra bottleneck, before ``width``.
        residual_gamma: bottlenecks only: initial gamma of the last batch normalisation.
        batch_norm: batch normalisation instead of a bias after every convolution
            but the heads' and the upsampling ones; training from scratch needs it. A
            bottleneck always has it.
        batch_norm_eps: added to the variance.
        batch_norm_momentum: weight of the old running statistic in the new one.
        head_momentum: that weight inside separable heads; None is ``batch_norm_momentum``.
        upsample_batch_norm: batch normalisation after the upsampling convolutions, too.
        tcb_channels: channels of a transfer connection block, before ``width``.
        l2_scales: initial scale of the L2 normalisation of the first two sources; None: no
            L2 normalisation. With the initialiser ``normal`` the scales are drawn.
        l2_eps: added to the sum of squares, under the root.
        l2_floor: the sum of squares is at least ``l2_eps``, instead of having it added.
        l2_in_arm: the ARM reads the normalised sources; the TCBs always do.
        conv_bias: convolutions without batch normalisation have a bias; those of the
            heads always do.
        fc7_relu: the source fc7 is taken after its ReLU; what follows always is.
        tcb: ``sum_relu_conv``: after the sum a ReLU, a convolution and a ReLU;
            ``relu_sum_conv_conv``: a ReLU of the upsampled block, the sum, then twice a
            convolution and a ReLU.
        heads: ``conv``: a 3x3 convolution; ``separable``: a depthwise 3x3 convolution, batch
            normalisation, ReLU6, a 1x1 convolution; ``bottleneck``: one bottleneck for both
            outputs of a module's level, then a 3x3 convolution for each output.
        initialiser: ``xavier``; ``gaussian``: standard deviation 0.01 before batch
            normalisation, elsewhere xavier; ``normal``: standard deviation 0.02, truncated
            at two of them.
    """

    backbone: str = "vgg16"
    width: float = 1.0
    blocks: tuple[int, ...] = (3, 4, 23, 3)
    bottleneck_stride: str = "1x1"
    same_padding: bool = False
    pool_centred: bool = False
    extra_width: int = 128
    residual_gamma: float = 1.0
    batch_norm: bool = False
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.9
    head_momentum: float | None = None
    upsample_batch_norm: bool = False
    tcb_channels: int = 256
    l2_scales: tuple[float, ...] | None = (10.0, 8.0)
    l2_eps: float = 1e-10
    l2_floor: bool = False
    l2_in_arm: bool = True
    conv_bias: bool = True
    fc7_relu: bool = True
    tcb: str = "sum_relu_conv"
    heads: str = "conv"
    initialiser: str = "xavier"

    def __post_init__(self) -> None:
        for name in NETWORK_SWITCHES:
            require(isinstance(getattr(self, name), bool), self, name, "true or false")
        for name, choices in NETWORK_CHOICES.items():
            require(getattr(self, name) in choices, self, name, " or ".join(map(repr, choices)))
        require(is_number(self.batch_norm_eps, 1e-12, 1), self, "batch_norm_eps", "1e-12 to 1")
        require(is_number(self.batch_norm_momentum, 0, 1), self, "batch_norm_momentum", "0 to 1")
        require(
            self.head_momentum is None or is_number(self.head_momentum, 0, 1),
            self,
            "head_momentum",
            "0 to 1, or null",
        )
        require(
            isinstance(self.blocks, tuple)
            and len(self.blocks) == 4
            and all(_is_whole(count, 1, 100) for count in self.blocks),
            self,
            "blocks",
            "four whole numbers from 1 to 100",
        )
        for name in ("tcb_channels", "extra_width"):
            require(_is_whole(getattr(self, name)), self, name, "a whole number from 1")
        require(is_number(self.residual_gamma, 0), self, "residual_gamma", "a number from 0")
        require(
            self.l2_scales is None or _are_numbers(self.l2_scales, 0, 2),
            self,
            "l2_scales",
            "two numbers from 0, or null",
        )
        require(is_number(self.l2_eps, 1e-30, 1), self, "l2_eps", "1e-30 to 1")
        require_read(self)
        least = (VGG16_BLOCKS[0][0], self.tcb_channels, self.extra_width)
        require(
            is_number(self.width, 1 / 64, 4) and all(c * self.width % 1 == 0 for c in least),
            self,
            "width",
            "1/64 to 4, with whole channel counts",
        )

    def channels(self, full: int) -> int:
        """Channels of a layer that has ``full`` at width 1."""
        return int(full * self.width)


@dataclass(frozen=True)
class AnchorsConfig:
    """The anchors, level by level, finest first.

    Attributes:
        strides: pixels from one cell of a feature map to the next.
        sides: side of the square anchor in pixels; the paper's is 4 strides.
        aspect_ratios: width over height, one anchor a cell for each.
        variances: divisors of the centre offsets and of the log size ratios.
        square_sides: sides of the anchors of ratio 1; None: those of ``sides``.
        refined: the ODM codes boxes against the anchors that the ARM has refined: the paper's
            two-step cascade. Without, both modules code against the anchors, and the ARM's
            offsets are not used.
    """

    strides: tuple[int, ...] = (8, 16, 32, 64)
    sides: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0)
    aspect_ratios: tuple[float, ...] = (1.0, 2.0, 0.5)
    variances: tuple[float, ...] = (0.1, 0.2)
    square_sides: tuple[float, ...] | None = None
    refined: bool = True

    def __post_init__(self) -> None:
        require(
            isinstance(self.strides, tuple)
            and len(self.strides) > 0
            and all(_is_whole(s) for s in self.strides),
            self,
            "strides",
            "whole numbers from 1",
        )
        require(
            _are_numbers(self.sides, 1, len(self.strides)),
            self,
            "sides",
            f"{len(self.strides)} numbers from 1, one for each stride",
        )
        require(
            self.square_sides is None or _are_numbers(self.square_sides, 1, len(self.strides)),
            self,
            "square_sides",
            f"{len(self.strides)} numbers from 1, one for each stride, or null",
        )
        require(isinstance(self.refined, bool), self, "refined", "true or false")
        require(_are_numbers(self.aspect_ratios, 1e-3), self, "aspect_ratios", "numbers above 0")
        require(_are_numbers(self.variances, 1e-6, 2), self, "variances", "two numbers above 0")
        require_read(self)


@dataclass(frozen=True)
class MatchingConfig:
    """Which anchors are assigned to which objects.

    Attributes:
        iou: an anchor with at least this overlap is assigned to its best object.
        lowest_iou: an overlap of at most this counts as none, even for an object's best anchor.
        rule: ``bipartite`` or ``in_order``; see ``spec.matching``.
    """

    iou: float = 0.5
    lowest_iou: float = 1e-6
    rule: str = "bipartite"

    def __post_init__(self) -> None:
        require(is_number(self.iou, 1e-6, 1), self, "iou", "1e-6 to 1")
        choices = "'bipartite' or 'in_order'"
        require(self.rule in ("bipartite", "in_order"), self, "rule", choices)
        require(is_number(self.lowest_iou, 0, self.iou), self, "lowest_iou", "0 to matching.iou")


@dataclass(frozen=True)
class LossConfig:
    """The losses.

    Attributes:
        negatives_per_positive: hard negatives kept in an image for each positive.
        objectness: an anchor whose ARM probability of "object" is below this is neither a
            negative of the ODM nor a detection. The paper's theta is 0.99, of "background".
        classes: ``softmax``: one class for each anchor, cross entropy, hard negatives;
            ``sigmoid``: each class independently, focal loss over all anchors. Decides the
            scores of detections, too.
        focal_alpha, focal_gamma: ``sigmoid`` only: the focal loss's weight of the label's
            class, and its focusing parameter.
        arm_first_class: ``sigmoid`` only: the ARM's label of an object is its class. Its two
            outputs know class 1; objects of other classes are neither object nor background.
    """

    negatives_per_positive: float = 3.0
    objectness: float = 0.01
    classes: str = "softmax"
    focal_alpha: float = 0.75
    focal_gamma: float = 2.0
    arm_first_class: bool = False

    def __post_init__(self) -> None:
        require(
            is_number(self.negatives_per_positive, 0),
            self,
            "negatives_per_positive",
            "a number from 0",
        )
        require(is_number(self.objectness, 0, 1), self, "objectness", "0 to 1")
        choices = "'softmax' or 'sigmoid'"
        require(self.classes in ("softmax", "sigmoid"), self, "classes", choices)
        require(is_number(self.focal_alpha, 0, 1), self, "focal_alpha", "0 to 1")
        require(is_number(self.focal_gamma, 0, 10), self, "focal_gamma", "0 to 10")
        require(isinstance(self.arm_first_class, bool), self, "arm_first_class", "true or false")
        require_read(self)


@dataclass(frozen=True)
class DetectionConfig:
    """From scored boxes to detections. ``None`` means no limit.

    Attributes:
        score: only scores above this count.
        top_before_nms: best candidates of an image, over all classes.
        top_before_nms_per_class: best candidates of a class.
        nms_iou: a box that overlaps a better one of its class by more is dropped.
        top_per_class, top: detections kept for each class, for each image.
        clip: clip the boxes of detections to the image.
        clip_first: clip all boxes to the image before anything else.
        pixel: added to the sides of boxes, in pixels of the original image, when overlaps
            are measured; 1 in systems that count pixels.
    """

    score: float = 0.01
    top_before_nms: int | None = 400
    top_before_nms_per_class: int | None = None
    nms_iou: float = 0.45
    top_per_class: int | None = None
    top: int | None = 200
    clip: bool = True
    clip_first: bool = False
    pixel: float = 0.0

    def __post_init__(self) -> None:
        require(is_number(self.score, 0, 1), self, "score", "0 to 1")
        require(is_number(self.nms_iou, 0, 1), self, "nms_iou", "0 to 1")
        require(isinstance(self.clip, bool), self, "clip", "true or false")
        require(isinstance(self.clip_first, bool), self, "clip_first", "true or false")
        require(is_number(self.pixel, 0, 1), self, "pixel", "0 to 1")
        for name in ("top_before_nms", "top_before_nms_per_class", "top_per_class", "top"):
            value = getattr(self, name)
            require(value is None or _is_whole(value), self, name, "a whole number from 1, or null")
        require_read(self)


PRECISIONS = ("float32", "float16")
"""The dtypes in which a training may hold its activations."""
HALF_SCALE = 1024.0
"""The default loss scale of float16: the model zoo's."""
SCALES = 1.0, 2.0**24
"""The lowest and the highest dynamic loss scale."""


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with momentum; parameters are grouped as in the authors' release.

    Attributes:
        momentum: weight of the old momentum buffer.
        weight_decay: times the parameter, added to the gradient of decayed parameters.
        bias_rate: multiplies the learning rate of biases.
        clip_norm: largest L2 norm of the whole gradient, or None.
        loss_scale: multiplies the loss and divides the gradient, so that float16 does not
            underflow; None is 1 in float32 and 1024 in float16. See ``scale``.
        decay_all: decay every trained parameter, not only those of the group "decay".
        precision: ``float32``, or ``float16``: in training, activations are held in float16
            and convolved with weights rounded to it; parameters, batch normalisation, L2
            normalisation, coding, losses and update stay in float32. Detection is always in
            float32.
        loss_scale_window: float16 only: steps without overflow after which the loss scale is
            doubled (see ``refinedet.spec.optimizer.next_loss_scale``); None: a static scale.
    """

    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_rate: float = 2.0
    clip_norm: float | None = None
    loss_scale: float | None = None
    decay_all: bool = False
    precision: str = "float32"
    loss_scale_window: int | None = None

    def __post_init__(self) -> None:
        require(is_number(self.momentum, 0, 1), self, "momentum", "0 to 1")
        require(is_number(self.weight_decay, 0, 1), self, "weight_decay", "0 to 1")
        require(isinstance(self.decay_all, bool), self, "decay_all", "true or false")
        require(is_number(self.bias_rate, 0, 100), self, "bias_rate", "0 to 100")
        require(
            self.clip_norm is None or is_number(self.clip_norm, 1e-6),
            self,
            "clip_norm",
            "a number above 0, or null",
        )
        require(self.precision in PRECISIONS, self, "precision", "'float32' or 'float16'")
        require(
            self.loss_scale is None or is_number(self.loss_scale, 1e-6),
            self,
            "loss_scale",
            "a number above 0, or null",
        )
        window = self.loss_scale_window
        require(
            window is None or _is_whole(window),
            self,
            "loss_scale_window",
            "a whole number from 1, or null",
        )
        require_read(self)
        require(
            window is None or is_number(self.scale, *SCALES),
            self,
            "loss_scale",
            "1 to 2**24 with an optimizer.loss_scale_window",
        )

    @property
    def scale(self) -> float:
        """The loss scale of the first step."""
        if self.loss_scale is not None:
            return self.loss_scale
        return HALF_SCALE if self.precision == "float16" else 1.0


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the steps of a training.

    Attributes:
        kind: ``multistep`` or ``cosine``.
        steps: steps of the whole training.
        rate: the highest learning rate, reached after the warm-up.
        warmup_steps, warmup_rate: the rate rises linearly from ``warmup_rate`` to ``rate``.
        milestones, factor: multistep only: from each milestone on, the rate is multiplied by
            ``factor``. Milestones are after the warm-up, and may be after the last step.
        final_rate: cosine only: the rate towards which it falls.
    """

    kind: str = "multistep"
    steps: int = 120_000
    rate: float = 1e-3
    warmup_steps: int = 0
    warmup_rate: float = 0.0
    milestones: tuple[int, ...] = (80_000, 100_000)
    factor: float = 0.1
    final_rate: float = 0.0

    def __post_init__(self) -> None:
        require(self.kind in ("multistep", "cosine"), self, "kind", "'multistep' or 'cosine'")
        require(_is_whole(self.steps, 1, 10**7), self, "steps", "a whole number from 1 to 10**7")
        require(is_number(self.rate, 0, 1000), self, "rate", "0 to 1000")
        require(
            _is_whole(self.warmup_steps, 0) and self.warmup_steps <= self.steps,
            self,
            "warmup_steps",
            "a whole number from 0 to schedule.steps",
        )
        require(is_number(self.warmup_rate, 0, 1000), self, "warmup_rate", "0 to 1000")
        ascending = (
            isinstance(self.milestones, tuple)
            and all(_is_whole(m) for m in self.milestones)
            and list(self.milestones) == sorted(set(self.milestones))
        )
        require(
            ascending
            and (self.kind == "cosine" or all(m > self.warmup_steps for m in self.milestones)),
            self,
            "milestones",
            "whole numbers above schedule.warmup_steps, rising",
        )
        require(is_number(self.factor, 0, 1), self, "factor", "0 to 1")
        require(is_number(self.final_rate, 0, self.rate), self, "final_rate", "0 to schedule.rate")
        require_read(self)


@dataclass(frozen=True)
class Config:
    """One detector, completely.

    Attributes:
        image_size: height and width of the network's input, in pixels.
        num_classes: classes including the background.
    """

    image_size: tuple[int, int] = (320, 320)
    num_classes: int = 81
    image: ImageConfig = field(default_factory=ImageConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    anchors: AnchorsConfig = field(default_factory=AnchorsConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            if isinstance(section.default_factory, type):
                kind = section.default_factory
                expected = f"a {kind.__name__}"
                require(isinstance(getattr(self, section.name), kind), self, section.name, expected)
        require(
            isinstance(self.image_size, tuple)
            and len(self.image_size) == 2
            and all(_is_whole(n, 1, 8192) for n in self.image_size),
            self,
            "image_size",
            "height and width, whole numbers from 1 to 8192",
        )
        require(
            _is_whole(self.num_classes, 2, 10**5),
            self,
            "num_classes",
            "a whole number from 2 to 10**5",
        )
        coarsest = NETWORK_STRIDES[-1]
        require(
            all(n % coarsest == 0 for n in self.image_size),
            self,
            "image_size",
            f"multiples of {coarsest}, the coarsest stride",
        )
        require(
            self.anchors.strides == NETWORK_STRIDES,
            self.anchors,
            "strides",
            f"{NETWORK_STRIDES}, the strides of the network's feature maps",
        )


NETWORK_STRIDES = (8, 16, 32, 64)
"""Strides of the four sources: after three, four, five and six halvings."""


def feature_sizes(config: Config) -> tuple[tuple[int, int], ...]:
    """Rows and columns of each detection level, finest first."""
    height, width = config.image_size
    return tuple((height // s, width // s) for s in NETWORK_STRIDES)


def replace(config: Config, **changes: Any) -> Config:
    """A copy with some fields changed, and checked again.

    A section's fields are changed by a mapping: ``replace(c, network={"width": 0.25})``. Fields
    of such a section that are then not read, and that the mapping does not name, return to
    their defaults.

    Raises:
        SpecError: no such field (lists those there are), a value out of range, or a named
            field that is not read.
    """
    _require_fields(config, changes)
    merged = {}
    for name, value in changes.items():
        section = getattr(config, name)
        if isinstance(value, dict) and dataclasses.is_dataclass(section):
            _require_fields(section, value, f"{name}.")
            kind: Any = type(section)
            value = kind(**without_unread(kind, vars(section) | value, value))
        merged[name] = value
    return dataclasses.replace(config, **merged)


def _require_fields(section: Any, names: Iterable[str], place: str = "") -> None:
    known = [f.name for f in dataclasses.fields(section)]
    for name in names:
        if name not in known:
            raise SpecError(f"no such field; there are {', '.join(known)}", key=f"{place}{name}")
