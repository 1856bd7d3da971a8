"""Foreign weights into a detector: all of them or none, and every misfit is named."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from refinedet.data.formats.coco import COCO_CLASSES
from refinedet.data.formats.voc import CLASSES as VOC_CLASSES
from refinedet.errors import CheckpointError, SettingsError
from refinedet.models.checkpoint import Checkpoint
from refinedet.models.foreign.mapping import for_export
from refinedet.models.foreign.reading import WeightsFile, read_weights
from refinedet.models.foreign.scheme import classifier_layers, trunk_fields
from refinedet.settings import Settings, plain, resolve
from refinedet.spec.config import Config, ImageConfig, NetworkConfig
from refinedet.spec.network import Parameters, initial_parameters
from refinedet.spec.presets import preset
from refinedet.spec.unread import without_unread
from refinedet.support.text import one_line

FIRST = 5
"""So many misfits are told; the others are counted."""


def _under(name: str, pattern: str) -> bool:
    """Whether a pattern means this name, or something that the name is in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def fit(
    file: WeightsFile,
    fresh: Parameters,
    expected: Sequence[str],
    partial: Sequence[str],
    part: str = "",
) -> Parameters:
    """Parameters of a file, over the fresh ones.

    Args:
        fresh: all parameters of the network, by canonical name.
        part: what the names begin with that are looked at; the file's others are left.
        expected: those of them that the file must have; its others are left.
        partial: patterns of canonical names, or of what they are in; such a tensor stays
            fresh where the file lacks it or has it in another shape.
    Returns:
        The tensors of ``expected`` that come from the file, float32.
    Raises:
        CheckpointError: lists what is missing, unexpected, misshapen or not finite.
    """
    for pattern in partial:
        if not any(_under(name, pattern) for name in expected):
            raise CheckpointError(
                f"{pattern!r} is none of the tensors that are loaded", key="--partial"
            )
    found = {name: value for name, value in file.parameters.items() if name.startswith(part)}
    faults = [f"{one_line(name, 60)} is unexpected" for name in file.unexpected()]
    faults += [f"{name} is unexpected" for name in found if name not in fresh]
    taken = {}
    for name in expected:
        optional = any(_under(name, pattern) for pattern in partial)
        if name not in found:
            faults += [] if optional else [f"{name} is missing"]
        elif found[name].shape != fresh[name].shape:
            shapes = f"has shape {found[name].shape}, expected {fresh[name].shape}"
            faults += [] if optional else [f"{name} {shapes}"]
        elif not np.isfinite(found[name]).all():
            faults.append(f"{name} is not finite")
        else:
            taken[name] = found[name]
    if faults:
        more = f"; and {len(faults) - FIRST} more" if len(faults) > FIRST else ""
        count = f"{len(faults)} misfit{'s' if len(faults) > 1 else ''}"
        raise CheckpointError(
            f"{file.scheme.kind}: {count}: {'; '.join(faults[:FIRST])}{more}; nothing was loaded",
            key=file.path,
        )
    if not taken:
        raise CheckpointError("holds nothing that is expected; nothing was loaded", key=file.path)
    return taken


def patterns(partial: str | None) -> tuple[str, ...]:
    """The value of ``--partial``, split at its commas."""
    return tuple(part.strip() for part in (partial or "").split(",") if part.strip())


def with_backbone(
    path: Path, settings: Settings, partial: Sequence[str] = ()
) -> tuple[Parameters, str]:
    """Fresh parameters, with the trunk of a file over them.

    A detector's file must have the whole trunk, ``backbone.*``. A classifier's has no L2
    scales, and nothing of the last stage: of it, VGG16's conv1_1 to fc7 or a ResNet's conv1
    to res5 are expected.

    Returns:
        All parameters, and a line that tells what came from where.
    Raises:
        CheckpointError: as ``fit`` and ``read_weights``.
    """
    file = read_weights(path)
    fresh = initial_parameters(settings.model, settings.input.seed)
    trunk = [name for name in fresh if name.startswith("backbone.")]
    layers = {name.rpartition(".")[0] for name in file.parameters if ".l2_scale" not in name}
    classifier = {*classifier_layers(settings.model)}
    expected = [n for n in trunk if n.rpartition(".")[0] in classifier and ".l2_scale" not in n]
    expected = expected if layers <= classifier else trunk
    taken = fit(file, fresh, expected, partial, "backbone.")
    return _laid_over(file, fresh, taken, trunk, "the trunk", settings)


def with_detector(
    path: Path, settings: Settings, partial: Sequence[str] = ()
) -> tuple[Parameters, str]:
    """Fresh parameters, with those of a whole detector over them.

    Of a checkpoint the parameters alone are taken: what begins is another training.

    Returns:
        All parameters, and a line that tells what came from where.
    Raises:
        CheckpointError: as ``fit`` and ``read_weights``.
    """
    file = read_weights(path)
    fresh = initial_parameters(settings.model, settings.input.seed)
    taken = fit(file, fresh, list(fresh), partial)
    return _laid_over(file, fresh, taken, list(fresh), "the detector", settings)


