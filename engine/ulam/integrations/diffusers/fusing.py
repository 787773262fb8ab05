"""`fuse`: a configured diffusers scheduler on ulam's rows, in the class of the original."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

try:
    import diffusers
except ImportError as error:
    raise ImportError("ulam.integrations.diffusers.fuse needs diffusers: pip install 'ulam[diffusers]'") from error

from ulam_kernels import torch_normal
from ulam_kernels.arguments import choice, described
from ulam_kernels.dispatch import load

from .arguments import check_grid, of_diffusers
from .configuration import check_complete, check_config
from .families.index import FusedDDIM, FusedDDPM, FusedLCM, FusedPNDM
from .families.score import FusedScoreSdeVe
from .families.sigma import (
    FusedEDMEuler,
    FusedEuler,
    FusedEulerAncestral,
    FusedFlowMatchEuler,
    FusedHeun,
    FusedKDPM2,
    FusedLMS,
)
from .families.solver import FusedDEIS, FusedDPMMultistep, FusedDPMSinglestep, FusedEDMDPM, FusedUniPC
from .noise import KINDS, Streams
from .outputs import later_class
from .scheduler import Fused, index_for_timestep
from .threads import PROGRESS, SCHEDULE, PerThread
from .tracing import check_not_recorded, outside_graphs

FAMILIES: dict[str, type[Fused]] = {
    "DDPMScheduler": FusedDDPM,
    "DDIMScheduler": FusedDDIM,
    "LCMScheduler": FusedLCM,
    "PNDMScheduler": FusedPNDM,
    "EulerDiscreteScheduler": FusedEuler,
    "EulerAncestralDiscreteScheduler": FusedEulerAncestral,
    "HeunDiscreteScheduler": FusedHeun,
    "KDPM2DiscreteScheduler": FusedKDPM2,
    "LMSDiscreteScheduler": FusedLMS,
    "EDMEulerScheduler": FusedEDMEuler,
    "FlowMatchEulerDiscreteScheduler": FusedFlowMatchEuler,
    "DPMSolverMultistepScheduler": FusedDPMMultistep,
    "DPMSolverSinglestepScheduler": FusedDPMSinglestep,
    "EDMDPMSolverMultistepScheduler": FusedEDMDPM,
    "UniPCMultistepScheduler": FusedUniPC,
    "DEISMultistepScheduler": FusedDEIS,
    "ScoreSdeVeScheduler": FusedScoreSdeVe,
}


def fuse(
    scheduler: Any,
    *,
    noise: str = "torch",
    seed: int = 0,
    chains: int | range | Sequence[int] | torch.Tensor | None = None,
    backend: str | None = None,
) -> Any:
    """The same scheduler with `step` as one fused operation: same interface, configuration and timesteps.

    scheduler: a scheduler of diffusers of a class in `FAMILIES`, or of a class derived from one that leaves `step`
    as it is. The result is an instance of its class, and takes its place in any pipeline:
    ``pipe.scheduler = fuse(pipe.scheduler)``. What it saves is read back by diffusers alone.

    noise: "torch" draws what diffusers draws, in order, shape and dtype, from the generator that `step` is given (or
    torch's own), so that results are reproduced. "noise-v1" makes ulam's noise from (seed, chain, row) inside the
    step; the generator is then not read. chains: the ids of a batch's samples, default 0, 1, ...
    backend: as in `ulam.sample`.

    Samples are those of diffusers up to float32 roundings, but where diffusers gives NaN or goes to another noise level
    than it tells the network: see the docstrings of `FusedDDPM` (two variance types), `FusedDDIM` and `FusedPNDM`
    (spacings whose steps are not T // n), `FusedDPMMultistep` and `FusedDPMSinglestep` (order 3 of the SDE), `FusedLMS`
    and `FusedPNDM` (loops that begin in the middle). A loop that begins at the first timestep begins at the first row,
    also where later timesteps equal it (diffusers, unless told by `set_begin_index`, begins at the second of them).
    Where noise levels repeat, a step goes nowhere and the solver goes on behind it; diffusers' higher orders give NaN.

    Several threads may use one fused scheduler, also with different numbers of steps: what `set_timesteps` and `step`
    set is per thread. `step` takes a timestep for every sample of the batch as well as one for all (best on the CPU:
    it is read there); a generator then draws for the whole batch where any sample's call draws.
    The second output (`pred_original_sample`, ...) is computed when it is asked for. Under torch.compile a call is run
    as it is, with a break in the graph; torch.jit.trace, make_fx, torch.export and torch.func raise RuntimeError.

    Raises TypeError for what is no such scheduler, ValueError naming the option for a configuration that has no rows;
    `set_timesteps` raises ValueError for levels that rise or are not finite. Both it and `step` name an argument that
    cannot be, and what they refuse leaves the timesteps, the loop and the generators as they were. Of a loop's
    timesteps only the first is looked up where diffusers counts calls, as there.
    """
    if not isinstance(scheduler, diffusers.SchedulerMixin):
        raise TypeError(f"scheduler must be a scheduler of diffusers, got {type(scheduler).__name__}")
    choice(noise, "noise", KINDS)
    new = fused(type(scheduler)).__new__(fused(type(scheduler)))
    new._restore(scheduler._snapshot() if isinstance(scheduler, Fused) else vars(scheduler))
    streams = Streams.of(seed, chains)
    new._streams, new._backend = streams if noise == "noise-v1" else None, backend
    own = next(c for c in type(new).__mro__ if _is_own(c))
    check_complete(new.config, inspect.signature(own).parameters)
    check_config(new.config, type(new).__name__)
    new._check()
    load("cpu")  # this and what follows: what the first step would wait for
    kind, second = new.output
    if second is not None:
        later_class(kind, second)
    torch_normal(torch.empty(0, dtype=torch.float32, device="cpu"), torch.Generator("cpu"))
    return new


def fused(scheduler_class: type) -> Any:
    """The class of `fuse(scheduler)`, derived from a scheduler class of diffusers; it is used as that class is.

    It keeps the name and module of the original, under which diffusers saves schedulers and pipelines. Raises TypeError
    for what is no class, and for other classes.
    """
    if not isinstance(scheduler_class, type):
        raise TypeError(f"scheduler_class: got {described(scheduler_class)}, expected a class of diffusers' schedulers")
    return _fused(scheduler_class)


@cache
def _fused(scheduler_class: type) -> Any:
    if issubclass(scheduler_class, Fused):
        return scheduler_class
    family = next((FAMILIES[c.__name__] for c in scheduler_class.__mro__ if _is_own(c)), None)
    if family is None:
        known = ", ".join(name.removesuffix("Scheduler") for name in FAMILIES)
        raise TypeError(f"scheduler: got {scheduler_class.__name__}, expected one of diffusers' classes {known}")
    owner = next(c for c in scheduler_class.__mro__ if "step" in vars(c) or "step_pred" in vars(c))
    if not _is_own(owner):
        raise TypeError(f"scheduler must have the step of diffusers, {scheduler_class.__name__} has one of its own")
    namespace: dict[str, Any] = {name: PerThread(name, progress=False) for name in SCHEDULE}
    namespace |= {name: PerThread(name, progress=True) for name in PROGRESS}
    namespace["set_timesteps"] = _beginning_anew(scheduler_class.set_timesteps)  # type: ignore[attr-defined]
    if hasattr(scheduler_class, "index_for_timestep"):
        namespace["index_for_timestep"] = index_for_timestep
    namespace["__module__"] = scheduler_class.__module__
    namespace["__qualname__"] = f"fused({scheduler_class.__qualname__})"
    namespace["__doc__"] = scheduler_class.__doc__
    namespace["_original"] = scheduler_class
    return type(scheduler_class.__name__, (family, scheduler_class), namespace)


def _is_own(scheduler_class: type) -> bool:
    """Whether diffusers itself has this class, and fuse knows it."""
    name = scheduler_class.__name__
    return name in FAMILIES and getattr(diffusers, name, None) is scheduler_class


def _beginning_anew(set_timesteps: Any) -> Any:
    signature = inspect.signature(set_timesteps)

    @outside_graphs
    @functools.wraps(set_timesteps)
    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        check_not_recorded("set_timesteps")
        try:
            given = dict(signature.bind(self, *args, **kwargs).arguments)
        except TypeError as error:
            names = ", ".join(list(signature.parameters)[1:])
            raise TypeError(f"set_timesteps: {error}, expected {names}") from None
        del given[next(iter(given))]  # self
        check_grid(given)
        with self._as_before_if_refused():
            self._begin()
            try:
                set_timesteps(self, *args, **kwargs)
            except ImportError:
                raise
            except Exception as error:
                raise of_diffusers(error, type(self).__name__, given) from error
            self._prepare()

    return begin
