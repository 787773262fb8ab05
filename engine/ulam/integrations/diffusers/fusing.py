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
    raise ImportError("diffusers: got no such package, expected it for fuse: pip install 'ulam[diffusers]'") from error

from ulam_kernels import torch_normal
from ulam_kernels.arguments import choice, described
from ulam_kernels.dispatch import load
from ulam_kernels.tracing import outside_graphs

from .arguments import check_grid, refused_by_diffusers
from .configuration import check_complete, check_config
from .families.cogvideox import FusedCogVideoXDDIM, FusedCogVideoXDPM
from .families.consistency import FusedConsistency
from .families.edm import FusedEDMDPM, FusedEDMEuler
from .families.few_steps import FusedFlowMapEuler, FusedPiflow, FusedSCM
from .families.flow import FusedFlowMatchEuler, FusedFlowMatchHeun, FusedFlowMatchLCM, FusedLTXEulerAncestral
from .families.helios import FusedHelios, FusedHeliosDMD
from .families.index import FusedDDIM, FusedDDIMParallel, FusedDDPM, FusedDDPMParallel, FusedLCM, FusedPNDM
from .families.inverse import FusedDDIMInverse, FusedDPMInverse
from .families.ipndm import FusedIPNDM
from .families.karras_ve import FusedKarrasVe
from .families.minimax import FusedMiniMaxH3
from .families.posterior import FusedUnCLIP, FusedWuerstchen
from .families.proteina import FusedRFD4Proteina
from .families.repaint import FusedRePaint
from .families.sa import FusedSASolver
from .families.score import FusedScoreSdeVe, FusedScoreSdeVp
from .families.sigma import (
    FusedEuler,
    FusedEulerAncestral,
    FusedHeun,
    FusedKDPM2,
    FusedKDPM2Ancestral,
    FusedLMS,
)
from .families.solver import FusedDEIS, FusedDPMMultistep, FusedDPMSinglestep, FusedUniPC
from .families.tcd import FusedTCD
from .noise import NOISES, Streams
from .outputs import lazy_class
from .positions import index_for_timestep
from .refusals import REFUSED
from .scheduler import Fused
from .threads import PROGRESS, SCHEDULE, PerThread
from .tracing import check_not_recorded

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
    "FlowMatchHeunDiscreteScheduler": FusedFlowMatchHeun,
    "FlowMatchLCMScheduler": FusedFlowMatchLCM,
    "LTXEulerAncestralRFScheduler": FusedLTXEulerAncestral,
    "SCMScheduler": FusedSCM,
    "FlowMapEulerDiscreteScheduler": FusedFlowMapEuler,
    "PiflowScheduler": FusedPiflow,
    "HeliosScheduler": FusedHelios,
    "HeliosDMDScheduler": FusedHeliosDMD,
    "RFD4ProteinaScheduler": FusedRFD4Proteina,
    "DPMSolverMultistepScheduler": FusedDPMMultistep,
    "DPMSolverSinglestepScheduler": FusedDPMSinglestep,
    "EDMDPMSolverMultistepScheduler": FusedEDMDPM,
    "UniPCMultistepScheduler": FusedUniPC,
    "DEISMultistepScheduler": FusedDEIS,
    "SASolverScheduler": FusedSASolver,
    "ScoreSdeVeScheduler": FusedScoreSdeVe,
    "DDPMParallelScheduler": FusedDDPMParallel,
    "DDIMParallelScheduler": FusedDDIMParallel,
    "TCDScheduler": FusedTCD,
    "IPNDMScheduler": FusedIPNDM,
    "KDPM2AncestralDiscreteScheduler": FusedKDPM2Ancestral,
    "DDIMInverseScheduler": FusedDDIMInverse,
    "DPMSolverMultistepInverseScheduler": FusedDPMInverse,
    "UnCLIPScheduler": FusedUnCLIP,
    "CMStochasticIterativeScheduler": FusedConsistency,
    "CogVideoXDDIMScheduler": FusedCogVideoXDDIM,
    "CogVideoXDPMScheduler": FusedCogVideoXDPM,
    "DDPMWuerstchenScheduler": FusedWuerstchen,
    "MiniMaxH3Scheduler": FusedMiniMaxH3,
    "RePaintScheduler": FusedRePaint,
    "KarrasVeScheduler": FusedKarrasVe,
    "ScoreSdeVpScheduler": FusedScoreSdeVp,
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

    Samples are those of diffusers up to float32 roundings, except where diffusers gives NaN or goes to another noise
    level than it tells the network: see the docstrings of `FusedDDPM` (two variance types), `FusedDDIM` and `FusedPNDM`
    (spacings whose steps are not T // n), `FusedDPMMultistep` and `FusedDPMSinglestep` (order 3 of the SDE), `FusedLMS`
    and `FusedPNDM` (loops that begin in the middle), `FusedHelios` (likewise), `FusedFlowMapEuler` (times of samples).
    A loop that begins at the first timestep begins at the first row, also where later timesteps equal it (diffusers,
    unless told by `set_begin_index`, begins at the second of them).
    Where noise levels repeat, a step goes nowhere and the solver goes on after it; diffusers' higher orders give NaN.

    Several threads may use one fused scheduler, also with different numbers of steps: what `set_timesteps` and `step`
    set is per thread. `step` takes a timestep for every sample of the batch as well as one for all (best on the CPU:
    it is read there); a generator then draws for the whole batch where any sample's call draws.
    The second output (`pred_original_sample`, ...) is computed when it is asked for. Under torch.compile a call is run
    as it is, with a break in the graph; torch.jit.trace, make_fx, torch.export and torch.func raise RuntimeError.

    Raises TypeError for any other scheduler, with the reason for those in `REFUSED`, ValueError naming the option for a
    configuration that has no rows; `set_timesteps` raises ValueError for levels that rise or are not finite. It and
    `step` name an invalid argument in the message, and a refused call leaves the timesteps, the loop and the generators
    as they were. Where diffusers counts calls, only the first timestep of a loop is looked up, as there.
    """
    if not isinstance(scheduler, diffusers.SchedulerMixin):
        raise TypeError(f"scheduler: got {type(scheduler).__name__}, expected a scheduler of diffusers")
    choice(noise, "noise", NOISES)
    new = _rebuilt(type(scheduler), scheduler._snapshot() if isinstance(scheduler, Fused) else vars(scheduler))
    streams = Streams.of(seed, chains)
    new._streams, new._backend = streams if noise == "noise-v1" else None, backend
    own = next(c for c in type(new).__mro__ if _is_own(c))
    check_complete(new.config, inspect.signature(own).parameters)
    check_config(new.config, type(new).__name__)
    new._check()
    load("cpu")  # this and what follows: what the first step would wait for
    kind, second = new.output
    if second is not None:
        lazy_class(kind, second)
    torch_normal(torch.empty(0, dtype=torch.float32, device="cpu"), torch.Generator("cpu"))
    return new


def fused(scheduler_class: type) -> Any:
    """The class of `fuse(scheduler)`, derived from a scheduler class of diffusers; it is used as that class is.

    It keeps the name and module of the original, under which diffusers saves schedulers and pipelines. Raises TypeError
    for anything else.
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
        for c in scheduler_class.__mro__:
            if c.__name__ in REFUSED and c.__module__.startswith("diffusers."):
                came = scheduler_class.__name__
                raise TypeError(f"scheduler: got {came}, expected another: {REFUSED[c.__name__]}")
        known = f"one of diffusers' classes that docs/diffusers.md lists, such as {next(iter(FAMILIES))}"
        raise TypeError(f"scheduler: got {scheduler_class.__name__}, expected {known}")
    owner = next(c for c in scheduler_class.__mro__ if "step" in vars(c) or "step_pred" in vars(c))
    if not _is_own(owner):
        came = scheduler_class.__name__
        raise TypeError(f"scheduler: got {came} with a step of its own, expected one with the step of diffusers")
    namespace: dict[str, Any] = {name: PerThread(name, progress=False) for name in SCHEDULE}
    namespace |= {name: PerThread(name, progress=True) for name in PROGRESS}
    namespace["set_timesteps"] = _beginning_anew(scheduler_class.set_timesteps)  # type: ignore[attr-defined]
    if hasattr(scheduler_class, "index_for_timestep") and not hasattr(family, "index_for_timestep"):
        namespace["index_for_timestep"] = index_for_timestep
    namespace["__module__"] = scheduler_class.__module__
    namespace["__qualname__"] = f"fused({scheduler_class.__qualname__})"
    namespace["__doc__"] = scheduler_class.__doc__
    namespace["_original"], namespace["__reduce__"] = scheduler_class, _reduced
    return type(scheduler_class.__name__, (family, scheduler_class), namespace)


def _reduced(scheduler: Any) -> Any:
    """For copy and pickle: a copy has the schedule of the thread that makes it, and begins a new loop."""
    return _rebuilt, (scheduler._original, scheduler._snapshot())


def _rebuilt(original: type, attributes: dict[str, Any]) -> Any:
    """The fused scheduler of a class of diffusers, with these attributes."""
    scheduler = _fused(original).__new__(_fused(original))
    scheduler._restore(attributes)
    return scheduler


def _is_own(scheduler_class: type) -> bool:
    """Whether this class is diffusers' own and in `FAMILIES`."""
    name = scheduler_class.__name__
    return name in FAMILIES and getattr(diffusers.schedulers, name, None) is scheduler_class


def _beginning_anew(set_timesteps: Any) -> Any:
    """diffusers' `set_timesteps`, after which a loop of this thread begins; what it refuses changes nothing."""
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
        with self._unchanged_if_refused():
            self._begin()
            try:
                set_timesteps(self, *args, **kwargs)
            except ImportError:
                raise
            except Exception as error:
                raise refused_by_diffusers(error, type(self).__name__, given) from error
            self._prepare()

    return begin
