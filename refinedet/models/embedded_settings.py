"""Settings inside and beside exported files.

An export has its settings beside it, as ``NAME.yaml``: classes, preparation of images
and all else that not every backend's kind of file has a place for. MindIR and ONNX hold them
too, and are refused beside others; a file that stands alone is run by those in it.

Both kinds are protobuf messages. Of ONNX, the metadata hold the settings under a key. MindIR has
no such place, but its readers pass over fields that they do not know: the settings are in a field
of our own at its end, this program's version is in another, and a third has the digest of all
before them. (Other programs may work on an ONNX file, so that has no digest.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from refinedet import __version__
from refinedet.errors import BackendError, FormatError, SettingsError
from refinedet.models.foreign.protobuf import fields, message, written_field
from refinedet.settings import Settings, differences, from_yaml, to_yaml
from refinedet.support.text import shown

HOLDING = (".mindir", ".onnx")
"""Kinds of files that hold their settings."""
SETTINGS, VERSION, DIGEST = 1000, 1001, 1002
"""Numbers of the fields of our own in a MindIR; its own go up to about 20."""
METADATA, KEY = 14, "settings"
"""The field with the metadata of an ONNX file, and under what the settings are in them."""


def settings_file(path: Path) -> Path:
    """Where the settings beside an exported file are."""
    return path.with_name(path.name + ".yaml")


def is_exported(path: Path) -> bool:
    """Whether this is what ``export_model`` wrote, by the settings beside it or in it.

    Raises:
        BackendError: a file of the kind that holds settings, and not a whole one.
    """
    if not path.is_file() or path.suffix == ".safetensors":
        return False
    if settings_file(path).exists():
        return True
    return path.suffix in HOLDING and settings_in(path) is not None


def with_settings(mindir: bytes, settings: Settings) -> bytes:
    """A MindIR and our own fields: its SHA-256, this program's version, the settings as YAML."""
    return mindir + _own_fields(
        hashlib.sha256(mindir).digest(), __version__.encode(), to_yaml(settings).encode()
    )


def _own_fields(digest: bytes, version: bytes, settings: bytes) -> bytes:
    numbered = zip((DIGEST, VERSION, SETTINGS), (digest, version, settings), strict=True)
    return b"".join(written_field(number, value) for number, value in numbered)


def settings_in(path: Path) -> str | None:
    """The settings that a MindIR or an ONNX file holds, as YAML.

    Raises:
        BackendError: cannot be read, or is not a whole file of such a kind; a MindIR that was
            changed after it was exported.
    """
    try:
        content = memoryview(path.read_bytes())
        if path.suffix == ".onnx":
            found = list(_onnx_settings(content))
            return str(found[-1], "utf-8") if found else None
        own = {number: message(v) for number, v in fields(content) if number >= SETTINGS}
        if DIGEST in own:
            parts = [bytes(own.get(number, b"")) for number in (DIGEST, VERSION, SETTINGS)]
            body = content[: len(content) - len(_own_fields(*parts))]
            if hashlib.sha256(body).digest() != parts[0]:
                raise BackendError("was damaged after it was exported; export again", path=path)
        return str(own[SETTINGS], "utf-8") if SETTINGS in own else None
    except OSError as error:
        raise BackendError(f"cannot read: {error.strerror}", path=path) from error
    except (FormatError, UnicodeDecodeError) as error:
        kind = "ONNX file" if path.suffix == ".onnx" else "MindIR"
        raise BackendError(f"not a whole {kind}: {error}", path=path) from error


def _onnx_settings(content: memoryview) -> Iterator[memoryview]:
    for number, value in fields(content):
        if number == METADATA:
            entry = dict(fields(message(value)))
            if 1 in entry and 2 in entry and bytes(message(entry[1])) == KEY.encode():
                yield message(entry[2])


def settings_of(path: Path) -> Settings:
    """Those beside a file, or else in it."""
    if (beside := settings_file(path)).exists():
        return from_yaml(beside)
    try:
        return from_yaml(settings_in(path) or "")
    except SettingsError as error:
        raise BackendError(f"its settings are not usable here: {error}", path=path) from error


def require_own_settings(path: Path, text: str, settings: Settings) -> None:
    """An exported file that holds settings was exported with these.

    Args:
        path: the file.
        text: the settings in it, as YAML.
        settings: those beside it.
    Raises:
        BackendError: others, or none that can be used here.
    """
    try:
        own = from_yaml(text)
    except SettingsError as error:
        raise BackendError(f"its settings are not usable here: {error}", path=path) from error
    for key, inside, beside in differences(own, settings):
        raise BackendError(
            f"{key} is {shown(inside)} in it, and {shown(beside)} in {path.name}.yaml, "
            "which belongs to another file; export again",
            path=path,
        )
