"""Pictures for --known and --mask: the numbers that a viewer shows, or a one-line error."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ulam.jobs.images import read_image

HEIGHT, WIDTH = 5, 7
GREY = np.linspace(0, 255, HEIGHT * WIDTH).round().astype(np.uint8).reshape(HEIGHT, WIDTH)
BITS, PHOTOMETRIC, SIGN = 258, 262, 339  # tags of TIFF


def read(path: Path, name: str = "mask") -> np.ndarray:
    """Grey values in [0, 1] ``[HEIGHT, WIDTH]``."""
    return read_image(name, path, (1, HEIGHT, WIDTH)).tensor[0].numpy()


def tiff(values: bytes, bits: int, white_is_zero: bool = False, signed: bool = False) -> bytes:
    """A TIFF of one strip, uncompressed."""
    tags = {256: WIDTH, 257: HEIGHT, BITS: bits, 259: 1, PHOTOMETRIC: int(not white_is_zero), 273: 8, 277: 1}
    tags |= {278: HEIGHT, 279: len(values), SIGN: 1 + signed}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"".join(
        [b"II*\0", struct.pack("<I", 8 + len(values)), values, struct.pack("<H", len(tags)), entries, b"\0" * 4]
    )


def twelve_bits(values: np.ndarray) -> bytes:
    rows = ("".join(f"{value:012b}" for value in row) for row in values)
    return b"".join(int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in rows)


def test_tiffs_of_16_unsigned_bits_are_read_as_such(tmp_path: Path):
    path = tmp_path / "deep.tiff"
    path.write_bytes(tiff((GREY.astype("<u2") * 257).tobytes(), 16))
    assert np.allclose(read(path), GREY / 255, atol=1e-6)


@pytest.mark.parametrize(
    "data, came",
    [
        (tiff((GREY.astype("<u2") * 257).tobytes(), 16, white_is_zero=True), "0 is white"),
        (tiff(GREY.astype("<i2").tobytes(), 16, signed=True), "16 signed bits"),
        (tiff(GREY.astype("<u4").tobytes(), 32), "32 unsigned bits"),
        (tiff(GREY.astype("<i4").tobytes(), 32, signed=True), "32 signed bits"),
        (tiff(twelve_bits(GREY.astype(int) * 16), 12), "12 unsigned bits"),
    ],
)
def test_tiffs_whose_numbers_are_no_16_bit_greys_are_refused(tmp_path: Path, data: bytes, came: str):
    path = tmp_path / "odd.tiff"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^known: got .*{came}.*, expected .*$"):
        read(path, "known")


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "tRNS"])
@pytest.mark.parametrize("name", ["known", "mask"])
def test_transparent_pixels_are_refused_and_opaque_ones_are_not(tmp_path: Path, mode: str, name: str):
    path, grey = tmp_path / "clear.png", Image.fromarray(GREY)
    if mode == "tRNS":
        grey.save(path, transparency=0)
    elif mode == "PA":
        grey.convert("P").save(path, transparency=bytes(range(256)))
    else:
        picture = grey.convert(mode)
        picture.save(path)
        assert np.allclose(read(path), GREY / 255, atol=1e-6)
        picture.putalpha(grey)
        picture.save(path)
    with pytest.raises(ValueError, match=rf"^{name}: got .* with transparent pixels.*, expected an opaque picture$"):
        read(path, name)


def test_pictures_that_exif_turns_are_refused(tmp_path: Path):
    exif = Image.Exif()
    for orientation, suffix in ((1, "png"), (3, "jpg"), (8, "png")):
        exif[0x0112] = orientation
        path = tmp_path / f"turned.{suffix}"
        Image.fromarray(GREY).save(path, exif=exif)
        if orientation == 1:
            assert np.allclose(read(path), GREY / 255, atol=1e-6)
            continue
        with pytest.raises(ValueError, match=rf"^mask: got .* EXIF orientation {orientation} .*, expected .*$"):
            read(path)


@pytest.mark.parametrize("suffix", ["gif", "tiff", "png", "webp"])
def test_several_pictures_in_one_file_are_refused(tmp_path: Path, suffix: str):
    path = tmp_path / f"several.{suffix}"
    Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.fromarray(255 - GREY)])
    with pytest.raises(ValueError, match=r"^known: got .* with 2 pictures, expected one$"):
        read(path, "known")
