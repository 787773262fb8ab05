"""Picture files for inpainting: the known image and its mask."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from ..conditioning import Shared, shared
from ..files import one_line
from ..pictures import is_image

PICTURES = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # none that runs another program
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I")
EXIF_ORIENTATION = 0x0112


def read_image(name: str, path: object, shape: tuple[int, ...]) -> Shared:
    """A picture file for all chains, like a sample [C, H, W]: known in [-1, 1]; a mask in [0, 1], white where known.

    Raises FileNotFoundError or ValueError, which begin with ``name``, for a file that is not such a picture.
    """
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        raise FileNotFoundError(f"{name}: got {path}, expected a picture file")
    if not is_image(shape):
        raise ValueError(f"{name}: got it for samples of shape {list(shape)}, expected pictures [1 or 3, H, W]")
    try:
        with warnings.catch_warnings():  # the size is looked at before anything is decoded
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            pixels = _pixels(name, Path(path), shape, grey=name == "mask" or shape[0] == 1)
    except Exception as error:  # a damaged picture raises what its reader happens to meet
        if str(error).startswith(f"{name}: "):
            raise
        raise ValueError(f"{name}: got {path} ({one_line(error)}), expected a picture file") from None
    tensor = torch.from_numpy(pixels).reshape(*shape[1:], -1).permute(2, 0, 1).expand(shape).contiguous()
    return shared(tensor if name == "mask" else tensor * 2 - 1)


def _pixels(name: str, path: Path, shape: tuple[int, ...], grey: bool) -> npt.NDArray[np.float32]:
    """[H, W] or [H, W, 3] in [0, 1]. The size is looked at before anything is decoded."""
    with Image.open(path, formats=PICTURES) as picture:
        if picture.size != (shape[2], shape[1]):
            came, expected = f"{picture.width}x{picture.height}", f"{shape[2]}x{shape[1]}"
            raise ValueError(f"{name}: got {path} of {came} pixels, expected {expected} like the samples")
        if (strange := _not_as_stored(picture)) is not None:
            raise ValueError(f"{name}: got {path} {strange}")
        if picture.mode in SIXTEEN_BITS:
            wide = np.asarray(picture, dtype=np.float64) / 65535
            if not ((wide >= 0) & (wide <= 1)).all():
                raise ValueError(f"{name}: got {path} with values beyond 16 bits, expected 8 or 16 bits a pixel")
            return (wide if grey else np.repeat(wide[:, :, None], 3, axis=2)).astype(np.float32)
        if picture.mode not in EIGHT_BITS:
            raise ValueError(f"{name}: got {path} of mode {picture.mode}, expected 8 or 16 bits a pixel")
        return np.asarray(picture.convert("L" if grey else "RGB"), dtype=np.float32) / np.float32(255)


def _not_as_stored(picture: Image.Image) -> str | None:
    """What makes a picture look different from the numbers stored in it, and what is expected; None where nothing does.

    Pillow returns 16-bit numbers as they are stored, also those of TIFFs with another width or sign, or with black and
    white swapped.
    """
    if picture.format != "MPO" and (frames := getattr(picture, "n_frames", 1)) > 1:  # JPEGs may hold previews
        return f"with {frames} pictures, expected one"
    if picture.mode in SIXTEEN_BITS and isinstance(picture, TiffImageFile):
        tags = picture.tag_v2
        bits, kind, photometric = (tags.get(tag, usual) for tag, usual in ((258, (1,)), (339, (1,)), (262, 1)))
        if (*bits, *kind) != (16, 1):
            return f"of {bits[0]} {'unsigned' if kind[0] == 1 else 'signed'} bits a pixel, expected 8, or 16 unsigned"
        if photometric != 1:
            return "of 16 bits a pixel where 0 is white, expected 0 to be black"
    if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        return "with transparent pixels, whose colours are not seen, expected an opaque picture"
    if (turned := picture.getexif().get(EXIF_ORIENTATION, 1)) != 1:
        return f"that its EXIF orientation {turned} turns or mirrors, expected one that is stored as it is seen"
    return None
