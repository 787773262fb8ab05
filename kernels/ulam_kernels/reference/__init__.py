"""The readable exact backend in NumPy: slow, and the oracle that every other backend is held against.

A file has one operation, or a family of them.
"""

from ulam_kernels.reference import likelihood, mcmc
from ulam_kernels.reference.blend import blend
from ulam_kernels.reference.fill import affine, fill_normal
from ulam_kernels.reference.reduce import moments, reduce
from ulam_kernels.reference.step import step
from ulam_kernels.reference.tick import advance, look_up
from ulam_kernels.reference.walk import bound_walk, call_network

__all__ = ["advance", "affine", "blend", "bound_walk", "call_network", "fill_normal", "likelihood", "look_up", "mcmc",
           "moments", "reduce", "step"]  # fmt: skip
