"""Evaluation protocols: which images count, and from which boxes detections are made.

The same network has another mAP where other images, thresholds and caps are used, so a
published metric is compared with one that was measured as it was. What the network itself
computes (classes by softmax or sigmoid, the ARM's filter, one step of decoding or two)
belongs to the detector's settings and not to a protocol.

Some protocols look at an image several times and fuse what they see; the views and rules
are those of the authors' test (sfzhang15/RefineDet, test/lib/fast_rcnn/test.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from refinedet.backends.interface import Network
from refinedet.data.dataset import Dataset
from refinedet.errors import DataError
from refinedet.spec.config import Config, DetectionConfig
from refinedet.spec.fusion import FusionConfig, View
from refinedet.spec.network import Heads
from refinedet.spec.types import Array

Images = Literal["all", "with boxes and without crowds"]


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate."""

    name: str
    images: Images
    """``with boxes and without crowds``: only images that have an object, and none that
    is a crowd; of the classes that are evaluated."""
    detection: Mapping[str, Any]
    """Every field of ``spec.config.DetectionConfig`` that decides which boxes count."""
    source: str
    fusions: Mapping[int, FusionConfig] = field(default_factory=dict)
    """How to look at an image, by the side of the network's input in the source; empty
    where a plain look is all."""

    def fusion(self, config: Config) -> FusionConfig | None:
        """That of the size that is nearest to the longer side of the detector's input."""
        if not self.fusions:
            return None
        return self.fusions[min(self.fusions, key=lambda side: abs(side - max(config.image_size)))]


_NOTHING_MORE = {"clip": True, "clip_first": False, "pixel": 0.0}

_PAPER = {
    "score": 0.01,
    "top_before_nms": 400,
    "top_before_nms_per_class": None,
    "nms_iou": 0.45,
    "top_per_class": None,
    "top": 200,
    **_NOTHING_MORE,
}
_CAFFE_COCO = {
    "score": 0.01,
    "top_before_nms": None,
    "top_before_nms_per_class": 1000,
    "nms_iou": 0.45,
    "top_per_class": None,
    "top": 500,
    **_NOTHING_MORE,
}


def _enlarged(limits: Mapping[float, float]) -> tuple[View, ...]:
    """Views by scale, for boxes with a side below so many pixels."""
    return tuple(View(s, s, shortest_below=limit) for s, limit in limits.items())


_VIEWS = {
    320: (
        View(),
        View(1, 0.6),
        View(0.6, 0.6, longest_above=32),
        *_enlarged({1.2: 160, 1.4: 128, 1.6: 96, 1.8: 64, 2.2: 32}),
    ),
    512: (
        View(),
        View(1, 0.75),
        View(0.5, 0.5),
        View(0.75, 0.75),
        *_enlarged({1.5: 192, 1.75: 128}),
    ),
}
_MORE_VIEWS = {320: _enlarged({2.0: 48}), 512: _enlarged({1.25: 224, 2.0: 96, 2.25: 64})}
"""Of the authors' COCO test."""


def _mirrored_too(*views: View) -> tuple[View, ...]:
    return views + tuple(dataclasses.replace(view, mirrored=True) for view in views)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "paper",
            "all",
            _PAPER,
            "arXiv:1711.06897, section 4, 'Inference'",
        ),
        Protocol(
            "paper+",
            "all",
            _PAPER,
            "the paper's own detections, views and box voting of the authors' VOC test",
            {side: FusionConfig(_mirrored_too(*views)) for side, views in _VIEWS.items()},
        ),
        Protocol(
            "modelzoo",
            "with boxes and without crowds",
            {
                "score": 0.1,
                "top_before_nms": None,
                "top_before_nms_per_class": None,
                "nms_iou": 0.6,
                "top_per_class": 100,
                "top": None,
                "clip": True,
                "clip_first": True,
                "pixel": 1.0,
            },
            "MindSpore model zoo: src/dataset.py:298-300, src/eval_utils.py:22-54, "
            "src/config_vgg16.py:23-25, postprocess.py:70",
        ),
        Protocol(
            "caffe-coco",
            "all",
            _CAFFE_COCO,
            "the authors' repository, its detection layer for COCO and its single-scale test",
            {320: FusionConfig(rule="soft_nms", iou=0.3)},
        ),
        Protocol(
            "caffe-coco+",
            "all",
            _CAFFE_COCO,
            "the authors' repository, its detection layer for COCO and its multi-scale test",
            {
                side: FusionConfig(_mirrored_too(*views, *_MORE_VIEWS[side]), "soft_vote")
                for side, views in _VIEWS.items()
            },
        ),
    )
}
"""By name, as users type it."""

NEUTRAL = {"clip_first": False, "pixel": 0.0}
"""What a specification without these fields does."""


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        DataError: no such protocol; lists those there are.
    """
    if name not in PROTOCOLS:
        raise DataError(f"no {name!r}; there are {', '.join(PROTOCOLS)}", key="--protocol")
    return PROTOCOLS[name]


def chosen_images(protocol: Protocol, dataset: Dataset) -> Dataset:
    """The data set with only the images that count.

    Raises:
        DataError: none does.
    """
    records = list(dataset.records)
    if protocol.images != "all":
        records = [r for r in records if r.crowd.size and not r.crowd.any()]
    if not records and dataset.records:
        raise _none_left(protocol, dataset.name)
    return dataclasses.replace(dataset, records=records)


def chosen_ids(
    protocol: Protocol, ids: Array, object_image_ids: Array, crowd: Array, name: str
) -> Array:
    """The image ids that count, rising.

    Args:
        ids: (N,) int64, of all images.
        object_image_ids, crowd: (M,) int64 and bool: of every object its image id, and whether it
            is a crowd.
        name: of the data set, for the error.
    Raises:
        DataError: none does.
    """
    chosen = np.unique(ids)
    if protocol.images != "all":
        chosen = np.setdiff1d(np.intersect1d(chosen, object_image_ids), object_image_ids[crowd])
    if not chosen.size:
        raise _none_left(protocol, name)
    return chosen


def _none_left(protocol: Protocol, name: str) -> DataError:
    return DataError(f"{name} has no image {protocol.images}", key=f"--protocol {protocol.name}")


class _Under:
    """A network whose boxes become detections in another way."""

    def __init__(self, network: Network, config: Config) -> None:
        self._network = network
        self.config = config

    def heads(self, images: Array) -> Heads:
        """The network's own."""
        return self._network.heads(images)

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """The network's own."""
        return self._network.scored_boxes(images)


def detection_under(protocol: Protocol, detection: DetectionConfig) -> DetectionConfig:
    """The detection settings with the protocol's.

    Raises:
        DataError: the specification installed lacks one of these settings.
    """
    known = {field.name for field in dataclasses.fields(detection)}
    settings = {}
    for name, value in protocol.detection.items():
        if name in known:
            settings[name] = value
        elif value != NEUTRAL.get(name):
            raise DataError(
                f"needs detection.{name}={value}, "
                "which this version of the specification does not have",
                key=f"--protocol {protocol.name}",
            )
    return dataclasses.replace(detection, **settings)


def under(protocol: Protocol, network: Network) -> Network:
    """The network with the protocol's detection settings; errors as ``detection_under``."""
    detection = detection_under(protocol, network.config.detection)
    return _Under(network, dataclasses.replace(network.config, detection=detection))
