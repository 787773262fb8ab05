"""The network at recorded states: one call for all rows that are visited, two where they are guided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..arguments import per_chain
from ..conditioning import Shared
from ..denoiser import Denoiser
from ..engine.guided_outputs import prediction
from ..engine.network import computing_dtype
from ..evaluation import check_output, in_eval_mode, modules_in
from ..outputs import ReadOutput
from .visits import Setting, Visit

STEP = 32  # matrix products of a few rows are computed in other orders than those of many
Numbers = npt.NDArray[np.int64]
Outputs = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]


def evaluate(denoiser: Denoiser, setting: Setting, visits: Sequence[Visit], batch: int | None) -> None:
    """Give visits their outputs, from an evaluation of each distinct (chain, row) among them.

    batch: how many at once, by default the engine's slots, or for fewer pairs the next multiple of 32.
    """
    program = setting.program
    keys = np.concatenate([visit.places.cpu().numpy() * len(program) + visit.rows for visit in visits])
    called = np.concatenate([program.evaluates[visit.rows] for visit in visits])
    distinct, of_called = np.unique(keys[called], return_inverse=True)
    found: Outputs | None = None
    if len(distinct):
        found = _in_batches(denoiser, setting, distinct // len(program), distinct % len(program), batch)
    source = np.full(len(keys), -1)
    source[called] = of_called.reshape(-1)
    ends = np.cumsum([len(visit.rows) for visit in visits])
    for visit, index in zip(visits, np.split(source, ends[:-1]), strict=True):
        visit.outputs = _taken(found, torch.from_numpy(index).to(setting.device), visit.x)


def _taken(found: Outputs | None, index: torch.Tensor, x: torch.Tensor) -> Outputs:
    """The outputs at these places, 0 at -1."""
    if found is None:
        return torch.zeros_like(x), None, torch.ones(len(x), device=x.device)
    m, u, weight = found
    at, there = index.clamp(min=0), per_chain(index >= 0, m)
    return torch.where(there, m[at], 0), None if u is None else torch.where(there, u[at], 0), weight[at]


def _in_batches(denoiser: Denoiser, setting: Setting, places: Numbers, rows: Numbers, batch: int | None) -> Outputs:
    """The outputs of these pairs, by calls of a batch each, the last filled up with the first pairs."""
    if batch is None:
        batch = min(setting.trajectory.slots, -(-len(rows) // STEP) * STEP)
    filled = np.resize(np.arange(len(rows)), -(-len(rows) // batch) * batch).reshape(-1, batch)
    parts = [_outputs(denoiser, Visit(setting, torch.from_numpy(places[at]), rows[at])) for at in filled]
    m, u, weight = (None if part[0] is None else torch.cat(part)[: len(rows)] for part in zip(*parts, strict=True))
    assert m is not None and weight is not None
    return m, u, weight


def _outputs(denoiser: Denoiser, visit: Visit) -> Outputs:
    trajectory = visit.setting.trajectory
    weight = torch.ones(len(visit.rows), device=visit.x.device)
    m = _called(denoiser, denoiser.network, visit, trajectory.cond)
    if trajectory.guidance is None:
        return m, None, weight
    weight = trajectory.guidance.to(weight.device)[visit.places] * visit.column(lambda p: p.guidance, torch.float32)
    if trajectory.interval is not None:
        exact, _ = _time_dtype(denoiser, visit)
        time = visit.column(lambda p: p.time, torch.float64 if exact else torch.float32)
        lo, hi = trajectory.interval
        weight = torch.where((lo <= time) & (time <= hi), weight, 1.0)
    net = denoiser.network
    if denoiser.guide is not None:
        net = denoiser.guide if denoiser.output is None else ReadOutput(denoiser.guide, denoiser.output)
    return m, _called(denoiser, net, visit, trajectory.uncond), weight


def _time_dtype(denoiser: Denoiser, visit: Visit) -> tuple[bool, torch.dtype]:
    """Whether all is float64, and the dtype of the time that the network is told, as the engine has them."""
    exact = computing_dtype(denoiser.net) in (None, torch.float64) and visit.x.dtype == torch.float64
    exact = exact and denoiser.time != "index"
    return exact, torch.float64 if exact else denoiser.time_dtype


def _called(
    denoiser: Denoiser, net: Callable[..., Any], visit: Visit, cond: dict[str, torch.Tensor | Shared]
) -> torch.Tensor:
    """A network's prediction at the visit's states and times."""
    x, program = visit.x, visit.setting.program
    exact, times = _time_dtype(denoiser, visit)
    if (program.c_in[visit.rows] != 1).any():
        x = x * per_chain(visit.column(lambda p: p.c_in, torch.float64 if exact else torch.float32), x)
    inputs = {
        name: value.tensor if isinstance(value, Shared) else value[visit.places.to(value.device)].to(x.device)
        for name, value in cond.items()
    }
    if denoiser.second_time is not None:
        inputs[denoiser.second_time] = visit.column(lambda p: np.where(np.isnan(p.second), p.time, p.second), times)
    told = visit.column(lambda p: p.time).to(times)
    with in_eval_mode([module for one in denoiser.nets for module in modules_in(one)]):
        m = net(x.to(computing_dtype(denoiser.net) or x.dtype), told, **inputs)
    m = check_output(m, tuple(visit.x.shape))
    return prediction(m, tuple(visit.x.shape[1:]))
