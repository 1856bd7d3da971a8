"""Images of every kind become what a viewer shows; what is no image is one line."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from refinedet.data.images import decode_image, image_size, read_image
from refinedet.errors import DataError

WIDTH, HEIGHT = 48, 32


def drawn(mode="RGB"):
    """A smooth image, brighter to the right and redder to the bottom."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = np.stack([y * 7, x * 5, (x + y) * 2], axis=2).clip(0, 255).astype(np.uint8)
    return Image.fromarray(channels).convert(mode)


def file_of(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    path.write_bytes(file_of(drawn(), "JPEG", quality=95, exif=exif))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
    actual = read_image(path)
    assert actual.shape == expected.shape
    assert abs(actual - expected).max() <= 6
    assert image_size(path) == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("RGB", "BMP"), ("1", "PNG")]
)
def test_kinds_without_loss_are_exact(tmp_path, mode, kind):
    image = drawn(mode)
    actual = decode_image(file_of(image, kind), "a")
    np.testing.assert_array_equal(actual, np.asarray(image.convert("RGB")))
    assert actual.flags.c_contiguous


def test_sixteen_bits_keep_the_upper_eight():
    grey = (np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) * 42).astype(np.uint16)
    actual = decode_image(file_of(Image.fromarray(grey), "PNG"), "a")
    assert actual.shape == (HEIGHT, WIDTH, 3)
    assert abs(actual[..., 0] - (grey / 257.0)).max() <= 1


def test_transparent_pixels_lie_on_white():
    image = drawn("RGBA")
    image.putalpha(0)
    assert (decode_image(file_of(image, "PNG"), "a") == 255).all()


def test_cmyk_is_converted():
    actual = decode_image(file_of(drawn("CMYK"), "JPEG", quality=95), "a").astype(int)
    assert abs(actual - np.asarray(drawn()).astype(int)).mean() < 12


def chunk(name, content, damage=0):
    checksum = zlib.crc32(name + content) ^ damage
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


@pytest.mark.parametrize("name", ["IHDR", "IDAT", "IEND", "tRNS"])
def test_a_damaged_png_is_one_line_and_libpng_prints_nothing(name, capfd):
    image = drawn("P")
    whole = bytearray(file_of(image, "PNG", transparency=3))
    at = whole.index(name.encode())
    whole[at + 7] ^= 1  # of the content or the checksum
    with pytest.raises(DataError, match=f"^a.png: damaged PNG: .*{name}.*; replace it"):
        decode_image(bytes(whole), "a.png")
    assert capfd.readouterr() == ("", "")


def test_what_a_png_has_beside_its_pixels_is_not_read(capfd):
    whole = file_of(drawn(), "PNG")
    beside = chunk(b"iCCP", b"nonsense") + chunk(b"tEXt", b"a\0b", damage=1)
    actual = decode_image(whole[:33] + beside + whole[33:], "a")
    np.testing.assert_array_equal(actual, np.asarray(drawn()))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("at", [28, 30, 46])
def test_opencv_prints_nothing_about_a_damaged_bmp(at, capfd):
    whole = bytearray(file_of(drawn("P"), "BMP"))
    whole[at : at + 2] = b"\x63\x63"
    with pytest.raises(DataError, match=r"^a.bmp: damaged BMP"):
        decode_image(bytes(whole), "a.bmp")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_every_cut_is_noticed(kind, capfd):
    whole = file_of(drawn(), kind)
    for end in [0, 1, 4, 20, *range(40, len(whole) - 12, 37)]:
        with pytest.raises(DataError) as caught:
            decode_image(whole[:end], "cut.image")
        assert str(caught.value).startswith("cut.image: ")
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # OpenCV and libpng would print lines of their own


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("hello, this is no image")
    for path in (tmp_path / "none.jpg", tmp_path / "text.jpg", tmp_path):
        for read in (read_image, image_size):
            with pytest.raises(DataError) as caught:
                read(path)
            assert str(path) in str(caught.value)


def test_a_small_file_may_not_become_a_huge_image():
    header = file_of(Image.new("1", (8, 8)), "PNG")
    huge = header[:16] + (60000).to_bytes(4, "big") * 2 + header[24:]
    with pytest.raises(DataError):
        decode_image(huge, "bomb.png")
