"""The options for settings and initial weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from refinedet.cli.option_groups import Command, option_group


class SettingsOptions(NamedTuple):
    """The values of the options of ``SETTINGS``."""

    preset: str | None
    settings: Path | None
    assignments: list[str] | None


class WeightsOptions(NamedTuple):
    """The values of the options of ``WEIGHTS``."""

    backbone: Path | None
    initial: Path | None
    partial: str | None


def _option(kind: Any, name: str, text: str, panel: str) -> Any:
    return Annotated[kind | None, typer.Option(name, help=text, rich_help_panel=panel)]


SETTINGS: dict[str, Any] = {
    "preset": _option(str, "--preset", "Preset that provides the initial settings.", "Settings"),
    "settings": _option(
        Path, "--settings", "YAML file of settings that override the preset.", "Settings"
    ),
    "assignments": _option(
        list[str],
        "--set",
        "KEY=VALUE that overrides both, e.g. model.schedule.rate=0.01; repeatable.",
        "Settings",
    ),
}
"""By the field of ``SettingsOptions``."""

WEIGHTS: dict[str, Any] = {
    "backbone": _option(
        Path,
        "--backbone",
        "File of initial backbone weights: .caffemodel, .pth, .safetensors.",
        "Initial weights",
    ),
    "initial": _option(
        Path, "--initial", "File of initial weights of the whole detector.", "Initial weights"
    ),
    "partial": _option(
        str,
        "--partial",
        "Tensors that may be missing: names or layers, with commas; * matches any.",
        "Initial weights",
    ),
}
"""By the field of ``WeightsOptions``."""


def with_settings(command: Command) -> Command:
    """Give a command these options in place of its argument ``settings``."""
    return option_group(command, "settings", SETTINGS, SettingsOptions)


def with_weights(command: Command) -> Command:
    """Give a command these options in place of its argument ``weights``."""
    return option_group(command, "weights", WEIGHTS, WeightsOptions)
