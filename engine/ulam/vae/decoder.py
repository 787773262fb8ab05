"""p(x | z_1): the decoder's mean and standard deviation, densities, and probabilities of bins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ulam_kernels.arguments import described, positive, whole
from ulam_kernels.tracing import recorder
from ulam_kernels.validation import check_real, check_tensor

from ..evaluation import check_like
from .gaussians import gaussian_log_density, moments, nats, wide
from .levels import Network

Scale: TypeAlias = "float | torch.Tensor | Network | None"


@dataclass(frozen=True)
class Decoder:
    """N(network(z_1), scale^2), or the Gaussian's probability of x's bin where there are ``bins``."""

    network: Network
    scale: Scale
    bins: int | None

    def __post_init__(self) -> None:
        if not callable(self.network):
            raise TypeError(f"decoder: got {described(self.network)}, expected a network")
        if isinstance(self.scale, torch.Tensor):
            check_tensor(self.scale, "scale")
            _log(self.scale)
        elif self.scale is not None and not callable(self.scale):
            positive(self.scale, "scale")
        if self.bins is not None:
            whole(self.bins, "bins", 2, 1 << 16)

    def log_likelihood(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """log p(x | z_1) in nats, ``[B]`` float64."""
        out, wide_x = self.network(z), wide(x)
        if self.scale is None:
            mean, log_std = moments(out, x.shape, "decoder")
        else:
            mean = wide(check_like(out, x.shape, "decoder", why=" like this x"))
            if self.bins is None and isinstance(self.scale, (int, float)):
                constant = (math.log(self.scale) + math.log(2 * math.pi) / 2) * math.prod(x.shape[1:])
                return torch.rsub(nats((wide_x - mean).square()), -constant, alpha=1 / (2 * self.scale**2))
            log_std = self.log_std(z, mean)
        if self.bins is not None:
            return binned_log_likelihood(x, mean, log_std, self.bins)
        return gaussian_log_density(wide_x, mean, log_std)

    def log_std(self, z: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """The logarithm of ``scale``, not None, in the shape of the mean ``[B, *x_shape]``."""
        if isinstance(self.scale, torch.Tensor):
            shape, std = mean.shape[1:], self.scale
        elif callable(self.scale):
            shape, std = mean.shape, self.scale(z)
            check_tensor(std, "scale")
        else:
            assert self.scale is not None, "the decoder returns it"
            return torch.full_like(mean, math.log(self.scale))
        fits = std.dim() == len(shape) and all(n in (1, size) for n, size in zip(std.shape, shape, strict=True))
        if not fits and std.numel() != 1:
            raise ValueError(f"scale: got shape {list(std.shape)}, expected {list(shape)}, with 1 for what is shared")
        return _log(std if fits else std.reshape(())).expand(mean.shape)


def binned_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor, bins: int) -> torch.Tensor:
    """log of N(mean, std^2)'s probability of the bins of x, ``[B]`` float64 [Ho 2020, eq. 13]; gradients flow.

    As :func:`ulam_kernels.likelihood.discretised_log_likelihood`, whose exact cdf this is: the levels go from -1 to 1,
    the outermost bins to infinity. Raises ValueError for x outside [-1, 1].
    """
    largest = float(x.abs().max()) if _readable() else 0.0
    if not largest <= 1 + 1e-3:  # NaN too
        raise ValueError(f"x: got {largest:g} in size, expected numbers in [-1, 1], in {bins} bins")
    x, half, inverse = x.double(), 1 / (bins - 1), (-log_std.double()).exp()
    # Mirrored so that the bin lies left of the mean, where the tail is small and known by its logarithm.
    side = torch.where(x > mean, -1.0, 1.0).double()
    centre = side * (x - mean)
    lower, upper = (centre - half) * inverse, (centre + half) * inverse
    outside = 1 - half / 2
    no_lower, no_upper = side * x < -outside, side * x > outside
    first = torch.special.log_ndtr(torch.where(no_upper, -lower, upper))
    apart = first - torch.special.log_ndtr(torch.where(no_lower | no_upper, upper - 1, lower))
    both = first + torch.log(-torch.expm1(-torch.where(no_lower | no_upper, 1.0, apart)))
    return nats(torch.where(no_lower | no_upper, first, both))


def _log(std: torch.Tensor) -> torch.Tensor:
    """log std. Raises TypeError or ValueError for what is not positive, where its numbers can be read."""
    check_real(std, "scale")
    if _readable() and not bool(((std > 0) & (std < math.inf)).all()):
        raise ValueError(f"scale: got {described(std)} not all positive and finite, expected positive finite numbers")
    return wide(std).log()


def _readable() -> bool:
    return not torch.compiler.is_compiling() and recorder() is None
