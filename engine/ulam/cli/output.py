"""The files of a sampling run: samples, a picture, a report, previews. They appear whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..engine.job import Job, Preview
from ..files import json_text, whole
from ..pictures import grid, is_image, to_pixels

GRID_LIMIT = 400
PREVIEWED = 64
FILES = ("samples.npz", "grid.png", "report.json")


class Previews:
    """A callback that writes x_0 estimates as pictures: previews/job-J-row-R.png, the first chains of each job.

    ``jobs``: all jobs, in the order that numbers them; to be set before the first call.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "previews"
        self.jobs: list[Job] = []
        self._shown: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, preview: Preview) -> None:
        """Draw a group's estimates into the picture of its job and row."""
        if preview.x0 is None:
            return
        ids = preview.job.ids
        key = self.jobs.index(preview.job), preview.row
        shown = self._shown.get(key)
        if shown is None:
            shown = self._shown[key] = torch.full((min(len(ids), PREVIEWED), *preview.x0.shape[1:]), -1.0)
        first = ids.index(preview.chains[0])
        if first >= len(shown):
            return
        count = min(len(shown) - first, len(preview.chains))
        shown[first : first + count] = preview.x0[:count]
        self._folder.mkdir(exist_ok=True)
        path = self._folder / "job-{:03d}-row-{:04d}.png".format(*key)
        with whole(path) as (partial,):
            grid(to_pixels(shown), math.ceil(math.sqrt(len(shown)))).save(partial, format="PNG")


def write_run(
    folder: Path, x: torch.Tensor, labels: list[int] | None, columns: int | None, report: Mapping[str, Any]
) -> list[str]:
    """Write samples.npz, grid.png (pictures only) and report.json; their names. Raises OSError.

    samples.npz holds ``arr_0``: uint8 [N, H, W, C] for pictures (what FID tools read), else float32 [N, *shape]; and
    ``arr_1``: the labels, int64 [N], where there are any.
    """
    picture = is_image(tuple(x.shape[1:]))
    samples: npt.NDArray[Any] = to_pixels(x) if picture else x.float().cpu().numpy()
    arrays: dict[str, Any] = {"arr_0": samples}
    if labels is not None:
        arrays["arr_1"] = np.array(labels, dtype=np.int64)
    names = [name for name in FILES if picture or name != "grid.png"]
    with whole(*(folder / name for name in names)) as partial:
        paths = dict(zip(names, partial, strict=True))
        with paths["samples.npz"].open("wb") as file:
            np.savez_compressed(file, **arrays)
        if picture:
            shown = samples[:GRID_LIMIT]
            grid(shown, columns or math.ceil(math.sqrt(len(shown)))).save(paths["grid.png"], format="PNG")
        paths["report.json"].write_text(json_text({**report, "files": names}))
    for name in set(FILES) - set(names):
        (folder / name).unlink(missing_ok=True)  # an earlier run's picture is not of these samples
    return names
