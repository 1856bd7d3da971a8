"""The model zoo's names for its detectors with VGG16 and ResNet101.

Source: the MindSpore model zoo, research/cv/RefineDet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from refinedet.models.foreign.naming_scheme import Scheme, trunk_fields
from refinedet.models.foreign.resnet import torch_layers
from refinedet.spec.architecture import LEVELS, NORMALISED, backbone_convs, normalised_sources
from refinedet.spec.config import VGG16_BLOCKS, Config
from refinedet.spec.presets import PRESETS
from refinedet.spec.types import Array

VGG16_PRESET = "modelzoo_vgg16_320"
RESNET101_PRESET = "modelzoo_resnet101_320"
PREFIX = "network."
NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def _vgg16_trunk() -> Iterator[tuple[str, str]]:
    for block, (_, count) in enumerate(VGG16_BLOCKS, start=1):
        for index in range(count):
            yield f"backbone.conv{block}_{index + 1}.weight", f"b{block}.{2 * index}.weight"
    for name in ("fc6", "fc7"):
        yield f"backbone.{name}.weight", f"{name}.weight"
    for n in (1, 2):
        yield f"backbone.conv6_{n}.weight", f"b6_{n}.0.weight"


def _resnet101_trunk() -> Iterator[tuple[str, str]]:
    for layer in (conv.name for conv in backbone_convs(PRESETS[RESNET101_PRESET])):
        conv, norm = torch_layers(layer, "down_sample_layer")
        base = "" if conv.startswith("extra.") else "base."
        yield f"{layer}.weight", f"{base}{conv}.weight"
        for part in NORM:
            yield f"{layer}.{part}", f"{base}{norm}.{part}"


def _above(config: Config) -> Iterator[tuple[str, str]]:
    """Names of everything except the trunk; the L2 normalisations are included."""
    layers = {}
    last = LEVELS - 1
    for level in range(last):
        first = int(level < NORMALISED)  # after the L2 normalisation
        layers[f"tcb.{level}.lateral1"] = f"tcb{level}.{first}"
        layers[f"tcb.{level}.lateral2"] = f"tcb{level}.{first + 2}"
        layers[f"tcb.{level}.output"] = f"p{level}.0"
        layers[f"tcb.{level}.output2"] = f"p{level}.2"
        layers[f"tcb.{level}.upsample"] = f"deconv{level}.0"
    layers[f"tcb.{last}.lateral1"] = f"tcb{last}.0"
    layers[f"tcb.{last}.lateral2"] = f"p{last}.0"
    layers[f"tcb.{last}.output"] = f"p{last}.2"
    for ours, theirs in layers.items():
        yield f"{ours}.weight", f"tcb.{theirs}.weight"
    for level, source in enumerate(normalised_sources(config)):
        yield f"{source}.l2_scale", f"tcb.tcb{level}.0.weight"
    for module in ("arm", "odm"):
        for level in range(LEVELS):
            for ours, theirs in (("offsets", "loc"), ("logits", "cls")):
                head = f"{module}.{level}.{ours}"
                cells = f"{module}.multi_box.multi_{theirs}_layers.{level}"
                yield f"{head}.depthwise.weight", f"{cells}.0.weight"
                for part in NORM:
                    yield f"{head}.depthwise.{part}", f"{cells}.1.{part}"
                yield f"{head}.weight", f"{cells}.3.weight"
                yield f"{head}.bias", f"{cells}.3.bias"


def _plain(name: str) -> str:
    """Adds ``network.`` where it is missing, and moves a trunk inside the ARM out of it."""
    name = name.removeprefix(PREFIX)
    return PREFIX + (name.removeprefix("arm.") if name.startswith("arm.backbone.") else name)


def _offsets(name: str, array: Array) -> Array:
    """Reorders the outputs of an offsets head, for each anchor y, x, h, w to x, y, w, h or back.

    Args:
        name: canonical; other tensors are returned unchanged.
        array: weight or bias; its first axis are the outputs.
    """
    if not re.fullmatch(r"(arm|odm)\.\d\.offsets\.(weight|bias)", name):
        return array
    if array.ndim == 0 or len(array) % 4:
        return array
    by_anchor = array.reshape(-1, 4, *array.shape[1:])
    return by_anchor[:, [1, 0, 3, 2]].reshape(array.shape)


def _scheme(kind: str, preset: str, trunk: Iterable[tuple[str, str]]) -> Scheme:
    config = PRESETS[preset]
    names = {ours: f"{PREFIX}backbone.{theirs}" for ours, theirs in trunk}
    names |= {ours: f"{PREFIX}{theirs}" for ours, theirs in _above(config)}
    return Scheme(
        f"RefineDet {kind}of the MindSpore model zoo",
        names,
        config.image,
        ignored=r"moments\..+|momentum|learning_rate|global_step",
        convert=_offsets,
        revert=_offsets,
        plain=_plain,
        preset=preset,
        network=trunk_fields(config.network),
    )


VGG16 = _scheme("", VGG16_PRESET, _vgg16_trunk())
RESNET101 = _scheme("ResNet101 ", RESNET101_PRESET, _resnet101_trunk())
