"""Image files: from JPEG, PNG or BMP to rows of red, green and blue.

Every image is decoded to (H, W, 3) uint8, R, G, B, oriented as it is displayed:

- grey and palette become R, G, B; CMYK too, by simple complement, without a profile;
- sixteen bits a channel keep their high eight;
- transparent pixels are blended with white: their stored colour may be anything;
- a JPEG's EXIF orientation is applied; other formats' is not.

The header is read here, before OpenCV sees the file. It gives the size at the cost of
a few hundred bytes, keeps a small file that unpacks to gigabytes from being unpacked,
and makes the orientation the same in every version of OpenCV.

A file that is cut off is refused: a JPEG without its end marker, a PNG without its
last chunk. So is a PNG with a wrong checksum. Damage inside a complete JPEG is not
detected; libjpeg may print a line about it.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

from refinedet.errors import DataError
from refinedet.spec.errors import SpecError, check_shape
from refinedet.spec.types import Array
from refinedet.support.files import open_regular_file, write_atomically

# OpenCV logs nothing: an undecodable image is one error line of this program.
# OpenCV 5 has the function elsewhere.
getattr(cv2.utils, "logging", cv2).setLogLevel(0)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
"""Of the files that are taken for images, in lower case; the commonest first."""

MAX_PIXELS = 100_000_000
"""Largest image that is unpacked: 300 MB as eight bits a channel."""

ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""EXIF orientation: exchange rows and columns, then mirror the rows, the columns.

Source: Exif 2.3 (JEITA CP-3451C), section 4.6.4, tag 274.
"""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_END = b"\xff\xd9"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers that open a frame: SOF0 to SOF15, less DHT, JPG and DAC (ITU-T T.81, table B.1)."""
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment: TEM, RST0 to RST7, SOI."""


class _BrokenError(Exception):
    """Why a file cannot be used, without its name."""


class _Header(NamedTuple):
    kind: str
    width: int
    height: int
    """As stored, before the orientation is applied."""
    orientation: int = 1
    transparent: bool = False
    end: int = 0
    """JPEG: bytes up to the end of the frame header."""


def read_image(path: Path) -> Array:
    """The image in a file.

    Returns:
        (H, W, 3) uint8, R, G, B, contiguous; rotated as its EXIF orientation asks.
    Raises:
        DataError: one line; no such file, empty, cut off, not a JPEG, PNG or BMP, of
            more than ``MAX_PIXELS`` pixels, or damaged.
    """
    try:
        with _opened(path) as stream:
            _header(stream)  # a file of any length is read only if it is an image
            stream.seek(0)
            return _decode(stream.read())
    except _BrokenError as reason:
        raise DataError(f"{reason}", path=path) from None


