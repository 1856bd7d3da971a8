"""Names of tensors: those of other programs, and the canonical ones of ``spec.network``.

Sources: sfzhang15/RefineDet, examples/refinedet/VGG16_*.py and python/caffe/model_libs.py;
luuuyi/RefineDet.PyTorch, models/refinedet.py and data/voc0712.py; torchvision,
models/vgg.py and its weights' transforms; the MindSpore model zoo, research/cv/RefineDet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from refinedet.spec.architecture import NORMALISED, sources
from refinedet.spec.config import PRESETS, VGG16_BLOCKS, PictureConfig
from refinedet.spec.errors import Array
from refinedet.spec.network import parameter_table

SOURCES = tuple(source.name for source in sources(PRESETS["refinedet_vgg16_320"]))
CLASSIFIER = (
    *(f"backbone.conv{b}_{n}" for b, (_, k) in enumerate(VGG16_BLOCKS, 1) for n in range(1, k + 1)),
    "backbone.fc6",
    "backbone.fc7",
)
"""The layers that a VGG16 trained on ImageNet has as well."""
IMAGENET_INDEX = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Of conv1_1 to conv5_3, among the convolutions, ReLUs and pools of a VGG16 in PyTorch."""
TORCHVISION_FC = {"backbone.fc6": "classifier.0", "backbone.fc7": "classifier.3"}


def _levels() -> Iterator[tuple[str, str, str]]:
    """Layers above the classifier: canonical, in Caffe, in the PyTorch port."""
    yield "backbone.conv6_1", "conv6_1", "extras.0"
    yield "backbone.conv6_2", "conv6_2", "extras.1"
    for level, source in enumerate(SOURCES):
        p = level + 3
        yield f"tcb.{level}.lateral1", f"TL{p}_1", f"tcb0.{3 * level}"
        yield f"tcb.{level}.lateral2", f"TL{p}_2", f"tcb0.{3 * level + 2}"
        yield f"tcb.{level}.output", f"P{p}", f"tcb2.{3 * level + 1}"
        if level < len(SOURCES) - 1:
            yield f"tcb.{level}.upsample", f"P{p + 1}-up", f"tcb1.{level}"
        blob = source.removeprefix("backbone.") + ("_norm" if level < NORMALISED else "")
        for ours, caffe, port in (("offsets", "loc", "loc"), ("logits", "conf", "conf")):
            yield f"arm.{level}.{ours}", f"{blob}_mbox_{caffe}", f"arm_{port}.{level}"
            yield f"odm.{level}.{ours}", f"P{p}_mbox_{caffe}", f"odm_{port}.{level}"


def _caffe() -> Iterator[tuple[str, str]]:
    """Canonical name, and ``LAYER/INDEX``."""
    layers = {name: name.removeprefix("backbone.") for name in CLASSIFIER}
    layers |= {ours: caffe for ours, caffe, _ in _levels()}
    for ours, caffe in layers.items():
        yield f"{ours}.weight", f"{caffe}/0"
        yield f"{ours}.bias", f"{caffe}/1"
    for source in SOURCES[:NORMALISED]:
        yield f"{source}.l2_scale", f"{source.removeprefix('backbone.')}_norm/0"


def _torch_trunk(prefix: str) -> dict[str, str]:
    layers = dict(zip(CLASSIFIER, IMAGENET_INDEX, strict=False))
    return {ours: f"{prefix}{index}" for ours, index in layers.items()}


def _reduced_trunk(prefix: str) -> dict[str, str]:
    """With fc6 and fc7 as convolutions, as SSD's PyTorch port numbers them."""
    fully = {"backbone.fc6": f"{prefix}31", "backbone.fc7": f"{prefix}33"}
    return {**_torch_trunk(prefix), **fully}


def _torch(layers: Mapping[str, str]) -> dict[str, str]:
    return {f"{o}.{part}": f"{t}.{part}" for o, t in layers.items() for part in ("weight", "bias")}


