"""Settings of a run: the detector's config and how to feed, train and watch it."""

from __future__ import annotations

from dataclasses import dataclass, field

from refinedet.spec.config import Config


@dataclass(frozen=True)
class AugmentSettings:
    """Random changes of a training picture; each probability from 0 to 1.

    Attributes:
        distort: of each of brightness, contrast, saturation and hue.
        expand: of placing the picture on a larger canvas, up to ``expand_ratio`` a side.
        crop: min-IoU crops, as the paper's; false trains on whole pictures.
        mirror, flip: of exchanging left and right, top and bottom.
    """

    distort: float = 0.5
    expand: float = 0.5
    expand_ratio: float = 4.0
    crop: bool = True
    mirror: float = 0.5
    flip: float = 0.0


@dataclass(frozen=True)
class InputSettings:
    """How training pictures become batches.

    Attributes:
        batch_size: pictures a step.
        workers: threads that prepare pictures.
        seed: of the order and of the augmentation.
        max_objects: places for objects in a batch; 0 takes the data set's largest count.
    """

    batch_size: int = 32
    workers: int = 1
    seed: int = 0
    max_objects: int = 0
    augment: AugmentSettings = field(default_factory=AugmentSettings)


@dataclass(frozen=True)
class TrainSettings:
    """When to save and to look.

    Attributes:
        checkpoint_every, keep: steps between checkpoints; the newest so many stay.
        evaluate_every: steps between evaluations; 0 evaluates at the end only.
    """

    checkpoint_every: int = 100
    keep: int = 3
    evaluate_every: int = 0


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run."""

    model: Config = field(default_factory=Config)
    input: InputSettings = field(default_factory=InputSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    class_names: tuple[str, ...] = ()