def decode_image(data: bytes, name: str) -> Array:
    """The image in the bytes of a file.

    Args:
        data: the whole file.
        name: the ``key`` of an error.
    Returns:
        As ``read_image``.
    Raises:
        DataError: as ``read_image``.
    """
    try:
        return _decode(data)
    except _BrokenError as reason:
        raise DataError(f"{reason}", key=name) from None


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the image in a file as it is shown, from its header alone.

    Raises:
        DataError: as ``read_image``; damage behind the header is not noticed.
    """
    try:
        with _opened(path) as stream:
            header = _header(stream)
    except _BrokenError as reason:
        raise DataError(f"{reason}", path=path) from None
    turned = ORIENTATIONS[header.orientation][0]
    return (header.height, header.width) if turned else (header.width, header.height)


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular_file(path)
    except FileNotFoundError:
        raise _BrokenError("no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _BrokenError(f"cannot be opened: {reason}") from None


def _decode(data: bytes) -> Array:
    header = _header(io.BytesIO(data))
    if header.kind == "JPEG" and data.rfind(_JPEG_END, header.end) < 0:
        raise _BrokenError("cut off: no end marker; replace it by a whole file")
    if header.kind == "PNG":
        data, transparent = _png_pixels(data)
        header = header._replace(transparent=transparent)
    mode = cv2.IMREAD_UNCHANGED if header.transparent else cv2.IMREAD_COLOR
    if not header.transparent:
        mode |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image: Array | None = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error:
        image = None
    if image is None:
        raise _BrokenError(f"damaged {header.kind}: cannot be decoded; replace it by a whole file")
    if header.transparent:
        image = _on_white(image)
    if header.orientation != 1:
        image = _turn(image, header.orientation)
    rgb: Array = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return rgb


def _on_white(image: Array) -> Array:
    """(H, W), (H, W, 3) or (H, W, 4) uint8 or uint16 to (H, W, 3) uint8."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 3:
        return image
    colour, alpha = image[..., :3].astype(np.uint16), image[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _turn(image: Array, orientation: int) -> Array:
    exchange, rows, columns = ORIENTATIONS[orientation]
    if exchange:
        image = image.swapaxes(0, 1)
    image = image[:: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(image)


def _header(stream: BinaryIO) -> _Header:
    """Format and size, from the first bytes; moves the stream's position."""
    start = stream.read(26)
    try:
        if not start:
            raise _BrokenError("empty file")
        if start.startswith(b"\xff\xd8"):
            stream.seek(2)
            header = _jpeg_header(stream)
        elif start.startswith(_PNG_SIGNATURE):
            header = _Header("PNG", *struct.unpack_from(">II", start, 16))
        elif start.startswith(b"BM"):
            width, height = struct.unpack_from("<ii", start, 18)
            header = _Header("BMP", width, abs(height))  # below 0: rows from the top
        else:
            raise _BrokenError("not a JPEG, PNG or BMP image; convert it, or leave it out")
    except (struct.error, IndexError):
        raise _BrokenError("cut off in its header; replace it by a whole file") from None
    if header.width < 1 or header.height < 1:
        raise _BrokenError(f"{header.width}x{header.height} pixels in its header")
    if header.width * header.height > MAX_PIXELS:
        size = f"{header.width}x{header.height}"
        raise _BrokenError(f"{size} pixels are more than {MAX_PIXELS:,}; make it smaller")
    return header


def _jpeg_header(stream: BinaryIO) -> _Header:
    """The frame's size and the orientation: ITU-T T.81, annex B; Exif 2.3."""
    orientation = 1
    while True:
        if stream.read(1) != b"\xff":
            raise _BrokenError("damaged JPEG: a marker is missing; replace it by a whole file")
        marker = 0xFF
        while marker == 0xFF:  # any number of fill bytes
            marker = stream.read(1)[0]
        if marker in _JPEG_BARE:
            continue
        if marker in (0xD9, 0xDA):
            raise _BrokenError("damaged JPEG: no frame header; replace it by a whole file")
        (length,) = struct.unpack(">H", stream.read(2))
        content = stream.read(max(length - 2, 0))
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", content, 1)
            return _Header("JPEG", width, height, orientation, end=stream.tell())
        if marker == 0xE1 and content.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(content[6:])


def _exif_orientation(tiff: bytes) -> int:
    """1 to 8; 1 where the tag is missing or invalid, as image viewers do."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "<")
    try:
        (position,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, position)
        for entry in range(position + 2, position + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 274 and kind == 3 and value in ORIENTATIONS:
                return int(value)
    except struct.error:
        pass
    return 1


def _png_pixels(data: bytes) -> tuple[bytes, bool]:
    """A PNG with only the chunks that its pixels need, and whether it is transparent.

    Transparent means an alpha channel or a transparent colour. Walks the chunks to the
    last, IEND, and so detects a file that is cut off. libpng would print warnings about wrong
    checksums, and about colour profiles, which are not applied.
    """
    transparent = data[25:26] in (b"\x04", b"\x06")  # grey and alpha; RGB and alpha
    kept = [_PNG_SIGNATURE]
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + 12 + length]
        position += 12 + length
        if name != b"tRNS" and name[0] & 0x20:  # lower case: an ancillary chunk
            continue
        complete = position <= len(data)
        if complete and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            wrong = f"the checksum of {name.decode('latin-1')!r} is wrong"
            raise _BrokenError(f"damaged PNG: {wrong}; replace it by a whole file")
        kept.append(chunk)
        transparent |= name == b"tRNS"
        if name == b"IEND":
            return b"".join(kept), transparent
    raise _BrokenError("cut off: no end chunk; replace it by a whole file")


def write_image(path: Path, image: Array) -> None:
    """Write an image in the format that the path's suffix names (.png, .jpg, ...).

    Raises:
        SpecError: shape or dtype, or a suffix that OpenCV does not know.
        WriteError: the file cannot be written.
    """
    check_image(image)
    try:
        done, data = cv2.imencode(path.suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        raise SpecError("no image format of that name; use .png or .jpg", path=path)
    write_atomically(path, data.tobytes())


def check_image(image: Array) -> None:
    """Raise a ``SpecError`` unless this is an (H, W, 3) uint8 image with pixels."""
    check_shape(image, "image", None, None, 3)
    if image.dtype != np.uint8 or not image.size:
        raise SpecError(f"expected uint8 pixels, got {image.shape} {image.dtype}", key="image")