def _port() -> dict[str, str]:
    layers = {**_reduced_trunk("vgg."), **{ours: port for ours, _, port in _levels()}}
    scales = {
        f"{source}.l2_scale": f"{source.removeprefix('backbone.')}_L2Norm.weight"
        for source in SOURCES[:NORMALISED]
    }
    return {**_torch(layers), **scales}


ZOO_PREFIX = "network."


def _zoo() -> Iterator[tuple[str, str]]:
    """Canonical name, and that in checkpoints of the model zoo's training."""
    layers = {}
    for block, (_, count) in enumerate(VGG16_BLOCKS, start=1):
        for index in range(count):
            layers[f"backbone.conv{block}_{index + 1}"] = f"backbone.b{block}.{2 * index}"
    layers |= {f"backbone.{name}": f"backbone.{name}" for name in ("fc6", "fc7")}
    layers |= {f"backbone.conv6_{n}": f"backbone.b6_{n}.0" for n in (1, 2)}
    last = len(SOURCES) - 1
    for level in range(last):
        first = int(level < NORMALISED)  # after the L2 normalisation
        layers[f"tcb.{level}.lateral1"] = f"tcb.tcb{level}.{first}"
        layers[f"tcb.{level}.lateral2"] = f"tcb.tcb{level}.{first + 2}"
        layers[f"tcb.{level}.output"] = f"tcb.p{level}.0"
        layers[f"tcb.{level}.output2"] = f"tcb.p{level}.2"
        layers[f"tcb.{level}.upsample"] = f"tcb.deconv{level}.0"
    layers[f"tcb.{last}.lateral1"] = f"tcb.tcb{last}.0"
    layers[f"tcb.{last}.lateral2"] = f"tcb.p{last}.0"
    layers[f"tcb.{last}.output"] = f"tcb.p{last}.2"
    for ours, theirs in layers.items():
        yield f"{ours}.weight", f"{ZOO_PREFIX}{theirs}.weight"
    for level in range(NORMALISED):
        yield f"{SOURCES[level]}.l2_scale", f"{ZOO_PREFIX}tcb.tcb{level}.0.weight"
    for module in ("arm", "odm"):
        for level in range(len(SOURCES)):
            for ours, theirs in (("offsets", "loc"), ("logits", "cls")):
                head = f"{module}.{level}.{ours}"
                cells = f"{ZOO_PREFIX}{module}.multi_box.multi_{theirs}_layers.{level}"
                yield f"{head}.depthwise.weight", f"{cells}.0.weight"
                for part in ("gamma", "beta", "moving_mean", "moving_variance"):
                    yield f"{head}.depthwise.{part}", f"{cells}.1.{part}"
                yield f"{head}.weight", f"{cells}.3.weight"
                yield f"{head}.bias", f"{cells}.3.bias"


def zoo_plain(name: str) -> str:
    """A name without ``network.``, or with the trunk inside the ARM, as the others have it."""
    name = name.removeprefix(ZOO_PREFIX)
    return ZOO_PREFIX + (name.removeprefix("arm.") if name.startswith("arm.backbone.") else name)


def zoo_offsets(name: str, array: Array) -> Array:
    """The outputs of an offsets' head from y, x, h, w an anchor to x, y, w, h, or back.

    Args:
        name: canonical; any other tensor is returned as it is.
        array: weight or bias, outputs first.
    """
    if not re.fullmatch(r"(arm|odm)\.\d\.offsets\.(weight|bias)", name):
        return array
    if array.ndim == 0 or len(array) % 4:
        return array
    by_anchor = array.reshape(-1, 4, *array.shape[1:])
    return by_anchor[:, [1, 0, 3, 2]].reshape(array.shape)


