"""The files of a sampling run: samples, a picture, a report, previews. They appear whole or not at all."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from PIL import Image

from ..bulk.exports import stream
from ..bulk.exports.formats import TABLE
from ..bulk.exports.rows import rows_of
from ..bulk.store.unit import Unit
from ..engine.job import Job, Preview
from ..files import json_text, whole
from ..pictures import grid, is_image, titled, to_pixels
from . import frames, scatter

GRID_LIMIT, LEAST_OF_JOB = 400, 4
PREVIEWED = 64
SAVES = {"npz": "samples.npz", "png": "samples", "safetensors": "samples.safetensors"}
FILES = ("grid.png", "scatter.png", "report.json")  # beside them, as far as they apply
PICTURE = re.compile(r"\d+-job-\d+-chain-\d+-seed--?\d+\.png")


class Previews:
    """A callback that writes states or x_0 estimates as pictures: previews/job-J-row-R.png, the first chains of a job.

    every: evaluations from one to the next, None for about ten of a job. ``jobs``: all jobs, in the order that numbers
    them; to be set before the first call.
    """

    def __init__(self, folder: Path, every: int | None, shows: str) -> None:
        self._folder, self._every, self._shows = folder / "previews", every, shows
        self.jobs: list[Job] = []
        self._shown: dict[tuple[int, int], torch.Tensor] = {}

    def every(self, ticks: int) -> int:
        """Evaluations from one picture to the next."""
        return self._every or max(1, math.ceil(ticks / frames.PREVIEWS))

    def __call__(self, preview: Preview) -> None:
        """Draw what a group brings into the picture of its job and row."""
        x = frames.shown_of(preview, self._shows)
        at = preview.job.program.evaluating.index(preview.row) + 1
        if x is None or at % self.every(preview.job.ticks):
            return
        ids = preview.job.ids
        key = self.jobs.index(preview.job), preview.row
        shown = self._shown.get(key)
        if shown is None:
            shown = self._shown[key] = torch.full((min(len(ids), PREVIEWED), *x.shape[1:]), -1.0)
        first = ids.index(preview.chains[0])
        if first >= len(shown):
            return
        count = min(len(shown) - first, len(preview.chains))
        shown[first : first + count] = x[:count]
        self._folder.mkdir(exist_ok=True)
        path = self._folder / "job-{:03d}-row-{:04d}.png".format(*key)
        with whole(path) as (partial,):
            grid(to_pixels(shown), math.ceil(math.sqrt(len(shown)))).save(partial, format="PNG")


def check_save(save: str, folder: Path, shape: tuple[int, ...]) -> None:
    """Raises ValueError for pictures of what is none, OSError where a folder of that name is not of an earlier run."""
    if save != "png":
        return
    if not is_image(shape):
        raise ValueError(f"save: got png for samples of shape {list(shape)}, expected pictures [1 or 3, H, W]")
    path = folder / SAVES[save]
    if path.exists() and not _is_ours(path):
        raise OSError(f"out: got {folder}, where {path.name} is not of an earlier run, expected another folder")


def write_run(
    folder: Path,
    x: torch.Tensor,
    units: Iterable[tuple[int, Unit]],
    save: str,
    columns: int | None,
    parts: Sequence[tuple[str, int]],
    report: Mapping[str, Any],
) -> list[str]:
    """Write the samples x, given as units, too, with their jobs' numbers: their names. Raises OSError.

    parts: of each job its title and how many of the rows of x are its own, in order. The samples are in samples.npz
    (:func:`ulam.bulk.export_formats.npz`), samples/ (``png``, there) or samples.safetensors; beside them grid.png
    (pictures only, those of several jobs under their titles), scatter.png (samples of two elements, with matplotlib)
    and report.json.
    """
    shape = tuple(x.shape[1:])
    applies = {"grid.png": is_image(shape), "scatter.png": scatter.is_plane(shape) and scatter.there_is_matplotlib()}
    names = [SAVES[save], *(name for name in FILES if applies.get(name, True))]
    with whole(*(folder / name for name in names)) as partial:
        paths = dict(zip(names, partial, strict=True))
        if save == "safetensors":
            paths[SAVES[save]].write_bytes(_safetensors(units, len(x)))
        else:
            stream(units, save, paths[SAVES[save]], len(x))
        if "grid.png" in paths:
            _grid(x, columns, parts).save(paths["grid.png"], format="PNG")
        if "scatter.png" in paths:
            paths["scatter.png"].write_bytes(scatter.png([*_by_job(x, parts, len(x))]))
        paths["report.json"].write_text(json_text({**report, "files": names}))
    for path in (folder / name for name in {*FILES, *SAVES.values()} - {*names}):  # not of these samples
        if path.is_file():
            path.unlink()
        elif _is_ours(path):
            shutil.rmtree(path)
    return names


def _by_job(x: torch.Tensor, parts: Sequence[tuple[str, int]], most: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The title of each job that has rows, with the first of them."""
    begin = 0
    for title, count in parts:
        if count:
            yield title, x[begin : begin + min(count, most)]
        begin += count


def _grid(x: torch.Tensor, columns: int | None, parts: Sequence[tuple[str, int]]) -> Image.Image:
    """All samples in a grid, or those of each job in one under its title."""

    def one(shown: torch.Tensor) -> Image.Image:
        return grid(to_pixels(shown), columns or math.ceil(math.sqrt(len(shown))))

    if len(parts) == 1:
        return one(x[:GRID_LIMIT])
    most = max(LEAST_OF_JOB, GRID_LIMIT // len(parts))
    return titled([(title, one(shown)) for title, shown in _by_job(x, parts, most)][:GRID_LIMIT])


def _safetensors(units: Iterable[tuple[int, Unit]], count: int) -> bytes:
    """``x`` float32 [N, *shape], and int64 [N] each: ``jobs``, ``chains``, ``seeds``, ``failed_rows`` (-1 for none),
    and ``labels`` where there are any.
    """
    parts = list(rows_of(units, count))
    arrays = {name: np.concatenate([rows.columns[name] for rows in parts]) for name in parts[0].columns}
    if not any(rows.labelled for rows in parts):
        del arrays["labels"]
    return safetensors.numpy.save({"x": np.concatenate([rows.values for rows in parts]), **arrays})


def _is_ours(path: Path) -> bool:
    """Whether a folder is one of pictures that a run wrote, or empty."""
    if not path.is_dir():
        return False
    names = os.listdir(path)
    return not names or (TABLE in names and all(name == TABLE or PICTURE.fullmatch(name) for name in names))
