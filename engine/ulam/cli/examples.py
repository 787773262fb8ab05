"""The examples that `ulam check` measures on, from an npz as `ulam sample` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import one_line


@dataclass(frozen=True)
class Examples:
    """Clean or noisy examples ``[N, *shape]``, their labels ``[N]`` or None, and where they come from, in words.

    pixels: of pictures, the numbers that black and white were scaled to.
    """

    x: torch.Tensor
    labels: torch.Tensor | None
    source: str
    pixels: tuple[float, float] | None = None


def read_examples(
    path: Path,
    shape: tuple[int, ...],
    pixels: tuple[float, float] | None = None,
    usual: tuple[float, float] | None = None,
) -> Examples:
    """Examples from an npz as `ulam sample` writes it; uint8 pictures are scaled to ``pixels``, the numbers that black
    and white were to the network in training, or to those that are ``usual`` for it.

    Raises:
        OSError, ValueError: no such file, not examples of this shape, pictures without ``pixels``, or other data with.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data: got {path}, which is no file, expected an npz")
    arrays = _arrays(path)
    if "arr_0" not in arrays:
        raise ValueError(f"data: got {path} without arr_0, expected the examples there")
    given, ends = arrays["arr_0"], None
    if given.dtype == np.uint8 and given.ndim == 4:
        if (ends := pixels or usual) is None:
            raise ValueError(
                "pixels: got none for uint8 data, expected what black and white were to the network in training, "
                "such as --pixels -1 1 or --pixels 0 1"
            )
        black, white = ends
        given = given.transpose(0, 3, 1, 2).astype(np.float32) / (255 / (white - black)) + black
    elif pixels is not None:
        raise ValueError(f"pixels: got them for {given.dtype} data, expected none: only uint8 pictures are scaled")
    if given.dtype.kind != "f" or given.shape[1:] != shape:
        raise ValueError(
            f"data: got arr_0 of {given.dtype} {list(given.shape)}, expected float [N, {', '.join(map(str, shape))}] "
            "or uint8 [N, H, W, C]"
        )
    with np.errstate(over="ignore"):
        x = torch.from_numpy(np.ascontiguousarray(given, dtype=np.float32))
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"data: got {path} with values that are not finite in float32, expected finite ones")
    labels = arrays.get("arr_1")
    if labels is not None and (labels.shape != given.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(f"data: got arr_1 of {labels.dtype} {list(labels.shape)}, expected {len(given)} whole numbers")
    if labels is not None and len(labels) and int(labels.max()) >= 1 << 63:
        raise ValueError(f"data: got {labels.max()} in arr_1, expected labels of 64 bits with a sign")
    return Examples(x, None if labels is None else torch.from_numpy(labels.astype(np.int64)), str(path), ends)


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays ``arr_0`` and ``arr_1`` of an npz, as far as it has them."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in ("arr_0", "arr_1") if name in file}
    except Exception as error:  # a damaged archive raises what its reader happens to meet
        lone = isinstance(error, TypeError) and "context manager" in str(error)
        why = "one array of its own: np.savez(..., arr_0=array) makes an npz" if lone else one_line(error)
        raise ValueError(f"data: got {path} ({why}), expected an npz of plain arrays") from None
