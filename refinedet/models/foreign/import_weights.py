"""Detectors and backbones from files of weights: every tensor that does not fit is reported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from refinedet.data.formats.coco import COCO_CLASSES
from refinedet.data.formats.voc import CLASSES as VOC_CLASSES
from refinedet.errors import CheckpointError, UsageError
from refinedet.models.checkpoint import Checkpoint
from refinedet.models.foreign.known_schemes import for_export
from refinedet.models.foreign.naming_scheme import classifier_layers, trunk_fields
from refinedet.models.foreign.weights_file import WeightsFile, read_weights
from refinedet.settings import Settings, plain, resolve
from refinedet.spec.config import Config, ImageConfig, NetworkConfig
from refinedet.spec.network import Parameters, initial_parameters
from refinedet.spec.presets import preset as find_preset
from refinedet.spec.unread import without_unread
from refinedet.support.text import one_line

LISTED = 5
"""Tensors that are listed in an error; further ones are counted."""


def _under(name: str, pattern: str) -> bool:
    """Whether a pattern matches this name or a module that contains it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def fit(
    file: WeightsFile,
    fresh: Parameters,
    expected: Sequence[str],
    partial: Sequence[str],
    prefix: str = "",
) -> Parameters:
    """The parameters that a file provides, all of which must fit the network.

    Args:
        fresh: all parameters of the network, by canonical name.
        expected: names of the parameters that the file must have.
        partial: patterns of names, or of modules that contain them; a matching parameter may
            be missing from the file or have another shape, and is left out.
        prefix: parameters of the file with other names are ignored.
    Returns:
        The parameters of ``expected`` that the file provides, float32.
    Raises:
        CheckpointError: lists tensors that are missing, unexpected, of another shape or not
            finite.
        UsageError: a pattern that matches nothing.
    """
    for pattern in partial:
        if not any(_under(name, pattern) for name in expected):
            raise UsageError(
                f"{pattern!r} matches none of the tensors that are loaded", key="partial"
            )
    given = {name: value for name, value in file.parameters.items() if name.startswith(prefix)}
    faults = [f"{one_line(name, 60)} is unexpected" for name in file.unexpected()]
    faults += [f"{name} is unexpected" for name in given if name not in fresh]
    taken = {}
    for name in expected:
        optional = any(_under(name, pattern) for pattern in partial)
        if name not in given:
            faults += [] if optional else [f"{name} is missing"]
        elif given[name].shape != fresh[name].shape:
            shapes = f"has shape {given[name].shape}, expected {fresh[name].shape}"
            faults += [] if optional else [f"{name} {shapes}"]
        elif not np.isfinite(given[name]).all():
            faults.append(f"{name} is not finite")
        else:
            taken[name] = given[name]
    if faults:
        more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        count = f"{len(faults)} misfit{'s' if len(faults) > 1 else ''}"
        raise CheckpointError(
            f"{file.scheme.kind}: {count}: {'; '.join(faults[:LISTED])}{more}; nothing was loaded",
            path=file.path,
        )
    if not taken:
        raise CheckpointError("has none of the tensors; nothing was loaded", path=file.path)
    return taken


def patterns(partial: str | None) -> tuple[str, ...]:
    """The patterns of a text in which commas separate them."""
    return tuple(part.strip() for part in (partial or "").split(",") if part.strip())


def with_backbone(
    path: Path, settings: Settings, partial: Sequence[str] = ()
) -> tuple[Parameters, str]:
    """Initial parameters, with those of the backbone from a file.

    A detector's file must have the whole backbone, ``backbone.*``. A classifier's file has no L2
    scales and no last stage: VGG16's conv1_1 to fc7, or a ResNet's conv1 to res5, are required.

    Returns:
        All parameters, and one line that describes which come from the file.
    Raises:
        CheckpointError, UsageError: as ``fit`` and ``read_weights``.
    """
    file = read_weights(path)
    fresh = initial_parameters(settings.model, settings.input.seed)
    trunk = [name for name in fresh if name.startswith("backbone.")]
    layers = {name.rpartition(".")[0] for name in file.parameters if ".l2_scale" not in name}
    classifier = {*classifier_layers(settings.model)}
    expected = [n for n in trunk if n.rpartition(".")[0] in classifier and ".l2_scale" not in n]
    expected = expected if layers <= classifier else trunk
    taken = fit(file, fresh, expected, partial, "backbone.")
    return _merged(file, fresh, taken, trunk, "the backbone", settings)


def with_detector(
    path: Path, settings: Settings, partial: Sequence[str] = ()
) -> tuple[Parameters, str]:
    """Initial parameters, with those of a detector from a file.

    Of a checkpoint only the parameters are used: a new training begins.

    Returns:
        All parameters, and one line that describes which come from the file.
    Raises:
        CheckpointError, UsageError: as ``fit`` and ``read_weights``.
    """
    file = read_weights(path)
    fresh = initial_parameters(settings.model, settings.input.seed)
    taken = fit(file, fresh, list(fresh), partial)
    return _merged(file, fresh, taken, list(fresh), "the detector", settings)


