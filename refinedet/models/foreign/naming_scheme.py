"""How another program names its tensors, and what its network needs besides them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from refinedet.spec.architecture import convs_of, trunk
from refinedet.spec.config import Config, ImageConfig, NetworkConfig
from refinedet.spec.types import Array

BGR = ImageConfig("BGR", (104.0, 117.0, 123.0))
RGB = ImageConfig("RGB", (123.0, 117.0, 104.0))
"""The port subtracts the means in BGR, then reverses the channels: data/voc0712.py."""
IMAGENET = ImageConfig("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""255 times torchvision's mean and standard deviation."""


def classifier_layers(config: Config) -> list[str]:
    """The trunk's convolutions that an ImageNet classifier also has, in order.

    All but those of the last stage: conv6_1 and conv6_2 of VGG16, res6_1 of a ResNet.
    """
    stages = trunk(config)[:-1]
    return [conv.name for stage in stages for step in stage for conv in convs_of(step)]


def trunk_fields(network: NetworkConfig) -> dict[str, object]:
    """The fields that change what a ResNet's trunk computes, but not its parameters."""
    names = ("bottleneck_stride", "same_padding", "pool_centred", "batch_norm_eps")
    return {name: getattr(network, name) for name in names}


def _unchanged(name: str, array: Array) -> Array:
    return array


def _same(name: str) -> str:
    return name


@dataclass(frozen=True)
class Scheme:
    """How one program names and stores the parameters of a network.

    Attributes:
        kind: network and program, in words.
        names: from canonical names to those in the file.
        image: how its network's images are prepared; None if unknown.
        ignored: pattern of names that are known and not needed.
        convert: makes our tensor from the canonical name and the file's tensor.
        revert: makes the file's tensor from the canonical name and ours.
        plain: maps variants of a name in the file to that in ``names``.
        preset: the detector of the tensors, by default.
        network: fields that the tensors do not determine; see ``trunk_fields``.
    """

    kind: str
    names: Mapping[str, str]
    image: ImageConfig | None
    ignored: str = r"(?!)"
    convert: Callable[[str, Array], Array] = field(default=_unchanged)
    revert: Callable[[str, Array], Array] = field(default=_unchanged)
    plain: Callable[[str], str] = field(default=_same)
    preset: str = "refinedet_vgg16_320"
    network: Mapping[str, object] = field(default_factory=dict)

    def canonical(self, name: str) -> str | None:
        """The canonical name for a name in the file; None if it has none."""
        return self._back.get(self.plain(name))

    def is_ignored(self, name: str) -> bool:
        """Whether the tensor is known and not needed."""
        return re.fullmatch(self.ignored, name) is not None

    @cached_property
    def _back(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in self.names.items()}
