"""Evaluation protocols: which images count, and from which boxes detections are made.

The mAP of a network depends on the images, thresholds and caps, so a measured metric is only
compared with one published under the same protocol. What the network itself computes
(classes by softmax or sigmoid, the ARM's filter, one step of decoding or two) belongs to
the detector's settings and not to a protocol.

Some protocols run the network on several views of an image and fuse the detections; views
and rules are those of the authors' test (sfzhang15/RefineDet, test/lib/fast_rcnn/test.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from refinedet.backends.interface import Network
from refinedet.data.dataset import Dataset
from refinedet.errors import DataError, UsageError
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
    """The views of an image and how their detections are fused, by the side of the network's
    input in the source; empty where an image is evaluated once, as it is."""

    def fusion(self, config: Config) -> FusionConfig | None:
        """The fusion for the side nearest to the longer side of the detector's input."""
        if not self.fusions:
            return None
        return self.fusions[min(self.fusions, key=lambda side: abs(side - max(config.image_size)))]


_NO_EXTRAS = {"clip": True, "clip_first": False, "pixel": 0.0}

_PAPER = {
    "score": 0.01,
    "top_before_nms": 400,
    "top_before_nms_per_class": None,
    "nms_iou": 0.45,
    "top_per_class": None,
    "top": 200,
    **_NO_EXTRAS,
}
_CAFFE_COCO = {
    "score": 0.01,
    "top_before_nms": None,
    "top_before_nms_per_class": 1000,
    "nms_iou": 0.45,
    "top_per_class": None,
    "top": 500,
    **_NO_EXTRAS,
}


def _enlarged(limits: Mapping[float, float]) -> tuple[View, ...]:
    """Views by scale, each for boxes with a side below a limit in pixels."""
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
"""By name."""

NEUTRAL = {"clip_first": False, "pixel": 0.0}
"""Values with the same effect as a specification without these fields."""


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UsageError: no such protocol; lists those there are.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"no {name!r}; there are {', '.join(PROTOCOLS)}", key="protocol")
    return PROTOCOLS[name]


def counted_image_ids(
    protocol: Protocol, image_ids: Array, object_image_ids: Array, crowd: Array, name: object
) -> Array:
    """The ids of the images that count, rising.

    Args:
        image_ids: (N,) int64, of all images.
        object_image_ids, crowd: (M,) int64 and bool, of all objects of the evaluated classes:
            the image id, and whether it is a crowd.
        name: of the data set, for the error.
    Raises:
        DataError: no image counts.
    """
    counted = np.unique(image_ids)
    if protocol.images != "all":
        counted = np.intersect1d(counted, object_image_ids)
        counted = np.setdiff1d(counted, object_image_ids[crowd])
    if not counted.size:
        raise DataError(f"no image {protocol.images}, as protocol {protocol.name} needs", key=name)
    return counted


def counted_images(protocol: Protocol, dataset: Dataset) -> Dataset:
    """The data set with only the images that count; errors as ``counted_image_ids``."""
    image_ids = np.array([record.image_id for record in dataset.records], np.int64)
    counts = np.array([len(record.crowd) for record in dataset.records], np.int64)
    object_image_ids = np.repeat(image_ids, counts)
    crowd = np.concatenate([np.zeros(0, bool), *(record.crowd for record in dataset.records)])
    counted = set(
        counted_image_ids(protocol, image_ids, object_image_ids, crowd, dataset.name).tolist()
    )
    records = [record for record in dataset.records if record.image_id in counted]
    return dataclasses.replace(dataset, records=records)


class _WithDetection:
    """A network with other detection settings."""

    def __init__(self, network: Network, config: Config) -> None:
        self._network = network
        self.config = config

    def heads(self, images: Array) -> Heads:
        """Those of the network."""
        return self._network.heads(images)

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Those of the network."""
        return self._network.scored_boxes(images)


def protocol_detection(protocol: Protocol, detection: DetectionConfig) -> DetectionConfig:
    """Detection settings, overridden by the protocol's.

    Raises:
        UsageError: the specification installed lacks one of these settings.
    """
    known = {field.name for field in dataclasses.fields(detection)}
    settings = {}
    for name, value in protocol.detection.items():
        if name in known:
            settings[name] = value
        elif value != NEUTRAL.get(name):
            raise UsageError(
                f"{protocol.name} needs detection.{name}={value}, "
                "which this version of the specification does not have",
                key="protocol",
            )
    return dataclasses.replace(detection, **settings)


def with_protocol(protocol: Protocol, network: Network) -> Network:
    """The network with the protocol's detection settings; errors as ``protocol_detection``."""
    detection = protocol_detection(protocol, network.config.detection)
    return _WithDetection(network, dataclasses.replace(network.config, detection=detection))
