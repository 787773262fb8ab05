"""A job: chains of one sampler with their seed, conditioning and guidance, as `Engine.submit` returns it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.reprs import short_repr

from ..conditioning import Shared
from ..guidance import Rule
from ..programs.program import Program
from .inpainting import Known
from .rollout import Rollout

Noise: TypeAlias = Callable[[int, torch.Tensor], torch.Tensor]
Callback: TypeAlias = "Callable[[Preview], object]"
Branches: TypeAlias = "tuple[tuple[dict[str, torch.Tensor | Shared], torch.Tensor], ...]"
Finish: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Job:
    """What was submitted to an engine. Per-chain tensors are ``[chains, ...]``, in the order of ``chains``.

    Attributes:
        program: the compiled sampler. chains: ``[n]`` int64 ids. seed: as an int64.
        cond, uncond: the network's conditioning by name; uncond is empty where ``guidance`` is None.
        guidance: ``[n]`` float32 weights. interval: (lo, hi), the times at which they hold. rescale: phi.
        x_init: ``[n, *shape]`` first states (``[*shape]`` if shared), or None for noise. first_row: of noise-v1.
        known: image and mask, for inpainting.
        noise: called as ``noise(row, chains)`` in place of noise-v1, or None.
        callback: called with a :class:`Preview` every ``every`` evaluations. finish: maps final states to results.
        rollout: what is recorded. history: ``[n, registers - 1, *shape]``, first values of further registers, or None.
        rule: of guidance, or None. branches: further conditionings with their weights ``[n]`` float32.
        priority, deadline: see :class:`ulam.engine.scheduler.Scheduler`.
        ticks: evaluations of the network per chain. traits: its ticks' needs beyond one evaluation and one fused step,
            by the names of :class:`ulam.engine.tick_needs.TickNeeds`. chain_ids, weights: ids and guidance as arrays.
    """

    program: Program
    chains: torch.Tensor
    seed: int
    cond: dict[str, torch.Tensor | Shared]
    uncond: dict[str, torch.Tensor | Shared]
    guidance: torch.Tensor | None
    x_init: torch.Tensor | Shared | None
    noise: Noise | None
    known: Known | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    callback: Callback | None = None
    every: int = 1
    finish: Finish | None = None
    priority: int = 0
    deadline: float | None = None
    first_row: int = 0
    rule: Rule | None = None
    branches: Branches = ()
    rollout: Rollout | None = None
    history: torch.Tensor | None = None
    ticks: int = field(init=False, repr=False)
    traits: tuple[str, ...] = field(init=False, repr=False)
    chain_ids: npt.NDArray[np.int64] = field(init=False, repr=False)
    weights: npt.NDArray[np.float32] | None = field(init=False, repr=False)

    __repr__ = short_repr

    def __post_init__(self) -> None:
        """Compute once what every tick reads."""
        ticks = len(self.program.evaluating)
        has = {
            "without_evaluation": ticks != len(self.program.time),
            "noisy": self.noise is not None,
            "intervals": self.interval is not None,
            "guided": self.guidance is not None,
            "rescaled": self.rescale > 0,
            "reduces": self.program.needs_reductions,
            "blends": self.known is not None,
            "scaled": self.program.scales_input,
            "previews": self.callback is not None,
            "unguided": self.program.reads_unguided,
            "scheduled": self.program.schedules_guidance,
            "ruled": self.rule is not None,
            "blended": bool(self.branches),
            "recorded": self.rollout is not None,
        }
        object.__setattr__(self, "traits", tuple(name for name, applies in has.items() if applies))
        object.__setattr__(self, "ticks", ticks)
        object.__setattr__(self, "chain_ids", self.chains.numpy())
        object.__setattr__(self, "weights", None if self.guidance is None else self.guidance.numpy())

    def seeded(self, seed: int | None) -> Job:
        """Another job of the same chains, whose ids are in the same memory, with this seed below 2^63 (0)."""
        made = object.__new__(Job)
        vars(made).update(vars(self), seed=seed or 0)
        return made

    def again(self, seed: int | None) -> Job:
        """:meth:`seeded`, with ids in memory of its own."""
        made, ids = self.seeded(seed), self.chain_ids.copy()
        vars(made).update(chains=torch.from_numpy(ids), chain_ids=ids)
        vars(made).pop("ids", None)
        return made

    @cached_property
    def ids(self) -> list[int]:
        """The ids as Python integers."""
        numbers: list[int] = self.chain_ids.tolist()
        return numbers


@dataclass(frozen=True, eq=False)
class Preview:
    """Chains of a job after a row: their ids, state ``x``, and x_0 estimate ``x0`` before the update, ``[n, *shape]``.

    ``x0`` comes from the row's network output, before any clip; None on rows that have no estimate.
    """

    job: Job
    chains: list[int]
    row: int
    x: torch.Tensor
    x0: torch.Tensor | None

    __repr__ = short_repr
