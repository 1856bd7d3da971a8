"""Settings of a run: the detector's configuration, its input, and its training.

Settings are layered: a preset, then a YAML file, then single assignments ``KEY=VALUE``.
Keys are the fields of the dataclasses, joined by dots, as ``model.schedule.rate``. Unknown
keys, values of another type, and fields that the other settings leave unread are errors;
nothing is evaluated. The YAML is version 1.2's core schema (``no`` and ``2001-01-01`` are
strings, ``1e-3`` is a number), without tags and aliases.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refinedet.errors import SettingsError, UsageError
from refinedet.spec.config import Config
from refinedet.spec.errors import SpecError
from refinedet.spec.presets import preset
from refinedet.spec.unread import RULES, Rule, Rules, unread, without_unread
from refinedet.support.files import read_regular_file
from refinedet.support.text import is_class_name, shown

LARGEST_FILE = 1 << 20
"""The largest settings file that is read, in bytes."""


UNREAD_RULES: Rules = {
    **RULES,
    "AugmentSettings": (Rule(("expand_ratio",), ("expand",), lambda augment: augment.expand > 0),),
}
"""When a section reads a field, by the name of its class: see ``refinedet.spec.unread``."""


def _require(condition: bool, key: str, expected: str, value: object) -> None:
    if not condition:
        raise SettingsError(f"expected {expected}, got {shown(value)}", key=key)


def _require_whole(key: str, value: object, low: int, high: int) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    _require(fits, key, f"a whole number, {low} to {high}", value)


def _require_number(key: str, value: object, low: float, high: float) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    _require(fits, key, f"a number, {low:g} to {high:g}", value)


@dataclass(frozen=True)
class AugmentSettings:
    """Random changes of a training image; each probability from 0 to 1.

    Attributes:
        distort: probability of each change of brightness, contrast, saturation and hue.
        expand: probability of placing the image on a canvas of up to ``expand_ratio`` times
            its width and height.
        crop: min-IoU crops, as in the paper; false trains on whole images.
        mirror, flip: probability of exchanging left and right, top and bottom.
    """

    distort: float = 0.5
    expand: float = 0.5
    expand_ratio: float = 4.0
    crop: bool = True
    mirror: float = 0.5
    flip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("distort", "expand", "mirror", "flip"):
            _require_number(f"input.augment.{name}", getattr(self, name), 0, 1)
        _require_number("input.augment.expand_ratio", self.expand_ratio, 1, 16)
        _require(isinstance(self.crop, bool), "input.augment.crop", "true or false", self.crop)
        for name, reason in unread(AugmentSettings, self, UNREAD_RULES).items():
            raise SettingsError(reason, key=f"input.augment.{name}")


@dataclass(frozen=True)
class InputSettings:
    """How training images become batches.

    Attributes:
        batch_size: images in each step.
        workers: threads that prepare images.
        seed: of the order of images and of the augmentation.
        max_objects: padded slots for the objects of an image; 0: as many as the image of the
            data set with the most objects has.
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
            _require_whole(f"input.{name}", getattr(self, name), low, high)


@dataclass(frozen=True)
class TrainSettings:
    """When to save checkpoints and to evaluate.

    Attributes:
        checkpoint_every: steps between checkpoints.
        keep: how many of the newest checkpoints stay.
        evaluate_every: steps between evaluations; 0 evaluates at the end only.
    """

    checkpoint_every: int = 100
    keep: int = 3
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        for name, low in (("checkpoint_every", 1), ("keep", 1), ("evaluate_every", 0)):
            _require_whole(f"train.{name}", getattr(self, name), low, 10**9)


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run.

    Attributes:
        class_names: the ``model.num_classes`` - 1 classes without the background; empty
            until the data set is known.
    """

    model: Config = field(default_factory=Config)
    input: InputSettings = field(default_factory=InputSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.class_names
        for name in names:
            _require(is_class_name(name), "class_names", "strings of one line, not empty", name)
        _require(len(set(names)) == len(names), "class_names", "distinct names", names)
        if names and len(names) + 1 != self.model.num_classes:
            raise SettingsError(
                f"expected model.num_classes={len(names) + 1} with {len(names)} names, "
                f"got {self.model.num_classes}",
                key="class_names",
            )


PRESET_DEFAULTS: dict[str, dict[str, Any]] = {
    "refinedet_quarter_320": {"input.batch_size": 16, "train.checkpoint_every": 50},
    "refinedet_eighth_128": {"input.batch_size": 16},
    "modelzoo_eighth_128": {"input.batch_size": 16},
}
"""What a preset of ``spec.presets`` changes outside the detector's own config."""


