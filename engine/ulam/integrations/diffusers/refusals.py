"""The schedulers of diffusers that `fuse` does not take: why, and what to take in their place."""

from __future__ import annotations

TOKENS = "its samples are tokens, which have no rows: use it as it is"
BROWNIAN = (
    "its noise is a path of Brownian motion from torchsde's tree, not a draw a step: use it as it is, or "
    'DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")'
)
REFUSED = {
    "AmusedScheduler": TOKENS,
    "BlockRefinementScheduler": TOKENS,
    "DiscreteDDIMScheduler": TOKENS,
    "EntropyBoundScheduler": TOKENS,
    "VQDiffusionScheduler": TOKENS,
    "DPMSolverSDEScheduler": BROWNIAN,
    "CosineDPMSolverMultistepScheduler": (
        "its noise is a path of Brownian motion from torchsde's tree, not a draw a step: use it as it is, or "
        'EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")'
    ),
    "ConsistencyDecoderScheduler": (
        "it belongs to ConsistencyDecoderVAE, whose own network it runs for two steps inside of decode: use it as it is"
    ),
}
