"""Known images: what inpainting keeps of a picture while the rest is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import ulam_kernels
from ulam_kernels.arguments import described
from ulam_kernels.validation import check_data

from ..conditioning import Shared, as_tensor
from ..noise import KNOWN_IMAGE
from ..programs.program import Program
from .transfers import on_device


@dataclass(frozen=True, eq=False)
class Known:
    """An image and its mask, 1 where it is known and 0 where it is to be sampled, float32 on the host.

    Each ``[chains, *shape]``, or ``[*shape]`` under :class:`Shared`.
    """

    image: torch.Tensor | Shared
    mask: torch.Tensor | Shared


def check_known(known: object, mask: object, program: Program, chains: int, shape: tuple[int, ...]) -> Known | None:
    """``known`` and ``mask`` as a :class:`Known`; None where the program blends with no image.

    Raises:
        TypeError, ValueError: missing for a program that blends, or given for one that does not; wrong shapes; a mask
            outside [0, 1]; values that are not finite.
    """
    if not program.blends.any():
        name, given = ("mask", mask) if known is None else ("known", known)
        if given is not None:
            raise ValueError(f"{name}: got {described(given)}, expected None for {program.sampler} (RePaint takes it)")
        return None
    if known is None or mask is None:
        raise ValueError(f"known, mask: got None, expected the image and where it is known for {program.sampler}")
    image, where = _floats("known", known, chains, shape), _floats("mask", mask, chains, shape)
    values = where.tensor if isinstance(where, Shared) else where
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("mask: got values outside [0, 1], expected 1 where the image is known and 0 elsewhere")
    return Known(image, where)


def _floats(name: str, value: object, chains: int, shape: tuple[int, ...]) -> torch.Tensor | Shared:
    tensor = value.tensor if isinstance(value, Shared) else as_tensor(name, value)
    if not isinstance(tensor, torch.Tensor) or tensor.is_complex():
        raise TypeError(f"{name}: got {type(tensor).__name__}, expected a tensor [chains, *shape] or a shared one")
    check_data(tensor, name)
    if tensor.dtype == torch.uint8 and name == "known":
        raise TypeError("known: got torch.uint8, expected floats in the data's units (of pixels / 127.5 - 1, mostly)")
    expected = shape if isinstance(value, Shared) else (chains, *shape)
    try:
        tensor = tensor.detach().expand(expected)
    except RuntimeError:
        got = list(tensor.shape)
        raise ValueError(f"{name}: got shape {got}, expected {list(expected)}, or what broadcasts to it") from None
    tensor = tensor.to("cpu", torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name}: got values that are not finite, expected finite ones (where the mask is 0 any: nan_to_num())"
        )
    return Shared(tensor) if isinstance(value, Shared) else tensor


class KnownImages:
    """The known images and masks of all slots."""

    def __init__(self, slots: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> None:
        self._image, self._mask = torch.zeros(2, slots, *shape, dtype=dtype, device=device)

    def enter(self, slots: slice, chains: slice, known: Known) -> None:
        """Copy the images and masks of these chains of a job to these slots."""
        for buffer, value in ((self._image, known.image), (self._mask, known.mask)):
            tensor = value.tensor if isinstance(value, Shared) else value[chains]
            buffer[slots].copy_(on_device(tensor, buffer.device))

    def blend(self, state: torch.Tensor, **of_rows: Any) -> None:
        """Blend the known images in after an update; chains whose row does not blend stay as they are."""
        ulam_kernels.blend(state, self._image, self._mask, **of_rows, stage=KNOWN_IMAGE.stage)
