"""All naming schemes, and which of them the names in a file are of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from refinedet.models.foreign import modelzoo, resnet, vgg16
from refinedet.models.foreign.naming_scheme import BGR, Scheme
from refinedet.spec.network import parameter_table
from refinedet.spec.presets import PRESETS

CANONICAL = Scheme(
    "RefineDet, canonical names",
    {p.name: p.name for config in PRESETS.values() for p in parameter_table(config)},
    BGR,
)
SCHEMES = (
    CANONICAL,
    vgg16.CAFFE,
    vgg16.PORT,
    vgg16.REDUCED,
    vgg16.TORCHVISION,
    resnet.CAFFE,
    resnet.TORCHVISION,
    modelzoo.VGG16,
    modelzoo.RESNET101,
)
EXPORTED = {"port": (vgg16.PORT,), "modelzoo": (modelzoo.VGG16, modelzoo.RESNET101)}
"""Schemes that weights can be exported in, by the name that users choose."""


def recognise(names: Sequence[str]) -> Scheme | None:
    """The scheme with most of these names; None if no scheme has any."""

    def known(scheme: Scheme) -> int:
        return sum(scheme.canonical(name) is not None for name in names)

    best = max(SCHEMES, key=known)
    return best if known(best) else None


def for_export(names: str, parameters: Iterable[str]) -> Scheme:
    """Of a program's schemes, the one with most of these canonical names."""
    ours = {*parameters}
    return max(EXPORTED[names], key=lambda scheme: len(ours & scheme.names.keys()))
