"""The files of a sampling run: samples, a picture, a report, previews. They appear whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from ..bulk.exports import COLUMNS, Rows, whole_folder, write_npz, write_png
from ..bulk.unit import Unit
from ..engine.job import Job, Preview
from ..files import json_text, whole
from ..pictures import grid, is_image, to_pixels

GRID_LIMIT = 400
PREVIEWED = 64
SAVED = {"npz": "samples.npz", "png": "samples", "safetensors": "samples.safetensors"}  # by --save


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
    folder: Path,
    units: Sequence[tuple[int, Unit]],
    columns: int | None,
    report: Mapping[str, Any],
    save: str = "npz",
) -> list[str]:
    """Write the samples of jobs ``(number, unit)``, grid.png (pictures only) and report.json; their names.

    save: samples.npz or a folder ``samples`` of png, as in :func:`ulam.bulk.exports.write`, with the job, chain and
    seed of every row; or samples.safetensors with ``x`` float32 ``[N, *shape]`` and the same columns.

    Raises:
        OSError: they cannot be written; nothing is left of them.
    """
    x = torch.cat([unit.x for _, unit in units])
    labelled = any(unit.labels is not None for _, unit in units)
    picture = is_image(tuple(x.shape[1:]))
    names = [name for name in (SAVED[save], "grid.png", "report.json") if picture or name != "grid.png"]
    files = [name for name in names if name != SAVED["png"]]
    with whole(*(folder / name for name in files)) as partial:
        paths = dict(zip(files, partial, strict=True))
        if picture:
            shown = to_pixels(x[:GRID_LIMIT])
            grid(shown, columns or math.ceil(math.sqrt(len(shown)))).save(paths["grid.png"], format="PNG")
        paths["report.json"].write_text(json_text({**report, "files": names}))
        rows = Rows(units, len(x), labelled)
        if save == "png":
            with whole_folder(folder / SAVED[save]) as pictures:
                write_png(rows, pictures)
        elif save == "npz":
            write_npz(rows, paths[SAVED[save]])
        else:
            found = [columns for _, columns in rows]
            tensors = {name: torch.from_numpy(np.concatenate([part[name] for part in found])) for name in COLUMNS}
            safetensors.torch.save_file({"x": x.float().contiguous(), **tensors}, paths[SAVED[save]])
    for name in {*SAVED.values(), "grid.png"} - {*names, SAVED["png"]}:
        (folder / name).unlink(missing_ok=True)  # an earlier run's are not of these samples
    return names
