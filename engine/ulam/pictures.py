"""Samples as pixels and grids of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]

TITLE, MARGIN = 13, 4  # pixels: of a title's letters, and around it
GAP = 2  # pixels around each picture of a grid


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether a sample of this shape is a picture: [1 or 3, H, W]."""
    return len(shape) == 3 and shape[0] in (1, 3)


def to_pixels(x: torch.Tensor) -> Pixels:
    """Samples [N, C, H, W] in [-1, 1] as uint8 [N, H, W, C], rounded to nearest; values outside are clipped."""
    scaled = ((x.float().nan_to_num(-1.0) + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def grid(pixels: Pixels, columns: int) -> Image.Image:
    """The pictures [N, H, W, C] row by row, small ones enlarged by a whole factor to at least 56 pixels."""
    factor = max(1, math.ceil(56 / max(pixels.shape[1:3])))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = pixels.shape
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), 64, dtype=np.uint8)
    for index, picture in enumerate(pixels):
        top = GAP + index // columns * (height + GAP)
        left = GAP + index % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = picture
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def same_size(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures with black beyond the smaller ones, as the frames of an animation must be of one size."""
    size = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    return [picture if picture.size == size else picture.crop((0, 0, *size)) for picture in pictures]


def titled(parts: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures below one another, each under its title, as wide as the widest of all."""
    font = ImageFont.load_default(TITLE)
    strip = TITLE + 2 * MARGIN
    width = max(max(picture.width, math.ceil(font.getlength(title)) + 2 * MARGIN) for title, picture in parts)
    colour = any(picture.mode != "L" for _, picture in parts)
    canvas = Image.new("RGB" if colour else "L", (width, sum(strip + picture.height for _, picture in parts)))
    draw, top = ImageDraw.Draw(canvas), 0
    for title, picture in parts:
        draw.text((MARGIN, top + MARGIN - 1), title, fill="white", font=font)
        canvas.paste(picture, (0, top + strip))
        top += strip + picture.height
    return canvas
