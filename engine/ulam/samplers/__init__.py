"""Samplers: each one short function of float64 mathematics from a schedule to a `Program`.

Those that type checkers should see are named here; the samplers of every other file in this folder are exported too.
"""

import importlib
import inspect
import pkgutil

from ..lazily import suggests
from ..programs.clip import DynamicThreshold
from .consistency import Consistency
from .ddim import DDIM
from .ddpm import DDPM
from .deis import DEIS
from .dpm2 import DPM2
from .dpm_solver import DPMSolver
from .dpm_solver_pp import DPMSolverPP
from .dpm_solver_pp_sde import DPMSolverPPSDE
from .er_sde import ERSDE
from .euler import Euler, EulerAncestral
from .flow_map import FlowMap
from .grid import Grid, GridSampler
from .heun import Heun
from .langevin import AnnealedLangevin, PredictorCorrector
from .lcm import LCM
from .lms import LMS
from .mcmc.baoab import BAOAB as BAOAB  # Markov chains: ulam.mcmc.run takes them
from .mcmc.ghmc import GHMC as GHMC
from .mcmc.hmc import HMC as HMC
from .mcmc.mala import MALA as MALA
from .mcmc.malt import MALT as MALT
from .mcmc.mams import MAMS as MAMS
from .mcmc.mclmc import MCLMC as MCLMC
from .mcmc.nuts import NUTS as NUTS
from .mcmc.sgld import SGLD as SGLD
from .mcmc.tempering import ParallelTempering as ParallelTempering
from .mcmc.ula import ULA as ULA
from .names import named
from .pndm import PNDM
from .repaint import RePaint
from .sa_solver import SASolver
from .scm import SCM
from .seeds import SEEDS
from .tcd import TCD
from .unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "DPM2",
    "ERSDE",
    "LCM",
    "LMS",
    "PNDM",
    "SCM",
    "SEEDS",
    "TCD",
    "AnnealedLangevin",
    "Consistency",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverPPSDE",
    "DynamicThreshold",
    "Euler",
    "EulerAncestral",
    "FlowMap",
    "Grid",
    "GridSampler",
    "Heun",
    "PredictorCorrector",
    "RePaint",
    "SASolver",
    "UniPC",
    "named",
]


def catalogue() -> dict[str, type[GridSampler]]:
    """Every public sampler on a grid of noise levels, by name, in the order of the names."""
    exported = {name: globals()[name] for name in sorted(__all__)}
    return {
        name: it
        for name, it in exported.items()
        if isinstance(it, type) and issubclass(it, GridSampler) and it is not GridSampler
    }


def _export_others() -> None:
    """Export every public sampler that is defined in a file of this folder and not named above.

    Raises ImportError for one whose name is taken.
    """
    for found in pkgutil.iter_modules(__path__):
        if not found.name.isidentifier():  # a copy that an editor left
            continue
        module = importlib.import_module(f"{__name__}.{found.name}")
        for name, it in list(vars(module).items()):
            ours = GridSampler in getattr(it, "__mro__", ()) and it.__module__ == module.__name__
            if not ours or name != it.__name__ or name.startswith("_") or inspect.isabstract(it):
                continue
            if globals().setdefault(name, it) is not it:
                raise ImportError(f"{module.__name__}: got a sampler {name}, expected a name that is not taken")
            if name not in __all__:
                __all__.append(name)


_export_others()
suggests(__name__)
