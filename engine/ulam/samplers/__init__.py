"""Samplers: each one short function of float64 mathematics from a schedule to a `Program`."""

from ..mcmc.samplers import BAOAB as BAOAB  # Markov chains: ulam.mcmc.run takes them
from ..mcmc.samplers import HMC as HMC
from ..mcmc.samplers import MALA as MALA
from ..mcmc.samplers import SGLD as SGLD
from ..mcmc.samplers import ULA as ULA
from ..mcmc.samplers import ParallelTempering as ParallelTempering
from ..program import DynamicThreshold
from .consistency import Consistency
from .ddim import DDIM
from .ddpm import DDPM
from .deis import DEIS
from .dpm2 import DPM2
from .dpm_solver import DPMSolver
from .dpm_solver_pp import DPMSolverPP
from .euler import Euler, EulerAncestral
from .grid import Grid, GridSampler
from .heun import Heun
from .langevin import AnnealedLangevin, PredictorCorrector
from .lcm import LCM
from .lms import LMS
from .pndm import PNDM
from .repaint import RePaint
from .tcd import TCD
from .unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "DPM2",
    "LCM",
    "LMS",
    "PNDM",
    "TCD",
    "AnnealedLangevin",
    "Consistency",
    "DPMSolver",
    "DPMSolverPP",
    "DynamicThreshold",
    "Euler",
    "EulerAncestral",
    "Grid",
    "GridSampler",
    "Heun",
    "PredictorCorrector",
    "RePaint",
    "UniPC",
]