def _laid_over(
    file: WeightsFile,
    fresh: Parameters,
    taken: Parameters,
    names: Sequence[str],
    part: str,
    settings: Settings,
) -> tuple[Parameters, str]:
    """All parameters, and how many of ``names``, which are ``part``, come from the file."""
    said = f"{len(taken)} of {len(names)} tensors of {part} are from {file.path}"
    said += f" ({file.scheme.kind})"
    stay = sorted({name for name in names if name not in taken})
    if stay:
        said += f"; fresh: {', '.join(stay[:8])}{', ...' if len(stay) > 8 else ''}"
    return {**fresh, **taken}, said + _settings_note(file, settings)


def _settings_note(file: WeightsFile, settings: Settings) -> str:
    """What a trunk was trained with, where the settings differ."""
    image, network = file.scheme.image, file.scheme.network
    if file.settings:
        image = file.settings.model.image
        network = trunk_fields(file.settings.model.network)
    now = settings.model.network
    trained = without_unread(NetworkConfig, {**vars(now), **network}, ())
    told = _assignments(
        None if image == settings.model.image else image,
        {name: trained[name] for name in network if trained[name] != getattr(now, name)},
    )
    return f"; they were trained with other settings: {' '.join(told)}" if told else ""


def _assignments(image: ImageConfig | None, network: Mapping[str, object]) -> list[str]:
    """``KEY=VALUE`` of settings."""
    values = _required_settings(image, network)
    return [f"{key}={json.dumps(value).replace(chr(34), '')}" for key, value in values.items()]


def _required_settings(
    image: ImageConfig | None, network: Mapping[str, object]
) -> dict[str, object]:
    """The settings, by dotted key, with which a file's network computes."""
    fields = plain(image) if image is not None else {}
    return {f"model.image.{name}": value for name, value in fields.items()} | {
        f"model.network.{name}": value for name, value in network.items()
    }


def import_weights(
    path: Path,
    preset_name: str | None = None,
    class_names: tuple[str, ...] = (),
    assignments: Sequence[str] = (),
    partial: Sequence[str] = (),
) -> tuple[Checkpoint, str]:
    """A detector of this program from a file of weights.

    Args:
        path: any file that ``read_weights`` knows, of a whole detector.
        preset_name: the detector; if None, that of the file's kind at 320x320. Not for files
            with settings of this program in them; nor are the next two.
        class_names: without the background; VOC's for 20 classes, COCO's for 80, else
            ``class 1`` and so on.
        assignments: ``KEY=VALUE`` of settings, over those that the file's kind wants.
        partial: as for ``fit``.
    Returns:
        Weights without momentum, and a line that tells what they are.
    Raises:
        CheckpointError, SettingsError: see ``fit``, ``read_weights``; or unfit settings.
    """
    file = read_weights(path)
    if file.settings is not None:
        if preset_name or class_names or assignments:
            raise CheckpointError(
                "has its own settings; leave out --preset, --classes and --set", path=path
            )
        settings = file.settings
    else:
        chosen = preset_name or file.scheme.preset
        base = preset(chosen)
        if not partial and not any(".logits." in name for name in file.parameters):
            raise CheckpointError(
                "has no heads; give it to train, as --backbone", path=path, key=file.scheme.kind
            )
        count = _classes(file, base) or len(class_names) + 1
        names = class_names or _default_names(count)
        if len(names) + 1 != count:
            raise SettingsError(
                f"{path} detects {count - 1} classes, got {len(names)}", key="--classes"
            )
        defaults = _required_settings(file.scheme.image, file.scheme.network)
        settings = resolve(chosen, None, assignments, names, defaults)
    fresh = initial_parameters(settings.model, settings.input.seed)
    taken = fit(file, fresh, list(fresh), partial)
    height, width = settings.model.image_size
    said = (
        f"{file.scheme.kind}, {len(settings.class_names)} classes, {height}x{width}: "
        f"{len(taken)} of {len(fresh)} tensors from {path}"
    )
    if dropped := file.dropped():
        said += f"; {dropped} others, which a detector does not need, are dropped"
    digest = None if partial else file.digest
    parameters = {**fresh, **taken}
    return Checkpoint(settings, parameters, None, 0, stored_digest=digest), said


def _classes(file: WeightsFile, config: Config) -> int:
    """Classes with the background, by the rows of the file's logits; 0 where it has none."""
    logits = file.parameters.get("odm.0.logits.weight")
    rows = 0 if logits is None or logits.ndim != 4 else len(logits)
    cell = len(config.anchors.aspect_ratios)
    return rows // cell if rows % cell == 0 and rows > cell else 0


def _default_names(count: int) -> tuple[str, ...]:
    for names in (VOC_CLASSES, COCO_CLASSES):
        if len(names) + 1 == count:
            return names
    return tuple(f"class {i}" for i in range(1, max(count, 2)))


def renamed(parameters: Parameters, names: str) -> Parameters:
    """Parameters under ``canonical`` names, or as the ``port`` or the ``modelzoo`` has them.

    Raises:
        CheckpointError: of another network, as with batch normalisation in the trunk.
    """
    if names == "canonical":
        return dict(parameters)
    scheme = for_export(names, parameters)
    if lost := [name for name in parameters if name not in scheme.names]:
        raise CheckpointError(
            f"{scheme.kind} has no such tensor; export with --names canonical", key=lost[0]
        )
    if lost := [name for name in scheme.names if name not in parameters]:
        raise CheckpointError(
            f"{scheme.kind} has it, this detector does not; export with --names canonical",
            key=lost[0],
        )
    return {scheme.names[name]: scheme.revert(name, value) for name, value in parameters.items()}
