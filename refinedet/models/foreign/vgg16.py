"""VGG16's names in Caffe, in the PyTorch ports of SSD and RefineDet, and in torchvision.

Sources: sfzhang15/RefineDet, examples/refinedet/VGG16_*.py and python/caffe/model_libs.py;
luuuyi/RefineDet.PyTorch, models/refinedet.py and data/voc0712.py; torchvision,
models/vgg.py and its weights' transforms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from refinedet.models.foreign.naming_scheme import BGR, IMAGENET, RGB, Scheme, classifier_layers
from refinedet.spec.architecture import NORMALISED, sources
from refinedet.spec.presets import PRESETS
from refinedet.spec.types import Array

CONFIG = PRESETS["refinedet_vgg16_320"]
SOURCES = tuple(source.name for source in sources(CONFIG))
CLASSIFIER = classifier_layers(CONFIG)
IMAGENET_INDEX = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Indices of conv1_1 to conv5_3 among the convolutions, ReLUs and pools of PyTorch's VGG16."""
TORCHVISION_FC = {"backbone.fc6": "classifier.0", "backbone.fc7": "classifier.3"}


def levels() -> Iterator[tuple[str, str, str]]:
    """Names of the layers above the classifier: canonical, Caffe's, the PyTorch port's."""
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
    layers |= {ours: caffe for ours, caffe, _ in levels()}
    for ours, caffe in layers.items():
        yield f"{ours}.weight", f"{caffe}/0"
        yield f"{ours}.bias", f"{caffe}/1"
    for source in SOURCES[:NORMALISED]:
        yield f"{source}.l2_scale", f"{source.removeprefix('backbone.')}_norm/0"


def _torch_trunk(prefix: str) -> dict[str, str]:
    layers = dict(zip(CLASSIFIER, IMAGENET_INDEX, strict=False))
    return {ours: f"{prefix}{index}" for ours, index in layers.items()}


def _reduced_trunk(prefix: str) -> dict[str, str]:
    """With fc6 and fc7 as convolutions, numbered as in SSD's PyTorch port."""
    fully = {"backbone.fc6": f"{prefix}31", "backbone.fc7": f"{prefix}33"}
    return {**_torch_trunk(prefix), **fully}


def _torch(layers: Mapping[str, str]) -> dict[str, str]:
    return {f"{o}.{part}": f"{t}.{part}" for o, t in layers.items() for part in ("weight", "bias")}


def _port() -> dict[str, str]:
    layers = {**_reduced_trunk("vgg."), **{ours: port for ours, _, port in levels()}}
    scales = {
        f"{source}.l2_scale": f"{source.removeprefix('backbone.')}_L2Norm.weight"
        for source in SOURCES[:NORMALISED]
    }
    return {**_torch(layers), **scales}


def reduced(name: str, array: Array) -> Array:
    """fc6 and fc7 of a classifier as the subsampled convolutions of a detector.

    Args:
        name: canonical; other tensors are returned unchanged.
        array: fc6, (O, I * 49), with O = 4,096 and I = 512; fc7, (O, O); or a bias, (O,).
    Returns:
        Every fourth output. For fc6 also every third row and column: (O/4, I, 3, 3). For fc7
        also every fourth input: (O/4, O/4, 1, 1).
    Source: SSD, arXiv:1512.02325, section 3, "subsample parameters from fc6 and fc7"; the
    choice of elements is that of DeepLab, arXiv:1412.7062, section 3.1.
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


CAFFE = Scheme("RefineDet or VGG16 of Caffe", dict(_caffe()), BGR, ignored=r"fc8[^/]*/\d+")
PORT = Scheme("RefineDet of the PyTorch port", _port(), RGB)
# The order of its channels is not known: see amdegroot/ssd.pytorch, issues 44, 146, 170.
REDUCED = Scheme("VGG16 with fc6 and fc7 reduced, PyTorch", _torch(_reduced_trunk("")), None)
TORCHVISION = Scheme(
    "VGG16 of torchvision",
    _torch({**_torch_trunk("features."), **TORCHVISION_FC}),
    IMAGENET,
    ignored=r"classifier\.6\.(weight|bias)",
    convert=reduced,
)
