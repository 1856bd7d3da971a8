"""ResNet101's names in Caffe, for the classifier and the detector, and in torchvision.

Sources: sfzhang15/RefineDet, examples/refinedet/ResNet101_COCO_320.py and
python/caffe/model_libs.py, whose trunk has the names of KaimingHe/deep-residual-networks;
torchvision, models/resnet.py and its weights' transforms.
"""

from __future__ import annotations

from collections.abc import Iterator

from refinedet.models.foreign.naming_scheme import (
    BGR,
    IMAGENET,
    Scheme,
    classifier_layers,
    trunk_fields,
)
from refinedet.models.foreign.vgg16 import levels
from refinedet.spec.architecture import sources
from refinedet.spec.config import replace
from refinedet.spec.network import parameter_table
from refinedet.spec.presets import PRESETS

PRESET = "refinedet_resnet101_320"
CONFIG = PRESETS[PRESET]
SOURCES = tuple(source.name for source in sources(CONFIG))
TABLE = [tuple(p.name.rsplit(".", 1)) for p in parameter_table(CONFIG)]
"""Layer and part of every parameter."""

CAFFE_BRANCHES = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "projection": "1"}
CAFFE_OUTPUTS = {"offsets": "loc", "logits": "conf"}
CAFFE_PARTS = {
    "weight": (0, 0), "bias": (0, 1), "moving_mean": (1, 0), "moving_variance": (1, 1),
    "gamma": (2, 0), "beta": (2, 1),
}  # fmt: skip
"""Where a part is: in the convolution, its BatchNorm or its Scale (0 to 2), and in which blob."""
CAFFE_TCB = {ours: caffe for ours, caffe, _ in levels() if ours.startswith("tcb.")}

TORCH_PARTS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def stage_and_index(block: str) -> tuple[int, int]:
    """Stage and index of a bottleneck: 4 and 23 for ``backbone.res4_23``."""
    stage, index = block.removeprefix("backbone.res").split("_")
    return int(stage), int(index)


def _caffe_block(block: str) -> str:
    """``4b22`` for ``backbone.res4_23``; the block of a head is named after its input."""
    module, *level = block.split(".")
    if module == "arm":
        return f"res{_caffe_block(SOURCES[int(level[0])])}_relu_inter"
    if module == "odm":
        return f"P{int(level[0]) + 3}_inter"
    stage, index = stage_and_index(block)
    if stage == 6:
        return "6"
    if stage in (3, 4) and index > 1:
        return f"{stage}b{index - 1}"
    return f"{stage}{'abc'[index - 1]}"


def _caffe_layers(layer: str) -> tuple[str, ...]:
    """The convolution, then its BatchNorm and Scale if it has them."""
    block, _, conv = layer.rpartition(".")
    if layer in CAFFE_TCB:
        name = CAFFE_TCB[layer]
        return name, f"{name}_bn", f"{name}_scale"
    if conv in CAFFE_OUTPUTS:
        return (f"res{_caffe_block(block)}_mbox_{CAFFE_OUTPUTS[conv]}",)
    if block == "backbone":
        return "conv1", "bn_conv1", "scale_conv1"
    name = f"{_caffe_block(block)}_branch{CAFFE_BRANCHES[conv]}"
    return f"res{name}", f"bn{name}", f"scale{name}"


def _caffe() -> Iterator[tuple[str, str]]:
    """Canonical name, and ``LAYER/INDEX``."""
    for layer, part in TABLE:
        which, blob = CAFFE_PARTS[part]
        yield f"{layer}.{part}", f"{_caffe_layers(layer)[which]}/{blob}"


def torch_layers(layer: str, downsample: str) -> tuple[str, str]:
    """A convolution and its batch normalisation, as torchvision and classes derived from it.

    Args:
        layer: canonical, in the trunk; res6_1 is the model zoo's ``extra``.
        downsample: the class's name for a projection.
    """
    block, _, conv = layer.rpartition(".")
    if block == "backbone":
        return "conv1", "bn1"
    stage, index = stage_and_index(block)
    module = "extra" if stage == 6 else f"layer{stage - 1}.{index - 1}"
    if conv == "projection":
        return f"{module}.{downsample}.0", f"{module}.{downsample}.1"
    return f"{module}.{conv}", f"{module}.{conv.replace('conv', 'bn')}"


def _torchvision() -> Iterator[tuple[str, str]]:
    trunk = classifier_layers(CONFIG)
    for layer, part in TABLE:
        if layer in trunk:
            conv, norm = torch_layers(layer, "downsample")
            theirs = f"{norm}.{TORCH_PARTS[part]}" if part in TORCH_PARTS else f"{conv}.{part}"
            yield f"{layer}.{part}", theirs


CAFFE = Scheme(
    "RefineDet or ResNet101 of Caffe",
    dict(_caffe()),
    BGR,
    ignored=r"fc1000/\d+",
    preset=PRESET,
    network=trunk_fields(CONFIG.network),
)
TORCHVISION = Scheme(
    "ResNet101 of torchvision",
    dict(_torchvision()),
    IMAGENET,
    ignored=r"fc\.(weight|bias)|.+\.num_batches_tracked",
    preset=PRESET,
    network=trunk_fields(
        replace(CONFIG, network={"bottleneck_stride": "3x3", "pool_centred": True}).network
    ),
)
