"""The readable exact backend in NumPy: slow, and the oracle that every other backend is held against."""

from ulam_kernels.reference.step import affine, fill_normal, step

__all__ = ["affine", "fill_normal", "step"]
