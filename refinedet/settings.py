"""Settings of a run: the detector's config and how to feed, train and watch it.

They are layered: a preset, then a YAML file, then single assignments ``KEY=VALUE``.
Keys are those of the dataclasses, joined by dots, as ``model.schedule.rate``. Unknown
keys and values of another type are errors; nothing is evaluated.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refinedet.spec.config import Config, preset
from refinedet.spec.errors import ContractError

LARGEST_FILE = 1 << 20
"""Bytes of a settings file that are read."""


class SettingsError(ValueError):
    """Settings that cannot be used; one line: file, key, what is wanted."""


def _require(condition: bool, key: str, wanted: str, value: object) -> None:
    if not condition:
        raise SettingsError(f"{key}: wants {wanted}, got {value!r}")


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

    def __post_init__(self) -> None:
        for name in ("distort", "expand", "mirror", "flip"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"input.augment.{name}", "0 to 1", value)
        ratio = self.expand_ratio
        _require(1 <= ratio <= 16, "input.augment.expand_ratio", "1 to 16", ratio)


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

    def __post_init__(self) -> None:
        for name, low, high in (
            ("batch_size", 1, 4096),
            ("workers", 1, 256),
            ("seed", 0, 2**32 - 1),
            ("max_objects", 0, 4096),
        ):
            value = getattr(self, name)
            _require(low <= value <= high, f"input.{name}", f"{low} to {high}", value)


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

    def __post_init__(self) -> None:
        for name, low in (("checkpoint_every", 1), ("keep", 1), ("evaluate_every", 0)):
            value = getattr(self, name)
            _require(value >= low, f"train.{name}", f"a whole number from {low}", value)


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run.

    Attributes:
        class_names: without the background; empty before the data set is known.
    """

    model: Config = field(default_factory=Config)
    input: InputSettings = field(default_factory=InputSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.class_names
        _require(len(set(names)) == len(names), "class_names", "distinct names", names)
        _require(all(names), "class_names", "names that are not empty", names)
        if names and len(names) + 1 != self.model.num_classes:
            raise SettingsError(
                f"class_names: {len(names)} names want model.num_classes={len(names) + 1}, "
                f"got {self.model.num_classes}"
            )


def _small(**train: int) -> dict[str, Any]:
    return {"input": {"batch_size": 16}, "train": train}


PRESET_DEFAULTS: dict[str, dict[str, Any]] = {
    "refinedet_quarter_320": _small(checkpoint_every=50, evaluate_every=0),
    "refinedet_eighth_128": _small(checkpoint_every=100, evaluate_every=0),
}
"""What a preset of ``spec.config`` changes outside the detector's own config."""


def resolve(
    preset_name: str | None,
    file: Path | None,
    assignments: Sequence[str],
    class_names: tuple[str, ...] = (),
) -> Settings:
    """The settings of a preset, changed by a YAML file, then by assignments.

    Args:
        preset_name: wins over a ``preset:`` in the file; refinedet_vgg16_320 if
            neither names one.
        file: YAML, or None.
        assignments: each ``KEY=VALUE``, the value read as YAML.
        class_names: of the data set; set unless empty, and ``model.num_classes`` with
            them.
    Raises:
        SettingsError: unknown keys, wrong types, values out of range; names them.
    """
    content = _load_file(file) if file else {}
    name = preset_name or content.pop("preset", None) or "refinedet_vgg16_320"
    content.pop("preset", None)
    layers: list[tuple[str, dict[str, Any]]] = [("preset", PRESET_DEFAULTS.get(str(name), {}))]
    if file:
        layers.append((str(file), content))
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text}: wants KEY=VALUE")
        layers.append((f"--set {text}", _nested(key.strip(), _parse(value, f"--set {text}"))))
    try:
        settings = Settings(model=preset(str(name)))
    except ContractError as error:
        raise SettingsError(str(error)) from error
    if class_names:
        early = {"class_names": list(class_names), "model": {"num_classes": len(class_names) + 1}}
        layers.insert(0, ("data set", early))
    tree = plain(settings)
    for origin, layer in layers:
        _merge(tree, layer, origin, "")
    return _settings(tree)


def from_yaml(source: str | Path) -> Settings:
    """Settings from the text, or the file, that ``to_yaml`` wrote.

    Raises:
        SettingsError: not such a text.
    """
    content = _load_file(source) if isinstance(source, Path) else _mapping(source, "settings")
    tree = plain(Settings())
    _merge(tree, content, str(source) if isinstance(source, Path) else "settings", "")
    return _settings(tree)


def to_yaml(settings: Settings) -> str:
    """Every field, in a stable order; ``from_yaml`` gives equal settings."""
    return yaml.safe_dump(plain(settings), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """A dataclass as nested dicts and lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def differences(old: Settings, new: Settings) -> Iterator[tuple[str, Any, Any]]:
    """Each key that differs, with both values."""
    return _differences(plain(old), plain(new), "")


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict):
        for name, value in old.items():
            yield from _differences(value, new[name], f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys and without aliases, which can grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases are not read", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3, without a point, for a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "not YAML"
        raise SettingsError(f"{origin}{line}: {reason}") from error
    except (RecursionError, ValueError) as error:
        raise SettingsError(f"{origin}: cannot be read: {error}") from error


def _mapping(text: str, origin: str) -> dict[str, Any]:
    content = _parse(text, origin)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{origin}: wants keys and values, got {type(content).__name__}")
    return content


def _load_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise SettingsError(f"{file}: larger than {LARGEST_FILE} bytes; not a settings file")
        return _mapping(data.decode(), str(file))
    except OSError as error:
        raise SettingsError(f"{file}: cannot read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: not UTF-8: {error.reason}") from error


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _merge(tree: dict[str, Any], layer: dict[str, Any], origin: str, prefix: str) -> None:
    """Lay ``layer`` over ``tree``; both are nested like the dataclasses."""
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if name not in tree:
            near = difflib.get_close_matches(str(name), tree, n=3)
            hint = f"; did you mean {', '.join(prefix + n for n in near)}?" if near else ""
            raise SettingsError(f"{origin}: unknown key {key}{hint}")
        if isinstance(tree[name], dict):
            if not isinstance(value, dict):
                raise SettingsError(f"{origin}: {key} is a section, wants keys and values")
            _merge(tree[name], value, origin, f"{key}.")
        else:
            tree[name] = value


def _settings(tree: dict[str, Any]) -> Settings:
    settings: Settings = _build(Settings, tree, "")
    return settings


def _build(kind: Any, tree: dict[str, Any], prefix: str) -> Any:
    """A dataclass from nested dicts, each value checked against its annotation."""
    hints = typing.get_type_hints(kind)
    values = {name: _convert(hints[name], value, prefix + name) for name, value in tree.items()}
    try:
        return kind(**values)
    except ContractError as error:
        raise SettingsError(f"model.{error}") from error


def _convert(kind: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, f"{key}.")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not types.NoneType), value, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise SettingsError(f"{key}: wants a list, got {value!r}")
        return tuple(_convert(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise SettingsError(f"{key}: wants {kind.__name__}, got {value!r}")
    return value
