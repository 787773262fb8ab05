"""How far a run walks through the files: calls from one file of ulam's to another, by `python -m bench.hops`.

Of a two-step `ulam.sample` once everything is imported and compiled, and of a steady tick of the engine. A reader who
follows the data takes the same steps.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import ulam
import ulam_kernels

FOLDERS = tuple(str(Path(module.__file__).parent) + "/" for module in (ulam, ulam_kernels) if module.__file__)
SHAPE = (1, 4, 4)


class Hops:
    """Counts calls whose caller is in another file, by (from, to), while it is entered."""

    def __init__(self) -> None:
        self.count: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Hops:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        caller = frame.f_back
        if event != "call" or caller is None:
            return
        here, there = frame.f_code.co_filename, caller.f_code.co_filename
        if here != there and here.startswith(FOLDERS) and there.startswith(FOLDERS):
            self.count[there, here] += 1


def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x * 0.5


def of_sample() -> Counter[tuple[str, str]]:
    """Of two steps of DDIM on one chain."""
    denoiser = ulam.Denoiser(net, ulam.schedules.vp_linear(1000))
    draw = lambda: ulam.sample(denoiser, ulam.samplers.DDIM(2, spacing="trailing"), SHAPE, 1, 0, progress=False)  # noqa: E731
    draw()
    with Hops() as hops:
        draw()
    return hops.count


def of_tick() -> Counter[tuple[str, str]]:
    """Of a tick in which no chain begins or ends: the difference of two runs, divided by their ticks."""
    found = []
    for steps in (20, 21):
        engine = ulam.Engine(ulam.Denoiser(net, ulam.schedules.vp_linear(1000)), SHAPE, 4)
        engine.submit(ulam.samplers.DDPM(steps), 4, 0)
        engine.run()
        engine.submit(ulam.samplers.DDPM(steps), 4, 0)
        with Hops() as hops:
            engine.run()
        found.append(hops.count)
    return found[1] - found[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", action="store_true", help="say which files call which")
    options = parser.parse_args(arguments)
    for name, count in (("ulam.sample of two steps", of_sample()), ("a steady tick", of_tick())):
        print(f"{name}: {count.total()} calls from file to file")
        if options.each:
            for (there, here), times in count.most_common():
                print(f"  {times:4d}  {short(there)} -> {short(here)}")
    return 0


def short(file: str) -> str:
    return next(file[len(folder) :] for folder in FOLDERS if file.startswith(folder))


if __name__ == "__main__":
    sys.exit(main())