def _merged(
    file: WeightsFile,
    fresh: Parameters,
    taken: Parameters,
    names: Sequence[str],
    part: str,
    settings: Settings,
) -> tuple[Parameters, str]:
    """All parameters, and a line with how many of ``names``, called ``part``, are the file's."""
    line = f"{len(taken)} of {len(names)} tensors of {part} are from {file.path}"
    line += f" ({file.scheme.kind})"
    if rest := sorted({name for name in names if name not in taken}):
        line += f"; newly initialised: {', '.join(rest[:8])}{', ...' if len(rest) > 8 else ''}"
    return {**fresh, **taken}, line + _settings_note(file, settings)


def _settings_note(file: WeightsFile, settings: Settings) -> str:
    """The end of the line: settings that the file was trained with and that differ now."""
    image, network = file.scheme.image, file.scheme.network
    if file.settings:
        image = file.settings.model.image
        network = trunk_fields(file.settings.model.network)
    now = settings.model.network
    trained = without_unread(NetworkConfig, {**vars(now), **network}, ())
    different = _assignments(
        None if image == settings.model.image else image,
        {name: trained[name] for name in network if trained[name] != getattr(now, name)},
    )
    return f"; they were trained with other settings: {' '.join(different)}" if different else ""


def _assignments(image: ImageConfig | None, network: Mapping[str, object]) -> list[str]:
    """``KEY=VALUE`` of settings."""
    values = _required_settings(image, network)
    return [f"{key}={json.dumps(value).replace(chr(34), '')}" for key, value in values.items()]


def _required_settings(
    image: ImageConfig | None, network: Mapping[str, object]
) -> dict[str, object]:
    """By dotted key, the settings that a file's network was trained with."""
    fields = plain(image) if image is not None else {}
    return {f"model.image.{name}": value for name, value in fields.items()} | {
        f"model.network.{name}": value for name, value in network.items()
    }


def import_weights(
    path: Path,
    preset: str | None = None,
    class_names: tuple[str, ...] = (),
    assignments: Sequence[str] = (),
    partial: Sequence[str] = (),
) -> tuple[Checkpoint, str]:
    """The detector in a file of weights.

    Args:
        path: a whole detector, in any format that ``read_weights`` reads.
        preset: of the detector; by default that of the file's kind, for 320x320. A file with
            its own settings takes neither this nor the next two.
        class_names: without the background; by default VOC's for 20 classes, COCO's for 80,
            else ``class 1`` and so on.
        assignments: ``KEY=VALUE`` of settings, over those that the file's kind requires.
        partial: as for ``fit``.
    Returns:
        A checkpoint without momentum buffers, and one line that describes it.
    Raises:
        CheckpointError: see ``fit`` and ``read_weights``; a file without heads.
        SettingsError: settings that cannot be used.
        UsageError: arguments that do not go with the file.
    """
    file = read_weights(path)
    if file.settings is not None:
        arguments = {"preset": preset, "class_names": class_names, "assignments": assignments}
        for name, value in arguments.items():
            if value:
                raise UsageError(f"is not for {path}, which has its own settings", key=name)
        settings = file.settings
    else:
        chosen = preset or file.scheme.preset
        if not partial and not any(".logits." in name for name in file.parameters):
            raise CheckpointError(
                "has no heads; only a training can begin with it, as its backbone",
                path=path,
                key=file.scheme.kind,
            )
        count = _classes(file, find_preset(chosen)) or len(class_names) + 1
        names = class_names or _default_names(count)
        if len(names) + 1 != count:
            raise UsageError(
                f"has {len(names)} names, but {path} detects {count - 1} classes",
                key="class_names",
            )
        defaults = _required_settings(file.scheme.image, file.scheme.network)
        settings = resolve(chosen, None, assignments, names, defaults)
    fresh = initial_parameters(settings.model, settings.input.seed)
    taken = fit(file, fresh, list(fresh), partial)
    height, width = settings.model.image_size
    line = (
        f"{file.scheme.kind}, {len(settings.class_names)} classes, {height}x{width}: "
        f"{len(taken)} of {len(fresh)} tensors from {path}"
    )
    if dropped := file.dropped():
        line += f"; {dropped} others, which a detector does not need, are dropped"
    digest = None if partial else file.digest
    parameters = {**fresh, **taken}
    return Checkpoint(settings, parameters, None, 0, stored_digest=digest), line


def _classes(file: WeightsFile, config: Config) -> int:
    """Number of classes, background included, by the shape of the logits; 0 if it has none."""
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
    """Parameters as another program names and stores them.

    Args:
        names: ``canonical``; ``port``, the PyTorch port; or ``modelzoo``.
    Raises:
        UsageError: that program has another network, such as one without batch normalisation.
    """
    if names == "canonical":
        return dict(parameters)
    scheme = for_export(names, parameters)
    if lost := [name for name in parameters if name not in scheme.names]:
        raise UsageError(f"{scheme.kind} has no {lost[0]}; choose the canonical names", key="names")
    if lost := [name for name in scheme.names if name not in parameters]:
        raise UsageError(
            f"{scheme.kind} has {lost[0]}, which this detector lacks; choose the canonical names",
            key="names",
        )
    return {scheme.names[name]: scheme.revert(name, value) for name, value in parameters.items()}