def resolve(
    preset_name: str | None,
    file: Path | None,
    assignments: Sequence[str],
    class_names: tuple[str, ...] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings of a preset, changed by a YAML file, then by assignments.

    Args:
        preset_name: takes precedence over a ``preset:`` in the file; if both are absent,
            refinedet_vgg16_320.
        file: YAML, or None. An empty ``class_names`` in it leaves the classes, and
            their number, to the data set.
        assignments: each ``KEY=VALUE``, the value read as YAML.
        class_names: of the data set; set unless empty, and ``model.num_classes`` with
            them.
        defaults: values by dotted key that replace the preset's. Like those of a preset, they
            give way where they are not read.
    Raises:
        SettingsError: unknown keys, wrong types, values out of range or not read, classes
            that are not the data set's; names the file, if it is the file's value, and the key.
        UsageError: an assignment without an equals sign, or of an unknown key.
    """
    content = _load_file(file) if file else {}
    from_file = content.pop("preset", None)
    if not isinstance(from_file, str | None):
        raise SettingsError(f"expected a name, got {shown(from_file)}", path=file, key="preset")
    name = preset_name or from_file or "refinedet_vgg16_320"
    try:
        layers = _Layers(Settings(model=preset(name)))
    except SpecError as error:
        raise SettingsError(error.reason, key=error.key) from error
    layers.add_defaults({**PRESET_DEFAULTS.get(name, {}), **(defaults or {})})
    if class_names:
        classes = {"class_names": list(class_names), "model.num_classes": len(class_names) + 1}
        layers.add(classes)
        if content.get("class_names") == []:
            content.pop("class_names")
            if isinstance(content.get("model"), dict):
                content["model"].pop("num_classes", None)
    layers.add(content, file)
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"expected KEY=VALUE, got {shown(text)}", key="assignments")
        key = key.strip()
        if not layers.knows(key):
            raise UsageError(layers.unknown(key), key="assignments")
        layers.add({key: _parse(value, key=key)})
    settings = layers.settings()
    if class_names and settings.class_names != class_names:
        raise SettingsError(
            f"the data set has {shown(class_names)}, "
            f"the settings have {shown(settings.class_names)}; take them out of the settings",
            key="class_names",
        )
    return settings


def from_yaml(source: str | Path) -> Settings:
    """Settings from the text, or the file, that ``to_yaml`` wrote.

    Raises:
        SettingsError: not such a text.
    """
    layers = _Layers(Settings())
    if isinstance(source, Path):
        layers.add(_load_file(source), source)
    else:
        layers.add(_mapping(source))
    return layers.settings()


def to_yaml(settings: Settings) -> str:
    """All fields as YAML, in a stable order; inverted by ``from_yaml``."""
    text: str = yaml.dump(plain(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def plain(value: Any) -> Any:
    """A dataclass as nested dicts and lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def differences(old: Settings, new: Settings) -> Iterator[tuple[str, Any, Any]]:
    """Each dotted key whose values differ, with the old and the new value."""
    for (key, _, before), (_, _, after) in zip(_leaves(old), _leaves(new), strict=True):
        if before != after:
            yield key, before, after


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, annotation and value of every field that is not a section."""
    hints = typing.get_type_hints(type(section))
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", hints[f.name], value


def _build(section: Any, values: dict[str, Any], explicit: Container[str], prefix: str = "") -> Any:
    """A section like this one with the values of the dotted keys; checks its ranges.

    A value that is not read, and whose key is not ``explicit``, gives way to its default.
    """
    kind, fields = type(section), {}
    for f in dataclasses.fields(section):
        old = getattr(section, f.name)
        key = f"{prefix}{f.name}"
        if dataclasses.is_dataclass(old):
            fields[f.name] = _build(old, values, explicit, f"{key}.")
        else:
            fields[f.name] = values[key]
    named = [name for name in fields if f"{prefix}{name}" in explicit]
    try:
        return kind(**without_unread(kind, fields, named, UNREAD_RULES))
    except SpecError as error:
        raise SettingsError(error.reason, key=f"model.{error.key}") from error


class _Layers:
    """Values by dotted key, and the file, or None, in which each was set last."""

    def __init__(self, base: Settings) -> None:
        self.base = base
        self.kinds = {key: kind for key, kind, _ in _leaves(base)}
        self.values = {key: value for key, _, value in _leaves(base)}
        self.files: dict[str, Path | None] = {}
        parts = [key.split(".") for key in self.kinds]
        self.sections = {".".join(p[:n]) for p in parts for n in range(1, len(p))}

    def add_defaults(self, values: Mapping[str, Any]) -> None:
        """Lay values, by dotted key, over the base; they are no more explicit than its own."""
        for key, value in values.items():
            self.values[key] = _convert(self.kinds[key], value, None, key)

    def add(self, content: dict[str, Any], file: Path | None = None) -> None:
        """Lay ``content``, nested or with dotted keys, over the present values."""
        seen = set()
        for key, value in _flatten(content):
            if key in seen:
                raise SettingsError("is set twice", path=file, key=key)
            seen.add(key)
            if key in self.kinds:
                self.values[key] = _convert(self.kinds[key], value, file, key)
                self.files[key] = file
            elif key not in self.sections:
                raise SettingsError(self.unknown(key), path=file)
            elif value is not None and value != {}:
                reason = "is a section, expected keys and values"
                raise SettingsError(reason, path=file, key=key)

    def knows(self, key: str) -> bool:
        """Whether it is the dotted key of a field or a section."""
        return key in self.kinds or key in self.sections

    def unknown(self, key: str) -> str:
        """Why an unknown key is refused, with the keys that are spelt alike."""
        known = [*self.kinds, *sorted(self.sections)]
        near = [k for k in known if k.endswith(f".{key}")]
        near = near or difflib.get_close_matches(key[:80], known, n=3)
        hint = f"; did you mean {' or '.join(near[:3])}?" if near else ""
        return f"unknown key {shown(key)}{hint}"

    def settings(self) -> Settings:
        """The settings of all layers; an error names the file that set the value."""
        try:
            settings: Settings = _build(self.base, self.values, self.files)
        except SettingsError as error:
            file = self.files.get(str(error.key))
            raise SettingsError(error.reason, path=file, key=error.key) from error
        return settings


def _flatten(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def _convert(kind: Any, value: Any, file: Path | None, key: str) -> Any:
    """``value``, as YAML gave it, in the type that the annotation ``kind`` names."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (a for a in arguments if a is not types.NoneType)
        return _convert(inner, value, file, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise SettingsError(f"expected a list, got {shown(value)}", path=file, key=key)
        items = enumerate(value)
        return tuple(_convert(arguments[0], item, file, f"{key}[{i}]") for i, item in items)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise SettingsError(f"expected {WORDS[kind]}, got {shown(value)}", path=file, key=key)
    return value


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema; no duplicate keys, no tags, no aliases (they can explode)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise _refusal("tags and aliases are not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key is not a string", key.start_mark)
            if key.value in seen:
                raise _refusal(f"{shown(key.value)} is set twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that either version of YAML would read as something else."""


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


_Loader.yaml_implicit_resolvers = {}  # without those of YAML 1.1
# Longer whole numbers are read as floats: Python refuses to convert those of 4,300 digits.
for _tag, _pattern in (
    ("null", r"(~|null|Null|NULL|)$"),
    ("bool", r"(true|True|TRUE|false|False|FALSE)$"),
    ("int", r"[-+]?[0-9]{1,300}$"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    ("float", r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), None)
# PyYAML's own constructor reads 010 as 8.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def _parse(text: str, file: Path | None = None, key: str | None = None) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", "not YAML")
        place = f"line {mark.line + 1}" if mark and key is None else key
        raise SettingsError(f"{reason}", path=file, key=place) from error
    except RecursionError as error:
        raise SettingsError("nested too deeply", path=file, key=key) from error


def _mapping(text: str, file: Path | None = None) -> dict[str, Any]:
    content = _parse(text, file)
    if content is None:
        return {}
    if not isinstance(content, dict):
        reason = f"expected keys and values, got {type(content).__name__}"
        raise SettingsError(reason, path=file)
    return content


def _load_file(file: Path) -> dict[str, Any]:
    try:
        data = read_regular_file(file, LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise SettingsError(f"larger than {LARGEST_FILE} bytes; not a settings file", path=file)
        return _mapping(data.decode(), file)
    except OSError as error:
        raise SettingsError(f"cannot read: {error.strerror}", path=file) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"not UTF-8: {error.reason}", path=file) from error
