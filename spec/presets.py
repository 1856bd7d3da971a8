"""Presets: the named detectors.

``refinedet_vgg16_*`` and ``refinedet_resnet101_*`` are the paper's: arXiv:1711.06897, sections
3.2 and 4, with the recipes of the authors' releases for VOC07 (VGG16) and for COCO (ResNet-101).
``modelzoo_*`` are those of the MindSpore model zoo, whose COCO mAP is reported: another detector
in many places, all of them fields. ``quarter`` and ``eighth`` are narrow ones that train from
scratch on a CPU.
"""

from __future__ import annotations

from refinedet.spec.config import Config, replace
from refinedet.spec.errors import SpecError

_PAPER_320 = Config()
_SHORT = {
    "kind": "cosine",
    "steps": 600,
    "rate": 0.03,
    "warmup_steps": 30,
    "warmup_rate": 0.001,
    "milestones": (),
    "final_rate": 0.0,
}
_FROM_SCRATCH = replace(
    _PAPER_320,
    # Small scales: after batch normalisation, the authors' 10 and 8 make the heads' losses
    # so steep that momentum diverges at the rate that the trunk needs.
    network={"width": 0.25, "batch_norm": True, "l2_scales": (2.0, 2.0)},
    optimizer={"bias_rate": 1.0, "clip_norm": 10.0},
    schedule=_SHORT,
)

_MODELZOO_320 = replace(
    _PAPER_320,
    image={
        "channels": "RGB",
        "mean": (123.675, 116.28, 103.53),
        "std": (58.395, 57.12, 57.375),
    },
    network={
        "batch_norm_eps": 1e-3,
        "batch_norm_momentum": 0.97,
        "l2_floor": True,
        "l2_in_arm": False,
        "conv_bias": False,
        "fc7_relu": False,
        "tcb": "relu_sum_conv_conv",
        "heads": "separable",
        "initialiser": "normal",
    },
    # 0.1 of the image's side for the squares of the finest level; 0.2, 0.45, 0.7, 0.95.
    anchors={
        "sides": (64.0, 144.0, 224.0, 304.0),
        "square_sides": (32.0, 144.0, 224.0, 304.0),
        "refined": False,
    },
    matching={"rule": "in_order"},
    loss={"objectness": 0.0, "classes": "sigmoid", "arm_first_class": True},
    detection={
        "score": 0.1,
        "top_before_nms": None,
        "nms_iou": 0.6,
        "top_per_class": 100,
        "top": None,
        "clip_first": True,
        "pixel": 1.0,
    },
    optimizer={"weight_decay": 1.5e-4, "decay_all": True, "bias_rate": 1.0},
    schedule={  # 500 epochs of 458 steps of 8 x 32 images
        "kind": "cosine",
        "steps": 229_000,
        "rate": 0.05,
        "warmup_steps": 916,
        "warmup_rate": 0.001,
        "milestones": (),
        "final_rate": 5e-5,
    },
)

_MODELZOO_512 = replace(
    _MODELZOO_320,
    image_size=(512, 512),
    anchors={
        "sides": (102.4, 230.4, 358.4, 486.4),
        "square_sides": (51.2, 230.4, 358.4, 486.4),
    },
)

_PAPER_RESNET = {
    "backbone": "resnet",
    "batch_norm": True,
    "batch_norm_momentum": 0.999,
    "upsample_batch_norm": True,
    "l2_scales": None,
    "heads": "bottleneck",
    "initialiser": "gaussian",
}
_MODELZOO_RESNET = {
    "backbone": "resnet",
    "bottleneck_stride": "3x3",
    "same_padding": True,
    "extra_width": 32,
    "residual_gamma": 0.0,
    "batch_norm_momentum": 0.997,
    "head_momentum": 0.97,
}

PRESETS: dict[str, Config] = {
    "refinedet_vgg16_320": _PAPER_320,
    "refinedet_vgg16_512": replace(_PAPER_320, image_size=(512, 512)),
    "refinedet_resnet101_320": replace(
        _PAPER_320,
        network=_PAPER_RESNET,
        schedule={"steps": 400_000, "milestones": (280_000, 360_000)},
    ),
    "refinedet_resnet101_512": replace(
        _PAPER_320,
        image_size=(512, 512),
        network=_PAPER_RESNET,
        schedule={"steps": 540_000, "milestones": (400_000, 480_000)},
    ),
    "modelzoo_vgg16_320": _MODELZOO_320,
    "modelzoo_vgg16_512": _MODELZOO_512,
    "modelzoo_resnet101_320": replace(_MODELZOO_320, network=_MODELZOO_RESNET),
    "modelzoo_resnet101_512": replace(_MODELZOO_512, network=_MODELZOO_RESNET),
    "refinedet_quarter_320": _FROM_SCRATCH,
    "refinedet_eighth_128": replace(
        _FROM_SCRATCH,
        image_size=(128, 128),
        network={"width": 0.125},
        anchors={"sides": (16.0, 32.0, 64.0, 128.0)},
    ),
    "modelzoo_eighth_128": replace(
        _MODELZOO_320,
        image_size=(128, 128),
        network={"width": 0.125, "batch_norm": True},
        anchors={
            "sides": (25.6, 57.6, 89.6, 121.6),
            "square_sides": (12.8, 57.6, 89.6, 121.6),
        },
        optimizer={"clip_norm": 10.0},
        schedule=_SHORT,
    ),
}
"""By name, as users type it."""


def preset(name: str) -> Config:
    """The preset of that name.

    Raises:
        SpecError: no such preset; lists those that exist.
    """
    if name not in PRESETS:
        raise SpecError(f"no {name!r}; there are {', '.join(PRESETS)}", key="preset")
    return PRESETS[name]
