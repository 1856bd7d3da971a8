"""Whose names the tensors of a file are: of all programs known here, the one that fits."""

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
"""Schemes that weights are written in, by the name for ``export --names``."""


def recognise(names: Sequence[str]) -> Scheme | None:
    """The scheme that knows most of a file's names; None if none knows any."""

    def known(scheme: Scheme) -> int:
        return sum(scheme.canonical(name) is not None for name in names)

    best = max(SCHEMES, key=known)
    return best if known(best) else None


def for_export(names: str, parameters: Iterable[str]) -> Scheme:
    """Of the program's schemes, the one that has most of the canonical names."""
    ours = {*parameters}
    return max(EXPORTED[names], key=lambda scheme: len(ours & scheme.names.keys()))