def reduced(name: str, array: Array) -> Array:
    """fc6 and fc7 of a classifier as the thinned convolutions that detectors use.

    Args:
        name: canonical; any other tensor is returned as it is.
        array: of fc6, (O, I * 49), O of 4,096, I of 512; of fc7, (O, O); or a bias (O,).
    Returns:
        Every fourth output and, of fc6, every third row and column: (O/4, I, 3, 3); of fc7
        every fourth input too, (O/4, O/4, 1, 1).
    Source: SSD, arXiv:1512.02325, section 3, "subsample parameters from fc6 and fc7"; which
    ones, after DeepLab, arXiv:1412.7062, section 3.1.
    """
    layer, _, part = name.rpartition(".")
    if layer not in TORCHVISION_FC:
        return array
    if part == "bias":
        return array[::4]
    if array.ndim != 2:
        return array
    if layer == "backbone.fc7":
        return array[::4, ::4, None, None]
    outputs, inputs = array.shape
    return (
        array.reshape(outputs, inputs // 49, 7, 7)[::4, :, ::3, ::3] if not inputs % 49 else array
    )


def _unchanged(name: str, array: Array) -> Array:
    return array


def _same(name: str) -> str:
    return name


@dataclass(frozen=True)
class Scheme:
    """How one program names its tensors.

    Attributes:
        kind: what it is, for messages.
        names: the file's name by the canonical one.
        picture: what its network wants to see; None where nobody has said.
        ignored: pattern of names that are known, and of no use here.
        convert: from the canonical name and the file's tensor to ours.
        revert: from the canonical name and our tensor to the file's.
        plain: a name of the file as ``names`` has it.
        preset: the detector that the tensors are of, where no other is asked for.
    """

    kind: str
    names: Mapping[str, str]
    picture: PictureConfig | None
    ignored: str = r"(?!)"
    convert: Callable[[str, Array], Array] = field(default=_unchanged)
    revert: Callable[[str, Array], Array] = field(default=_unchanged)
    plain: Callable[[str], str] = field(default=_same)
    preset: str = "refinedet_vgg16_320"

    def canonical(self, name: str) -> str | None:
        """The canonical name of a name in the file; None where there is none."""
        return self._back.get(self.plain(name))

    def is_ignored(self, name: str) -> bool:
        """Whether the tensor is known, and of no use here."""
        return re.fullmatch(self.ignored, name) is not None

    @cached_property
    def _back(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in self.names.items()}


BGR = PictureConfig("BGR", (104.0, 117.0, 123.0))
RGB = PictureConfig("RGB", (123.0, 117.0, 104.0))
"""The port subtracts the means in BGR, then turns the channels round: data/voc0712.py."""
IMAGENET = PictureConfig("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""255 times torchvision's mean and standard deviation."""

CANONICAL = Scheme(
    "RefineDet, canonical names",
    {p.name: p.name for config in PRESETS.values() for p in parameter_table(config)},
    BGR,
)
CAFFE = Scheme("RefineDet or VGG16 of Caffe", dict(_caffe()), BGR, ignored=r"fc8[^/]*/\d+")
PORT = Scheme("RefineDet of the PyTorch port", _port(), RGB)
# The order of its channels is asked and not answered: amdegroot/ssd.pytorch, issues 44, 146, 170.
REDUCED = Scheme("VGG16 with fc6 and fc7 reduced, PyTorch", _torch(_reduced_trunk("")), None)
TORCHVISION = Scheme(
    "VGG16 of torchvision",
    _torch({**_torch_trunk("features."), **TORCHVISION_FC}),
    IMAGENET,
    ignored=r"classifier\.6\.(weight|bias)",
    convert=reduced,
)
ZOO = Scheme(
    "RefineDet of the MindSpore model zoo",
    dict(_zoo()),
    PRESETS["modelzoo_vgg16_320"].picture,
    ignored=r"moments\..+|momentum|learning_rate|global_step",
    convert=zoo_offsets,
    revert=zoo_offsets,
    plain=zoo_plain,
    preset="modelzoo_vgg16_320",
)
SCHEMES = (CANONICAL, CAFFE, PORT, REDUCED, TORCHVISION, ZOO)
EXPORTED = {"port": PORT, "modelzoo": ZOO}
"""Schemes that weights are written in, by the name for ``export --names``."""


def recognise(names: list[str]) -> Scheme | None:
    """The scheme that knows most of the names; None if none knows any."""

    def known(scheme: Scheme) -> int:
        return sum(scheme.canonical(name) is not None for name in names)

    best = max(SCHEMES, key=known)
    return best if known(best) else None
