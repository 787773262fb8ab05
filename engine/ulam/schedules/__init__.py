"""Noise schedules in float64.

`kinds` says what they are, `constructors` makes them, `transitions` leads from one noise level to another.
"""

from ..lazily import suggests
from .arguments import Array, Numbers
from .constructors import (
    edm,
    flow,
    from_alphas_cumprod,
    from_betas,
    sub_vp,
    ve,
    vp_cosine,
    vp_linear,
    vp_scaled_linear,
    vp_sigmoid,
    zero_terminal_snr,
)
from .kinds import (
    EDM,
    Continuous,
    FlowMatching,
    Schedule,
    SubVP,
    VarianceExploding,
    VariancePreserving,
    check_schedule,
)
from .learned import Frozen, Learned, learned
from .transitions import before, correlation, posterior

__all__ = [
    "EDM",
    "Array",
    "Continuous",
    "FlowMatching",
    "Frozen",
    "Learned",
    "Numbers",
    "Schedule",
    "SubVP",
    "VarianceExploding",
    "VariancePreserving",
    "before",
    "check_schedule",
    "correlation",
    "edm",
    "flow",
    "from_alphas_cumprod",
    "from_betas",
    "learned",
    "posterior",
    "sub_vp",
    "ve",
    "vp_cosine",
    "vp_linear",
    "vp_scaled_linear",
    "vp_sigmoid",
    "zero_terminal_snr",
]

suggests(__name__)
