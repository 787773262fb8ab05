"""Chains on their way: what is recorded of a run's first chains, and the animation made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from ..engine.job import Job, Preview
from ..files import whole
from ..pictures import grid, is_image, same_size, titled, to_pixels
from . import scatter

SHOWS = ("x", "x0")
FRAMES = 40  # of an animation, at most, and one more for the results
PREVIEWS = 10  # pictures of a job, where nothing says how often
CHAINS = {True: 16, False: 1000}  # of a job that are shown, by whether they are pictures
MOST_PIXELS = 1 << 27  # of all frames: fewer chains are shown where samples are large
MILLISECONDS, LAST = 120, 1500  # of a frame, and of the last


def shown_of(preview: Preview, shows: str) -> torch.Tensor | None:
    """The states, or the x0 estimates, that a preview brings."""
    return preview.x if shows == "x" else preview.x0


def check_animate(path: Path, shape: tuple[int, ...]) -> None:
    """Raises ValueError or ImportError where there can be no animation."""
    if path.suffix.lower() != ".gif":
        raise ValueError(f"animate: got {path}, expected a file that ends in .gif")
    if not is_image(shape) and not scatter.is_plane(shape):
        raise ValueError(
            f"animate: got it for samples of shape {list(shape)}, expected pictures [1 or 3, H, W] or 2 elements"
        )
    if not is_image(shape) and not scatter.there_is_matplotlib():
        raise ImportError("matplotlib: got no such package, expected it for plots: pip install 'ulam[plots]'")


@dataclass
class Frames:
    """A callback that records the first chains of each job. jobs: all of them, in order, set before the first call."""

    path: Path
    shows: str
    shape: tuple[int, ...]
    jobs: list[Job] = field(default_factory=list)
    titles: Sequence[str] = ()
    _found: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)  # by job and evaluation

    def every(self, ticks: int) -> int:
        """Evaluations from one frame to the next."""
        return max(1, math.ceil(ticks / FRAMES))

    def chains(self, job: Job) -> int:
        """How many chains of a job are shown."""
        most = CHAINS[is_image(self.shape)]
        fitting = MOST_PIXELS // (FRAMES * len(self.jobs) * math.prod(self.shape))
        return max(1, min(most, fitting, len(job.ids)))

    def __call__(self, preview: Preview) -> None:
        """Keep what a group brings of the chains that are shown."""
        x = shown_of(preview, self.shows)
        job, at = self.jobs.index(preview.job), preview.job.program.evaluating.index(preview.row) + 1
        if x is None or at % self.every(preview.job.ticks):
            return
        begin, count = preview.job.ids.index(preview.chains[0]), self.chains(preview.job)
        if begin >= count:
            return
        kept = self._found.setdefault((job, at), torch.full((count, *self.shape), torch.nan))
        kept[begin : begin + len(x)] = x[: count - begin].float().cpu()

    def write(self, results: Sequence[torch.Tensor]) -> None:
        """Write the animation, which ends with the results ``[n, *shape]`` of each job. Raises OSError."""
        ways = []
        for number, (job, x) in enumerate(zip(self.jobs, results, strict=True)):
            own = sorted((at, kept) for (of, at), kept in self._found.items() if of == number)
            ways.append([*own, (job.ticks, x[: self.chains(job)])])
        count = max(len(way) for way in ways)
        span = (
            None if is_image(self.shape) else scatter.span_of(torch.cat([x for way in ways for _, x in way]).flatten(1))
        )
        pictures = []
        for frame in range(count):
            panels = []
            for number, way in enumerate(ways):
                place = round(frame * (len(way) - 1) / max(count - 1, 1))
                at, x = way[place]
                what = "result" if place == len(way) - 1 else f"{self.shows} after {at} of {self.jobs[number].ticks}"
                panels.append((f"{self.titles[number]}: {what}", x))
            pictures.append(self._drawn(panels, span))
        with whole(self.path) as (partial,):
            first, *others = same_size(pictures)
            durations = [MILLISECONDS] * (count - 1) + [LAST]
            first.save(partial, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)

    def _drawn(self, panels: list[tuple[str, torch.Tensor]], span: scatter.Span | None) -> Image.Image:
        if span is not None:
            return Image.open(BytesIO(scatter.png(panels, span))).convert("P", palette=Image.Palette.ADAPTIVE)
        return titled([(title, grid(to_pixels(x), math.ceil(math.sqrt(len(x))))) for title, x in panels])
