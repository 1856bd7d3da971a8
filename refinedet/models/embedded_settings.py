"""Settings inside and beside exported files.

An exported detector has its settings beside it, as ``NAME.yaml``, because not every kind of
file can hold them. MindIR and ONNX files also hold them inside: such a file is refused if
different settings are beside it, and can be used without any beside it.

Both kinds are protobuf messages. ONNX has the settings in its metadata, under a key. MindIR has
no metadata, but its readers ignore unknown fields: three fields of our own at the end of the file
hold the settings, this program's version, and a digest of everything before them. (An ONNX file
has no digest, since other programs may modify it.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from refinedet.backends.interface import ExportedFile
from refinedet.errors import BackendError, FormatError, SettingsError
from refinedet.models.foreign.protobuf import fields, message, written_field
from refinedet.settings import Settings, differences, from_yaml, to_yaml
from refinedet.support.text import shown
from refinedet.version import __version__

HOLDING = (".mindir", ".onnx")
"""Suffixes of files that hold their settings."""
SETTINGS, VERSION, DIGEST = 1000, 1001, 1002
"""Field numbers of our own in a MindIR; those of MindSpore go up to about 20."""
METADATA, KEY = 14, "settings"
"""Field number of an ONNX file's metadata, and the key of the settings in them."""


def settings_file(path: Path) -> Path:
    """Where the settings beside an exported file are."""
    return path.with_name(path.name + ".yaml")


def with_settings(mindir: bytes, settings: Settings) -> bytes:
    """A MindIR and our own fields: its SHA-256, this program's version, the settings as YAML."""
    return mindir + _own_fields(
        hashlib.sha256(mindir).digest(), __version__.encode(), to_yaml(settings).encode()
    )


def _own_fields(digest: bytes, version: bytes, settings: bytes) -> bytes:
    numbered = zip((DIGEST, VERSION, SETTINGS), (digest, version, settings), strict=True)
    return b"".join(written_field(number, value) for number, value in numbered)


def read_exported(path: Path) -> ExportedFile | None:
    """Read and verify an exported detector; None for a file that is none.

    A file is one if its settings are beside it, or in it. The file is read once.

    Raises:
        BackendError: cannot be read; of a kind that holds settings, and not a whole file; a
            MindIR that was changed after it was exported; settings in it that cannot be used,
            or that differ from those beside it.
        SettingsError: settings beside it that cannot be used.
    """
    beside = settings_file(path)
    has_beside = beside.exists()
    if path.suffix == ".safetensors" or not path.is_file():
        return None
    if not has_beside and path.suffix not in HOLDING:
        return None
    try:
        content = memoryview(path.read_bytes())
        text, digest = _verified(path, content)
    except OSError as error:
        raise BackendError(f"cannot read: {error.strerror}", path=path) from error
    except (FormatError, UnicodeDecodeError) as error:
        kind = "ONNX file" if path.suffix == ".onnx" else "MindIR"
        raise BackendError(f"not a whole {kind}: {error}", path=path) from error
    if text is None and not has_beside:
        return None
    settings = from_yaml(beside) if has_beside else None
    if text is not None:
        embedded = _usable(path, text)
        settings = settings or embedded
        _require_same(path, embedded, settings)
    assert settings is not None
    digest.update(to_yaml(settings).encode())
    return ExportedFile(path, settings, text is not None, digest.hexdigest())


def _verified(path: Path, content: memoryview) -> tuple[str | None, hashlib._Hash]:
    """The settings in a file, as YAML, and the SHA-256 of its content without them.

    Raises:
        BackendError: a MindIR that was changed after it was exported.
        FormatError, UnicodeDecodeError: not a whole file.
    """
    if path.suffix == ".onnx":
        entries = list(_onnx_settings(content))
        return str(entries[-1], "utf-8") if entries else None, hashlib.sha256(content)
    if path.suffix != ".mindir":
        return None, hashlib.sha256(content)
    own = {number: message(v) for number, v in fields(content) if number >= SETTINGS}
    text = str(own[SETTINGS], "utf-8") if SETTINGS in own else None
    if DIGEST not in own:
        return text, hashlib.sha256(content)
    parts = [bytes(own.get(number, b"")) for number in (DIGEST, VERSION, SETTINGS)]
    digest = hashlib.sha256(content[: len(content) - len(_own_fields(*parts))])
    if digest.digest() != parts[0]:
        raise BackendError("was damaged after it was exported; export again", path=path)
    return text, digest


def _onnx_settings(content: memoryview) -> Iterator[memoryview]:
    for number, value in fields(content):
        if number == METADATA:
            entry = dict(fields(message(value)))
            if 1 in entry and 2 in entry and bytes(message(entry[1])) == KEY.encode():
                yield message(entry[2])


def _usable(path: Path, text: str) -> Settings:
    """The settings that stand in a file as YAML."""
    try:
        return from_yaml(text)
    except SettingsError as error:
        raise BackendError(f"its settings are not usable here: {error}", path=path) from error


def _require_same(path: Path, embedded: Settings, beside: Settings) -> None:
    """Raise a ``BackendError`` where the settings in a file differ from those beside it."""
    for key, inside, outside in differences(embedded, beside):
        raise BackendError(
            f"{key} is {shown(inside)} in it, and {shown(outside)} in {path.name}.yaml, "
            "which belongs to another file; export again",
            path=path,
        )
