"""Markov chain Monte Carlo: energies, scores and built-in densities, thousands of independent chains at once.

`run` runs them, a batch at a time; the transitions are those of `ulam.samplers.markov`.
"""

from ..lazily import suggests
from ..samplers.mcmc.baoab import BAOAB
from ..samplers.mcmc.ghmc import GHMC
from ..samplers.mcmc.hmc import HMC
from ..samplers.mcmc.low_rank import LowRank
from ..samplers.mcmc.mala import MALA
from ..samplers.mcmc.malt import MALT
from ..samplers.mcmc.mams import MAMS
from ..samplers.mcmc.mclmc import MCLMC
from ..samplers.mcmc.nuts import NUTS
from ..samplers.mcmc.sgld import SGLD
from ..samplers.mcmc.tempering import ParallelTempering
from ..samplers.mcmc.ula import ULA
from .adaptation import DualAveraging
from .chains import Chains
from .densities import DoubleWell, Funnel, Ring, Rosenbrock
from .gaussians import Gaussian, GaussianMixture
from .models.minibatch import Minibatch
from .models.model import Model
from .models.parameters import CorrelationCholesky, Interval, Ordered, Parameter, Positive, Real, Simplex, UnitInterval
from .run import run
from .targets import DenoiserScore, Energy, Score
from .verdicts.verdict import Verdict
from .warmup.settings import Warmup
from .warmup.tuning import Tuning

__all__ = [
    "BAOAB",
    "GHMC",
    "HMC",
    "MALA",
    "MALT",
    "MAMS",
    "MCLMC",
    "NUTS",
    "SGLD",
    "ULA",
    "Chains",
    "CorrelationCholesky",
    "DenoiserScore",
    "DoubleWell",
    "DualAveraging",
    "Energy",
    "Funnel",
    "Gaussian",
    "GaussianMixture",
    "Interval",
    "LowRank",
    "Minibatch",
    "Model",
    "Ordered",
    "ParallelTempering",
    "Parameter",
    "Positive",
    "Real",
    "Ring",
    "Rosenbrock",
    "Score",
    "Simplex",
    "Tuning",
    "UnitInterval",
    "Verdict",
    "Warmup",
    "run",
]

suggests(__name__)
