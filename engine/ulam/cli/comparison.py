"""Samplers held against a long run: samples, errors, evaluations and seconds of each at each number of steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..denoiser import Sampler
from ..engine.engine import Engine
from ..jobs.tables import JobSpec
from ..models.built_in import Model
from ..programs.program import Program
from ..samplers import Heun
from ..throughput.measured import seconds

WARM = 2  # evaluations before anything is timed


@dataclass(frozen=True, eq=False)
class Cell:
    """A sampler at a number of steps: samples ``[n, *shape]`` on the CPU, evaluations a chain, seconds of all chains.

    error: without noise in its rows, the root mean square of the samples' difference from the long run's of the same
    first noise, in the data's units. With noise (``chance`` is then no None), the energy coefficient [Szekely 2013]
    between the samples and those of its own long run of other noise, 0 for one law to 1; ``chance``: the same between
    two such long runs. NaN where samples are not finite.
    """

    sampler: str
    steps: int
    x: torch.Tensor
    evaluations: int
    seconds: float
    error: float
    chance: float | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Cells by sampler, then by steps; the long run of the probability flow, and each noisy sampler's own, by name."""

    names: tuple[str, ...]
    steps: tuple[int, ...]
    cells: dict[tuple[str, int], Cell]
    long_runs: dict[str, torch.Tensor]
    reference: str
    guided: bool

    def __str__(self) -> str:
        lines = [f"{'sampler':<20}{'steps':>6}{'evaluations':>13}{'time':>9}  error"]
        for cell in self.cells.values():
            law = "" if cell.chance is None else f" (law; by chance {cell.chance:.2g})"
            head = f"{cell.sampler:<20}{cell.steps:>6}{cell.evaluations:>13}{seconds(cell.seconds):>9}"
            lines.append(f"{head}  {cell.error:.4g}{law}")
        return "\n".join(lines)


def compared(model: Model, specs: dict[tuple[str, int], JobSpec], long: int, engine: Engine, told: Any) -> Comparison:
    """Run all jobs in an engine, and the long runs that they are held against: ``long`` steps, by Heun's method for
    samplers without noise. ``told(evaluations)`` is called as they are done.
    """
    denoiser = model.denoiser
    programs = {key: denoiser.program(spec.sampler) for key, spec in specs.items()}
    reference: Sampler = Heun(long, spacing="linspace") if denoiser.schedule.steps else Heun(long)
    first = next(iter(specs.values()))
    _run(engine, denoiser.program(reference)[:WARM], first, first.submit["seed"], told)
    noisy = {name for (name, _), program in programs.items() if program.needs_noise}
    long_runs: dict[str, torch.Tensor] = {}
    if len(noisy) < len({name for name, _ in specs}):
        long_runs[""] = _run(engine, denoiser.program(reference), first, first.submit["seed"], told)[0]
    for name in sorted(noisy):
        spec = next(spec for (own, _), spec in specs.items() if own == name)
        program = denoiser.program(replace(spec.sampler, steps=long))  # type: ignore[type-var]
        seed = first.submit["seed"]
        runs = [_run(engine, program, spec, seed + other, told)[0] for other in (1, 2)]
        long_runs[name] = torch.cat(runs)
    cells = {}
    for (name, steps), spec in specs.items():
        program = programs[name, steps]
        x, took = _run(engine, program, spec, spec.submit["seed"], told)
        chance = None
        if name in noisy:
            one, other = long_runs[name].chunk(2)
            error, chance = energy_coefficient(x, one), energy_coefficient(other, one)
        else:
            error = float((x - long_runs[""]).square().mean().sqrt())
        cells[name, steps] = Cell(name, steps, x, program.nfe, took, error, chance)
    names = tuple(dict.fromkeys(name for name, _ in specs))
    counts = tuple(dict.fromkeys(steps for _, steps in specs))
    return Comparison(names, counts, cells, long_runs, repr(reference), "guidance" in first.submit)


def _run(engine: Engine, program: Program, spec: JobSpec, seed: int, told: Any) -> tuple[torch.Tensor, float]:
    submit = {**spec.submit, "seed": seed}
    begin = time.perf_counter()
    job = engine.submit(program, spec.chains, **submit)
    found = torch.full((len(spec.chains), *engine.shape), torch.nan)
    for group in engine.finished(told):
        found[group.chains] = group.states.float().cpu()
        for place in group.failed:
            found[place] = torch.nan
    assert job.ticks
    return found, time.perf_counter() - begin


def energy_coefficient(x: torch.Tensor, y: torch.Tensor) -> float:
    """D^2 / (2 E|X - Y|), D^2 = 2 E|X - Y| - E|X - X'| - E|Y - Y'|, of samples ``[n, ...]``, ``[m, ...]``: 0 to 1."""
    a, b = x.flatten(1).double(), y.flatten(1).double()
    between, within = torch.cdist(a, b).mean(), torch.cdist(a, a).mean() + torch.cdist(b, b).mean()
    return float((2 * between - within) / (2 * between)) if bool(between != 0) else 0.0


def evaluations_of(model: Model, specs: dict[tuple[str, int], JobSpec], long: int) -> int:
    """About how many evaluations of chains :func:`compared` makes."""
    programs = [(model.denoiser.program(spec.sampler), len(spec.chains)) for spec in specs.values()]
    noisy = {name for (name, _), (program, _) in zip(specs, programs, strict=True) if program.needs_noise}
    chains = programs[0][1]
    return sum(program.nfe * count for program, count in programs) + 2 * long * chains * (len(noisy) + 1)
